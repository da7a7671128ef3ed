//! Published ports as map elements.
//!
//! Each port has all slots of one map filled with its backends in turn; the kernel draws a slot per
//! connection. A port with many backends uses a map with more slots, so that the shares stay even.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use shoal_model::{IpVersion, Protocol};

use crate::Ports;
use crate::tables::{Edit, Elements, Held, Set, difference};

/// The sets that hold the ports of the routing mesh.
pub(crate) const SETS: [Set; 7] = [
    Set::Ports16,
    Set::Ports128,
    Set::Ports1024,
    Set::Ports16V6,
    Set::Ports128V6,
    Set::Ports1024V6,
    Set::Refused,
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

/// The elements that publish these ports.
pub(crate) fn elements(ports: &Ports) -> Held {
    let mut held: Held = SETS.into_iter().map(|set| (set, Elements::new())).collect();
    for (&port, backends) in ports {
        for version in IpVersion::ALL {
            let backends: Vec<&SocketAddr> =
                backends.iter().filter(|backend| IpVersion::of(backend.ip()) == version).collect();
            if backends.is_empty() {
                let key = format!("{} . {}", family(version), key(port));
                held.entry(Set::Refused).or_default().insert(key, String::new());
                continue;
            }
            let (set, slots) = size_class(version, backends.len());
            let elements = held.entry(set).or_default();
            for (slot, backend) in (0..slots).zip(backends.iter().cycle()) {
                elements.insert(format!("{} . {slot}", key(port)), value(backend));
            }
        }
    }
    held
}

/// The elements for ports of single containers (`mode=host`).
pub(crate) fn host_elements(ports: &BTreeMap<(Protocol, u16), SocketAddr>) -> Elements {
    let elements = ports.iter().filter(|(_, backend)| backend.is_ipv4());
    elements.map(|(&port, backend)| (key(port), value(backend))).collect()
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
pub(crate) fn parse(held: &Held) -> Ports {
    let mut ports = Ports::new();
    for (set, elements) in held {
        for (key, value) in elements {
            let Some(port) = parse_port(*set, key) else { continue };
            let backends = ports.entry(port).or_default();
            if *set != Set::Refused {
                backends.extend(parse_value(value));
            }
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

    fn backends(count: u8) -> BTreeSet<SocketAddr> {
        (0..count).map(|last| SocketAddr::from(([10, 0, 0, last], 80))).collect()
    }

    #[test]
    fn shares_are_even_at_every_size() {
        for count in 1..=200u8 {
            let held = elements(&Ports::from([((Protocol::Tcp, 80), backends(count))]));
            let mut shares = BTreeMap::new();
            let maps = held.iter().filter(|(set, _)| **set != Set::Refused);
            for value in maps.flat_map(|(_, elements)| elements.values()) {
                *shares.entry(value.clone()).or_insert(0usize) += 1;
            }
            assert_eq!(shares.len(), usize::from(count));
            let (least, most) = (shares.values().min().unwrap(), shares.values().max().unwrap());
            assert!(most - least <= 1 && most * 4 <= least * 5 + 4, "{count}: {least}..{most}");
        }
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        let ports = Ports::from([
            ((Protocol::Tcp, 80), backends(3)),
            ((Protocol::Udp, 80), backends(40)),
            ((Protocol::Udp, 53), BTreeSet::new()),
            ((Protocol::Tcp, 443), BTreeSet::from(["[fd00::1]:443".parse().unwrap()])),
            ((Protocol::Tcp, 81), ["10.0.0.1:80", "[fd00::1]:80"].map(|at| at.parse().unwrap()).into()),
        ]);
        assert_eq!(parse(&elements(&ports)), ports);
    }

    #[test]
    fn growing_out_of_a_map_empties_it() {
        let before = elements(&Ports::from([((Protocol::Udp, 80), backends(4))]));
        let after = elements(&Ports::from([((Protocol::Udp, 80), backends(5))]));
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
