//! What the cluster store holds: a spec each, and what the cluster made of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    AddressPool, Authority, CertificateInfo, ClusterId, ClusterSpec, ContainerId, Deposit, DepositId, Guest,
    Labels, MacAddr, NetworkId, NetworkSpec, NodeId, NodeSpec, Place, Port, PortConfig, ServiceId,
    ServiceSpec, TableVersion, TaskId, TaskSpec, TaskState, TaskStatus, UpdateStatus,
};

/// What every stored object carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Revision of the object's last change: Docker's `Version.Index`. Known to the store alone, so
    /// it is not part of the stored value.
    #[serde(skip)]
    pub version: u64,
    pub created: Timestamp,
    pub updated: Timestamp,
}

impl Meta {
    /// For an object that is not stored yet.
    pub fn new(now: Timestamp) -> Self {
        Self { version: 0, created: now, updated: now }
    }
}

/// The cluster itself; there is exactly one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cluster {
    pub id: ClusterId,
    pub meta: Meta,
    pub spec: ClusterSpec,
    /// Part of every table version; renewed when a store's history begins anew.
    pub epoch: u64,
    /// The VXLAN network identifier handed out last: the search for the next one starts behind it, so
    /// that one which was just given up comes back as late as possible.
    #[serde(default)]
    pub last_vni: Option<u32>,
    #[serde(default)]
    pub authority: Authority,
    /// Takes the authority's place when every node's certificate is of it.
    #[serde(default)]
    pub next_authority: Option<Authority>,
}

impl Cluster {
    /// Who certifies nodes now.
    pub fn certifying(&self) -> &Authority {
        self.next_authority.as_ref().unwrap_or(&self.authority)
    }

    /// All roots that nodes and managers trust, PEM, one after the other.
    pub fn trusted_roots(&self) -> String {
        let next = self.next_authority.as_ref().map(|next| next.root.pem.as_str());
        [self.authority.root.pem.as_str(), next.unwrap_or_default()].concat()
    }
}

/// A machine of the cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Node {
    pub id: NodeId,
    pub meta: Meta,
    pub spec: NodeSpec,
    pub description: NodeDescription,
    pub status: NodeStatus,
    /// Where other nodes send its VXLAN frames.
    pub data_path_address: IpAddr,
    /// The node's own address on the ingress network; written by the allocator.
    #[serde(default)]
    pub ingress: Option<Attachment>,
    /// Of a manager only.
    #[serde(default)]
    pub manager: Option<ManagerAddresses>,
    /// `None` for a node that shows none: the one the manager itself runs on.
    #[serde(default)]
    pub certificate: Option<CertificateInfo>,
}

/// Where a manager serves nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagerAddresses {
    pub listen: SocketAddr,
    /// Where the others find it.
    pub advertise: SocketAddr,
}

impl Node {
    /// It has not been heard of lately.
    pub fn is_silent(&self) -> bool {
        self.status.condition != NodeCondition::Ready
    }

    /// Its tasks are taken for lost.
    pub fn is_down(&self) -> bool {
        self.status.condition == NodeCondition::Down
    }
}

/// What a node says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDescription {
    pub hostname: String,
    /// As `uname -m`: `x86_64`.
    pub architecture: String,
    pub os: String,
    pub nano_cpus: u64,
    pub memory: u64,
    pub engine_version: String,
    pub engine_labels: Labels,
    /// Where the node's own routes lead, the default route and what belongs to the cluster aside: no
    /// network may have these addresses.
    #[serde(default)]
    pub routes: BTreeSet<IpNet>,
    /// Addresses of the node itself that its programs may use towards other nodes.
    #[serde(default)]
    pub addresses: BTreeSet<IpAddr>,
    /// Published ports that other programs of the node have: it leads nobody from them to tasks.
    #[serde(default)]
    pub taken_ports: BTreeSet<Port>,
    /// The subnets of its configurations for networks, by name, with every gateway filled in.
    #[serde(default)]
    pub configurations: BTreeMap<String, Vec<AddressPool>>,
}

/// What the manager holds of a node's condition. A heartbeat never changes it, only a transition does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    pub condition: NodeCondition,
    /// The condition began then (wall clock, so that it outlives a leader).
    pub since: Timestamp,
    #[serde(default)]
    pub message: String,
    /// Address it advertises.
    pub address: IpAddr,
}

impl NodeStatus {
    /// Of a node that has not been heard of yet.
    pub fn unheard(address: IpAddr, now: Timestamp) -> Self {
        Self { condition: NodeCondition::Down, since: now, message: String::new(), address }
    }
}

