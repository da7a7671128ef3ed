//! [`shoal_agent::ContainerView`] → containers as Docker's clients read them.

use std::collections::BTreeMap;

use jiff::Timestamp;
use shoal_agent::{ContainerView, Health, HealthStatus, Restart};
use shoal_model::{Mount, MountKind};
use shoal_runtime::{Container, ContainerState};

use super::endpoint::{BRIDGE, endpoints, network_mode};
use super::image::STORAGE_DRIVER;
use super::port;
use super::service_out::{healthcheck, ulimit};
use super::volume::DRIVER;
use super::{some, time};
use crate::wire::container as wire;
use crate::wire::image::{Config, GraphDriver};
use crate::wire::{ZERO_TIME, service::Map};

/// Docker's list of paths that a container sees empty.
const MASKED_PATHS: [&str; 10] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];

/// Docker's list of paths that a container cannot write.
const READONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Docker's default for `/dev/shm`, in bytes.
const SHM_SIZE: u64 = 64 * 1024 * 1024;

/// `running`, `exited`, `created`, `restarting`.
pub(crate) fn state_word(view: &ContainerView) -> &'static str {
    match view.container.state {
        _ if is_restarting(view) => "restarting",
        ContainerState::Created => "created",
        ContainerState::Running { .. } => "running",
        ContainerState::Exited { .. } => "exited",
    }
}

fn is_restarting(view: &ContainerView) -> bool {
    view.plain.as_ref().is_some_and(|plain| plain.restarting)
}

pub(crate) fn health_word(view: &ContainerView) -> &'static str {
    match view.health.as_ref().map(|health| health.status) {
        None => "none",
        Some(status) => health_status(status),
    }
}

fn health_status(status: HealthStatus) -> &'static str {
    match status {
        HealthStatus::Starting => "starting",
        HealthStatus::Healthy => "healthy",
        HealthStatus::Unhealthy => "unhealthy",
    }
}

/// `engine` is the id of this node's engine.
pub(crate) fn summary(view: &ContainerView, now: Timestamp, engine: &str) -> wire::Summary {
    let container = &view.container;
    wire::Summary {
        id: container.config.id.to_string(),
        names: vec![format!("/{}", view.name())],
        image: container.config.image.clone(),
        image_id: container.image_id.clone(),
        command: container.argv.join(" "),
        created: container.created.as_second(),
        ports: view.ports.iter().flat_map(port::published).collect(),
        labels: container.config.labels.clone(),
        state: state_word(view),
        status: status(view, now),
        host_config: wire::SummaryHostConfig { network_mode: network_mode(view) },
        network_settings: wire::SummaryNetworks { networks: endpoints(view, false, engine) },
        mounts: mounts(container),
    }
}

/// `Up 3 minutes (healthy)`, `Exited (1) 2 hours ago`.
fn status(view: &ContainerView, now: Timestamp) -> String {
    match view.container.state {
        ContainerState::Created => "Created".to_owned(),
        ContainerState::Running { started, .. } => {
            let health = match view.health.as_ref().map(|health| health.status) {
                None => String::new(),
                Some(HealthStatus::Starting) => " (health: starting)".to_owned(),
                Some(status) => format!(" ({})", health_status(status)),
            };
            format!("Up {}{health}", human(seconds(started, now)))
        }
        ContainerState::Exited { exit, .. } => {
            let word = if is_restarting(view) { "Restarting" } else { "Exited" };
            format!("{word} ({}) {} ago", exit.code, human(seconds(exit.at, now)))
        }
    }
}

fn seconds(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.as_second().saturating_sub(from.as_second())).unwrap_or_default()
}

