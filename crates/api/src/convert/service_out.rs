//! [`shoal_model::Service`] → a service as Docker's clients read it.

use std::time::Duration;

use shoal_model as model;
use shoal_model::{MountKind, TaskState};

use super::deposit::{config_out, secret_out};
use super::{nanos, some, time};
use crate::wire::Version;
use crate::wire::service as wire;

/// Whether fields the user left out are shown (`?insertDefaults=true`) or stay out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Defaults {
    Insert,
    Omit,
}

pub(crate) fn service(service: &model::Service, defaults: Defaults) -> wire::Service {
    wire::Service {
        id: service.id.to_string(),
        version: Version { index: service.meta.version },
        created_at: time(service.meta.created),
        updated_at: time(service.meta.updated),
        spec: spec(&service.spec, defaults),
        previous_spec: service.previous.as_deref().map(|previous| spec(previous, defaults)),
        endpoint: endpoint(service),
        update_status: service.update_status.as_ref().map(|status| wire::UpdateStatus {
            state: status.state.as_str(),
            started_at: time(status.started),
            completed_at: status.completed.map(time),
            message: status.message.clone(),
        }),
        service_status: None,
        job_status: service.job.map(|job| wire::JobStatus {
            job_iteration: job_iteration(job.iteration),
            last_execution: time(job.begun),
        }),
    }
}

pub(crate) fn job_iteration(index: u64) -> wire::JobIteration {
    wire::JobIteration { index: Some(index).filter(|index| *index != 0) }
}

/// What `docker service ls` counts: tasks that run, tasks that should, and of a job's present execution those
/// that have done their work.
pub(crate) fn status<'a>(
    service: &model::Service,
    tasks: impl Iterator<Item = &'a model::Task>,
) -> wire::ServiceStatus {
    let (mut wanted, mut running, mut completed) = (0, 0, 0);
    let iteration = service.job.map(|job| job.iteration);
    for task in tasks.filter(|task| task.desired == TaskState::Running && task.iteration == iteration) {
        completed += u64::from(task.is_done());
        wanted += u64::from(!task.is_done());
        running += u64::from(task.status.state == TaskState::Running);
    }
    let desired_tasks = match service.spec.mode {
        model::ServiceMode::Replicated { replicas } => replicas,
        model::ServiceMode::ReplicatedJob { concurrent, .. } => concurrent,
        model::ServiceMode::Global | model::ServiceMode::GlobalJob => wanted,
    };
    wire::ServiceStatus { running_tasks: running, desired_tasks, completed_tasks: completed }
}

fn mode(mode: model::ServiceMode) -> wire::Mode {
    match mode {
        model::ServiceMode::Replicated { replicas } => wire::Mode {
            replicated: Some(wire::Replicated { replicas: Some(replicas) }),
            ..wire::Mode::default()
        },
        model::ServiceMode::Global => {
            wire::Mode { global: Some(serde_json::json!({})), ..wire::Mode::default() }
        }
        model::ServiceMode::ReplicatedJob { concurrent, total } => wire::Mode {
            replicated_job: Some(wire::ReplicatedJob {
                max_concurrent: Some(concurrent),
                total_completions: Some(total),
            }),
            ..wire::Mode::default()
        },
        model::ServiceMode::GlobalJob => {
            wire::Mode { global_job: Some(serde_json::json!({})), ..wire::Mode::default() }
        }
    }
}

pub(crate) fn spec(spec: &model::ServiceSpec, defaults: Defaults) -> wire::ServiceSpec {
    let config = |config: &Option<model::UpdateConfig>| match (config, defaults) {
        (None, Defaults::Omit) => None,
        // It would be refused when a client sends it back.
        (None, Defaults::Insert) if spec.mode.is_job() => None,
        (None, Defaults::Insert) => Some(update(&model::UpdateConfig::default())),
        (Some(config), _) => Some(update(config)),
    };
    wire::ServiceSpec {
        name: some(spec.name.clone()),
        labels: Some(spec.labels.clone()),
        task_template: Some(wire::TaskSpec {
            runtime: Some("container".to_owned()),
            ..task(&spec.task, defaults)
        }),
        mode: Some(mode(spec.mode)),
        update_config: config(&spec.update),
        rollback_config: config(&spec.rollback),
        networks: None,
        endpoint_spec: Some(endpoint_spec(&spec.endpoint)),
    }
}

