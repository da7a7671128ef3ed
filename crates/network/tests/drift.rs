//! What somebody else changes in the kernel is seen, named, and put back by the calls that apply
//! tables.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Instant;

use common::*;
use shoal_model::{NetworkTable, Protocol};
use shoal_network::*;

/// A node with one task of an overlay and one published task, each with a peer on another node.
struct Stage {
    world: World,
    overlay: NetworkTable,
    ingress: NetworkTable,
    ports: Ports,
    sandboxes: Vec<SandboxConfig>,
}

impl Stage {
    fn set() -> Self {
        let world = World::new(2);
        let overlay = world.network("n1", 4097, "10.0.1.0/24");
        let overlay = overlay.endpoint("a", 0, "10.0.1.3").endpoint("b", 1, "10.0.1.4").done();
        let ingress = world.ingress().endpoint("p", 0, "10.0.0.10").endpoint("q", 1, "10.0.0.11").done();
        let backends: &[&str] = &["10.0.0.10:80", "10.0.0.11:80"];
        let ports = port_map(&[(Protocol::Tcp, 8000, backends), (Protocol::Udp, 9000, &[])]);
        let mut sandboxes = Vec::new();
        for (number, node) in world.nodes.iter().enumerate() {
            node.apply(&overlay);
            node.apply(&ingress);
            node.block(node.fabric.apply_ports(&ports)).unwrap();
            let (plain, published) = [("a", "p"), ("b", "q")][number];
            for config in [sandbox(&overlay, plain, true), sandbox(&ingress, published, true)] {
                node.sandbox(&config).serve("0.0.0.0:80", &config.id);
                if number == 0 {
                    sandboxes.push(config);
                }
            }
        }
        Self { world, overlay, ingress, ports, sandboxes }
    }

    fn node(&self) -> &common::Node {
        &self.world.nodes[0]
    }

    /// All differences, each after the name of what it concerns.
    fn differences(&self) -> Vec<String> {
        let node = self.node();
        let of = |what: &str, found: Vec<String>| -> Vec<String> {
            found.into_iter().map(|text| format!("{what}: {text}")).collect()
        };
        let mut all = of("node", node.block(node.fabric.node_differences()).unwrap());
        for table in [&self.overlay, &self.ingress] {
            let found = node.block(node.fabric.differences(table)).unwrap();
            all.extend(of(table.network.as_str(), found));
        }
        all.extend(of("ports", node.block(node.fabric.port_differences(&self.ports)).unwrap()));
        let sandboxes = node.block(node.fabric.sandbox_differences(&self.sandboxes)).unwrap();
        all.extend(sandboxes.into_iter().flat_map(|(id, found)| of(&id, found)));
        all
    }

    fn repair(&self) {
        let node = self.node();
        node.block(node.fabric.renew_node()).unwrap();
        for table in [&self.overlay, &self.ingress] {
            node.block(node.fabric.distrust(&table.network));
            node.apply(table);
            node.block(node.fabric.prune_network(table)).unwrap();
        }
        node.block(node.fabric.apply_ports(&self.ports)).unwrap();
        for config in &self.sandboxes {
            node.sandbox(config);
        }
    }

    /// Traffic takes every way that the node has.
    fn works(&self) {
        let node = self.node();
        let inside = Host::at(&node.netns("a"));
        inside.try_sh("ip neigh flush all");
        assert!(inside.ask("10.0.1.4:80").unwrap().starts_with("b "));
        for _ in 0..20 {
            let answer = self.world.client.ask("10.77.0.1:8000").unwrap();
            assert!(answer.contains(CLIENT), "{answer}");
        }
        let outside = self.world.client.run(|| std::net::UdpSocket::bind("0.0.0.0:0").unwrap());
        drop(outside);
    }
}

