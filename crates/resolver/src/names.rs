//! The names of one network, ready to be asked.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};
use shoal_model::{EndpointEntry, NetworkId, NetworkTable, ServiceEntry, TableVersion};

/// Seconds a client may keep a virtual address: it lives as long as its service.
const VIP_TTL: u32 = 10;
/// Seconds a client may keep a list of tasks: it changes with every task.
pub(crate) const TASKS_TTL: u32 = 2;

/// What the resolver knows of one network. Look-ups take constant time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    pub network: NetworkId,
    /// The table version these names were derived from.
    pub version: TableVersion,
    /// The network's own name in lower case, the suffix of `<name>.<network>`.
    suffix: String,
    /// By lower-cased name without a trailing dot.
    entries: HashMap<String, Entry>,
    /// The primary name of each address, network name included; `None` for an address that is ours
    /// but has no name now.
    pointers: HashMap<IpAddr, Option<String>>,
}

/// The addresses behind one name. No address at all is a name with nobody behind it now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub v4: Vec<Ipv4Addr>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub v6: Vec<Ipv6Addr>,
    /// Seconds.
    pub ttl: u32,
}

impl Names {
    /// A network nothing is known of yet.
    pub fn unknown(network: NetworkId) -> Self {
        Self {
            network,
            version: TableVersion::default(),
            suffix: String::new(),
            entries: HashMap::new(),
            pointers: HashMap::new(),
        }
    }

    /// Everything that resolves on the table's network. The ingress network has no names.
    pub fn from_table(table: &NetworkTable) -> Self {
        let mut names = Self::unknown(table.network.clone());
        names.version = table.version;
        names.suffix = table.config.name.to_ascii_lowercase();
        if !table.config.ingress {
            for endpoint in table.endpoints.values() {
                names.add_endpoint(endpoint, &table.config.name);
            }
            for service in table.services.values() {
                names.add_service(service, table);
            }
            names.add_all(table);
        }
        names
    }

    /// Nobody has fed a table of this network.
    pub fn is_unknown(&self) -> bool {
        self.suffix.is_empty()
    }

    /// The network's own name in lower case.
    pub fn suffix(&self) -> &str {
        &self.suffix
    }

    #[cfg(test)]
    pub(crate) fn set_suffix(&mut self, suffix: &str) {
        self.suffix = suffix.to_owned();
    }

    /// The entry of a lower-cased name.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// The primary name of an address: `None` when the address is not of this network's endpoints,
    /// `Some(None)` when it has no name now.
    pub fn pointer(&self, address: IpAddr) -> Option<Option<&str>> {
        self.pointers.get(&address).map(Option::as_deref)
    }

    /// A number that tells whether two of these say the same, whatever process asks. Not for keeping:
    /// another build may reckon differently.
    pub fn digest(&self) -> u64 {
        let entries = self.entries.iter().map(|(name, entry)| {
            let Entry { v4, v6, ttl } = entry;
            fnv(format!("{name} {v4:?} {v6:?} {ttl}").as_bytes())
        });
        let pointers =
            self.pointers.iter().map(|(address, name)| fnv(format!("{address} {name:?}").as_bytes()));
        // A sum, since maps have no order.
        entries.chain(pointers).fold(fnv(self.suffix.as_bytes()), u64::wrapping_add)
    }

    /// How many names resolve.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn add_endpoint(&mut self, endpoint: &EndpointEntry, network: &str) {
        let own = addresses(endpoint);
        let primary = endpoint.names.first().map(|name| format!("{name}.{network}"));
        for address in &own {
            self.pointers.insert(*address, primary.clone());
        }
        for name in &endpoint.names {
            self.add(name, &own, TASKS_TTL);
        }
    }

    fn add_service(&mut self, service: &ServiceEntry, table: &NetworkTable) {
        let backends: Vec<IpAddr> =
            service.backends.iter().filter_map(|id| table.endpoints.get(id)).flat_map(addresses).collect();
        let vips: Vec<IpAddr> = service.vip.into_iter().chain(service.vip_v6).collect();
        for vip in &vips {
            self.pointers.insert(*vip, Some(format!("{}.{}", service.name, table.config.name)));
        }
        let (own, ttl) = if vips.is_empty() { (&backends, TASKS_TTL) } else { (&vips, VIP_TTL) };
        for name in std::iter::once(&service.name).chain(&service.aliases) {
            self.add(name, own, ttl);
            self.add(&format!("tasks.{name}"), &backends, TASKS_TTL);
        }
    }

    /// `all.<name>`: every task of the service, also one that is not healthy yet. After everything else: a name that
    /// somebody has wins.
    fn add_all(&mut self, table: &NetworkTable) {
        let of = |service: &'_ ServiceEntry| {
            let tasks = service.backends.iter().chain(&service.others);
            let all: Vec<IpAddr> =
                tasks.filter_map(|id| table.endpoints.get(id)).flat_map(addresses).collect();
            let names = std::iter::once(&service.name).chain(&service.aliases);
            names.map(|name| (format!("all.{name}"), all.clone())).collect::<Vec<_>>()
        };
        let own = table.services.values().flat_map(of);
        let free: Vec<_> =
            own.filter(|(name, _)| !self.entries.contains_key(&name.to_ascii_lowercase())).collect();
        for (name, all) in free {
            self.add(&name, &all, TASKS_TTL);
        }
    }

    /// Several holders of one name are answered together, without repetition.
    pub(crate) fn add(&mut self, name: &str, addresses: &[IpAddr], ttl: u32) {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        if name.is_empty() {
            return;
        }
        let entry = self.entries.entry(name).or_insert(Entry { v4: Vec::new(), v6: Vec::new(), ttl });
        entry.ttl = entry.ttl.min(ttl);
        for address in addresses {
            match address {
                IpAddr::V4(v4) => insert_sorted(&mut entry.v4, *v4),
                IpAddr::V6(v6) => insert_sorted(&mut entry.v6, *v6),
            }
        }
    }
}

/// FNV-1a, 64 bits.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

fn insert_sorted<T: Ord>(list: &mut Vec<T>, item: T) {
    if let Err(place) = list.binary_search(&item) {
        list.insert(place, item);
    }
}

fn addresses(endpoint: &EndpointEntry) -> Vec<IpAddr> {
    std::iter::once(&endpoint.address).chain(&endpoint.address_v6).map(|net| net.addr()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(addresses: &[(&str, &str)]) -> Names {
        let mut names = Names::unknown(NetworkId::new("n1"));
        names.suffix = "mynet".to_owned();
        for (name, address) in addresses {
            names.add(name, &[address.parse().unwrap()], TASKS_TTL);
            names.pointers.insert(address.parse().unwrap(), Some((*name).to_owned()));
        }
        names
    }

    #[test]
    fn the_digest_tells_what_is_said_and_nothing_else() {
        let one = names(&[("a", "10.0.1.2"), ("b", "10.0.1.3"), ("c", "fd00::1")]);
        let mut same = names(&[("c", "fd00::1"), ("b", "10.0.1.3"), ("a", "10.0.1.2")]);
        same.version = TableVersion { epoch: 9, revision: 9 };
        assert_eq!(one.digest(), same.digest());
        let others = [
            names(&[("a", "10.0.1.2"), ("b", "10.0.1.3")]),
            names(&[("a", "10.0.1.3"), ("b", "10.0.1.2"), ("c", "fd00::1")]),
            names(&[("a", "10.0.1.2"), ("b", "10.0.1.4"), ("c", "fd00::1")]),
        ];
        for other in others {
            assert_ne!(one.digest(), other.digest());
        }
    }
}
