//! Networks: the cluster's that this node has a part in, and those that are its own.

use std::sync::Arc;

use shoal_model::{Attachment, ContainerId, Network, NetworkId, NetworkTable, TableVersion, TaskState};

use super::Agent;
use crate::local::{LocalNetwork, LocalSpec};
use crate::plain::Place;
use crate::store::TaskRecord;
use crate::view::{ContainerNetwork, NodeEndpoint, NodeNetwork};
use crate::{Result, sandbox};

impl Agent {
    pub(super) fn networks_of(&self, attachments: impl Iterator<Item = Attachment>) -> Vec<ContainerNetwork> {
        let tables = self.node.tables.in_force().borrow().clone();
        let known = attachments.filter_map(|attachment| {
            let table = tables.get(&attachment.network)?;
            let gateway = sandbox::gateway(&attachment, table);
            let leads_out = !table.config.is_overlay() && !table.config.internal;
            Some(ContainerNetwork { name: table.config.name.clone(), attachment, gateway, leads_out })
        });
        known.collect()
    }

    /// The cluster's networks that this node has a part in.
    pub fn networks(&self) -> Vec<NodeNetwork> {
        let tables = self.node.tables.in_force().borrow().clone();
        let of_cluster = tables.values().filter(|table| !table.config.is_local());
        of_cluster.map(|table| self.with_endpoints(table.clone())).collect()
    }

    /// The networks that are this node's alone.
    pub fn local_networks(&self) -> Vec<NodeNetwork> {
        let bare = |LocalNetwork { id, config }: LocalNetwork| NetworkTable {
            network: id,
            version: TableVersion::default(),
            config,
            services: Default::default(),
            endpoints: Default::default(),
            nodes: Default::default(),
        };
        self.node
            .locals
            .all()
            .into_iter()
            .map(|network| self.with_endpoints(Arc::new(bare(network))))
            .collect()
    }

    /// This node's containers on a network.
    fn with_endpoints(&self, table: Arc<NetworkTable>) -> NodeNetwork {
        let tasks = self.node.tasks.snapshots();
        let of_tasks = tasks.iter().filter_map(|shown| {
            let TaskRecord { task, container, progress, .. } = &shown.record;
            let attachment = task.attachments.iter().find(|at| at.network == table.network)?;
            let present = TaskState::Preparing..=TaskState::Running;
            present.contains(&progress.status.state).then(|| NodeEndpoint {
                container: container.clone(),
                owner: task.id.to_string(),
                name: task.name(),
                attachment: attachment.clone(),
            })
        });
        let plains = self.node.plains.all().into_iter().filter_map(|keeper| {
            let record = keeper.shown().record;
            let attachment = record.attachments.iter().find(|at| at.network == table.network)?;
            Some(NodeEndpoint {
                container: record.id.clone(),
                owner: record.id.to_string(),
                name: record.name.clone(),
                attachment: attachment.clone(),
            })
        });
        let endpoints = of_tasks.chain(plains).collect();
        NodeNetwork { table, endpoints }
    }

    /// Makes a network of this node alone.
    pub async fn create_network(&self, spec: LocalSpec) -> Result<NetworkId> {
        self.finish(|node| async move { node.locals.create(&node, spec).await }).await
    }

    /// Removes a network of this node alone that nobody is on.
    pub async fn remove_network(&self, id: &NetworkId) -> Result<()> {
        let id = id.clone();
        self.finish(|node| async move { node.locals.remove(&node, &id).await }).await
    }

    /// Puts a plain container on one more network, also while it runs.
    pub async fn connect_container(&self, id: &ContainerId, place: Place) -> Result<()> {
        let keeper = self.keeper(id)?;
        self.finish(|node| async move { keeper.connect(&node, place).await }).await
    }

    /// Takes a plain container off a network, by the network's name or id.
    pub async fn disconnect_container(&self, id: &ContainerId, network: &str) -> Result<()> {
        let (keeper, network) = (self.keeper(id)?, network.to_owned());
        self.finish(|node| async move { keeper.disconnect(&node, &network).await }).await
    }

    /// The cluster's networks that plain containers may join, as far as this node knows.
    pub fn attachable_networks(&self) -> Arc<Vec<Network>> {
        self.node.guests.catalogue()
    }
}
