//! What an agent is told at its start, and what it learns when its node joins a cluster.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shoal_model::{ClusterId, Labels, NodeId};
use shoal_protocol::identity::Credentials;
use shoal_runtime::registry::RegistryConfig;

/// Where a node keeps its things and whom it talks to. Two nodes on one machine differ in
/// `data_dir`, `run_dir` and `containerd_namespace`.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// Survives a reboot: containers' directories, `node.redb`.
    pub data_dir: PathBuf,
    /// Need not survive a reboot: namespaces, sockets.
    pub run_dir: PathBuf,
    /// Host name the node goes by in the cluster.
    pub node_name: String,
    /// What the user says of this machine: `engine.labels` of constraints and preferences.
    pub engine_labels: Labels,
    /// The node's own resolver configuration: source of upstream servers and search domains.
    pub resolv_conf: PathBuf,
    /// The `shoal` executable, for the processes the agent supervises.
    pub executable: PathBuf,
    /// containerd's socket.
    pub containerd: PathBuf,
    pub containerd_namespace: String,
    /// How often kernel and resolver are compared with the tables in force, beside after every change;
    /// zero: never.
    pub verify_period: Duration,
    pub registries: RegistryConfig,
}

impl AgentConfig {
    pub(crate) fn node_store(&self) -> PathBuf {
        self.data_dir.join("node.redb")
    }

    pub(crate) fn resolver_socket(&self) -> PathBuf {
        self.run_dir.join("resolver.sock")
    }

    pub(crate) fn resolver_state(&self) -> PathBuf {
        self.data_dir.join("resolver")
    }

    pub(crate) fn resolver_log(&self) -> PathBuf {
        self.data_dir.join("resolver.log")
    }
}

/// The cluster a node belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    pub node: NodeId,
    #[serde(default)]
    pub cluster: Option<ClusterId>,
    pub managers: Managers,
    /// The address the node advertises.
    pub address: IpAddr,
    /// Where other nodes send its VXLAN frames.
    pub data_path_address: IpAddr,
    /// The manager has said that the node is drained.
    #[serde(default)]
    pub drained: bool,
}

/// How a node reaches the managers of its cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Managers {
    /// One runs on this very node: the unix socket of its dispatcher.
    Here(PathBuf),
    Remote {
        managers: Vec<RemoteManager>,
        credentials: Credentials,
    },
}

/// A manager on another node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteManager {
    /// `None` until it has told.
    #[serde(default)]
    pub node: Option<NodeId>,
    /// `host:port`.
    pub address: String,
}
