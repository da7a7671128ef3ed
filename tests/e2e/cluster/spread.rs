//! Services whose tasks live on several nodes: names, virtual address and port are the same everywhere.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::Value;
use shoal_e2e::web::fetch_over;
use shoal_e2e::{CLIENT, Cluster, Node};

use super::{PORT, client, serving, who};

const NODES: u8 = 3;

#[test]
fn a_service_spread_over_nodes_is_one_service() {
    let cluster = serving(NODES, 6);
    tasks_are_spread(&cluster);
    names_are_the_same_on_every_node(&cluster);
    the_virtual_address_leads_to_tasks_of_all_nodes(&cluster);
    every_node_publishes_the_port(&cluster);
    a_node_without_a_task_knows_nothing(&cluster);
    cluster.finish();
}

fn tasks_are_spread(cluster: &Cluster) {
    let tasks = cluster.running("app", 6);
    for node in cluster.nodes() {
        let here = tasks.iter().filter(|task| task.node == node.number).count();
        assert_eq!(here, 2, "node {}", node.number);
    }
}

fn names_are_the_same_on_every_node(cluster: &Cluster) {
    let vip = IpAddr::from(cluster.manager().vip("app"));
    let members: Vec<IpAddr> =
        cluster.running("app", 6).iter().map(|task| task.address("appnet").into()).collect();
    let turns = cluster.web("rr", 3, &["--network", "appnet", "--endpoint-mode", "dnsrr"]);
    let turns: Vec<IpAddr> = turns.iter().map(|task| task.address("appnet").into()).collect();
    for node in cluster.nodes() {
        let client = client(cluster, node.number);
        node.resolves(&client, "app", vec![vip]);
        node.resolves(&client, "tasks.app", members.clone());
        node.resolves(&client, "rr", turns.clone());
    }
}

/// The names of all tasks of `app`, as they call themselves.
fn names(cluster: &Cluster) -> BTreeSet<String> {
    cluster.running("app", 6).iter().map(|task| task.id[..12].to_owned()).collect()
}

fn the_virtual_address_leads_to_tasks_of_all_nodes(cluster: &Cluster) {
    let vip = cluster.manager().vip("app");
    for node in cluster.nodes() {
        let client = client(cluster, node.number);
        let seen: BTreeSet<String> = client.run(move || (0..100).map(|_| who(vip, 80).unwrap()).collect());
        assert_eq!(seen, names(cluster), "from node {}", node.number);
    }
}

fn every_node_publishes_the_port(cluster: &Cluster) {
    for node in cluster.nodes() {
        let address = node.address();
        let mut seen = BTreeSet::new();
        for _ in 0..100 {
            let stream = cluster.world.connect_from_client((address, PORT).into()).unwrap();
            let body = fetch_over(stream, "/cgi-bin/who").unwrap();
            assert!(body.contains(&CLIENT.to_string()), "the task sees who asked, not a node: {body}");
            seen.insert(body.split(' ').next().unwrap().to_owned());
        }
        assert_eq!(seen, names(cluster), "through node {}", node.number);
        let from_itself: BTreeSet<String> =
            node.netns.run(|| (0..100).map(|_| who([127, 0, 0, 1].into(), PORT).unwrap()).collect());
        assert_eq!(from_itself, names(cluster), "from node {} itself", node.number);
    }
}

/// The names of the networks whose tables a node holds.
fn tables(node: &Node) -> BTreeSet<String> {
    let text = node.shoal(&["node", "tables", "--format", "json"]).ok();
    let reports: Value = serde_json::from_str(&text).unwrap();
    let names = reports.as_array().into_iter().flatten().filter_map(|report| report["name"].as_str());
    names.map(str::to_owned).collect()
}

fn a_node_without_a_task_knows_nothing(cluster: &Cluster) {
    cluster.manager().network("lonelynet");
    let only_here = ["--network", "lonelynet", "--constraint", "node.hostname==node2"];
    cluster.service("lonely", 2, &only_here, &["idle"]);
    for node in cluster.nodes() {
        let known = tables(node);
        assert!(known.contains("appnet"), "node {}: {known:?}", node.number);
        assert_eq!(known.contains("lonelynet"), node.number == 2, "node {}: {known:?}", node.number);
    }
}
