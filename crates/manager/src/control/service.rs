//! Services: creation, update, rollback, removal.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use shoal_model::{
    IdGenerator, JobStatus, Meta, NetworkDriver, Object, Policy, PortConfig, Protocol, PublishMode, Service,
    ServiceEndpoint, ServiceId, ServiceMode, ServiceSpec, UpdateState, UpdateStatus, invent_name,
};
use shoal_store::State;

use super::deposit::check_references;
use super::{Created, in_sequence};
use crate::draft::Draft;
use crate::plan::{Addresses, Constraint, Now, Preference, allocate_service};
use crate::{Code, ControlError};

/// SwarmKit's bounds (`manager/controlapi/service.go`).
const NAME_MAX: usize = 63;
const NANO_CPUS_MIN: u64 = 1_000_000;
const MEMORY_MIN: u64 = 4 << 20;
/// More of one service than any cluster could carry: all of them would be made at once.
const TASKS_MAX: u64 = 1_000_000;
const HEALTH_DURATION_MIN: Duration = Duration::from_millis(1);

/// Creates a service with its virtual addresses and ports. One without a name is given one, as by Docker.
pub(crate) fn create(
    draft: &mut Draft,
    now: Now,
    ids: &mut IdGenerator,
    mut spec: ServiceSpec,
) -> Result<Created, ControlError> {
    if spec.name.is_empty() {
        spec.name = invent_name(ids, |name| draft.state().service_named(name).is_some());
    }
    check(draft.state(), &spec)?;
    if draft.state().service_named(&spec.name).is_some() {
        let name = &spec.name;
        let text = format!("name conflicts with an existing object: service {name} already exists");
        return Err(ControlError::new(Code::AlreadyExists, text));
    }
    check_ports(draft.state(), None, &spec)?;
    let job = spec.mode.is_job().then_some(JobStatus { iteration: 0, begun: now.wall });
    let service = Service {
        id: ServiceId::new(ids.object_id()),
        meta: Meta::new(now.wall),
        spec,
        previous: None,
        endpoint: ServiceEndpoint::default(),
        removing: false,
        allocation_error: String::new(),
        update_status: None,
        job,
        credentials: None,
    };
    let id = service.id.clone();
    let warnings = put(draft, service);
    Ok(Created { id, warnings })
}

/// Changes a service; warnings, if any. A job is executed anew, as by SwarmKit.
pub(crate) fn update(
    draft: &mut Draft,
    now: Now,
    id: &ServiceId,
    version: u64,
    spec: ServiceSpec,
) -> Result<Vec<String>, ControlError> {
    let held = live(draft.state(), id)?;
    in_sequence(held.meta.version, version)?;
    if held.spec.name != spec.name {
        return Err(ControlError::new(Code::Unimplemented, "renaming services is not supported"));
    }
    if std::mem::discriminant(&held.spec.mode) != std::mem::discriminant(&spec.mode) {
        return Err(ControlError::new(Code::Unimplemented, "service mode change is not allowed"));
    }
    check(draft.state(), &spec)?;
    check_ports(draft.state(), Some(id), &spec)?;
    let mut service = Service::clone(&held);
    service.update_status = None;
    service.job = service.job.map(|job| JobStatus { iteration: job.iteration + 1, begun: now.wall });
    service.previous = Some(Box::new(std::mem::replace(&mut service.spec, spec)));
    Ok(put(draft, service))
}

/// Goes back to what was declared before the last update.
pub(crate) fn rollback(
    draft: &mut Draft,
    now: Now,
    id: &ServiceId,
    version: u64,
) -> Result<Vec<String>, ControlError> {
    let held = live(draft.state(), id)?;
    let Some(previous) = &held.previous else {
        let text = format!("service {id} does not have a previous spec");
        return Err(ControlError::new(Code::FailedPrecondition, text));
    };
    let warnings = update(draft, now, id, version, ServiceSpec::clone(previous))?;
    let mut service = Service::clone(&*live(draft.state(), id)?);
    if service.job.is_some() {
        return Ok(warnings);
    }
    let status = UpdateStatus::begin(UpdateState::RollbackStarted, now.wall, "manually requested rollback");
    service.update_status = Some(status);
    draft.put(Object::Service(service));
    Ok(warnings)
}

