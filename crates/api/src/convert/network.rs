//! Networks, both ways.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use shoal_agent::{LocalSpec, NodeEndpoint, NodeNetwork};
use shoal_model as model;
use shoal_model::{Labels, NetworkDriver, NetworkTable, NodeDriver};

use super::identity::derived_id;
use super::time;
use crate::error::{ApiError, Result};
use crate::wire::network as wire;

/// The key under which Docker shows an overlay's VXLAN identifiers.
const VXLAN_IDS: &str = "com.docker.network.driver.overlay.vxlanid_list";

pub(crate) fn driver(driver: NetworkDriver) -> &'static str {
    match driver {
        NetworkDriver::Overlay => "overlay",
        NetworkDriver::Host => "host",
        NetworkDriver::Bridge => "bridge",
        NetworkDriver::Macvlan => "macvlan",
    }
}

/// A network as a client declares it.
#[derive(Debug)]
pub(crate) enum Declared {
    /// Names and overlaps are the manager's business.
    OfCluster(model::NetworkSpec),
    /// They are the node's.
    OfNode(LocalSpec),
}

pub(crate) fn create(request: wire::Create) -> Result<Declared> {
    check_configuration(&request)?;
    if request.config_only == Some(true) {
        return local(request, None).map(Declared::OfNode);
    }
    let kind = match request.driver.as_deref() {
        Some("overlay") => return overlay(request).map(Declared::OfCluster),
        None | Some("" | "bridge") => NodeDriver::Bridge,
        Some("macvlan") => NodeDriver::Macvlan,
        Some("ipvlan") => {
            return Err(ApiError::unsupported_but(
                "networks with driver ipvlan are",
                "create one with --driver macvlan",
            ));
        }
        Some(only @ ("host" | "null")) => {
            return Err(ApiError::forbidden(format!("only one instance of \"{only}\" network is allowed")));
        }
        Some(other) => return Err(ApiError::not_found(format!("plugin \"{other}\" not found"))),
    };
    match request.scope.as_deref() {
        None | Some("" | "local") => local(request, Some(kind)).map(Declared::OfNode),
        Some("swarm") => of_cluster(request, kind).map(Declared::OfCluster),
        Some(other) => Err(ApiError::bad_request(format!("invalid network scope {other:?}"))),
    }
}

/// What may be said of configurations and of what is made from them (libnetwork's `validateConfiguration`).
fn check_configuration(request: &wire::Create) -> Result<()> {
    let is_set = |flag: Option<bool>| flag == Some(true);
    let says = |map: &Option<BTreeMap<String, String>>| map.as_ref().is_some_and(|map| !map.is_empty());
    let scoped = request.scope.as_ref().is_some_and(|scope| !scope.is_empty());
    let runs = [request.ingress, request.internal, request.attachable].into_iter().any(is_set) || scoped;
    if is_set(request.config_only) && runs {
        return Err(ApiError::forbidden(
            "configuration network can only contain network specific fields. Network operator fields like \
             [ ingress | internal | attachable | scope ] are not supported.",
        ));
    }
    if config_from(request).is_none() {
        return Ok(());
    }
    if is_set(request.config_only) {
        return Err(ApiError::forbidden(
            "a configuration network cannot depend on another configuration network",
        ));
    }
    let subnets = request.ipam.as_ref().and_then(|ipam| ipam.config.as_ref());
    if is_set(request.enable_ipv6) || says(&request.labels) || subnets.is_some_and(|all| !all.is_empty()) {
        return Err(ApiError::forbidden(
            "user specified configurations are not supported if the network depends on a configuration network",
        ));
    }
    if says(&request.options) {
        return Err(ApiError::forbidden(
            "network driver options are not supported if the network depends on a configuration network",
        ));
    }
    Ok(())
}

fn config_from(request: &wire::Create) -> Option<String> {
    request.config_from.as_ref().map(|from| from.network.clone()).filter(|from| !from.is_empty())
}

fn overlay(request: wire::Create) -> Result<model::NetworkSpec> {
    match request.scope.as_deref() {
        None | Some("" | "swarm") => {}
        // Docker's text.
        Some(_) => return Err(ApiError::forbidden("cannot downgrade network scope for overlay networks")),
    }
    if config_from(&request).is_some() {
        return Err(ApiError::unsupported("overlay networks made from a node's configuration are"));
    }
    check_options(request.options.as_ref())?;
    swarm(request, NetworkDriver::Overlay)
}

