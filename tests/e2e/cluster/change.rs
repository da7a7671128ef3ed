//! Planned changes under steady traffic from everywhere: no connection fails.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use shoal_e2e::dns::{A, Transport, ask};
use shoal_e2e::load::Load;
use shoal_e2e::web::fetch;
use shoal_e2e::{Cluster, Netns, PATIENCE, process, wait_until};

use super::{PAGE, PORT, client, serving};

const NODES: u8 = 3;
/// Of each load. None has to be reached: a slow machine makes fewer connections, no failed ones.
const PER_SECOND: u32 = 20;

/// New connections, one after the other, in several ways.
struct Traffic(Vec<(String, Load)>);

impl Traffic {
    /// From a node's client: through the virtual address, by the name that leads to it, and by the name
    /// that leads to the tasks.
    fn from_client(cluster: &Cluster, number: u8) -> Self {
        let client = client(cluster, number);
        let vip = cluster.manager().vip("app");
        let start = |what: &str, operation: fn(Ipv4Addr) -> Result<(), String>| {
            (format!("{what} from node {number}"), steady(&client, move || operation(vip)))
        };
        Self(vec![
            start("virtual address", |vip| fetch((vip, 80), PAGE).map(drop)),
            start("name", |_| by_name("app")),
            start("task list", |_| by_name("rr")),
        ])
    }

    /// From outside, to the published port of a node.
    fn to_port(cluster: &Cluster, number: u8) -> Self {
        let address = cluster.node(number).address();
        let load = steady(&cluster.world.netns, move || fetch((address, PORT), PAGE).map(drop));
        Self(vec![(format!("port of node {number}"), load)])
    }

    /// Waits until each load has done this many more.
    fn more(&self, operations: u64) {
        let before: Vec<u64> = self.0.iter().map(|(_, load)| load.done()).collect();
        wait_until(PATIENCE, "traffic flows", || {
            let slow =
                self.0.iter().zip(&before).find(|((_, load), before)| load.done() < *before + operations);
            slow.map_or(Ok(()), |((what, _), _)| Err(what.clone()))
        });
    }

    fn assert_clean(self) {
        for (what, load) in self.0 {
            let report = load.stop();
            println!("{what}: {} connections in {:?}", report.done, report.lasted);
            report.assert_clean(0);
        }
    }
}

fn steady(netns: &Netns, operation: impl Fn() -> Result<(), String> + Send + Sync + 'static) -> Load {
    Load::start(netns, 2, PER_SECOND, operation)
}

/// As a program does that asks before each connection; of several addresses the next one in turn.
fn by_name(name: &str) -> Result<(), String> {
    static TURN: AtomicUsize = AtomicUsize::new(0);
    let answer = ask(name, A, Transport::Udp).map_err(|error| format!("ask for {name}: {error}"))?;
    let addresses: Vec<IpAddr> = answer.addresses();
    let turn = TURN.fetch_add(1, Ordering::Relaxed);
    let address = addresses.get(turn % addresses.len().max(1)).ok_or_else(|| format!("{answer:?}"))?;
    fetch(SocketAddr::from((*address, 80)), PAGE).map(drop).map_err(|error| format!("{address}: {error}"))
}

#[test]
fn changes_under_load_fail_no_connection() {
    let mut cluster = serving(NODES, 6);
    cluster.web("rr", 3, &["--network", "appnet", "--endpoint-mode", "dnsrr"]);
    let stay: Vec<Traffic> = [1, 2]
        .into_iter()
        .map(|number| Traffic::from_client(&cluster, number))
        .chain((1..=NODES).map(|number| Traffic::to_port(&cluster, number)))
        .collect();
    let leave = Traffic::from_client(&cluster, 3);
    let more = || stay.iter().for_each(|traffic| traffic.more(20));
    more();
    for replicas in [2, 6] {
        for service in ["app", "rr"] {
            cluster.docker(&["service", "scale", "-d", &format!("{service}={replicas}")]).ok();
        }
        cluster.serving("app", replicas);
        cluster.serving("rr", replicas);
        more();
    }
    a_slow_node_is_waited_for(&cluster);
    more();
    a_restart_changes_nothing(&mut cluster);
    more();
    // The client on the node that is drained goes with it.
    leave.assert_clean();
    drain(&cluster);
    more();
    stay.into_iter().for_each(Traffic::assert_clean);
    cluster.docker(&["node", "update", "--availability", "active", "node3"]).ok();
    cluster.finish();
}

/// Node 2 does nothing for a second: until then its clients are led to tasks that are to stop, on
/// whatever node, and are answered.
fn a_slow_node_is_waited_for(cluster: &Cluster) {
    /// With the time between two heartbeats still less than it takes to be suspect.
    const SLOW: Duration = Duration::from_secs(1);
    let daemon = cluster.node(2).daemon_pid();
    process::signal(daemon, Signal::SIGSTOP);
    cluster.docker(&["service", "scale", "-d", "app=2"]).ok();
    std::thread::sleep(SLOW);
    process::signal(daemon, Signal::SIGCONT);
    cluster.serving("app", 2);
    cluster.docker(&["service", "scale", "-d", "app=6"]).ok();
    cluster.serving("app", 6);
}

/// A daemon that is killed and started again keeps its containers; a worker's and the manager's.
fn a_restart_changes_nothing(cluster: &mut Cluster) {
    for number in [2, 1] {
        let before = ids(cluster);
        cluster.node_mut(number).kill_daemon();
        cluster.node_mut(number).start_daemon();
        cluster.ready(NODES.into());
        assert_eq!(ids(cluster), before, "after the daemon of node {number} was killed");
    }
}

fn ids(cluster: &Cluster) -> Vec<String> {
    cluster.serving("app", 6).into_iter().map(|task| task.id).collect()
}

fn drain(cluster: &Cluster) {
    cluster.docker(&["node", "update", "--availability", "drain", "node3"]).ok();
    let drained = cluster.node(3);
    wait_until(PATIENCE, "nothing runs on the drained node", || {
        let left = drained.docker(&["ps", "-q"]).ok();
        if left.is_empty() { Ok(()) } else { Err(format!("{left}\n{}", drained.log_tail())) }
    });
    cluster.serving("app", 6);
    cluster.serving("rr", 6);
}
