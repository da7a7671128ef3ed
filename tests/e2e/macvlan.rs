//! Networks on the node's own interfaces (macvlan).

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};

use shoal_e2e::web::fetch;
use shoal_e2e::{Netns, Node, OUTSIDE, OUTSIDE_NAME, PATIENCE, wait_until};

use crate::containers::{alone, refused};
use crate::locals::{address, netns, on, page, run};

/// A server of one page in a namespace.
fn serve_in(netns: &Netns, at: Ipv4Addr) {
    let listener = netns.run(move || TcpListener::bind((at, 80)).unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 1024]);
            let _ = write!(stream, "HTTP/1.0 200 OK\r\n\r\nneighbour");
        }
    });
}

#[test]
fn macvlan_containers_are_neighbours_of_the_nodes_neighbours() {
    let mut node = alone();
    // Somebody else on the node's own network.
    node.world.netns.ip(&["addr", "add", "192.0.2.77/32", "dev", "lo"]);
    serve_in(&node.world.netns, Ipv4Addr::new(192, 0, 2, 77));
    let subnet = ["--subnet", "192.0.2.0/24", "--gateway", "192.0.2.1", "--ip-range", "192.0.2.128/26"];
    let create = |flags: &[&str], name: &str| {
        node.docker(&[&["network", "create", "-d", "macvlan"], flags, &[name]].concat()).ok()
    };
    create(&[&subnet[..], &["-o", "parent=eth0"]].concat(), "lan");
    create(&["--subnet", "10.6.0.0/24", "-o", "parent=eth0", "-o", "macvlan_mode=private"], "private");
    create(&["--subnet", "10.7.0.0/24"], "alone");
    run(&node, "a1", &["--network", "lan"], "serve");
    run(&node, "b1", &["--network", "lan", "--ip", "192.0.2.150"], "idle");
    let check = |node: &Node| {
        let a = address(node, "a1", "lan");
        assert_eq!(a.to_string(), "192.0.2.128");
        let b = netns(node, "b1");
        node.resolves(&b, "a1", vec![a.into()]);
        node.resolves(&b, "a1.lan", vec![a.into()]);
        assert_eq!(page(&b, a).unwrap(), "busybox");
        // The world sees them on the link, under their own addresses, and they see it.
        assert_eq!(node.world.netns.run(move || fetch((a, 80), "/index.html")).unwrap(), "busybox");
        assert_eq!(b.run(|| fetch((OUTSIDE, 80), "/")).unwrap(), "outside saw 192.0.2.150");
        node.resolves(&b, OUTSIDE_NAME, vec![OUTSIDE.into()]);
        assert!(node.netns.run(move || fetch((a, 80), "/")).is_err(), "the node itself does not reach them");
    };
    check(&node);
    node.kill_daemon();
    node.start_daemon();
    check(&node);
    run(&node, "p1", &["--network", "private"], "serve");
    run(&node, "q1", &["--network", "private"], "idle");
    assert!(page(&netns(&node, "q1"), address(&node, "p1", "private")).is_err(), "private");
    node.resolves(&netns(&node, "q1"), "p1", vec![address(&node, "p1", "private").into()]);
    run(&node, "x1", &["--network", "alone"], "serve");
    run(&node, "y1", &["--network", "alone"], "idle");
    assert_eq!(page(&netns(&node, "y1"), address(&node, "x1", "alone")).unwrap(), "busybox");
    assert!(!netns(&node, "y1").ip(&["route"]).contains("default"), "without a parent it leads nowhere");
    assert_eq!(node.inspect("network", "alone")["Internal"], true);
    let passthru = ["-o", "parent=eth0", "-o", "macvlan_mode=passthru"];
    refused(
        &node,
        &[&["network", "create", "-d", "macvlan"], &passthru[..], &["whole"]].concat(),
        1,
        "passthru wants it for itself",
    );
    node.docker(&["network", "connect", "alone", "a1"]).ok();
    node.resolves(&netns(&node, "y1"), "a1", vec![address(&node, "a1", "alone").into()]);
    node.docker(&["rm", "-f", "a1", "b1", "p1", "q1", "x1", "y1"]).ok();
    node.docker(&["network", "rm", "lan", "private", "alone"]).ok();
    node.finish();
}

