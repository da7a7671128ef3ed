//! The node's network as a whole.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use shoal_model::{NetworkId, NetworkTable, NodeId, Protocol};
use tokio::sync::watch;

use crate::{FabricState, NetworkConfig, Ports, Result, Sandbox, SandboxConfig};

/// The node's sandboxes, overlays and ingress.
#[derive(Clone)]
pub struct Fabric;

impl Fabric {
    pub async fn open(_config: NetworkConfig) -> Result<Self> {
        unimplemented!()
    }
    pub async fn set_node(&self, _node: NodeId, _underlay: IpAddr) -> Result<()> {
        unimplemented!()
    }
    pub async fn apply_network(&self, _table: &NetworkTable) -> Result<()> {
        unimplemented!()
    }
    pub async fn prune_network(&self, _table: &NetworkTable) -> Result<()> {
        unimplemented!()
    }
    pub async fn remove_network(&self, _network: &NetworkId) -> Result<()> {
        unimplemented!()
    }
    pub async fn create_sandbox(&self, _config: &SandboxConfig) -> Result<Sandbox> {
        unimplemented!()
    }
    pub async fn remove_sandbox(&self, _id: &str) -> Result<()> {
        unimplemented!()
    }
    pub async fn sandboxes(&self) -> Result<Vec<String>> {
        unimplemented!()
    }
    pub async fn apply_ports(&self, _ports: &Ports) -> Result<()> {
        unimplemented!()
    }
    pub async fn host_ports(&self, _ports: &BTreeMap<(Protocol, u16), SocketAddr>) -> Result<()> {
        unimplemented!()
    }
    pub async fn forget_flows(&self, _backend: IpAddr) -> Result<()> {
        unimplemented!()
    }
    pub async fn local_addresses(&self) -> Result<BTreeSet<IpAddr>> {
        unimplemented!()
    }
    pub fn address_changes(&self) -> watch::Receiver<BTreeSet<IpAddr>> {
        unimplemented!()
    }
    pub async fn read_back(&self, _network: &NetworkId) -> Result<FabricState> {
        unimplemented!()
    }
    pub async fn prune(
        &self,
        _keep_sandboxes: &HashSet<String>,
        _keep_networks: &HashSet<NetworkId>,
    ) -> Result<()> {
        unimplemented!()
    }
    pub async fn clear_node(&self) -> Result<()> {
        unimplemented!()
    }
}

/// Removes everything of a node; no daemon needs to be alive.
pub async fn reset(_run_dir: &Path, _tag: &str) -> Result<()> {
    unimplemented!()
}
