//! Networks: creation and removal.

use shoal_model::{
    IdGenerator, MTU_OPTION, Meta, Network, NetworkDriver, NetworkId, NetworkSpec, NodeDriver, Object,
    ObjectKey, PARENT_OPTION, PublishMode, TaskState, check_pool,
};

use super::service::check_name;
use crate::draft::Draft;
use crate::plan::{Now, allocate_network, overlap, overlap_of};
use crate::{Code, ControlError};

/// Networks every engine has; they are no cluster networks.
const PREDEFINED: [&str; 3] = ["bridge", "host", "none"];
/// Docker's switch for encrypted VXLAN traffic.
const ENCRYPTED: &str = "encrypted";

/// Creates a network with its number and subnets.
pub(crate) fn create(
    draft: &mut Draft,
    now: Now,
    ids: &mut IdGenerator,
    spec: NetworkSpec,
) -> Result<NetworkId, ControlError> {
    check(draft, &spec)?;
    let has_subnets = spec.driver != NetworkDriver::Host;
    let id = NetworkId::new(ids.object_id());
    let network = Network { id: id.clone(), meta: Meta::new(now.wall), spec, state: None };
    draft.put(Object::Network(network));
    if has_subnets {
        allocate_network(draft, &id, ids).map_err(|error| ControlError::invalid(error.to_string()))?;
    }
    Ok(id)
}

fn check(draft: &Draft, spec: &NetworkSpec) -> Result<(), ControlError> {
    let state = draft.state();
    let taken =
        || ControlError::new(Code::AlreadyExists, format!("network with name {} already exists", spec.name));
    if spec.name.is_empty() {
        return Err(taken());
    }
    check_network_name(&spec.name)?;
    if PREDEFINED.contains(&spec.name.as_str()) || state.network_named(&spec.name).is_some() {
        return Err(taken());
    }
    if spec.ingress {
        if spec.attachable {
            return Err(ControlError::invalid("ingress network cannot be attachable"));
        }
        if let Some(present) = state.ingress_network() {
            let text = format!("ingress network ({}) is already present", present.id);
            return Err(ControlError::new(Code::AlreadyExists, text));
        }
    }
    match spec.driver.of_node() {
        None => check_overlay(spec)?,
        Some(kind) => {
            check_of_node(kind, spec)?;
            check_beside(draft, spec)?;
        }
    }
    for (index, pool) in spec.pools.iter().enumerate() {
        check_pool(pool).map_err(ControlError::invalid)?;
        let before = spec.pools.iter().take(index);
        if let Some(other) = before.map(|other| other.subnet).find(|other| overlap(*other, pool.subnet)) {
            return Err(ControlError::invalid(format!("subnet {} overlaps with {other}", pool.subnet)));
        }
        if !spec.is_shared()
            && let Some(with) = overlap_of(state, None, pool.subnet)
        {
            return Err(ControlError::invalid(format!("subnet {} overlaps with {with}", pool.subnet)));
        }
    }
    Ok(())
}

fn check_overlay(spec: &NetworkSpec) -> Result<(), ControlError> {
    match spec.options.get(ENCRYPTED).map(String::as_str) {
        None | Some("false") => {}
        Some(_) => {
            let text = "encrypted overlay networks are not supported: leave out --opt encrypted";
            return Err(ControlError::new(Code::Unimplemented, text));
        }
    }
    check_mtu(spec)
}

/// A network that ends at the node. What its configuration says, if it has one, each node looks at.
fn check_of_node(kind: NodeDriver, spec: &NetworkSpec) -> Result<(), ControlError> {
    if spec.ingress {
        let text = "Ingress network can only be global scope network";
        return Err(ControlError::new(Code::PermissionDenied, text));
    }
    let several = spec.pools.iter().filter(|pool| pool.subnet.addr().is_ipv4()).count() > 1;
    if several && kind == NodeDriver::Bridge {
        let text = "bridge driver doesn't support multiple subnets";
        return Err(ControlError::new(Code::PermissionDenied, text));
    }
    let looked_at = kind.configure(&NetworkId::new(&spec.name), &spec.options, spec.internal);
    looked_at.map(drop).map_err(ControlError::invalid)
}

