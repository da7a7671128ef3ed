//! Who a certificate says its holder is, and what a node needs to prove it.

use std::time::Duration;

use jiff::Timestamp;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use shoal_model::{ClusterId, NodeId, NodeRole};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

/// The name all managers' certificates carry, and the unit of their holders.
pub const MANAGER_NAME: &str = "swarm-manager";
/// The same for workers.
pub const WORKER_NAME: &str = "swarm-worker";

/// Certificates begin so long before they are made: the clocks of a cluster differ a little.
pub const BACKDATED: Duration = Duration::from_secs(3600);

/// A certificate or key that is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum BadCredentials {
    #[error("not a certificate of a node: {0}")]
    Certificate(String),
    #[error("not PEM: {0}")]
    Pem(#[from] rustls::pki_types::pem::Error),
    #[error("key: {0}")]
    Key(#[from] rcgen::Error),
    #[error(transparent)]
    Tls(#[from] rustls::Error),
}

/// Who a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub node: NodeId,
    pub role: NodeRole,
    pub cluster: ClusterId,
}

/// What a node's certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeCertificate {
    pub identity: Identity,
    pub begins: Timestamp,
    pub expires: Timestamp,
}

impl NodeCertificate {
    /// Reads a certificate; whether anybody vouches for it is another question.
    pub fn parse(der: &[u8]) -> Result<Self, BadCredentials> {
        let bad = |what: &str| BadCredentials::Certificate(what.to_owned());
        let (_, certificate) = X509Certificate::from_der(der).map_err(|error| bad(&error.to_string()))?;
        let subject = certificate.subject();
        let node = one(subject.iter_common_name()).ok_or_else(|| bad("no node id"))?;
        let cluster = one(subject.iter_organization()).ok_or_else(|| bad("no cluster id"))?;
        let role = match one(subject.iter_organizational_unit()) {
            Some(MANAGER_NAME) => NodeRole::Manager,
            Some(WORKER_NAME) => NodeRole::Worker,
            _ => return Err(bad("no role")),
        };
        let validity = certificate.validity();
        let time = |seconds: i64| Timestamp::from_second(seconds).map_err(|error| bad(&error.to_string()));
        Ok(Self {
            identity: Identity { node: NodeId::new(node), role, cluster: ClusterId::new(cluster) },
            begins: time(validity.not_before.timestamp())?,
            expires: time(validity.not_after.timestamp())?,
        })
    }

    /// When half of its life is over, counted from its making.
    pub fn half_life(&self) -> Timestamp {
        let made = self.begins.checked_add(BACKDATED).unwrap_or(self.begins);
        let life = self.expires.as_second() - made.as_second();
        Timestamp::from_second(made.as_second() + life / 2).unwrap_or(self.expires)
    }

    /// The same from PEM.
    pub fn from_pem(pem: &str) -> Result<Self, BadCredentials> {
        Self::parse(&CertificateDer::from_pem_slice(pem.as_bytes())?)
    }
}

/// The value of an attribute that is there exactly once.
fn one<'a>(mut values: impl Iterator<Item = &'a AttributeTypeAndValue<'a>>) -> Option<&'a str> {
    let value = values.next()?;
    if values.next().is_some() {
        return None;
    }
    value.as_str().ok().filter(|text| !text.is_empty())
}

/// Subject and public key of a certificate, DER: what clients compare issuers by.
pub fn subject_and_key(certificate_der: &[u8]) -> Result<(Vec<u8>, Vec<u8>), BadCredentials> {
    let (_, certificate) = X509Certificate::from_der(certificate_der)
        .map_err(|error| BadCredentials::Certificate(error.to_string()))?;
    let subject: &X509Name<'_> = certificate.subject();
    Ok((subject.as_raw().to_vec(), certificate.public_key().raw.to_vec()))
}

/// Whether `certificate` was signed with the key of `root`, both DER.
pub fn is_issued_by(certificate: &[u8], root: &[u8]) -> bool {
    let parsed = (X509Certificate::from_der(certificate), X509Certificate::from_der(root));
    let (Ok((_, certificate)), Ok((_, root))) = parsed else { return false };
    certificate.verify_signature(Some(root.public_key())).is_ok()
}

/// All certificates of a PEM text, in order.
pub fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, BadCredentials> {
    Ok(CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>()?)
}

/// What a node proves its identity with, and whom it believes: PEM texts.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    pub certificate: String,
    pub key: String,
    /// Roots of the cluster, one after the other.
    pub roots: String,
}

impl std::fmt::Debug for Credentials {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { certificate, key: _, roots } = self;
        f.debug_struct("Credentials").field("certificate", certificate).field("roots", roots).finish()
    }
}

impl Credentials {
    pub(crate) fn chain(&self) -> Result<Vec<CertificateDer<'static>>, BadCredentials> {
        certificates(&self.certificate)
    }

    pub(crate) fn private_key(&self) -> Result<PrivateKeyDer<'static>, BadCredentials> {
        Ok(PrivateKeyDer::from_pem_slice(self.key.as_bytes())?)
    }
}

/// A new key, and the request to have it certified.
pub struct SigningRequest {
    /// PEM; never leaves the node.
    pub key: String,
    /// PKCS#10, DER.
    pub request: Vec<u8>,
}

impl SigningRequest {
    pub fn new() -> Result<Self, BadCredentials> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        // The manager alone decides what the certificate says.
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&key)?;
        Ok(Self { key: key.serialize_pem(), request: request.der().to_vec() })
    }
}
