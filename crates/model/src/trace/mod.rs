//! What becomes of a name that a container asks for, and of a connection to it: told step by step by
//! those who answer and balance.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::{ContainerId, EndpointId, NetworkId, NodeId, ServiceId, TableVersion, TaskId, TaskState};

mod holders;

pub use holders::{beyond, holders};

/// One name or address, asked for by one container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// A name, or an address to connect to.
    pub name: String,
    pub port: Option<u16>,
    pub asker: Asker,
    /// The asker's networks, in order of look-up.
    pub networks: Vec<TracedNetwork>,
    /// What the resolver process did; `None` for an address.
    pub lookup: Option<Lookup>,
    /// Who has the name by the tables in force.
    pub holders: Vec<Holder>,
    /// What a connection to each address meets.
    pub targets: Vec<Target>,
    /// Every service concerned, with its tasks as far as they are known.
    pub services: BTreeMap<ServiceId, TracedService>,
    /// Where else the name is known: networks that the asker is not on.
    pub elsewhere: Vec<Elsewhere>,
    /// What resolver and kernel hold otherwise than the tables in force say, as far as it concerns this.
    pub differences: Vec<String>,
    /// A manager has added what it knows; otherwise this node alone tells what it sees.
    pub from_manager: bool,
}

/// The container that asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asker {
    pub container: ContainerId,
    pub name: String,
    pub task: Option<TaskId>,
    /// `None`: the node belongs to no cluster.
    pub node: Option<NodeId>,
    /// Lines that its `/etc/hosts` has for the name: who reads that file first asks nobody.
    pub hosts: Vec<String>,
}

/// A network that the asker is on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TracedNetwork {
    pub network: NetworkId,
    pub name: String,
    /// The asker's own.
    pub addresses: Vec<IpAddr>,
    /// The version the daemon has brought into force; `None` while there is none.
    pub in_force: Option<TableVersion>,
    /// The version the resolver answers from.
    pub resolver: Option<TableVersion>,
    /// The version the manager wants in force; `None` when it is not known here.
    pub current: Option<TableVersion>,
}

/// What the resolver process of a node does with a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lookup {
    /// The name is the asker's own for this one (Docker's links), which is looked for in its place.
    #[serde(default)]
    pub link: Option<String>,
    /// Every place it looked at, in order.
    pub looks: Vec<Look>,
    pub verdict: LookupVerdict,
    /// What it answers, by type of record.
    pub answers: Vec<Reply>,
    /// Whom it asks for what it does not know, in the order in which they are asked now.
    pub upstreams: Vec<Upstream>,
    /// Of each network it serves for the asker, what it answers from.
    pub versions: BTreeMap<NetworkId, TableVersion>,
}

/// One look at the names of one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Look {
    pub network: NetworkId,
    /// What was looked for there: the name, what is left of it before the network's name, or an address.
    pub asked: String,
    /// It ended with the network's own name.
    pub by_network: bool,
    pub found: Option<Found>,
}

/// What a network knows under a name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    pub v4: Vec<Ipv4Addr>,
    pub v6: Vec<Ipv6Addr>,
    /// Of an address that was looked for; `None` for one that has no name now, and of names.
    pub pointer: Option<String>,
}

/// What becomes of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LookupVerdict {
    /// A network of the asker knows the name; nobody else is asked.
    Known,
    /// Others are asked.
    Forwarded,
    /// The asker is on internal networks only: nobody is asked.
    NoWayOut,
    /// Somebody chose `ndots`: a single label is left to the asker's search domains.
    LeftToSearchDomains,
    /// It cannot be asked for.
    NoName,
}

/// A reply as it would go out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// `A`, `AAAA`, `PTR`, `SRV`.
    pub kind: String,
    /// `NOERROR`, `SERVFAIL`, …
    pub code: String,
    pub records: Vec<ReplyRecord>,
    /// Another server said it, and it is kept for a while.
    pub from_cache: bool,
}

/// One answer in a reply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyRecord {
    pub kind: String,
    pub data: String,
    /// Seconds.
    pub ttl: u32,
}