#[test]
fn every_kind_of_damage_is_named_and_repaired() {
    let stage = Stage::set();
    let none: [&str; 0] = [];
    assert_eq!(stage.differences(), none);
    stage.works();
    let host = stage.node().host.clone();
    let fabric = Host::at(&stage.node().netns("net-n1"));
    let mac_b = mac(4097, [10, 0, 1, 4].into());
    let mac_a = mac(4097, [10, 0, 1, 3].into());
    let damages: Vec<(&Host, String, &str)> = vec![
        // The fabric of an overlay.
        (&fabric, "ip neigh del 10.0.1.4 dev br0".into(), "n1: fabric: no neighbour entry 10.0.1.4"),
        (&fabric, format!("bridge fdb del {mac_b} dev vx0 self"), "n1: fabric: no forwarding entry"),
        (&fabric, format!("bridge fdb del {mac_b} dev vx0 master"), "n1: fabric: no bridge entry"),
        (
            &fabric,
            format!("bridge fdb replace {mac_b} dev vx0 dst 10.77.0.99 self permanent"),
            "n1: fabric: no forwarding entry",
        ),
        (
            &fabric,
            "ip neigh add 10.0.1.77 lladdr 02:42:00:00:00:77 dev br0 nud permanent".into(),
            "n1: fabric: stray neighbour entry 10.0.1.77",
        ),
        (&fabric, "ip link del vx0".into(), "n1: fabric: the tunnel"),
        (&fabric, "ip link set br0 down".into(), "n1: fabric: the bridge"),
        (&fabric, "ip link set vx0 mtu 1000".into(), "n1: fabric: the tunnel"),
        (&host, "ip link set shoal-ingvx mtu 1000".into(), "ingress: fabric: link shoal-ingvx"),
        // Who may send into it.
        (
            &host,
            "nft delete element inet shoal members '{ 10.77.0.2 . 4789 . 4097 }'".into(),
            "n1: nft: members lacks 10.77.0.2 . 4789 . 4097",
        ),
        (
            &host,
            "nft add element inet shoal members '{ 10.77.0.66 . 4789 . 4097 }'".into(),
            "n1: nft: members holds 10.77.0.66 . 4789 . 4097",
        ),
        (&host, "nft flush set inet shoal tunnels".into(), "n1: nft: tunnels lacks 4789 . 4097"),
        // Published ports.
        (
            &host,
            "nft delete element inet shoal ports16 '{ tcp . 8000 . 3 }'".into(),
            "ports: nft: ports16 lacks tcp . 8000 . 3",
        ),
        (
            &host,
            "nft delete element inet shoal ports16 '{ tcp . 8000 . 3 }'; \
             nft add element inet shoal ports16 '{ tcp . 8000 . 3 : 10.0.0.99 . 80 }'"
                .into(),
            "ports: nft: ports16 leads tcp . 8000 . 3 to 10.0.0.99 . 80",
        ),
        (&host, "nft flush set inet shoal refused".into(), "ports: nft: refused lacks ipv4 . udp . 9000"),
        (
            &host,
            "nft add element inet shoal refused '{ ipv4 . tcp . 1 }'".into(),
            "ports: nft: refused holds ipv4 . tcp . 1",
        ),
        // The routing mesh.
        (&host, "ip route del 10.0.0.11".into(), "ingress: fabric: no route to 10.0.0.11/32"),
        (&host, "ip rule del priority 90".into(), "ingress: fabric: no rule"),
        (&host, "ip route flush table 90".into(), "ingress: fabric: no route to 0.0.0.0/0"),
        (
            &host,
            "ip neigh del 10.0.0.3 dev shoal-ingvx".into(),
            "ingress: fabric: no neighbour entry 10.0.0.3",
        ),
        (&host, "ip addr flush dev shoal-ing".into(), "ingress: fabric: link shoal-ing has not"),
        (&host, "ip link del shoal-ingvx".into(), "ingress: fabric: link shoal-ingvx is gone"),
        (&host, "nft delete table netdev shoal".into(), "ingress: nft: table netdev shoal is gone"),
        (&host, "nft flush map inet shoal zones".into(), "ingress: nft: zones lacks"),
        (&host, "nft flush map inet shoal marks".into(), "ingress: nft: marks lacks"),
        (&host, "nft flush map netdev shoal returns".into(), "ingress: nft: returns lacks"),
        (&host, "nft flush set inet shoal homes".into(), "ingress: nft: homes lacks"),
        (&host, "sysctl -qw net.ipv4.ip_forward=0".into(), "sysctl: net/ipv4/ip_forward is 0, not 1"),
        (
            &host,
            "sysctl -qw net.ipv4.conf.shoal-ing.proxy_arp=0".into(),
            "ingress: sysctl: net/ipv4/conf/shoal-ing/proxy_arp",
        ),
        // The node as a whole.
        (&host, "nft flush chain inet shoal publish".into(), "node: nft: the rules of table inet shoal were"),
        (
            &host,
            "nft insert rule inet shoal publish tcp dport 1 drop".into(),
            "node: nft: the rules of table inet shoal were",
        ),
        (&host, "nft flush ruleset".into(), "node: nft: table inet shoal is gone"),
        (&host, "nft flush ruleset; ip link del shoal-ingvx".into(), "ingress: fabric: link shoal-ingvx"),
        (&host, "ip link del shoal-gw".into(), "node: fabric: link shoal-gw is gone"),
        (&host, "ip link del shoal-ing".into(), "p: sandbox: no link to network ingress"),
        // Sandboxes' links.
        (
            &fabric,
            format!("bridge fdb del {mac_a} dev $(ls /sys/class/net/br0/brif | grep shv) master"),
            "a: sandbox: no bridge entry",
        ),
        (
            &fabric,
            "ip link del $(ls /sys/class/net/br0/brif | grep shv)".into(),
            "a: sandbox: no link to network n1",
        ),
    ];
    for (place, script, expected) in &damages {
        // Only sysfs of the namespace itself knows its bridges' ports.
        place
            .sh(&script.replace("ls /sys/class/net/br0/brif", "ip -br link show master br0 | sed 's/@.*//'"));
        let found = stage.differences();
        assert!(found.iter().any(|text| text.contains(expected)), "{script}: {found:#?}");
        stage.repair();
        assert_eq!(stage.differences(), none, "after: {script}");
        stage.works();
    }
}

