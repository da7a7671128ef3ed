//! Tasks.

use serde::Serialize;

use super::Version;
use super::service::{JobIteration, Map, PortConfig, TaskSpec};

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Task {
    #[serde(rename = "ID")]
    pub(crate) id: String,
    pub(crate) version: Version,
    pub(crate) created_at: String,
    pub(crate) updated_at: String,
    pub(crate) labels: Map,
    pub(crate) spec: TaskSpec,
    #[serde(rename = "ServiceID")]
    pub(crate) service: String,
    /// Global services have none; of the first place of a job nothing is said, as by Docker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) slot: Option<u64>,
    #[serde(rename = "NodeID", skip_serializing_if = "Option::is_none")]
    pub(crate) node: Option<String>,
    pub(crate) status: Status,
    pub(crate) desired_state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) job_iteration: Option<JobIteration>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) networks_attachments: Vec<Attachment>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Status {
    pub(crate) timestamp: String,
    pub(crate) state: &'static str,
    pub(crate) message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) err: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) container_status: Option<ContainerStatus>,
    pub(crate) port_status: PortStatus,
}

#[derive(Debug, Serialize)]
pub(crate) struct ContainerStatus {
    #[serde(rename = "ContainerID")]
    pub(crate) id: String,
    #[serde(rename = "PID")]
    pub(crate) pid: u32,
    #[serde(rename = "ExitCode")]
    pub(crate) exit_code: i32,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct PortStatus {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) ports: Vec<PortConfig>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Attachment {
    pub(crate) network: Network,
    pub(crate) addresses: Vec<String>,
}

/// A network in the form swarm objects carry it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Network {
    #[serde(rename = "ID")]
    pub(crate) id: String,
    pub(crate) version: Version,
    pub(crate) created_at: String,
    pub(crate) updated_at: String,
    pub(crate) spec: NetworkSpec,
    pub(crate) driver_state: Driver,
    #[serde(rename = "IPAMOptions")]
    pub(crate) ipam: IpamOptions,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct NetworkSpec {
    pub(crate) name: String,
    pub(crate) labels: Map,
    pub(crate) driver_configuration: Driver,
    #[serde(rename = "IPv6Enabled", skip_serializing_if = "std::ops::Not::not")]
    pub(crate) ipv6: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) internal: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) attachable: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) ingress: bool,
    #[serde(rename = "IPAMOptions")]
    pub(crate) ipam: IpamOptions,
    pub(crate) scope: &'static str,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Driver {
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(crate) name: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) options: Option<Map>,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct IpamOptions {
    pub(crate) driver: Driver,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) configs: Vec<IpamConfig>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct IpamConfig {
    pub(crate) subnet: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) range: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) gateway: Option<String>,
}
