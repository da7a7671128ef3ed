//! When a node's description is to be told anew.

use shoal_network::OwnNetwork;
use tokio::sync::watch;

use super::{Ended, Host};
use crate::local::Configurations;
use crate::published::PortsHeld;

/// What the description says that changes while the node runs.
#[derive(Clone)]
pub(super) struct Described {
    own_network: watch::Receiver<OwnNetwork>,
    configurations: watch::Receiver<Configurations>,
    ports_held: watch::Receiver<PortsHeld>,
}

impl Described {
    /// As it is now: made before the description is, so that no change is missed.
    pub(super) fn now<H: Host>(node: &H) -> Self {
        let mut described = Self {
            own_network: node.own_network(),
            configurations: node.configurations(),
            ports_held: node.tables().ports_held(),
        };
        described.own_network.mark_unchanged();
        described.configurations.mark_unchanged();
        described.ports_held.mark_unchanged();
        described
    }

    pub(super) fn has_changed(&self) -> Result<bool, Ended> {
        let changed = [
            self.own_network.has_changed(),
            self.configurations.has_changed(),
            self.ports_held.has_changed(),
        ];
        let changed = changed.into_iter().collect::<Result<Vec<_>, _>>().map_err(|_| Ended::Closed)?;
        Ok(changed.contains(&true))
    }

    pub(super) async fn changed(&mut self) -> Result<(), Ended> {
        let changed = tokio::select! {
            changed = self.own_network.changed() => changed,
            changed = self.configurations.changed() => changed,
            changed = self.ports_held.changed() => changed,
        };
        changed.map_err(|_| Ended::Closed)
    }
}
