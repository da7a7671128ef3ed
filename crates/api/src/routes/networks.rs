//! `/networks`.

use std::collections::{BTreeMap, BTreeSet};

use axum::Router;
use axum::extract::{FromRef, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{get, post};
use ipnet::IpNet;
use shoal_manager::{Code, ControlError, Manager, State as Picture};
use shoal_model::{Driver, Labels, Network, NetworkDriver, NetworkId, NetworkSpec, NodeId, TaskState};

use crate::body::{self, Json};
use crate::convert::network as convert;
use crate::convert::network::Here;
use crate::engine::{ClusterSide, LocalState};
use crate::error::{ApiError, NOT_A_MANAGER, Result};
use crate::filters::Filters;
use crate::query::{Name, Params};
use crate::wire::network as wire;

const FILTERS: &[&str] = &["dangling", "driver", "id", "label", "name", "scope", "type"];

pub(super) fn routes<S>() -> Router<S>
where
    S: Clone + Send + Sync + 'static,
    ClusterSide: FromRef<S>,
{
    Router::new()
        .route("/networks", get(list))
        .route("/networks/create", post(create))
        .route("/networks/prune", post(prune))
        .route("/networks/{id}", get(inspect).delete(remove))
}

async fn list(State(cluster): State<ClusterSide>, params: Params) -> Result<Response> {
    let filters = params.filters(FILTERS)?;
    let dangling = filters.flag("dangling")?;
    let mut networks = Vec::new();
    let mut used = BTreeSet::new();
    if let Some(manager) = cluster.swarm.manager() {
        let state = manager.state();
        for network in state.networks().filter(|network| !is_hidden(network)) {
            if in_use(&state, network) {
                used.insert(network.id.to_string());
            }
            networks.push(convert::cluster(network, None));
        }
    } else {
        for network in cluster.swarm.networks_here() {
            let shown = convert::on_node(&network);
            used.insert(shown.id.clone());
            networks.push(wire::Network { containers: None, peers: Vec::new(), ..shown });
        }
        let attachable = cluster.swarm.attachable_networks();
        let further: Vec<_> = attachable
            .iter()
            .filter(|network| networks.iter().all(|known| known.id != network.id.as_str()))
            .map(|network| convert::cluster(network, None))
            .collect();
        networks.extend(further);
    }
    for network in local(&cluster) {
        if network.containers.as_ref().is_some_and(|containers| !containers.is_empty()) {
            used.insert(network.id.clone());
        }
        // A list does not say who is on them.
        networks.push(wire::Network { containers: Some(BTreeMap::new()), ..network });
    }
    networks.retain(|network| {
        wanted(&filters, network)
            && dangling.is_none_or(|dangling| {
                dangling == (!convert::is_predefined(&network.name) && !used.contains(&network.id))
            })
    });
    Ok(body::ok(&networks))
}

/// Networks that only exist so that services can name this node's own.
fn is_hidden(network: &Network) -> bool {
    network.spec.labels.contains_key("com.docker.swarm.predefined")
}

fn in_use(state: &Picture, network: &Network) -> bool {
    network.spec.ingress
        || state.network_services(&network.id).next().is_some()
        || state.network_tasks(&network.id).any(|task| !task.released)
        || state.network_guests(&network.id).next().is_some()
}

/// The networks of this node itself.
pub(super) fn local(cluster: &ClusterSide) -> Vec<wire::Network> {
    let created = std::fs::metadata(&cluster.about.data_dir)
        .and_then(|data| data.created().or_else(|_| data.modified()))
        .ok()
        .and_then(|time| jiff::Timestamp::try_from(time).ok())
        .unwrap_or_default();
    let member = matches!(cluster.swarm.local_state(), LocalState::Active { .. });
    let engine = &cluster.about.id;
    let own: Vec<_> =
        cluster.swarm.local_networks().iter().map(|network| convert::of_node(network, engine)).collect();
    let mut networks = convert::predefined(engine, &crate::convert::time(created), member, gateway());
    // What is built says more.
    networks.retain(|network| own.iter().all(|built| built.name != network.name));
    networks.extend(own);
    networks
}

/// The gateway bridge's address in this node's network namespace, once the bridge is there.
fn gateway() -> Option<IpNet> {
    let interfaces = nix::ifaddrs::getifaddrs().ok()?;
    interfaces.filter(|interface| interface.interface_name == convert::GATEWAY_BRIDGE).find_map(|interface| {
        let address = interface.address?.as_sockaddr_in()?.ip();
        let mask = interface.netmask?.as_sockaddr_in()?.ip();
        IpNet::with_netmask(address.into(), mask.into()).ok()
    })
}

fn wanted(filters: &Filters, network: &wire::Network) -> bool {
    let no_labels = Labels::new();
    let kind = if convert::is_predefined(&network.name) { "builtin" } else { "custom" };
    filters.exact("driver", network.driver)
        && filters.contains("name", &network.name)
        && filters.contains("id", &network.id)
        && filters.exact("scope", network.scope)
        && filters.exact("type", kind)
        && filters.labels("label", network.labels.as_ref().unwrap_or(&no_labels))
}

async fn inspect(State(cluster): State<ClusterSide>, Name(name): Name, params: Params) -> Result<Response> {
    let scope = params.given("scope");
    if scope != Some("swarm")
        && let Some(network) = local(&cluster).into_iter().find(|network| is_named(network, &name))
    {
        return Ok(body::ok(&network));
    }
    let not_found = || ApiError::not_found(format!("network {name} not found"));
    if !matches!(scope, None | Some("swarm")) {
        return Err(not_found());
    }
    let Some(manager) = cluster.swarm.manager() else {
        return Ok(body::ok(&on_node(&cluster, &name).ok_or_else(not_found)?));
    };
    let network = manager.find_network(&name).map_err(ApiError::from_lookup)?;
    let state = manager.state();
    let mut shown = convert::cluster(&network, here(&state, &network, &cluster.swarm.local_state()));
    if params.flag("verbose") {
        shown.services = Some(services(&state, &network));
    }
    Ok(body::ok(&shown))
}

/// A worker knows the networks that its own containers are on, and those that they may join.
fn on_node(cluster: &ClusterSide, name: &str) -> Option<wire::Network> {
    let mut known: Vec<_> = cluster.swarm.networks_here().iter().map(convert::on_node).collect();
    let attachable = cluster.swarm.attachable_networks();
    known.extend(attachable.iter().map(|network| convert::cluster(network, None)));
    let exact = known.iter().position(|network| network.id == name || network.name == name);
    let prefixed = || known.iter().position(|network| is_named(network, name));
    known.get(exact.or_else(prefixed)?).cloned()
}

/// By name, id or an id prefix that is no guess.
pub(super) fn is_named(network: &wire::Network, term: &str) -> bool {
    network.name == term || network.id == term || (term.len() >= 12 && network.id.starts_with(term))
}

/// What this node has on a network: nothing (`None`) until a container of its is there.
fn here(state: &Picture, network: &Network, local: &LocalState) -> Option<Here> {
    let LocalState::Active { node, .. } = local else { return None };
    let alive = |state: TaskState| (TaskState::Preparing..=TaskState::Running).contains(&state);
    let mut endpoints = BTreeMap::new();
    let mut nodes: BTreeSet<&NodeId> = BTreeSet::new();
    for task in state.network_tasks(&network.id).filter(|task| alive(task.status.state)) {
        nodes.extend(&task.node);
        let Some(at) = task.attachments.iter().find(|at| at.network == network.id) else { continue };
        if let (Some(on), Some(container)) = (&task.node, &task.status.container)
            && on == node
        {
            endpoints.insert(container.id.to_string(), convert::endpoint(&task.name(), task.id.as_str(), at));
        }
    }
    for guest in state.network_guests(&network.id) {
        let Some(at) = guest.attachment(&network.id) else { continue };
        nodes.insert(&guest.node);
        if guest.node == *node {
            endpoints.insert(guest.id.to_string(), convert::endpoint(&guest.name, guest.id.as_str(), at));
        }
    }
    if network.spec.ingress {
        nodes.extend(state.nodes().filter(|node| node.ingress.is_some()).map(|node| &node.id));
        if let Some(at) = state.node(node).and_then(|node| node.ingress.as_ref()) {
            endpoints.insert("ingress-sbox".to_owned(), ingress_endpoint(node, at));
        }
    }
    if !nodes.contains(node) {
        return None;
    }
    let peers = nodes.into_iter().filter_map(|id| state.node(id)).map(|node| wire::Peer {
        name: node.id.short().to_owned(),
        address: node.data_path_address.to_string(),
    });
    Some(Here { endpoints: Some(endpoints), peers: peers.collect() })
}

/// The node's own place on the ingress network, under Docker's name for it.
fn ingress_endpoint(node: &NodeId, at: &shoal_model::Attachment) -> wire::Endpoint {
    wire::Endpoint {
        name: "ingress-endpoint".to_owned(),
        endpoint: convert::endpoint_id(node.as_str(), &at.network),
        mac: at.mac.to_string(),
        ipv4: at.address.to_string(),
        ipv6: at.address_v6.map(|address| address.to_string()).unwrap_or_default(),
    }
}

/// `network inspect --verbose`: every service on the network with its live tasks.
fn services(state: &Picture, network: &Network) -> BTreeMap<String, wire::ServiceInfo> {
    state
        .network_services(&network.id)
        .map(|service| {
            let vip = service.endpoint.virtual_ips.iter().find(|vip| vip.network == network.id);
            let tasks = state
                .network_tasks(&network.id)
                .filter(|task| task.service == service.id && task.is_serving())
                .filter_map(|task| {
                    let at = task.attachments.iter().find(|at| at.network == network.id)?;
                    let host = task.node.as_ref().and_then(|node| state.node(node));
                    let host = host.map(|node| node.data_path_address.to_string()).unwrap_or_default();
                    Some(wire::TaskInfo {
                        name: task.name(),
                        endpoint: convert::endpoint_id(task.id.as_str(), &network.id),
                        address: at.address.addr().to_string(),
                        info: Labels::from([("Host IP".to_owned(), host)]),
                    })
                });
            let ports = if network.spec.ingress { ports(service) } else { Vec::new() };
            let info = wire::ServiceInfo {
                vip: vip.map(|vip| vip.address.addr().to_string()).unwrap_or_default(),
                ports,
                // Docker's IPVS mark. There is no IPVS here.
                local_index: 0,
                tasks: tasks.collect(),
            };
            (service.spec.name.clone(), info)
        })
        .collect()
}

fn ports(service: &shoal_model::Service) -> Vec<String> {
    let ports = service.endpoint.ports.iter();
    ports.map(|port| format!("Target: {}, Publish: {}", port.target, port.published)).collect()
}

async fn create(State(cluster): State<ClusterSide>, Json(request): Json<wire::Create>) -> Result<Response> {
    let name = request.name.clone().unwrap_or_default();
    let taken = || ApiError::conflict(format!("network with name {name} already exists"));
    let manager = cluster.swarm.manager();
    let known =
        |manager: &Manager| manager.state().network_named(&name).is_some_and(|network| !is_hidden(network));
    let is_local = || local(&cluster).iter().any(|network| network.name == name);
    if name.is_empty() || convert::is_predefined(&name) || manager.as_ref().is_some_and(known) || is_local() {
        return Err(taken());
    }
    let id = match convert::create(request)? {
        convert::Declared::OfNode(spec) => cluster.swarm.create_local_network(spec).await?,
        convert::Declared::OfCluster(spec) => {
            let manager = manager.ok_or_else(|| no_manager(&spec, &cluster))?;
            manager.create_network(spec).await.map_err(refusal)?
        }
    };
    let created = wire::Created { id: id.to_string(), warning: String::new() };
    Ok(body::json(StatusCode::CREATED, &created))
}

/// Docker's answers where its manager is missing.
fn no_manager(spec: &NetworkSpec, cluster: &ClusterSide) -> ApiError {
    match (spec.driver, cluster.swarm.local_state()) {
        // 500 here, and 503 everywhere else without a cluster.
        (NetworkDriver::Overlay | NetworkDriver::Host, _) => ApiError::internal(NOT_A_MANAGER),
        (_, LocalState::Active { .. }) => ApiError::forbidden(
            "Cannot create a multi-host network from a worker node. Please create the network from a \
             manager node.",
        ),
        _ => ApiError::forbidden("cannot create a swarm scoped network when swarm is not active"),
    }
}

/// Docker looks at names and subnets before it asks its manager: no prefix there.
fn refusal(error: ControlError) -> ApiError {
    let looked_at = [
        "network with name ",
        "invalid network config:",
        "invalid gateway ",
        "invalid ip-range ",
        "invalid auxiliary address ",
    ];
    if looked_at.iter().any(|start| error.message.starts_with(start)) {
        ApiError::from_lookup(error)
    } else {
        ApiError::from_control(error)
    }
}

fn predefined(name: &str) -> ApiError {
    ApiError::forbidden(format!("{name} is a pre-defined network and cannot be removed"))
}

async fn remove(State(cluster): State<ClusterSide>, Name(name): Name) -> Result<Response> {
    if let Some(network) = local(&cluster).into_iter().find(|network| is_named(network, &name)) {
        if convert::is_predefined(&network.name) {
            return Err(predefined(&network.name));
        }
        cluster.swarm.remove_local_network(&NetworkId::new(&network.id)).await?;
        return Ok(body::empty(StatusCode::NO_CONTENT));
    }
    let Some(manager) = cluster.swarm.manager() else {
        return Err(match on_node(&cluster, &name) {
            Some(_) => ApiError::unavailable(NOT_A_MANAGER),
            None => ApiError::not_found(format!("network {name} not found")),
        });
    };
    let network = manager.find_network(&name).map_err(ApiError::from_lookup)?;
    if is_hidden(&network) {
        return Err(predefined(&network.spec.name));
    }
    manager.remove_network(&network.id).await.map_err(ApiError::from_control)?;
    Ok(body::empty(StatusCode::NO_CONTENT))
}

/// Removes the networks that nobody uses.
async fn prune(State(cluster): State<ClusterSide>, params: Params) -> Result<Response> {
    let filters = params.filters(&["label", "label!", "until"])?;
    if filters.values("until").next().is_some() {
        return Err(ApiError::unsupported("pruning networks by age is"));
    }
    let mut deleted = Vec::new();
    let protected = |labels: &Labels| {
        let named = filters.values("label!").next().is_some() && filters.labels("label!", labels);
        named || !filters.labels("label", labels)
    };
    for network in cluster.swarm.local_networks() {
        let config = &network.table.config;
        // Nobody is ever on a configuration: that says nothing of whether it is wanted.
        let is_configuration = config.driver == Driver::Configuration;
        if is_configuration || convert::is_predefined(&config.name) || protected(&config.shown.labels) {
            continue;
        }
        match cluster.swarm.remove_local_network(&network.table.network).await {
            Ok(()) => deleted.push(config.name.clone()),
            Err(shoal_agent::Error::NetworkInUse { .. } | shoal_agent::Error::NoSuchNetwork(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if let Some(manager) = cluster.swarm.manager() {
        let state = manager.state();
        let spared = |network: &Network| {
            is_hidden(network) || in_use(&state, network) || protected(&network.spec.labels)
        };
        for network in state.networks().filter(|network| !spared(network)) {
            match manager.remove_network(&network.id).await {
                Ok(()) => deleted.push(network.spec.name.clone()),
                // Somebody began to use it, or removed it, in this moment.
                Err(error) if matches!(error.code, Code::FailedPrecondition | Code::NotFound) => {}
                Err(error) => return Err(ApiError::from_control(error)),
            }
        }
    }
    Ok(body::ok(&wire::Pruned { deleted: Some(deleted).filter(|names| !names.is_empty()) }))
}
