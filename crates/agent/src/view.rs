//! What an agent shows of its containers and tables.

use std::time::Duration;

use serde::Serialize;
use shoal_model::{Attachment, Healthcheck, NetworkId, TableVersion, TaskId};
use std::net::IpAddr;

use crate::health::Health;

/// A container and what the agent knows of it beyond the runtime.
#[derive(Debug, Clone)]
pub struct ContainerView {
    pub container: shoal_runtime::Container,
    /// The task it belongs to.
    pub task: Option<TaskId>,
    pub networks: Vec<ContainerNetwork>,
    /// `None` without a health check.
    pub health: Option<Health>,
    /// The health check in force, every default filled in.
    pub healthcheck: Option<Healthcheck>,
}

/// A network a container is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerNetwork {
    pub name: String,
    pub attachment: Attachment,
    pub gateway: Option<IpAddr>,
}

/// What a node holds of one network, and what it reads back from its kernel and resolver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TableReport {
    pub network: NetworkId,
    pub name: String,
    /// Version last applied.
    pub version: TableVersion,
    /// As the applied table has them.
    pub held: TableCounts,
    /// As kernel and resolver have them.
    pub read_back: TableCounts,
    /// What `read_back` lacks or has too much, one line each; empty when all is well.
    pub differences: Vec<String>,
}

/// How many entries of each kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct TableCounts {
    /// Services the resolver knows.
    pub services: usize,
    /// Virtual addresses the balancer translates.
    pub vips: usize,
    /// Backends of all virtual addresses.
    pub backends: usize,
    /// Remote endpoints with forwarding entries.
    pub endpoints: usize,
}

/// How long `stop_container` waits when it is given no time of its own.
pub const DEFAULT_STOP_TIMEOUT: Duration = Duration::from_secs(10);