/// A task's template as it stands in a task, without `Runtime`.
pub(crate) fn task(spec: &model::TaskSpec, defaults: Defaults) -> wire::TaskSpec {
    wire::TaskSpec {
        container_spec: Some(container(&spec.container, defaults)),
        resources: Some(resources(&spec.resources)),
        restart_policy: match defaults {
            Defaults::Omit if spec.restart == model::RestartPolicy::default() => None,
            _ => Some(restart(&spec.restart)),
        },
        placement: Some(placement(&spec.placement)),
        networks: some(spec.networks.iter().map(network).collect()),
        log_driver: some(spec.log_options.clone())
            .map(|options| wire::LogDriver { name: Some("json-file".to_owned()), options: Some(options) }),
        force_update: spec.force_update,
        ..wire::TaskSpec::default()
    }
}

fn network(target: &model::NetworkTarget) -> wire::NetworkTarget {
    wire::NetworkTarget {
        target: Some(target.network.to_string()),
        aliases: some(target.aliases.clone()),
        ..wire::NetworkTarget::default()
    }
}

fn container(spec: &model::ContainerSpec, defaults: Defaults) -> wire::ContainerSpec {
    let grace = match defaults {
        Defaults::Omit => spec.stop_grace_period,
        Defaults::Insert => spec.stop_grace_period.or(Some(model::DEFAULT_STOP_GRACE_PERIOD)),
    };
    wire::ContainerSpec {
        image: some(spec.image.clone()),
        labels: some(spec.labels.clone()),
        command: some(spec.command.clone()),
        args: some(spec.args.clone()),
        hostname: some(spec.hostname.clone()),
        env: some(spec.env.clone()),
        dir: some(spec.dir.clone()),
        user: some(spec.user.clone()),
        groups: some(spec.groups.clone()),
        init: spec.init,
        stop_signal: some(spec.stop_signal.clone()),
        tty: some(spec.tty),
        open_stdin: some(spec.open_stdin),
        read_only: some(spec.read_only),
        mounts: some(spec.mounts.iter().map(mount).collect()),
        stop_grace_period: grace.map(nanos),
        healthcheck: spec.healthcheck.as_ref().map(healthcheck),
        hosts: some(spec.hosts.clone()),
        dns_config: Some(wire::DnsConfig {
            nameservers: some(spec.dns.nameservers.iter().map(ToString::to_string).collect()),
            search: some(spec.dns.search.clone()),
            options: some(spec.dns.options.clone()),
        }),
        isolation: Some("default".to_owned()),
        sysctls: some(spec.sysctls.clone()),
        capability_add: some(spec.capability_add.clone()),
        capability_drop: some(spec.capability_drop.clone()),
        ulimits: some(spec.ulimits.iter().map(ulimit).collect()),
        secrets: some(spec.secrets.iter().map(secret_out).collect()),
        configs: some(spec.configs.iter().map(config_out).collect()),
        ..wire::ContainerSpec::default()
    }
}

pub(crate) fn ulimit(limit: &model::Ulimit) -> wire::Ulimit {
    wire::Ulimit { name: limit.name.clone(), hard: limit.hard, soft: limit.soft }
}

