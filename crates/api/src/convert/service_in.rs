//! A service as a client declares it → [`shoal_model::ServiceSpec`].
//!
//! What cannot be honoured is refused; what clients always send and means nothing here
//! (`Isolation: default`, `Runtime: container`) is taken.

use std::net::IpAddr;

use shoal_model as model;
use shoal_model::{MountKind, NetworkId, Propagation};

use super::deposit::{config_in, secret_in};
use super::duration;
use crate::error::{ApiError, Result};
use crate::wire::service as wire;

/// Finds a network by id or name, as [`shoal_manager`] does for a reference in a spec.
pub(crate) type FindNetwork<'a> = &'a dyn Fn(&str) -> Result<NetworkId>;

pub(crate) fn service(spec: wire::ServiceSpec, network: FindNetwork<'_>) -> Result<model::ServiceSpec> {
    let mut template = spec.task_template.unwrap_or_default();
    if template.networks.as_ref().is_none_or(Vec::is_empty) {
        template.networks = spec.networks;
    }
    Ok(model::ServiceSpec {
        name: spec.name.unwrap_or_default(),
        labels: spec.labels.unwrap_or_default(),
        task: task(template, network)?,
        mode: mode(spec.mode.unwrap_or_default())?,
        update: spec.update_config.map(|config| update(config, true)).transpose()?,
        rollback: spec.rollback_config.map(|config| update(config, false)).transpose()?,
        endpoint: endpoint(spec.endpoint_spec.unwrap_or_default())?,
    })
}

fn mode(mode: wire::Mode) -> Result<model::ServiceMode> {
    let given = [
        mode.replicated.is_some(),
        mode.global.is_some(),
        mode.replicated_job.is_some(),
        mode.global_job.is_some(),
    ];
    if given.iter().filter(|given| **given).count() > 1 {
        return Err(ApiError::bad_request("must specify only one service mode"));
    }
    if mode.global.is_some() {
        return Ok(model::ServiceMode::Global);
    }
    if mode.global_job.is_some() {
        return Ok(model::ServiceMode::GlobalJob);
    }
    if let Some(job) = mode.replicated_job {
        let concurrent = job.max_concurrent.unwrap_or(1);
        let total = job.total_completions.unwrap_or(concurrent);
        return Ok(model::ServiceMode::ReplicatedJob { concurrent, total });
    }
    let replicas = mode.replicated.unwrap_or_default().replicas.unwrap_or(1);
    Ok(model::ServiceMode::Replicated { replicas })
}

fn task(spec: wire::TaskSpec, network: FindNetwork<'_>) -> Result<model::TaskSpec> {
    spec.plugin_spec.refuse("services that are plugins are")?;
    spec.network_attachment_spec.refuse("network attachments as services are")?;
    match spec.runtime.as_deref() {
        None | Some("" | "container") => {}
        Some("plugin") => return Err(ApiError::unsupported("services that are plugins are")),
        Some(other) => {
            return Err(ApiError::bad_request(format!(
                "invalid task spec: unsupported runtime: \"{other}\""
            )));
        }
    }
    let mut networks = Vec::new();
    for target in spec.networks.unwrap_or_default() {
        target.driver_opts.refuse("driver options of a network attachment are")?;
        networks.push(model::NetworkTarget {
            network: network(&target.target.unwrap_or_default())?,
            aliases: target.aliases.unwrap_or_default(),
        });
    }
    Ok(model::TaskSpec {
        container: container(spec.container_spec.unwrap_or_default())?,
        resources: resources(spec.resources.unwrap_or_default())?,
        restart: restart(spec.restart_policy)?,
        placement: placement(spec.placement.unwrap_or_default())?,
        networks,
        force_update: spec.force_update,
        log_options: log_options(spec.log_driver.unwrap_or_default())?,
    })
}

