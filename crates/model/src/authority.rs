//! The cluster's certificate authority: what makes a machine a node, and what nodes trust.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A root certificate, the key it signs with, and the secrets of the join tokens that name it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authority {
    pub root: RootCertificate,
    /// The root's private key, PEM.
    pub key: Sealed,
    /// 16 bytes each.
    pub worker_secret: Sealed,
    pub manager_secret: Sealed,
}

/// What nodes trust and users see.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootCertificate {
    pub pem: String,
    /// Subject and public key, DER in base64: what clients compare issuers by.
    pub subject: String,
    pub public_key: String,
}

/// Something secret as the store may hold it: encrypted with the cluster key, which is not in the
/// store. In base64.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sealed(pub String);

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealed(…)")
    }
}

/// The certificate a node shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateInfo {
    /// Public key of the root it is of, as in [`RootCertificate`].
    pub issuer: String,
    pub expires: Timestamp,
}
