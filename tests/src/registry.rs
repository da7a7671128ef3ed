//! A registry of images outside the nodes: Debian's `docker-registry`, with images of one's own in it.

use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};
use serde_json::json;

use crate::image::{RegistryImage, digest};
use crate::token::{TOKENS, TokenServer};
use crate::{Netns, Node, OUTSIDE, PATIENCE, World, wait_until};

/// Who may read a [`Registry`]: this user, by this password.
pub const USER: &str = "someone";
pub const PASSWORD: &str = "pass word";
/// bcrypt of it, all that `docker-registry` understands.
const HTPASSWD: &str = "someone:$2b$04$T9sYF23yZBXqRgCuKgDF.OPMYRG3PSegqneGPO3ktE0NsSyGPCphG\n";
/// The port of registries without TLS, which every node is told of.
pub(crate) const PLAIN_PORT: u16 = 5001;
const TLS_PORT: u16 = 5000;

/// How a registry wants to know who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// It does not, and is without TLS.
    Open,
    /// HTTP Basic.
    Password,
    /// A token of another server, which knows the password.
    Token,
}

pub struct Registry {
    access: Access,
    netns: Netns,
    directory: tempfile::TempDir,
    process: Child,
    _tokens: Option<TokenServer>,
}

impl Registry {
    pub fn start(world: &World, access: Access) -> Self {
        let directory = tempfile::Builder::new().prefix("shoal-e2e-registry-").tempdir_in("/tmp").unwrap();
        let path = |name: &str| directory.path().join(name);
        let key = rcgen::generate_simple_self_signed(vec![OUTSIDE.to_string()]).unwrap();
        std::fs::write(path("ca.crt"), key.cert.pem()).unwrap();
        std::fs::write(path("key.pem"), key.signing_key.serialize_pem()).unwrap();
        std::fs::write(path("htpasswd"), HTPASSWD).unwrap();
        let mut http = json!({ "addr": Self::address_of(access).to_string() });
        if access != Access::Open {
            http["tls"] = json!({ "certificate": path("ca.crt"), "key": path("key.pem") });
        }
        let mut config = json!({
            "version": 0.1,
            "log": { "level": "info" },
            "storage": { "filesystem": { "rootdirectory": path("storage") } },
            "http": http,
        });
        let tokens = (access == Access::Token).then(|| TokenServer::start(world, &path("tokens.crt")));
        match access {
            Access::Open => {}
            Access::Password => {
                config["auth"] = json!({ "htpasswd": { "realm": "r", "path": path("htpasswd") } })
            }
            Access::Token => {
                config["auth"] = json!({ "token": {
                    "realm": format!("http://{TOKENS}/token"),
                    "service": "registry",
                    "issuer": "tokens",
                    "rootcertbundle": path("tokens.crt"),
                }});
            }
        }
        // JSON is YAML.
        std::fs::write(path("config.yml"), config.to_string()).unwrap();
        let log = File::create(path("log")).unwrap();
        let process = world
            .netns
            .command("docker-registry")
            .arg("serve")
            .arg(path("config.yml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("apt-get install docker-registry");
        let registry = Self { access, netns: world.netns.clone(), directory, process, _tokens: tokens };
        let address = Self::address_of(access);
        wait_until(PATIENCE, "the registry listens", || {
            let connected = registry.netns.run(move || std::net::TcpStream::connect(address));
            connected.map(drop).map_err(|error| format!("{error}\n{}", registry.log()))
        });
        registry
    }

    fn address_of(access: Access) -> SocketAddr {
        SocketAddr::from((OUTSIDE, if access == Access::Open { PLAIN_PORT } else { TLS_PORT }))
    }

    /// `HOST:PORT`, as images of it are called.
    pub fn name(&self) -> String {
        Self::address_of(self.access).to_string()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Has a node trust the registry's certificate.
    pub fn is_trusted_by(&self, node: &Node) {
        let directory = node.path("certs.d").join(self.name());
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::copy(self.directory.path().join("ca.crt"), directory.join("ca.crt")).unwrap();
    }

    /// Puts images in under one name; several make an index. Returns the digest the name then has.
    pub fn push(&self, repository: &str, tag: &str, images: &[RegistryImage]) -> String {
        let address = self.name();
        let plain = self.access == Access::Open;
        let target = Reference::with_tag(address, repository.to_owned(), tag.to_owned());
        let images = images.to_vec();
        self.netns.run(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(push(plain, target, images))
        })
    }

    /// Damages what it has under a digest.
    pub fn damage(&self, digest: &str) {
        let hex = digest.trim_start_matches("sha256:");
        let path: PathBuf =
            ["storage/docker/registry/v2/blobs/sha256", &hex[..2], hex, "data"].iter().collect();
        let path = self.directory.path().join(path);
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn push(plain: bool, target: Reference, images: Vec<RegistryImage>) -> String {
    let client = Client::new(ClientConfig {
        protocol: if plain { ClientProtocol::Http } else { ClientProtocol::Https },
        accept_invalid_certificates: true,
        ..ClientConfig::default()
    });
    let auth = match plain {
        true => RegistryAuth::Anonymous,
        false => RegistryAuth::Basic(USER.to_owned(), PASSWORD.to_owned()),
    };
    client.auth(&target, &auth, RegistryOperation::Push).await.unwrap();
    let mut entries = Vec::new();
    for image in &images {
        for blob in [&image.config, &image.layer] {
            client.push_blob(&target, blob.clone(), &digest(blob)).await.unwrap();
        }
        let manifest = image.manifest();
        let own = target.clone_with_digest(digest(&manifest));
        let target = if images.len() == 1 { &target } else { &own };
        put(&client, target, &manifest, "application/vnd.oci.image.manifest.v1+json").await;
        entries.push(json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": digest(&manifest),
            "size": manifest.len(),
            "platform": { "os": "linux", "architecture": image.architecture },
        }));
    }
    if let [entry] = entries.as_slice() {
        return entry["digest"].as_str().unwrap().to_owned();
    }
    let kind = "application/vnd.oci.image.index.v1+json";
    let index = json!({ "schemaVersion": 2, "mediaType": kind, "manifests": entries }).to_string();
    put(&client, &target, index.as_bytes(), kind).await;
    digest(index.as_bytes())
}

async fn put(client: &Client, target: &Reference, document: &[u8], kind: &'static str) {
    let kind = http::HeaderValue::from_static(kind);
    client.push_manifest_raw(target, document.to_vec(), kind).await.unwrap();
}
