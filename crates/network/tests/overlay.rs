//! Overlays and sandboxes on the real kernel.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use common::*;
use shoal_model::{EndpointEntry, MacAddr};
use shoal_network::*;

/// Counts the VXLAN frames that a node sends.
fn count_frames(node: &Node) {
    node.host
        .sh("nft 'add table inet probe; add chain inet probe out { type filter hook output priority 0; }; \
                  add rule inet probe out udp dport 4789 counter'");
}

fn frames(node: &Node) -> u64 {
    let listing = node.host.sh("nft list chain inet probe out");
    let packets = listing.split("packets ").nth(1).unwrap();
    packets.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn sandboxes_on_one_node_reach_each_other() {
    let world = World::new(1);
    let node = &world.nodes[0];
    let table =
        world.network("n1", 4097, "10.0.1.0/24").endpoint("a", 0, "10.0.1.3").endpoint("b", 0, "10.0.1.4");
    let table = table.done();
    node.apply(&table);
    let a = node.sandbox(&sandbox(&table, "a", false));
    let b = node.sandbox(&sandbox(&table, "b", false));
    b.serve("0.0.0.0:80", "b");
    assert!(a.ask("10.0.1.4:80").unwrap().starts_with("b 10.0.1.3:"));
    assert!(a.udp(0).ask("10.0.1.4:80").unwrap().starts_with("b 10.0.1.3:"));
    a.sh("busybox ping -c1 -W3 10.0.1.4; busybox ping -c1 -W3 127.0.0.1");
    // Where everything is, for those who attach something to it.
    let sandbox = node.block(node.fabric.sandbox("a")).unwrap().unwrap();
    assert_eq!(sandbox.path, node.netns("a"));
    let [link] = sandbox.links.as_slice() else { panic!("{sandbox:?}") };
    assert_eq!((link.network.as_ref(), link.interface.as_str()), (Some(&"n1".into()), "eth0"));
    let end = link.far_end.as_ref().unwrap();
    Host::at(&end.netns).sh(&format!("ip link show {}", end.interface));
    // Only what belongs there: no way out, no address nobody gave.
    assert_eq!(a.sh("ip -o route").lines().count(), 1);
    assert_eq!(a.sh("ip -6 -o addr show dev eth0"), "");
}

#[test]
fn sandboxes_on_two_nodes_reach_each_other_and_nothing_is_flooded() {
    let world = World::new(2);
    let mut table = world
        .network("n1", 4097, "10.0.1.0/24")
        .endpoint("a", 0, "10.0.1.3")
        .endpoint("b", 1, "10.0.1.4")
        .done();
    for (id, v6) in [("a", "fd00:1::3/64"), ("b", "fd00:1::4/64")] {
        table.endpoints.get_mut(&id.into()).unwrap().address_v6 = v6.parse().ok();
    }
    let [one, two] = world.nodes.as_slice() else { unreachable!() };
    count_frames(one);
    for node in &world.nodes {
        node.apply(&table);
    }
    let a = one.sandbox(&sandbox(&table, "a", false));
    let b = two.sandbox(&sandbox(&table, "b", false));
    b.serve("0.0.0.0:80", "b");
    b.serve("[fd00:1::4]:81", "b");

    // Nobody has these addresses, so nobody is asked.
    a.try_sh(
        "busybox ping -c1 -W1 10.0.1.77; busybox ping -c1 -W1 -b 10.0.1.255; ping -6 -c1 -W1 fd00:1::77",
    );
    a.try_sh("busybox ping -c1 -W1 10.0.1.77; busybox ping -c2 -W1 224.0.0.1");
    assert_eq!(frames(one), 0, "flooded");
    a.sh("ip neigh flush all; busybox ping -c1 -W3 10.0.1.4");
    assert_eq!(frames(one), 1, "the echo request and nothing else");
    assert!(a.ask("10.0.1.4:80").unwrap().starts_with("b 10.0.1.3:"));
    assert!(a.udp(0).ask("10.0.1.4:80").unwrap().starts_with("b 10.0.1.3:"));
    assert!(a.ask("[fd00:1::4]:81").unwrap().starts_with("b [fd00:1::3]:"));
    // Full frames pass, larger ones are known not to.
    a.sh("busybox ping -c1 -W3 -s 1422 10.0.1.4");
    assert_eq!(a.sh("ip -o link show eth0 | grep -o 'mtu [0-9]*'").trim(), "mtu 1450");
    // The tunnels are not tracked.
    assert!(!one.host.sh("conntrack -L -p udp 2>/dev/null").contains("dport=4789"));
}

#[test]
fn the_table_decides_who_is_reachable() {
    let world = World::new(2);
    let [one, two] = world.nodes.as_slice() else { unreachable!() };
    let both =
        world.network("n1", 4097, "10.0.1.0/24").endpoint("a", 0, "10.0.1.3").endpoint("b", 1, "10.0.1.4");
    let both = both.done();
    for node in &world.nodes {
        node.apply(&both);
    }
    let a = one.sandbox(&sandbox(&both, "a", false));
    let b = two.sandbox(&sandbox(&both, "b", false));
    b.serve("0.0.0.0:80", "b");
    assert!(a.ask("10.0.1.4:80").is_ok());

    let state = one.block(one.fabric.read_back(&"n1".into())).unwrap();
    let expected = Remote { mac: mac(4097, [10, 0, 1, 4].into()), data_path_address: two.address.into() };
    assert_eq!(state.remote, BTreeMap::from([([10, 0, 1, 4].into(), expected)]));
    assert_eq!(state.local, BTreeSet::from([IpAddr::from([10, 0, 1, 3])]));
    assert_eq!(state.broken, Vec::<String>::new());

    let mut without = both.clone();
    without.endpoints.remove(&"b".into());
    // Applying only adds; a new table says what is to go when it is time.
    one.apply(&without);
    assert!(a.ask("10.0.1.4:80").is_ok());
    one.block(one.fabric.prune_network(&without)).unwrap();
    a.sh("ip neigh flush all");
    assert!(a.ask("10.0.1.4:80").is_err());
    assert_eq!(one.block(one.fabric.read_back(&"n1".into())).unwrap().remote, BTreeMap::new());

    // The same address with another link address, and an entry that somebody damaged.
    let mut moved = both.clone();
    moved.endpoints.get_mut(&"b".into()).unwrap().mac = MacAddr([2, 0x42, 9, 9, 9, 9]);
    one.apply(&moved);
    one.apply(&both);
    one.block(one.fabric.prune_network(&both)).unwrap();
    let fabric = Host::at(&one.netns("net-n1"));
    fabric.sh(&format!("bridge fdb del {} dev vx0 self", mac(4097, [10, 0, 1, 4].into())));
    assert_eq!(one.block(one.fabric.read_back(&"n1".into())).unwrap().broken.len(), 1);
    one.apply(&both);
    assert_eq!(one.block(one.fabric.read_back(&"n1".into())).unwrap().broken, Vec::<String>::new());
    a.sh("ip neigh flush all");
    assert!(a.ask("10.0.1.4:80").is_ok());
}

#[test]
fn equal_subnets_stay_apart() {
    let world = World::new(2);
    let [one, two] = world.nodes.as_slice() else { unreachable!() };
    let build = |id: &str, vni, a: &str, b: &str, c: &str| {
        let table = world.network(id, vni, "10.0.1.0/24");
        table.endpoint(a, 0, "10.0.1.3").endpoint(b, 0, "10.0.1.4").endpoint(c, 1, "10.0.1.5").done()
    };
    let tables = [build("n1", 4097, "a1", "b1", "c1"), build("n2", 4098, "a2", "b2", "c2")];
    for (number, table) in (1..).zip(&tables) {
        one.apply(table);
        two.apply(table);
        let b = one.sandbox(&sandbox(table, &format!("b{number}"), false));
        b.serve("0.0.0.0:80", &format!("b{number}"));
        let c = two.sandbox(&sandbox(table, &format!("c{number}"), false));
        c.serve("0.0.0.0:80", &format!("c{number}"));
    }
    for (number, table) in (1..).zip(&tables) {
        let a = one.sandbox(&sandbox(table, &format!("a{number}"), false));
        assert!(a.ask("10.0.1.4:80").unwrap().starts_with(&format!("b{number} 10.0.1.3:")));
        assert!(a.ask("10.0.1.5:80").unwrap().starts_with(&format!("c{number} 10.0.1.3:")));
    }
}

#[test]
fn a_host_firewall_does_not_touch_overlays() {
    let world = World::new(1);
    let node = &world.nodes[0];
    node.host.sh(
        "nft 'add table ip wall; add chain ip wall f { type filter hook forward priority 0; policy drop; }'",
    );
    let table =
        world.network("n1", 4097, "10.0.1.0/24").endpoint("a", 0, "10.0.1.3").endpoint("b", 0, "10.0.1.4");
    let table = table.done();
    node.apply(&table);
    let a = node.sandbox(&sandbox(&table, "a", false));
    node.sandbox(&sandbox(&table, "b", false)).serve("0.0.0.0:80", "b");
    assert!(a.ask("10.0.1.4:80").is_ok());
}

#[test]
fn frames_from_strangers_are_dropped() {
    let world = World::new(2);
    let [one, stranger] = world.nodes.as_slice() else { unreachable!() };
    let mut table = world.network("n1", 4097, "10.0.1.0/24").endpoint("a", 0, "10.0.1.3").done();
    let everybody = table.nodes.clone();
    table.nodes.remove(&stranger.id);
    one.apply(&table);
    one.sandbox(&sandbox(&table, "a", false)).serve("0.0.0.0:80", "a");
    // The stranger knows everything there is to know.
    let mac = mac(4097, [10, 0, 1, 3].into());
    stranger.host.sh(&format!(
        "ip link add vx type vxlan id 4097 dstport 4789 local 10.77.0.2 nolearning; \
         ip addr add 10.0.1.9/24 dev vx; ip link set vx up address 02:42:01:00:01:09; \
         bridge fdb add {mac} dev vx dst 10.77.0.1 self permanent; \
         ip neigh add 10.0.1.3 lladdr {mac} dev vx nud permanent"
    ));
    // So that an answer would find its way.
    let mut answerable = table.clone();
    answerable.nodes = everybody.clone();
    let entry = EndpointEntry {
        node: stranger.id.clone(),
        address: "10.0.1.9/24".parse().unwrap(),
        address_v6: None,
        mac: "02:42:01:00:01:09".parse().unwrap(),
        names: Vec::new(),
    };
    answerable.endpoints.insert("x".into(), entry);
    one.apply(&answerable);
    assert!(stranger.host.ask("10.0.1.3:80").is_ok(), "a member is let in");
    one.block(one.fabric.prune_network(&table)).unwrap();
    stranger.host.sh("conntrack -F 2>/dev/null");
    let before = received(one, "a");
    assert!(stranger.host.ask("10.0.1.3:80").is_err());
    assert_eq!(received(one, "a"), before, "frames came through");
}

/// Packets that have reached a sandbox.
fn received(node: &Node, sandbox: &str) -> String {
    Host::at(&node.netns(sandbox)).sh("ip -s -o link show eth0 | grep -o 'RX: .*'")
}

#[test]
fn a_sandbox_gets_dockers_settings_and_those_asked_for() {
    let world = World::new(1);
    let node = &world.nodes[0];
    let table = world.network("n1", 4097, "10.0.1.0/24").endpoint("a", 0, "10.0.1.3").done();
    node.apply(&table);
    let mut config = sandbox(&table, "a", true);
    config.sysctls.insert("net.ipv4.conf.eth0.arp_ignore".to_owned(), "2".to_owned());
    let a = node.sandbox(&config);
    let read = |key: &str| a.sh(&format!("sysctl -n {key}")).split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(read("net.ipv4.ip_unprivileged_port_start"), "0");
    assert_eq!(read("net.ipv4.ping_group_range"), "0 2147483647");
    assert_eq!(read("net.ipv4.conf.eth0.arp_ignore"), "2");
    assert!(a.sh("ip -o link show eth0").contains("state UP"));
    config.sysctls.insert("kernel.hostname".to_owned(), "x".to_owned());
    let refused = node.block(node.fabric.create_sandbox(&config));
    assert!(matches!(refused, Err(Error::InvalidSysctl(_))), "{refused:?}");
}

#[test]
fn what_cannot_be_done_is_said() {
    let world = World::new(1);
    let node = &world.nodes[0];
    let table = world.network("n1", 4097, "10.0.1.0/24").endpoint("a", 0, "10.0.1.3").done();
    let refused = node.block(node.fabric.create_sandbox(&sandbox(&table, "a", false)));
    assert!(matches!(&refused, Err(Error::NetworkNotApplied(id)) if id.as_str() == "n1"), "{refused:?}");
    for id in ["", "..", "a/b", "net-n1"] {
        let config = SandboxConfig { id: id.to_owned(), ..SandboxConfig::default() };
        let refused = node.block(node.fabric.create_sandbox(&config));
        assert!(matches!(refused, Err(Error::InvalidName(_))), "{id}: {refused:?}");
    }
    node.host.sh("ip link add shoal-gw type bridge; ip link set shoal-gw alias mine");
    let config = SandboxConfig { id: "b".to_owned(), egress: true, ..SandboxConfig::default() };
    let refused = node.block(node.fabric.create_sandbox(&config));
    assert!(matches!(refused, Err(Error::Foreign { .. })), "{refused:?}");
    node.reset().unwrap();
    node.host.sh("ip link show shoal-gw");
}
