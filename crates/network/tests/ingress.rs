//! The way out and the way in, on the real kernel, with strict reverse path filters everywhere.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::*;
use shoal_model::Protocol::{Tcp, Udp};
use shoal_model::{MacAddr, NetworkTable};
use shoal_network::*;

/// Three nodes that publish port 8000; one task each on the first two, serving on port 80.
struct Mesh {
    world: World,
    table: NetworkTable,
    tasks: Vec<Host>,
}

const BACKENDS: [&str; 2] = ["10.0.0.10:80", "10.0.0.11:80"];

impl Mesh {
    fn new() -> Self {
        Self::with_bridge_filters(true)
    }

    /// Where the module for it is loaded, the node's IP filters see bridged frames, too.
    fn with_bridge_filters(on: bool) -> Self {
        let world = World::new(3);
        for node in &world.nodes {
            set_bridge_filters(node, on);
        }
        let table = world.ingress().endpoint("t0", 0, "10.0.0.10").endpoint("t1", 1, "10.0.0.11").done();
        for node in &world.nodes {
            node.apply(&table);
        }
        let tasks = (0..2).map(|number| {
            let task = world.nodes[number].sandbox(&sandbox(&table, &format!("t{number}"), true));
            task.serve("0.0.0.0:80", &format!("t{number}"));
            task
        });
        let tasks = tasks.collect();
        Self { world, table, tasks }
    }

    fn publish(&self, backends: &[&str]) {
        for node in &self.world.nodes {
            node.publish(&[(Tcp, 8000, backends), (Udp, 8000, backends)]);
        }
    }
}

fn set_bridge_filters(node: &common::Node, on: bool) {
    for filters in ["iptables", "ip6tables"] {
        node.host.sh(&format!("sysctl -qw net.bridge.bridge-nf-call-{filters}={}", u8::from(on)));
    }
}

#[test]
fn the_way_out_hides_the_sandbox() {
    for filters in [true, false] {
        way_out(filters);
    }
}

fn way_out(filters: bool) {
    let world = World::new(1);
    let node = &world.nodes[0];
    set_bridge_filters(node, filters);
    let table =
        world.network("n1", 4097, "10.0.1.0/24").endpoint("a", 0, "10.0.1.3").endpoint("b", 0, "10.0.1.4");
    let table = table.done();
    node.apply(&table);
    world.client.serve("0.0.0.0:80", "outside");
    let a = node.sandbox(&sandbox(&table, "a", true));
    let b = node.sandbox(&sandbox(&table, "b", true));
    let target = format!("{CLIENT}:80");
    assert!(a.ask(&target).unwrap().starts_with("outside 10.77.0.1:"));
    assert!(b.udp(0).ask(&target).unwrap().starts_with("outside 10.77.0.1:"));
    // The bridge is a way out, not a way to each other.
    b.serve("0.0.0.0:81", "b");
    let gateway_address = |id: &str| {
        let sandbox = node.block(node.fabric.sandbox(id)).unwrap().unwrap();
        let link = sandbox.links.into_iter().find(|link| link.network.is_none()).unwrap();
        assert_eq!(link.interface, "eth1");
        link.address.unwrap().addr()
    };
    assert_eq!(gateway_address("a").to_string(), "172.18.0.2");
    assert!(a.ask("10.0.1.4:81").is_ok());
    assert!(a.ask(&format!("{}:81", gateway_address("b"))).is_err());
    // Nor a way in.
    world.client.sh("ip route add 172.18.0.0/16 via 203.0.113.1");
    assert!(world.client.ask(&format!("{}:81", gateway_address("b"))).is_err());
}

#[test]
fn the_gateway_avoids_what_the_node_has() {
    let world = World::new(1);
    let node = &world.nodes[0];
    node.host.sh("ip route add 172.18.9.0/24 via 10.77.0.254; ip addr add 172.19.1.1/24 dev eth0");
    let config = SandboxConfig { id: "a".to_owned(), egress: true, ..SandboxConfig::default() };
    let sandbox = node.block(node.fabric.create_sandbox(&config)).unwrap();
    assert_eq!(sandbox.links[0].address, "172.20.0.2/16".parse().ok());
}

