use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use futures::Stream;
use shoal_model::*;
use shoal_store::State;
use tokio::sync::watch;

use crate::{ControlError, Error};

/// Where the manager keeps its cluster and serves its own node.
#[derive(Debug, Clone)]
pub struct ManagerConfig {
    /// The embedded store's file.
    pub store: PathBuf,
    /// The unix socket on which the manager's own node opens its session.
    pub socket: PathBuf,
}

/// What a new cluster is made from.
#[derive(Debug, Clone)]
pub struct InitOptions {
    pub node_name: String,
    pub advertise: IpAddr,
    pub data_path_address: IpAddr,
    pub spec: ClusterSpec,
    pub availability: Availability,
    pub description: NodeDescription,
}

/// A service that was created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    pub id: ServiceId,
    pub warnings: Vec<String>,
}

/// The managing side of a cluster; clones share it.
#[derive(Clone)]
pub struct Manager {}

#[allow(unused_variables, clippy::todo, clippy::unused_async)]
impl Manager {
    pub async fn init(config: ManagerConfig, options: InitOptions) -> Result<(Manager, NodeId), Error> { todo!() }
    pub async fn open(config: ManagerConfig) -> Result<Manager, Error> { todo!() }
    pub fn state(&self) -> Arc<State> { todo!() }
    /// The revision of [`state`](Self::state), as it changes.
    pub fn changes(&self) -> watch::Receiver<u64> { todo!() }
    pub async fn create_service(&self, spec: ServiceSpec) -> Result<Created, ControlError> { todo!() }
    pub async fn update_service(&self, id: &ServiceId, version: u64, spec: ServiceSpec) -> Result<Vec<String>, ControlError> { todo!() }
    pub async fn rollback_service(&self, id: &ServiceId, version: u64) -> Result<Vec<String>, ControlError> { todo!() }
    pub async fn remove_service(&self, id: &ServiceId) -> Result<(), ControlError> { todo!() }
    pub async fn create_network(&self, spec: NetworkSpec) -> Result<NetworkId, ControlError> { todo!() }
    pub async fn remove_network(&self, id: &NetworkId) -> Result<(), ControlError> { todo!() }
    pub async fn update_node(&self, id: &NodeId, version: u64, spec: NodeSpec) -> Result<(), ControlError> { todo!() }
    pub async fn update_cluster(&self, version: u64, spec: ClusterSpec) -> Result<(), ControlError> { todo!() }
    pub fn find_service(&self, term: &str) -> Result<Arc<Service>, ControlError> { todo!() }
    pub fn find_network(&self, term: &str) -> Result<Arc<Network>, ControlError> { todo!() }
    pub fn find_node(&self, term: &str) -> Result<Arc<Node>, ControlError> { todo!() }
    pub fn find_task(&self, term: &str) -> Result<Arc<Task>, ControlError> { todo!() }
    pub fn logs(&self, tasks: Vec<TaskId>, selector: LogSelector) -> impl Stream<Item = Result<(TaskId, LogEntry), ControlError>> + Send + 'static + use<> { futures::stream::empty() }
    pub async fn shutdown(&self) { todo!() }
}
