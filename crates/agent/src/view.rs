//! What an agent shows of its containers and networks.

use std::net::IpAddr;
use std::sync::Arc;

use shoal_model::{Attachment, ContainerId, Healthcheck, NetworkTable, TaskId};

use crate::health::Health;
use crate::host_ports::Binding;
use crate::plain::PlainSpec;

/// A container and what the agent knows of it beyond the runtime.
#[derive(Debug, Clone)]
pub struct ContainerView {
    pub container: shoal_runtime::Container,
    /// The task it belongs to.
    pub task: Option<TaskId>,
    /// What is particular to a container of no task.
    pub plain: Option<PlainView>,
    pub networks: Vec<ContainerNetwork>,
    /// Ports of the node that lead to it alone.
    pub ports: Vec<Binding>,
    /// `None` without a health check.
    pub health: Option<Health>,
    /// The health check in force, every default filled in.
    pub healthcheck: Option<Healthcheck>,
}

impl ContainerView {
    /// The container's name, without Docker's slash.
    pub fn name(&self) -> &str {
        self.plain.as_ref().map_or(&self.container.config.name, |plain| &plain.name)
    }
}

/// A container of no task.
#[derive(Debug, Clone)]
pub struct PlainView {
    pub name: String,
    pub spec: PlainSpec,
    /// It does not run, and its restart policy is about to start it.
    pub restarting: bool,
    /// How often its restart policy started it.
    pub restarts: u32,
    /// Why it could not be started the last time.
    pub error: String,
}

/// A network a container is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerNetwork {
    pub name: String,
    pub attachment: Attachment,
    pub gateway: Option<IpAddr>,
    /// The gateway leads out of the network.
    pub leads_out: bool,
}

/// A network of the cluster that this node has the table of, and this node's containers on it.
#[derive(Debug, Clone)]
pub struct NodeNetwork {
    pub table: Arc<NetworkTable>,
    pub endpoints: Vec<NodeEndpoint>,
}

/// A container's place on a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeEndpoint {
    pub container: ContainerId,
    /// The task, or the container itself, if it is of none.
    pub owner: String,
    pub name: String,
    pub attachment: Attachment,
}
