//! What stays over a restart, and what must not stay at all.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::HashSet;

use common::*;
use shoal_model::Protocol::{Tcp, Udp};
use shoal_network::*;

/// Everything a node has in the kernel, in words.
fn picture(node: &Node) -> String {
    let host =
        node.host.sh("ip -d -o link | sed 's/ state .*//'; ip -o addr; ip rule; ip route show table all; \
         ip -6 rule; ip -6 route show table all; ip neigh show nud permanent; bridge fdb; nft list ruleset");
    // A node that forwards IPv6 hears what is said to all routers, and stays one like for IPv4.
    let mut picture: String =
        host.split_inclusive('\n').filter(|line| !line.starts_with("33:33:00:00:00:02")).collect();
    let netns = node.run_dir.path().join("netns");
    let mut names: Vec<_> =
        std::fs::read_dir(netns).into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    for path in names {
        picture += &format!("== {}\n", path.display());
        let inside =
            "ip -o link | sed 's/ state .*//'; ip -o addr; ip route; ip neigh show nud permanent; bridge fdb";
        picture += &Host::at(&path).sh(inside);
    }
    picture
}

/// One node with an overlay and the ingress, a task on both, and a container.
fn furnished(world: &World) -> (Host, Host) {
    let node = &world.nodes[0];
    let overlay =
        world.network("n1", 4097, "10.0.1.0/24").endpoint("t", 0, "10.0.1.3").endpoint("r", 1, "10.0.1.4");
    let overlay = overlay.done();
    let ingress = world.ingress().endpoint("t", 0, "10.0.0.10").endpoint("r", 1, "10.0.0.11").done();
    let (task, container) = furnish(node, &node.fabric, &overlay, &ingress);
    (Host::at(&task.path), Host::at(&container.path))
}

fn furnish(
    node: &Node,
    fabric: &Fabric,
    overlay: &shoal_model::NetworkTable,
    ingress: &shoal_model::NetworkTable,
) -> (Sandbox, Sandbox) {
    node.block(async {
        for table in [overlay, ingress] {
            fabric.apply_network(table).await.unwrap();
            fabric.prune_network(table).await.unwrap();
        }
        let task = fabric.create_sandbox(&sandbox_on(&[overlay, ingress], "t", true)).await.unwrap();
        let config = SandboxConfig { id: "c".to_owned(), egress: true, ..SandboxConfig::default() };
        let container = fabric.create_sandbox(&config).await.unwrap();
        let ports =
            port_map(&[(Tcp, 8000, &["10.0.0.10:80"]), (Udp, 8000, &["10.0.0.10:80"]), (Tcp, 9, &[])]);
        fabric.apply_ports(&ports).await.unwrap();
        (task, container)
    })
}

