//! Overlays that span nodes, on the real kernel: what passes, what does not, and how large it may be.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::*;
use shoal_model::{AddressPool, NetworkTable};
use shoal_network::*;

/// An endpoint on each of three nodes, with both address families.
fn table(world: &World) -> NetworkTable {
    let mut table = world.network("n1", 4097, "10.0.1.0/24");
    table.table.config.pools.push(AddressPool::new("fd00:1::/64".parse().unwrap()));
    let table = table.endpoint("a", 0, "10.0.1.3").v6("a", "fd00:1::3/64");
    let table = table.endpoint("b", 1, "10.0.1.4").v6("b", "fd00:1::4/64");
    let table = table.endpoint("c", 2, "10.0.1.5").v6("c", "fd00:1::5/64");
    table.done()
}

/// Builds the network and its three sandboxes, each with a server.
fn build(world: &World, table: &NetworkTable) -> Vec<Host> {
    for node in &world.nodes {
        node.apply(table);
    }
    let sandboxes = ["a", "b", "c"].into_iter().zip(&world.nodes).map(|(id, node)| {
        let host = node.sandbox(&sandbox(table, id, false));
        host.serve("0.0.0.0:80", id);
        host.serve(&format!("[{}]:81", table.endpoints[&id.into()].address_v6.unwrap().addr()), id);
        host
    });
    sandboxes.collect()
}

/// Everybody reaches everybody by every protocol.
fn meet(sandboxes: &[Host]) {
    for (from, host) in (3..).zip(sandboxes) {
        for (to, name) in (3..).zip(["a", "b", "c"]) {
            let (v4, v6) = (format!("10.0.1.{to}:80"), format!("[fd00:1::{to}]:81"));
            let (seen4, seen6) = (format!("{name} 10.0.1.{from}:"), format!("{name} [fd00:1::{from}]:"));
            assert!(host.ask(&v4).unwrap().starts_with(&seen4));
            assert!(host.udp(0).ask(&v4).unwrap().starts_with(&seen4));
            assert!(host.ask(&v6).unwrap().starts_with(&seen6));
            assert!(host.udp_v6(0).ask(&v6).unwrap().starts_with(&seen6));
            host.sh(&format!("busybox ping -c1 -W3 10.0.1.{to}; busybox ping -6 -c1 -W3 fd00:1::{to}"));
        }
    }
}

fn mtu(host: &Host, link: &str) -> u32 {
    let text = host.sh(&format!("ip -o link show {link} | grep -o 'mtu [0-9]*'"));
    text.trim().strip_prefix("mtu ").unwrap().parse().unwrap()
}

/// The largest frame passes without being cut, in both families, and no larger one is tried.
fn full_frames_pass(from: &Host, mtu: u32) {
    assert_eq!(self::mtu(from, "eth0"), mtu);
    from.sh("ip route flush cache; ip -6 route flush cache");
    for to in 4..=5 {
        from.sh(&format!("ping -4 -M do -c1 -W3 -s {} 10.0.1.{to}", mtu - 28));
        from.sh(&format!("ping -6 -M do -c1 -W3 -s {} fd00:1::{to}", mtu - 48));
    }
    assert!(!from.try_sh(&format!("ping -4 -M do -c1 -W1 -s {} 10.0.1.4", mtu - 27)).0);
}

#[test]
fn three_nodes_reach_each_other_in_both_families() {
    let world = World::new(3);
    let table = table(&world);
    let sandboxes = build(&world, &table);
    meet(&sandboxes);
    full_frames_pass(&sandboxes[0], 1450);
}

#[test]
fn the_data_path_may_use_another_port() {
    let world = World::new(3);
    let mut table = table(&world);
    table.config.data_path_port = 7789;
    let ports = "nft 'add table inet probe; add chain inet probe out { type filter hook output priority 0; }; \
                 add rule inet probe out udp dport 4789 counter drop'";
    world.nodes.iter().for_each(|node| drop(node.host.sh(ports)));
    let sandboxes = build(&world, &table);
    meet(&sandboxes);
    for node in &world.nodes {
        assert!(node.host.sh("nft list chain inet probe out").contains("packets 0"));
        assert!(!node.host.sh("conntrack -L -p udp 2>/dev/null").contains("dport=7789"), "tracked");
    }
}

#[test]
fn the_size_of_frames_is_the_underlays_or_the_users() {
    let world = World::new(3);
    world.nodes.iter().for_each(|node| drop(node.host.sh("ip link set eth0 mtu 1400")));
    let sandboxes = build(&world, &table(&world));
    full_frames_pass(&sandboxes[0], 1350);
    let mut chosen = world.network("n2", 4098, "10.0.2.0/24").endpoint("d", 0, "10.0.2.3").done();
    chosen.config.mtu = Some(1300);
    world.nodes[0].apply(&chosen);
    assert_eq!(mtu(&world.nodes[0].sandbox(&sandbox(&chosen, "d", false)), "eth0"), 1300);
}