/// A server that is asked for names of the outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upstream {
    pub server: IpAddr,
    pub udp: UpstreamHealth,
    pub tcp: UpstreamHealth,
}

/// What is remembered of a server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamHealth {
    /// It did not answer the last time; `None`: nothing is known against it.
    pub silent: Option<Silence>,
}

/// A server is asked after all others that answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Silence {
    /// Milliseconds until it is looked at again.
    pub retry_in: u64,
}

/// Somebody who has the name on a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    pub network: NetworkId,
    pub who: Who,
}

/// What kind of name it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Who {
    /// A service, by its name or an alias.
    Service { service: ServiceId, name: String, alias: bool, mode: Resolution },
    /// `tasks.NAME`: the tasks of a service that take connections.
    Tasks { service: ServiceId, name: String },
    /// `all.NAME`: those that are not healthy yet, too.
    All { service: ServiceId, name: String },
    /// A task or a plain container: by its first name, or by another one (short id, host name, alias).
    Endpoint { endpoint: EndpointId, node: NodeId, name: String, alias: bool },
}

/// What a service's name leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resolution {
    /// Its virtual address.
    Vip,
    /// The addresses of its tasks.
    Dnsrr,
}

/// What a connection to an address meets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    pub address: IpAddr,
    /// The network whose subnet it is in, of those the asker is on.
    pub network: Option<NetworkId>,
    pub kind: TargetKind,
    pub outcome: Outcome,
}

/// What stands at an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum TargetKind {
    /// A service's virtual address. `kernel`: where the kernel really leads; `None`: it knows nothing of it.
    Virtual {
        service: Option<ServiceId>,
        backends: Vec<Backend>,
        kernel: Option<Vec<IpAddr>>,
        /// Equal clients get equal backends.
        by_source: bool,
    },
    /// A task or a plain container.
    Endpoint { endpoint: EndpointId, node: NodeId, name: String, listening: Option<bool> },
    /// In a network's subnet, and nobody's now.
    Nobody,
    /// On none of the asker's networks.
    Outside,
}

/// Where a virtual address leads by the table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    pub endpoint: EndpointId,
    pub address: IpAddr,
    pub node: NodeId,
    /// Whether a program listens at the port that was asked for; `None` where that is not known here.
    pub listening: Option<bool>,
}

/// What `connect` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The kernel puts a backend's address in its place.
    Balanced,
    /// At once: there is no backend.
    Refused,
    /// Packets go to that very address.
    Direct,
}

/// A service that has to do with the name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TracedService {
    pub name: String,
    /// Tasks it wants; `None` when the nodes decide, and where no manager tells.
    pub replicas: Option<u64>,
    /// What it was not given, and why.
    pub error: String,
    /// Those that are to run; on a node without a manager only the node's own.
    pub tasks: Vec<TracedTask>,
    /// The last one of each place that failed or could not be started: what keeps its successors waiting.
    pub failed: Vec<TracedTask>,
}

/// One task of such a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TracedTask {
    pub id: TaskId,
    pub name: String,
    /// Id of its node; `None`: it has none.
    pub node: Option<NodeId>,
    /// The node's host name, where it is known.
    pub host: Option<String>,
    pub state: TaskState,
    pub message: String,
    /// Why it is stuck.
    pub error: String,
    /// It takes connections.
    pub serving: bool,
    /// `starting`, `healthy`, `unhealthy`; only of a container that is checked, on its own node.
    pub health: Option<String>,
    /// What the last check that failed printed.
    pub health_output: String,
}

/// The name, on a network that the asker is not on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Elsewhere {
    pub network: NetworkId,
    pub network_name: String,
    /// The service or container.
    pub name: String,
}

impl Trace {
    /// The asker's networks know the name, or it is an address.
    pub fn is_known(&self) -> bool {
        self.lookup.as_ref().is_none_or(|lookup| lookup.verdict == LookupVerdict::Known)
    }

    /// Kernel and resolver do what the tables say, and whoever asks can connect.
    pub fn works(&self) -> bool {
        self.differences.is_empty() && !self.targets.iter().any(|target| target.outcome == Outcome::Refused)
    }
}
