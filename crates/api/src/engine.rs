//! What the API serves: a node, and the cluster it may manage.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use shoal_agent::{Agent, LocalSpec, NodeNetwork};
use shoal_manager::{ControlError, Manager};
use shoal_model::{Availability, ClusterSpec, Network, NetworkId, NodeId};

use crate::error::{A_WORKER, ApiError, NOT_A_MANAGER, Result};
use crate::events::EventLog;
use crate::exec::Execs;

/// Membership of this node in a cluster: the one thing the API asks of whoever wires a daemon.
#[async_trait]
pub trait Swarm: Send + Sync {
    /// The manager that runs on this node, if one does.
    fn manager(&self) -> Option<Manager>;

    fn local_state(&self) -> LocalState;

    /// The cluster's networks that plain containers may join, as far as this node has been told.
    fn attachable_networks(&self) -> Arc<Vec<Network>> {
        Arc::default()
    }

    /// The cluster's networks that this node has a part in: what a worker can tell of them.
    fn networks_here(&self) -> Vec<NodeNetwork> {
        Vec::new()
    }

    /// The networks that are this node's alone.
    fn local_networks(&self) -> Vec<NodeNetwork> {
        Vec::new()
    }

    /// Makes a network of this node alone.
    async fn create_local_network(&self, spec: LocalSpec) -> Result<NetworkId, shoal_agent::Error> {
        let _ = spec;
        Err(shoal_agent::Error::Closed)
    }

    /// Removes a network of this node alone that nobody is on.
    async fn remove_local_network(&self, id: &NetworkId) -> Result<(), shoal_agent::Error> {
        Err(shoal_agent::Error::NoSuchNetwork(id.to_string()))
    }

    /// Makes this node the first manager of a new cluster. Errors are shown to the user as they are,
    /// without a prefix; a node that already is a member answers `Unavailable` with Docker's text.
    async fn init(&self, request: InitRequest) -> Result<NodeId, ControlError>;

    /// Makes this node a member of another node's cluster. Errors as in [`init`](Self::init).
    async fn join(&self, request: JoinRequest) -> Result<(), ControlError>;

    /// The managers a worker knows: their nodes, where known, and addresses.
    fn remote_managers(&self) -> Vec<(Option<NodeId>, String)>;

    /// Leaves the cluster; the last manager only with `force`. Errors as in [`init`](Self::init).
    async fn leave(&self, force: bool) -> Result<(), ControlError>;
}

/// `docker info`'s `Swarm.LocalNodeState`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LocalState {
    Inactive,
    /// Joining, or resuming after a start.
    Pending,
    Active {
        node: NodeId,
        /// The address it advertises.
        address: std::net::IpAddr,
    },
    /// Membership could not be resumed; the text says why.
    Error(String),
}

/// What `docker swarm init` asks for. Address texts are as the user wrote them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitRequest {
    /// `IP[:port]` or `interface[:port]`; `0.0.0.0:2377` by default.
    pub listen: String,
    /// `IP[:port]` or `interface[:port]`; empty leaves the choice to the node.
    pub advertise: String,
    /// `IP` or interface for VXLAN; empty is the advertised address.
    pub data_path: String,
    pub availability: Availability,
    pub spec: ClusterSpec,
    /// Start a new cluster from this manager's state; only for a manager that lost its quorum.
    pub force_new_cluster: bool,
}

/// What `docker swarm join` asks for. Address texts are as the user wrote them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinRequest {
    pub token: String,
    /// `host[:port]` each.
    pub managers: Vec<String>,
    /// `IP[:port]` or `interface[:port]`; empty leaves the choice to the manager.
    pub advertise: String,
    /// `IP` or interface for VXLAN; empty is the advertised address.
    pub data_path: String,
    pub availability: Availability,
}

/// The parts of a daemon the API translates to. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    pub(crate) node: NodeSide,
    pub(crate) cluster: ClusterSide,
}

/// What concerns this node alone.
#[derive(Clone)]
pub(crate) struct NodeSide {
    pub(crate) agent: Agent,
    pub(crate) execs: Arc<Execs>,
    /// What ids of node-local things are derived from, as in [`About`].
    pub(crate) id: Arc<str>,
}

/// What concerns the cluster. Apart from [`NodeSide`], so that it can be served (and tested) where no
/// container can run.
#[derive(Clone)]
pub(crate) struct ClusterSide {
    pub(crate) swarm: Arc<dyn Swarm>,
    pub(crate) events: EventLog,
    pub(crate) about: Arc<About>,
}

/// Facts about the daemon itself.
#[derive(Debug)]
pub(crate) struct About {
    pub(crate) version: String,
    pub(crate) data_dir: PathBuf,
    /// Stable over restarts; what ids of node-local things are derived from.
    pub(crate) id: String,
}

impl Engine {
    /// `version` is the daemon's own; `data_dir` is where the node keeps its state.
    pub fn new(agent: Agent, swarm: Arc<dyn Swarm>, data_dir: PathBuf, version: impl Into<String>) -> Self {
        let cluster = ClusterSide::new(swarm, data_dir, version.into());
        let node = NodeSide { agent, execs: Arc::default(), id: cluster.about.id.as_str().into() };
        Self { node, cluster }
    }
}

impl ClusterSide {
    pub(crate) fn new(swarm: Arc<dyn Swarm>, data_dir: PathBuf, version: String) -> Self {
        let id = crate::convert::identity::engine_id(&data_dir);
        Self { swarm, events: EventLog::default(), about: Arc::new(About { version, data_dir, id }) }
    }

    /// The manager, or Docker's refusal.
    pub(crate) fn manager(&self) -> Result<Manager> {
        let refusal = || match self.swarm.local_state() {
            LocalState::Active { .. } => ApiError::unavailable(A_WORKER),
            _ => ApiError::unavailable(NOT_A_MANAGER),
        };
        self.swarm.manager().ok_or_else(refusal)
    }
}

impl axum::extract::FromRef<Engine> for NodeSide {
    fn from_ref(engine: &Engine) -> Self {
        engine.node.clone()
    }
}

impl axum::extract::FromRef<Engine> for ClusterSide {
    fn from_ref(engine: &Engine) -> Self {
        engine.cluster.clone()
    }
}