#[test]
fn a_look_at_a_thousand_endpoints_is_cheap() {
    let world = World::new(2);
    let mut table = world.network("n1", 4097, "10.4.0.0/16");
    for number in 0..1000u16 {
        let [high, low] = number.to_be_bytes();
        table = table.endpoint(&format!("e{number}"), 1, &format!("10.4.{}.{low}", high + 1));
    }
    let table = table.done();
    let ingress = world.ingress().done();
    let node = &world.nodes[0];
    node.apply(&table);
    node.apply(&ingress);
    let one = PublishedPort { backends: ["10.0.0.9:80".parse().unwrap()].into(), ..PublishedPort::default() };
    let ports = (1000..1300).map(|port| ((Protocol::Tcp, port), one.clone()));
    let ports: Ports = ports.collect();
    node.block(node.fabric.apply_ports(&ports)).unwrap();
    let begun = Instant::now();
    let rounds = 10;
    for _ in 0..rounds {
        assert_eq!(node.block(node.fabric.differences(&table)).unwrap(), Vec::<String>::new());
    }
    let endpoints = begun.elapsed() / rounds;
    let begun = Instant::now();
    for _ in 0..rounds {
        assert_eq!(node.block(node.fabric.port_differences(&ports)).unwrap(), Vec::<String>::new());
    }
    let published = begun.elapsed() / rounds;
    println!("1,000 remote endpoints: {endpoints:?}; 300 ports (4,800 elements): {published:?}");
    // Far above what it takes, and far below what one `nft list` of that size would.
    assert!(endpoints.as_millis() < 500 && published.as_millis() < 500, "{endpoints:?} {published:?}");
}
