//! What a user may say of a network, and what is made of it.

use serde_json::{Value, json};
use shoal_e2e::{Cluster, GATEWAY, NODE, Node, NodeOptions, OUTSIDE, PATIENCE, wait_until};

const OVERLAY: [&str; 4] = ["network", "create", "-d", "overlay"];

fn create(node: &Node, arguments: &[&str]) {
    node.docker(&[&OVERLAY[..], arguments].concat()).ok();
}

#[track_caller]
fn refused(node: &Node, arguments: &[&str], words: &str) {
    let answer = node.docker(&[&OVERLAY[..], arguments].concat());
    assert!(answer.code == 1 && answer.stderr.contains(words), "wanted {words:?} in:\n{answer}");
}

fn names(node: &Node, filter: &str) -> Vec<String> {
    let listed = node.docker(&["network", "ls", "--filter", filter, "--format", "{{.Name}}"]).ok();
    let mut names: Vec<String> = listed.lines().map(str::to_owned).collect();
    names.sort();
    names
}

#[test]
fn every_option_is_there_or_refused() {
    let node = Node::cluster();
    create(
        &node,
        &[
            "--subnet",
            "172.28.0.0/16",
            "--ip-range",
            "172.28.5.0/24",
            "--gateway",
            "172.28.0.254",
            "--aux-address",
            "printer=172.28.5.1",
            "--attachable",
            "--label",
            "team=red",
            "--opt",
            "com.docker.network.driver.mtu=1300",
            "--opt",
            "com.docker.network.driver.overlay.vxlanid_list=7000",
            "full",
        ],
    );
    let shown = node.inspect("network", "full");
    assert_eq!(
        shown["IPAM"],
        json!({"Driver": "default", "Options": null, "Config": [
            {"Subnet": "172.28.0.0/16", "IPRange": "172.28.5.0/24", "Gateway": "172.28.0.254",
             "AuxiliaryAddresses": {"printer": "172.28.5.1"}}]})
    );
    create(&node, &["--subnet", "172.29.0.0/16", "--subnet", "192.168.77.0/24", "two"]);
    let two = node.inspect("network", "two")["IPAM"]["Config"].to_string();
    assert!(two.contains("172.29.0.0/16") && two.contains("192.168.77.0/24"), "{two}");
    assert_eq!(
        (&shown["Attachable"], &shown["Scope"], &shown["Driver"]),
        (&json!(true), &json!("swarm"), &json!("overlay"))
    );
    assert_eq!(shown["Labels"], json!({"team": "red"}));
    assert_eq!(
        shown["Options"],
        json!({"com.docker.network.driver.mtu": "1300", "com.docker.network.driver.overlay.vxlanid_list": "7000"})
    );
    assert_eq!(shown["Peers"], Value::Null, "nobody is on it");
    let task = &node.service("web", 1, &["--network", "full"], &["idle"])[0];
    let address = task.address("full").to_string();
    assert!(address.starts_with("172.28.5.") && address != "172.28.5.1", "{address}");
    assert!(node.exec(task, &["ip", "link", "show", "eth0"]).ok().contains("mtu 1300"));
    let shown = node.inspect("network", "full");
    assert_eq!(shown["Peers"].as_array().unwrap().len(), 1);
    assert_eq!(shown["Peers"][0]["IP"], NODE.to_string());
    assert_eq!(shown["Containers"][&task.id]["IPv4Address"], format!("{address}/16"));

    refused(&node, &["--opt", "encrypted", "x"], "encrypted overlay networks are not supported");
    refused(
        &node,
        &["--opt", "com.docker.network.driver.mtu=big", "x"],
        "invalid com.docker.network.driver.mtu",
    );
    let vni = "com.docker.network.driver.overlay.vxlanid_list";
    refused(&node, &["--opt", &format!("{vni}=7000"), "x"], "vxlan id 7000 is in use by network full");
    refused(&node, &["--opt", &format!("{vni}=7001,7002"), "x"], "invalid vxlan id value");
    refused(&node, &["--subnet", "10.1.2.3/24", "x"], "it should be 10.1.2.0/24");
    refused(
        &node,
        &["--subnet", "172.28.9.0/24", "x"],
        "subnet 172.28.9.0/24 overlaps with subnet 172.28.0.0/16 of network full",
    );
    refused(&node, &["--subnet", "192.0.2.0/28", "x"], "overlaps with address 192.0.2.10 of node node1");
    refused(
        &node,
        &["--subnet", "192.0.0.0/16", "--aux-address", "a=192.1.0.1", "x"],
        "no matching subnet for aux-address",
    );
    node.finish();
}