#[test]
fn every_node_accepts_and_the_task_sees_the_client() {
    let mesh = Mesh::new();
    let client = &mesh.world.client;
    mesh.publish(&BACKENDS[..1]);
    for node in &mesh.world.nodes {
        let target = format!("{}:8000", node.address);
        let answer = client.ask(&target).unwrap();
        assert!(answer.starts_with(&format!("t0 {CLIENT}:")), "{}: {answer}", node.id);
        let answer = client.udp(0).ask(&target).unwrap();
        assert!(answer.starts_with(&format!("t0 {CLIENT}:")), "{}: {answer}", node.id);
    }
    // Other ports of the node are as they were.
    assert!(client.ask("10.77.0.1:8001").is_err());
    // Both backends take their share, wherever they are.
    mesh.publish(&BACKENDS);
    for node in &mesh.world.nodes {
        let target = format!("{}:8000", node.address);
        let seen: BTreeSet<String> =
            (0..40).map(|_| client.ask(&target).unwrap().split(' ').next().unwrap().to_owned()).collect();
        assert_eq!(seen.len(), 2, "{seen:?}");
    }
}

#[test]
fn one_client_port_through_all_nodes_at_once() {
    let mesh = Mesh::new();
    mesh.publish(&BACKENDS[..1]);
    let client = &mesh.world.client;
    let targets: Vec<String> = mesh.world.nodes.iter().map(|node| format!("{}:8000", node.address)).collect();
    let mut connections: Vec<_> =
        targets.iter().map(|target| client.connect(target, 5555).unwrap()).collect();
    let datagrams = client.udp(5555);
    for _ in 0..3 {
        for (connection, target) in connections.iter_mut().zip(&targets) {
            assert!(connection.ask().unwrap().starts_with(&format!("t0 {CLIENT}:")));
            assert!(datagrams.ask(target).unwrap().starts_with(&format!("t0 {CLIENT}:")));
        }
    }
}

#[test]
fn tasks_and_nodes_are_clients_too() {
    tasks_and_nodes_are_clients(&Mesh::with_bridge_filters(true));
}

#[test]
fn tasks_and_nodes_are_clients_too_without_bridge_filters() {
    tasks_and_nodes_are_clients(&Mesh::with_bridge_filters(false));
}

fn tasks_and_nodes_are_clients(mesh: &Mesh) {
    let [one, two, three] = mesh.world.nodes.as_slice() else { unreachable!() };
    mesh.publish(&BACKENDS[..1]);
    // A task to its own published port, and to that of another node.
    for node in &mesh.world.nodes {
        let target = format!("{}:8000", node.address);
        assert!(mesh.tasks[0].ask(&target).unwrap().starts_with("t0 "), "{}", node.id);
        assert!(mesh.tasks[1].ask(&target).unwrap().starts_with("t0 "), "{}", node.id);
    }
    // A container that publishes nothing, on the task's node and on another.
    for node in [one, three] {
        let config = SandboxConfig { id: "c".to_owned(), egress: true, ..SandboxConfig::default() };
        let container = node.sandbox(&config);
        for target in &mesh.world.nodes {
            let target = format!("{}:8000", target.address);
            assert!(container.ask(&target).unwrap().starts_with("t0 "));
            assert!(container.udp(0).ask(&target).unwrap().starts_with("t0 "));
        }
    }
    // The node itself is translated at connect time; the way there and its own address are ours.
    assert!(one.host.ask("10.0.0.10:80").unwrap().starts_with("t0 10.77.0.1:"));
    assert!(two.host.ask("10.0.0.10:80").unwrap().starts_with("t0 10.77.0.2:"));
    assert!(two.host.udp(0).ask("10.0.0.10:80").unwrap().starts_with("t0 10.77.0.2:"));
    // Other nodes' ports from a node.
    assert!(two.host.ask("10.77.0.3:8000").unwrap().starts_with("t0 10.77.0.2:"));
    // Also when the task is at home on that very node, and its node would see a packet of its own.
    assert!(one.host.ask("10.77.0.3:8000").unwrap().starts_with("t0 "));
    assert!(one.host.udp(0).ask("10.77.0.3:8000").unwrap().starts_with("t0 "));
    // The way out of a published task.
    mesh.world.client.serve("0.0.0.0:81", "outside");
    assert!(mesh.tasks[0].ask(&format!("{CLIENT}:81")).unwrap().starts_with("outside 10.77.0.1:"));
}

