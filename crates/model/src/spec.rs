//! What users declare. The API translates Docker's JSON into these types; nothing below it knows
//! Docker's wire format.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{AddressPool, DepositReference, NetworkId, NodeDriver};

pub type Labels = BTreeMap<String, String>;

// === services ===

/// A declared service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceSpec {
    pub name: String,
    #[serde(default)]
    pub labels: Labels,
    pub task: TaskSpec,
    pub mode: ServiceMode,
    #[serde(default)]
    pub update: Option<UpdateConfig>,
    #[serde(default)]
    pub rollback: Option<UpdateConfig>,
    #[serde(default)]
    pub endpoint: EndpointSpec,
}

/// How many tasks a service wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceMode {
    Replicated {
        replicas: u64,
    },
    /// One on every node that may have it.
    Global,
    /// So many that run to their end, a few at a time.
    ReplicatedJob {
        concurrent: u64,
        total: u64,
    },
    /// One that runs to its end on every node there was when the job began.
    GlobalJob,
}

impl ServiceMode {
    /// `None` when the nodes decide.
    pub fn replicas(self) -> Option<u64> {
        match self {
            Self::Replicated { replicas } => Some(replicas),
            Self::Global | Self::ReplicatedJob { .. } | Self::GlobalJob => None,
        }
    }

    /// Its tasks are to come to an end, and are not replaced then.
    pub fn is_job(self) -> bool {
        matches!(self, Self::ReplicatedJob { .. } | Self::GlobalJob)
    }

    /// Its tasks belong to nodes.
    pub fn is_global(self) -> bool {
        matches!(self, Self::Global | Self::GlobalJob)
    }
}

/// What every task of a service is made from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskSpec {
    pub container: ContainerSpec,
    #[serde(default)]
    pub resources: Resources,
    #[serde(default)]
    pub restart: RestartPolicy,
    #[serde(default)]
    pub placement: Placement,
    /// In the order given; that order is the order in which names are looked up.
    #[serde(default)]
    pub networks: Vec<NetworkTarget>,
    /// Raised by `--force`: a change alone replaces every task.
    #[serde(default)]
    pub force_update: u64,
    /// `json-file` options (`max-size`, `max-file`).
    #[serde(default)]
    pub log_options: Labels,
}

/// One network a service's tasks join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkTarget {
    pub network: NetworkId,
    #[serde(default)]
    pub aliases: Vec<String>,
}

/// The process to run and the world it sees.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerSpec {
    /// As the user wrote it, `busybox` or `busybox:latest@sha256:…`.
    pub image: String,
    pub labels: Labels,
    /// Replaces the image's entry point when not empty.
    pub command: Vec<String>,
    /// Replaces the image's command when not empty.
    pub args: Vec<String>,
    pub hostname: String,
    /// `KEY=value`.
    pub env: Vec<String>,
    pub dir: String,
    /// `user[:group]`, names or numbers.
    pub user: String,
    pub groups: Vec<String>,
    pub tty: bool,
    pub open_stdin: bool,
    pub read_only: bool,
    pub init: Option<bool>,
    pub mounts: Vec<Mount>,
    /// `IP hostname [alias…]` lines for /etc/hosts.
    pub hosts: Vec<String>,
    pub dns: DnsConfig,
    pub healthcheck: Option<Healthcheck>,
    /// `SIGTERM` style; empty is the image's, or SIGTERM.
    pub stop_signal: String,
    pub stop_grace_period: Option<Duration>,
    pub sysctls: BTreeMap<String, String>,
    pub capability_add: Vec<String>,
    pub capability_drop: Vec<String>,
    pub ulimits: Vec<Ulimit>,
    pub secrets: Vec<DepositReference>,
    pub configs: Vec<DepositReference>,
}

impl ContainerSpec {
    /// Secrets and configs that the container finds as files.
    pub fn deposits(&self) -> impl Iterator<Item = &DepositReference> {
        self.secrets.iter().chain(&self.configs)
    }
}

/// SwarmKit's default for `stop_grace_period`.
pub const DEFAULT_STOP_GRACE_PERIOD: Duration = Duration::from_secs(10);

