//! From an event to its effect on every node, as clients on every node see it.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::Signal;
use shoal_e2e::{Cluster, Container, Netns, PATIENCE, process, wait_until};

use crate::report::Row;
use crate::samples::{BOUND, Place, Watch, clients};

/// Between the start of the clients and the event: all of them are at work.
const LEAD: Duration = Duration::from_millis(200);
/// After an effect, to see that it stays.
const SETTLED: Duration = Duration::from_millis(700);
/// A task is healthy when its own web server answers it.
const HEALTHY: [&str; 6] = [
    "--health-cmd",
    "wget -q -O /dev/null http://127.0.0.1/",
    "--health-interval",
    "500ms",
    "--restart-delay",
    "1s",
];
/// What design §6 hopes for.
const PROMPTLY: Duration = Duration::from_millis(100);
const LEFT_OUT: Duration = Duration::from_millis(3500);

/// All figures of one cluster of this size.
pub(crate) fn measure(nodes: u8, tasks: usize, cuts: usize) -> Vec<Row> {
    eprintln!("a cluster of {nodes} nodes");
    let mut cluster = Cluster::start(nodes);
    cluster.manager().network("benchnet");
    cluster.service_on_each("client", &["--network", "benchnet"], &["idle"]);
    let killed = kills(&cluster, tasks);
    let started = starts(&cluster, tasks);
    let lost = losses(&mut cluster, cuts);
    cluster.finish();
    let [names, connections] = killed;
    let [named, reachable] = started;
    vec![
        Row::new(nodes, "task killed → no DNS answer with it on any node", PROMPTLY, names),
        Row::new(nodes, "task killed → no new connection to it from any node", PROMPTLY, connections),
        Row::new(nodes, "healthy → in the DNS answers of all nodes", PROMPTLY, named),
        Row::new(nodes, "healthy → connections from all nodes answered", PROMPTLY, reachable),
        Row::new(nodes, "node cut off → no new connection to it from any other node", LEFT_OUT, lost),
    ]
}

fn service(cluster: &Cluster, name: &str, replicas: usize) -> Vec<Container> {
    cluster.service(name, replicas, &[&["--network", "benchnet"][..], &HEALTHY].concat(), &["serve"])
}

/// Every node answers for exactly these tasks.
fn known_everywhere(clients: &[(u8, Netns)], cluster: &Cluster, service: &str, tasks: &[Container]) {
    let addresses: Vec<IpAddr> = tasks.iter().map(|task| task.address("benchnet").into()).collect();
    for (node, client) in clients {
        cluster.node(*node).resolves(client, &format!("tasks.{service}"), addresses.clone());
    }
}

/// One of two tasks is killed: from then on each failed connection was led to the dead one.
fn kills(cluster: &Cluster, count: usize) -> [Vec<Duration>; 2] {
    let mut measured = [Vec::new(), Vec::new()];
    let clients = clients(cluster);
    service(cluster, "back", 2);
    let vip = cluster.manager().vip("back");
    for turn in 0..count {
        let tasks = cluster.running("back", 2);
        known_everywhere(&clients, cluster, "back", &tasks);
        let task = &tasks[turn % 2];
        let address = task.address("benchnet");
        let mut watch = Watch::start(&clients, "back", vip);
        std::thread::sleep(LEAD);
        let event = Instant::now();
        process::signal(task.pid, Signal::SIGKILL);
        wait_until(PATIENCE, "the killed task is gone everywhere", || {
            let last = gone_everywhere(&watch, event, address);
            if event.elapsed() > last + SETTLED { Ok(()) } else { Err(format!("{last:?}")) }
        });
        watch.stop();
        for (place, measured) in [Place::Names, Place::Connections].into_iter().zip(&mut measured) {
            measured.push(watch.gone(place, event, address));
        }
        tell("killed", turn, &measured);
    }
    cluster.docker(&["service", "rm", "back"]).ok();
    measured
}

fn gone_everywhere(watch: &Watch, event: Instant, address: Ipv4Addr) -> Duration {
    watch.gone(Place::Names, event, address).max(watch.gone(Place::Connections, event, address))
}