/// Takes the service from the users' sight; its tasks and addresses follow.
pub(crate) fn remove(draft: &mut Draft, id: &ServiceId) -> Result<(), ControlError> {
    let held = live(draft.state(), id)?;
    let mut service = Service::clone(&held);
    service.removing = true;
    draft.put(Object::Service(service));
    Ok(())
}

fn live(state: &State, id: &ServiceId) -> Result<Arc<Service>, ControlError> {
    let service = state.service(id).filter(|service| !service.removing);
    service.cloned().ok_or_else(|| ControlError::not_found("service", id.as_str()))
}

fn put(draft: &mut Draft, service: Service) -> Vec<String> {
    let id = service.id.clone();
    draft.put(Object::Service(service));
    if let Some(service) = draft.state().service(&id).cloned() {
        allocate_service(draft, &service, &mut Addresses::default());
    }
    let service = draft.state().service(&id);
    // Not refused: it is tried again when something is freed.
    let error = service.map(|service| service.allocation_error.clone()).unwrap_or_default();
    if error.is_empty() { Vec::new() } else { vec![error] }
}

fn check(state: &State, spec: &ServiceSpec) -> Result<(), ControlError> {
    check_name(&spec.name)?;
    let task = &spec.task;
    if task.container.image.is_empty() {
        return Err(ControlError::invalid("ContainerSpec: image reference must be provided"));
    }
    check_mode(spec)?;
    check_resources(spec)?;
    check_health(spec)?;
    // SwarmKit returns this error without a code.
    Constraint::parse_all(&task.placement.constraints)
        .map_err(|text| ControlError::new(Code::Internal, text))?;
    Preference::parse_all(&task.placement.spread).map_err(ControlError::invalid)?;
    check_references(state, &task.container)?;
    Policy::of(&spec.labels).map_err(|error| ControlError::invalid(error.to_string()))?;
    let mut targets = BTreeSet::new();
    if let Some(mount) = task.container.mounts.iter().find(|mount| !targets.insert(&mount.target)) {
        let text = format!("ContainerSpec: duplicate mount point: {}", mount.target);
        return Err(ControlError::invalid(text));
    }
    let mut joined = BTreeSet::new();
    for target in &task.networks {
        let id = &target.network;
        let network = state.network(id).ok_or_else(|| ControlError::not_found("network", id.as_str()))?;
        if network.spec.ingress {
            let name = &network.spec.name;
            let text = format!("Service cannot be explicitly attached to the ingress network {name:?}");
            return Err(ControlError::invalid(text));
        }
        if !joined.insert(id) {
            return Err(ControlError::invalid("duplicate network attachments are not allowed"));
        }
    }
    let host = |id| state.network(id).is_some_and(|network| network.spec.driver == NetworkDriver::Host);
    if joined.len() > 1 && joined.iter().any(|id| host(*id)) {
        return Err(ControlError::invalid("the host network cannot be joined together with others"));
    }
    let ingress = |port: &PortConfig| port.mode == PublishMode::Ingress;
    if joined.iter().any(|id| host(*id)) && spec.endpoint.ports.iter().any(ingress) {
        let text =
            "ports cannot be published for tasks on the host network: they listen on their nodes themselves";
        return Err(ControlError::invalid(text));
    }
    Ok(())
}

/// The rule of a DNS name component, with SwarmKit's texts.
pub(super) fn check_name(name: &str) -> Result<(), ControlError> {
    // `^[a-zA-Z0-9](?:[-_]*[A-Za-z0-9]+)*$`
    let begins = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    let ends = name.ends_with(|c: char| c.is_ascii_alphanumeric());
    let within = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    if !(begins && ends && within) {
        return Err(ControlError::invalid("name must be valid as a DNS name component"));
    }
    if name.len() > NAME_MAX {
        return Err(ControlError::invalid("name must be 63 characters or fewer"));
    }
    Ok(())
}

