//! Containers and execs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Unsupported;
use super::image::{Config, GraphDriver};
use super::service::{Map, Ulimit};

/// A line of `GET /containers/json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Summary {
    pub(crate) id: String,
    pub(crate) names: Vec<String>,
    pub(crate) image: String,
    #[serde(rename = "ImageID")]
    pub(crate) image_id: String,
    pub(crate) command: String,
    pub(crate) created: i64,
    pub(crate) ports: Vec<Port>,
    pub(crate) labels: Map,
    pub(crate) state: &'static str,
    pub(crate) status: String,
    pub(crate) host_config: SummaryHostConfig,
    pub(crate) network_settings: SummaryNetworks,
    pub(crate) mounts: Vec<MountPoint>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Port {
    #[serde(rename = "IP")]
    pub(crate) ip: String,
    pub(crate) private_port: u16,
    pub(crate) public_port: u16,
    pub(crate) r#type: &'static str,
}

#[derive(Debug, Serialize)]
pub(crate) struct SummaryHostConfig {
    #[serde(rename = "NetworkMode")]
    pub(crate) network_mode: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct SummaryNetworks {
    #[serde(rename = "Networks")]
    pub(crate) networks: BTreeMap<String, Endpoint>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) created: String,
    pub(crate) path: String,
    pub(crate) args: Vec<String>,
    pub(crate) state: State,
    pub(crate) image: String,
    pub(crate) resolv_conf_path: String,
    pub(crate) hostname_path: String,
    pub(crate) hosts_path: String,
    pub(crate) log_path: String,
    pub(crate) name: String,
    pub(crate) restart_count: u32,
    pub(crate) driver: &'static str,
    pub(crate) platform: &'static str,
    pub(crate) mount_label: &'static str,
    pub(crate) process_label: &'static str,
    pub(crate) app_armor_profile: &'static str,
    #[serde(rename = "ExecIDs")]
    pub(crate) exec_ids: Option<Vec<String>>,
    pub(crate) host_config: HostConfig,
    pub(crate) graph_driver: GraphDriver,
    pub(crate) mounts: Vec<MountPoint>,
    pub(crate) config: Config,
    pub(crate) network_settings: NetworkSettings,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct State {
    pub(crate) status: &'static str,
    pub(crate) running: bool,
    pub(crate) paused: bool,
    pub(crate) restarting: bool,
    #[serde(rename = "OOMKilled")]
    pub(crate) oom_killed: bool,
    pub(crate) dead: bool,
    pub(crate) pid: u32,
    pub(crate) exit_code: i32,
    pub(crate) error: String,
    pub(crate) started_at: String,
    pub(crate) finished_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) health: Option<Health>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Health {
    pub(crate) status: &'static str,
    pub(crate) failing_streak: u32,
    pub(crate) log: Vec<Probe>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Probe {
    pub(crate) start: String,
    pub(crate) end: String,
    pub(crate) exit_code: i32,
    pub(crate) output: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct MountPoint {
    pub(crate) r#type: &'static str,
    /// A volume's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) source: String,
    pub(crate) destination: String,
    /// A volume's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) driver: Option<&'static str>,
    pub(crate) mode: &'static str,
    #[serde(rename = "RW")]
    pub(crate) writable: bool,
    pub(crate) propagation: &'static str,
}

/// What a container may do on its host. Most of it has one value here: the default of a task.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct HostConfig {
    pub(crate) binds: Option<Vec<String>>,
    #[serde(rename = "ContainerIDFile")]
    pub(crate) container_id_file: &'static str,
    pub(crate) log_config: LogConfig,
    pub(crate) network_mode: String,
    pub(crate) port_bindings: BTreeMap<String, Vec<Binding>>,
    pub(crate) restart_policy: RestartPolicy,
    pub(crate) auto_remove: bool,
    pub(crate) volume_driver: &'static str,
    pub(crate) volumes_from: Option<Vec<String>>,
    pub(crate) cap_add: Option<Vec<String>>,
    pub(crate) cap_drop: Option<Vec<String>>,
    pub(crate) cgroupns_mode: &'static str,
    pub(crate) dns: Option<Vec<String>>,
    pub(crate) dns_options: Option<Vec<String>>,
    pub(crate) dns_search: Option<Vec<String>>,
    pub(crate) extra_hosts: Option<Vec<String>>,
    pub(crate) group_add: Option<Vec<String>>,
    pub(crate) ipc_mode: &'static str,
    pub(crate) cgroup: &'static str,
    pub(crate) links: Option<Vec<String>>,
    pub(crate) oom_score_adj: i32,
    pub(crate) pid_mode: &'static str,
    pub(crate) privileged: bool,
    pub(crate) publish_all_ports: bool,
    pub(crate) readonly_rootfs: bool,
    pub(crate) security_opt: Option<Vec<String>>,
    #[serde(rename = "UTSMode")]
    pub(crate) uts_mode: &'static str,
    pub(crate) userns_mode: &'static str,
    pub(crate) shm_size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sysctls: Option<Map>,
    pub(crate) runtime: &'static str,
    pub(crate) console_size: [u32; 2],
    pub(crate) isolation: &'static str,
    pub(crate) cpu_shares: u64,
    pub(crate) memory: u64,
    pub(crate) nano_cpus: u64,
    pub(crate) cgroup_parent: &'static str,
    pub(crate) blkio_weight: u16,
    pub(crate) blkio_weight_device: Option<()>,
    pub(crate) blkio_device_read_bps: Option<()>,
    pub(crate) blkio_device_write_bps: Option<()>,
    #[serde(rename = "BlkioDeviceReadIOps")]
    pub(crate) blkio_device_read_iops: Option<()>,
    #[serde(rename = "BlkioDeviceWriteIOps")]
    pub(crate) blkio_device_write_iops: Option<()>,
    pub(crate) cpu_period: u64,
    pub(crate) cpu_quota: u64,
    pub(crate) cpu_realtime_period: u64,
    pub(crate) cpu_realtime_runtime: u64,
    pub(crate) cpuset_cpus: &'static str,
    pub(crate) cpuset_mems: &'static str,
    pub(crate) devices: Option<()>,
    pub(crate) device_cgroup_rules: Option<()>,
    pub(crate) device_requests: Option<()>,
    pub(crate) kernel_memory: u64,
    #[serde(rename = "KernelMemoryTCP")]
    pub(crate) kernel_memory_tcp: u64,
    pub(crate) memory_reservation: u64,
    pub(crate) memory_swap: u64,
    pub(crate) memory_swappiness: Option<i64>,
    pub(crate) oom_kill_disable: bool,
    pub(crate) pids_limit: Option<u64>,
    pub(crate) ulimits: Vec<Ulimit>,
    pub(crate) cpu_count: u64,
    pub(crate) cpu_percent: u64,
    #[serde(rename = "IOMaximumIOps")]
    pub(crate) io_maximum_iops: u64,
    #[serde(rename = "IOMaximumBandwidth")]
    pub(crate) io_maximum_bandwidth: u64,
    pub(crate) masked_paths: Vec<&'static str>,
    pub(crate) readonly_paths: Vec<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) init: Option<bool>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct LogConfig {
    pub(crate) r#type: &'static str,
    pub(crate) config: Map,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct RestartPolicy {
    pub(crate) name: &'static str,
    pub(crate) maximum_retry_count: u32,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Binding {
    pub(crate) host_ip: String,
    pub(crate) host_port: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct NetworkSettings {
    pub(crate) bridge: &'static str,
    #[serde(rename = "SandboxID")]
    pub(crate) sandbox_id: String,
    pub(crate) hairpin_mode: bool,
    #[serde(rename = "LinkLocalIPv6Address")]
    pub(crate) link_local_ipv6_address: &'static str,
    #[serde(rename = "LinkLocalIPv6PrefixLen")]
    pub(crate) link_local_ipv6_prefix_len: u8,
    pub(crate) ports: BTreeMap<String, Vec<Binding>>,
    pub(crate) sandbox_key: String,
    #[serde(rename = "SecondaryIPAddresses")]
    pub(crate) secondary_ip_addresses: Option<()>,
    #[serde(rename = "SecondaryIPv6Addresses")]
    pub(crate) secondary_ipv6_addresses: Option<()>,
    #[serde(rename = "EndpointID")]
    pub(crate) endpoint_id: String,
    pub(crate) gateway: String,
    #[serde(rename = "GlobalIPv6Address")]
    pub(crate) global_ipv6_address: String,
    #[serde(rename = "GlobalIPv6PrefixLen")]
    pub(crate) global_ipv6_prefix_len: u8,
    #[serde(rename = "IPAddress")]
    pub(crate) ip_address: String,
    #[serde(rename = "IPPrefixLen")]
    pub(crate) ip_prefix_len: u8,
    #[serde(rename = "IPv6Gateway")]
    pub(crate) ipv6_gateway: String,
    pub(crate) mac_address: String,
    pub(crate) networks: BTreeMap<String, Endpoint>,
}

/// A container's place on a network.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Endpoint {
    #[serde(rename = "IPAMConfig")]
    pub(crate) ipam: Option<EndpointIpam>,
    #[serde(rename = "Links")]
    pub(crate) links: Option<Vec<String>>,
    #[serde(rename = "Aliases")]
    pub(crate) aliases: Option<Vec<String>>,
    #[serde(rename = "NetworkID")]
    pub(crate) network: String,
    #[serde(rename = "EndpointID")]
    pub(crate) endpoint: String,
    #[serde(rename = "Gateway")]
    pub(crate) gateway: String,
    #[serde(rename = "IPAddress")]
    pub(crate) ip: String,
    #[serde(rename = "IPPrefixLen")]
    pub(crate) prefix: u8,
    #[serde(rename = "IPv6Gateway")]
    pub(crate) ipv6_gateway: String,
    #[serde(rename = "GlobalIPv6Address")]
    pub(crate) ipv6: String,
    #[serde(rename = "GlobalIPv6PrefixLen")]
    pub(crate) ipv6_prefix: u8,
    #[serde(rename = "MacAddress")]
    pub(crate) mac: String,
    #[serde(rename = "DriverOpts")]
    pub(crate) driver_opts: Option<Map>,
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct EndpointIpam {
    #[serde(rename = "IPv4Address")]
    pub(crate) ipv4: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct Top {
    #[serde(rename = "Processes")]
    pub(crate) processes: Vec<Vec<String>>,
    #[serde(rename = "Titles")]
    pub(crate) titles: Vec<String>,
}

/// The body of `POST /containers/{id}/wait`, sent when the container has ended.
#[derive(Debug, Serialize)]
pub(crate) struct Waited {
    #[serde(rename = "Error")]
    pub(crate) error: Option<WaitError>,
    #[serde(rename = "StatusCode")]
    pub(crate) status: i32,
}

#[derive(Debug, Serialize)]
pub(crate) struct WaitError {
    #[serde(rename = "Message")]
    pub(crate) message: String,
}

// === exec ===

/// `POST /containers/{id}/exec`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct ExecCreate {
    pub(crate) user: Option<String>,
    pub(crate) privileged: Option<bool>,
    pub(crate) tty: Option<bool>,
    pub(crate) attach_stdin: Option<bool>,
    pub(crate) attach_stdout: Option<bool>,
    pub(crate) attach_stderr: Option<bool>,
    pub(crate) detach_keys: Option<String>,
    pub(crate) env: Option<Vec<String>>,
    pub(crate) working_dir: Option<String>,
    pub(crate) cmd: Option<Vec<String>>,
    /// API 1.42; the client sends a resize of its own as well.
    pub(crate) console_size: Unsupported,
}

#[derive(Debug, Serialize)]
pub(crate) struct ExecCreated {
    #[serde(rename = "Id")]
    pub(crate) id: String,
}

/// `POST /exec/{id}/start`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct ExecStart {
    pub(crate) detach: Option<bool>,
    pub(crate) tty: Option<bool>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Exec {
    #[serde(rename = "ID")]
    pub(crate) id: String,
    #[serde(rename = "Running")]
    pub(crate) running: bool,
    #[serde(rename = "ExitCode")]
    pub(crate) exit_code: Option<i32>,
    #[serde(rename = "ProcessConfig")]
    pub(crate) process: ProcessConfig,
    #[serde(rename = "OpenStdin")]
    pub(crate) stdin: bool,
    #[serde(rename = "OpenStderr")]
    pub(crate) stderr: bool,
    #[serde(rename = "OpenStdout")]
    pub(crate) stdout: bool,
    #[serde(rename = "CanRemove")]
    pub(crate) can_remove: bool,
    #[serde(rename = "ContainerID")]
    pub(crate) container: String,
    #[serde(rename = "DetachKeys")]
    pub(crate) detach_keys: String,
    #[serde(rename = "Pid")]
    pub(crate) pid: u32,
}

#[derive(Debug, Serialize)]
pub(crate) struct ProcessConfig {
    pub(crate) tty: bool,
    pub(crate) entrypoint: String,
    pub(crate) arguments: Vec<String>,
    pub(crate) privileged: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) user: String,
}
