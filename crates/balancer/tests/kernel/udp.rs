use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use socket2::{Domain, Socket, Type};

use crate::world::*;

fn socket(v6: bool) -> UdpSocket {
    let any: IpAddr = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    UdpSocket::bind((any, 0)).unwrap()
}

fn with_two_backends() -> World {
    let world = World::new(&["a", "b", "c"]);
    world.serve("b");
    world.serve("c");
    world.service(VIP, &[world.address("b"), world.address("c")]);
    world.service(VIP6, &[world.address6("b"), world.address6("c")]);
    world
}

#[test]
fn ten_thousand_datagrams_of_one_socket_reach_one_backend() {
    let world = with_two_backends();
    world.inside("a", || {
        let to = SocketAddr::new(VIP, PORT);
        let socket = socket(false);
        let (first, _) = ask_udp(&socket, to).unwrap();
        for _ in 1..10_000 {
            let (name, from) = ask_udp(&socket, to).unwrap();
            assert_eq!(from, to, "the reply's sender");
            assert_eq!(name, first);
        }
    });
}

#[test]
fn sockets_spread_and_replies_show_the_vip() {
    let world = with_two_backends();
    world.inside("a", || {
        for vip in [VIP, mapped(VIP), VIP6] {
            let to = SocketAddr::new(vip, PORT);
            let names = both(|| {
                let (name, from) = ask_udp(&socket(vip.is_ipv6()), to).unwrap();
                assert_eq!(from, to, "unconnected");
                name
            });
            assert_eq!(names.len(), 2, "{vip}, unconnected");
            let names = both(|| {
                let socket = socket(vip.is_ipv6());
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
                socket.connect(to).unwrap();
                assert_eq!(socket.peer_addr().unwrap(), to, "getpeername");
                socket.send(b"who").unwrap();
                let (name, from) = receive(&socket).unwrap();
                assert_eq!(from, to, "connected");
                name
            });
            assert_eq!(names.len(), 2, "{vip}, connected");
        }
    });
}

#[test]
fn a_service_without_backends_refuses_datagrams() {
    let world = World::new(&["a"]);
    world.service(VIP, &[]);
    world.service(VIP6, &[]);
    world.inside("a", || {
        for vip in [VIP, mapped(VIP), VIP6] {
            let to = SocketAddr::new(vip, PORT);
            let refused = ErrorKind::ConnectionRefused;
            assert_eq!(socket(vip.is_ipv6()).connect(to).unwrap_err().kind(), refused, "{vip}, connect");
            let error = socket(vip.is_ipv6()).send_to(b"who", to).unwrap_err();
            assert_eq!(error.kind(), refused, "{vip}, sendto");
            let probe = socket(vip.is_ipv6());
            probe.connect(SocketAddr::new(vip, 1025)).unwrap(); // ping's question for its own address
            assert_eq!(probe.peer_addr().unwrap().ip(), vip);
        }
    });
}

#[test]
fn a_socket_keeps_a_backend_that_stays_and_leaves_one_that_goes() {
    let world = with_two_backends();
    let (b, c) = (world.address("b"), world.address("c"));
    let to = SocketAddr::new(VIP, PORT);
    let socket = world.inside("a", || socket(false));
    let (first, _) = ask_udp(&socket, to).unwrap();
    let (kept, other) = if first == "b" { (b, c) } else { (c, b) };
    for backends in [&[kept][..], &[kept, other], &[kept, other, world.address("a")], &[other, kept]] {
        world.service(VIP, backends);
        assert_eq!(ask_udp(&socket, to).unwrap().0, first, "after a change to {backends:?}");
    }
    world.service(VIP, &[other]);
    let (second, from) = ask_udp(&socket, to).unwrap();
    assert_ne!(second, first, "its backend has gone");
    assert_eq!(from, to);
}

#[test]
fn a_socket_that_goes_elsewhere_no_longer_shows_the_vip() {
    let world = with_two_backends();
    let real = SocketAddr::new(world.address("b"), PORT);
    world.inside("a", || {
        let socket = socket(false);
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.connect(SocketAddr::new(VIP, PORT)).unwrap();
        socket.connect(real).unwrap();
        assert_eq!(socket.peer_addr().unwrap(), real);
        socket.send(b"who").unwrap();
        assert_eq!(receive(&socket).unwrap(), ("b".to_owned(), real));
    });
}

/// A socket for IPv6 that is given addresses of IPv4 as they are, not mapped.
#[test]
fn a_socket_of_the_other_family_is_balanced_and_shows_the_vip() {
    let world = with_two_backends();
    world.inside("a", || {
        let vip = SocketAddr::new(VIP, PORT);
        for connected in [false, true] {
            let names = both(|| {
                let socket = Socket::new(Domain::IPV6, Type::DGRAM, None).unwrap();
                socket.set_only_v6(false).unwrap();
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
                if connected {
                    socket.connect(&vip.into()).unwrap();
                    socket.send(b"who").unwrap();
                } else {
                    socket.send_to(b"who", &vip.into()).unwrap();
                }
                let socket = UdpSocket::from(socket);
                let (name, from) = receive(&socket).unwrap();
                assert_eq!(from, SocketAddr::new(mapped(VIP), PORT), "connected: {connected}");
                name
            });
            assert_eq!(names.len(), 2, "connected: {connected}");
        }
    });
}