/// A file system made visible inside the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    pub kind: MountKind,
    /// Path inside the container.
    pub target: String,
    #[serde(default)]
    pub read_only: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountKind {
    Bind {
        source: String,
        #[serde(default)]
        propagation: Propagation,
        /// Without what is mounted below the source.
        #[serde(default)]
        non_recursive: bool,
    },
    /// A directory that the node keeps for containers.
    Volume {
        /// Empty: one of the container's own.
        name: String,
        /// For the volume, if it has to be made.
        #[serde(default)]
        labels: Labels,
        /// What the image has at the target is not copied into an empty volume.
        #[serde(default)]
        no_copy: bool,
    },
    /// Sizes in bytes; `None` is the kernel's default.
    Tmpfs { size: Option<u64>, mode: Option<u32> },
}

impl MountKind {
    /// A bind mount of which nothing more is said.
    pub fn bind(source: impl Into<String>) -> Self {
        Self::Bind { source: source.into(), propagation: Propagation::default(), non_recursive: false }
    }
}

/// Whether what is mounted below a bind mount later is seen on the other side (mount_namespaces(7)); the
/// recursive forms.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Propagation {
    #[default]
    RPrivate,
    Private,
    RShared,
    Shared,
    RSlave,
    Slave,
}

impl Propagation {
    pub const ALL: [Self; 6] =
        [Self::RPrivate, Self::Private, Self::RShared, Self::Shared, Self::RSlave, Self::Slave];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::RPrivate => "rprivate",
            Self::Private => "private",
            Self::RShared => "rshared",
            Self::Shared => "shared",
            Self::RSlave => "rslave",
            Self::Slave => "slave",
        }
    }
}

/// `--dns`, `--dns-search`, `--dns-option`; each empty list means the node's own value.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DnsConfig {
    pub nameservers: Vec<IpAddr>,
    pub search: Vec<String>,
    pub options: Vec<String>,
}

/// A resource limit of the process (`ulimit`); -1 is unlimited.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    pub name: String,
    pub soft: i64,
    pub hard: i64,
}

/// How a running container is probed. Zero durations and retries mean Docker's defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", argv…]` or `["CMD-SHELL", command]`; empty inherits the image's.
    pub test: Vec<String>,
    pub interval: Duration,
    pub timeout: Duration,
    pub start_period: Duration,
    pub start_interval: Duration,
    pub retries: u32,
}

/// Limits and reservations. CPU in billionths of a core, memory in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    pub limit_nano_cpus: u64,
    pub limit_memory: u64,
    pub limit_pids: u64,
    pub reserve_nano_cpus: u64,
    pub reserve_memory: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartCondition {
    None,
    OnFailure,
    #[default]
    Any,
}

/// When a task that ended is replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RestartPolicy {
    pub condition: RestartCondition,
    pub delay: Duration,
    /// Restarts per slot within `window`; 0 is unlimited.
    pub max_attempts: u64,
    /// 0 counts over the whole life of the service.
    pub window: Duration,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            condition: RestartCondition::Any,
            delay: Duration::from_secs(5),
            max_attempts: 0,
            window: Duration::ZERO,
        }
    }
}

/// Where tasks may run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Placement {
    /// `node.labels.zone==a`, `node.role!=manager`, …
    pub constraints: Vec<String>,
    /// `(architecture, operating system)`; empty is any.
    pub platforms: Vec<(String, String)>,
    /// 0 is unlimited.
    pub max_replicas: u64,
    /// Labels over whose values tasks spread, the first one first: `node.labels.zone`.
    #[serde(default)]
    pub spread: Vec<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpdateFailureAction {
    #[default]
    Pause,
    Continue,
    Rollback,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpdateOrder {
    #[default]
    StopFirst,
    StartFirst,
}

/// How a changed service replaces its tasks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct UpdateConfig {
    /// Tasks replaced at a time; 0 is all at once.
    pub parallelism: u64,
    pub delay: Duration,
    pub failure_action: UpdateFailureAction,
    pub monitor: Duration,
    pub max_failure_ratio: f32,
    pub order: UpdateOrder,
}

impl Default for UpdateConfig {
    fn default() -> Self {
        Self {
            parallelism: 1,
            delay: Duration::ZERO,
            failure_action: UpdateFailureAction::Pause,
            monitor: Duration::from_secs(5),
            max_failure_ratio: 0.0,
            order: UpdateOrder::StopFirst,
        }
    }
}

