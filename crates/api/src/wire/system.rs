//! Version, information, events.

use serde::Serialize;

use super::service::Map;
use super::swarm;

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Version {
    pub(crate) platform: Platform,
    pub(crate) components: Vec<Component>,
    pub(crate) version: String,
    pub(crate) api_version: &'static str,
    #[serde(rename = "MinAPIVersion")]
    pub(crate) min_api_version: &'static str,
    pub(crate) git_commit: String,
    pub(crate) go_version: String,
    pub(crate) os: &'static str,
    pub(crate) arch: &'static str,
    pub(crate) kernel_version: String,
    pub(crate) build_time: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Platform {
    pub(crate) name: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Component {
    pub(crate) name: &'static str,
    pub(crate) version: String,
    pub(crate) details: Map,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Info {
    #[serde(rename = "ID")]
    pub(crate) id: String,
    pub(crate) containers: usize,
    pub(crate) containers_running: usize,
    pub(crate) containers_paused: usize,
    pub(crate) containers_stopped: usize,
    pub(crate) images: usize,
    pub(crate) driver: &'static str,
    pub(crate) driver_status: Vec<[String; 2]>,
    pub(crate) plugins: Plugins,
    pub(crate) memory_limit: bool,
    pub(crate) swap_limit: bool,
    pub(crate) kernel_memory: bool,
    #[serde(rename = "KernelMemoryTCP")]
    pub(crate) kernel_memory_tcp: bool,
    pub(crate) cpu_cfs_period: bool,
    pub(crate) cpu_cfs_quota: bool,
    #[serde(rename = "CPUShares")]
    pub(crate) cpu_shares: bool,
    #[serde(rename = "CPUSet")]
    pub(crate) cpu_set: bool,
    pub(crate) pids_limit: bool,
    #[serde(rename = "IPv4Forwarding")]
    pub(crate) ipv4_forwarding: bool,
    pub(crate) bridge_nf_iptables: bool,
    #[serde(rename = "BridgeNfIp6tables")]
    pub(crate) bridge_nf_ip6tables: bool,
    pub(crate) debug: bool,
    #[serde(rename = "NFd")]
    pub(crate) files: usize,
    pub(crate) oom_kill_disable: bool,
    #[serde(rename = "NGoroutines")]
    pub(crate) tasks: usize,
    pub(crate) system_time: String,
    pub(crate) logging_driver: &'static str,
    pub(crate) cgroup_driver: &'static str,
    pub(crate) cgroup_version: &'static str,
    #[serde(rename = "NEventsListener")]
    pub(crate) event_listeners: usize,
    pub(crate) kernel_version: String,
    pub(crate) operating_system: String,
    #[serde(rename = "OSVersion")]
    pub(crate) os_version: String,
    #[serde(rename = "OSType")]
    pub(crate) os_type: &'static str,
    pub(crate) architecture: String,
    pub(crate) index_server_address: &'static str,
    pub(crate) registry_config: RegistryConfig,
    #[serde(rename = "NCPU")]
    pub(crate) cpus: u64,
    pub(crate) mem_total: u64,
    pub(crate) generic_resources: Option<()>,
    pub(crate) docker_root_dir: String,
    pub(crate) http_proxy: &'static str,
    pub(crate) https_proxy: &'static str,
    pub(crate) no_proxy: &'static str,
    pub(crate) name: String,
    pub(crate) labels: Vec<String>,
    pub(crate) experimental_build: bool,
    pub(crate) server_version: String,
    pub(crate) runtimes: Runtimes,
    pub(crate) default_runtime: &'static str,
    pub(crate) swarm: swarm::Info,
    pub(crate) live_restore_enabled: bool,
    pub(crate) isolation: &'static str,
    pub(crate) init_binary: &'static str,
    pub(crate) containerd_commit: Commit,
    pub(crate) runc_commit: Commit,
    pub(crate) init_commit: Commit,
    pub(crate) security_options: Vec<&'static str>,
    pub(crate) warnings: Option<Vec<String>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Plugins {
    pub(crate) volume: Vec<&'static str>,
    pub(crate) network: Vec<&'static str>,
    pub(crate) authorization: Option<()>,
    pub(crate) log: Vec<&'static str>,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct RegistryConfig {
    #[serde(rename = "AllowNondistributableArtifactsCIDRs")]
    pub(crate) foreign_cidrs: Vec<()>,
    #[serde(rename = "AllowNondistributableArtifactsHostnames")]
    pub(crate) foreign_hostnames: Vec<()>,
    #[serde(rename = "InsecureRegistryCIDRs")]
    pub(crate) insecure: Vec<()>,
    pub(crate) index_configs: Map,
    pub(crate) mirrors: Vec<()>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Runtimes {
    pub(crate) runc: RuntimePath,
}

#[derive(Debug, Serialize)]
pub(crate) struct RuntimePath {
    pub(crate) path: &'static str,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Commit {
    #[serde(rename = "ID")]
    pub(crate) id: String,
    #[serde(rename = "Expected")]
    pub(crate) expected: String,
}

/// One line of `GET /events`.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Event {
    /// `status`, `id` and `from` are what the oldest clients read; Docker sets them for containers only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) status: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) from: Option<String>,
    #[serde(rename = "Type")]
    pub(crate) kind: &'static str,
    #[serde(rename = "Action")]
    pub(crate) action: String,
    #[serde(rename = "Actor")]
    pub(crate) actor: Actor,
    pub(crate) scope: &'static str,
    pub(crate) time: i64,
    #[serde(rename = "timeNano")]
    pub(crate) time_nanos: i64,
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct Actor {
    #[serde(rename = "ID")]
    pub(crate) id: String,
    #[serde(rename = "Attributes")]
    pub(crate) attributes: Map,
}
