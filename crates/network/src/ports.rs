//! Published ports as map elements.
//!
//! Each port has all slots of one map filled with its backends in turn; the client's address and port
//! give the slot of a connection, the same on every node. A port with many backends uses a map with more
//! slots, so that the shares stay even.
//!
//! Every node begins with another backend. A client that has the same port for two nodes, as a load
//! balancer in front of them does, is thus led to two tasks, where there are as many: one that has just
//! closed the one connection would not take the other for a new one, since the client counts its time
//! stamps for each node anew, and it would have to knock again a second later.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use shoal_model::{Admission, Backends, Bind, IpVersion, Protocol, shares};

use crate::tables::{Edit, Elements, Held, Set, difference};
use crate::{HostPorts, Ports};

/// The sets that hold the ports of the routing mesh.
pub(crate) const SETS: [Set; 16] = [
    Set::Ports16,
    Set::Ports128,
    Set::Ports1024,
    Set::Ports16V6,
    Set::Ports128V6,
    Set::Ports1024V6,
    Set::Refused,
    Set::BySource,
    Set::BySourceV6,
    Set::Bound,
    Set::BoundAddresses,
    Set::BoundAddressesV6,
    Set::BoundLinks,
    Set::Restricted,
    Set::Clients,
    Set::ClientsV6,
];

/// The map for that many backends, and its slots. With four slots or more per backend no backend gets
/// more than a quarter over its share.
fn size_class(version: IpVersion, backends: usize) -> (Set, usize) {
    use IpVersion::{V4, V6};
    match (version, backends) {
        (V4, 0..=4) => (Set::Ports16, 16),
        (V6, 0..=4) => (Set::Ports16V6, 16),
        (V4, 5..=32) => (Set::Ports128, 128),
        (V6, 5..=32) => (Set::Ports128V6, 128),
        (V4, _) => (Set::Ports1024, 1024),
        (V6, _) => (Set::Ports1024V6, 1024),
    }
}

/// In nft's words.
fn family(version: IpVersion) -> &'static str {
    match version {
        IpVersion::V4 => "ipv4",
        IpVersion::V6 => "ipv6",
    }
}

fn key((protocol, port): (Protocol, u16)) -> String {
    format!("{} . {port}", protocol.as_str())
}

fn value(backend: &SocketAddr) -> String {
    format!("{} . {}", backend.ip(), backend.port())
}

/// The elements that publish these ports on the node with that number.
pub(crate) fn elements(ports: &Ports, node: u32) -> Held {
    let mut held: Held = SETS.into_iter().map(|set| (set, Elements::new())).collect();
    for (&at, port) in ports {
        for version in IpVersion::ALL {
            lead(&mut held, at, version, &port.backends, node);
        }
        admit(&mut held, at, &port.admission);
    }
    held
}

/// Where a port leads those who ask for it by this version of IP.
fn lead(
    held: &mut Held,
    port: (Protocol, u16),
    version: IpVersion,
    backends: &Backends<SocketAddr>,
    node: u32,
) {
    let members = backends.members.iter().filter(|backend| IpVersion::of(backend.ip()) == version);
    let members: Vec<SocketAddr> = members.copied().collect();
    if members.is_empty() {
        let key = format!("{} . {}", family(version), key(port));
        held.entry(Set::Refused).or_default().insert(key, String::new());
        return;
    }
    let (set, slots): (Set, Vec<&SocketAddr>) = match (backends.by_source, version) {
        (true, IpVersion::V4) => (Set::BySource, shares(&members)),
        (true, IpVersion::V6) => (Set::BySourceV6, shares(&members)),
        (false, version) => {
            let (set, slots) = size_class(version, members.len());
            let first = node as usize % members.len();
            (set, members.iter().cycle().skip(first).take(slots).collect())
        }
    };
    let slots = slots.iter().enumerate();
    let elements = slots.map(|(slot, backend)| (format!("{} . {slot}", key(port)), value(backend)));
    held.entry(set).or_default().extend(elements);
}

