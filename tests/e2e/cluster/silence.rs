//! What goes on while nobody says anything: without a manager, and on a node that hears nothing.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use shoal_e2e::load::Load;
use shoal_e2e::web::fetch;
use shoal_e2e::{Cluster, Container, Node, PATIENCE, process, wait_until};

use super::{PAGE, client, serving, who};

const NODES: u8 = 3;
const PER_SECOND: u32 = 20;

#[test]
fn workers_carry_on_without_their_manager() {
    let mut cluster = serving(NODES, 6);
    let vip = cluster.manager().vip("app");
    let before = cluster.running("app", 6);
    let of_workers: Vec<&Container> = before.iter().filter(|task| task.node != 1).collect();
    cluster.node_mut(1).kill_daemon();
    let traffic = [2, 3].map(|number| {
        let load = move || fetch((vip, 80), PAGE).map(drop);
        Load::start(&client(&cluster, number), 2, PER_SECOND, load)
    });
    names_are_known(&cluster, vip, &before);
    cluster.node_mut(2).kill_daemon();
    more(&traffic);
    names_are_known(&cluster, vip, &before);
    cluster.node_mut(2).start_daemon();
    more(&traffic);
    names_are_known(&cluster, vip, &before);
    let after = cluster.containers("app");
    let ids = |tasks: &mut dyn Iterator<Item = &Container>| tasks.map(|task| task.id.clone()).collect();
    let (before_ids, after_ids): (BTreeSet<String>, BTreeSet<String>) =
        (ids(&mut of_workers.iter().copied()), ids(&mut after.iter()));
    assert_eq!(after_ids, before_ids, "the workers' containers are the same");
    traffic.into_iter().for_each(|load| load.stop().assert_clean(0));
    a_task_that_dies_is_taken_out_on_its_node(&cluster, vip, &before);
    cluster.node_mut(1).start_daemon();
    cluster.ready(NODES.into());
    cluster.serving("app", 6);
    cluster.finish();
}

fn more(traffic: &[Load]) {
    let before: Vec<u64> = traffic.iter().map(Load::done).collect();
    wait_until(PATIENCE, "traffic flows", || {
        let all = traffic.iter().zip(&before).all(|(load, before)| load.done() > before + 30);
        if all { Ok(()) } else { Err(String::new()) }
    });
}

fn addresses<'a>(tasks: impl Iterator<Item = &'a Container>) -> Vec<IpAddr> {
    tasks.map(|task| task.address("appnet").into()).collect()
}

/// On the workers, whose daemons may be away.
fn names_are_known(cluster: &Cluster, vip: Ipv4Addr, tasks: &[Container]) {
    for number in [2, 3] {
        let node = cluster.node(number);
        let inside = node.daemon_runs().then(|| client(cluster, number));
        let Some(inside) = inside else { continue };
        node.resolves(&inside, "app", vec![vip.into()]);
        node.resolves(&inside, "tasks.app", addresses(tasks.iter()));
    }
}

fn a_task_that_dies_is_taken_out_on_its_node(cluster: &Cluster, vip: Ipv4Addr, tasks: &[Container]) {
    let task = tasks.iter().find(|task| task.node == 2).unwrap();
    let inside = client(cluster, 2);
    process::signal(task.pid, Signal::SIGKILL);
    let rest = tasks.iter().filter(|other| other.id != task.id);
    cluster.node(2).resolves(&inside, "tasks.app", addresses(rest));
    inside.run(move || (0..40).try_for_each(|_| fetch((vip, 80), PAGE).map(drop))).unwrap();
}

