//! Plain containers on attachable networks: guests among the tasks, on any node.

use shoal_e2e::web::fetch;
use shoal_e2e::{Cluster, Container, Netns, Node, OUTSIDE, OUTSIDE_NAME, PATIENCE, wait_until};

use crate::containers::{comes_to, refused, state};

/// The network namespace of a running plain container.
fn netns(node: &Node, name: &str) -> Netns {
    Netns::of_process(state(node, name)["Pid"].as_u64().unwrap() as u32)
}

fn address(node: &Node, name: &str, network: &str) -> std::net::Ipv4Addr {
    let detail = node.inspect("container", name);
    let text = detail["NetworkSettings"]["Networks"][network]["IPAddress"].as_str().unwrap().to_owned();
    text.parse().unwrap_or_else(|_| panic!("{name} has no address on {network}: {detail:#}"))
}

fn attachable(node: &Node, name: &str, flags: &[&str]) {
    node.docker(&[&["network", "create", "-d", "overlay", "--attachable"], flags, &[name]].concat()).ok();
}

#[test]
fn a_guest_finds_services_and_is_found() {
    let mut node = Node::cluster();
    attachable(&node, "net", &[]);
    let web = node.service("web", 2, &["--network", "net"], &["serve"]).remove(0);
    let vip = node.vip("web");
    let run =
        ["run", "-d", "--name", "guest", "--network", "net", "--network-alias", "helper", "busybox", "serve"];
    let id = node.docker(&run).ok();
    let found = |node: &Node, web: &Container| {
        let guest = netns(node, "guest");
        node.resolves(&guest, "web", vec![vip.into()]);
        assert!(fetch((vip, 80), "/").is_err(), "only from inside");
        guest.run(move || fetch((vip, 80), "/index.html")).unwrap();
        let own = address(node, "guest", "net");
        for name in ["guest", "helper", &id[..12], "guest.net"] {
            node.resolves(&web.netns(), name, vec![own.into()]);
        }
        web.netns().run(move || fetch((own, 80), "/index.html")).unwrap();
        node.tables_are_true();
    };
    found(&node, &web);
    // By name, with the container's own tools.
    let page =
        node.docker(&["run", "--rm", "--network", "net", "busybox", "wget", "-q", "-O-", "http://helper/"]);
    assert_eq!(page.ok(), "busybox\n");
    let shown = node.inspect("network", "net");
    assert_eq!(shown["Containers"][id.trim()]["Name"], "guest", "{shown:#}");
    refused(&node, &["network", "rm", "net"], 1, "is in use by");

    node.kill_daemon();
    node.start_daemon();
    found(&node, &web);
    node.docker(&["rename", "guest", "visitor"]).ok();
    node.resolves(&web.netns(), "visitor", vec![address(&node, "visitor", "net").into()]);
    node.docker(&["rm", "-f", "visitor"]).ok();
    node.resolves(&web.netns(), "helper", vec![]);
    node.finish();
}

#[test]
fn guests_get_the_addresses_they_ask_for_or_are_told_why_not() {
    let node = Node::cluster();
    attachable(&node, "net", &["--subnet", "10.77.0.0/24"]);
    node.network("closed");
    let run = |name: &str, ip: &str| {
        node.docker(&["run", "-d", "--name", name, "--network", "net", "--ip", ip, "busybox", "idle"])
    };
    run("first", "10.77.0.99").ok();
    assert_eq!(address(&node, "first", "net").to_string(), "10.77.0.99");
    let taken = run("second", "10.77.0.99");
    assert!(taken.code == 125 && taken.stderr.contains("Address already in use"), "{taken}");
    assert_eq!(state(&node, "second")["Status"], "created");
    let outside = run("third", "10.78.0.9");
    assert!(outside.stderr.contains("It does not belong to any of this network's subnets"), "{outside}");
    let closed = "Could not attach to network closed: rpc error: code = PermissionDenied desc = network closed not \
                  manually attachable";
    refused(&node, &["run", "--rm", "--network", "closed", "busybox", "true"], 125, closed);
    refused(
        &node,
        &["run", "--rm", "--network", "nosuch", "busybox", "true"],
        125,
        "network nosuch not found",
    );
    // Freed when it ends, and had again by whoever asks next.
    node.docker(&["stop", "-t", "1", "first"]).ok();
    wait_until(PATIENCE, "the address is free again", || {
        let started = node.docker(&["start", "second"]);
        if started.code == 0 { Ok(()) } else { Err(started.to_string()) }
    });
    assert_eq!(address(&node, "second", "net").to_string(), "10.77.0.99");
    refused(&node, &["start", "first"], 1, "Address already in use");
    node.docker(&["rm", "-f", "first", "second", "third"]).ok();
    node.finish();
}

#[test]
fn a_killed_daemon_leaves_no_address_behind() {
    let mut node = Node::cluster();
    attachable(&node, "net", &[]);
    node.docker(&["run", "-d", "--name", "gone", "--network", "net", "busybox", "sleep", "2"]).ok();
    node.docker(&["run", "-d", "--rm", "--name", "away", "--network", "net", "busybox", "sleep", "2"]).ok();
    node.kill_daemon();
    std::thread::sleep(std::time::Duration::from_secs(3));
    node.start_daemon();
    wait_until(PATIENCE, "the network can be removed", || {
        let removed = node.docker(&["network", "rm", "net"]);
        if removed.code == 0 { Ok(()) } else { Err(removed.to_string()) }
    });
    comes_to(&node, "gone", "exited");
    node.docker(&["rm", "gone"]).ok();
    node.finish();
}