/// No address is given out twice on one link.
fn check_beside(draft: &Draft, spec: &NetworkSpec) -> Result<(), ControlError> {
    let parent =
        |spec: &NetworkSpec| spec.options.get(PARENT_OPTION).filter(|parent| !parent.is_empty()).cloned();
    for other in draft.state().networks().map(|network| &network.spec) {
        if spec.config_from.is_some() && other.config_from == spec.config_from {
            let from = spec.config_from.as_deref().unwrap_or_default();
            let text = format!("configuration network {from:?} is what network {} is made from", other.name);
            return Err(ControlError::invalid(text));
        }
        let on_one_link = spec.driver == NetworkDriver::Macvlan
            && other.driver == spec.driver
            && parent(spec).is_some()
            && parent(spec) == parent(other);
        let both = spec.pools.iter().flat_map(|pool| other.pools.iter().map(move |other| (pool, other)));
        if on_one_link && both.into_iter().any(|(one, other)| overlap(one.subnet, other.subnet)) {
            let text = format!("network {} has the same addresses on the same interface", other.name);
            return Err(ControlError::invalid(text));
        }
    }
    Ok(())
}

/// Docker's engine takes network names that are no DNS labels (`my.net`): only what would not survive
/// in a path or a query is refused.
fn check_network_name(name: &str) -> Result<(), ControlError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    let begins = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if begins && name.chars().all(plain) { Ok(()) } else { check_name(name) }
}

/// The smallest packet every host must take (RFC 791), or the smallest IPv6 works with (RFC 8200 §5).
fn check_mtu(spec: &NetworkSpec) -> Result<(), ControlError> {
    let Some(text) = spec.options.get(MTU_OPTION) else { return Ok(()) };
    let min = if spec.ipv6 { 1280 } else { 576 };
    match text.parse::<u16>() {
        Ok(mtu) if mtu >= min => Ok(()),
        _ => {
            let text =
                format!("invalid {MTU_OPTION} {text:?}: it must be a number from {min} to {}", u16::MAX);
            Err(ControlError::invalid(text))
        }
    }
}

/// A network goes when nothing uses it. `Ok(false)`: tasks that are on their way out still do.
pub(crate) fn remove(draft: &mut Draft, id: &NetworkId) -> Result<bool, ControlError> {
    let state = draft.state();
    let network = state.network(id).ok_or_else(|| ControlError::not_found("network", id.as_str()))?;
    let refused = |text: String| Err(ControlError::new(Code::FailedPrecondition, text));
    let publishes = |service: &&std::sync::Arc<shoal_model::Service>| {
        service.spec.endpoint.ports.iter().any(|port| port.mode == PublishMode::Ingress)
    };
    if network.spec.ingress
        && let Some(service) = state.services().find(publishes)
    {
        let text = format!("ingress network cannot be removed because service {} depends on it", service.id);
        return refused(text);
    }
    if let Some(service) = state.network_services(id).find(|service| !service.removing) {
        return refused(format!("network {id} is in use by service {}", service.id));
    }
    let wanted = state
        .network_tasks(id)
        .find(|task| task.desired <= TaskState::Running && task.status.state <= TaskState::Running);
    if let Some(task) = wanted {
        return refused(format!("network {id} is in use by task {}", task.id));
    }
    if let Some(guest) = state.network_guests(id).find(|guest| guest.attachment(id).is_some()) {
        let on = state.node(&guest.node).map_or(guest.node.as_str(), |node| &node.description.hostname);
        return refused(format!("network {id} is in use by container {} on node {on}", guest.name));
    }
    if state.network_tasks(id).any(|task| !task.released)
        || state.network_services(id).next().is_some()
        || state.network_guests(id).next().is_some()
    {
        return Ok(false);
    }
    for node in state.nodes().cloned().collect::<Vec<_>>() {
        if node.ingress.as_ref().is_some_and(|held| held.network == *id) {
            let mut node = shoal_model::Node::clone(&node);
            node.ingress = None;
            draft.put(Object::Node(node));
        }
    }
    draft.remove(ObjectKey::Network(id.clone()));
    Ok(true)
}
