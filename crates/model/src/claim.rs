//! Unique things. Each is a key of its own in the store, created in the same commit as the object
//! that claims it, so that uniqueness holds whatever the code above does.

use std::fmt;
use std::net::IpAddr;

use crate::{DepositKind, NetworkId, Object, Protocol, PublishMode};

/// Something only one object may hold.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Claim {
    /// Names are compared in lower case, as SwarmKit indexes them.
    ServiceName(String),
    NetworkName(String),
    DepositName(DepositKind, String),
    /// An ingress port.
    Port(Protocol, u16),
    Address(NetworkId, IpAddr),
    Subnet(ipnet::IpNet),
    Vni(u32),
}

impl fmt::Display for Claim {
    /// The key in the store.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ServiceName(name) => write!(f, "claim/name/service/{name}"),
            Self::NetworkName(name) => write!(f, "claim/name/network/{name}"),
            Self::DepositName(kind, name) => write!(f, "claim/name/{kind}/{name}"),
            Self::Port(protocol, port) => write!(f, "claim/port/{}/{port}", protocol.as_str()),
            Self::Address(network, address) => write!(f, "claim/addr/{network}/{address}"),
            Self::Subnet(subnet) => write!(f, "claim/subnet/{subnet}"),
            Self::Vni(vni) => write!(f, "claim/vni/{vni}"),
        }
    }
}

/// Everything an object claims for itself, in order and without repetition.
pub fn claims(object: &Object) -> Vec<Claim> {
    let mut claims = match object {
        Object::Cluster(_) => Vec::new(),
        Object::Node(node) => node.ingress.iter().flat_map(attachment_claims).collect(),
        Object::Network(network) => {
            let mut claims = vec![Claim::NetworkName(network.spec.name.to_lowercase())];
            if let Some(state) = &network.state {
                claims.push(Claim::Vni(state.vni));
                for pool in &state.pools {
                    if !network.spec.is_shared() {
                        claims.push(Claim::Subnet(pool.subnet));
                    }
                    let held = pool.gateway.iter().chain(pool.reserved.values());
                    claims.extend(held.map(|address| Claim::Address(network.id.clone(), *address)));
                }
                let resting = state.resting.iter();
                claims.extend(resting.map(|resting| Claim::Address(network.id.clone(), resting.address)));
            }
            claims
        }
        Object::Service(service) => {
            let mut claims = Vec::new();
            for vip in &service.endpoint.virtual_ips {
                claims.push(Claim::Address(vip.network.clone(), vip.address.addr()));
            }
            // A removed service's name and ports are free at once; its addresses when it is gone.
            if service.removing {
                return claims;
            }
            claims.push(Claim::ServiceName(service.spec.name.to_lowercase()));
            for port in &service.endpoint.ports {
                if port.mode == PublishMode::Ingress && port.published != 0 {
                    claims.push(Claim::Port(port.protocol, port.published));
                }
            }
            claims
        }
        Object::Task(task) if task.released => Vec::new(),
        Object::Task(task) => task.attachments.iter().flat_map(attachment_claims).collect(),
        Object::Deposit(deposit) => {
            vec![Claim::DepositName(deposit.spec.kind, deposit.spec.name.to_lowercase())]
        }
        Object::Guest(guest) => {
            guest.attachments.iter().chain(&guest.leaving).flat_map(attachment_claims).collect()
        }
    };
    claims.sort();
    claims.dedup();
    claims
}

fn attachment_claims(attachment: &crate::Attachment) -> impl Iterator<Item = Claim> {
    let network = attachment.network.clone();
    [Some(attachment.address), attachment.address_v6]
        .into_iter()
        .flatten()
        .map(move |address| Claim::Address(network.clone(), address.addr()))
}