/// A service's only task becomes healthy: until then its name leads nowhere and connections are refused.
fn starts(cluster: &Cluster, count: usize) -> [Vec<Duration>; 2] {
    let mut measured = [Vec::new(), Vec::new()];
    let clients = clients(cluster);
    service(cluster, "fresh", 0);
    let vip = cluster.manager().vip("fresh");
    for turn in 0..count {
        let mut watch = Watch::start(&clients, "fresh", vip);
        cluster.docker(&["service", "scale", "-d", "fresh=1"]).ok();
        let task = cluster.running("fresh", 1).remove(0);
        let address = task.address("benchnet");
        // At once: a node remembers its last five checks only.
        let healthy = wait_until(PATIENCE, "a health check passed", || became_healthy(cluster, &task));
        wait_until(PATIENCE, "the task is reachable everywhere", || {
            let there = [Place::Names, Place::Connections].map(|place| watch.there(place, address));
            if there.iter().all(Option::is_some) { Ok(()) } else { Err(format!("{there:?}")) }
        });
        watch.stop();
        for (place, measured) in [Place::Names, Place::Connections].into_iter().zip(&mut measured) {
            let there = watch.there(place, address).unwrap();
            measured.push(there.saturating_duration_since(healthy));
        }
        tell("healthy", turn, &measured);
        cluster.docker(&["service", "scale", "-d", "fresh=0"]).ok();
        cluster.running("fresh", 0);
    }
    cluster.docker(&["service", "rm", "fresh"]).ok();
    measured
}

/// When the first health check that succeeded ended, by the node's own account.
fn became_healthy(cluster: &Cluster, task: &Container) -> Result<Instant, String> {
    let (now, wall) = (Instant::now(), SystemTime::now());
    let health = cluster.node(task.node).inspect("container", &task.id)["State"]["Health"].take();
    let checks = health["Log"].as_array().map(Vec::as_slice).unwrap_or_default();
    let passed = checks.iter().find(|check| check["ExitCode"] == 0);
    let ended = passed.and_then(|check| check["End"].as_str()).and_then(moment);
    let ago = ended.and_then(|ended| wall.duration_since(ended).ok());
    ago.map(|ago| now - ago).ok_or_else(|| format!("{health:#}"))
}

/// RFC 3339 in UTC, as Docker writes it.
fn moment(text: &str) -> Option<SystemTime> {
    let output = std::process::Command::new("date").args(["-u", "+%s.%N", "-d", text]).output().ok()?;
    let seconds: f64 = String::from_utf8(output.stdout).ok()?.trim().parse().ok()?;
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs_f64(seconds))
}

/// A node's link goes: connections that begin later and are led to its task are not answered.
fn losses(cluster: &mut Cluster, count: usize) -> Vec<Duration> {
    let mut measured = Vec::new();
    let nodes = cluster.nodes().count();
    let all = clients(cluster);
    let tasks = service(cluster, "wide", nodes);
    let vip = cluster.manager().vip("wide");
    let workers: Vec<u8> = cluster.workers().map(|node| node.number).collect();
    for turn in 0..count {
        let lost = workers[turn % workers.len()];
        known_everywhere(&all, cluster, "wide", &tasks);
        let others: Vec<(u8, Netns)> = all.iter().filter(|(node, _)| *node != lost).cloned().collect();
        let mut watch = Watch::start(&others, "wide", vip);
        std::thread::sleep(LEAD);
        let event = Instant::now();
        cluster.node(lost).cut();
        wait_until(PATIENCE, "no connection is led to the lost node", || {
            let last = watch.last_failure(event);
            // A connection that waits has not failed yet.
            if event.elapsed() > last + BOUND + SETTLED { Ok(()) } else { Err(format!("{last:?}")) }
        });
        watch.stop();
        measured.push(watch.last_failure(event));
        eprintln!("cut {turn}: {:?}", measured.last());
        cluster.node(lost).restore();
        cluster.ready(nodes);
    }
    measured
}

fn tell(what: &str, turn: usize, measured: &[Vec<Duration>; 2]) {
    eprintln!("{what} {turn}: names {:?}, connections {:?}", measured[0].last(), measured[1].last());
}
