//! Nodes that are cut off or lost.

use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, TcpStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use shoal_e2e::load::Load;
use shoal_e2e::web::fetch;
use shoal_e2e::{Cluster, Container, Node, PATIENCE, wait_until};

use super::{PAGE, PORT, answers_everywhere, client, serving};

const NODES: u8 = 3;
/// From the loss of a node to the last new connection that is led to it.
const LEFT_OUT: Duration = Duration::from_millis(3500);
/// From the loss of a node until its tasks are replaced, less what a heartbeat may have been early.
const DOWN: Duration = Duration::from_secs(14);
const PER_SECOND: u32 = 20;

/// New connections to `app` from the other nodes' clients, and from outside through their ports.
fn traffic(cluster: &Cluster, lost: u8) -> Vec<(String, Load)> {
    let vip = cluster.manager().vip("app");
    let others = cluster.nodes().filter(|node| node.number != lost);
    others
        .flat_map(|node| {
            let (inside, address) = (client(cluster, node.number), node.address());
            let fetch = |to: Ipv4Addr, port: u16| fetch((to, port), PAGE).map(drop);
            // Enough workers that those who wait for the lost node do not keep others from trying.
            let named = |what: &str, load| (format!("{what} {}", node.number), load);
            [
                named("client of node", Load::start(&inside, 32, PER_SECOND, move || fetch(vip, 80))),
                named(
                    "port of node",
                    Load::start(&cluster.world.netns, 32, PER_SECOND, move || fetch(address, PORT)),
                ),
            ]
        })
        .collect()
}

/// An idle connection from node 1 to a task elsewhere: when it was let go, and how.
fn idle_connection(cluster: &Cluster, task: &Container) -> JoinHandle<(Instant, ErrorKind)> {
    let address = task.address("appnet");
    let mut stream = client(cluster, 1).run(move || TcpStream::connect((address, 80)).unwrap());
    std::thread::spawn(move || {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let ended = stream.read(&mut [0; 1]).expect_err("the task says nothing on its own");
        (Instant::now(), ended.kind())
    })
}

/// `lose` takes node 3 away. The others lead no new connection to it, let go of the open ones when it is
/// down, and its tasks are replaced.
fn a_node_goes(cluster: &mut Cluster, lose: fn(&mut Node)) {
    let there = cluster.running("app", 6).into_iter().find(|task| task.node == 3).unwrap();
    let idle = idle_connection(cluster, &there);
    let traffic = traffic(cluster, 3);
    wait_until(PATIENCE, "traffic flows", || {
        if traffic.iter().all(|(_, load)| load.done() > 30) { Ok(()) } else { Err(String::new()) }
    });
    let gone = Instant::now();
    lose(cluster.node_mut(3));
    wait_until(PATIENCE, "the tasks are replaced", || {
        let tasks = cluster.containers("app");
        let left = tasks.iter().filter(|task| task.node != 3).count();
        if left == 6 { Ok(()) } else { Err(format!("{left} run\n{}", cluster.log_tails())) }
    });
    let replaced = gone.elapsed();
    assert_eq!(cluster.status(3), "Down");
    let (reset, how) = idle.join().unwrap();
    println!("replaced after {replaced:?}, the idle connection was let go after {:?}", reset - gone);
    assert!(replaced >= DOWN, "replaced after {replaced:?} already");
    assert!(reset - gone >= DOWN, "an open connection may outlive a partition of {:?}", reset - gone);
    assert_eq!(how, ErrorKind::ConnectionAborted);
    for (what, load) in traffic {
        let report = load.stop();
        let last = report.failures.iter().map(|failure| failure.began).max();
        let last = last.map(|began| began.saturating_duration_since(gone));
        println!(
            "{what}: {} of {} failed, the last one {last:?} after the loss",
            report.failures.len(),
            report.done
        );
        report.assert_clean_from(gone + LEFT_OUT);
    }
}

/// What the node ran before has been replaced; it runs what it is told to, and knows where all is.
fn it_returns(cluster: &Cluster) {
    cluster.ready(NODES.into());
    cluster.running("app", 6);
    cluster.running("client-3", 1);
    cluster.each(Node::tables_are_true);
    answers_everywhere(cluster);
}

#[test]
fn a_node_that_is_cut_off_or_lost_is_left_out_until_it_returns() {
    let mut cluster = serving(NODES, 6);
    a_node_goes(&mut cluster, |node| node.cut());
    cluster.node(3).restore();
    it_returns(&cluster);
    spread_again(&cluster);
    a_node_goes(&mut cluster, Node::lose);
    cluster.node_mut(3).boot();
    it_returns(&cluster);
    cluster.finish();
}

/// Tasks are not moved to a node that returns; new ones go where the fewest are.
fn spread_again(cluster: &Cluster) {
    for replicas in [2, 6] {
        cluster.docker(&["service", "scale", "-d", &format!("app={replicas}")]).ok();
        cluster.running("app", replicas);
    }
    answers_everywhere(cluster);
}
