//! The routing mesh in IPv6, on the real kernel.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeSet;

use common::*;
use shoal_model::NetworkTable;
use shoal_model::Protocol::{Tcp, Udp};
use shoal_network::SandboxConfig;

/// Three nodes that publish port 8000; one task each on the first two, serving on port 80 in both versions
/// of IP.
struct Mesh {
    world: World,
    table: NetworkTable,
    tasks: Vec<Host>,
}

const T0: [&str; 2] = ["10.0.0.10:80", "[fd00:5a::10]:80"];
const BOTH: [&str; 4] = [T0[0], T0[1], "10.0.0.11:80", "[fd00:5a::11]:80"];

impl Mesh {
    fn new() -> Self {
        let world = World::new(3);
        world.speak_v6();
        let table = world.ingress().dual().endpoint("t0", 0, "10.0.0.10").endpoint("t1", 1, "10.0.0.11");
        let table = table.v6("t0", "fd00:5a::10/64").v6("t1", "fd00:5a::11/64").done();
        for node in &world.nodes {
            node.apply(&table);
        }
        let tasks = (0..2).map(|number| {
            let task = world.nodes[number].sandbox(&sandbox(&table, &format!("t{number}"), true));
            task.serve("[::]:80", &format!("t{number}"));
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

fn target(node: &Node) -> String {
    format!("[{}]:8000", node.address_v6())
}

#[test]
fn every_node_accepts_and_the_task_sees_the_client() {
    let mesh = Mesh::new();
    let client = &mesh.world.client;
    mesh.publish(&T0);
    let seen = format!("t0 [{CLIENT_V6}]:");
    for node in &mesh.world.nodes {
        let target = target(node);
        let answer = client.ask(&target).unwrap();
        assert!(answer.starts_with(&seen), "{}: {answer}", node.id);
        let answer = client.udp_v6(0).ask(&target).unwrap();
        assert!(answer.starts_with(&seen), "{}: {answer}", node.id);
        // And IPv4 as ever.
        let answer = client.ask(&format!("{}:8000", node.address)).unwrap();
        assert!(answer.contains(CLIENT), "{}: {answer}", node.id);
    }
    mesh.publish(&BOTH);
    for node in &mesh.world.nodes {
        let target = target(node);
        let seen: BTreeSet<String> =
            (0..40).map(|_| client.ask(&target).unwrap().split(' ').next().unwrap().to_owned()).collect();
        assert_eq!(seen.len(), 2, "{seen:?}");
    }
    // Only in the other version: refused at once.
    mesh.publish(&["10.0.0.10:80"]);
    for node in &mesh.world.nodes {
        let refused = client.ask(&target(node)).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        let refused = client.udp_v6(0).ask_connected(&target(node)).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    }
}

#[test]
fn one_client_port_through_all_nodes_at_once() {
    let mesh = Mesh::new();
    mesh.publish(&T0);
    let client = &mesh.world.client;
    let targets: Vec<String> = mesh.world.nodes.iter().map(target).collect();
    let mut connections: Vec<_> =
        targets.iter().map(|target| client.connect(target, 5555).unwrap()).collect();
    let datagrams = client.udp_v6(5555);
    for _ in 0..3 {
        for (connection, target) in connections.iter_mut().zip(&targets) {
            assert!(connection.ask().unwrap().starts_with(&format!("t0 [{CLIENT_V6}]:")));
            assert!(datagrams.ask(target).unwrap().starts_with(&format!("t0 [{CLIENT_V6}]:")));
        }
    }
}

#[test]
fn tasks_containers_and_nodes_are_clients_too() {
    let mesh = Mesh::new();
    mesh.publish(&T0);
    let [one, two, three] = mesh.world.nodes.as_slice() else { unreachable!() };
    for node in &mesh.world.nodes {
        let target = target(node);
        for task in &mesh.tasks {
            assert!(task.ask(&target).unwrap().starts_with("t0 "), "a task, {}", node.id);
            assert!(task.udp_v6(0).ask(&target).unwrap().starts_with("t0 "), "a task, {}", node.id);
        }
    }
    for node in [one, three] {
        let config = SandboxConfig { id: "c".to_owned(), egress: true, ..SandboxConfig::default() };
        let container = node.sandbox(&config);
        for target in mesh.world.nodes.iter().map(target) {
            assert!(container.ask(&target).unwrap().starts_with("t0 "), "a container to {target}");
            assert!(container.udp_v6(0).ask(&target).unwrap().starts_with("t0 "), "a container to {target}");
        }
    }
    // The node itself is translated at connect time; the way there and its own address are ours.
    let backend = T0[1];
    for node in [one, two, three] {
        let seen = format!("t0 [{}]:", node.address_v6());
        assert!(node.host.ask(backend).unwrap().starts_with(&seen), "{}", node.id);
        assert!(node.host.udp_v6(0).ask(backend).unwrap().starts_with(&seen), "{}", node.id);
    }
    // Other nodes' ports from a node.
    let seen = format!("t0 [{}]:", two.address_v6());
    assert!(two.host.ask(&target(three)).unwrap().starts_with(&seen));
    assert!(two.host.udp_v6(0).ask(&target(three)).unwrap().starts_with(&seen));
    // Also when the task is at home on that very node.
    assert!(one.host.ask(&target(three)).unwrap().starts_with("t0 "));
    assert!(one.host.udp_v6(0).ask(&target(three)).unwrap().starts_with("t0 "));
    // The way out of a published task, and of one that is not.
    mesh.world.client.serve("[::]:81", "outside");
    let outside = format!("[{CLIENT_V6}]:81");
    let seen = format!("outside [{}]:", one.address_v6());
    assert!(mesh.tasks[0].ask(&outside).unwrap().starts_with(&seen));
    let container = Host::at(&one.netns("c"));
    assert!(container.ask(&outside).unwrap().starts_with(&seen));
}

#[test]
fn only_what_was_published_leads_into_a_sandbox() {
    let mesh = Mesh::new();
    mesh.publish(&T0);
    let one = &mesh.world.nodes[0];
    let way = format!("ip -6 route add fd00:5a::/64 via {}", one.address_v6());
    mesh.world.router.sh(&way);
    mesh.tasks[0].serve("[::]:81", "t0");
    assert!(mesh.world.client.ask("[fd00:5a::10]:81").is_err());
    assert!(mesh.world.client.ask("[fd00:5a::10]:80").is_err());
}

#[test]
fn a_client_whose_backend_is_gone_gets_another_one_or_is_told() {
    let mesh = Mesh::new();
    let client = &mesh.world.client;
    for node in &mesh.world.nodes {
        let target = target(node);
        let datagrams = client.udp_v6(0);
        mesh.publish(&T0);
        let mut connection = client.connect(&target, 0).unwrap();
        assert!(datagrams.ask(&target).unwrap().starts_with("t0 "));
        assert!(connection.ask().unwrap().starts_with("t0 "));
        mesh.publish(&BOTH[2..]);
        assert!(datagrams.ask(&target).unwrap().starts_with("t1 "), "{}", node.id);
        assert!(connection.ask().unwrap().starts_with("t0 "), "it may take its time to end");
        node.block(node.fabric.forget_flows("fd00:5a::10".parse().unwrap())).unwrap();
        let told = connection.ask().unwrap_err();
        assert_eq!(told.kind(), std::io::ErrorKind::ConnectionReset, "{}", node.id);
    }
}

#[test]
fn what_is_made_is_what_is_found_and_all_of_it_goes() {
    let mesh = Mesh::new();
    mesh.publish(&BOTH);
    let node = &mesh.world.nodes[2];
    let differences = || node.block(node.fabric.differences(&mesh.table)).unwrap();
    assert_eq!(differences(), Vec::<String>::new());
    assert_eq!(
        node.block(node.fabric.read_ports()).unwrap(),
        ways(&port_map(&[(Tcp, 8000, &BOTH), (Udp, 8000, &BOTH)]))
    );
    let harm = [
        ("ip -6 route del fd00:5a::10", "fabric: no route to fd00:5a::10/128"),
        ("ip -6 rule del pref 90", "fabric: no rule"),
        (
            "ip -6 addr del fd00:5a::1/64 dev shoal-ing",
            "fabric: link shoal-ing has not the address fd00:5a::1/64",
        ),
        ("ip -6 neigh del fe80::90:90 dev shoal-ingvx", "fabric: no neighbour entry fe80::90:90"),
        ("nft flush set inet shoal homes6", "nft: homes6 lacks"),
        ("sysctl -qw net.ipv6.conf.shoal-ing.disable_ipv6=1", "sysctl: net/ipv6/conf/shoal-ing/disable_ipv6"),
    ];
    for (script, seen) in harm {
        node.host.sh(script);
        let found = differences();
        assert!(found.iter().any(|text| text.contains(seen)), "{script}: {found:?}");
        node.block(async {
            node.fabric.distrust(&mesh.table.network).await;
            node.fabric.apply_network(&mesh.table).await.unwrap();
        });
        assert_eq!(differences(), Vec::<String>::new(), "{script}");
    }
    assert!(mesh.world.client.ask(&target(node)).is_ok());
    node.block(node.fabric.remove_network(&mesh.table.network)).unwrap();
    let held =
        node.host.sh("ip -6 addr; ip -6 route show table all; ip -6 rule; ip -6 neigh show nud permanent");
    assert!(!held.contains("fd00:5a::") && !held.contains("fwmark"), "{held}");
}

#[test]
fn a_node_that_forwards_still_hears_its_router() {
    let world = World::new(1);
    world.speak_v6();
    let node = &world.nodes[0];
    let accepts = || node.host.sh("cat /proc/sys/net/ipv6/conf/eth0/accept_ra").trim().to_owned();
    assert_eq!(accepts(), "1");
    node.apply(&world.ingress().dual().done());
    assert_eq!(accepts(), "2");
    let others = node
        .host
        .sh("cat /proc/sys/net/ipv6/conf/shoal-ing/accept_ra /proc/sys/net/ipv6/conf/shoal-ingvx/accept_ra");
    assert_eq!(others, "0\n0\n", "a task is no router");
}