#[test]
fn lists_are_filtered_by_scope_and_driver() {
    let node = Node::cluster();
    node.network("mynet");
    node.docker(&["network", "create", "-d", "overlay", "--internal", "--label", "a=b", "inner"]).ok();
    assert_eq!(names(&node, "scope=swarm"), ["ingress", "inner", "mynet"]);
    assert_eq!(names(&node, "driver=overlay"), ["ingress", "inner", "mynet"]);
    assert_eq!(names(&node, "driver=host"), ["host"]);
    assert_eq!(names(&node, "label=a"), ["inner"]);
    assert!(names(&node, "scope=local").contains(&"bridge".to_owned()));
    assert_eq!(names(&node, "type=custom"), ["ingress", "inner", "mynet"]);
    node.finish();
}

#[test]
fn an_internal_network_leads_nowhere() {
    let node = Node::cluster();
    node.docker(&["network", "create", "-d", "overlay", "--internal", "inner"]).ok();
    assert_eq!(node.inspect("network", "inner")["Internal"], true);
    let tasks = node.service("web", 2, &["--network", "inner"], &["serve"]);
    let routes = node.exec(&tasks[0], &["ip", "route"]).ok();
    assert_eq!(routes.lines().count(), 1, "{routes}");
    let out = tasks[0].netns().run(|| std::net::TcpStream::connect((OUTSIDE, 80)).map(drop));
    assert!(out.is_err(), "{out:?}");
    let neighbour = tasks[1].address("inner");
    wait_until(PATIENCE, "its neighbour answers", || {
        tasks[0].netns().run(move || shoal_e2e::web::fetch((neighbour, 80), "/index.html")).map(drop)
    });
    node.finish();
}

#[test]
fn a_cluster_is_begun_with_pools_and_a_port_of_the_users_choice() {
    let node = Node::start();
    let init = ["swarm", "init", "--advertise-addr", "192.0.2.10"];
    let bad = node.docker(&[&init[..], &["--data-path-port", "80"]].concat());
    assert!(bad.code == 1 && bad.stderr.contains("1024-49151"), "{bad}");
    let good = [
        "--default-addr-pool",
        "172.20.0.0/16",
        "--default-addr-pool",
        "172.22.0.0/16",
        "--default-addr-pool-mask-length",
        "20",
        "--data-path-port",
        "7789",
        "--data-path-addr",
        "eth0",
    ];
    node.docker(&[&init[..], &good[..]].concat()).ok();
    node.import_busybox();
    let format =
        "{{.Swarm.Cluster.DefaultAddrPool}} {{.Swarm.Cluster.SubnetSize}} {{.Swarm.Cluster.DataPathPort}}";
    assert_eq!(
        node.docker(&["info", "--format", format]).ok().trim(),
        "[172.20.0.0/16 172.22.0.0/16] 20 7789"
    );
    assert_eq!(node.inspect("network", "ingress")["IPAM"]["Config"][0]["Subnet"], "172.20.0.0/20");
    node.network("mynet");
    assert_eq!(node.inspect("network", "mynet")["IPAM"]["Config"][0]["Subnet"], "172.20.16.0/20");
    node.service("web", 1, &["--network", "mynet"], &["idle"]);
    let sockets = node.netns.command("ss").args(["-uln"]).output().unwrap();
    let sockets = String::from_utf8_lossy(&sockets.stdout).into_owned();
    assert!(sockets.contains(":7789") && !sockets.contains(":4789"), "{sockets}");
    node.finish();
}