// === how a service is reached ===

/// How clients find a service's tasks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EndpointMode {
    /// One virtual address, balanced in the kernel.
    #[default]
    Vip,
    /// The name resolves to the tasks' own addresses.
    Dnsrr,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EndpointSpec {
    pub mode: EndpointMode,
    pub ports: Vec<PortConfig>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    #[default]
    Tcp,
    Udp,
}

impl Protocol {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// The IP protocol number (IANA).
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

/// A port of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Port {
    pub protocol: Protocol,
    pub number: u16,
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.protocol.as_str())
    }
}

/// A version of IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IpVersion {
    V4,
    V6,
}

impl IpVersion {
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PublishMode {
    /// Every node accepts.
    #[default]
    Ingress,
    /// Only nodes that run a task accept.
    Host,
}

/// A published port.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortConfig {
    #[serde(default)]
    pub name: String,
    pub protocol: Protocol,
    pub target: u16,
    /// 0 in a spec: chosen by the allocator, and then found in the service's endpoint.
    pub published: u16,
    pub mode: PublishMode,
}

// === networks ===

/// A declared cluster-wide network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSpec {
    pub name: String,
    #[serde(default)]
    pub labels: Labels,
    pub driver: NetworkDriver,
    #[serde(default)]
    pub options: Labels,
    /// No way out of the cluster.
    #[serde(default)]
    pub internal: bool,
    /// Plain containers may join.
    #[serde(default)]
    pub attachable: bool,
    /// The one network that carries published ports.
    #[serde(default)]
    pub ingress: bool,
    #[serde(default)]
    pub ipv6: bool,
    /// What the user fixed; empty leaves the choice to the allocator.
    #[serde(default)]
    pub pools: Vec<AddressPool>,
    /// Each node's own configuration of this name says options and subnets (Docker's `--config-from`).
    #[serde(default)]
    pub config_from: Option<String>,
}

impl NetworkSpec {
    /// It is a network that is there already, with whatever else is on it: others may have the same subnets.
    pub fn is_shared(&self) -> bool {
        self.driver == NetworkDriver::Macvlan && !self.pools.is_empty()
    }

    /// Which addresses a container has there depends on its node.
    pub fn is_by_node(&self) -> bool {
        self.config_from.is_some()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkDriver {
    Overlay,
    /// The node's own network stack.
    Host,
    Bridge,
    Macvlan,
}

impl NetworkDriver {
    /// Its networks end at the node.
    pub fn of_node(self) -> Option<NodeDriver> {
        match self {
            Self::Overlay | Self::Host => None,
            Self::Bridge => Some(NodeDriver::Bridge),
            Self::Macvlan => Some(NodeDriver::Macvlan),
        }
    }
}

// === nodes and cluster ===

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeRole {
    Worker,
    Manager,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Availability {
    #[default]
    Active,
    /// No new tasks.
    Pause,
    /// No tasks at all.
    Drain,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSpec {
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub labels: Labels,
    pub role: NodeRole,
    #[serde(default)]
    pub availability: Availability,
}

/// Cluster-wide settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterSpec {
    pub name: String,
    pub labels: Labels,
    /// Ended tasks kept per slot.
    pub task_history: u64,
    pub heartbeat_period: Duration,
    pub certificate_expiry: Duration,
    /// Another number than before asks for a new certificate authority.
    pub force_rotate: u64,
    /// Pools from which networks without a subnet are cut.
    pub default_pools: Vec<IpNet>,
    /// Prefix length of a subnet cut from them.
    pub default_subnet_size: u8,
    /// UDP port of the VXLAN data path.
    pub data_path_port: u16,
}

impl Default for ClusterSpec {
    fn default() -> Self {
        Self {
            name: "default".to_owned(),
            labels: Labels::new(),
            task_history: 5,
            heartbeat_period: Duration::from_secs(5),
            certificate_expiry: Duration::from_secs(90 * 24 * 3600),
            force_rotate: 0,
            default_pools: vec![IpNet::new_assert(IpAddr::from([10, 0, 0, 0]), 8)],
            default_subnet_size: 24,
            data_path_port: 4789,
        }
    }
}
