//! What the fabric is asked for and what it reports.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use shoal_model::{Admission, Backends, MacAddr, NetworkId, NodeId, Protocol};

/// Where a node keeps its namespaces, and who it is.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// Namespaces are bind mounts under `run_dir/netns`.
    pub run_dir: PathBuf,
    /// Eight hexadecimal characters that mark everything of this node in the kernel.
    pub tag: String,
    /// Known once the node has joined a cluster; see `Fabric::set_node`.
    pub node: Option<NodeId>,
    /// The node's own end of the VXLAN tunnels.
    pub underlay: Option<IpAddr>,
}

/// One interface of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxAttachment {
    pub network: NetworkId,
    /// The routing mesh's network: it carries the default route.
    pub ingress: bool,
    /// With the subnet's prefix length.
    pub address: IpNet,
    pub address_v6: Option<IpNet>,
    /// The network's subnets; those without an address here are reached on the same link.
    pub subnets: Vec<IpNet>,
    pub mac: MacAddr,
    /// The ways out that lead over this network, one for each version of IP at most. None on the routing
    /// mesh's network, which has its own.
    pub default_via: Vec<IpAddr>,
}

/// A network namespace to be made for one task or container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxConfig {
    /// Names it; a file name.
    pub id: String,
    /// `eth0`, `eth1`, … in this order; who has an interface keeps it.
    pub attachments: Vec<SandboxAttachment>,
    /// It has a way out of the node. Where no attachment has one, that is a gateway link of its own.
    pub egress: bool,
    /// Further settings of the `net.` family.
    pub sysctls: BTreeMap<String, String>,
}

/// A sandbox as it stands in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    pub id: String,
    /// The namespace, as a path that can be opened and entered.
    pub path: PathBuf,
    /// In the order of the interfaces.
    pub links: Vec<SandboxLink>,
}

/// One interface and its end outside the sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxLink {
    /// `None`: the gateway link.
    pub network: Option<NetworkId>,
    /// Inside the sandbox: `eth0`, …
    pub interface: String,
    /// `None`: it has none, being a part of another link.
    pub far_end: Option<FarEnd>,
    pub address: Option<IpNet>,
    pub address_v6: Option<IpNet>,
}

/// The other end of a sandbox's interface: a port of a bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FarEnd {
    /// The namespace that holds it: the overlay's, or the node's own.
    pub netns: PathBuf,
    pub interface: String,
}

impl SandboxConfig {
    /// It needs the gateway link.
    pub(crate) fn needs_gateway(&self) -> bool {
        let leads_out =
            |attachment: &SandboxAttachment| attachment.ingress || !attachment.default_via.is_empty();
        self.egress && !self.attachments.iter().any(leads_out)
    }
}

impl SandboxLink {
    /// Where it is reached.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        [self.address, self.address_v6].into_iter().flatten().map(|address| address.addr())
    }
}

/// What the node has of its own, beside the fabric.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OwnNetwork {
    /// Where its routes lead, the default route aside: no network may have these addresses.
    pub routes: BTreeSet<IpNet>,
    /// The addresses that its programs may use towards others.
    pub addresses: BTreeSet<IpAddr>,
    /// All addresses of its links, by the link's name.
    pub links: BTreeMap<String, BTreeSet<IpAddr>>,
}

/// What the kernel holds of one network, read back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FabricState {
    /// Complete entries for endpoints on other nodes: address → where its frames go.
    pub remote: BTreeMap<IpAddr, Remote>,
    /// Addresses of the sandboxes on this node.
    pub local: BTreeSet<IpAddr>,
    /// Entries of which a part is missing, or that lead nowhere, in words.
    pub broken: Vec<String>,
}

/// The way to an endpoint on another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// The endpoint's own address; for the ingress network that of its node.
    pub mac: MacAddr,
    /// The node's end of the tunnel.
    pub data_path_address: IpAddr,
}

/// A published port: where its connections go, and whose.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PublishedPort {
    /// None of a version of IP: its connections are refused.
    pub backends: Backends<SocketAddr>,
    pub admission: Admission,
}

/// A port of the node that leads to a single container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostPort {
    /// Where that is reached: once in each version of IP at most.
    pub backends: BTreeSet<SocketAddr>,
    /// The node's addresses that lead there; none: all of them.
    pub bound: BTreeSet<IpAddr>,
}

/// The ports of single containers.
pub type HostPorts = BTreeMap<(Protocol, u16), HostPort>;

/// The ports of the routing mesh.
pub type Ports = BTreeMap<(Protocol, u16), PublishedPort>;
