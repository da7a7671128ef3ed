//! The network that carries published ports: seen, taken away, made anew as its user wants it.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use serde_json::Value;
use shoal_e2e::process::Output;
use shoal_e2e::web::fetch_over;
use shoal_e2e::{CLIENT, Cluster, Node, PATIENCE, wait_until};

const WHO: &str = "/cgi-bin/who";
const MTU: u64 = 1300;
const ON_NODE_2: [&str; 2] = ["--constraint", "node.hostname==node2"];

/// The docker client asks before it removes this network.
fn remove(node: &Node, name: &str) -> Output {
    node.docker_with_input(&["network", "rm", name], b"y\n")
}

#[track_caller]
fn refused(output: &Output, text: &str) {
    assert!(output.code != 0 && output.stderr.contains(text), "{text:?} is not in: {output}");
}

/// What a routed client outside gets on a node's port: the address that the task saw.
fn seen_by_task(node: &Node, port: u16) -> Result<String, String> {
    let to = SocketAddr::from((node.address(), port));
    let stream = node.world.connect_from_client(to).map_err(|error| error.to_string())?;
    let body = fetch_over(stream, WHO)?;
    let (_, client) = body.split_once(' ').ok_or_else(|| body.clone())?;
    Ok(client.trim_start_matches('[').trim_start_matches("::ffff:").trim_end_matches(']').to_owned())
}

#[track_caller]
fn answers_everywhere(cluster: &Cluster, port: u16) {
    for node in cluster.nodes() {
        let seen = wait_until(PATIENCE, &format!("port {port} answers on {}", node.options.name), || {
            seen_by_task(node, port)
        });
        assert_eq!(seen, CLIENT.to_string(), "on {}", node.options.name);
    }
}

/// Everything a node has of an ingress network: links, their addresses, rules, routes, elements.
fn remains(node: &Node) -> Vec<String> {
    let mut found = Vec::new();
    for (what, arguments) in [
        ("link", &["-o", "link", "show"][..]),
        ("address", &["-o", "addr", "show"]),
        ("route", &["route", "show", "table", "all"]),
        ("neighbour", &["neigh", "show"]),
    ] {
        let text = node.netns.ip(arguments);
        found.extend(
            text.lines().filter(|line| line.contains("shoal-ing")).map(|line| format!("{what} {line}")),
        );
    }
    let rules = node.netns.ip(&["rule", "show"]);
    found.extend(rules.lines().filter(|line| line.contains("fwmark")).map(|line| format!("rule {line}")));
    let output = node.netns.command("nft").args(["-j", "list", "ruleset"]).output().unwrap();
    let ruleset: Value = serde_json::from_slice(&output.stdout).unwrap();
    for object in ruleset["nftables"].as_array().into_iter().flatten() {
        if object["table"]["family"] == "netdev" {
            found.push(format!("table {object}"));
        }
        let set = object.get("set").or_else(|| object.get("map"));
        if let Some(set) =
            set.filter(|set| set["elem"].as_array().is_some_and(|elements| !elements.is_empty()))
        {
            found.push(format!("set {} {}", set["name"], set["elem"]));
        }
    }
    found
}

#[track_caller]
fn nothing_remains(cluster: &Cluster) {
    for node in cluster.nodes() {
        wait_until(PATIENCE, &format!("{} has nothing of the ingress network", node.options.name), || {
            let found = remains(node);
            if found.is_empty() { Ok(()) } else { Err(found.join("\n")) }
        });
    }
}

/// The MTU of a link of a node, or of a container's way to the ingress network.
fn mtu(links: &str, name: impl Fn(&str) -> bool) -> Vec<u64> {
    let links: Value = serde_json::from_str(links).unwrap();
    let named =
        links.as_array().into_iter().flatten().filter(|link| link["ifname"].as_str().is_some_and(&name));
    named.filter_map(|link| link["mtu"].as_u64()).collect()
}