fn mount(mount: &model::Mount) -> wire::Mount {
    let mut shown = wire::Mount {
        target: Some(mount.target.clone()),
        read_only: some(mount.read_only),
        ..wire::Mount::default()
    };
    let kind = match &mount.kind {
        MountKind::Bind { source, propagation, non_recursive } => {
            shown.source = Some(source.clone());
            let options = wire::BindOptions {
                propagation: some(*propagation).map(|it| it.as_str().to_owned()),
                non_recursive: some(*non_recursive),
                ..wire::BindOptions::default()
            };
            shown.bind_options = some(options);
            "bind"
        }
        MountKind::Volume { name, labels, no_copy } => {
            shown.source = some(name.clone());
            let options = wire::VolumeOptions {
                no_copy: some(*no_copy),
                labels: some(labels.clone()),
                ..wire::VolumeOptions::default()
            };
            shown.volume_options = some(options);
            "volume"
        }
        MountKind::Tmpfs { size, mode } => {
            let options =
                wire::TmpfsOptions { size_bytes: *size, mode: *mode, ..wire::TmpfsOptions::default() };
            shown.tmpfs_options = some(options);
            "tmpfs"
        }
    };
    wire::Mount { r#type: Some(kind.to_owned()), ..shown }
}

pub(crate) fn healthcheck(check: &model::Healthcheck) -> wire::Healthcheck {
    let show = |duration: Duration| some(nanos(duration));
    wire::Healthcheck {
        test: some(check.test.clone()),
        interval: show(check.interval),
        timeout: show(check.timeout),
        start_period: show(check.start_period),
        start_interval: show(check.start_interval),
        retries: some(check.retries),
    }
}

fn resources(resources: &model::Resources) -> wire::Resources {
    let show = |value: u64| some(i64::try_from(value).unwrap_or(i64::MAX));
    wire::Resources {
        limits: Some(wire::ResourceAmounts {
            nano_cpus: show(resources.limit_nano_cpus),
            memory_bytes: show(resources.limit_memory),
            pids: show(resources.limit_pids),
            ..wire::ResourceAmounts::default()
        }),
        reservations: Some(wire::ResourceAmounts {
            nano_cpus: show(resources.reserve_nano_cpus),
            memory_bytes: show(resources.reserve_memory),
            ..wire::ResourceAmounts::default()
        }),
    }
}

fn restart(policy: &model::RestartPolicy) -> wire::RestartPolicy {
    let condition = match policy.condition {
        model::RestartCondition::None => "none",
        model::RestartCondition::OnFailure => "on-failure",
        model::RestartCondition::Any => "any",
    };
    wire::RestartPolicy {
        condition: Some(condition.to_owned()),
        delay: Some(nanos(policy.delay)),
        max_attempts: Some(policy.max_attempts),
        window: some(nanos(policy.window)),
    }
}

fn placement(placement: &model::Placement) -> wire::Placement {
    let platforms = placement.platforms.iter();
    let platforms = platforms
        .map(|(architecture, os)| wire::Platform { architecture: architecture.clone(), os: os.clone() });
    let spread = placement
        .spread
        .iter()
        .cloned()
        .map(|spread_descriptor| wire::Preference { spread: Some(wire::Spread { spread_descriptor }) });
    wire::Placement {
        constraints: some(placement.constraints.clone()),
        preferences: some(spread.collect()),
        max_replicas: some(placement.max_replicas),
        platforms: some(platforms.collect()),
    }
}

fn update(config: &model::UpdateConfig) -> wire::UpdateConfig {
    let action = match config.failure_action {
        model::UpdateFailureAction::Pause => "pause",
        model::UpdateFailureAction::Continue => "continue",
        model::UpdateFailureAction::Rollback => "rollback",
    };
    let order = match config.order {
        model::UpdateOrder::StopFirst => "stop-first",
        model::UpdateOrder::StartFirst => "start-first",
    };
    wire::UpdateConfig {
        parallelism: Some(config.parallelism),
        delay: some(nanos(config.delay)),
        failure_action: Some(action.to_owned()),
        monitor: some(nanos(config.monitor)),
        max_failure_ratio: Some(ratio(config.max_failure_ratio)),
        order: Some(order.to_owned()),
    }
}

/// `0.2` for what single precision holds as 0.200000003, and `0` without a decimal point, as Go.
fn ratio(value: f32) -> serde_json::Number {
    let shortest = value.to_string().parse().ok().filter(|&value: &f64| value != 0.0);
    shortest.and_then(serde_json::Number::from_f64).unwrap_or_else(|| serde_json::Number::from(0))
}

pub(crate) fn endpoint_spec(spec: &model::EndpointSpec) -> wire::EndpointSpec {
    let mode = match spec.mode {
        model::EndpointMode::Vip => "vip",
        model::EndpointMode::Dnsrr => "dnsrr",
    };
    wire::EndpointSpec { mode: Some(mode.to_owned()), ports: some(spec.ports.iter().map(port).collect()) }
}

pub(crate) fn port(port: &model::PortConfig) -> wire::PortConfig {
    let mode = match port.mode {
        model::PublishMode::Ingress => "ingress",
        model::PublishMode::Host => "host",
    };
    wire::PortConfig {
        name: some(port.name.clone()),
        protocol: Some(port.protocol.as_str().to_owned()),
        target_port: some(u32::from(port.target)),
        published_port: some(u32::from(port.published)),
        publish_mode: Some(mode.to_owned()),
    }
}

/// `{"Spec":{}}` for a service that has been given nothing: Docker shows the endpoint's spec only
/// once there is something to reach.
fn endpoint(service: &model::Service) -> wire::Endpoint {
    let given = &service.endpoint;
    let allocated = !given.virtual_ips.is_empty() || !given.ports.is_empty();
    let virtual_ips = given.virtual_ips.iter();
    let virtual_ips = virtual_ips
        .map(|vip| wire::VirtualIp { network: vip.network.to_string(), address: vip.address.to_string() });
    wire::Endpoint {
        spec: if allocated { endpoint_spec(&service.spec.endpoint) } else { wire::EndpointSpec::default() },
        ports: some(given.ports.iter().map(port).collect()),
        virtual_ips: Some(virtual_ips.collect::<Vec<_>>()).filter(|list| !list.is_empty()),
    }
}
