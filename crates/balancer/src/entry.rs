//! What callers put into and read back from the kernel's maps.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use shoal_model::{Backends, IpVersion, Protocol};

/// Most networks one sandbox can be a member of: a fixed array in the kernel's map value.
pub const NETWORKS_MAX: usize = 16;

/// Where a balancer keeps its pins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BalancerConfig {
    /// A directory in bpffs that belongs to this node alone, such as `/sys/fs/bpf/shoal-0a1b2c3d`.
    /// It is made when missing, and bpffs is mounted when it is not.
    pub pins: PathBuf,
}

/// Local ports of a sandbox's resolver on 127.0.0.11; connections to port 53 there are led to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DnsPorts {
    pub udp: u16,
    pub tcp: u16,
}

/// What the sockets of one network namespace may reach.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxEntry {
    /// VNIs of the networks this sandbox is a member of, in look-up order; at most [`NETWORKS_MAX`].
    pub networks: Vec<u32>,
    /// `None`: 127.0.0.11:53 is left alone.
    pub dns: Option<DnsPorts>,
}

/// A virtual IP on one network. Equal addresses on two networks are two services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceKey {
    pub vni: u32,
    pub address: IpAddr,
}

/// A port published on the node itself, for those who ask for it by this version of IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PortKey {
    pub version: IpVersion,
    pub protocol: Protocol,
    pub port: u16,
}

/// Where the node's own clients of a published port are led.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalPort {
    pub backends: Backends<SocketAddr>,
    /// Only those who ask for one of these addresses; `None`: for any of the node's.
    pub bound: Option<BTreeSet<IpAddr>>,
}

/// What the kernel's maps hold, read back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelState {
    pub sandboxes: BTreeMap<u64, SandboxEntry>,
    pub services: BTreeMap<ServiceKey, Backends<IpAddr>>,
    pub ports: BTreeMap<PortKey, LocalPort>,
}

/// What is counted of a VIP since it was set: nothing is lost while no process of ours lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Counted {
    /// New connections led to this backend; of UDP, sockets to one destination.
    Connected(IpAddr),
    /// Flows that came past `connect` and were led to this backend.
    Bypassing(IpAddr),
    /// Connections and datagrams that were refused for want of a backend.
    Rejected,
    /// Echoes answered.
    Pinged,
}

/// Numbers by VIP; what never happened is not among them.
pub type Counts = BTreeMap<(ServiceKey, Counted), u64>;