/// A node whose daemon is heard of, but whose resolver does not move and so still knows every task.
#[test]
fn a_node_that_does_not_follow_is_waited_for_but_not_for_ever() {
    /// Well below the bound of five seconds, well above what a stop takes otherwise.
    const HELD: Duration = Duration::from_secs(4);
    let cluster = serving(NODES, 6);
    let client = client(&cluster, 3);
    let vip = cluster.manager().vip("app");
    let resolver = cluster.node(3).helpers("resolver");
    assert_eq!(resolver.len(), 1);
    process::signal(resolver[0], Signal::SIGSTOP);
    cluster.docker(&["service", "scale", "-d", "app=2"]).ok();
    let since = Instant::now();
    while since.elapsed() < HELD {
        client.run(move || fetch((vip, 80), PAGE)).unwrap();
        let left = cluster.containers("app").len();
        assert!(left == 6 || since.elapsed() >= HELD, "{left} are left after {:?}", since.elapsed());
    }
    let elsewhere = || cluster.containers("app").iter().filter(|task| task.node != 3).count();
    wait_until(PATIENCE, "the other nodes go on", || match elsewhere() {
        left if left <= 2 => Ok(()),
        left => Err(format!("{left} are left\n{}", cluster.log_tails())),
    });
    assert_eq!(process::state(resolver[0]), Some('T'), "the node cannot have followed");
    let node = cluster.manager().inspect("node", "node3");
    assert_eq!((&node["Status"]["State"], &node["Status"]["Message"]), (&"ready".into(), &Value::Null));
    process::signal(resolver[0], Signal::SIGCONT);
    cluster.serving("app", 2);
    cluster.finish();
}

/// The subnet has room for just these: nine addresses for names and clients, four for `app`.
const SUBNET: [&str; 6] = ["network", "create", "-d", "overlay", "--subnet", "10.77.0.0/28"];

#[test]
fn nobody_gets_an_address_that_a_node_which_hears_nothing_still_knows() {
    let cluster = Cluster::start(NODES);
    cluster.docker(&[&SUBNET[..], &["small"]].concat()).ok();
    cluster.service_on_each("client", &["--network", "small"], &["idle"]);
    let before = cluster.web("app", 6, &["--network", "small"]);
    let vip = cluster.manager().vip("app");
    cluster.node(3).cut();
    cluster.docker(&["service", "scale", "-d", "app=1"]).ok();
    let here = |service: &str| -> Vec<Container> {
        cluster.containers(service).into_iter().filter(|task| task.node != 3).collect()
    };
    wait_until(PATIENCE, "the others do not wait for the node", || {
        let tasks = here("app");
        if tasks.len() <= 1 { Ok(()) } else { Err(format!("{tasks:?}\n{}", cluster.log_tails())) }
    });
    let freed: BTreeSet<Ipv4Addr> = before
        .iter()
        .filter(|task| task.node != 3 && here("app").iter().all(|kept| kept.id != task.id))
        .map(|task| task.address("small"))
        .collect();
    assert!(freed.len() >= 3, "{freed:?}");
    let late = ["service", "create", "-d", "--name", "late", "--network", "small", "busybox", "serve"];
    cluster.docker(&late).ok();
    let found = wait_until(PATIENCE, "the node is down, or the service runs", || {
        let found = here("late");
        if !found.is_empty() || cluster.status(3) == "Down" { Ok(found) } else { Err(String::new()) }
    });
    if cluster.status(3) != "Down" {
        let reused = found.iter().find(|task| freed.contains(&task.address("small")));
        assert!(reused.is_none(), "{reused:?} while node 3 may still send to {freed:?}");
    }
    // A node that is down may stay away for ever: with nothing else left its addresses are given again.
    wait_until(PATIENCE, "the service runs", || {
        let found = here("late");
        if found.is_empty() { Err(cluster.log_tails()) } else { Ok(()) }
    });
    // When it is back it leads nobody to them by mistake.
    let app: BTreeSet<String> = before.iter().map(|task| task.id[..12].to_owned()).collect();
    let inside = cluster.node(3).running("client-3", 1)[0].netns();
    let others = Load::start(&inside, 8, PER_SECOND, move || match who(vip, 80) {
        Ok(name) if !app.contains(&name) => Err(format!("{name} answered")),
        _ => Ok(()),
    });
    cluster.node(3).restore();
    cluster.ready(NODES.into());
    cluster.serving("app", 1);
    cluster.running("late", 1);
    cluster.each(Node::tables_are_true);
    others.stop().assert_clean(0);
    cluster.finish();
}
