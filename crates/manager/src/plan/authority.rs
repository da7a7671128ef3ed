//! When a rotation of the certificate authority is over.
//!
//! While it lasts, both roots are trusted, certificates are issued by the next one, and managers show
//! one of the present one, which every node trusts. It is over when every node has shown a certificate
//! of the next one, and so has stored what it needs to trust it: nobody is shut out, however long he was
//! away.

use std::sync::Arc;

use shoal_model::{Cluster, Node, Object};
use shoal_store::State;

use super::Planner;

pub(super) fn plan(planner: &mut Planner<'_>) {
    let Some(cluster) = planner.state().cluster().cloned() else { return };
    let Some(next) = cluster.next_authority.clone() else { return };
    if behind(planner.state()).next().is_none() {
        let cluster = Cluster { authority: next, next_authority: None, ..Cluster::clone(&cluster) };
        planner.draft.put(Object::Cluster(cluster));
    }
}

/// The nodes that a rotation waits for. The manager's own node shows no certificate.
pub(crate) fn behind(state: &State) -> impl Iterator<Item = &Arc<Node>> {
    let next = state.cluster().and_then(|cluster| cluster.next_authority.as_ref());
    state.nodes().filter(move |node| {
        let certificate = node.certificate.as_ref();
        next.is_some_and(|next| certificate.is_some_and(|shown| shown.issuer != next.root.public_key))
    })
}
