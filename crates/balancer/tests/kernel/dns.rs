//! 127.0.0.11:53 leads to the resolver's own ports, whatever else the sandbox runs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use shoal_balancer::{DnsPorts, SandboxEntry};

use crate::world::*;

const RESOLVER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 11));

/// A sandbox with a resolver, and with a server of its own on port 53 of every address.
fn with_resolver() -> World {
    let world = World::new(&["a"]);
    let (udp, tcp) = world.inside("a", || {
        serve_udp(UdpSocket::bind(("0.0.0.0", 53)).unwrap(), "own");
        serve_tcp(TcpListener::bind(("0.0.0.0", 53)).unwrap(), "own");
        (UdpSocket::bind((RESOLVER, 0)).unwrap(), TcpListener::bind((RESOLVER, 0)).unwrap())
    });
    let ports = DnsPorts { udp: udp.local_addr().unwrap().port(), tcp: tcp.local_addr().unwrap().port() };
    serve_udp(udp, "resolver");
    serve_tcp(tcp, "resolver");
    let entry = SandboxEntry { networks: vec![VNI], dns: Some(ports) };
    world.balancer().set_sandbox(world.cookie("a"), &entry).unwrap();
    world
}

#[test]
fn the_resolver_answers_as_port_53() {
    let world = with_resolver();
    // Not even a service of that address comes before it.
    world.service(RESOLVER, &[]);
    world.inside("a", || {
        for address in [RESOLVER, mapped(RESOLVER)] {
            let expected = ("resolver".to_owned(), SocketAddr::new(address, 53));
            assert_eq!(ask_tcp(expected.1).unwrap(), expected, "tcp");
            let any: IpAddr =
                if address.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
            let unconnected = UdpSocket::bind((any, 0)).unwrap();
            assert_eq!(ask_udp(&unconnected, expected.1).unwrap(), expected, "unconnected udp");
            let connected = UdpSocket::bind((any, 0)).unwrap();
            connected.set_read_timeout(Some(PATIENCE)).unwrap();
            connected.connect(expected.1).unwrap();
            assert_eq!(connected.peer_addr().unwrap(), expected.1, "getpeername");
            connected.send(b"who").unwrap();
            assert_eq!(receive(&connected).unwrap(), expected, "connected udp");
        }
    });
}

#[test]
fn the_containers_own_server_keeps_port_53() {
    let world = with_resolver();
    let addresses = [IpAddr::V4(Ipv4Addr::LOCALHOST), world.address("a")];
    world.inside("a", || {
        for address in addresses {
            let expected = ("own".to_owned(), SocketAddr::new(address, 53));
            assert_eq!(ask_tcp(expected.1).unwrap(), expected);
            let socket = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
            assert_eq!(ask_udp(&socket, expected.1).unwrap(), expected);
        }
    });
}

#[test]
fn a_sandbox_without_a_resolver_is_left_alone() {
    let world = with_resolver();
    world.join("a", &[VNI]);
    let to = SocketAddr::new(RESOLVER, 53);
    assert_eq!(world.inside("a", || ask_tcp(to)).unwrap(), ("own".to_owned(), to));
}
