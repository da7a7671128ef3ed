//! Services that are changed while they are used: rolling updates nobody notices, updates that fail and
//! go back, and services that have a task on every node.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use shoal_e2e::dns::{A, Transport, ask};
use shoal_e2e::load::Load;
use shoal_e2e::web::fetch;
use shoal_e2e::{Cluster, NodeOptions, PATIENCE, wait_until};

use super::{PAGE, PORT, client, serving};

const NODES: u8 = 3;
/// Of each order.
const ROUNDS: usize = 2;
const PER_SECOND: u32 = 20;

/// The state of a service's last update, and its words.
fn update_status(cluster: &Cluster, service: &str) -> (String, String) {
    let status = cluster.manager().inspect("service", service)["UpdateStatus"].take();
    let text = |key: &str| status[key].as_str().unwrap_or_default().to_owned();
    (text("State"), text("Message"))
}

#[track_caller]
pub(super) fn comes_to(cluster: &Cluster, service: &str, wanted: &str) -> String {
    wait_until(PATIENCE, &format!("the update of {service} is {wanted}"), || {
        let (state, message) = update_status(cluster, service);
        if state == wanted {
            return Ok(message);
        }
        let tasks = cluster.docker(&["service", "ps", "--no-trunc", service]);
        Err(format!("{state}: {message}\n{tasks}\n{}", cluster.log_tails()))
    })
}

/// New connections from every node's client through the virtual address, by the names of both services,
/// and from outside through every node's port.
fn traffic(cluster: &Cluster) -> Vec<(String, Load)> {
    let vip = cluster.manager().vip("app");
    let get = |to: Ipv4Addr, port: u16| fetch((to, port), PAGE).map(drop);
    let by_name = |name: &'static str| {
        let answer = ask(name, A, Transport::Udp).map_err(|error| error.to_string())?;
        let Some(IpAddr::V4(address)) = answer.addresses().first().copied() else {
            return Err(format!("{name} has no address"));
        };
        fetch((address, 80), PAGE).map(drop)
    };
    let mut loads = Vec::new();
    for node in cluster.nodes() {
        let (inside, address) = (client(cluster, node.number), node.address());
        let mut start = |what: &str, load| loads.push((format!("{what}, node {}", node.number), load));
        start("virtual address", Load::start(&inside, 4, PER_SECOND, move || get(vip, 80)));
        start("name", Load::start(&inside, 4, PER_SECOND, move || by_name("app")));
        start("dnsrr", Load::start(&inside, 4, PER_SECOND, move || by_name("rr")));
        start("port", Load::start(&cluster.world.netns, 4, PER_SECOND, move || get(address, PORT)));
    }
    loads
}

#[test]
fn nobody_notices_a_rolling_update() {
    let cluster = serving(NODES, 3);
    cluster.web("rr", 3, &["--network", "appnet", "--endpoint-mode", "dnsrr"]);
    let traffic = traffic(&cluster);
    let pace = ["--update-monitor", "100ms", "--update-parallelism", "1"];
    for round in 0..ROUNDS * 2 {
        let order = if round % 2 == 0 { "stop-first" } else { "start-first" };
        let round = format!("ROUND={round}");
        for service in ["app", "rr"] {
            let change = ["service", "update", "-d", "--update-order", order, "--env-add", &round];
            cluster.docker(&[&change[..], &pace, &[service]].concat()).ok();
        }
        for service in ["app", "rr"] {
            assert_eq!(comes_to(&cluster, service, "completed"), "update completed");
            let env = cluster.manager().inspect("service", service)["Spec"]["TaskTemplate"].take();
            assert!(env["ContainerSpec"]["Env"].to_string().contains(&round), "{env}");
        }
    }
    for (what, load) in traffic {
        let report = load.stop();
        eprintln!("{what}: {} connections, {} failed", report.done, report.failures.len());
        report.assert_clean(u64::from(PER_SECOND) / 4);
    }
    cluster.finish();
}

