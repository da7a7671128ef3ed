//! Nothing left behind, whatever was killed. Every other test ends with the same check.

use nix::sys::signal::Signal;
use shoal_e2e::dns::{A, Transport, ask};
use shoal_e2e::web::fetch;
use shoal_e2e::{NODE, Node, NodeOptions, PATIENCE, process, wait_until};

/// A published service and a client; both work.
fn busy(options: NodeOptions) -> Node {
    let node = Node::cluster_with(options);
    node.network("appnet");
    node.web("app", 2, &["--network", "appnet", "--publish", "8000:80"]);
    node.service("client", 1, &["--network", "appnet"], &["idle"]);
    works(&node);
    node
}

/// Names, VIP and published port.
fn works(node: &Node) {
    let vip = node.vip("app");
    let client = wait_until(PATIENCE, "a client runs", || {
        node.containers("client").first().cloned().ok_or_else(|| node.log_tail())
    });
    let client = client.netns();
    node.resolves(&client, "app", vec![vip.into()]);
    wait_until(PATIENCE, "the service answers", || {
        client.run(move || fetch((vip, 80), "/index.html")).map(drop)
    });
    wait_until(PATIENCE, "the published port answers", || {
        node.world.netns.run(|| fetch((NODE, 8000), "/index.html")).map(drop)
    });
}

#[test]
fn a_node_that_never_did_anything_leaves_nothing() {
    Node::start().finish();
}

#[test]
fn a_killed_daemon_is_followed_by_one_that_knows_everything() {
    let mut node = busy(NodeOptions::default());
    node.kill_daemon();
    node.start_daemon();
    works(&node);
    // Removed while nobody was looking: the sandbox of a task that is still wanted is made again.
    node.docker(&["service", "scale", "-d", "app=1"]).ok();
    node.kill_daemon();
    node.start_daemon();
    node.running("app", 1);
    works(&node);
    node.finish();
}

#[test]
fn a_killed_resolver_is_replaced_with_the_same_answers() {
    let node = busy(NodeOptions::default());
    let before = node.helpers("resolver");
    assert_eq!(before.len(), 1, "{before:?}");
    let client = node.running("client", 1)[0].netns();
    process::signal(before[0], Signal::SIGKILL);
    wait_until(PATIENCE, "another resolver runs", || {
        let now = node.helpers("resolver");
        if now.len() == 1 && now != before { Ok(()) } else { Err(format!("{now:?}")) }
    });
    let vip = node.vip("app");
    wait_until(PATIENCE, "it answers", || {
        let answer = client.run(|| ask("app", A, Transport::Udp)).map_err(|error| error.to_string())?;
        if answer.addresses() == [std::net::IpAddr::from(vip)] { Ok(()) } else { Err(format!("{answer:?}")) }
    });
    works(&node);
    node.finish();
}

#[test]
fn a_killed_containerd_leaves_nothing_either() {
    let mut node = busy(NodeOptions { own_containerd: true, ..NodeOptions::default() });
    node.kill_containerd();
    node.kill_daemon();
    node.start_containerd();
    node.start_daemon();
    works(&node);
    node.finish();
}

#[test]
fn after_a_reboot_everything_comes_back() {
    let mut node = busy(NodeOptions { own_containerd: true, ..NodeOptions::default() });
    let before = node.running("app", 2);
    node.reboot();
    wait_until(PATIENCE, "new tasks took the lost ones' places", || {
        let now = node.containers("app");
        let fresh = now.len() == 2 && now.iter().all(|task| before.iter().all(|old| old.id != task.id));
        if fresh { Ok(()) } else { Err(format!("{now:?}\n{}", node.log_tail())) }
    });
    works(&node);
    node.finish();
}

#[test]
fn leaving_the_cluster_removes_what_the_cluster_gave() {
    let node = busy(NodeOptions::default());
    node.docker(&["swarm", "leave", "--force"]).ok();
    wait_until(PATIENCE, "no container is left", || {
        let left = node.docker(&["ps", "-a", "-q"]).ok();
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    let state = node.docker(&["info", "--format", "{{.Swarm.LocalNodeState}}"]).ok();
    assert_eq!(state.trim(), "inactive");
    node.docker(&["swarm", "init", "--advertise-addr", "192.0.2.10"]).ok();
    assert_eq!(node.docker(&["service", "ls", "-q"]).ok(), "", "a new cluster, not the old one");
    node.finish();
}

#[test]
fn reset_needs_no_daemon() {
    let mut node = busy(NodeOptions::default());
    node.kill_daemon();
    node.finish_by_reset();
}

#[test]
fn reset_refuses_while_the_daemon_runs() {
    let node = Node::start();
    let answer = node.shoal_local("reset");
    assert_ne!(answer.code, 0, "{answer}");
    node.finish();
}
