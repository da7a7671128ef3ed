//! Nodes.

use serde::{Deserialize, Serialize};

use super::Version;
use super::service::Map;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct NodeSpec {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    pub(crate) labels: Option<Map>,
    pub(crate) role: Option<String>,
    pub(crate) availability: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Node {
    #[serde(rename = "ID")]
    pub(crate) id: String,
    pub(crate) version: Version,
    pub(crate) created_at: String,
    pub(crate) updated_at: String,
    pub(crate) spec: NodeSpec,
    pub(crate) description: Description,
    pub(crate) status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) manager_status: Option<ManagerStatus>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Description {
    pub(crate) hostname: String,
    pub(crate) platform: super::service::Platform,
    pub(crate) resources: Resources,
    pub(crate) engine: Engine,
    #[serde(rename = "TLSInfo")]
    pub(crate) tls_info: super::swarm::TlsInfo,
}

#[derive(Debug, Serialize)]
pub(crate) struct Resources {
    #[serde(rename = "NanoCPUs", skip_serializing_if = "is_zero")]
    pub(crate) nano_cpus: u64,
    #[serde(rename = "MemoryBytes", skip_serializing_if = "is_zero")]
    pub(crate) memory: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Engine {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) engine_version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) labels: Option<Map>,
    pub(crate) plugins: Vec<Plugin>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Plugin {
    pub(crate) r#type: &'static str,
    pub(crate) name: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Status {
    pub(crate) state: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) message: String,
    #[serde(rename = "Addr")]
    pub(crate) address: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ManagerStatus {
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) leader: bool,
    pub(crate) reachability: &'static str,
    #[serde(rename = "Addr")]
    pub(crate) address: String,
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}