#[test]
fn networks_keep_clear_of_the_nodes_routes() {
    let node = Node::start();
    let gateway = GATEWAY.to_string();
    let route = |verb: &str, prefix: &str| node.netns.ip(&["route", verb, prefix, "via", &gateway]);
    route("add", "10.0.0.0/16");
    let told = || node.docker(&["info", "--format", "{{.Swarm.LocalNodeState}}"]).ok();
    assert_eq!(told().trim(), "inactive");
    wait_until(PATIENCE, "the ingress network keeps clear of the route", || {
        node.docker(&["swarm", "init", "--advertise-addr", "192.0.2.10"]).ok();
        let subnet = node.inspect("network", "ingress")["IPAM"]["Config"][0]["Subnet"].clone();
        if subnet == "10.1.0.0/24" {
            return Ok(());
        }
        node.docker(&["swarm", "leave", "--force"]).ok();
        Err(subnet.to_string())
    });
    refused(
        &node,
        &["--subnet", "10.0.7.0/24", "x"],
        "subnet 10.0.7.0/24 overlaps with route 10.0.0.0/16 of node node1",
    );
    create(&node, &["--subnet", "172.30.1.0/24", "mynet"]);
    route("add", "172.30.0.0/16");
    let message = "route 172.30.0.0/16 overlaps with subnet 172.30.1.0/24 of network mynet";
    let says = || node.inspect("node", "self")["Status"]["Message"].as_str().unwrap_or_default().to_owned();
    wait_until(PATIENCE, "the node tells of its new route", || match says() {
        text if text == message => Ok(()),
        text => Err(text),
    });
    refused(&node, &["--subnet", "172.30.2.0/24", "x"], "overlaps with route 172.30.0.0/16 of node node1");
    route("del", "172.30.0.0/16");
    wait_until(PATIENCE, "the route is forgotten", || match says() {
        text if text.is_empty() => Ok(()),
        text => Err(text),
    });
    // Without room for the ingress network there is no cluster.
    node.docker(&["swarm", "leave", "--force"]).ok();
    route("add", "10.0.0.0/8");
    wait_until(PATIENCE, "a cluster without room is refused", || {
        let answer = node.docker(&["swarm", "init", "--advertise-addr", "192.0.2.10"]);
        if answer.code == 1 && answer.stderr.contains("--default-addr-pool") {
            return Ok(());
        }
        node.docker(&["swarm", "leave", "--force"]).ok();
        Err(answer.to_string())
    });
    node.docker(&["swarm", "init", "--advertise-addr", "192.0.2.10", "--default-addr-pool", "172.20.0.0/16"])
        .ok();
    node.finish();
}

#[test]
fn a_node_that_joins_with_a_clashing_route_is_taken_in_and_says_so() {
    let cluster = Cluster::apart(2, &NodeOptions::default());
    let (manager, late) = (cluster.node(1), cluster.node(2));
    manager.init();
    manager.network("mynet");
    late.netns.ip(&["route", "add", "10.0.1.0/24", "via", &GATEWAY.to_string()]);
    cluster.join(2);
    let message = "route 10.0.1.0/24 overlaps with subnet 10.0.1.0/24 of network mynet";
    wait_until(PATIENCE, "the node says so", || match manager.inspect("node", "node2")["Status"]["Message"]
        .as_str()
        .unwrap_or_default()
    {
        text if text == message => Ok(()),
        text => Err(text.to_owned()),
    });
    cluster.ready(2);
    assert!(manager.log_tail().contains(message), "and the manager's log, too");
    cluster.finish();
}

#[test]
fn running_containers_follow_the_size_of_the_underlay() {
    let node = Node::cluster();
    node.network("mynet");
    let task = &node.service("web", 1, &["--network", "mynet"], &["idle"])[0];
    let size = || {
        let text = task.netns().ip(&["-j", "link", "show", "eth0"]);
        serde_json::from_str::<Value>(&text).unwrap()[0]["mtu"].as_u64().unwrap()
    };
    assert_eq!(size(), 1450);
    for (underlay, inside) in [("1400", 1350), ("1500", 1450)] {
        node.netns.ip(&["link", "set", "eth0", "mtu", underlay]);
        wait_until(PATIENCE, &format!("a frame has {inside} bytes"), || match size() {
            size if size == inside => Ok(()),
            size => Err(size.to_string()),
        });
    }
    node.finish();
}
