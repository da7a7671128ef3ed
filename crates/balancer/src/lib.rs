//! Connect-time balancing: a VIP becomes a task's address once, at `connect` or `sendmsg`.

mod entry;
mod error;

pub use entry::{BalancerConfig, DnsPorts, KernelState, NETWORKS_MAX, PortKey, SandboxEntry, ServiceKey};
pub use error::{Error, Result};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

pub struct Balancer;
impl Balancer {
    pub fn open(_: &BalancerConfig) -> Result<Balancer> { unimplemented!() }
    pub fn set_sandbox(&self, _cookie: u64, _: &SandboxEntry) -> Result<()> { unimplemented!() }
    pub fn remove_sandbox(&self, _cookie: u64) -> Result<()> { unimplemented!() }
    pub fn set_service(&self, _: ServiceKey, _backends: &BTreeSet<IpAddr>) -> Result<()> { unimplemented!() }
    pub fn remove_service(&self, _: ServiceKey) -> Result<()> { unimplemented!() }
    pub fn set_port(&self, _: PortKey, _backends: &BTreeSet<SocketAddr>) -> Result<()> { unimplemented!() }
    pub fn remove_port(&self, _: PortKey) -> Result<()> { unimplemented!() }
    pub fn set_node(&self, _cookie: u64, _local: &BTreeSet<IpAddr>) -> Result<()> { unimplemented!() }
    pub fn attach_answerer(&self, _netns: &Path, _interface: &str, _vni: u32) -> Result<()> { unimplemented!() }
    pub fn read_back(&self) -> Result<KernelState> { unimplemented!() }
    pub fn remove(_: &BalancerConfig) -> Result<()> { unimplemented!() }
}
pub fn netns_cookie(_netns: &Path) -> Result<u64> { unimplemented!() }
pub fn own_netns_cookie() -> Result<u64> { unimplemented!() }
pub fn destroy_sockets(_netns: &Path, _destination: IpAddr) -> Result<usize> { unimplemented!() }