/// How long a node has been silent, in three steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeCondition {
    /// Heard of lately.
    Ready,
    /// Its tasks get no new connections, and stay.
    Suspect,
    /// Its tasks are replaced.
    Down,
}

/// A network of the cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Network {
    pub id: NetworkId,
    pub meta: Meta,
    pub spec: NetworkSpec,
    /// `None` until the allocator has been there.
    #[serde(default)]
    pub state: Option<NetworkState>,
}

/// What the allocator gave a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkState {
    /// VXLAN network identifier; also the network's number in kernel maps.
    pub vni: u32,
    /// With every gateway filled in.
    pub pools: Vec<AddressPool>,
    /// The address handed out last: the search for the next one starts behind it, so a freed
    /// address comes back as late as possible.
    pub last_address: Option<IpAddr>,
    /// The same for IPv6.
    #[serde(default)]
    pub last_address_v6: Option<IpAddr>,
    /// Freed addresses that nodes which are down may still send to, least recently freed first. They are
    /// handed out when nothing else is free.
    #[serde(default)]
    pub resting: Vec<Resting>,
}

/// A freed address, and who may not know that it is free.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resting {
    pub address: IpAddr,
    /// Tables of this version and later ones are without it.
    pub since: TableVersion,
    pub holders: BTreeSet<NodeId>,
}

/// A declared service and its endpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Service {
    pub id: ServiceId,
    pub meta: Meta,
    pub spec: ServiceSpec,
    /// The spec before the last update, for rollback.
    #[serde(default)]
    pub previous: Option<Box<ServiceSpec>>,
    #[serde(default)]
    pub endpoint: ServiceEndpoint,
    /// Removal was asked for; the object goes when its last task and address are gone.
    #[serde(default)]
    pub removing: bool,
    /// Why addresses or ports could not be allocated; empty when they were.
    #[serde(default)]
    pub allocation_error: String,
    /// `None` when nothing had to be updated since the last change.
    #[serde(default)]
    pub update_status: Option<UpdateStatus>,
    /// Of a job: its execution now.
    #[serde(default)]
    pub job: Option<JobStatus>,
    /// What nodes show the image's registry. Not of the declaration: other ones replace no task.
    #[serde(default)]
    pub credentials: Option<DepositId>,
}

/// One execution of a job. Every change of the service begins another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobStatus {
    pub iteration: u64,
    pub begun: Timestamp,
}

/// What the allocator gave a service. Its single writer is the allocator.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceEndpoint {
    pub virtual_ips: Vec<VirtualIp>,
    /// The spec's ports with every published port filled in.
    pub ports: Vec<PortConfig>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtualIp {
    pub network: NetworkId,
    /// With the subnet's prefix length.
    pub address: IpNet,
}

/// One attempt to run one container of a service. Never restarted: it is replaced in its slot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Task {
    pub id: TaskId,
    pub meta: Meta,
    pub service: ServiceId,
    pub service_name: String,
    /// Its service's when it was made.
    #[serde(default)]
    pub service_labels: Labels,
    /// 0 in a global service.
    pub slot: u64,
    /// The one node that may run it: in a global service each node has a task of its own.
    #[serde(default)]
    pub pinned: Option<NodeId>,
    pub spec: TaskSpec,
    /// Published ports of the service when the task was made.
    #[serde(default)]
    pub ports: Vec<PortConfig>,
    #[serde(default)]
    pub node: Option<NodeId>,
    /// Written by the manager.
    pub desired: TaskState,
    /// Written by the agent once assigned.
    pub status: TaskStatus,
    /// One per network, in the order of the spec; the ingress network, if any, last.
    #[serde(default)]
    pub attachments: Vec<Attachment>,
    /// Since when it runs, or ran, by its node's clock.
    #[serde(default)]
    pub running_since: Option<Timestamp>,
    /// Its addresses may be handed out again: every node has let go of them.
    #[serde(default)]
    pub released: bool,
    /// Not started before this time (restart delay).
    #[serde(default)]
    pub start_after: Option<Timestamp>,
    /// Its service's when it was made.
    #[serde(default)]
    pub credentials: Option<DepositId>,
    /// Where tasks before it in its slot failed lately, oldest first: the scheduler avoids nodes on
    /// which a service keeps failing.
    #[serde(default)]
    pub failures: Vec<Failure>,
    /// Of a job's task: the execution of the job that it is part of. It is wanted until it has ended.
    #[serde(default)]
    pub iteration: Option<u64>,
}

