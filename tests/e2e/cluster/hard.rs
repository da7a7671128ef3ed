//! Parts that are killed at random moments of a busy cluster: each time everything comes back as it was.

use std::collections::{BTreeMap, BTreeSet};

use nix::sys::signal::Signal;
use serde_json::Value;
use shoal_e2e::web::fetch;
use shoal_e2e::{Cluster, Netns, Node, NodeOptions, PATIENCE, process, wait_until};

/// How often something is killed; more, to look longer.
const ROUNDS: &str = "SHOAL_E2E_ROUNDS";
const FEW: usize = 8;

/// Numbers that look random and follow from a seed (Knuth's constants).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides
    }
}

/// What must be the same after everything: each running container's process, by its name and id.
type Standing = BTreeMap<String, u64>;

fn standing(cluster: &Cluster, kept: &BTreeSet<String>) -> Standing {
    let of_node = |node: &Node| {
        let listed = node.docker(&["ps", "-q", "--no-trunc"]).ok();
        let ids = listed.lines().filter(|id| kept.is_empty() || kept.contains(*id)).map(str::to_owned);
        let pid = |id: String| {
            let detail = node.inspect("container", &id);
            (id, detail["State"]["Pid"].as_u64().unwrap())
        };
        ids.map(pid).collect::<Vec<_>>()
    };
    cluster.each(of_node).into_iter().flatten().collect()
}

/// Every address that a container has on a network of the cluster.
fn addresses(cluster: &Cluster) -> Vec<String> {
    let of_node = |node: &Node| {
        let shown = node.docker(&["network", "inspect", "appnet"]);
        let networks: Value = serde_json::from_str(&shown.stdout).unwrap_or_default();
        let containers = networks[0]["Containers"].as_object().cloned().unwrap_or_default();
        let own = containers.values().filter_map(|place| place["IPv4Address"].as_str().map(str::to_owned));
        own.collect::<Vec<_>>()
    };
    cluster.each(of_node).concat()
}

fn kill(node: &mut Node, what: usize) -> &'static str {
    match what {
        0 => {
            node.kill_daemon();
            "daemon"
        }
        1 => {
            node.helpers("resolver").into_iter().for_each(|pid| process::signal(pid, Signal::SIGKILL));
            "resolver"
        }
        _ => {
            node.kill_containerd();
            "containerd"
        }
    }
}

fn revive(node: &mut Node, what: usize) {
    match what {
        0 => node.start_daemon(),
        1 => {}
        _ => node.start_containerd(),
    }
}

/// The service is reached by its name from this namespace.
fn reaches(cluster: &Cluster, from: &Netns, what: &str) {
    let vip = cluster.manager().vip("web");
    cluster.manager().resolves(from, "web", vec![vip.into()]);
    wait_until(PATIENCE, what, || from.run(move || fetch((vip, 80), "/index.html")).map(drop));
}

#[test]
fn whatever_is_killed_everything_comes_back_as_it_was() {
    let rounds = std::env::var(ROUNDS).ok().and_then(|text| text.parse().ok()).unwrap_or(FEW);
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    eprintln!("seed {seed}");
    let mut dice = Dice(seed);
    let options = NodeOptions { own_containerd: true, ..NodeOptions::default() };
    let mut cluster = Cluster::start_with(3, &options);
    cluster.docker(&["network", "create", "-d", "overlay", "--attachable", "appnet"]).ok();
    cluster.service("web", 3, &["--network", "appnet", "--publish", "8000:80"], &["serve"]);
    let clients = cluster.service("client", 3, &["--network", "appnet"], &["idle"]);
    for node in cluster.nodes() {
        node.docker(&["network", "create", "near"]).ok();
        let run = ["run", "-d", "--restart", "always", "--name", "box", "--network", "near", "-p", "9000:80"];
        node.docker(&[&run[..], &["busybox", "serve"]].concat()).ok();
        node.docker(&["network", "connect", "appnet", "box"]).ok();
    }
    let kept: BTreeSet<String> = standing(&cluster, &BTreeSet::new()).into_keys().collect();
    let before = standing(&cluster, &kept);
    assert_eq!(before.len(), 9, "{before:#?}");
    for round in 0..rounds {
        // Something is under way whenever something dies.
        let busy = format!("busy{round}");
        let replicas = (1 + dice.roll(4)).to_string();
        cluster
            .docker(&[
                "service",
                "create",
                "-d",
                "--name",
                &busy,
                "--replicas",
                &replicas,
                "--network",
                "appnet",
                "busybox",
                "idle",
            ])
            .ok();
        std::thread::sleep(std::time::Duration::from_millis(dice.roll(1500) as u64));
        let (number, what) = (1 + dice.roll(3) as u8, dice.roll(3));
        let name = kill(cluster.node_mut(number), what);
        eprintln!("round {round}: {name} of node {number}");
        std::thread::sleep(std::time::Duration::from_millis(dice.roll(700) as u64));
        revive(cluster.node_mut(number), what);
        cluster.ready(3);
        cluster.running(&busy, replicas.parse().unwrap());
        clients.iter().for_each(|client| reaches(&cluster, &client.netns(), "the service answers"));
        let all = addresses(&cluster);
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "no address twice: {all:?}");
        cluster.each(|node| {
            for port in [8000, 9000] {
                let at = (node.address(), port);
                wait_until(
                    PATIENCE,
                    &format!("port {port} of {} leads to a container", node.options.name),
                    || node.world.netns.run(move || fetch(at, "/index.html")).map(drop),
                );
            }
        });
        assert_eq!(standing(&cluster, &kept), before, "no container was restarted");
        cluster.docker(&["service", "rm", &busy]).ok();
        cluster.each(Node::tables_are_true);
    }
    cluster.each(|node| {
        node.docker(&["rm", "-f", "box"]).ok();
        node.docker(&["network", "rm", "near"]).ok();
    });
    cluster.finish();
}