#[test]
fn running_sandboxes_follow_an_underlay_that_gets_smaller_or_larger() {
    let world = World::new(3);
    let table = table(&world);
    let sandboxes = build(&world, &table);
    full_frames_pass(&sandboxes[0], 1450);
    let node = &world.nodes[0];
    let ingress = world.ingress().endpoint("p", 0, "10.0.0.10").done();
    node.apply(&ingress);
    let published = node.sandbox(&sandbox(&ingress, "p", true));
    let plain = node.sandbox(&SandboxConfig { id: "g".to_owned(), egress: true, ..SandboxConfig::default() });
    for (underlay, inner) in [(1400, 1350), (1500, 1450)] {
        for node in &world.nodes {
            let mut changes = node.fabric.mtu_changes();
            changes.mark_unchanged();
            node.host.sh(&format!("ip link set eth0 mtu {underlay}"));
            node.block(changes.changed()).unwrap();
            eventually("the new size is known", || {
                changes.borrow().get(&node.address.into()) == Some(&underlay)
            });
            node.block(node.fabric.follow_mtu()).unwrap();
        }
        full_frames_pass(&sandboxes[0], inner);
        meet(&sandboxes);
        assert_eq!((mtu(&published, "eth0"), mtu(&plain, "eth0")), (inner, underlay));
        for link in ["shoal-ing", "shoal-ingvx"] {
            assert_eq!(mtu(&node.host, link), inner, "{link}");
        }
    }
    // The same for a process that was not there when it happened.
    node.host.sh("ip link set eth0 mtu 1300");
    let again = node.open_again();
    node.block(again.apply_network(&table)).unwrap();
    node.block(again.apply_network(&ingress)).unwrap();
    assert_eq!(mtu(&published, "eth0"), 1250);
    assert_eq!(mtu(&sandboxes[0], "eth0"), 1280, "IPv6 would go with less");
    meet(&sandboxes);
    // An address that is away for a moment says nothing, whoever asks.
    node.host.sh("ip addr flush dev eth0 scope global");
    node.block(again.apply_network(&ingress)).unwrap();
    node.block(again.follow_mtu()).unwrap();
    assert_eq!(mtu(&published, "eth0"), 1250);
}

#[test]
fn all_subnets_of_a_network_are_one_network() {
    let world = World::new(2);
    let mut table =
        world.network("n1", 4097, "10.0.1.0/24").endpoint("a", 0, "10.0.1.3").endpoint("b", 1, "10.0.1.4");
    for subnet in ["192.168.7.0/24", "fd00:1::/64", "fd00:2::/64"] {
        table.table.config.pools.push(AddressPool::new(subnet.parse().unwrap()));
    }
    let mut table = table.v6("a", "fd00:1::3/64").v6("b", "fd00:2::4/64").done();
    table.endpoints.get_mut(&"b".into()).unwrap().address = "192.168.7.4/24".parse().unwrap();
    let [one, two] = world.nodes.as_slice() else { unreachable!() };
    one.apply(&table);
    two.apply(&table);
    let a = one.sandbox(&sandbox(&table, "a", false));
    let b = two.sandbox(&sandbox(&table, "b", false));
    b.serve("0.0.0.0:80", "b");
    b.serve("[fd00:2::4]:81", "b");
    assert!(a.ask("192.168.7.4:80").unwrap().starts_with("b 10.0.1.3:"));
    assert!(a.ask("[fd00:2::4]:81").unwrap().starts_with("b [fd00:1::3]:"));
    // Making a sandbox again changes nothing.
    let routes = a.sh("ip route; ip -6 route");
    one.sandbox(&sandbox(&table, "a", false));
    assert_eq!(a.sh("ip route; ip -6 route"), routes);
}

#[test]
fn the_nodes_own_routes_are_told_and_followed() {
    let world = World::new(1);
    let node = &world.nodes[0];
    let own = node.fabric.own_network();
    let told = || own.borrow().routes.iter().map(ToString::to_string).collect::<Vec<_>>();
    let addresses = || own.borrow().addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
    // The client's side is behind the default route; loopback and what is ours say nothing.
    assert_eq!(told(), ["10.77.0.0/24"]);
    let table = world.ingress().endpoint("p", 0, "10.0.0.10").done();
    node.apply(&table);
    node.sandbox(&SandboxConfig { id: "g".to_owned(), egress: true, ..SandboxConfig::default() });
    node.host
        .sh("ip route add 172.30.0.0/16 via 10.77.0.254; ip route add 10.9.0.0/16 via 10.77.0.254 table 7");
    eventually("a new route is told", || told() == ["10.77.0.0/24", "172.30.0.0/16"]);
    node.host.sh("sysctl -qw net.ipv6.conf.eth0.disable_ipv6=0; ip -6 addr add fd00:9::1/64 dev eth0 nodad");
    eventually("an IPv6 route is told", || told() == ["10.77.0.0/24", "172.30.0.0/16", "fd00:9::/64"]);
    assert_eq!(addresses(), ["10.77.0.1", "fd00:9::1"], "not those of our links");
    node.host.sh("ip route del 172.30.0.0/16");
    eventually("a route is gone", || told() == ["10.77.0.0/24", "fd00:9::/64"]);
}

#[test]
fn a_data_path_over_ipv6_is_refused_in_words() {
    let world = World::new(1);
    let node = &world.nodes[0];
    let refused = node.block(node.fabric.set_node(node.id.clone(), "fd00::1".parse().unwrap()));
    assert_eq!(refused.unwrap_err().to_string(), "the data path does not support fd00::1");
}
