//! The cluster's certificate authority. What it needs lies in the store, sealed with the cluster key
//! that only managers hold.

mod enrolment;
mod own;
mod seal;
#[cfg(test)]
mod tests;

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData,
    SanType,
};
use shoal_model::{Authority, NodeRole, RootCertificate};
use shoal_protocol::identity::{
    BACKDATED, BadCredentials, Identity, MANAGER_NAME, WORKER_NAME, certificates, subject_and_key,
};
use shoal_protocol::token::{JoinToken, RootDigest, Secret};

pub(crate) use enrolment::{Enrolling, Renewing};
pub(crate) use own::keep_certified;
pub(crate) use seal::ClusterKey;

/// The subject of every root, as Docker has it.
const ROOT_NAME: &str = "swarm-ca";
/// How long a root is valid: 20 years, as Docker's.
const ROOT_LIFE: Duration = Duration::from_secs(20 * 365 * 24 * 3600);

/// Why the authority cannot do its work.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error("cluster key {path}: {source}")]
    Key { path: std::path::PathBuf, source: std::io::Error },
    #[error("cluster key {0} is damaged")]
    DamagedKey(std::path::PathBuf),
    #[error("the cluster key does not open the cluster's {0}: it belongs to another cluster, or is damaged")]
    Unsealed(String),
    #[error("cannot seal a secret")]
    Seal,
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error(transparent)]
    Credentials(#[from] BadCredentials),
}

/// What the two kinds of nodes join with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinTokens {
    pub worker: String,
    pub manager: String,
}

/// An authority whose seals have been opened.
pub(crate) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    digest: RootDigest,
    worker: Secret,
    manager: Secret,
}

/// A new authority with new tokens.
pub(crate) fn new_authority(key: &ClusterKey, now: Timestamp) -> Result<Authority, CaError> {
    let signing = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, ROOT_NAME);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    limit(&mut params, now, ROOT_LIFE);
    let root = params.self_signed(&signing)?;
    let (subject, public_key) = subject_and_key(root.der())?;
    Ok(Authority {
        root: RootCertificate {
            pem: root.pem(),
            subject: BASE64.encode(subject),
            public_key: BASE64.encode(public_key),
        },
        key: key.seal(SIGNING_KEY, signing.serialize_pem().as_bytes())?,
        worker_secret: key.seal(WORKER_SECRET, &random()?)?,
        manager_secret: key.seal(MANAGER_SECRET, &random()?)?,
    })
}

/// The same authority with another secret in the tokens of one kind of node.
pub(crate) fn rotate_token(
    authority: &mut Authority,
    role: NodeRole,
    key: &ClusterKey,
) -> Result<(), CaError> {
    match role {
        NodeRole::Worker => authority.worker_secret = key.seal(WORKER_SECRET, &random()?)?,
        NodeRole::Manager => authority.manager_secret = key.seal(MANAGER_SECRET, &random()?)?,
    }
    Ok(())
}

/// What is sealed, so that one sealed thing cannot stand for another.
const SIGNING_KEY: &str = "signing key";
const WORKER_SECRET: &str = "worker join secret";
const MANAGER_SECRET: &str = "manager join secret";

fn random() -> Result<[u8; 16], CaError> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| CaError::Seal)?;
    Ok(bytes)
}

/// A life that begins a little before now.
fn limit(params: &mut CertificateParams, now: Timestamp, life: Duration) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let now = Duration::from_secs(u64::try_from(now.as_second()).unwrap_or_default());
    params.not_before = epoch + now.saturating_sub(BACKDATED);
    params.not_after = epoch + now + Duration::from_secs(life.as_secs());
}

impl Ca {
    pub(crate) fn open(authority: &Authority, key: &ClusterKey) -> Result<Self, CaError> {
        let signing = key.open(SIGNING_KEY, &authority.key)?;
        let signing = String::from_utf8(signing).map_err(|_| CaError::Unsealed(SIGNING_KEY.to_owned()))?;
        let root = certificates(&authority.root.pem)?;
        let root = root.first().ok_or(CaError::Unsealed(SIGNING_KEY.to_owned()))?;
        let secret = |purpose: &str, sealed| {
            let bytes = key.open(purpose, sealed)?;
            bytes.try_into().map(Secret::new).map_err(|_| CaError::Unsealed(purpose.to_owned()))
        };
        Ok(Self {
            digest: RootDigest::of(root),
            issuer: Issuer::from_ca_cert_der(root, KeyPair::from_pem(&signing)?)?,
            worker: secret(WORKER_SECRET, &authority.worker_secret)?,
            manager: secret(MANAGER_SECRET, &authority.manager_secret)?,
        })
    }

    pub(crate) fn tokens(&self) -> JoinTokens {
        let token = |secret| JoinToken { digest: self.digest, secret }.to_string();
        JoinTokens { worker: token(self.worker), manager: token(self.manager) }
    }

    /// What a token entitles to; `None`: nothing.
    pub(crate) fn admits(&self, token: &JoinToken) -> Option<NodeRole> {
        let is = |secret: &Secret| {
            aws_lc_rs::constant_time::verify_slices_are_equal(secret.bytes(), token.secret.bytes()).is_ok()
        };
        match (is(&self.worker), is(&self.manager)) {
            _ if token.digest != self.digest => None,
            (true, _) => Some(NodeRole::Worker),
            (_, true) => Some(NodeRole::Manager),
            _ => None,
        }
    }

    /// A certificate for the holder of a key, PEM.
    pub(crate) fn certify(
        &self,
        key: &impl PublicKeyData,
        holder: &Identity,
        now: Timestamp,
        life: Duration,
    ) -> Result<String, CaError> {
        let name = match holder.role {
            NodeRole::Manager => MANAGER_NAME,
            NodeRole::Worker => WORKER_NAME,
        };
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, holder.cluster.as_str());
        params.distinguished_name.push(DnType::OrganizationalUnitName, name);
        params.distinguished_name.push(DnType::CommonName, holder.node.as_str());
        params.subject_alt_names = vec![SanType::DnsName(name.try_into()?)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if holder.role == NodeRole::Manager {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        limit(&mut params, now, life);
        Ok(params.signed_by(key, &self.issuer)?.pem())
    }
}

/// The key somebody wants certified; nothing else of the request counts.
pub(crate) fn requested_key(request: &[u8]) -> Result<rcgen::PublicKey, CaError> {
    let parsed = CertificateSigningRequestParams::from_der(&request.into())?;
    if *parsed.public_key.algorithm() != PKCS_ECDSA_P256_SHA256 {
        return Err(rcgen::Error::UnsupportedSignatureAlgorithm.into());
    }
    Ok(parsed.public_key)
}
