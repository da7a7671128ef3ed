//! Machines become nodes of another machine's cluster, stay it, and leave it.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::Value;
use shoal_e2e::process::Output;
use shoal_e2e::{Cluster, Container, Node, NodeOptions, PATIENCE, wait_until};

fn info(node: &Node) -> Value {
    serde_json::from_str(&node.docker(&["info", "--format", "{{json .Swarm}}"]).ok()).unwrap()
}

fn token(manager: &Node, role: &str) -> String {
    manager.docker(&["swarm", "join-token", "-q", role]).ok().trim().to_owned()
}

fn fails(output: Output) -> String {
    assert_ne!(output.code, 0, "{output}");
    output.stderr
}

fn join(node: &Node, token: &str, manager: &str) -> Output {
    node.docker(&["swarm", "join", "--token", token, manager])
}

#[test]
fn a_second_node_joins_runs_tasks_survives_restarts_and_leaves() {
    let mut cluster = Cluster::apart(2, &NodeOptions::default());
    let said = cluster.manager().docker(&["swarm", "init", "--advertise-addr", "eth0"]).ok();
    let manager = format!("{}:2377", cluster.manager().address());
    let worker_token = token(cluster.manager(), "worker");
    assert!(said.contains(&format!("docker swarm join --token {worker_token} {manager}")), "{said}");
    let shape = |text: &str| {
        let parts: Vec<&str> = text.split('-').collect();
        matches!(parts[..], ["SWMTKN", "1", digest, secret] if digest.len() == 50 && secret.len() == 25)
    };
    assert!(shape(&worker_token) && shape(&token(cluster.manager(), "manager")), "{worker_token}");

    let joined = join(cluster.node(2), &worker_token, &manager).ok();
    assert!(joined.contains("This node joined a swarm as a worker."), "{joined}");
    cluster.ready(2);
    cluster.each(Node::import_busybox);
    let worker = info(cluster.node(2));
    assert_eq!((&worker["LocalNodeState"], &worker["ControlAvailable"]), (&"active".into(), &false.into()));
    assert_eq!(worker["NodeAddr"], cluster.node(2).address().to_string(), "seen by the manager");
    assert_eq!(worker["RemoteManagers"][0]["Addr"], manager);
    assert_eq!(worker["RemoteManagers"][0]["NodeID"], info(cluster.manager())["NodeID"]);
    assert_eq!(info(cluster.manager())["Nodes"], 2);
    let refused = fails(cluster.node(2).docker(&["node", "ls"]));
    assert!(refused.contains("Worker nodes can't be used to view or modify cluster state"), "{refused}");

    let seen = cluster.manager().inspect("node", "node2");
    assert_eq!(seen["Spec"]["Role"], "worker");
    assert_eq!(seen["Status"]["Addr"], cluster.node(2).address().to_string());
    assert_eq!(seen["ID"], worker["NodeID"]);
    let trust = cluster.manager().inspect("node", "node1")["Description"]["TLSInfo"].clone();
    assert!(trust["TrustRoot"].as_str().unwrap().starts_with("-----BEGIN CERTIFICATE-----"), "{trust}");
    assert_eq!(seen["Description"]["TLSInfo"], trust);

    let there = ["--constraint", "node.hostname==node2"];
    let before = cluster.service("app", 1, &there, &["idle"]).remove(0);
    assert_eq!(before.node, 2);

    // Both daemons go away and come back: the node is still a node, its task is still the same.
    cluster.node_mut(2).kill_daemon();
    cluster.node_mut(1).kill_daemon();
    cluster.node_mut(2).start_daemon();
    cluster.node_mut(1).start_daemon();
    cluster.ready(2);
    assert_eq!(cluster.node(2).running("app", 1).remove(0).id, before.id);
    assert_eq!(token(cluster.manager(), "worker"), worker_token);

    let again = fails(join(cluster.node(2), &worker_token, &manager));
    assert!(again.contains("This node is already part of a swarm"), "{again}");
    cluster.finish();
}

