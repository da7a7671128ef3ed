//! What an operator of several nodes does: asks whether they are well, moves work off them, labels
//! them, and is told why something is not to be had.

use serde_json::Value;
use shoal_e2e::web::fetch;
use shoal_e2e::{Cluster, Node, PATIENCE, wait_until};

use super::{PAGE, client, serving};

const BUSY: u8 = 2;
const SPARE: u8 = 3;

#[test]
fn nodes_are_verified_drained_paused_and_labelled() {
    let mut cluster = serving(3, 3);
    what_a_node_lost_is_found_from_the_manager_and_comes_back(&cluster);
    a_node_that_does_not_answer_is_named(&mut cluster);
    a_drained_node_is_empty_and_keeps_what_cannot_move(&cluster);
    a_paused_node_keeps_its_tasks_and_gets_none(&cluster);
    labels_choose_nodes(&cluster);
    roles_are_told_apart(&cluster);
    cluster.finish();
}

/// Exit code and report, asked of the manager.
fn verify(cluster: &Cluster) -> (i32, Value) {
    let output = cluster.manager().shoal(&["verify", "--format", "json"]);
    let report = serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output}"));
    (output.code, report)
}

/// How often the Nth node found and repaired something.
fn counts(cluster: &Cluster, number: u8) -> (u64, u64) {
    let (_, report) = verify(cluster);
    let name = &cluster.node(number).options.name;
    let nodes = report["nodes"].as_array().unwrap();
    let node = nodes.iter().find(|node| node["name"] == **name).unwrap();
    let drift = &node["report"]["drift"];
    (drift["found"].as_u64().unwrap(), drift["repaired"].as_u64().unwrap())
}

/// Runs a script where a node keeps its end of a network.
fn in_overlay(node: &Node, network: &str, script: &str) {
    let id = node.inspect("network", network)["Id"].as_str().unwrap().to_owned();
    let path = node.run_dir().join("netns").join(format!("net-{id}"));
    let mut command = std::process::Command::new("nsenter");
    command.arg(format!("--net={}", path.display())).args(["sh", "-ec", script]);
    assert!(command.status().unwrap().success(), "{script}");
}

fn what_a_node_lost_is_found_from_the_manager_and_comes_back(cluster: &Cluster) {
    let (code, report) = verify(cluster);
    assert_eq!((code, report["nodes"].as_array().unwrap().len()), (0, 3), "{report:#}");
    let told = cluster.manager().shoal(&["verify"]).ok();
    assert!(told.contains("All 3 nodes hold what their tables say."), "{told}");
    let (vip, client) = (cluster.manager().vip("app"), client(cluster, BUSY));
    let reaches = move || (0..6).try_for_each(|_| fetch((vip, 80), PAGE).map(drop));
    let (found, repaired) = counts(cluster, BUSY);
    assert_eq!(found, repaired);
    // The ways to the tasks of the other nodes.
    let node = cluster.node(BUSY);
    let flush = "for dev in br0 vx0; do ip neigh flush dev $dev nud permanent; done; \
                 bridge fdb show dev vx0 | grep ' dst ' | while read mac rest; do bridge fdb del $mac dev vx0; done";
    in_overlay(node, "appnet", flush);
    wait_until(PATIENCE, "what was flushed is found, counted and put back", || {
        let (now_found, now_repaired) = counts(cluster, BUSY);
        if now_found == found || now_repaired != now_found {
            return Err(format!(
                "{found} to {now_found} found, {now_repaired} repaired\n{}",
                node.log_tail()
            ));
        }
        client.run(reaches)
    });
    assert_eq!(verify(cluster).0, 0);
}

fn a_node_that_does_not_answer_is_named(cluster: &mut Cluster) {
    cluster.node_mut(SPARE).kill_daemon();
    wait_until(PATIENCE, "the manager has noticed", || {
        let output = cluster.manager().shoal(&["verify"]);
        let told = output.stdout.contains("1 of 3 nodes differ or did not answer.");
        let named = output.stdout.lines().any(|line| line.starts_with("node3: "));
        if output.code == 1 && told && named { Ok(()) } else { Err(output.to_string()) }
    });
    cluster.node_mut(SPARE).start_daemon();
    cluster.ready(3);
    wait_until(PATIENCE, "all is well", || {
        let (code, report) = verify(cluster);
        if code == 0 { Ok(()) } else { Err(format!("{report:#}")) }
    });
}

