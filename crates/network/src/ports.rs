//! Published ports as map elements.
//!
//! Each port has all slots of one map filled with its backends in turn; the kernel draws a slot per
//! connection. A port with many backends uses a map with more slots, so that the shares stay even.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use shoal_model::Protocol;

use crate::Ports;
use crate::tables::{Edit, Elements, Held, Set, difference};

/// The sets that hold the ports of the routing mesh.
pub(crate) const SETS: [Set; 4] = [Set::Ports16, Set::Ports128, Set::Ports1024, Set::Refused];

/// The map for that many backends, and its slots. With four slots or more per backend no backend gets
/// more than a quarter over its share.
fn size_class(backends: usize) -> (Set, usize) {
    match backends {
        0..=4 => (Set::Ports16, 16),
        5..=32 => (Set::Ports128, 128),
        _ => (Set::Ports1024, 1024),
    }
}

fn key((protocol, port): (Protocol, u16)) -> String {
    format!("{} . {port}", protocol.as_str())
}

fn value(backend: &SocketAddrV4) -> String {
    format!("{} . {}", backend.ip(), backend.port())
}

fn v4(backends: &BTreeSet<SocketAddr>) -> Vec<SocketAddrV4> {
    let backends = backends.iter().filter_map(|backend| match backend {
        SocketAddr::V4(backend) => Some(*backend),
        SocketAddr::V6(_) => None,
    });
    backends.collect()
}

/// The elements that publish these ports.
pub(crate) fn elements(ports: &Ports) -> Held {
    let mut held: Held = SETS.into_iter().map(|set| (set, Elements::new())).collect();
    for (&port, backends) in ports {
        let backends = v4(backends);
        if backends.is_empty() {
            held.entry(Set::Refused).or_default().insert(key(port), String::new());
            continue;
        }
        let (set, slots) = size_class(backends.len());
        let elements = held.entry(set).or_default();
        for (slot, backend) in (0..slots).zip(backends.iter().cycle()) {
            elements.insert(format!("{} . {slot}", key(port)), value(backend));
        }
    }
    held
}

/// The elements for ports of single containers (`mode=host`).
pub(crate) fn host_elements(ports: &BTreeMap<(Protocol, u16), SocketAddr>) -> Elements {
    let elements = ports.iter().filter_map(|(&port, backend)| match backend {
        SocketAddr::V4(backend) => Some((key(port), value(backend))),
        SocketAddr::V6(_) => None,
    });
    elements.collect()
}

/// What must be edited so that exactly these ports are published.
pub(crate) fn plan(wanted: &Held, held: &Held) -> Vec<Edit> {
    wanted.iter().flat_map(|(set, wanted)| difference(*set, held, wanted, |_, _| true)).collect()
}

/// The ports whose way has changed.
pub(crate) fn changed(edits: &[Edit]) -> BTreeSet<(Protocol, u16)> {
    edits.iter().filter_map(|edit| parse_port(&mut edit.key.split(" . "))).collect()
}

fn parse_port<'a>(parts: &mut impl Iterator<Item = &'a str>) -> Option<(Protocol, u16)> {
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
            let Some(port) = parse_port(&mut key.split(" . ")) else { continue };
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
    Some(SocketAddr::from((address.parse::<Ipv4Addr>().ok()?, port.parse().ok()?)))
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
            for value in held.values().flat_map(|elements| elements.values()) {
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