/// go-units' `HumanDuration`.
fn human(seconds: u64) -> String {
    let (minutes, hours) = (seconds / 60, (seconds + 1800) / 3600);
    match (seconds, minutes, hours) {
        (0, ..) => "Less than a second".to_owned(),
        (1, ..) => "1 second".to_owned(),
        (..60, ..) => format!("{seconds} seconds"),
        (_, 1, _) => "About a minute".to_owned(),
        (_, ..60, _) => format!("{minutes} minutes"),
        (.., 1) => "About an hour".to_owned(),
        (.., ..48) => format!("{hours} hours"),
        (.., ..336) => format!("{} days", hours / 24),
        (.., ..1440) => format!("{} weeks", hours / 24 / 7),
        (.., ..17520) => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

fn mounts(container: &Container) -> Vec<wire::MountPoint> {
    // `containers/ID` below the data directory.
    let data_dir = container.dir.ancestors().nth(2).unwrap_or(&container.dir);
    let point = |mount: &Mount| {
        let bare = wire::MountPoint {
            r#type: "tmpfs",
            name: None,
            source: String::new(),
            destination: mount.target.clone(),
            driver: None,
            mode: "",
            writable: !mount.read_only,
            propagation: "",
        };
        match &mount.kind {
            MountKind::Tmpfs { .. } => bare,
            MountKind::Bind { source, propagation, .. } => wire::MountPoint {
                r#type: "bind",
                source: source.clone(),
                propagation: propagation.as_str(),
                ..bare
            },
            MountKind::Volume { name, .. } => wire::MountPoint {
                r#type: "volume",
                name: Some(name.clone()),
                source: shoal_runtime::volume::dir(data_dir, name).display().to_string(),
                driver: Some(DRIVER),
                mode: "z",
                ..bare
            },
        }
    };
    container.config.spec.mounts.iter().map(point).collect()
}

/// `engine` is the id of this node's engine.
pub(crate) fn container(view: &ContainerView, execs: Vec<String>, engine: &str) -> wire::Container {
    let container = &view.container;
    let file = |name: &str| container.dir.join(name).display().to_string();
    let id = &container.config.id;
    let (path, args) = match container.argv.split_first() {
        Some((path, args)) => (path.clone(), args.to_vec()),
        None => (String::new(), Vec::new()),
    };
    wire::Container {
        id: id.to_string(),
        created: time(container.created),
        path,
        args,
        state: state(view),
        image: container.image_id.clone(),
        resolv_conf_path: file("resolv.conf"),
        hostname_path: file("hostname"),
        hosts_path: file("hosts"),
        log_path: file("json.log"),
        name: format!("/{}", view.name()),
        restart_count: view.plain.as_ref().map_or(0, |plain| plain.restarts),
        driver: STORAGE_DRIVER,
        platform: "linux",
        mount_label: "",
        process_label: "",
        app_armor_profile: "",
        exec_ids: some(execs),
        host_config: host_config(view),
        graph_driver: GraphDriver { data: None, name: STORAGE_DRIVER },
        mounts: mounts(container),
        config: config(view),
        network_settings: network_settings(view, engine),
    }
}

fn state(view: &ContainerView) -> wire::State {
    let (pid, code, oom, started, finished) = match view.container.state {
        ContainerState::Created => (0, 0, false, None, None),
        ContainerState::Running { pid, started } => (pid, 0, false, Some(started), None),
        ContainerState::Exited { exit, started } => (0, exit.code, exit.oom, Some(started), Some(exit.at)),
    };
    let show = |at: Option<Timestamp>| at.map_or_else(|| ZERO_TIME.to_owned(), time);
    wire::State {
        status: state_word(view),
        running: matches!(view.container.state, ContainerState::Running { .. }),
        paused: false,
        restarting: is_restarting(view),
        oom_killed: oom,
        dead: false,
        pid,
        exit_code: code,
        error: view.plain.as_ref().map(|plain| plain.error.clone()).unwrap_or_default(),
        started_at: show(started),
        finished_at: show(finished),
        health: view.health.as_ref().map(health),
    }
}

fn health(health: &Health) -> wire::Health {
    wire::Health {
        status: health_status(health.status),
        failing_streak: health.failing_streak,
        log: health
            .log
            .iter()
            .map(|probe| wire::Probe {
                start: time(probe.started),
                end: time(probe.ended),
                exit_code: probe.exit_code,
                output: probe.output.clone(),
            })
            .collect(),
    }
}

fn config(view: &ContainerView) -> Config {
    let container = &view.container;
    let spec = &container.config.spec;
    let hostname = if spec.hostname.is_empty() { container.config.id.short() } else { &spec.hostname };
    Config {
        hostname: hostname.to_owned(),
        user: spec.user.clone(),
        tty: spec.tty,
        open_stdin: spec.open_stdin,
        stdin_once: view.plain.as_ref().is_some_and(|plain| plain.spec.stdin_once),
        env: some(container.env.clone()),
        cmd: some(if spec.command.is_empty() { container.argv.clone() } else { spec.args.clone() }),
        healthcheck: view.healthcheck.as_ref().map(healthcheck),
        image: container.config.image.clone(),
        working_dir: spec.dir.clone(),
        entrypoint: some(spec.command.clone()),
        labels: Some(container.config.labels.clone()),
        stop_signal: some(spec.stop_signal.clone()),
        ..Config::default()
    }
}

fn host_config(view: &ContainerView) -> wire::HostConfig {
    let config = &view.container.config;
    let spec = &config.spec;
    wire::HostConfig {
        log_config: wire::LogConfig { r#type: "json-file", config: config.log_options.clone() },
        network_mode: network_mode(view),
        port_bindings: port::asked_bindings(view),
        publish_all_ports: view.plain.as_ref().is_some_and(|plain| plain.spec.publish_all),
        restart_policy: restart_policy(view),
        auto_remove: view.plain.as_ref().is_some_and(|plain| plain.spec.auto_remove),
        cap_add: some(spec.capability_add.clone()),
        cap_drop: some(spec.capability_drop.clone()),
        dns: some(spec.dns.nameservers.iter().map(ToString::to_string).collect()),
        dns_options: some(spec.dns.options.clone()),
        dns_search: some(spec.dns.search.clone()),
        extra_hosts: some(spec.hosts.clone()),
        group_add: some(spec.groups.clone()),
        readonly_rootfs: spec.read_only,
        sysctls: some(spec.sysctls.clone()),
        memory: config.resources.limit_memory,
        nano_cpus: config.resources.limit_nano_cpus,
        memory_reservation: config.resources.reserve_memory,
        pids_limit: some(config.resources.limit_pids),
        ulimits: spec.ulimits.iter().map(ulimit).collect(),
        init: spec.init,
        ..wire::HostConfig::default()
    }
}

/// A task has none: it is its service's.
fn restart_policy(view: &ContainerView) -> wire::RestartPolicy {
    let (name, maximum_retry_count) = match view.plain.as_ref().map(|plain| plain.spec.restart) {
        None => ("", 0),
        Some(Restart::No) => ("no", 0),
        Some(Restart::Always) => ("always", 0),
        Some(Restart::UnlessStopped) => ("unless-stopped", 0),
        Some(Restart::OnFailure { attempts }) => ("on-failure", attempts),
    };
    wire::RestartPolicy { name, maximum_retry_count }
}

impl Default for wire::HostConfig {
    /// A task's container that asked for nothing.
    fn default() -> Self {
        Self {
            binds: None,
            container_id_file: "",
            log_config: wire::LogConfig { r#type: "json-file", config: Map::new() },
            network_mode: "default".to_owned(),
            port_bindings: BTreeMap::new(),
            restart_policy: wire::RestartPolicy { name: "", maximum_retry_count: 0 },
            auto_remove: false,
            volume_driver: "",
            volumes_from: None,
            cap_add: None,
            cap_drop: None,
            cgroupns_mode: "host",
            dns: None,
            dns_options: None,
            dns_search: None,
            extra_hosts: None,
            group_add: None,
            ipc_mode: "private",
            cgroup: "",
            links: None,
            oom_score_adj: 0,
            pid_mode: "",
            privileged: false,
            publish_all_ports: false,
            readonly_rootfs: false,
            security_opt: None,
            uts_mode: "",
            userns_mode: "",
            shm_size: SHM_SIZE,
            sysctls: None,
            runtime: "runc",
            console_size: [0, 0],
            isolation: "default",
            cpu_shares: 0,
            memory: 0,
            nano_cpus: 0,
            cgroup_parent: "",
            blkio_weight: 0,
            blkio_weight_device: None,
            blkio_device_read_bps: None,
            blkio_device_write_bps: None,
            blkio_device_read_iops: None,
            blkio_device_write_iops: None,
            cpu_period: 0,
            cpu_quota: 0,
            cpu_realtime_period: 0,
            cpu_realtime_runtime: 0,
            cpuset_cpus: "",
            cpuset_mems: "",
            devices: None,
            device_cgroup_rules: None,
            device_requests: None,
            kernel_memory: 0,
            kernel_memory_tcp: 0,
            memory_reservation: 0,
            memory_swap: 0,
            memory_swappiness: None,
            oom_kill_disable: false,
            pids_limit: None,
            ulimits: Vec::new(),
            cpu_count: 0,
            cpu_percent: 0,
            io_maximum_iops: 0,
            io_maximum_bandwidth: 0,
            masked_paths: MASKED_PATHS.to_vec(),
            readonly_paths: READONLY_PATHS.to_vec(),
            init: None,
        }
    }
}

fn network_settings(view: &ContainerView, engine: &str) -> wire::NetworkSettings {
    let key = view.container.config.netns.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
    let networks = endpoints(view, true, engine);
    // Of the default network Docker says everything twice.
    let own = networks.get(BRIDGE).cloned().unwrap_or_default();
    wire::NetworkSettings {
        bridge: "",
        sandbox_id: view.task.as_ref().map(|task| task.to_string()).unwrap_or_default(),
        hairpin_mode: false,
        link_local_ipv6_address: "",
        link_local_ipv6_prefix_len: 0,
        ports: port::bindings(view),
        sandbox_key: key,
        secondary_ip_addresses: None,
        secondary_ipv6_addresses: None,
        endpoint_id: own.endpoint,
        gateway: own.gateway,
        global_ipv6_address: own.ipv6,
        global_ipv6_prefix_len: own.ipv6_prefix,
        ip_address: own.ip,
        ip_prefix_len: own.prefix,
        ipv6_gateway: own.ipv6_gateway,
        mac_address: own.mac,
        networks,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_dockers() {
        for (seconds, expect) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (119, "About a minute"),
            (120, "2 minutes"),
            (3599, "59 minutes"),
            (3600, "About an hour"),
            (2 * 3600, "2 hours"),
            (47 * 3600, "47 hours"),
            (3 * 24 * 3600, "3 days"),
            (20 * 24 * 3600, "2 weeks"),
            (100 * 24 * 3600, "3 months"),
            (3 * 365 * 24 * 3600, "3 years"),
        ] {
            assert_eq!(human(seconds), expect, "{seconds}");
        }
    }
}