/// Who may use a port.
fn admit(held: &mut Held, port: (Protocol, u16), admission: &Admission) {
    let mut put = |set, key: String| held.entry(set).or_default().insert(key, String::new());
    let port = key(port);
    if !admission.bind.is_empty() {
        put(Set::Bound, port.clone());
    }
    for bind in &admission.bind {
        match bind {
            Bind::Address(IpAddr::V4(address)) => put(Set::BoundAddresses, format!("{port} . {address}")),
            Bind::Address(IpAddr::V6(address)) => put(Set::BoundAddressesV6, format!("{port} . {address}")),
            Bind::Link(name) => put(Set::BoundLinks, format!("{port} . \"{name}\"")),
        };
    }
    if !admission.clients.is_empty() {
        put(Set::Restricted, port.clone());
    }
    for net in &admission.clients {
        match net {
            IpNet::V4(net) => put(Set::Clients, format!("{port} . {net}")),
            IpNet::V6(net) => put(Set::ClientsV6, format!("{port} . {net}")),
        };
    }
}

/// The sets that hold the ports of single containers (`mode=host`).
pub(crate) const HOST_SETS: [Set; 5] =
    [Set::HostPorts, Set::HostPortsV6, Set::HostBound, Set::HostBoundAddresses, Set::HostBoundAddressesV6];

/// The elements for them.
pub(crate) fn host_elements(ports: &HostPorts) -> Held {
    let mut held: Held = HOST_SETS.into_iter().map(|set| (set, Elements::new())).collect();
    for (&port, led) in ports {
        let port = key(port);
        let mut put = |set, key, value| held.entry(set).or_default().insert(key, value);
        for address in &led.backends {
            let set = if address.is_ipv4() { Set::HostPorts } else { Set::HostPortsV6 };
            put(set, port.clone(), value(address));
        }
        if !led.bound.is_empty() {
            put(Set::HostBound, port.clone(), String::new());
        }
        for address in &led.bound {
            let set = if address.is_ipv4() { Set::HostBoundAddresses } else { Set::HostBoundAddressesV6 };
            put(set, format!("{port} . {address}"), String::new());
        }
    }
    held
}

/// What must be edited so that exactly these ports are published.
pub(crate) fn plan(wanted: &Held, held: &Held) -> Vec<Edit> {
    wanted.iter().flat_map(|(set, wanted)| difference(*set, held, wanted, |_, _| true)).collect()
}

/// The ports whose way has changed.
pub(crate) fn changed(edits: &[Edit]) -> BTreeSet<(Protocol, u16)> {
    edits.iter().filter_map(|edit| parse_port(edit.set, &edit.key)).collect()
}

fn parse_port(set: Set, key: &str) -> Option<(Protocol, u16)> {
    // Before the protocol comes the version of IP.
    let mut parts = key.split(" . ").skip(usize::from(set == Set::Refused));
    let protocol = match parts.next() {
        Some("tcp") => Protocol::Tcp,
        Some("udp") => Protocol::Udp,
        _ => return None,
    };
    Some((protocol, parts.next()?.parse().ok()?))
}

/// The backends read back from the kernel.
pub(crate) fn parse(held: &Held) -> BTreeMap<(Protocol, u16), BTreeSet<SocketAddr>> {
    let mut ports = BTreeMap::<_, BTreeSet<SocketAddr>>::new();
    for (set, elements) in held {
        for (key, value) in elements {
            let Some(port) = parse_port(*set, key) else { continue };
            // Of sets, no value leads anywhere.
            ports.entry(port).or_default().extend(parse_value(value));
        }
    }
    ports
}

