//! A server that gives out tokens for a registry, as Docker Hub's does
//! (<https://distribution.github.io/distribution/spec/auth/token/>).

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::json;

use crate::registry::{PASSWORD, USER};
use crate::{OUTSIDE, World};

/// Where it listens.
pub(crate) const TOKENS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(OUTSIDE), 5002);

/// Serves until the test's process ends.
pub(crate) struct TokenServer;

struct Signer {
    key: EcdsaKeyPair,
    certificate: String,
}

impl TokenServer {
    /// Writes the certificate by which its tokens are believed.
    pub(crate) fn start(world: &World, certificate: &Path) -> Self {
        let own = rcgen::generate_simple_self_signed(vec!["tokens".to_owned()]).unwrap();
        std::fs::write(certificate, own.cert.pem()).unwrap();
        let key = own.signing_key.serialize_der();
        let signer = Arc::new(Signer {
            key: EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &key).unwrap(),
            certificate: STANDARD.encode(own.cert.der()),
        });
        let listener = world.netns.run(|| TcpListener::bind(TOKENS).unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that goes away ends its own answer only.
                let _ = serve(stream, &signer);
            }
        });
        Self
    }
}

fn serve(mut stream: TcpStream, signer: &Signer) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    let mut known = false;
    for line in lines {
        let line = line?;
        if line.is_empty() {
            break;
        }
        let basic = STANDARD.encode(format!("{USER}:{PASSWORD}"));
        known |= line.to_ascii_lowercase().starts_with("authorization:") && line.ends_with(&basic);
    }
    let (status, body) = match known {
        true => ("200 OK", json!({ "token": signer.token(scope(&request)) })),
        false => ("401 Unauthorized", json!({ "details": "incorrect username or password" })),
    };
    let body = body.to_string();
    write!(stream, "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// `repository:NAME:pull`, from `GET /token?scope=…`.
fn scope(request: &str) -> String {
    let query = request.split(['?', ' ', '&']).find_map(|part| part.strip_prefix("scope="));
    query.unwrap_or_default().replace("%3A", ":").replace("%2F", "/").replace("%2C", ",")
}

impl Signer {
    fn token(&self, scope: String) -> String {
        let now = jiff::Timestamp::now().as_second();
        let mut parts = scope.split(':');
        let (kind, name, actions) = (parts.next(), parts.next(), parts.next().unwrap_or_default());
        let access =
            json!([{ "type": kind, "name": name, "actions": actions.split(',').collect::<Vec<_>>() }]);
        let header = json!({ "typ": "JWT", "alg": "ES256", "x5c": [self.certificate] });
        let claims = json!({
            "iss": "tokens", "sub": USER, "aud": "registry", "jti": "1",
            "iat": now, "nbf": now - 10, "exp": now + 300, "access": access,
        });
        let text = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string())).join(".");
        let signature = self.key.sign(&SystemRandom::new(), text.as_bytes()).unwrap();
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }
}