/// A network that ends at the node, on every node that has a task on it.
fn of_cluster(request: wire::Create, kind: NodeDriver) -> Result<model::NetworkSpec> {
    let driver = match kind {
        NodeDriver::Bridge => NetworkDriver::Bridge,
        NodeDriver::Macvlan => NetworkDriver::Macvlan,
    };
    swarm(request, driver)
}

fn swarm(request: wire::Create, driver: NetworkDriver) -> Result<model::NetworkSpec> {
    if request.enable_ipv4 == Some(false) {
        return Err(ApiError::bad_request("IPv4 cannot be disabled in a Swarm scoped network"));
    }
    let config_from = config_from(&request);
    Ok(model::NetworkSpec {
        name: request.name.unwrap_or_default(),
        labels: request.labels.unwrap_or_default(),
        driver,
        options: request.options.unwrap_or_default(),
        internal: request.internal.unwrap_or_default(),
        attachable: request.attachable.unwrap_or_default(),
        ingress: request.ingress.unwrap_or_default(),
        ipv6: request.enable_ipv6.unwrap_or_default(),
        pools: pools(request.ipam.unwrap_or_default())?,
        config_from,
    })
}

fn local(request: wire::Create, driver: Option<NodeDriver>) -> Result<LocalSpec> {
    if request.ingress == Some(true) {
        return Err(ApiError::bad_request("ingress network must use the overlay driver"));
    }
    if request.enable_ipv4 == Some(false) {
        return Err(ApiError::unsupported("networks without IPv4 are"));
    }
    let config_from = config_from(&request);
    let pools = pools(request.ipam.unwrap_or_default())?;
    pools.iter().try_for_each(|pool| model::check_pool(pool).map_err(ApiError::bad_request))?;
    Ok(LocalSpec {
        name: request.name.unwrap_or_default(),
        driver,
        config_from,
        pools,
        ipv6: request.enable_ipv6.unwrap_or_default(),
        internal: request.internal.unwrap_or_default(),
        attachable: request.attachable.unwrap_or_default(),
        options: request.options.unwrap_or_default(),
        labels: request.labels.unwrap_or_default(),
    })
}

fn pools(ipam: wire::IpamIn) -> Result<Vec<model::AddressPool>> {
    ipam.options.refuse("IPAM driver options are")?;
    match ipam.driver.as_deref() {
        None | Some("" | "default") => {}
        Some(other) => return Err(ApiError::unsupported(format!("IPAM driver {other} is"))),
    }
    ipam.config.unwrap_or_default().into_iter().filter_map(|config| pool(config).transpose()).collect()
}

/// Encryption that is asked for and not there must never end in clear text.
fn check_options(options: Option<&Labels>) -> Result<()> {
    match options
        .and_then(|options| options.get("encrypted"))
        .map(|value| value.to_ascii_lowercase())
        .as_deref()
    {
        None | Some("false" | "0") => Ok(()),
        Some(_) => Err(ApiError::unsupported("encrypted overlay networks are")),
    }
}

fn pool(config: wire::IpamConfigIn) -> Result<Option<model::AddressPool>> {
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let (range, gateway) = (given(config.ip_range), given(config.gateway));
    let reserved = config.reserved.unwrap_or_default();
    let Some(subnet) = given(config.subnet) else {
        if range.is_some() || gateway.is_some() || !reserved.is_empty() {
            return Err(ApiError::bad_request("every ip-range or gateway must have a corresponding subnet"));
        }
        return Ok(None);
    };
    Ok(Some(model::AddressPool {
        subnet: cidr(&subnet, "subnet")?,
        gateway: gateway.map(|text| address(&text, "gateway")).transpose()?,
        reserved: reserved
            .into_iter()
            .map(|(name, text)| Ok((name, address(&text, "auxiliary address")?)))
            .collect::<Result<_>>()?,
        range: range.map(|text| cidr(&text, "ip-range")).transpose()?,
    }))
}

fn cidr(text: &str, what: &str) -> Result<IpNet> {
    text.parse()
        .map_err(|_| ApiError::bad_request(format!("Invalid {what} {text} : invalid CIDR address: {text}")))
}

fn address(text: &str, what: &str) -> Result<IpAddr> {
    text.parse().map_err(|_| ApiError::bad_request(format!("invalid {what} {text}: invalid IP address")))
}

// === what is answered ===

