//! TLS 1.3 between nodes and managers. Both sides show certificates of the cluster; only a machine
//! that is about to enrol has none.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{
    ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore, ServerConfig, SignatureScheme,
};

use crate::identity::{BadCredentials, Credentials, MANAGER_NAME, certificates};

/// HTTP/2, as gRPC speaks it.
const ALPN: &[u8] = b"h2";

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn trusting(roots: &str) -> Result<RootCertStore, BadCredentials> {
    let mut store = RootCertStore::empty();
    for root in certificates(roots)? {
        store.add(root)?;
    }
    Ok(store)
}

/// The name under which every manager is verified.
pub fn manager_name() -> ServerName<'static> {
    ServerName::DnsName(MANAGER_NAME.try_into().unwrap_or_else(|_| unreachable!("a valid name")))
}

/// For a manager. Who shows a certificate must have it from one of the roots; who shows none is let in
/// all the same, to enrol. Sessions are never resumed: every connection shows its certificate anew, so
/// an expired one, or one of a root that is gone, does not come in by an old ticket.
pub fn server(manager: &Credentials) -> Result<Arc<ServerConfig>, BadCredentials> {
    let provider = provider();
    let roots = Arc::new(trusting(&manager.roots)?);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|error| BadCredentials::Certificate(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(manager.chain()?, manager.private_key()?)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// For a node.
pub fn node(credentials: &Credentials) -> Result<Arc<ClientConfig>, BadCredentials> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(trusting(&credentials.roots)?);
    let config = builder.with_client_auth_cert(credentials.chain()?, credentials.private_key()?)?;
    Ok(speaking_http2(config))
}

/// For a machine that knows the cluster's root and has no certificate yet.
pub fn candidate(root: &str) -> Result<Arc<ClientConfig>, BadCredentials> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(trusting(root)?);
    Ok(speaking_http2(builder.with_no_client_auth()))
}

/// For a machine that knows nothing yet and only asks for what it can verify itself.
pub fn stranger() -> Result<Arc<ClientConfig>, BadCredentials> {
    let provider = provider();
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider)))
        .with_no_client_auth();
    Ok(speaking_http2(config))
}

fn speaking_http2(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Arc::new(config)
}

/// Believes whoever answers to be who it is. What is learnt this way is compared with the join token.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Err(TlsError::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