#[test]
fn a_restart_changes_nothing_and_breaks_no_connection() {
    let world = World::new(2);
    let node = &world.nodes[0];
    let (task, container) = furnished(&world);
    task.serve("0.0.0.0:80", "t");
    let mut connections =
        [world.client.connect("10.77.0.1:8000", 0).unwrap(), container.connect("10.77.0.1:8000", 0).unwrap()];
    for connection in &mut connections {
        connection.ask().unwrap();
    }
    let before = picture(node);
    let again = node.open_again();
    assert_eq!(picture(node), before, "opening");
    let overlay =
        world.network("n1", 4097, "10.0.1.0/24").endpoint("t", 0, "10.0.1.3").endpoint("r", 1, "10.0.1.4");
    let ingress = world.ingress().endpoint("t", 0, "10.0.0.10").endpoint("r", 1, "10.0.0.11").done();
    let first = node.block(node.fabric.sandbox("t")).unwrap().unwrap();
    let (adopted, _) = furnish(node, &again, &overlay.done(), &ingress);
    node.block(again.prune(
        &HashSet::from(["t".to_owned(), "c".to_owned()]),
        &HashSet::from(["n1".into(), "ingress".into()]),
    ))
    .unwrap();
    assert_eq!(picture(node), before, "asking for the same again");
    assert_eq!(adopted.path, first.path);
    let place = |sandbox: &Sandbox| {
        let links = sandbox.links.iter();
        links
            .map(|link| {
                (link.interface.clone(), link.far_end.as_ref().map(|end| end.interface.clone()), link.address)
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(place(&adopted), place(&first));
    for connection in &mut connections {
        connection.ask().unwrap();
    }
}

#[test]
fn what_nobody_claims_is_removed() {
    let world = World::new(2);
    let node = &world.nodes[0];
    let (task, _) = furnished(&world);
    task.serve("0.0.0.0:80", "t");
    let before = picture(node);
    // Two more of each kind, one of them half made, and what a reboot leaves of a namespace.
    let stray = world.network("n2", 4098, "10.0.2.0/24").endpoint("s", 0, "10.0.2.3").done();
    node.apply(&stray);
    node.sandbox(&sandbox(&stray, "s", true));
    node.host
        .sh("ip link add shv0123456789 type veth peer name x; ip link set shv0123456789 master shoal-gw");
    std::fs::write(node.netns("gone"), "").unwrap();
    std::fs::write(node.netns("net-gone"), "").unwrap();
    let again = node.open_again();
    let claimed = node.block(again.sandboxes()).unwrap();
    assert_eq!(claimed, ["c", "gone", "s", "t"]);
    node.block(again.prune(
        &HashSet::from(["t".to_owned(), "c".to_owned()]),
        &HashSet::from(["n1".into(), "ingress".into()]),
    ))
    .unwrap();
    assert_eq!(picture(node), before);
    assert!(world.client.ask("10.77.0.1:8000").is_ok());
}

#[test]
fn a_namespace_that_a_reboot_took_is_made_anew() {
    let world = World::new(1);
    let node = &world.nodes[0];
    let table =
        world.network("n1", 4097, "10.0.1.0/24").endpoint("a", 0, "10.0.1.3").endpoint("b", 0, "10.0.1.4");
    let table = table.done();
    for name in ["net-n1", "a"] {
        std::fs::create_dir_all(node.netns("")).unwrap();
        std::fs::write(node.netns(name), "").unwrap();
    }
    node.apply(&table);
    let a = node.sandbox(&sandbox(&table, "a", true));
    node.sandbox(&sandbox(&table, "b", true)).serve("0.0.0.0:80", "b");
    assert!(a.ask("10.0.1.4:80").is_ok());
    // Half of a link is gone, too.
    a.sh("ip link del eth0");
    let a = node.sandbox(&sandbox(&table, "a", true));
    assert!(a.ask("10.0.1.4:80").is_ok());
}

#[test]
fn removing_one_by_one_leaves_nothing() {
    let world = World::new(2);
    let node = &world.nodes[0];
    let before = picture(node);
    furnished(&world);
    assert_ne!(picture(node), before);
    let fabric = &node.fabric;
    node.block(async {
        // Twice: what is gone is gone.
        for _ in 0..2 {
            fabric.remove_sandbox("t").await.unwrap();
            fabric.remove_sandbox("c").await.unwrap();
            fabric.remove_network(&"n1".into()).await.unwrap();
            fabric.remove_network(&"ingress".into()).await.unwrap();
            fabric.apply_ports(&Ports::new()).await.unwrap();
            fabric.clear_node().await.unwrap();
        }
    });
    assert_eq!(picture(node), before);
    assert!(!node.netns("").exists());
    // And all of it can be had again.
    let (task, _) = furnished(&world);
    task.serve("0.0.0.0:80", "t");
    assert!(world.client.ask("10.77.0.1:8000").is_ok());
}

#[test]
fn a_node_with_sandboxes_is_not_cleared() {
    let world = World::new(2);
    let (task, _) = furnished(&world);
    task.serve("0.0.0.0:80", "t");
    let before = picture(&world.nodes[0]);
    world.nodes[0].block(world.nodes[0].fabric.clear_node()).unwrap();
    assert_eq!(picture(&world.nodes[0]), before);
}

#[test]
fn reset_leaves_nothing_even_of_what_still_runs() {
    let world = World::new(2);
    let node = &world.nodes[0];
    let before = picture(node);
    let (task, _) = furnished(&world);
    task.serve("0.0.0.0:80", "t");
    node.host
        .sh("ip link add shv0123456789 type veth peer name x; ip link set shv0123456789 master shoal-gw");
    node.reset().unwrap();
    assert_eq!(picture(node), before);
    assert!(!node.netns("").exists());
    assert_eq!(task.sh("ip -o link").lines().count(), 1, "only loopback is left to what still runs");
    node.reset().unwrap();
}