/// One more interface of the node's, `eth1`, on a switch of its own in the world; its port there is `two`.
fn second_link(node: &Node) {
    let world = &node.world.netns;
    let path = node.netns.path();
    world.ip(&[
        "link",
        "add",
        "two",
        "type",
        "veth",
        "peer",
        "name",
        "eth1",
        "netns",
        path.to_str().unwrap(),
    ]);
    world.ip(&["link", "add", "switch", "type", "bridge"]);
    world.ip(&["link", "set", "two", "master", "switch", "up"]);
    world.ip(&["addr", "add", "10.8.0.1/24", "dev", "switch"]);
    world.ip(&["link", "set", "switch", "up"]);
}

#[test]
fn a_mode_decides_who_is_reached_by_way_of_the_switch() {
    let node = alone();
    second_link(&node);
    let create = |mode: &str, name: &str| {
        let mode = format!("macvlan_mode={mode}");
        let subnet = ["--subnet", "10.8.0.0/24", "--gateway", "10.8.0.1", "-o", "parent=eth1", "-o", &mode];
        node.docker(&[&["network", "create", "-d", "macvlan"], &subnet[..], &[name]].concat()).ok();
    };
    create("vepa", "by-switch");
    // Clients from API 1.44 on would say it with the network.
    let body = r#"{"Image":"busybox","Cmd":["serve"],"MacAddress":"02:00:00:00:08:01",
        "HostConfig":{"NetworkMode":"by-switch"}}"#;
    let made = node.http("POST", "/containers/create?name=a1", body).unwrap();
    assert!(made.contains("201 Created"), "{made}");
    node.docker(&["start", "a1"]).ok();
    run(&node, "b1", &["--network", "by-switch"], "idle");
    let (a, b) = (address(&node, "a1", "by-switch"), netns(&node, "b1"));
    assert!(netns(&node, "a1").ip(&["-o", "link"]).contains("02:00:00:00:08:01"));
    assert_eq!(on(&node, "a1", "by-switch")["MacAddress"], "02:00:00:00:08:01");
    node.resolves(&b, "a1", vec![a.into()]);
    assert!(page(&b, a).is_err(), "the switch sends nothing back where it came from");
    node.world.netns.ip(&["link", "set", "two", "type", "bridge_slave", "hairpin", "on"]);
    assert_eq!(page(&b, a).unwrap(), "busybox");
    assert_eq!(node.world.netns.run(move || fetch((a, 80), "/index.html")).unwrap(), "busybox");
    // Who had known the address by another link is told.
    node.docker(&["rm", "-f", "a1"]).ok();
    run(&node, "a1", &["--network", "by-switch", "--ip", &a.to_string()], "serve");
    let link = on(&node, "a1", "by-switch")["MacAddress"].as_str().unwrap().to_owned();
    wait_until(PATIENCE, "neighbours know the new link", || {
        let known = node.world.netns.ip(&["neigh", "show", &a.to_string()]);
        if known.contains(&link) { Ok(()) } else { Err(known) }
    });
    node.docker(&["rm", "-f", "a1", "b1"]).ok();
    node.docker(&["network", "rm", "by-switch"]).ok();

    create("passthru", "whole");
    run(&node, "c1", &["--network", "whole"], "serve");
    let c = address(&node, "c1", "whole");
    assert_eq!(node.world.netns.run(move || fetch((c, 80), "/index.html")).unwrap(), "busybox");
    let second = node.docker(&["run", "--rm", "--network", "whole", "busybox", "true"]);
    assert_ne!(second.code, 0, "there is one interface only: {second}");
    assert_eq!(node.world.netns.run(move || fetch((c, 80), "/index.html")).unwrap(), "busybox");
    node.docker(&["rm", "-f", "c1"]).ok();
    node.docker(&["network", "rm", "whole"]).ok();
    node.world.netns.ip(&["link", "del", "two"]);
    node.finish();
}