fn parse_value(value: &str) -> Option<SocketAddr> {
    let (address, port) = value.split_once(" . ")?;
    Some(SocketAddr::new(address.parse::<IpAddr>().ok()?, port.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PublishedPort;

    fn to(backends: &[&str]) -> PublishedPort {
        let backends = backends.iter().map(|at| at.parse().unwrap()).collect();
        PublishedPort { backends, admission: Admission::default() }
    }

    fn backends(count: u8) -> PublishedPort {
        let backends = (0..count).map(|last| SocketAddr::from(([10, 0, 0, last], 80))).collect();
        PublishedPort { backends, admission: Admission::default() }
    }

    #[test]
    fn shares_are_even_at_every_size() {
        for count in 1..=200u8 {
            let held = elements(&Ports::from([((Protocol::Tcp, 80), backends(count))]), 7);
            let mut shares = BTreeMap::new();
            let values = held.values().flat_map(|elements| elements.values());
            for value in values.filter(|value| !value.is_empty()) {
                *shares.entry(value.clone()).or_insert(0usize) += 1;
            }
            assert_eq!(shares.len(), usize::from(count));
            let (least, most) = (shares.values().min().unwrap(), shares.values().max().unwrap());
            assert!(most - least <= 1 && most * 4 <= least * 5 + 4, "{count}: {least}..{most}");
        }
    }

    #[test]
    fn no_two_nodes_lead_a_slot_to_one_backend_where_there_are_enough() {
        let ports = Ports::from([((Protocol::Tcp, 80), backends(5))]);
        let on: Vec<Held> = (3..8).map(|node| elements(&ports, node)).collect();
        for slot in on[0][&Set::Ports128].keys() {
            let led: BTreeSet<&String> = on.iter().map(|held| &held[&Set::Ports128][slot]).collect();
            assert_eq!(led.len(), 5, "slot {slot}");
        }
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        let ports = Ports::from([
            ((Protocol::Tcp, 80), backends(3)),
            ((Protocol::Udp, 80), backends(40)),
            ((Protocol::Udp, 53), to(&[])),
            ((Protocol::Tcp, 443), to(&["[fd00::1]:443"])),
            ((Protocol::Tcp, 81), to(&["10.0.0.1:80", "[fd00::1]:80"])),
        ]);
        let wanted = ports.iter().map(|(at, port)| (*at, port.backends.members.clone())).collect();
        assert_eq!(parse(&elements(&ports, 0)), wanted);
    }

    #[test]
    fn who_may_use_a_port_is_said_beside_where_it_leads() {
        let admission = Admission {
            bind: [Bind::Link("eth0".to_owned()), Bind::Address("192.0.2.1".parse().unwrap())].into(),
            clients: ["10.0.0.0/8", "2001:db8::/32"].map(|net| net.parse().unwrap()).into(),
        };
        let port = PublishedPort { admission, ..backends(1) };
        let held = elements(&Ports::from([((Protocol::Tcp, 80), port)]), 0);
        let keys = |set: Set| held[&set].keys().cloned().collect::<Vec<_>>();
        assert_eq!(
            (keys(Set::Bound), keys(Set::Restricted)),
            (vec!["tcp . 80".into()], vec!["tcp . 80".into()])
        );
        assert_eq!(keys(Set::BoundLinks), ["tcp . 80 . \"eth0\""]);
        assert_eq!(keys(Set::BoundAddresses), ["tcp . 80 . 192.0.2.1"]);
        assert_eq!(keys(Set::Clients), ["tcp . 80 . 10.0.0.0/8"]);
        assert_eq!(keys(Set::ClientsV6), ["tcp . 80 . 2001:db8::/32"]);
    }

    #[test]
    fn growing_out_of_a_map_empties_it() {
        let before = elements(&Ports::from([((Protocol::Udp, 80), backends(4))]), 0);
        let after = elements(&Ports::from([((Protocol::Udp, 80), backends(5))]), 0);
        let edits = plan(&after, &before);
        assert_eq!(edits.iter().filter(|edit| edit.set == Set::Ports16 && edit.value.is_none()).count(), 16);
        assert_eq!(
            edits.iter().filter(|edit| edit.set == Set::Ports128 && edit.value.is_some()).count(),
            128
        );
        assert_eq!(changed(&edits), BTreeSet::from([(Protocol::Udp, 80)]));
        assert_eq!(plan(&after, &after), []);
    }
}