fn container(spec: wire::ContainerSpec) -> Result<model::ContainerSpec> {
    spec.privileges.refuse("privileges (credential spec, SELinux context, no-new-privileges) are")?;
    spec.oom_score_adj.refuse("OomScoreAdj is")?;
    match spec.isolation.as_deref() {
        None | Some("" | "default") => {}
        Some(other) => {
            return Err(ApiError::bad_request(format!("isolation \"{other}\" exists on Windows only")));
        }
    }
    Ok(model::ContainerSpec {
        image: spec.image.unwrap_or_default(),
        labels: spec.labels.unwrap_or_default(),
        command: spec.command.unwrap_or_default(),
        args: spec.args.unwrap_or_default(),
        hostname: spec.hostname.unwrap_or_default(),
        env: spec.env.unwrap_or_default(),
        dir: spec.dir.unwrap_or_default(),
        user: spec.user.unwrap_or_default(),
        groups: spec.groups.unwrap_or_default(),
        tty: spec.tty.unwrap_or_default(),
        open_stdin: spec.open_stdin.unwrap_or_default(),
        read_only: spec.read_only.unwrap_or_default(),
        init: spec.init,
        mounts: spec.mounts.unwrap_or_default().into_iter().map(mount).collect::<Result<_>>()?,
        hosts: spec.hosts.unwrap_or_default(),
        dns: dns(spec.dns_config.unwrap_or_default())?,
        healthcheck: spec.healthcheck.map(healthcheck).transpose()?,
        stop_signal: spec.stop_signal.unwrap_or_default(),
        stop_grace_period: spec
            .stop_grace_period
            .map(|nanos| duration(nanos, "StopGracePeriod"))
            .transpose()?,
        sysctls: spec.sysctls.unwrap_or_default(),
        capability_add: spec.capability_add.unwrap_or_default(),
        capability_drop: spec.capability_drop.unwrap_or_default(),
        ulimits: spec.ulimits.unwrap_or_default().into_iter().map(ulimit).collect(),
        secrets: spec.secrets.unwrap_or_default().into_iter().map(secret_in).collect::<Result<_>>()?,
        configs: spec.configs.unwrap_or_default().into_iter().map(config_in).collect::<Result<_>>()?,
    })
}

pub(super) fn ulimit(limit: wire::Ulimit) -> model::Ulimit {
    model::Ulimit { name: limit.name, soft: limit.soft, hard: limit.hard }
}

pub(super) fn mount(mount: wire::Mount) -> Result<model::Mount> {
    mount.cluster_options.refuse("cluster volumes are")?;
    mount.image_options.refuse("image mounts are")?;
    let target = mount.target.filter(|target| !target.is_empty());
    let target = target.ok_or_else(|| ApiError::bad_request("invalid mount target, must not be empty"))?;
    let source = mount.source.unwrap_or_default();
    let kind = match mount.r#type.as_deref() {
        Some("bind") => {
            if mount.volume_options.is_some() {
                return Err(ApiError::bad_request(
                    "invalid mount config for type \"bind\": field VolumeOptions must not be specified",
                ));
            }
            let options = mount.bind_options.unwrap_or_default();
            let non_recursive = options.non_recursive.unwrap_or_default();
            let propagation = propagation(options)?;
            if !source.starts_with('/') {
                return Err(ApiError::bad_request(format!(
                    "invalid bind mount source, must be an absolute path: {source}"
                )));
            }
            MountKind::Bind { source, propagation, non_recursive }
        }
        Some("tmpfs") => {
            let options = mount.tmpfs_options.unwrap_or_default();
            options.options.refuse("options of a tmpfs mount are")?;
            if !source.is_empty() {
                return Err(ApiError::bad_request("invalid tmpfs source, source must be empty"));
            }
            MountKind::Tmpfs { size: options.size_bytes, mode: options.mode }
        }
        Some("volume") => volume(source, mount.volume_options.unwrap_or_default())?,
        other => {
            let kind = other.unwrap_or_default();
            return Err(ApiError::bad_request(format!("invalid MountType: \"{kind}\"")));
        }
    };
    Ok(model::Mount { kind, target, read_only: mount.read_only.unwrap_or_default() })
}

fn propagation(options: wire::BindOptions) -> Result<Propagation> {
    options.create_mountpoint.refuse("CreateMountpoint of a bind mount is")?;
    options.read_only_non_recursive.refuse("ReadOnlyNonRecursive of a bind mount is")?;
    options.read_only_force_recursive.refuse("ReadOnlyForceRecursive of a bind mount is")?;
    let wanted = options.propagation.unwrap_or_default();
    if wanted.is_empty() {
        return Ok(Propagation::default());
    }
    let found = Propagation::ALL.into_iter().find(|propagation| propagation.as_str() == wanted);
    found.ok_or_else(|| ApiError::bad_request(format!("invalid propagation mode: {wanted}")))
}