impl Task {
    /// The kept values that its node needs.
    pub fn deposits(&self) -> impl Iterator<Item = &DepositId> {
        let files = self.spec.container.deposits().map(|reference| &reference.deposit);
        files.chain(&self.credentials)
    }
}

/// A task failed on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub node: NodeId,
    pub at: Timestamp,
}

impl Task {
    /// The container's name: `web.1.<task id>`, in a global service `web.<node id>.<task id>`.
    pub fn name(&self) -> String {
        match &self.pinned {
            Some(node) => format!("{}.{node}.{}", self.service_name, self.id),
            None => format!("{}.{}.{}", self.service_name, self.slot, self.id),
        }
    }

    pub fn place(&self) -> Place {
        self.pinned.clone().map_or(Place::Slot(self.slot), Place::Node)
    }

    /// Takes over a newer observation; `false` (and no change) as [`TaskStatus::advance`] says.
    pub fn observe(&mut self, status: &TaskStatus) -> bool {
        let runs = status.state == TaskState::Running;
        let since = self.running_since.or(runs.then_some(status.timestamp));
        let advanced = self.status.advance(status);
        if advanced {
            self.running_since = since;
        }
        advanced
    }

    /// It is a job's, and has done its work.
    pub fn is_done(&self) -> bool {
        self.iteration.is_some() && self.status.state == TaskState::Complete
    }

    /// It should be running now, and is: its addresses belong into the tables as a backend.
    pub fn is_serving(&self) -> bool {
        self.status.state == TaskState::Running && self.desired <= TaskState::Running && !self.status.draining
    }
}

/// A place on a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    pub network: NetworkId,
    /// With the subnet's prefix length.
    pub address: IpNet,
    #[serde(default)]
    pub address_v6: Option<IpNet>,
    pub mac: MacAddr,
    #[serde(default)]
    pub aliases: Vec<String>,
}

/// Any stored object.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Object {
    Cluster(Cluster),
    Node(Node),
    Network(Network),
    Service(Service),
    Task(Task),
    Guest(Guest),
    Deposit(Deposit),
}

/// Names one stored object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKey {
    Cluster,
    Node(NodeId),
    Network(NetworkId),
    Service(ServiceId),
    Task(TaskId),
    Guest(ContainerId),
    Deposit(DepositId),
}

impl Object {
    pub fn key(&self) -> ObjectKey {
        match self {
            Self::Cluster(_) => ObjectKey::Cluster,
            Self::Node(node) => ObjectKey::Node(node.id.clone()),
            Self::Network(network) => ObjectKey::Network(network.id.clone()),
            Self::Service(service) => ObjectKey::Service(service.id.clone()),
            Self::Task(task) => ObjectKey::Task(task.id.clone()),
            Self::Guest(guest) => ObjectKey::Guest(guest.id.clone()),
            Self::Deposit(deposit) => ObjectKey::Deposit(deposit.id.clone()),
        }
    }

    pub fn meta_mut(&mut self) -> &mut Meta {
        match self {
            Self::Cluster(cluster) => &mut cluster.meta,
            Self::Node(node) => &mut node.meta,
            Self::Network(network) => &mut network.meta,
            Self::Service(service) => &mut service.meta,
            Self::Task(task) => &mut task.meta,
            Self::Guest(guest) => &mut guest.meta,
            Self::Deposit(deposit) => &mut deposit.meta,
        }
    }
}

impl ObjectKey {
    /// The key in the store: `object/<kind>/<id>`.
    pub fn path(&self) -> String {
        match self {
            Self::Cluster => "object/cluster".to_owned(),
            Self::Node(id) => format!("object/node/{id}"),
            Self::Network(id) => format!("object/network/{id}"),
            Self::Service(id) => format!("object/service/{id}"),
            Self::Task(id) => format!("object/task/{id}"),
            Self::Guest(id) => format!("object/guest/{id}"),
            Self::Deposit(id) => format!("object/deposit/{id}"),
        }
    }

    /// The inverse of [`path`](Self::path); `None` for a key that names no object.
    pub fn parse(path: &str) -> Option<Self> {
        let rest = path.strip_prefix("object/")?;
        Some(match rest.split_once('/') {
            None if rest == "cluster" => Self::Cluster,
            Some(("node", id)) => Self::Node(id.into()),
            Some(("network", id)) => Self::Network(id.into()),
            Some(("service", id)) => Self::Service(id.into()),
            Some(("task", id)) => Self::Task(id.into()),
            Some(("guest", id)) => Self::Guest(id.into()),
            Some(("deposit", id)) => Self::Deposit(id.into()),
            _ => return None,
        })
    }
}
