//! `POST /containers/create`.
//!
//! Docker's fields are many. What is named here is honoured or looked at; everything else is kept as
//! [`Unsupported`], and refused by its name when it asks for something.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Unsupported;
use super::service::{Healthcheck, Map, Mount, Ulimit};

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Create {
    pub(crate) hostname: Option<String>,
    pub(crate) user: Option<String>,
    pub(crate) tty: Option<bool>,
    pub(crate) open_stdin: Option<bool>,
    pub(crate) stdin_once: Option<bool>,
    pub(crate) env: Option<Vec<String>>,
    pub(crate) cmd: Option<Vec<String>>,
    pub(crate) image: Option<String>,
    pub(crate) working_dir: Option<String>,
    pub(crate) entrypoint: Option<Vec<String>>,
    pub(crate) labels: Option<Map>,
    pub(crate) healthcheck: Option<Healthcheck>,
    /// On its first network; before API 1.44.
    pub(crate) mac_address: Option<String>,
    pub(crate) stop_signal: Option<String>,
    /// Seconds.
    pub(crate) stop_timeout: Option<i64>,
    pub(crate) host_config: Option<HostConfig>,
    pub(crate) networking_config: Option<NetworkingConfig>,
    /// What a client attaches is said again when it does.
    pub(crate) attach_stdin: Option<bool>,
    pub(crate) attach_stdout: Option<bool>,
    pub(crate) attach_stderr: Option<bool>,
    /// `80/tcp`, each with an empty object.
    pub(crate) exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
    /// Paths, each with an empty object.
    pub(crate) volumes: Option<BTreeMap<String, serde_json::Value>>,
    #[serde(flatten)]
    pub(crate) rest: BTreeMap<String, Unsupported>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct HostConfig {
    pub(crate) binds: Option<Vec<String>>,
    /// Written by the client.
    #[serde(rename = "ContainerIDFile")]
    pub(crate) container_id_file: Option<String>,
    pub(crate) log_config: Option<LogConfig>,
    pub(crate) links: Option<Vec<String>>,
    pub(crate) network_mode: Option<String>,
    /// By `80/tcp`.
    pub(crate) port_bindings: Option<BTreeMap<String, Option<Vec<PortBinding>>>>,
    pub(crate) publish_all_ports: Option<bool>,
    pub(crate) restart_policy: Option<RestartPolicy>,
    pub(crate) auto_remove: Option<bool>,
    pub(crate) cap_add: Option<Vec<String>>,
    pub(crate) cap_drop: Option<Vec<String>>,
    pub(crate) cgroupns_mode: Option<String>,
    pub(crate) dns: Option<Vec<String>>,
    pub(crate) dns_options: Option<Vec<String>>,
    pub(crate) dns_search: Option<Vec<String>>,
    pub(crate) extra_hosts: Option<Vec<String>>,
    pub(crate) group_add: Option<Vec<String>>,
    pub(crate) ipc_mode: Option<String>,
    pub(crate) readonly_rootfs: Option<bool>,
    pub(crate) sysctls: Option<Map>,
    pub(crate) tmpfs: Option<Map>,
    pub(crate) mounts: Option<Vec<Mount>>,
    pub(crate) init: Option<bool>,
    pub(crate) runtime: Option<String>,
    pub(crate) isolation: Option<String>,
    pub(crate) memory: Option<i64>,
    pub(crate) memory_reservation: Option<i64>,
    /// -1 leaves it to the kernel.
    pub(crate) memory_swappiness: Option<i64>,
    pub(crate) nano_cpus: Option<i64>,
    /// 0 and -1 are no limit.
    pub(crate) pids_limit: Option<i64>,
    pub(crate) ulimits: Option<Vec<Ulimit>>,
    /// The client sends a resize as well.
    pub(crate) console_size: Option<serde_json::Value>,
    #[serde(flatten)]
    pub(crate) rest: BTreeMap<String, Unsupported>,
}

/// Where a port of a container is published.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct PortBinding {
    pub(crate) host_ip: Option<String>,
    pub(crate) host_port: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct LogConfig {
    pub(crate) r#type: Option<String>,
    pub(crate) config: Option<Map>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct RestartPolicy {
    pub(crate) name: Option<String>,
    pub(crate) maximum_retry_count: Option<i64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct NetworkingConfig {
    pub(crate) endpoints_config: Option<BTreeMap<String, Option<EndpointConfig>>>,
}

/// How a container joins one network. Clients send back what they were shown, so what only the engine
/// can say is passed over.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct EndpointConfig {
    #[serde(rename = "IPAMConfig")]
    pub(crate) ipam: Option<EndpointIpam>,
    pub(crate) aliases: Option<Vec<String>>,
    pub(crate) links: Option<Vec<String>>,
    pub(crate) mac_address: Option<String>,
    pub(crate) driver_opts: Unsupported,
    pub(crate) gw_priority: Unsupported,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct EndpointIpam {
    #[serde(rename = "IPv4Address")]
    pub(crate) ipv4: Option<String>,
    #[serde(rename = "IPv6Address")]
    pub(crate) ipv6: Option<String>,
    #[serde(rename = "LinkLocalIPs")]
    pub(crate) link_local: Unsupported,
}

#[derive(Debug, serde::Serialize)]
pub(crate) struct Created {
    #[serde(rename = "Id")]
    pub(crate) id: String,
    #[serde(rename = "Warnings")]
    pub(crate) warnings: Vec<String>,
}

#[derive(Debug, serde::Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Pruned {
    pub(crate) containers_deleted: Option<Vec<String>>,
    pub(crate) space_reclaimed: u64,
}
