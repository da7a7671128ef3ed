//! Published ports, for clients in the node's own namespace.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use shoal_balancer::{LocalPort, PortKey};
use shoal_model::{IpVersion, Protocol};

use crate::world::*;

const PUBLISHED: u16 = 8000;
const TCP: PortKey = PortKey { version: IpVersion::V4, protocol: Protocol::Tcp, port: PUBLISHED };
const UDP: PortKey = PortKey { protocol: Protocol::Udp, ..TCP };
const TCP_V6: PortKey = PortKey { version: IpVersion::V6, ..TCP };
const UDP_V6: PortKey = PortKey { version: IpVersion::V6, ..UDP };

/// "node" stands for the node, "b" for the task that serves.
fn published() -> World {
    let world = World::new(&["node", "b"]);
    world.serve("b");
    let local = BTreeSet::from([world.address("node"), world.address6("node")]);
    world.balancer().remove_sandbox(world.cookie("node")).unwrap();
    world.balancer().set_node(world.cookie("node"), &local).unwrap();
    let backends = to(&[SocketAddr::new(world.address("b"), PORT)]);
    for key in [TCP, UDP, TCP_V6, UDP_V6] {
        world.balancer().set_port(key, &backends).unwrap();
    }
    world
}

fn to(backends: &[SocketAddr]) -> LocalPort {
    LocalPort { backends: backends.iter().copied().collect(), bound: None }
}

#[test]
fn a_bound_port_is_reached_at_its_addresses_only() {
    let world = published();
    let own = world.address("node");
    let bound = Some(BTreeSet::from([own]));
    let backends = to(&[SocketAddr::new(world.address("b"), PORT)]).backends;
    world.balancer().set_port(TCP, &LocalPort { backends: backends.clone(), bound: bound.clone() }).unwrap();
    let ask = |address: IpAddr| world.inside("node", || ask_tcp(SocketAddr::new(address, PUBLISHED)));
    assert_eq!(ask(own).unwrap().0, "b");
    for other in [Ipv4Addr::LOCALHOST, Ipv4Addr::UNSPECIFIED] {
        assert_eq!(ask(other.into()).unwrap_err().kind(), ErrorKind::ConnectionRefused, "{other}");
    }
    assert!(ask(Ipv6Addr::LOCALHOST.into()).is_ok(), "by another key");
    assert_eq!(world.balancer().read_back().unwrap().ports[&TCP].bound, bound);
    // Elsewhere, and nowhere in particular.
    let elsewhere = Some(BTreeSet::from([Ipv4Addr::LOCALHOST.into()]));
    world.balancer().set_port(TCP, &LocalPort { backends: backends.clone(), bound: elsewhere }).unwrap();
    assert!(ask(own).is_err());
    assert!(ask(Ipv4Addr::LOCALHOST.into()).is_ok());
    world.balancer().set_port(TCP, &LocalPort { backends, bound: None }).unwrap();
    assert!(ask(own).is_ok());
    world.balancer().remove_port(TCP).unwrap();
    assert!(!world.balancer().read_back().unwrap().ports.contains_key(&TCP));
}

fn local_addresses(world: &World) -> [IpAddr; 7] {
    [
        Ipv4Addr::LOCALHOST.into(),
        Ipv4Addr::new(127, 1, 2, 3).into(),
        Ipv4Addr::UNSPECIFIED.into(),
        Ipv6Addr::LOCALHOST.into(),
        mapped(Ipv4Addr::LOCALHOST.into()),
        world.address("node"),
        world.address6("node"),
    ]
}

#[test]
fn every_local_address_of_the_node_serves_a_published_port() {
    let world = published();
    for address in local_addresses(&world) {
        let expected = ("b".to_owned(), SocketAddr::new(address, PUBLISHED));
        assert_eq!(world.inside("node", || ask_tcp(expected.1)).unwrap(), expected, "tcp");
        world.inside("node", || {
            let any: IpAddr =
                if address.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
            let socket = UdpSocket::bind((any, 0)).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.connect(expected.1).unwrap();
            socket.send(b"who").unwrap();
            assert_eq!(receive(&socket).unwrap(), expected, "connected udp");
        });
    }
}

#[test]
fn unconnected_datagrams_reach_a_published_port_where_the_kernel_can() {
    let world = published();
    let own = SocketAddr::new(world.address("node"), PUBLISHED);
    world.inside("node", || {
        for to in [SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PUBLISHED), own] {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            assert_eq!(ask_udp(&socket, to).unwrap(), ("b".to_owned(), to));
        }
        // An IPv6 datagram cannot turn into an IPv4 one: a plain refusal, not ENOTSUPP.
        let socket = UdpSocket::bind("[::]:0").unwrap();
        let error = socket.send_to(b"who", (Ipv6Addr::LOCALHOST, PUBLISHED)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    });
    let backend = SocketAddr::new(world.address6("b"), PORT);
    world.balancer().set_port(UDP_V6, &to(&[backend])).unwrap();
    world.inside("node", || {
        assert_eq!(ask_udp(&UdpSocket::bind("0.0.0.0:0").unwrap(), own).unwrap().1, own, "IPv4 as before");
        let to = (Ipv6Addr::LOCALHOST, PUBLISHED).into();
        let socket = UdpSocket::bind("[::]:0").unwrap();
        assert_eq!(ask_udp(&socket, to).unwrap(), ("b".to_owned(), to), "with an IPv6 backend");
    });
}

#[test]
fn a_port_without_backends_refuses_and_a_removed_one_is_left_alone() {
    let world = published();
    let to = SocketAddr::new(world.address("node"), PUBLISHED);
    world.balancer().set_port(TCP, &LocalPort::default()).unwrap();
    let ask = || world.inside("node", || ask_tcp(to));
    assert_eq!(ask().unwrap_err().kind(), ErrorKind::ConnectionRefused);
    world.balancer().remove_port(TCP).unwrap();
    world.inside("node", || serve_tcp(std::net::TcpListener::bind(to).unwrap(), "program"));
    assert_eq!(ask().unwrap().0, "program");
}

#[test]
fn only_the_node_itself_and_only_its_addresses() {
    let world = published();
    let sandbox = world.inside("b", || ask_tcp((Ipv4Addr::LOCALHOST, PUBLISHED).into()));
    assert_eq!(sandbox.unwrap_err().kind(), ErrorKind::ConnectionRefused, "nobody listens there");
    let elsewhere = SocketAddr::new(world.address("b"), PUBLISHED);
    let error = world.inside("node", || ask_tcp(elsewhere)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "another host's port of that number");
    // An address that the node gave up is no longer its own.
    world.balancer().set_node(world.cookie("node"), &BTreeSet::new()).unwrap();
    let own = SocketAddr::new(world.address("node"), PUBLISHED);
    assert!(world.inside("node", || ask_tcp(own)).is_err());
    assert!(world.inside("node", || ask_tcp((Ipv4Addr::LOCALHOST, PUBLISHED).into())).is_ok());
}
