//! A new certificate in time: at half life of the old one, or at once when it is to be of another root.

use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use shoal_protocol::cluster::certificates_client::CertificatesClient;
use shoal_protocol::cluster::{Issued, RenewRequest};
use shoal_protocol::identity::{
    BadCredentials, Credentials, NodeCertificate, SigningRequest, certificates, is_issued_by,
};
use shoal_protocol::tls;
use tokio::time::Instant;
use tonic::transport::Channel;

use super::Ended;

/// For the manager's answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// After a failure it is tried again.
const RETRY_DELAY: Duration = Duration::from_secs(30);

/// The renewals of one session.
pub(super) struct Renewal {
    channel: Channel,
    running: Option<BoxFuture<'static, Result<Credentials, Ended>>>,
    not_before: Instant,
}

impl Renewal {
    pub(super) fn new(channel: Channel) -> Self {
        Self { channel, running: None, not_before: Instant::now() }
    }

    /// Begins a renewal if one is due. `issuer` is the root the certificate is to be of, PEM; empty: any.
    pub(super) fn look(&mut self, credentials: &Credentials, issuer: &str) {
        if self.running.is_some() || Instant::now() < self.not_before {
            return;
        }
        match is_due(credentials, issuer, Timestamp::now()) {
            Ok(true) => self.running = Some(renew(self.channel.clone()).boxed()),
            Ok(false) => {}
            Err(error) => {
                tracing::error!(%error, "the node's certificate cannot be read");
                self.not_before = Instant::now() + RETRY_DELAY;
            }
        }
    }

    /// The new credentials, when a renewal succeeds. A failed one is tried again later.
    pub(super) async fn done(&mut self) -> Credentials {
        loop {
            let Some(running) = &mut self.running else { std::future::pending().await };
            let renewed = running.await;
            self.running = None;
            match renewed {
                Ok(credentials) => return credentials,
                Err(error) => {
                    tracing::warn!(%error, retry_s = RETRY_DELAY.as_secs(), "the certificate was not renewed");
                    self.not_before = Instant::now() + RETRY_DELAY;
                }
            }
        }
    }
}

fn is_due(credentials: &Credentials, issuer: &str, now: Timestamp) -> Result<bool, BadCredentials> {
    if now >= NodeCertificate::from_pem(&credentials.certificate)?.half_life() {
        return Ok(true);
    }
    let (own, wanted) = (certificates(&credentials.certificate)?, certificates(issuer)?);
    Ok(match (own.first(), wanted.first()) {
        (Some(own), Some(wanted)) => !is_issued_by(own, wanted),
        _ => false,
    })
}

async fn renew(channel: Channel) -> Result<Credentials, Ended> {
    let signing = SigningRequest::new()?;
    let request = RenewRequest { signing_request: signing.request.into() };
    let mut client = CertificatesClient::new(channel);
    let answer = tokio::time::timeout(ANSWER_MAX, client.renew(request)).await;
    let Issued { certificate, roots, .. } = answer.map_err(|_| Ended::Silent)??.into_inner();
    let credentials = Credentials { certificate, key: signing.key, roots };
    // Nothing that cannot be used takes the place of what can.
    tls::node(&credentials)?;
    Ok(credentials)
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
    use shoal_protocol::identity::{BACKDATED, WORKER_NAME};

    use super::*;

    fn root() -> (String, Issuer<'static, KeyPair>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        (pem, Issuer::new(params, key))
    }

    /// Made at midnight of the first day of 2030, good for ten hours.
    fn credentials(issuer: &Issuer<'static, KeyPair>) -> Credentials {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        for (kind, value) in [
            (DnType::CommonName, "node1"),
            (DnType::OrganizationName, "cluster1"),
            (DnType::OrganizationalUnitName, WORKER_NAME),
        ] {
            params.distinguished_name.push(kind, value);
        }
        let made = rcgen::date_time_ymd(2030, 1, 1);
        params.not_before = made - BACKDATED;
        params.not_after = made + Duration::from_secs(10 * 3600);
        let certificate = params.signed_by(&key, issuer).unwrap().pem();
        Credentials { certificate, key: key.serialize_pem(), roots: String::new() }
    }

    #[test]
    fn a_certificate_is_renewed_at_half_life() {
        let (_, issuer) = root();
        let held = credentials(&issuer);
        let due = |time: &str| is_due(&held, "", time.parse().unwrap()).unwrap();
        assert!(!due("2030-01-01T04:59:59Z"));
        assert!(due("2030-01-01T05:00:00Z"));
        assert!(due("2031-01-01T00:00:00Z"));
    }

    #[test]
    fn a_certificate_of_another_root_than_wanted_is_renewed_at_once() {
        let ((own, issuer), (other, _)) = (root(), root());
        let held = credentials(&issuer);
        let due = |wanted: &str| is_due(&held, wanted, "2030-01-01T00:00:00Z".parse().unwrap()).unwrap();
        assert!(!due(&own));
        assert!(due(&other));
        assert!(is_due(&Credentials { certificate: String::new(), ..held }, &own, Timestamp::now()).is_err());
    }
}