#[test]
fn whoever_may_not_join_is_told_why_within_seconds() {
    let cluster = Cluster::apart(3, &NodeOptions::default());
    cluster.manager().init();
    cluster.node(3).init();
    let manager = format!("{}:2377", cluster.manager().address());
    let (right, foreign) = (token(cluster.manager(), "worker"), token(cluster.node(3), "worker"));
    let refused = |token: &str, at: &str, because: &str| {
        let begun = Instant::now();
        let said = fails(join(cluster.node(2), token, at));
        assert!(said.contains(because), "{said}");
        assert!(begun.elapsed() < Duration::from_secs(8), "{:?}: {said}", begun.elapsed());
        assert_eq!(info(cluster.node(2))["LocalNodeState"], "inactive");
    };
    refused("nonsense", &manager, "invalid join token");
    refused(&foreign, &manager, "remote CA does not match fingerprint");
    let (digest, _) = right.rsplit_once('-').unwrap();
    let (_, secret) = foreign.rsplit_once('-').unwrap();
    let necessary = "A valid join token is necessary to join this cluster";
    refused(&format!("{digest}-{secret}"), &manager, necessary);
    refused(&right, &format!("{}:2378", cluster.manager().address()), "refused");
    refused(&right, "192.0.2.200:2377", "192.0.2.200:2377");
    refused(&token(cluster.manager(), "manager"), &manager, "docker swarm join-token worker");
    cluster.docker(&["swarm", "join-token", "--rotate", "-q", "worker"]).ok();
    refused(&right, &manager, necessary);
    let nodes = cluster.docker(&["node", "ls", "-q"]).ok();
    assert_eq!(nodes.lines().count(), 1, "nobody joined: {nodes}");
    join(cluster.node(2), &token(cluster.manager(), "worker"), &manager).ok();
    cluster.ready(2);
    cluster.node(3).docker(&["swarm", "leave", "--force"]).ok();
    join(cluster.node(3), &token(cluster.manager(), "worker"), &cluster.manager().address().to_string()).ok();
    cluster.ready(3);
    cluster.finish();
}

#[test]
fn a_clock_that_is_wrong_is_said_with_both_times() {
    let mut cluster = Cluster::apart(2, &NodeOptions::default());
    cluster.manager().init();
    let manager = format!("{}:2377", cluster.manager().address());
    let token = token(cluster.manager(), "worker");
    set_clock(&mut cluster, 2, Duration::from_secs(600));
    let said = fails(join(cluster.node(2), &token, &manager));
    let times =
        said.split([' ', ',']).filter_map(|word| word.trim_end_matches(':').parse::<Timestamp>().ok());
    let [one, other] = times.collect::<Vec<_>>().try_into().unwrap_or_else(|_| panic!("{said}"));
    let apart = (one.as_second() - other.as_second()).abs();
    assert!((595..=605).contains(&apart), "{apart} s: {said}");
    set_clock(&mut cluster, 2, Duration::from_secs(200));
    join(cluster.node(2), &token, &manager).ok();
    cluster.ready(2);
    cluster.finish();
}

fn set_clock(cluster: &mut Cluster, number: u8, ahead: Duration) {
    cluster.node_mut(number).kill_daemon();
    cluster.node_mut(number).options.clock_ahead = ahead;
    cluster.node_mut(number).start_daemon();
}

/// Certificates live for 90 days and are renewed after 45.
#[test]
fn certificates_are_renewed_in_time() {
    let day = |days: u64| Duration::from_secs(days * 24 * 3600);
    let mut cluster = Cluster::start(2);
    let before = cluster.service("app", 2, &[], &["idle"]);
    for (days, renewed) in [50, 100, 150].into_iter().zip(1..) {
        for number in [1, 2] {
            set_clock(&mut cluster, number, day(days));
        }
        let worker = cluster.node(2);
        wait_until(PATIENCE, "the worker has a new certificate, and a session", || {
            let log = worker.log();
            let (_, since) = log.rsplit_once("certificate was renewed").unwrap_or_default();
            let times = log.matches("certificate was renewed").count();
            if times == renewed && since.contains("session with the manager is open") {
                return Ok(());
            }
            Err(cluster.log_tails())
        });
    }
    set_clock(&mut cluster, 2, day(300));
    wait_until(PATIENCE, "the worker says why it is out", || {
        let error = info(cluster.node(2))["Error"].clone();
        if error.to_string().contains("its certificate expired at 2027-") {
            Ok(())
        } else {
            Err(error.to_string())
        }
    });
    set_clock(&mut cluster, 2, day(151));
    cluster.ready(2);
    let after = cluster.running("app", 2);
    let ids = |tasks: &[Container]| tasks.iter().map(|task| task.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&after), ids(&before));
    cluster.finish();
}