#[test]
fn leaving_the_cluster_takes_the_networks_not_the_containers() {
    let node = Node::cluster();
    attachable(&node, "net", &[]);
    node.docker(&["run", "-d", "--name", "stays", "--network", "net", "busybox", "idle"]).ok();
    let inside = netns(&node, "stays");
    node.docker(&["swarm", "leave", "--force"]).ok();
    assert_eq!(state(&node, "stays")["Running"], true);
    let links = inside.ip(&["-o", "link"]);
    assert!(!links.contains("eth0"), "{links}");
    node.resolves(&inside, OUTSIDE_NAME, vec![OUTSIDE.into()]);
    node.docker(&["stop", "-t", "1", "stays"]).ok();
    refused(&node, &["start", "stays"], 1, "network net not found");
    node.docker(&["rm", "stays"]).ok();
    node.finish();
}

#[test]
fn reset_removes_guests_too() {
    let mut node = Node::cluster();
    attachable(&node, "net", &[]);
    node.docker(&["run", "-d", "-i", "--name", "guest", "--network", "net", "busybox", "cat"]).ok();
    node.kill_daemon();
    node.finish_by_reset();
}

#[test]
fn a_guest_on_one_node_and_services_on_others_find_each_other() {
    let cluster = Cluster::start(3);
    attachable(cluster.manager(), "net", &[]);
    let web = cluster.service_on_each("web", &["--network", "net"], &["serve"]);
    let (near, far) = (cluster.node(2), cluster.node(3));
    wait_until(PATIENCE, "every node lists the network", || {
        let listed = far.docker(&["network", "ls", "--format", "{{.Name}} {{.Driver}} {{.Scope}}"]).ok();
        if listed.lines().any(|line| line == "net overlay swarm") { Ok(()) } else { Err(listed) }
    });
    assert_eq!(far.inspect("network", "net")["Attachable"], true);
    let run =
        ["run", "-d", "--name", "guest", "--network", "net", "--network-alias", "helper", "busybox", "serve"];
    let id = near.docker(&run).ok();
    let (guest, own) = (netns(near, "guest"), address(near, "guest", "net"));
    let shown = near.inspect("network", "net");
    assert_eq!(shown["Containers"][id.trim()]["Name"], "guest", "{shown:#}");
    for number in 1..=3 {
        let service = format!("web-{number}");
        let vip = cluster.manager().vip(&service);
        near.resolves(&guest, &service, vec![vip.into()]);
        wait_until(PATIENCE, "the service answers the guest", || {
            guest.run(move || fetch((vip, 80), "/index.html"))
        });
    }
    for task in &web {
        for name in ["guest", "helper", &id[..12]] {
            near.resolves(&task.netns(), name, vec![own.into()]);
        }
        let client = task.netns();
        wait_until(PATIENCE, "the guest answers the task", || {
            client.run(move || fetch((own, 80), "/index.html"))
        });
    }
    // On a third node, another guest finds the first.
    let page =
        far.docker(&["run", "--rm", "--network", "net", "busybox", "wget", "-q", "-O-", "http://guest/"]);
    assert_eq!(page.ok(), "busybox\n");
    let taken = ["run", "--rm", "--network", "net", "--ip", &own.to_string(), "busybox", "true"];
    refused(far, &taken, 125, "Address already in use");
    refused(cluster.manager(), &["network", "rm", "net"], 1, "is in use by");
    near.docker(&["rm", "-f", "guest"]).ok();
    near.resolves(&web[0].netns(), "guest", vec![]);
    wait_until(PATIENCE, "its address is free again", || {
        let again = far.docker(&taken);
        if again.code == 0 { Ok(()) } else { Err(again.to_string()) }
    });
    cluster.finish();
}

#[test]
fn a_lost_nodes_guests_are_found_by_nobody_and_come_back_with_it() {
    let cluster = Cluster::start(2);
    attachable(cluster.manager(), "net", &[]);
    let web = cluster.manager().service(
        "web",
        1,
        &["--network", "net", "--constraint", "node.role==manager"],
        &["serve"],
    );
    let worker = cluster.node(2);
    worker.docker(&["run", "-d", "--name", "guest", "--network", "net", "busybox", "serve"]).ok();
    let own = address(worker, "guest", "net");
    let client = web[0].netns();
    worker.resolves(&client, "guest", vec![own.into()]);
    worker.cut();
    wait_until(PATIENCE, "the node is down", || {
        let status = cluster.status(2);
        if status == "Down" { Ok(()) } else { Err(status) }
    });
    worker.resolves(&client, "guest", vec![]);
    refused(
        worker,
        &["run", "--rm", "--network", "net", "busybox", "true"],
        125,
        "no manager of the cluster can be reached",
    );
    assert_eq!(state(worker, "guest")["Running"], true);
    worker.restore();
    cluster.ready(2);
    worker.resolves(&client, "guest", vec![own.into()]);
    wait_until(PATIENCE, "it answers again", || client.run(move || fetch((own, 80), "/index.html")));
    cluster.finish();
}