/// A network of the cluster. `here` is what this node has of it, and `None` when it has nothing.
pub(crate) fn cluster(network: &model::Network, here: Option<Here>) -> wire::Network {
    let labels = network.spec.labels.clone();
    let has_subnets = network.spec.driver != NetworkDriver::Host;
    let pools = network.state.as_ref().map_or(&network.spec.pools, |state| &state.pools);
    let Here { endpoints, peers } = match here {
        Some(here) => here,
        None => Here { endpoints: None, peers: Vec::new() },
    };
    wire::Network {
        name: network.spec.name.clone(),
        id: network.id.to_string(),
        created: time(network.meta.created),
        scope: "swarm",
        driver: driver(network.spec.driver),
        enable_ipv6: network.spec.ipv6,
        ipam: wire::Ipam {
            driver: if has_subnets { "default" } else { "" },
            options: None,
            config: Some(pools.iter().map(subnet_config).collect()),
        },
        internal: network.spec.internal,
        attachable: network.spec.attachable,
        ingress: network.spec.ingress,
        config_from: made_from(network.spec.config_from.as_ref()),
        config_only: false,
        labels: Some(labels).filter(|labels| endpoints.is_some() || !labels.is_empty()),
        containers: endpoints,
        options: swarm_options(network),
        peers,
        services: None,
    }
}

/// A network of this node alone. The default one has the id that it has before it is built, too.
pub(crate) fn of_node(network: &NodeNetwork, engine: &str) -> wire::Network {
    let config = &network.table.config;
    let is_default = is_predefined(&config.name);
    let own = |at: &NodeEndpoint| (at.container.to_string(), endpoint(&at.name, &at.owner, &at.attachment));
    wire::Network {
        name: config.name.clone(),
        id: if is_default { predefined_id(engine, &config.name) } else { network.table.network.to_string() },
        created: time(config.shown.created.unwrap_or_default()),
        scope: "local",
        driver: config.driver.as_str(),
        enable_ipv6: config.pools.iter().any(|pool| pool.subnet.addr().is_ipv6()),
        ipam: wire::Ipam {
            driver: "default",
            options: (!is_default).then(Labels::new),
            config: Some(config.pools.iter().map(subnet_config).collect()),
        },
        internal: config.internal,
        attachable: config.shown.attachable,
        ingress: false,
        config_from: made_from(config.config_from.as_ref()),
        config_only: config.driver == model::Driver::Configuration,
        containers: Some(network.endpoints.iter().map(own).collect()),
        options: Some(config.shown.options.clone()),
        labels: Some(config.shown.labels.clone()),
        peers: Vec::new(),
        services: None,
    }
}

/// A network of the cluster as a node tells of it that is no manager: from its table.
pub(crate) fn on_node(network: &NodeNetwork) -> wire::Network {
    let NetworkTable { config, nodes, .. } = &*network.table;
    let mut options = config.shown.options.clone();
    if config.is_overlay() {
        options.insert(VXLAN_IDS.to_owned(), config.vni.to_string());
    }
    let own = |at: &NodeEndpoint| (at.container.to_string(), endpoint(&at.name, &at.owner, &at.attachment));
    let peer = |(id, node): (&model::NodeId, &model::NodeEntry)| wire::Peer {
        name: id.short().to_owned(),
        address: node.data_path_address.to_string(),
    };
    wire::Network {
        name: config.name.clone(),
        id: network.table.network.to_string(),
        created: time(config.shown.created.unwrap_or_default()),
        scope: "swarm",
        driver: config.driver.as_str(),
        enable_ipv6: config.pools.iter().any(|pool| pool.subnet.addr().is_ipv6()),
        ipam: wire::Ipam {
            driver: "default",
            options: None,
            config: Some(config.pools.iter().map(subnet_config).collect()),
        },
        internal: config.internal,
        attachable: config.shown.attachable,
        ingress: config.ingress,
        config_from: made_from(config.config_from.as_ref()),
        config_only: false,
        containers: Some(network.endpoints.iter().map(own).collect()),
        options: Some(options),
        labels: Some(config.shown.labels.clone()),
        peers: nodes.iter().map(peer).collect(),
        services: None,
    }
}

fn made_from(configuration: Option<&String>) -> wire::ConfigFrom {
    wire::ConfigFrom { network: configuration.cloned().unwrap_or_default() }
}

