//! The cluster and its settings.

use serde::{Deserialize, Serialize};

use super::service::Map;
use super::{Unsupported, Version};

/// `POST /swarm/init`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Init {
    pub(crate) listen_addr: Option<String>,
    pub(crate) advertise_addr: Option<String>,
    pub(crate) data_path_addr: Option<String>,
    pub(crate) data_path_port: Option<u32>,
    pub(crate) default_addr_pool: Option<Vec<String>>,
    pub(crate) subnet_size: Option<u32>,
    pub(crate) force_new_cluster: Option<bool>,
    pub(crate) auto_lock_managers: Unsupported,
    pub(crate) availability: Option<String>,
    pub(crate) spec: Option<Spec>,
}

/// `POST /swarm/join`. Where a worker would listen has no meaning: it does not.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Join {
    pub(crate) advertise_addr: Option<String>,
    pub(crate) data_path_addr: Option<String>,
    pub(crate) remote_addrs: Option<Vec<String>>,
    pub(crate) join_token: Option<String>,
    pub(crate) availability: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Spec {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    pub(crate) labels: Option<Map>,
    pub(crate) orchestration: Option<Orchestration>,
    pub(crate) raft: Option<Raft>,
    pub(crate) dispatcher: Option<Dispatcher>,
    #[serde(rename = "CAConfig")]
    pub(crate) ca_config: Option<CaConfig>,
    pub(crate) task_defaults: Option<TaskDefaults>,
    pub(crate) encryption_config: Option<EncryptionConfig>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Orchestration {
    #[serde(rename = "TaskHistoryRetentionLimit", skip_serializing_if = "Option::is_none")]
    pub(crate) task_history: Option<i64>,
}

/// Docker's consensus settings. Shoal has none: they are taken and have no effect, since the client
/// sends back what it was shown with every update.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Raft {
    pub(crate) snapshot_interval: u64,
    pub(crate) keep_old_snapshots: u64,
    pub(crate) log_entries_for_slow_followers: u64,
    pub(crate) election_tick: i64,
    pub(crate) heartbeat_tick: i64,
}

impl Default for Raft {
    fn default() -> Self {
        Self {
            snapshot_interval: 10000,
            keep_old_snapshots: 0,
            log_entries_for_slow_followers: 500,
            election_tick: 10,
            heartbeat_tick: 1,
        }
    }
}

/// Nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Dispatcher {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) heartbeat_period: Option<i64>,
}

/// Nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct CaConfig {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) node_cert_expiry: Option<i64>,
    #[serde(rename = "ExternalCAs", skip_serializing)]
    pub(crate) external_cas: Unsupported,
    #[serde(rename = "SigningCACert", skip_serializing)]
    pub(crate) signing_ca_cert: Unsupported,
    #[serde(rename = "SigningCAKey", skip_serializing)]
    pub(crate) signing_ca_key: Unsupported,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) force_rotate: Option<u64>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct TaskDefaults {
    #[serde(skip_serializing)]
    pub(crate) log_driver: Unsupported,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct EncryptionConfig {
    pub(crate) auto_lock_managers: bool,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Cluster {
    #[serde(rename = "ID")]
    pub(crate) id: String,
    pub(crate) version: Version,
    pub(crate) created_at: String,
    pub(crate) updated_at: String,
    pub(crate) spec: Spec,
    #[serde(rename = "TLSInfo")]
    pub(crate) tls_info: TlsInfo,
    pub(crate) root_rotation_in_progress: bool,
    pub(crate) default_addr_pool: Option<Vec<String>>,
    pub(crate) subnet_size: u32,
    pub(crate) data_path_port: u32,
    /// Only in `GET /swarm`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) join_tokens: Option<JoinTokens>,
}

/// An issuer of certificates. Empty where there is none.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct TlsInfo {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) trust_root: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) cert_issuer_subject: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) cert_issuer_public_key: String,
}

#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct JoinTokens {
    pub(crate) worker: String,
    pub(crate) manager: String,
}

/// `docker info`'s `Swarm`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Info {
    #[serde(rename = "NodeID")]
    pub(crate) node: String,
    #[serde(rename = "NodeAddr")]
    pub(crate) address: String,
    pub(crate) local_node_state: &'static str,
    pub(crate) control_available: bool,
    pub(crate) error: String,
    pub(crate) remote_managers: Option<Vec<RemoteManager>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) nodes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) managers: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cluster: Option<Cluster>,
}

#[derive(Debug, Serialize)]
pub(crate) struct RemoteManager {
    #[serde(rename = "NodeID")]
    pub(crate) node: String,
    #[serde(rename = "Addr")]
    pub(crate) address: String,
}
