//! Subnets of networks.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// One subnet of a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressPool {
    pub subnet: IpNet,
    pub gateway: Option<IpAddr>,
    /// Addresses are taken from this part of the subnet only.
    pub range: Option<IpNet>,
    /// Addresses that are somebody else's, by the user's names for them: never given out.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub reserved: BTreeMap<String, IpAddr>,
}

impl AddressPool {
    /// A subnet of which nothing more is said.
    pub fn new(subnet: IpNet) -> Self {
        Self { subnet, gateway: None, range: None, reserved: BTreeMap::new() }
    }
}

/// A subnet as a user declares it makes sense in itself; if not, why (Docker's words).
pub fn check_pool(pool: &AddressPool) -> Result<(), String> {
    let subnet = pool.subnet;
    if subnet != subnet.trunc() {
        let text =
            format!("invalid network config:\ninvalid subnet {subnet}: it should be {}", subnet.trunc());
        return Err(text);
    }
    let host_bits = subnet.max_prefix_len() - subnet.prefix_len();
    if host_bits < 2 {
        return Err(format!("invalid subnet {subnet}: it has no room for hosts"));
    }
    let inside = |what: &str, address: IpAddr| {
        let text = format!("invalid {what}: parent subnet {subnet} doesn't contain this address");
        if subnet.contains(&address) { Ok(()) } else { Err(text) }
    };
    if let Some(gateway) = pool.gateway {
        inside(&format!("gateway {gateway}"), gateway)?;
    }
    for (name, address) in &pool.reserved {
        inside(&format!("auxiliary address {name}"), *address)?;
        if Some(*address) == pool.gateway {
            let text = format!("invalid auxiliary address {name}: {address} is the gateway's");
            return Err(text);
        }
    }
    if let Some(range) = pool.range {
        if range.prefix_len() < subnet.prefix_len() {
            let text =
                format!("invalid ip-range {range}: CIDR block is bigger than its parent subnet {subnet}");
            return Err(text);
        }
        if !subnet.contains(&range) {
            let text = format!("invalid ip-range {range}: parent subnet {subnet} doesn't contain ip-range");
            return Err(text);
        }
    }
    Ok(())
}
