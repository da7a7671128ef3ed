//! What reaches a VIP without having passed `connect` in a namespace that the balancer knows.

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};

use shoal_balancer::Counted;

use crate::world::*;

/// A container "a" that runs a namespace of its own behind its own NAT, as docker-in-docker does.
fn nested() -> World {
    let mut world = World::new(&["a", "b", "c"]);
    world.serve("b");
    world.serve("c");
    world.make("inner");
    let inner = world.name("inner");
    world.ip("a", &format!("link add inner0 type veth peer name eth0 netns {inner}"));
    world.ip("a", "addr add 192.168.77.1/24 dev inner0");
    world.ip("a", "link set inner0 up");
    world.ip("inner", "addr add 192.168.77.2/24 dev eth0");
    world.ip("inner", "link set eth0 up");
    world.ip("inner", "route add default via 192.168.77.1");
    for command in [
        "sysctl -qw net.ipv4.ip_forward=1",
        "nft add table ip t",
        "nft add chain ip t post { type nat hook postrouting priority 100 ; }",
        "nft add rule ip t post oifname eth0 masquerade",
    ] {
        assert!(world.run("a", command).is_some(), "{command}");
    }
    for sandbox in ["a", "b", "c"] {
        world.balancer().attach_answerer(&world.netns("net"), &format!("h-{sandbox}"), VNI).unwrap();
    }
    world
}

#[test]
fn a_nested_namespace_reaches_a_vip() {
    let world = nested();
    let to = SocketAddr::new(VIP, PORT);
    world.service(VIP, &[world.address("b"), world.address("c")]);
    let expected = ["b", "c"].map(str::to_owned).into();
    let tcp: BTreeSet<_> = both(|| {
        let (name, peer) = world.inside("inner", || ask_tcp(to)).unwrap();
        assert_eq!(peer, to);
        name
    });
    assert_eq!(tcp, expected);
    let udp = both(|| {
        let socket = world.inside("inner", || UdpSocket::bind("0.0.0.0:0")).unwrap();
        let (name, from) = ask_udp(&socket, to).unwrap();
        assert_eq!(from, to);
        assert_eq!(ask_udp(&socket, to).unwrap().0, name, "the same flow, the same backend");
        name
    });
    assert_eq!(udp, expected);
    let flows = world.balancer().bypassed_flows().unwrap();
    assert!(flows >= 4);
    let counts = world.balancer().counts().unwrap();
    let bypassing = ["b", "c"].map(|name| Counted::Bypassing(world.address(name)));
    assert_eq!(bypassing.iter().map(|what| counts[&(key(VIP), *what)]).sum::<u64>(), flows);
    // Connections of the container itself are not among them.
    let before = world.balancer().bypassed_flows().unwrap();
    assert_eq!(world.inside("a", || ask_tcp(to)).unwrap().1, to);
    assert_eq!(world.balancer().bypassed_flows().unwrap(), before);
}

#[test]
fn an_open_flow_stays_and_new_ones_follow_the_backends() {
    let world = nested();
    let to = SocketAddr::new(VIP, PORT);
    world.service(VIP, &[world.address("b")]);
    let udp = world.inside("inner", || UdpSocket::bind("0.0.0.0:0")).unwrap();
    assert_eq!(ask_udp(&udp, to).unwrap().0, "b");
    world.service(VIP, &[world.address("c")]);
    assert_eq!(ask_udp(&udp, to).unwrap().0, "c", "a datagram flow leaves a backend that has gone");
    assert_eq!(world.inside("inner", || ask_tcp(to)).unwrap().0, "c");
}
