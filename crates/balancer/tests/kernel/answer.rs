//! ARP, neighbour discovery and ping for addresses that no interface holds.

use shoal_balancer::ServiceKey;

use crate::world::*;

fn pings(world: &World, from: &str, vip: std::net::IpAddr) -> bool {
    let family = if vip.is_ipv6() { "-6" } else { "-4" };
    world.run(from, &format!("busybox ping {family} -c 2 -W 1 -s 1000 {vip}")).is_some()
}

#[test]
fn a_vip_answers_ping_while_it_exists() {
    let world = World::new(&["a", "b"]);
    world.balancer().attach_answerer(&world.netns("net"), "h-a", VNI).unwrap();
    assert!(!pings(&world, "a", VIP), "not a VIP yet");
    for vip in [VIP, VIP6] {
        world.service(vip, &[]);
        assert!(pings(&world, "a", vip), "{vip}, though it has no backend");
        let neighbour = world.run("a", &format!("ip neigh show {vip}")).unwrap();
        assert!(neighbour.contains("02:42:fe:fe:fe:fe"), "{neighbour}");
    }
    assert!(pings(&world, "a", world.address("b")), "a real neighbour goes on answering");
    assert!(pings(&world, "a", world.address6("b")));
    for vip in [VIP, VIP6] {
        world.balancer().remove_service(key(vip)).unwrap();
        assert!(!pings(&world, "a", vip), "{vip} was removed");
    }
}

#[test]
fn each_interface_answers_for_its_own_network() {
    let world = World::new(&["a", "b"]);
    let elsewhere = ServiceKey { vni: VNI + 1, address: VIP };
    world.balancer().set_service(elsewhere, &[].into()).unwrap();
    world.balancer().attach_answerer(&world.netns("net"), "h-a", VNI).unwrap();
    world.balancer().attach_answerer(&world.netns("net"), "h-b", VNI + 1).unwrap();
    assert!(!pings(&world, "a", VIP));
    assert!(pings(&world, "b", VIP));
    // Attaching again replaces, and then the other network counts.
    world.balancer().attach_answerer(&world.netns("net"), "h-a", VNI + 1).unwrap();
    assert!(pings(&world, "a", VIP));
    let filters = world.run("net", "tc filter show dev h-a ingress").unwrap();
    assert_eq!(filters.matches("handle 0x").count(), 1, "{filters}");
}

#[test]
fn whether_somebody_answers_is_read_back() {
    let world = World::new(&["a"]);
    let balancer = world.balancer();
    let is_there = || balancer.has_answerer(&world.netns("net"), "h-a").unwrap();
    assert!(!is_there());
    for damage in
        ["tc qdisc del dev h-a clsact", "tc filter del dev h-a egress", "tc filter del dev h-a ingress"]
    {
        balancer.attach_answerer(&world.netns("net"), "h-a", VNI).unwrap();
        assert!(is_there());
        world.run("net", damage).unwrap();
        assert!(!is_there(), "after {damage}");
    }
    assert!(!balancer.has_answerer(&world.netns("net"), "nope").unwrap());
}

#[test]
fn a_missing_interface_is_told_by_name() {
    let world = World::new(&["a"]);
    let error = world.balancer().attach_answerer(&world.netns("net"), "nope", VNI).unwrap_err();
    assert!(error.to_string().contains("nope"), "{error}");
}
