//! Where a container is: its network mode, and its places on networks.

use std::collections::BTreeMap;

use shoal_agent::{ContainerNetwork, ContainerView, NetworkMode, PlainView};
use shoal_model::NetworkId;

use super::network::{endpoint_id, predefined_id};
use crate::wire::container as wire;

/// Networks that every engine has.
pub(super) const HOST: &str = "host";
pub(super) const BRIDGE: &str = "bridge";

pub(super) fn network_mode(view: &ContainerView) -> String {
    match &view.plain {
        Some(plain) => match &plain.spec.shares {
            Some(other) => format!("container:{other}"),
            None => mode(plain).to_owned(),
        },
        None if view.container.config.netns.is_some() => "default".to_owned(),
        None => HOST.to_owned(),
    }
}

/// The network of a plain container, by which it was asked for.
fn mode(plain: &PlainView) -> &str {
    match plain.spec.network {
        NetworkMode::Bridge => BRIDGE,
        NetworkMode::None => "none",
        NetworkMode::Host => HOST,
        NetworkMode::Named => plain.spec.places.first().map_or("", |place| &place.network),
        NetworkMode::Container => "container",
    }
}

pub(super) fn endpoints(
    view: &ContainerView,
    with_aliases: bool,
    engine: &str,
) -> BTreeMap<String, wire::Endpoint> {
    if view.plain.as_ref().is_some_and(|plain| plain.spec.shares.is_some()) {
        return BTreeMap::new();
    }
    if view.container.config.netns.is_none() {
        return BTreeMap::from([(HOST.to_owned(), host_endpoint(view, engine))]);
    }
    let owner = view.task.as_ref().map_or(view.container.config.id.as_str(), |task| task.as_str());
    let aliases = with_aliases.then(|| vec![view.container.config.id.short().to_owned()]);
    let mut endpoints: BTreeMap<String, wire::Endpoint> = view
        .networks
        .iter()
        .map(|network| (network.name.clone(), endpoint(owner, network, aliases.clone(), engine)))
        .collect();
    if let Some(plain) = view.plain.as_ref().filter(|_| endpoints.is_empty()) {
        endpoints.extend(without_address(plain));
    }
    endpoints
}

/// Where a plain container is that does not run, or has no address that would mean anything to others.
fn without_address(plain: &PlainView) -> Vec<(String, wire::Endpoint)> {
    match plain.spec.network {
        NetworkMode::Named | NetworkMode::Bridge => {
            let places = plain.spec.places.iter();
            places
                .map(|place| {
                    let aliases = Some(place.aliases.clone()).filter(|aliases| !aliases.is_empty());
                    (place.network.clone(), wire::Endpoint { aliases, ..wire::Endpoint::default() })
                })
                .collect()
        }
        _ => vec![(mode(plain).to_owned(), wire::Endpoint::default())],
    }
}

/// A place on the node's own network stack, which has no address of its own.
fn host_endpoint(view: &ContainerView, engine: &str) -> wire::Endpoint {
    let network = predefined_id(engine, HOST);
    wire::Endpoint {
        ipam: None,
        links: None,
        aliases: None,
        endpoint: endpoint_id(view.container.config.id.as_str(), &NetworkId::new(&network)),
        network,
        gateway: String::new(),
        ip: String::new(),
        prefix: 0,
        ipv6_gateway: String::new(),
        ipv6: String::new(),
        ipv6_prefix: 0,
        mac: String::new(),
        driver_opts: None,
    }
}

fn endpoint(
    owner: &str,
    network: &ContainerNetwork,
    aliases: Option<Vec<String>>,
    engine: &str,
) -> wire::Endpoint {
    let at = &network.attachment;
    let is_default = network.leads_out && network.name == BRIDGE;
    let gateway = |v6: bool| {
        let gateway = network.gateway.filter(|gateway| network.leads_out && gateway.is_ipv6() == v6);
        gateway.map(|gateway| gateway.to_string()).unwrap_or_default()
    };
    let aliases = match aliases.filter(|_| !is_default) {
        Some(mut names) => {
            names.splice(0..0, at.aliases.iter().cloned());
            Some(names)
        }
        None => None,
    };
    wire::Endpoint {
        ipam: Some(wire::EndpointIpam { ipv4: at.address.addr().to_string() }),
        links: None,
        aliases,
        network: if is_default { predefined_id(engine, BRIDGE) } else { at.network.to_string() },
        endpoint: endpoint_id(owner, &at.network),
        // An overlay's gateway is not a way out: Docker shows none either.
        gateway: gateway(false),
        ip: at.address.addr().to_string(),
        prefix: at.address.prefix_len(),
        ipv6_gateway: gateway(true),
        ipv6: at.address_v6.map(|address| address.addr().to_string()).unwrap_or_default(),
        ipv6_prefix: at.address_v6.map(|address| address.prefix_len()).unwrap_or_default(),
        mac: at.mac.to_string(),
        driver_opts: None,
    }
}
