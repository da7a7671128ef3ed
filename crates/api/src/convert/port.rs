//! Ports of plain containers, both ways.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use shoal_agent::{Binding, ContainerView};
use shoal_model as model;
use shoal_model::Protocol;

use crate::error::{ApiError, Result};
use crate::wire::container as shown;
use crate::wire::create as wire;

/// `80/tcp`.
pub(super) fn port(text: &str) -> Result<model::Port> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => return Err(ApiError::unsupported("ports of SCTP are")),
        other => return Err(ApiError::bad_request(format!("invalid protocol: {other}"))),
    };
    let number = number.parse().ok().filter(|number| *number != 0);
    let number = number.ok_or_else(|| ApiError::bad_request(format!("invalid port: {text}")))?;
    Ok(model::Port { protocol, number })
}

/// Without a number of the node's, the node chooses one.
pub(super) fn asked(host: &wire::HostConfig) -> Result<Vec<Binding>> {
    let mut bindings = Vec::new();
    for (text, at) in host.port_bindings.iter().flatten() {
        let model::Port { protocol, number } = port(text)?;
        let at = at.clone().filter(|at| !at.is_empty()).unwrap_or_else(|| vec![wire::PortBinding::default()]);
        for wire::PortBinding { host_ip, host_port } in at {
            let (published, upto) = numbers(host_port.as_deref().unwrap_or_default())?;
            let address = match host_ip.as_deref().unwrap_or_default() {
                "" => None,
                text => Some(text.parse::<IpAddr>().map_err(|_| {
                    ApiError::bad_request(format!("invalid IP address of a published port: {text}"))
                })?),
            };
            let port = model::PortConfig {
                protocol,
                target: number,
                published,
                mode: model::PublishMode::Host,
                ..model::PortConfig::default()
            };
            let address = address.filter(|address| !address.is_unspecified());
            let binding = Binding { port, address, upto };
            // `0.0.0.0` and `::` are one here.
            if !bindings.contains(&binding) {
                bindings.push(binding);
            }
        }
    }
    Ok(bindings)
}

/// A number of the node's, a range to choose from, or (0) any.
fn numbers(text: &str) -> Result<(u16, Option<u16>)> {
    let invalid = || ApiError::bad_request(format!("invalid port specification: \"{text}\""));
    let number = |text: &str| text.parse::<u16>().map_err(|_| invalid());
    match text.split_once('-') {
        None if text.is_empty() => Ok((0, None)),
        None => Ok((number(text)?, None)),
        Some((first, last)) => {
            let (first, last) = (number(first)?, number(last)?);
            if first == 0 || last < first { Err(invalid()) } else { Ok((first, Some(last))) }
        }
    }
}

// === what is answered ===

/// The addresses of the node at which a port leads to the container; all of them are two, in Docker's words.
fn published_at(binding: &Binding) -> Vec<IpAddr> {
    binding
        .address
        .map_or_else(|| vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()], |at| vec![at])
}

pub(super) fn published(binding: &Binding) -> Vec<shown::Port> {
    let port = &binding.port;
    let at = |address: IpAddr| shown::Port {
        ip: address.to_string(),
        private_port: port.target,
        public_port: port.published,
        r#type: port.protocol.as_str(),
    };
    published_at(binding).into_iter().map(at).collect()
}

pub(super) fn bindings(view: &ContainerView) -> BTreeMap<String, Vec<shown::Binding>> {
    let mut bindings: BTreeMap<String, Vec<shown::Binding>> = BTreeMap::new();
    for held in &view.ports {
        let at = |address: IpAddr| shown::Binding {
            host_ip: address.to_string(),
            host_port: held.port.published.to_string(),
        };
        let key = format!("{}/{}", held.port.target, held.port.protocol.as_str());
        bindings.entry(key).or_default().extend(published_at(held).into_iter().map(at));
    }
    bindings
}

/// As the user asked for them.
pub(super) fn asked_bindings(view: &ContainerView) -> BTreeMap<String, Vec<shown::Binding>> {
    let mut bindings: BTreeMap<String, Vec<shown::Binding>> = BTreeMap::new();
    for held in view.plain.iter().flat_map(|plain| &plain.spec.ports) {
        let at = shown::Binding {
            host_ip: held.address.map(|address| address.to_string()).unwrap_or_default(),
            host_port: match (held.port.published, held.upto) {
                (0, _) => String::new(),
                (first, Some(last)) => format!("{first}-{last}"),
                (port, None) => port.to_string(),
            },
        };
        bindings.entry(format!("{}/{}", held.port.target, held.port.protocol.as_str())).or_default().push(at);
    }
    bindings
}
