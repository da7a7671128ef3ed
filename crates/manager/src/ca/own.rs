//! The manager's own certificate: made by the manager itself, kept in memory only.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::ServerConfig;
use shoal_model::NodeRole;
use shoal_protocol::identity::{Credentials, Identity, NodeCertificate};
use shoal_protocol::tls;
use shoal_store::State;
use tokio::sync::watch;

use super::{Ca, CaError, ClusterKey};
use crate::leader::Shared;

/// After a failure it is tried again.
const RETRY_DELAY: Duration = Duration::from_secs(5);
/// How often the certificate's age is looked at.
const AGE_CHECK: Duration = Duration::from_secs(60);

/// What a manager's certificate follows from.
#[derive(Clone, PartialEq)]
struct Basis {
    holder: Identity,
    root: String,
    trusted: String,
}

impl Basis {
    fn of(state: &State) -> Option<Self> {
        let cluster = state.cluster()?;
        let node = state.nodes().find(|node| node.manager.is_some())?;
        Some(Self {
            holder: Identity { node: node.id.clone(), role: NodeRole::Manager, cluster: cluster.id.clone() },
            // Of the root before, during a rotation: the one that every node trusts.
            root: cluster.authority.root.pem.clone(),
            trusted: cluster.trusted_roots(),
        })
    }
}

/// Keeps the listener's certificate and trust as the cluster's state wants them, until the manager
/// stops.
pub(crate) async fn keep_certified(
    shared: Arc<Shared>,
    key: Arc<ClusterKey>,
    config: watch::Sender<Option<Arc<ServerConfig>>>,
) {
    let mut states = shared.states();
    let mut present: Option<(Basis, Timestamp)> = None;
    loop {
        let state = states.borrow_and_update().clone();
        let mut wait = AGE_CHECK;
        if let Some(basis) = Basis::of(&state)
            && present.as_ref().is_none_or(|(held, due)| *held != basis || Timestamp::now() >= *due)
        {
            match certified(&state, &basis, &key) {
                Ok((server, due)) => {
                    config.send_replace(Some(server));
                    present = Some((basis, due));
                }
                Err(error) => {
                    tracing::error!(%error, "the manager has no certificate to serve nodes with");
                    wait = RETRY_DELAY;
                }
            }
        }
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(wait) => {}
            () = shared.stop.cancelled() => return,
        }
    }
}

/// A new certificate, and when it is to be replaced.
fn certified(
    state: &State,
    basis: &Basis,
    key: &ClusterKey,
) -> Result<(Arc<ServerConfig>, Timestamp), CaError> {
    let cluster = state.cluster().ok_or(CaError::Seal)?;
    let ca = Ca::open(&cluster.authority, key)?;
    let own = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let certificate = ca.certify(&own, &basis.holder, Timestamp::now(), cluster.spec.certificate_expiry)?;
    let due = NodeCertificate::from_pem(&certificate)?.half_life();
    let credentials = Credentials { certificate, key: own.serialize_pem(), roots: basis.trusted.clone() };
    Ok((tls::server(&credentials)?, due))
}