#[test]
fn a_node_that_left_joins_again_as_another_node() {
    let cluster = Cluster::start(2);
    let first = info(cluster.node(2))["NodeID"].clone();
    cluster.node(2).docker(&["swarm", "leave"]).ok();
    assert_eq!(info(cluster.node(2))["LocalNodeState"], "inactive");
    wait_until(PATIENCE, "the manager misses it", || {
        let status = cluster.status(2);
        if status == "Down" { Ok(()) } else { Err(status) }
    });
    cluster.join(2);
    cluster.ready(2);
    let second = info(cluster.node(2))["NodeID"].clone();
    assert_ne!(first, second);
    cluster.finish();
}

#[test]
fn the_authority_is_rotated_under_running_tasks_and_waits_for_a_node_that_is_away() {
    let mut cluster = Cluster::start(3);
    let before = cluster.service("app", 3, &[], &["idle"]);
    let (old_root, old_token) = (root(&cluster), token(cluster.manager(), "worker"));
    cluster.node_mut(3).kill_daemon();
    cluster.docker(&["swarm", "ca", "--rotate", "--detach"]).ok();
    let rotating = || info(cluster.manager())["Cluster"]["RootRotationInProgress"] == true;
    assert!(rotating(), "a node is away");
    let issuer = |number: u8| {
        let node = cluster.manager().inspect("node", &format!("node{number}"));
        node["Description"]["TLSInfo"]["CertIssuerPublicKey"].clone()
    };
    let wanted = || info(cluster.manager())["Cluster"]["TLSInfo"]["CertIssuerPublicKey"].clone();
    wait_until(PATIENCE, "the node that is there has a new certificate", || {
        if issuer(2) == wanted() { Ok(()) } else { Err(cluster.log_tails()) }
    });
    assert!(rotating() && issuer(3) != wanted());
    assert_eq!(token(cluster.manager(), "worker"), old_token, "until the old root goes");
    let again = fails(cluster.docker(&["swarm", "ca", "--rotate", "--detach"]));
    assert!(again.contains("node3"), "{again}");

    cluster.node_mut(3).start_daemon();
    wait_until(PATIENCE, "the rotation is over", || {
        let over = info(cluster.manager())["Cluster"]["RootRotationInProgress"] == false;
        if over { Ok(()) } else { Err(cluster.log_tails()) }
    });
    cluster.ready(3);
    let new_root = root(&cluster);
    assert_ne!(new_root, old_root);
    assert_ne!(token(cluster.manager(), "worker").split('-').nth(2), old_token.split('-').nth(2));
    let ids = |containers: &[shoal_e2e::Container]| {
        containers.iter().map(|container| container.id.clone()).collect::<Vec<_>>()
    };
    assert_eq!(ids(&cluster.running("app", 3)), ids(&before), "no task noticed");

    // With all nodes there the client shows the progress and comes back when it is over.
    cluster.docker(&["swarm", "ca", "--rotate"]).ok();
    assert_ne!(root(&cluster), new_root);
    cluster.node_mut(2).kill_daemon();
    cluster.node_mut(2).start_daemon();
    cluster.ready(3);
    cluster.finish();
}

fn root(cluster: &Cluster) -> String {
    cluster.docker(&["swarm", "ca"]).ok()
}

#[test]
fn a_removed_node_is_out_at_once_and_stops_what_it_ran() {
    let cluster = Cluster::start(2);
    let there = ["--constraint", "node.hostname==node2"];
    cluster.service("app", 1, &there, &["idle"]);
    cluster.docker(&["node", "rm", "--force", "node2"]).ok();
    let told = wait_until(PATIENCE, "the node knows", || {
        let told = info(cluster.node(2));
        if told["LocalNodeState"] == "error" { Ok(told) } else { Err(format!("{told}")) }
    });
    assert!(told["Error"].as_str().unwrap().contains("docker swarm leave"), "{told}");
    wait_until(PATIENCE, "its task has ended", || {
        let left = cluster.node(2).containers("app");
        if left.is_empty() { Ok(()) } else { Err(cluster.node(2).log_tail()) }
    });
    assert_eq!(cluster.docker(&["node", "ls", "-q"]).ok().lines().count(), 1);
    cluster.node(2).docker(&["swarm", "leave"]).ok();
    cluster.join(2);
    cluster.ready(2);
    assert_eq!(cluster.running("app", 1)[0].node, 2);
    cluster.finish();
}
