//! A load balancer outside the cluster: the configuration of docs/external-load-balancer.md, word for word, in
//! HAProxy, in front of three nodes that are drained, lost and stopped under requests.

use std::fs::File;
use std::net::Ipv4Addr;
use std::ops::Range;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use shoal_e2e::load::Load;
use shoal_e2e::web::fetch;
use shoal_e2e::{
    Cluster, HEALTH_GRACE, HEALTH_PORT, Netns, Node, NodeOptions, PATIENCE, World, node_address, process,
    wait_until,
};

const IN_SERVICE: &str = "{\"in_service\":true}";
const PAGE: &str = "/index.html";
/// The load balancer's place on the nodes' bridge.
const PLACE: u8 = 41;
const PER_SECOND: u32 = 100;
/// A connection may be on its way through a node in the moment it is lost.
const UNDERWAY: Duration = Duration::from_millis(500);

/// HAProxy in a namespace of its own.
struct Balancer {
    _netns: Netns,
    process: Child,
    directory: tempfile::TempDir,
}

impl Balancer {
    fn start(world: &World) -> Self {
        let netns = Netns::new();
        world.connect(&netns, PLACE);
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("haproxy.cfg");
        std::fs::write(&config, documented()).unwrap();
        let log = File::create(directory.path().join("log")).unwrap();
        let process = netns
            .command("haproxy")
            .arg("-db")
            .arg("-f")
            .arg(&config)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { _netns: netns, process, directory }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap()
    }

    /// Waits until it has found a node to be up or down as often as this, since its start.
    #[track_caller]
    fn finds(&self, node: u8, state: &str, times: usize) {
        let line = format!("Server nodes/node{node} is {state}");
        wait_until(PATIENCE, &line, || {
            let log = self.log();
            if log.matches(&line).count() >= times { Ok(()) } else { Err(log) }
        });
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The configuration in the document.
fn documented() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/external-load-balancer.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (_, rest) = text.split_once("```haproxy\n").expect("the document has a configuration");
    rest.split_once("```").unwrap().0.to_owned()
}

/// What a node says of itself, or why it does not.
fn standing(world: &World, node: Ipv4Addr) -> Result<String, String> {
    world.netns.run(move || fetch((node, HEALTH_PORT), "/health"))
}

#[track_caller]
fn says(world: &World, node: &Node, wanted: &str) {
    let address = node.address();
    wait_until(PATIENCE, &format!("{} says {wanted:?}", node.options.name), || {
        let said = standing(world, address).unwrap_or_else(|error| error);
        if said.contains(wanted) { Ok(()) } else { Err(said) }
    });
}

#[test]
fn a_node_that_is_drained_lost_or_stopped_leaves_the_pool_of_haproxy() {
    let options = NodeOptions { tells_health: true, ..NodeOptions::default() };
    let mut cluster = Cluster::apart(3, &options);
    let world = cluster.world.clone();
    says(&world, cluster.node(1), "503");
    cluster.manager().init();
    cluster.workers().for_each(|node| cluster.join(node.number));
    cluster.each(Node::import_busybox);
    cluster.ready(3);
    cluster.each(|node| says(&world, node, IN_SERVICE));
    // Node 3 takes connections, and has no task.
    let elsewhere = ["--constraint", "node.hostname!=node3", "--publish", "8000:80"];
    cluster.web("app", 4, &elsewhere);
    let balancer = Balancer::start(&world);
    let front = node_address(PLACE);
    wait_until(PATIENCE, "the load balancer answers", || {
        let answered = world.netns.run(move || fetch((front, 80), PAGE));
        answered.map_err(|error| format!("{error}\n{}", balancer.log()))
    });
    let load = Load::start(&world.netns, 4, PER_SECOND, move || fetch((front, 80), PAGE).map(drop));

    drained(&cluster, &balancer);
    stopped(&mut cluster, &balancer);
    let lost = lost(&cluster, &balancer);

    let report = load.stop();
    report.assert_clean_from(lost.end);
    let early: Vec<_> =
        report.failures.iter().filter(|failure| failure.began + UNDERWAY < lost.start).collect();
    assert!(
        early.is_empty(),
        "{} of {} failed while no node was lost: {:#?}\n{}",
        early.len(),
        report.done,
        early,
        balancer.log()
    );
    let rate = report.done as f64 / report.lasted.as_secs_f64();
    assert!(rate > f64::from(PER_SECOND) / 2.0, "only {rate} requests a second");
    cluster.node(2).restore();
    cluster.ready(3);
    balancer.finds(2, "UP", 2);
    cluster.finish();
}

/// The node says so while it still has tasks, and serves on; then it comes back.
fn drained(cluster: &Cluster, balancer: &Balancer) {
    let (node, world) = (cluster.node(2), &cluster.world);
    cluster.docker(&["node", "update", "--availability", "drain", "node2"]).ok();
    says(world, node, "503");
    balancer.finds(2, "DOWN", 1);
    wait_until(PATIENCE, "its tasks have moved", || {
        let tasks = cluster.containers("app");
        let moved = tasks.iter().filter(|task| task.node == 1 && task.is_healthy()).count();
        if moved == 4 && tasks.len() == 4 { Ok(()) } else { Err(format!("{moved} of {}", tasks.len())) }
    });
    let address = node.address();
    let direct = world.netns.run(move || fetch((address, 8000), PAGE));
    direct.unwrap_or_else(|error| panic!("a drained node refuses: {error}"));

    cluster.docker(&["node", "update", "--availability", "pause", "node2"]).ok();
    says(world, node, IN_SERVICE);
    balancer.finds(2, "UP", 1);
    cluster.docker(&["node", "update", "--availability", "active", "node2"]).ok();
    // As many tasks on both: a silent node with more than half of them would be used until it counts as down.
    cluster.docker(&["service", "update", "--detach", "--force", "--replicas-max-per-node", "2", "app"]).ok();
    wait_until(PATIENCE, "tasks on both nodes", || {
        let tasks = cluster.containers("app");
        let there = tasks.iter().filter(|task| task.node == 2 && task.is_healthy()).count();
        if there == 2 && tasks.len() == 4 { Ok(()) } else { Err(format!("{there} of {}", tasks.len())) }
    });
}

/// A daemon says that it will stop, serves meanwhile, and takes its ports away afterwards.
fn stopped(cluster: &mut Cluster, balancer: &Balancer) {
    let (world, address) = (cluster.world.clone(), cluster.node(3).address());
    let began = Instant::now();
    process::signal(cluster.node(3).daemon_pid(), Signal::SIGTERM);
    says(&world, cluster.node(3), "503");
    let direct = world.netns.run(move || fetch((address, 8000), PAGE));
    direct.unwrap_or_else(|error| panic!("a node that will stop refuses: {error}"));
    balancer.finds(3, "DOWN", 1);
    assert!(began.elapsed() < HEALTH_GRACE, "noticed in time");
    // A second signal ends the wait.
    cluster.node_mut(3).stop_daemon();
    cluster.node_mut(3).start_daemon();
    cluster.ready(3);
    balancer.finds(3, "UP", 1);
}

/// A node vanishes, with what it serves and what it runs. Tells between which moments.
fn lost(cluster: &Cluster, balancer: &Balancer) -> Range<Instant> {
    let begun = Instant::now();
    cluster.node(2).cut();
    let when = begun..Instant::now();
    balancer.finds(2, "DOWN", 2);
    wait_until(PATIENCE, "the cluster finds it out", || {
        let status = cluster.status(2);
        if status.starts_with("Down") { Ok(()) } else { Err(status) }
    });
    when
}