#[test]
fn the_ingress_network_is_taken_away_and_made_anew() {
    let cluster = Cluster::start(3);
    let manager = cluster.manager();
    let shown = manager.inspect("network", "ingress");
    assert_eq!((&shown["Driver"], &shown["Scope"]), (&"overlay".into(), &"swarm".into()), "{shown:#}");
    assert_eq!((&shown["Ingress"], &shown["Attachable"]), (&true.into(), &false.into()), "{shown:#}");
    assert_eq!(shown["Peers"].as_array().map(Vec::len), Some(3), "{shown:#}");
    let id = shown["Id"].as_str().unwrap().to_owned();

    let second = ["network", "create", "-d", "overlay", "--ingress", "second"];
    refused(&cluster.docker(&second), &format!("ingress network ({id}) is already present"));
    let attachable = ["network", "create", "-d", "overlay", "--ingress", "--attachable", "second"];
    refused(&cluster.docker(&attachable), "ingress network cannot be attachable");
    let attached = ["service", "create", "--detach", "--network", "ingress", "busybox", "idle"];
    let text = "Service cannot be explicitly attached to the ingress network \"ingress\"";
    refused(&cluster.docker(&attached), text);

    cluster.web("app", 1, &[&ON_NODE_2[..], &["--publish", "8000:80"]].concat());
    answers_everywhere(&cluster, 8000);
    let app = manager.inspect("service", "app")["ID"].as_str().unwrap().to_owned();
    let text = format!("ingress network cannot be removed because service {app} depends on it");
    refused(&remove(manager, "ingress"), &text);
    answers_everywhere(&cluster, 8000);

    cluster.docker(&["service", "rm", "app"]).ok();
    remove(manager, "ingress").ok();
    nothing_remains(&cluster);
    let needed = "service needs ingress network, but no ingress network is present";
    let publish =
        ["service", "create", "--detach", "--publish", "8000:80", "--name", "app", "busybox", "serve"];
    refused(&cluster.docker(&publish), needed);
    cluster.service("quiet", 1, &[], &["idle"]);
    refused(&cluster.docker(&["service", "update", "--detach", "--publish-add", "8000:80", "quiet"]), needed);

    let option = format!("com.docker.network.driver.mtu={MTU}");
    let create = ["network", "create", "-d", "overlay", "--ingress", "--subnet", "172.29.0.0/16"];
    let own = ["--gateway", "172.29.0.9", "--opt", &option, "mesh"];
    cluster.docker(&[&create[..], &own].concat()).ok();
    let shown = manager.inspect("network", "mesh");
    let config = &shown["IPAM"]["Config"][0];
    assert_eq!((&config["Subnet"], &config["Gateway"]), (&"172.29.0.0/16".into(), &"172.29.0.9".into()));

    let ports = ["--publish", "8000:80", "--publish", "9000:7000/udp"];
    let task = cluster.web("app", 1, &[&ON_NODE_2[..], &ports].concat()).remove(0);
    answers_everywhere(&cluster, 8000);
    for node in cluster.nodes() {
        let sizes = mtu(&node.netns.ip(&["-j", "link", "show"]), |name| name.starts_with("shoal-ing"));
        assert_eq!(sizes, [MTU, MTU], "bridge and tunnel of {}", node.options.name);
    }
    let inside = mtu(&task.netns().ip(&["-j", "link", "show"]), |name| name != "lo");
    assert_eq!(inside, [MTU], "the task's own end");
    let own = task.netns().ip(&["-o", "-4", "addr", "show"]);
    assert!(own.contains("172.29."), "{own}");
    is_told_the_size(&cluster, cluster.node(3).address());
    cluster.finish();
}

/// A client outside is told of the mesh's MTU by the node it asks, as by every router on its way.
fn is_told_the_size(cluster: &Cluster, node: Ipv4Addr) {
    let outside = &cluster.world.netns;
    wait_until(PATIENCE, "the client learns the MTU", || {
        let sent = outside.run(move || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.send_to(&[0; 1400], SocketAddr::from((node, 9000)))
        });
        let known = outside.ip(&["route", "get", &node.to_string()]);
        if known.contains(&format!("mtu {MTU}")) { Ok(()) } else { Err(format!("{sent:?}: {known}")) }
    });
}

/// The node that was away is told at once that one network is gone, and of the next, on the same port.
#[test]
fn a_node_that_was_away_serves_the_next_ingress_network() {
    let mut cluster = Cluster::start(3);
    cluster.web("app", 1, &[&ON_NODE_2[..], &["--publish", "8000:80"]].concat());
    answers_everywhere(&cluster, 8000);
    cluster.node_mut(3).kill_daemon();
    cluster.docker(&["service", "rm", "app"]).ok();
    wait_until(PATIENCE, "the network is removed", || {
        let removed = remove(cluster.manager(), "ingress");
        if removed.code == 0 { Ok(()) } else { Err(removed.to_string()) }
    });
    cluster.docker(&["network", "create", "-d", "overlay", "--ingress", "mesh"]).ok();
    cluster.web("app", 1, &[&ON_NODE_2[..], &["--publish", "8000:80"]].concat());
    cluster.node_mut(3).start_daemon();
    answers_everywhere(&cluster, 8000);
    cluster.finish();
}
