//! Networks of one node: bridges, macvlan, and plain containers on them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde_json::Value;
use shoal_e2e::dns::{A, AAAA, PTR, Transport, ask, reverse};
use shoal_e2e::web::fetch;
use shoal_e2e::{
    CLIENT, CLIENT_V6, DNS_SERVER, NODE, Netns, Node, OUTSIDE, OUTSIDE_NAME, PATIENCE, node_address_v6,
    wait_until,
};

use crate::containers::{alone, comes_to, refused, state};

/// The network namespace of a running plain container.
pub(crate) fn netns(node: &Node, name: &str) -> Netns {
    Netns::of_process(state(node, name)["Pid"].as_u64().unwrap() as u32)
}

pub(crate) fn on(node: &Node, name: &str, network: &str) -> Value {
    node.inspect("container", name)["NetworkSettings"]["Networks"][network].take()
}

pub(crate) fn address(node: &Node, name: &str, network: &str) -> Ipv4Addr {
    let place = on(node, name, network);
    place["IPAddress"].as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{place:#}"))
}

pub(crate) fn run(node: &Node, name: &str, flags: &[&str], command: &str) -> String {
    let all = [&["run", "-d", "--name", name], flags, &["busybox", command]].concat();
    node.docker(&all).ok().trim().to_owned()
}

/// A page of a container, asked for from inside another one.
pub(crate) fn page(from: &Netns, at: Ipv4Addr) -> Result<String, String> {
    from.run(move || fetch((at, 80), "/index.html"))
}

#[test]
fn containers_of_a_bridge_find_each_other_by_name_and_nobody_else() {
    let mut node = alone();
    node.docker(&["network", "create", "front"]).ok();
    node.docker(&["network", "create", "--driver", "bridge", "back"]).ok();
    let id =
        run(&node, "web", &["--network", "front", "--network-alias", "site", "--hostname", "host1"], "serve");
    run(&node, "client", &["--network", "front"], "idle");
    run(&node, "stranger", &["--network", "back"], "idle");
    let check = |node: &Node, id: &str| {
        let web = address(node, "web", "front");
        let (client, stranger) = (netns(node, "client"), netns(node, "stranger"));
        for name in ["web", "WEB", "site", "host1", &id[..12], "web.front"] {
            node.resolves(&client, name, vec![web.into()]);
        }
        let pointer = client.run(move || ask(&reverse(web), PTR, Transport::Udp)).unwrap();
        assert_eq!(pointer.names(), ["web.front"]);
        assert_eq!(page(&client, web).unwrap(), "busybox");
        node.resolves(&stranger, "web", vec![]);
        assert!(page(&stranger, web).unwrap_err().contains("connect"), "bridges are apart");
        // The node reaches its containers, and they the world, under the node's address.
        assert_eq!(node.netns.run(move || fetch((web, 80), "/index.html")).unwrap(), "busybox");
        node.resolves(&client, OUTSIDE_NAME, vec![OUTSIDE.into()]);
        assert_eq!(client.run(|| fetch((OUTSIDE, 80), "/")).unwrap(), format!("outside saw {NODE}"));
        // Nobody from outside gets in by a route alone.
        let route = format!("{web}/32");
        node.world.netns.ip(&["route", "add", &route, "via", &NODE.to_string()]);
        assert!(node.world.netns.run(move || fetch((web, 80), "/")).is_err());
        node.world.netns.ip(&["route", "del", &route]);
    };
    check(&node, &id);
    let shown = node.inspect("network", "front");
    let (subnet, gateway) = (&shown["IPAM"]["Config"][0]["Subnet"], &shown["IPAM"]["Config"][0]["Gateway"]);
    assert_eq!((subnet.as_str(), gateway.as_str()), (Some("172.18.0.0/16"), Some("172.18.0.1")), "{shown:#}");
    assert_eq!(shown["Containers"][&id]["IPv4Address"], "172.18.0.2/16", "{shown:#}");
    assert_eq!((&shown["Scope"], &shown["Driver"]), (&Value::from("local"), &Value::from("bridge")));
    assert_eq!(on(&node, "web", "front")["Gateway"], "172.18.0.1");
    refused(&node, &["network", "rm", "front"], 1, "has active endpoints (");

    node.kill_daemon();
    node.start_daemon();
    check(&node, &id);
    node.tables_are_true();
    node.docker(&["rename", "web", "site2"]).ok();
    node.resolves(&netns(&node, "client"), "site2", vec![address(&node, "site2", "front").into()]);
    node.resolves(&netns(&node, "client"), "web", vec![]);
    node.docker(&["rm", "-f", "site2", "client", "stranger"]).ok();
    let mut deleted: Vec<_> =
        node.docker(&["network", "prune", "-f"]).ok().lines().map(str::to_owned).collect();
    deleted.sort();
    assert_eq!(deleted[deleted.len() - 2..], ["back", "front"]);
    node.finish();
}

#[test]
fn a_bridge_can_be_closed_inside_and_outside() {
    let node = alone();
    let icc = "com.docker.network.bridge.enable_icc=false";
    node.docker(&["network", "create", "-o", icc, "-o", "com.docker.network.bridge.name=mine", "apart"]).ok();
    node.docker(&["network", "create", "--internal", "--subnet", "10.9.0.0/24", "inside"]).ok();
    run(&node, "a1", &["--network", "apart"], "serve");
    run(&node, "b1", &["--network", "apart"], "idle");
    run(&node, "c1", &["--network", "inside"], "serve");
    run(&node, "d1", &["--network", "inside"], "idle");
    assert!(
        page(&netns(&node, "b1"), address(&node, "a1", "apart")).is_err(),
        "they do not reach each other"
    );
    assert!(netns(&node, "b1").run(|| fetch((OUTSIDE, 80), "/")).is_ok());
    assert!(node.netns.ip(&["-o", "link", "show", "mine"]).contains("mtu 1500"));
    let inner = netns(&node, "d1");
    assert_eq!(page(&inner, address(&node, "c1", "inside")).unwrap(), "busybox");
    node.resolves(&inner, "c1", vec!["10.9.0.2".parse().unwrap()]);
    assert!(inner.run(|| fetch((OUTSIDE, 80), "/")).is_err());
    assert!(!inner.ip(&["route"]).contains("default"), "it has no way out");
    // A way that somebody inside makes himself leads nowhere either.
    inner.ip(&["route", "add", "default", "via", "10.9.0.1"]);
    assert!(inner.run(|| fetch((OUTSIDE, 80), "/")).is_err());
    node.docker(&["rm", "-f", "a1", "b1", "c1", "d1"]).ok();
    node.docker(&["network", "rm", "apart", "inside"]).ok();
    node.finish();
}

#[test]
fn the_default_network_has_addresses_and_no_names() {
    let node = alone();
    let id = run(&node, "one", &[], "serve");
    run(&node, "two", &[], "idle");
    let one = address(&node, "one", "bridge");
    assert_eq!(one.to_string(), "172.17.0.2");
    let two = netns(&node, "two");
    assert_eq!(page(&two, one).unwrap(), "busybox");
    assert_eq!(two.run(|| fetch((OUTSIDE, 80), "/")).unwrap(), format!("outside saw {NODE}"));
    let file = node.docker(&["exec", "two", "cat", "/etc/resolv.conf"]).ok();
    assert!(file.contains(&format!("nameserver {DNS_SERVER}")) && !file.contains("127.0.0.11"), "{file}");
    assert!(two.run(|| ask("one", A, Transport::Udp)).is_err(), "nobody listens there");
    let looked_up = node.docker(&["exec", "two", "nslookup", OUTSIDE_NAME]).ok();
    assert!(looked_up.contains(&OUTSIDE.to_string()), "{looked_up}");
    let shown = node.inspect("network", "bridge");
    assert_eq!(shown["IPAM"]["Config"][0]["Gateway"], "172.17.0.1", "{shown:#}");
    assert_eq!(shown["Containers"][&id]["Name"], "one");
    let detail = node.inspect("container", "one");
    assert_eq!(detail["NetworkSettings"]["IPAddress"], "172.17.0.2");
    assert_eq!(detail["NetworkSettings"]["Networks"]["bridge"]["NetworkID"], shown["Id"]);
    refused(&node, &["network", "rm", "bridge"], 1, "bridge is a pre-defined network and cannot be removed");
    // Another one in the same place.
    run(&node, "guest", &["--network", "container:one"], "idle");
    assert_eq!(netns(&node, "guest").inode(), netns(&node, "one").inode());
    let hosts = node.docker(&["exec", "guest", "cat", "/etc/hosts"]).ok();
    assert!(hosts.contains("172.17.0.2"), "{hosts}");
    node.docker(&["rm", "-f", "guest"]).ok();
    assert_eq!(page(&two, one).unwrap(), "busybox", "who leaves takes nothing along");
    node.docker(&["stop", "-t", "1", "one"]).ok();
    refused(
        &node,
        &["run", "--rm", "--network", "container:one", "busybox", "true"],
        125,
        "cannot join network of a non running container",
    );
    node.docker(&["rm", "-f", "one", "two"]).ok();
    node.finish();
}

#[test]
fn ports_of_containers_lead_in_from_outside() {
    let mut node = alone();
    node.docker(&["network", "create", "net"]).ok();
    run(&node, "web", &["--network", "net", "-p", "8080:80", "-p", "127.0.0.1::81/udp"], "serve");
    run(&node, "local", &["-p", "127.0.0.1:8081:80"], "serve");
    run(&node, "some", &["-P", "--expose", "80"], "serve");
    let from_client = |node: &Node, port: u16| {
        let stream = node.world.connect_from_client(SocketAddr::from((NODE, port)));
        let stream = stream.map_err(|error| error.to_string())?;
        shoal_e2e::web::fetch_over(stream, "/cgi-bin/who")
    };
    let listed = node.docker(&["port", "web"]).ok();
    assert!(
        listed.starts_with("80/tcp -> 0.0.0.0:8080\n80/tcp -> [::]:8080\n81/udp -> 127.0.0.1:"),
        "{listed}"
    );
    let chosen = node.docker(&["port", "some", "80/tcp"]).ok();
    let chosen: u16 = chosen.lines().next().and_then(|line| line.rsplit(':').next()?.parse().ok()).unwrap();
    let check = |node: &Node| {
        let seen = from_client(node, 8080).unwrap();
        assert!(seen.contains(&CLIENT.to_string()), "its own address: {seen}");
        from_client(node, chosen).unwrap();
        let refusal = from_client(node, 8081).unwrap_err();
        assert!(refusal.contains("refused"), "from the node only: {refusal}");
        let at = |address: Ipv4Addr, port| node.netns.run(move || fetch((address, port), "/index.html"));
        assert_eq!(at(Ipv4Addr::LOCALHOST, 8081).unwrap(), "busybox");
        assert!(at(NODE, 8081).is_err(), "at one address only");
        assert_eq!(at(Ipv4Addr::LOCALHOST, 8080).unwrap(), "busybox");
        // From another bridge by the node's port, and from the container itself.
        let by_node = |name: &str| netns(node, name).run(|| fetch((NODE, 8080), "/index.html")).unwrap();
        assert_eq!((by_node("local"), by_node("web")), ("busybox".into(), "busybox".into()));
    };
    check(&node);
    let taken = node.docker(&["run", "-d", "--name", "late", "-p", "8080:80", "busybox", "serve"]);
    let text = "Bind for 0.0.0.0:8080 failed: port is already allocated";
    assert!(taken.code == 125 && taken.stderr.contains(text), "{taken}");
    node.kill_daemon();
    check_running(&from_client(&node, 8080));
    node.start_daemon();
    check(&node);
    node.docker(&["stop", "-t", "1", "web"]).ok();
    assert!(from_client(&node, 8080).unwrap_err().contains("refused"));
    node.docker(&["start", "late"]).ok();
    from_client(&node, 8080).unwrap();
    node.docker(&["rm", "-f", "web", "late", "local", "some"]).ok();
    node.docker(&["network", "rm", "net"]).ok();
    node.finish();
}

fn check_running(answer: &Result<String, String>) {
    assert!(answer.is_ok(), "without a daemon: {answer:?}");
}

#[test]
fn a_running_container_joins_and_leaves_networks() {
    let mut node = alone();
    let subnet =
        ["--subnet", "10.5.0.0/24", "--ip-range", "10.5.0.128/25", "--aux-address", "printer=10.5.0.129"];
    node.docker(&[&["network", "create"], &subnet[..], &["two"]].concat()).ok();
    node.docker(&["network", "create", "one"]).ok();
    run(&node, "box", &["--network", "one"], "serve");
    run(&node, "peer", &["--network", "two"], "idle");
    assert_eq!(
        address(&node, "peer", "two").to_string(),
        "10.5.0.130",
        "within the range, but not the printer's"
    );
    let inside = netns(&node, "box");
    let links = |inside: &Netns| {
        let text = inside.ip(&["-o", "-4", "addr"]);
        let names = text.lines().filter_map(|line| line.split_whitespace().nth(1).map(str::to_owned));
        names
            .filter(|name| name != "lo")
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .collect::<Vec<_>>()
    };
    assert_eq!(links(&inside), ["eth0"]);
    node.docker(&["network", "connect", "--alias", "helper", "--ip", "10.5.0.77", "two", "box"]).ok();
    assert_eq!(links(&inside), ["eth0", "eth1"]);
    let second: IpAddr = "10.5.0.77".parse().unwrap();
    for name in ["box", "helper"] {
        node.resolves(&netns(&node, "peer"), name, vec![second]);
    }
    assert_eq!(netns(&node, "peer").run(move || fetch((second, 80), "/index.html")).unwrap(), "busybox");
    let hosts = node.docker(&["exec", "box", "cat", "/etc/hosts"]).ok();
    assert!(hosts.contains("10.5.0.77"), "{hosts}");
    refused(
        &node,
        &["network", "connect", "two", "box"],
        1,
        "endpoint with name box already exists in network two",
    );
    refused(&node, &["network", "connect", "nosuch", "box"], 1, "network nosuch not found");
    refused(&node, &["network", "connect", "two", "nosuch"], 1, "No such container: nosuch");
    node.kill_daemon();
    node.start_daemon();
    node.resolves(&netns(&node, "peer"), "helper", vec![second]);
    // The first interface goes, the second stays what it is and has the way out now.
    node.docker(&["network", "disconnect", "one", "box"]).ok();
    assert_eq!(links(&inside), ["eth1"]);
    assert_eq!(inside.run(|| fetch((OUTSIDE, 80), "/")).unwrap(), format!("outside saw {NODE}"));
    node.docker(&["network", "connect", "bridge", "box"]).ok();
    assert_eq!(links(&inside), ["eth0", "eth1"], "the place that is free");
    refused(&node, &["network", "disconnect", "one", "box"], 1, "is not connected to network one");
    node.docker(&["network", "disconnect", "two", "box"]).ok();
    node.resolves(&netns(&node, "peer"), "box", vec![]);
    // What is changed while it does not run is found by the next start.
    node.docker(&["stop", "-t", "1", "box"]).ok();
    node.docker(&["network", "connect", "one", "box"]).ok();
    node.docker(&["network", "disconnect", "bridge", "box"]).ok();
    node.docker(&["start", "box"]).ok();
    assert_eq!(links(&netns(&node, "box")), ["eth0"]);
    let networks = node.inspect("container", "box")["NetworkSettings"]["Networks"].take();
    assert_eq!(networks.as_object().unwrap().keys().collect::<Vec<_>>(), ["one"]);
    node.docker(&["rm", "-f", "box", "peer"]).ok();
    node.docker(&["network", "rm", "one", "two"]).ok();
    node.finish();
}

#[test]
fn links_and_the_nodes_own_name_are_for_who_asked() {
    let node = alone();
    node.docker(&["network", "create", "net"]).ok();
    run(&node, "web", &["--network", "net"], "serve");
    let own = ["--network", "net", "--link", "web:Backend", "--add-host", "node:host-gateway"];
    run(&node, "client", &own, "idle");
    run(&node, "other", &["--network", "net"], "idle");
    let web = address(&node, "web", "net");
    node.resolves(&netns(&node, "client"), "backend", vec![web.into()]);
    node.resolves(&netns(&node, "other"), "backend", vec![]);
    let hosts = node.docker(&["exec", "client", "cat", "/etc/hosts"]).ok();
    assert!(hosts.contains("172.18.0.1\tnode"), "{hosts}");
    // The other one comes back with another address, and the link leads there.
    node.docker(&["stop", "-t", "1", "web"]).ok();
    node.resolves(&netns(&node, "client"), "backend", vec![]);
    node.docker(&["start", "web"]).ok();
    let again = address(&node, "web", "net");
    assert_ne!(again, web, "an address rests");
    node.resolves(&netns(&node, "client"), "backend", vec![again.into()]);
    let link = |network: &str, link: &str| {
        ["run", "--rm", "--network", network, "--link", link, "busybox", "true"].map(str::to_owned)
    };
    for (arguments, text) in [
        (link("net", "nosuch:x"), "could not get container for nosuch: No such container: nosuch"),
        (link("bridge", "web:x"), "links on the default network are not supported"),
    ] {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        refused(&node, &arguments, 125, text);
    }
    node.docker(&["rm", "-f", "web", "client", "other"]).ok();
    node.docker(&["network", "rm", "net"]).ok();
    node.finish();
}

#[test]
fn a_lost_store_loses_no_network_that_somebody_is_on() {
    let mut node = alone();
    node.docker(&["network", "create", "--subnet", "10.5.0.0/24", "--label", "a=b", "net"]).ok();
    run(&node, "web", &["--network", "net", "-p", "8080:80"], "serve");
    run(&node, "client", &["--network", "net"], "idle");
    let (before, pid) = (address(&node, "web", "net"), state(&node, "web")["Pid"].take());
    node.kill_daemon();
    std::fs::write(node.data_dir().join("node.redb"), b"not a database").unwrap();
    node.start_daemon();
    comes_to(&node, "web", "running");
    wait_until(PATIENCE, "the container is on its network again", || {
        let place = on(&node, "web", "net");
        if place["IPAddress"] == before.to_string() { Ok(()) } else { Err(format!("{place:#}")) }
    });
    assert_eq!(state(&node, "web")["Pid"], pid, "it was not restarted");
    node.resolves(&netns(&node, "client"), "web", vec![before.into()]);
    assert_eq!(page(&netns(&node, "client"), before).unwrap(), "busybox");
    assert_eq!(node.inspect("network", "net")["Labels"]["a"], "b");
    node.docker(&["rm", "-f", "web", "client"]).ok();
    node.docker(&["network", "rm", "net"]).ok();
    node.finish();
}

#[test]
fn networks_that_cannot_be_are_refused() {
    let node = alone();
    let create =
        |flags: &[&str], text: &str| refused(&node, &[&["network", "create"], flags].concat(), 1, text);
    node.docker(&["network", "create", "--subnet", "172.30.0.0/24", "--gateway", "172.30.0.254", "net"]).ok();
    create(&["net"], "network with name net already exists");
    create(&["bridge"], "network with name bridge already exists");
    create(&["--subnet", "172.30.0.0/25", "n"], "Pool overlaps with other one on this address space");
    create(&["--subnet", "10.1.2.3/24", "n"], "invalid subnet 10.1.2.3/24: it should be 10.1.2.0/24");
    create(&["-o", "com.docker.network.bridge.name=eth0", "n"], "link eth0 exists already");
    create(&["-o", "nonsense=1", "n"], "option nonsense of such a network is not supported");
    create(&["-d", "macvlan", "-o", "parent=nosuch", "n"], "no interface nosuch on this node");
    create(&["-d", "macvlan", "-o", "macvlan_mode=odd", "n"], "unknown macvlan mode: 'odd'");
    create(&["-d", "ipvlan", "n"], "networks with driver ipvlan are not supported");
    assert_eq!(node.netns.ip(&["-o", "link"]).matches(": br-").count(), 1, "nothing is left of them");
    let join = |flags: &[&str], text: &str| {
        refused(&node, &[&["run", "--rm"], flags, &["busybox", "true"]].concat(), 125, text);
    };
    join(&["--network", "net", "--ip", "172.30.0.254"], "Address already in use");
    join(&["--network", "net", "--ip", "10.0.0.1"], "no configured subnet contains IP address 10.0.0.1");
    join(&["--network-alias", "x"], "network-scoped alias");
    node.docker(&["network", "rm", "net"]).ok();
    node.finish();
}

#[test]
fn a_container_is_on_a_bridge_and_on_the_clusters_network() {
    let node = Node::cluster();
    node.docker(&["network", "create", "-d", "overlay", "--attachable", "wide"]).ok();
    node.service("app", 2, &["--network", "wide"], &["serve"]);
    node.docker(&["network", "create", "near"]).ok();
    refused(
        &node,
        &["network", "create", "--subnet", "172.18.9.0/24", "far"],
        1,
        "Pool overlaps with other one",
    );
    let vip = node.vip("app");
    // The tasks' way out has another subnet.
    assert_eq!(node.inspect("network", "near")["IPAM"]["Config"][0]["Subnet"], "172.19.0.0/16");
    run(&node, "box", &["--network", "near", "-p", "8080:80"], "serve");
    node.docker(&["network", "connect", "wide", "box"]).ok();
    let inside = netns(&node, "box");
    node.resolves(&inside, "app", vec![vip.into()]);
    assert_eq!(inside.run(move || fetch((vip, 80), "/index.html")).unwrap(), "busybox");
    assert_eq!(inside.run(|| fetch((OUTSIDE, 80), "/")).unwrap(), format!("outside saw {NODE}"));
    let wide = address(&node, "box", "wide");
    let task = node.containers("app").remove(0);
    node.resolves(&task.netns(), "box", vec![wide.into()]);
    refused(
        &node,
        &["service", "create", "-d", "--network", "near", "busybox", "idle"],
        1,
        "network near not found",
    );
    node.docker(&["network", "disconnect", "near", "box"]).ok();
    let stream = node.world.connect_from_client(SocketAddr::from((NODE, 8080))).unwrap();
    shoal_e2e::web::fetch_over(stream, "/index.html").unwrap();
    assert_eq!(inside.run(|| fetch((OUTSIDE, 80), "/")).unwrap(), format!("outside saw {NODE}"));
    node.docker(&["network", "disconnect", "wide", "box"]).ok();
    node.resolves(&task.netns(), "box", vec![]);
    node.docker(&["rm", "-f", "box"]).ok();
    node.docker(&["network", "rm", "near"]).ok();
    node.finish();
}

/// What a node has: links, nftables with all elements, addresses.
fn possessions(node: &Node) -> String {
    let rules = node.netns.command("nft").args(["list", "ruleset"]).output().unwrap();
    let links = node.netns.ip(&["-br", "addr"]);
    // Interfaces that come and go have numbers.
    let names: Vec<&str> = links.lines().filter_map(|line| line.split_whitespace().next()).collect();
    format!("{names:?}\n{}", String::from_utf8_lossy(&rules.stdout))
}

/// Of the daemon, in KiB.
fn memory(node: &Node) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.daemon_pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn networks_and_containers_that_come_and_go_leave_nothing() {
    let node = alone();
    let rounds = std::env::var("SHOAL_E2E_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(12);
    let cycle = || {
        node.docker(&["network", "create", "--subnet", "10.5.0.0/29", "net"]).ok();
        run(&node, "box", &["--network", "net", "-p", "8080:80"], "serve");
        assert_eq!(address(&node, "box", "net").to_string(), "10.5.0.2");
        node.docker(&["network", "connect", "bridge", "box"]).ok();
        node.docker(&["rm", "-f", "box"]).ok();
        node.docker(&["network", "rm", "net"]).ok();
    };
    // What the first ones make stays: the default network, and what a process needs once.
    (0..3).for_each(|_| cycle());
    let (before, used) = (possessions(&node), memory(&node));
    (0..rounds).for_each(|_| cycle());
    assert_eq!(possessions(&node), before);
    let more = memory(&node).saturating_sub(used);
    eprintln!("{rounds} rounds: {used} KiB, and {more} KiB more");
    assert!(more < 16 << 10, "{more} KiB more than {used}");
    node.finish();
}

#[test]
fn a_bridge_carries_both_families() {
    let mut node = alone();
    let subnets = ["--ipv6", "--subnet", "172.30.0.0/24", "--subnet", "fd00:30::/64"];
    node.docker(&[&["network", "create"], &subnets[..], &["dual"]].concat()).ok();
    run(&node, "web", &["--network", "dual", "--publish", "8000:80"], "serve");
    run(&node, "client", &["--network", "dual", "--ip6", "fd00:30::77"], "idle");
    let check = |node: &Node| {
        let client = netns(node, "client");
        let text = on(node, "web", "dual")["GlobalIPv6Address"].as_str().unwrap().to_owned();
        let web: Ipv6Addr = text.parse().unwrap();
        let answer = client.run(|| ask("web", AAAA, Transport::Udp)).unwrap();
        assert_eq!(answer.addresses(), [IpAddr::from(web)]);
        assert_eq!(client.run(move || fetch((web, 80), "/index.html")).unwrap(), "busybox");
        assert_eq!(node.netns.run(move || fetch((web, 80), "/index.html")).unwrap(), "busybox");
        assert!(client.ip(&["-6", "-o", "addr"]).contains("fd00:30::77/64"));
        // Out under the node's address, in from outside by the published port only.
        let (out, port) = ((CLIENT_V6, 9), (node_address_v6(1), 8000));
        let seen = node.world.netns.run(move || std::net::UdpSocket::bind(out).unwrap());
        client.run(move || std::net::UdpSocket::bind("[::]:0").unwrap().send_to(b"x", out).unwrap());
        seen.set_read_timeout(Some(PATIENCE)).unwrap();
        let from = seen.recv_from(&mut [0; 8]).unwrap().1.ip();
        assert_eq!(from, IpAddr::from(node_address_v6(1)));
        assert_eq!(node.world.netns.run(move || fetch(port, "/index.html")).unwrap(), "busybox");
        assert_eq!(node.netns.run(|| fetch((Ipv6Addr::LOCALHOST, 8000), "/index.html")).unwrap(), "busybox");
    };
    check(&node);
    node.kill_daemon();
    node.start_daemon();
    check(&node);
    node.docker(&["rm", "-f", "web", "client"]).ok();
    node.docker(&["network", "rm", "dual"]).ok();
    node.finish();
}

#[test]
fn a_published_port_is_chosen_out_of_a_range() {
    let mut node = alone();
    for name in ["one", "two"] {
        run(&node, name, &["--publish", "8100-8101:80"], "serve");
    }
    let third = ["run", "-d", "--name", "three", "--publish", "8100-8101:80", "busybox", "serve"];
    refused(&node, &third, 125, "all ports are allocated");
    node.docker(&["rm", "-f", "three"]).ok();
    let shown =
        |node: &Node, name: &str| node.docker(&["port", name]).ok().lines().next().unwrap().to_owned();
    assert_eq!(
        (shown(&node, "one"), shown(&node, "two")),
        ("80/tcp -> 0.0.0.0:8100".into(), "80/tcp -> 0.0.0.0:8101".into())
    );
    node.kill_daemon();
    node.start_daemon();
    assert_eq!(shown(&node, "two"), "80/tcp -> 0.0.0.0:8101");
    assert_eq!(node.world.netns.run(|| fetch((NODE, 8101), "/index.html")).unwrap(), "busybox");
    // Each of its own range, one by one.
    run(&node, "many", &["--publish", "8200-8202:80-82"], "serve");
    assert_eq!(node.docker(&["port", "many", "82"]).ok().lines().next(), Some("0.0.0.0:8202"));
    node.docker(&["rm", "-f", "one", "two", "many"]).ok();
    node.finish();
}