/// An empty name is one of the container's own.
pub(super) fn volume(name: String, options: wire::VolumeOptions) -> Result<MountKind> {
    options.subpath.refuse("parts of a volume are")?;
    if let Some(driver) = options.driver_config {
        driver.options.refuse("options of a volume are")?;
        match driver.name.as_deref() {
            None | Some("" | super::volume::DRIVER) => {}
            Some(other) => return Err(ApiError::unsupported(format!("volume driver {other} is"))),
        }
    }
    if name.starts_with('/') {
        return Err(ApiError::bad_request(format!(
            "invalid volume mount source, must not be an absolute path: {name}"
        )));
    }
    let (labels, no_copy) = (options.labels.unwrap_or_default(), options.no_copy.unwrap_or_default());
    Ok(MountKind::Volume { name, labels, no_copy })
}

fn dns(config: wire::DnsConfig) -> Result<model::DnsConfig> {
    let nameservers = config.nameservers.unwrap_or_default();
    let nameservers = nameservers
        .iter()
        .map(|text| {
            text.parse::<IpAddr>().map_err(|_| ApiError::bad_request(format!("invalid nameserver: {text}")))
        })
        .collect::<Result<_>>()?;
    Ok(model::DnsConfig {
        nameservers,
        search: config.search.unwrap_or_default(),
        options: config.options.unwrap_or_default(),
    })
}

pub(super) fn healthcheck(check: wire::Healthcheck) -> Result<model::Healthcheck> {
    let read = |nanos: Option<i64>, what: &str| duration(nanos.unwrap_or_default(), what);
    Ok(model::Healthcheck {
        test: check.test.unwrap_or_default(),
        interval: read(check.interval, "Interval in Healthcheck")?,
        timeout: read(check.timeout, "Timeout in Healthcheck")?,
        start_period: read(check.start_period, "StartPeriod in Healthcheck")?,
        start_interval: read(check.start_interval, "StartInterval in Healthcheck")?,
        retries: check.retries.unwrap_or_default(),
    })
}

fn resources(resources: wire::Resources) -> Result<model::Resources> {
    let limits = resources.limits.unwrap_or_default();
    let reservations = resources.reservations.unwrap_or_default();
    limits.generic_resources.refuse("generic resources are")?;
    reservations.generic_resources.refuse("generic resources are")?;
    let amount = |value: Option<i64>, what: &str| {
        u64::try_from(value.unwrap_or_default())
            .map_err(|_| ApiError::bad_request(format!("invalid {what}: cannot be negative")))
    };
    Ok(model::Resources {
        limit_nano_cpus: amount(limits.nano_cpus, "cpu limit")?,
        limit_memory: amount(limits.memory_bytes, "memory limit")?,
        limit_pids: amount(limits.pids, "pids limit")?,
        reserve_nano_cpus: amount(reservations.nano_cpus, "cpu reservation")?,
        reserve_memory: amount(reservations.memory_bytes, "memory reservation")?,
    })
}

fn restart(policy: Option<wire::RestartPolicy>) -> Result<model::RestartPolicy> {
    let default = model::RestartPolicy::default();
    let Some(policy) = policy else { return Ok(default) };
    Ok(model::RestartPolicy {
        condition: match policy.condition.as_deref() {
            Some("none") => model::RestartCondition::None,
            Some("on-failure") => model::RestartCondition::OnFailure,
            None | Some("" | "any") => model::RestartCondition::Any,
            Some(other) => {
                return Err(ApiError::bad_request(format!("invalid RestartCondition: \"{other}\"")));
            }
        },
        delay: match policy.delay {
            Some(nanos) => duration(nanos, "TaskSpec: restart-delay")?,
            None => default.delay,
        },
        max_attempts: policy.max_attempts.unwrap_or_default(),
        window: duration(policy.window.unwrap_or_default(), "TaskSpec: restart-window")?,
    })
}