/// SwarmKit's texts. What does not fit into its signed numbers was a negative one.
fn check_mode(spec: &ServiceSpec) -> Result<(), ControlError> {
    let negative = |count: u64| i64::try_from(count).is_err();
    let text = match spec.mode {
        ServiceMode::Replicated { replicas } if negative(replicas) => {
            "Number of replicas must be non-negative"
        }
        ServiceMode::ReplicatedJob { concurrent, .. } if negative(concurrent) => {
            "Maximum concurrent jobs must not be negative"
        }
        ServiceMode::ReplicatedJob { total, .. } if negative(total) => {
            "Total completed jobs must not be negative"
        }
        ServiceMode::Replicated { replicas: many } | ServiceMode::ReplicatedJob { total: many, .. }
            if many > TASKS_MAX =>
        {
            let text = format!("a service has {TASKS_MAX} tasks at most, {many} are asked for");
            return Err(ControlError::invalid(text));
        }
        mode if mode.is_job() && spec.update.is_some() => "Jobs may not have an update config",
        _ => return Ok(()),
    };
    Err(ControlError::invalid(text))
}

fn check_resources(spec: &ServiceSpec) -> Result<(), ControlError> {
    let resources = &spec.task.resources;
    for cpus in [resources.limit_nano_cpus, resources.reserve_nano_cpus] {
        if cpus != 0 && cpus < NANO_CPUS_MIN {
            let text = format!("invalid cpu value {}: Must be at least {}", cpus as f64 / 1e9, 0.001);
            return Err(ControlError::invalid(text));
        }
    }
    for memory in [resources.limit_memory, resources.reserve_memory] {
        if memory != 0 && memory < MEMORY_MIN {
            return Err(ControlError::invalid(format!(
                "invalid memory value {memory}: Must be at least 4MiB"
            )));
        }
    }
    Ok(())
}

fn check_health(spec: &ServiceSpec) -> Result<(), ControlError> {
    let Some(health) = &spec.task.container.healthcheck else { return Ok(()) };
    let durations = [
        ("Interval", health.interval),
        ("Timeout", health.timeout),
        ("StartPeriod", health.start_period),
        ("StartInterval", health.start_interval),
    ];
    for (name, duration) in durations {
        if !duration.is_zero() && duration < HEALTH_DURATION_MIN {
            let text = format!("ContainerSpec: {name} in HealthConfig cannot be less than one millisecond");
            return Err(ControlError::invalid(text));
        }
    }
    Ok(())
}

/// Port numbers, and who else holds them.
fn check_ports(state: &State, own: Option<&ServiceId>, spec: &ServiceSpec) -> Result<(), ControlError> {
    let mut published: BTreeSet<(Protocol, u16)> = BTreeSet::new();
    for port in &spec.endpoint.ports {
        if port.target == 0 {
            return Err(ControlError::invalid("EndpointSpec: a target port is missing"));
        }
        if port.published != 0 && !published.insert((port.protocol, port.published)) {
            return Err(ControlError::invalid("EndpointSpec: duplicate published ports provided"));
        }
    }
    let ingress = spec.endpoint.ports.iter().any(|port| port.mode == PublishMode::Ingress);
    if ingress && state.ingress_network().is_none() {
        let text = "service needs ingress network, but no ingress network is present";
        return Err(ControlError::new(Code::FailedPrecondition, text));
    }
    for other in state.services().filter(|other| Some(&other.id) != own) {
        // Among them the numbers that nodes have chosen for tasks of theirs.
        let chosen = state.service_tasks(&other.id).flat_map(|task| &task.status.ports);
        let held = other.endpoint.ports.iter().chain(&other.spec.endpoint.ports).chain(chosen);
        for held in held.filter(|held| held.published != 0) {
            if let Some(port) = spec.endpoint.ports.iter().find(|port| clash(port, held)) {
                let how = match held.mode {
                    PublishMode::Ingress => "an ingress port",
                    PublishMode::Host => "a host-published port",
                };
                let (number, name, id) = (port.published, &other.spec.name, &other.id);
                return Err(ControlError::invalid(format!(
                    "port '{number}' is already in use by service '{name}' ({id}) as {how}"
                )));
            }
        }
    }
    Ok(())
}

/// Two host ports do not clash here: the scheduler keeps them on different nodes.
fn clash(a: &PortConfig, b: &PortConfig) -> bool {
    let both_host = a.mode == PublishMode::Host && b.mode == PublishMode::Host;
    (a.protocol, a.published) == (b.protocol, b.published) && !both_host
}
