//! Which nodes are to have which tables, and which versions they are known to have in force. Pure.

use std::collections::{BTreeMap, BTreeSet};

use shoal_model::{NetworkId, NodeCondition, NodeId, TableVersion};
use shoal_store::State;

/// The networks each node is to have tables of: those its tasks and guests are on, and the ingress
/// network. The last task's end does not end it: the node goes on using the table it has until it acknowledges the
/// one without the endpoint, and only then is the task's address let go of.
#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    by_node: BTreeMap<NodeId, BTreeSet<NetworkId>>,
    by_network: BTreeMap<NetworkId, BTreeSet<NodeId>>,
}

impl Subscriptions {
    pub(super) fn of(state: &State) -> Self {
        let mut all = Self::default();
        let ingress = state.ingress_network().map(|network| &network.id);
        for node in state.nodes() {
            let present = state.node_tasks(&node.id).filter(|task| !task.released);
            let guests = state.node_guests(&node.id);
            let attachments = present
                .flat_map(|task| &task.attachments)
                .chain(guests.flat_map(|guest| guest.attachments.iter().chain(&guest.leaving)));
            let networks = attachments.map(|attachment| &attachment.network).chain(ingress);
            all.by_node.insert(node.id.clone(), networks.cloned().collect());
        }
        for (node, networks) in &all.by_node {
            for network in networks {
                all.by_network.entry(network.clone()).or_default().insert(node.clone());
            }
        }
        all
    }

    pub(super) fn networks(&self, node: &NodeId) -> impl Iterator<Item = &NetworkId> {
        self.by_node.get(node).into_iter().flatten()
    }

    pub(super) fn has(&self, node: &NodeId, network: &NetworkId) -> bool {
        self.by_node.get(node).is_some_and(|networks| networks.contains(network))
    }

    pub(super) fn nodes(&self, network: &NetworkId) -> impl Iterator<Item = &NodeId> {
        self.by_network.get(network).into_iter().flatten()
    }
}

/// The versions in force on each node, as far as it has said in this term. What a node said outlives
/// its session, as the tables outlive its daemon.
#[derive(Debug, Default)]
pub(super) struct InForce {
    acked: BTreeMap<NodeId, BTreeMap<NetworkId, TableVersion>>,
}

impl InForce {
    /// All that a node holds.
    pub(super) fn declare(&mut self, node: &NodeId, held: BTreeMap<NetworkId, TableVersion>) {
        self.acked.insert(node.clone(), held);
    }

    pub(super) fn ack(&mut self, node: &NodeId, network: NetworkId, version: TableVersion) {
        self.acked.entry(node.clone()).or_default().insert(network, version);
    }

    pub(super) fn retain(&mut self, known: impl Fn(&NodeId) -> bool) {
        self.acked.retain(|node, _| known(node));
    }

    pub(super) fn version(&self, node: &NodeId, network: &NetworkId) -> Option<TableVersion> {
        self.acked.get(node)?.get(network).copied()
    }

    /// The node has this version, or a later one, in force.
    pub(super) fn covers(&self, node: &NodeId, network: &NetworkId, version: TableVersion) -> bool {
        self.version(node, network).is_some_and(|acked| acked.covers(version))
    }
}

/// The nodes that a barrier waits for, of those subscribed: all but the silent ones.
pub(super) fn is_awaited(state: &State, node: &NodeId) -> bool {
    state.node(node).is_some_and(|node| node.status.condition == NodeCondition::Ready)
}