fn placement(placement: wire::Placement) -> Result<model::Placement> {
    let spread = placement.preferences.unwrap_or_default().into_iter().filter_map(|it| it.spread);
    Ok(model::Placement {
        constraints: placement.constraints.unwrap_or_default(),
        platforms: placement
            .platforms
            .unwrap_or_default()
            .into_iter()
            .map(|platform| (platform.architecture, platform.os))
            .collect(),
        max_replicas: placement.max_replicas.unwrap_or_default(),
        spread: spread.map(|spread| spread.spread_descriptor).collect(),
    })
}

fn log_options(driver: wire::LogDriver) -> Result<model::Labels> {
    match driver.name.as_deref() {
        None | Some("" | "json-file") => {}
        Some(other) => return Err(ApiError::unsupported(format!("log driver {other} is"))),
    }
    let options = driver.options.unwrap_or_default();
    match options.keys().find(|key| !matches!(key.as_str(), "max-size" | "max-file")) {
        Some(key) => Err(ApiError::unsupported(format!("option {key} of log driver json-file is"))),
        None => Ok(options),
    }
}

fn update(config: wire::UpdateConfig, may_roll_back: bool) -> Result<model::UpdateConfig> {
    let default = model::UpdateConfig::default();
    let failure_action = match config.failure_action.as_deref() {
        None | Some("" | "pause") => model::UpdateFailureAction::Pause,
        Some("continue") => model::UpdateFailureAction::Continue,
        Some("rollback") if may_roll_back => model::UpdateFailureAction::Rollback,
        Some(other) => {
            return Err(ApiError::bad_request(format!("unrecognized update failure action {other}")));
        }
    };
    let ratio = config.max_failure_ratio.and_then(|ratio| ratio.as_f64()).unwrap_or_default();
    if !(0.0..=1.0).contains(&ratio) {
        return Err(ApiError::bad_request("update-maxfailureratio cannot be less than 0 or bigger than 1"));
    }
    Ok(model::UpdateConfig {
        parallelism: config.parallelism.unwrap_or_default(),
        delay: duration(config.delay.unwrap_or_default(), "update-delay")?,
        failure_action,
        monitor: match config.monitor {
            Some(nanos) => duration(nanos, "update-monitor")?,
            None => default.monitor,
        },
        // Docker keeps single precision, too.
        max_failure_ratio: ratio as f32,
        order: match config.order.as_deref() {
            None | Some("" | "stop-first") => model::UpdateOrder::StopFirst,
            Some("start-first") => model::UpdateOrder::StartFirst,
            Some(other) => return Err(ApiError::bad_request(format!("unrecognized update order {other}"))),
        },
    })
}

fn endpoint(spec: wire::EndpointSpec) -> Result<model::EndpointSpec> {
    let mode = match spec.mode.as_deref() {
        None | Some("" | "vip") => model::EndpointMode::Vip,
        Some("dnsrr") => model::EndpointMode::Dnsrr,
        Some(other) => return Err(ApiError::bad_request(format!("invalid resolution mode: \"{other}\""))),
    };
    let ports = spec.ports.unwrap_or_default().into_iter().map(port).collect::<Result<_>>()?;
    Ok(model::EndpointSpec { mode, ports })
}

fn port(port: wire::PortConfig) -> Result<model::PortConfig> {
    let number = |value: Option<u32>, what: &str| {
        u16::try_from(value.unwrap_or_default())
            .map_err(|_| ApiError::bad_request(format!("invalid {what} port: {}", value.unwrap_or_default())))
    };
    let target = number(port.target_port, "target")?;
    if target == 0 {
        return Err(ApiError::bad_request("invalid target port: 0"));
    }
    Ok(model::PortConfig {
        name: port.name.unwrap_or_default(),
        protocol: match port.protocol.as_deref().map(str::to_ascii_lowercase).as_deref() {
            None | Some("" | "tcp") => model::Protocol::Tcp,
            Some("udp") => model::Protocol::Udp,
            Some("sctp") => return Err(ApiError::unsupported("publishing SCTP ports is")),
            Some(other) => return Err(ApiError::bad_request(format!("invalid protocol: \"{other}\""))),
        },
        target,
        published: number(port.published_port, "published")?,
        mode: match port.publish_mode.as_deref() {
            None | Some("" | "ingress") => model::PublishMode::Ingress,
            Some("host") => model::PublishMode::Host,
            Some(other) => return Err(ApiError::bad_request(format!("invalid publish mode: \"{other}\""))),
        },
    })
}