#[test]
fn ports_change_one_by_one() {
    let mesh = Mesh::new();
    let node = &mesh.world.nodes[2];
    let client = &mesh.world.client;
    let target = format!("{}:8000", node.address);
    node.publish(&[(Tcp, 8000, &BACKENDS[..1])]);
    let rules = || node.host.sh("nft -a -t list table inet shoal");
    let before = rules();
    let mut connection = client.connect(&target, 0).unwrap();
    assert!(connection.ask().unwrap().starts_with("t0 "));
    node.publish(&[(Tcp, 8000, &BACKENDS[1..]), (Udp, 9000, &BACKENDS)]);
    assert!(client.ask(&target).unwrap().starts_with("t1 "));
    assert!(connection.ask().unwrap().starts_with("t0 "), "a connection stays where it is");
    // No backend: refused at once, not after a time-out.
    node.publish(&[(Tcp, 8000, &[]), (Udp, 8000, &[])]);
    assert_eq!(client.ask(&target).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    let datagrams = client.udp(0);
    assert_eq!(datagrams.ask_connected(&target).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    assert!(connection.ask().is_ok());
    assert_eq!(rules(), before, "rules were touched");
    let wanted = ways(&port_map(&[(Tcp, 8000, &[]), (Udp, 8000, &[])]));
    assert_eq!(node.block(node.fabric.read_ports()).unwrap(), wanted);
    // Somebody flushes everything: the next change puts it back.
    node.host.sh("nft flush ruleset");
    node.publish(&[(Tcp, 8000, &BACKENDS[..1]), (Udp, 8000, &[])]);
    for other in &mesh.world.nodes {
        node.apply(&mesh.table);
        other.publish(&[(Tcp, 8000, &BACKENDS[..1]), (Udp, 8000, &[])]);
    }
    assert!(client.ask(&target).unwrap().starts_with("t0 "));
}

#[test]
fn a_udp_client_gets_another_backend_when_its_own_is_gone() {
    let mesh = Mesh::new();
    let client = &mesh.world.client;
    for node in &mesh.world.nodes {
        let target = format!("{}:8000", node.address);
        let datagrams = client.udp(0);
        mesh.publish(&BACKENDS[..1]);
        for _ in 0..3 {
            assert!(datagrams.ask(&target).unwrap().starts_with("t0 "));
        }
        mesh.publish(&BACKENDS[1..]);
        assert!(datagrams.ask(&target).unwrap().starts_with("t1 "), "{}", node.id);
        node.block(node.fabric.forget_flows([10, 0, 0, 11].into())).unwrap();
        assert!(!node.host.sh("conntrack -L -p udp 2>/dev/null").contains("src=10.0.0.11"));
        mesh.publish(&[]);
    }
    // A client that was there before the port was.
    let datagrams = client.udp(0);
    for node in &mesh.world.nodes {
        node.publish(&[]);
    }
    assert!(datagrams.ask("10.77.0.3:8000").is_err());
    mesh.publish(&BACKENDS[..1]);
    assert!(datagrams.ask("10.77.0.3:8000").unwrap().starts_with("t0 "));
}

#[test]
fn a_connection_that_a_backend_never_answered_is_led_to_another_one() {
    let mesh = Mesh::new();
    let client = &mesh.world.client;
    // Hears everything and answers nobody.
    mesh.tasks[0].sh("ip route del default");
    for (node, port) in mesh.world.nodes.iter().zip(5555..) {
        let target = format!("{}:8000", node.address);
        mesh.publish(&BACKENDS[..1]);
        assert!(client.connect(&target, port).is_err());
        let tracked = || node.host.sh("conntrack -L -p tcp 2>/dev/null");
        assert!(
            tracked().contains(&format!("src=10.0.0.10 dst={CLIENT} sport=80 dport={port}")),
            "{}",
            tracked()
        );
        let asked = std::thread::scope(|scope| {
            let asked = scope.spawn(|| client.connect(&target, port + 100).unwrap().ask());
            eventually("it is on its way", || tracked().contains(&format!("sport={} ", port + 100)));
            mesh.publish(&BACKENDS[1..]);
            asked.join().unwrap()
        });
        assert!(asked.unwrap().starts_with("t1 "), "under way at the time, through {}", node.id);
        // The first one's port is used again.
        assert!(client.connect(&target, port).unwrap().ask().unwrap().starts_with("t1 "), "{}", node.id);
    }
}

#[test]
fn a_tcp_client_is_told_that_its_backend_is_gone() {
    let mesh = Mesh::new();
    for (others, node) in [&BACKENDS[1..], &[]]
        .into_iter()
        .flat_map(|others| mesh.world.nodes.iter().map(move |node| (others, node)))
    {
        mesh.publish(&BACKENDS[..1]);
        let mut connection = mesh.world.client.connect(&format!("{}:8000", node.address), 0).unwrap();
        assert!(connection.ask().unwrap().starts_with("t0 "));
        mesh.publish(others);
        assert!(connection.ask().unwrap().starts_with("t0 "), "it may take its time to end");
        node.block(node.fabric.forget_flows([10, 0, 0, 10].into())).unwrap();
        assert_eq!(
            connection.ask().unwrap_err().kind(),
            std::io::ErrorKind::ConnectionReset,
            "{}, {others:?}",
            node.id
        );
    }
}

#[test]
fn a_host_port_leads_to_one_container() {
    for filters in [true, false] {
        host_port(filters);
    }
}

fn host_port(filters: bool) {
    let world = World::new(1);
    world.speak_v6();
    let node = &world.nodes[0];
    set_bridge_filters(node, filters);
    let config = SandboxConfig { id: "c".to_owned(), egress: true, ..SandboxConfig::default() };
    let container = node.sandbox(&config);
    container.serve("[::]:80", "c");
    let other = node.sandbox(&SandboxConfig { id: "d".to_owned(), ..config });
    let link = node.block(node.fabric.sandbox("c")).unwrap().unwrap().links.remove(0);
    assert_eq!(link.address, "172.18.0.2/16".parse().ok());
    let backends = link.addresses().map(|address| std::net::SocketAddr::new(address, 80)).collect();
    let port = HostPort { backends, bound: BTreeSet::new() };
    let mut ports = BTreeMap::from([((Tcp, 8080), port.clone()), ((Udp, 8080), port)]);
    node.block(node.fabric.host_ports(&ports)).unwrap();
    assert_eq!(node.block(node.fabric.host_port_differences(&ports)).unwrap(), Vec::<String>::new());
    let v6 = format!("[{}]:8080", node.address_v6());
    assert!(world.client.ask(&v6).unwrap().starts_with(&format!("c [{CLIENT_V6}]:")));
    assert!(world.client.udp_v6(0).ask(&v6).unwrap().starts_with(&format!("c [{CLIENT_V6}]:")));
    assert!(other.ask(&v6).unwrap().starts_with("c "));
    assert!(world.client.ask("10.77.0.1:8080").unwrap().contains(CLIENT));
    assert!(world.client.udp(0).ask("10.77.0.1:8080").unwrap().contains(CLIENT));
    assert!(other.ask("10.77.0.1:8080").unwrap().starts_with("c "));
    assert!(container.ask("10.77.0.1:8080").unwrap().starts_with("c "));
    ports.get_mut(&(Tcp, 8080)).unwrap().bound = [node.address_v6().into()].into();
    node.block(node.fabric.host_ports(&ports)).unwrap();
    assert!(world.client.ask(&v6).unwrap().starts_with("c "));
    assert!(world.client.ask("10.77.0.1:8080").is_err(), "bound to another address");
    assert!(world.client.udp(0).ask("10.77.0.1:8080").unwrap().contains(CLIENT), "UDP is not");
    node.block(node.fabric.host_ports(&BTreeMap::new())).unwrap();
    assert!(world.client.ask(&v6).is_err());
}

#[test]
fn the_ingress_is_read_back_and_pruned() {
    let mesh = Mesh::new();
    let [one, two, three] = mesh.world.nodes.as_slice() else { unreachable!() };
    let read = || three.block(three.fabric.read_back(&"ingress".into())).unwrap();
    let way = |node: &common::Node| {
        let [a, b, c, d] = node.ingress.octets();
        Remote { mac: MacAddr([2, 0x5b, a, b, c, d]), data_path_address: node.address.into() }
    };
    let both = BTreeMap::from([([10, 0, 0, 10].into(), way(one)), ([10, 0, 0, 11].into(), way(two))]);
    assert_eq!(read().remote, both);
    assert_eq!(read().broken, Vec::<String>::new());
    let mut table = mesh.table.clone();
    table.endpoints.remove(&"t1".into());
    table.nodes.remove(&two.id);
    three.apply(&table);
    assert_eq!(read().remote, both);
    three.block(three.fabric.prune_network(&table)).unwrap();
    assert_eq!(read().remote, BTreeMap::from([([10, 0, 0, 10].into(), way(one))]));
    let held = three
        .host
        .sh("ip route; ip neigh show nud permanent; bridge fdb show dev shoal-ingvx; nft list ruleset");
    for gone in ["10.0.0.11", "10.0.0.3", "02:5b:0a:00:00:03", "10.77.0.2 "] {
        assert!(!held.contains(gone), "{gone} is still there:\n{held}");
    }
    // The local task of another node.
    assert_eq!(
        one.block(one.fabric.read_back(&"ingress".into())).unwrap().local,
        BTreeSet::from([[10, 0, 0, 10].into()])
    );
}

#[test]
fn the_nodes_addresses_are_followed() {
    let world = World::new(1);
    let node = &world.nodes[0];
    let changes = node.fabric.address_changes();
    assert!(changes.borrow().contains(&node.address.into()));
    node.host.sh("ip addr add 10.77.0.99/24 dev eth0");
    eventually("a new address", || changes.borrow().contains(&[10, 77, 0, 99].into()));
    node.host.sh("ip addr del 10.77.0.99/24 dev eth0");
    eventually("an address is gone", || !changes.borrow().contains(&[10, 77, 0, 99].into()));
    assert!(node.block(node.fabric.local_addresses()).unwrap().contains(&node.address.into()));
}