#[test]
fn an_update_that_fails_is_held_up_or_goes_back() {
    let cluster = Cluster::start_with(2, &NodeOptions::default());
    cluster.manager().network("appnet");
    let steady = ["--network", "appnet", "--update-monitor", "2s", "--restart-delay", "1s"];
    cluster.service("app", 3, &steady, &["idle"]);
    let docker = |arguments: &[&str]| cluster.docker(arguments);
    let broken = ["service", "update", "--args", "/no/such/program"];

    // Docker's own words, and its exit code.
    let told = docker(&[&broken[..], &["app"]].concat());
    assert_eq!(told.code, 1, "{told}");
    let words = "service update paused: update paused due to failure or early termination of task ";
    assert!(told.stderr.contains(words), "{told}");
    let serving: Vec<_> = cluster.containers("app");
    assert_eq!(serving.len(), 2, "the others run on: {serving:?}");

    let back = docker(&["service", "rollback", "app"]);
    assert_eq!(back.code, 0, "{back}");
    assert!(back.stdout.contains("rollback: manually requested rollback"), "{back}");
    assert_eq!(comes_to(&cluster, "app", "rollback_completed"), "rollback completed");
    cluster.running("app", 3);

    let told = docker(&[&broken[..], &["--update-failure-action", "rollback", "app"]].concat());
    let words = "rollback: update rolled back due to failure or early termination of task ";
    assert!(told.stdout.contains(words), "{told}");
    assert_eq!(comes_to(&cluster, "app", "rollback_completed"), "rollback completed");
    cluster.running("app", 3);
    let command = cluster.manager().inspect("service", "app")["Spec"]["TaskTemplate"].take();
    assert_eq!(command["ContainerSpec"]["Args"][0], "idle", "{command}");

    let again = [&broken[..], &["-d", "--update-failure-action", "continue", "app"]].concat();
    docker(&again).ok();
    comes_to(&cluster, "app", "completed");
    wait_until(PATIENCE, "no task of the old declaration is left", || {
        let old =
            cluster.containers("app").iter().filter(|task| serving.iter().any(|s| s.id == task.id)).count();
        if old == 0 { Ok(()) } else { Err(format!("{old} left")) }
    });
    cluster.finish();
}

#[test]
fn a_global_service_is_on_every_node_that_may_have_it() {
    let mut cluster = Cluster::apart(NODES, &NodeOptions::default());
    cluster.manager().init();
    cluster.join(2);
    cluster.each(shoal_e2e::Node::import_busybox);
    cluster.ready(2);
    cluster.manager().network("appnet");
    let create = ["service", "create", "--name", "agent", "--mode", "global", "--network", "appnet"];
    let told = cluster.docker(&[&create[..], &["--publish", "8000:80", "busybox", "serve"]].concat()).ok();
    assert!(told.contains("overall progress: 2 out of 2 tasks"), "{told}");
    let tasks = cluster.running("agent", 2);
    let name = |number: u8| {
        let id =
            cluster.manager().inspect("node", &format!("node{number}"))["ID"].as_str().unwrap().to_owned();
        format!("agent.{id}.")
    };
    assert!(tasks.iter().all(|task| task.name.starts_with(&name(task.node))), "{tasks:?}");
    let listed = cluster.docker(&["service", "ls", "--format", "{{.Name}} {{.Mode}} {{.Replicas}}"]).ok();
    assert_eq!(listed.trim(), "agent global 2/2");
    let only = cluster.docker(&["service", "ls", "-q", "--filter", "mode=replicated"]).ok();
    assert_eq!(only, "");

    // A node that comes has it at once, by every node's port.
    cluster.join(3);
    cluster.ready(3);
    let tasks = cluster.running("agent", 3);
    assert_eq!(tasks.iter().filter(|task| task.node == 3).count(), 1);
    let address = cluster.node(3).address();
    let (vip, inside) = (cluster.manager().vip("agent"), tasks[0].netns());
    wait_until(PATIENCE, "it answers on every way", || {
        inside.run(move || fetch((vip, 80), PAGE))?;
        cluster.world.netns.run(move || fetch((address, PORT), PAGE))
    });

    cluster.docker(&["node", "update", "--availability", "drain", "node2"]).ok();
    wait_until(PATIENCE, "the drained node has none", || {
        let there = cluster.containers("agent").iter().filter(|task| task.node == 2).count();
        if there == 0 { Ok(()) } else { Err(cluster.log_tails()) }
    });
    let scaled = cluster.docker(&["service", "scale", "agent=5"]);
    assert!(
        scaled.stderr.contains("scale can only be used with replicated or replicated-job mode"),
        "{scaled}"
    );
    let changed =
        cluster.docker(&["service", "update", "-d", "--constraint-add", "node.role==worker", "agent"]);
    changed.ok();
    wait_until(PATIENCE, "only the worker that takes tasks has one", || {
        let nodes: Vec<u8> = cluster.containers("agent").iter().map(|task| task.node).collect();
        if nodes == [3] { Ok(()) } else { Err(format!("{nodes:?}\n{}", cluster.log_tails())) }
    });
    cluster.docker(&["node", "update", "--availability", "active", "node2"]).ok();
    let nodes: Vec<u8> = cluster.running("agent", 2).iter().map(|task| task.node).collect();
    assert!(nodes.contains(&2) && nodes.contains(&3), "{nodes:?}");
    // A lost node's task is not put elsewhere.
    cluster.node_mut(3).cut();
    wait_until(Duration::from_secs(60), "the node is down", || {
        let status = cluster.status(3);
        if status == "Down" { Ok(()) } else { Err(status) }
    });
    let listed = cluster.docker(&["service", "ls", "--format", "{{.Replicas}}"]).ok();
    assert_eq!(listed.trim(), "1/1");
    cluster.node_mut(3).restore();
    cluster.ready(3);
    cluster.running("agent", 2);
    cluster.finish();
}