fn on(cluster: &Cluster, service: &str, count: usize, number: u8) -> usize {
    cluster.running(service, count).iter().filter(|task| task.node == number).count()
}

fn a_drained_node_is_empty_and_keeps_what_cannot_move(cluster: &Cluster) {
    cluster.docker(&["node", "update", "--availability", "drain", "node3"]).ok();
    wait_until(PATIENCE, "the drained node's tasks are elsewhere", || match on(cluster, "app", 3, SPARE) {
        0 => Ok(()),
        left => Err(format!("{left} left\n{}", cluster.log_tails())),
    });
    wait_until(PATIENCE, "what may only run there says why it does not", || {
        let told = cluster.docker(&["service", "ps", "--no-trunc", "client-3"]).ok();
        let why = told.contains("no suitable node (") && told.contains("not available for new tasks");
        if why { Ok(()) } else { Err(told) }
    });
    let listed = cluster.docker(&["node", "ls", "--format", "{{.Hostname}} {{.Availability}}"]).ok();
    assert!(listed.contains("node3 Drain"), "{listed}");
    let tasks = cluster.docker(&["node", "ps", "node3", "--filter", "desired-state=running", "-q"]).ok();
    assert_eq!(tasks, "");
    cluster.docker(&["node", "update", "--availability", "active", "node3"]).ok();
    cluster.running("client-3", 1);
}

fn a_paused_node_keeps_its_tasks_and_gets_none(cluster: &Cluster) {
    let kept = on(cluster, "app", 3, BUSY);
    assert_ne!(kept, 0);
    cluster.docker(&["node", "update", "--availability", "pause", "node2"]).ok();
    cluster.docker(&["service", "scale", "-d", "app=6"]).ok();
    assert_eq!(on(cluster, "app", 6, BUSY), kept);
    cluster.docker(&["node", "update", "--availability", "active", "node2"]).ok();
    cluster.docker(&["service", "scale", "-d", "app=3"]).ok();
    cluster.running("app", 3);
}

fn labels_choose_nodes(cluster: &Cluster) {
    let constrained = ["--constraint", "node.labels.disk==ssd", "--network", "appnet"];
    cluster.manager().create_service("fast", 2, &constrained, &["idle"]);
    wait_until(PATIENCE, "it waits, and says for what", || {
        let told = cluster.docker(&["service", "ps", "--no-trunc", "fast"]).ok();
        let why = told.contains("no suitable node (scheduling constraints not satisfied on 3 nodes)");
        if why { Ok(()) } else { Err(told) }
    });
    cluster.docker(&["node", "update", "--label-add", "disk=ssd", "node3"]).ok();
    assert_eq!(on(cluster, "fast", 2, SPARE), 2);
    assert_eq!(cluster.manager().inspect("node", "node3")["Spec"]["Labels"]["disk"], "ssd");
    let shown = cluster.docker(&["node", "inspect", "--pretty", "node3"]).ok();
    let mut lines = shown.lines().map(str::trim);
    assert!(lines.any(|line| line == "- disk=ssd"), "{shown}");
    assert!(lines.any(|line| line.starts_with("Availability:") && line.ends_with("Active")), "{shown}");
    // What no longer satisfies its constraint is moved, or waits.
    cluster.docker(&["node", "update", "--label-rm", "disk", "--label-add", "disk=hdd", "node3"]).ok();
    cluster.running("fast", 0);
    cluster.docker(&["service", "rm", "fast"]).ok();
}

fn roles_are_told_apart(cluster: &Cluster) {
    let refused = |arguments: &[&str]| {
        let output = cluster.docker(arguments);
        assert_ne!(output.code, 0, "{output}");
        output.stderr
    };
    let told = refused(&["node", "promote", "node2"]);
    assert!(told.contains("the embedded store serves exactly one manager"), "{told}");
    let told = refused(&["node", "demote", "node1"]);
    assert!(told.contains("attempting to demote the last manager of the swarm"), "{told}");
    let told = refused(&["node", "rm", "node2"]);
    assert!(told.contains("is not down and can't be removed"), "{told}");
    assert_eq!(cluster.status(BUSY), "Ready");
    assert_eq!(cluster.manager().inspect("node", "node1")["Spec"]["Role"], "manager");
}
