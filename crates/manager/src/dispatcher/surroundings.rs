//! What every node is told of the cluster around it: whom to trust, and where its managers are.

use std::sync::Arc;

use shoal_protocol::session::{ManagerAddress, Surroundings};
use shoal_store::State;
use tokio::sync::watch;

use crate::leader::Shared;

pub(super) fn of(state: &State) -> Surroundings {
    let managers = state.nodes().filter_map(|node| {
        let addresses = node.manager?;
        Some(ManagerAddress { node_id: node.id.to_string(), address: addresses.advertise.to_string() })
    });
    Surroundings {
        roots: state.cluster().map(|cluster| cluster.trusted_roots()).unwrap_or_default(),
        issuer: state.cluster().map(|cluster| cluster.certifying().root.pem.clone()).unwrap_or_default(),
        managers: managers.collect(),
    }
}

/// Works it out once for all sessions.
pub(super) async fn follow(shared: Arc<Shared>, surroundings: watch::Sender<Surroundings>) {
    let mut states = shared.states();
    loop {
        let newest = of(&states.borrow_and_update());
        surroundings.send_if_modified(|present| {
            let changed = *present != newest;
            *present = newest;
            changed
        });
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return },
            () = shared.stop.cancelled() => return,
        }
    }
}