/// What a node has of a cluster's network.
#[derive(Debug, Clone)]
pub(crate) struct Here {
    /// By container id.
    pub(crate) endpoints: Option<BTreeMap<String, wire::Endpoint>>,
    pub(crate) peers: Vec<wire::Peer>,
}

pub(crate) fn subnet_config(pool: &model::AddressPool) -> wire::IpamConfig {
    wire::IpamConfig {
        subnet: pool.subnet.to_string(),
        ip_range: pool.range.map(|range| range.to_string()),
        gateway: pool.gateway.map(|gateway| gateway.to_string()),
        reserved: reserved(pool),
    }
}

fn reserved(pool: &model::AddressPool) -> Option<Labels> {
    let reserved = pool.reserved.iter().map(|(name, address)| (name.clone(), address.to_string()));
    Some(reserved.collect::<Labels>()).filter(|reserved| !reserved.is_empty())
}

/// The user's options and, once it has one, the network's VXLAN identifier.
pub(crate) fn swarm_options(network: &model::Network) -> Option<Labels> {
    if network.spec.driver == NetworkDriver::Host {
        return None;
    }
    let mut options = network.spec.options.clone();
    if let Some(state) = network.state.as_ref().filter(|_| network.spec.driver == NetworkDriver::Overlay) {
        options.insert(VXLAN_IDS.to_owned(), state.vni.to_string());
    }
    Some(options)
}

/// The place of a container, by its name, on a network, as the network's `Containers` shows it. `owner`
/// is the task or the plain container.
pub(crate) fn endpoint(name: &str, owner: &str, at: &model::Attachment) -> wire::Endpoint {
    wire::Endpoint {
        name: name.to_owned(),
        endpoint: endpoint_id(owner, &at.network),
        mac: at.mac.to_string(),
        ipv4: at.address.to_string(),
        ipv6: at.address_v6.map(|address| address.to_string()).unwrap_or_default(),
    }
}

/// Docker gives each endpoint an id of its own; ours is named by its task and network.
pub(crate) fn endpoint_id(owner: &str, network: &model::NetworkId) -> String {
    derived_id(&["endpoint", owner, network.as_str()])
}

/// The id of a network that every engine has.
pub(crate) fn predefined_id(engine_id: &str, name: &str) -> String {
    derived_id(&["network", engine_id, name])
}

/// The networks every engine has. They belong to this node, and cannot be changed.
///
/// The gateway bridge is shown to members of a cluster; it has a subnet once it is built, with the first
/// container that needs it.
pub(crate) fn predefined(
    engine_id: &str,
    created: &str,
    member: bool,
    gateway: Option<IpNet>,
) -> Vec<wire::Network> {
    let local = |name: &str, driver: &'static str| wire::Network {
        name: name.to_owned(),
        id: predefined_id(engine_id, name),
        created: created.to_owned(),
        scope: "local",
        driver,
        enable_ipv6: false,
        ipam: wire::Ipam { driver: "default", options: None, config: Some(Vec::new()) },
        internal: false,
        attachable: false,
        ingress: false,
        config_from: wire::ConfigFrom::default(),
        config_only: false,
        containers: Some(BTreeMap::new()),
        options: Some(Labels::new()),
        labels: Some(Labels::new()),
        peers: Vec::new(),
        services: None,
    };
    let mut networks = vec![local("bridge", "bridge")];
    if member || gateway.is_some() {
        let config = gateway.map(|gateway| wire::IpamConfig {
            subnet: gateway.trunc().to_string(),
            ip_range: None,
            gateway: Some(gateway.addr().to_string()),
            reserved: None,
        });
        networks.push(wire::Network {
            ipam: wire::Ipam { driver: "default", options: None, config: Some(config.into_iter().collect()) },
            options: Some(Labels::from([
                ("com.docker.network.bridge.enable_ip_masquerade".to_owned(), "true".to_owned()),
                ("com.docker.network.bridge.name".to_owned(), GATEWAY_BRIDGE.to_owned()),
            ])),
            ..local("docker_gwbridge", "bridge")
        });
    }
    networks.push(local("none", "null"));
    networks.push(local("host", "host"));
    networks
}

/// The bridge through which this node's containers reach the world.
pub(crate) const GATEWAY_BRIDGE: &str = "shoal-gw";

/// Names that belong to [`predefined`] networks.
pub(crate) fn is_predefined(name: &str) -> bool {
    matches!(name, "bridge" | "docker_gwbridge" | "host" | "none")
}
