//! Where tasks may run, on real nodes, while what they ask for changes under them.

use shoal_e2e::{Cluster, PATIENCE, wait_until};

/// The node on which the one task of a service runs, once it does.
#[track_caller]
fn place(cluster: &Cluster, service: &str) -> u8 {
    cluster.running(service, 1)[0].node
}

#[track_caller]
fn stuck(cluster: &Cluster, service: &str, why: &str) {
    wait_until(PATIENCE, &format!("{service} says why it waits"), || {
        let told = cluster.docker(&["service", "ps", "--no-trunc", service]).ok();
        if told.contains(why) && told.contains("Pending") { Ok(()) } else { Err(told) }
    });
}

#[test]
fn a_task_is_where_its_constraints_say_and_moves_when_they_do_not_hold_any_more() {
    let cluster = Cluster::start(2);
    let label = |flag: &str, label: &str, node: &str| {
        cluster.docker(&["node", "update", flag, label, node]).ok();
    };
    let waits = ["--constraint", "node.labels.disk==ssd"];
    cluster.manager().create_service("db", 1, &waits, &["idle"]);
    stuck(&cluster, "db", "no suitable node (scheduling constraints not satisfied on 2 nodes)");
    label("--label-add", "disk=ssd", "node2");
    assert_eq!(place(&cluster, "db"), 2, "it goes on when a node comes to fit");
    label("--label-add", "disk=ssd", "node1");
    label("--label-rm", "disk", "node2");
    wait_until(PATIENCE, "it moves", || match place(&cluster, "db") {
        1 => Ok(()),
        other => Err(format!("still on {other}")),
    });
    label("--label-rm", "disk", "node1");
    stuck(&cluster, "db", "no suitable node (scheduling constraints not satisfied on 2 nodes)");

    for (name, constraint, node) in [
        ("role", "node.role!=manager", 2),
        ("host", "node.hostname==node2", 2),
        ("other", "node.hostname!=node2", 1),
        ("ip", "node.ip==192.0.2.11", 2),
        ("os", "node.platform.os==linux", 0),
        ("engine", "engine.labels.name==node2", 2),
    ] {
        cluster.service(name, 1, &["--constraint", constraint], &["idle"]);
        let found = place(&cluster, name);
        assert!(node == 0 || found == node, "{constraint} leads to node {found}");
    }
    cluster.finish();
}

#[test]
fn reservations_platforms_and_bounds_are_kept_and_told() {
    let cluster = Cluster::start(2);
    let create = |name: &str, replicas: usize, flags: &[&str]| {
        cluster.manager().create_service(name, replicas, flags, &["idle"]);
    };
    create("big", 1, &["--reserve-memory", "100000g"]);
    stuck(&cluster, "big", "no suitable node (insufficient resources on 2 nodes)");
    create("fast", 1, &["--reserve-cpu", "4096"]);
    stuck(&cluster, "fast", "no suitable node (insufficient resources on 2 nodes)");
    create("few", 3, &["--replicas-max-per-node", "1"]);
    cluster.running("few", 2);
    stuck(&cluster, "few", "no suitable node (max replicas per node limit exceed)");
    let cpus = std::thread::available_parallelism().unwrap().get();
    let half = format!("{:.1}", cpus as f64 * 0.6);
    create("halves", 3, &["--reserve-cpu", &half]);
    let halves = cluster.running("halves", 2);
    assert_ne!(halves[0].node, halves[1].node, "one on each node");
    stuck(&cluster, "halves", "no suitable node (insufficient resources on 2 nodes)");
    cluster.docker(&["service", "scale", "-d", "halves=2"]).ok();
    cluster.docker(&["node", "update", "--availability", "pause", "node2"]).ok();
    cluster.docker(&["service", "scale", "-d", "halves=3"]).ok();
    stuck(&cluster, "halves", "insufficient resources on 1 node");
    stuck(&cluster, "halves", "1 node not available for new tasks");
    let generic = ["service", "create", "--name", "gpu", "--generic-resource", "gpu=1", "busybox"];
    let refused = cluster.docker(&generic);
    assert!(refused.code == 1 && refused.stderr.contains("generic resources are not supported"), "{refused}");
    cluster.finish();
}

#[test]
fn a_node_on_which_a_service_keeps_failing_is_left_alone() {
    let cluster = Cluster::start(2);
    let flags = ["--env", "NODE={{.Node.Hostname}}", "--restart-delay", "10ms"];
    let picky = ["sh", "-c", "test $NODE = node1 && exec idle"];
    cluster.docker(&["swarm", "update", "--task-history-limit", "10"]).ok();
    cluster.manager().create_service("picky", 2, &flags, &picky);
    wait_until(PATIENCE, "both run where they can", || {
        let nodes: Vec<u8> = cluster.containers("picky").iter().map(|task| task.node).collect();
        if nodes == [1, 1] { Ok(()) } else { Err(format!("on {nodes:?}")) }
    });
    let told = cluster.docker(&["service", "ps", "--filter", "node=node2", "picky"]).ok();
    assert_eq!(told.matches("Failed").count(), 5, "not before it has failed for good: {told}");
    cluster.finish();
}
