//! What labels say of a service's balancing and of who may use its ports: in force at once, without a task
//! being replaced.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use shoal_e2e::web::{fetch, fetch_over};
use shoal_e2e::{CLIENT, Cluster, PATIENCE, wait_until};

use super::{PORT, client, serving, who};

/// The task that answers a client outside through a node.
fn through(cluster: &Cluster, number: u8) -> Result<String, String> {
    let to = (cluster.node(number).address(), PORT).into();
    let stream = cluster.world.connect_from_client(to).map_err(|error| error.to_string())?;
    let body = fetch_over(stream, "/cgi-bin/who")?;
    let (task, seen) = body.split_once(' ').ok_or_else(|| body.clone())?;
    assert!(seen.contains(&CLIENT.to_string()), "{body}");
    Ok(task.to_owned())
}

/// The tasks that answer twenty times.
fn all(ask: impl Fn() -> Result<String, String>) -> Result<BTreeSet<String>, String> {
    (0..20).map(|_| ask()).collect()
}

#[track_caller]
fn comes_about(what: &str, holds: impl Fn() -> Result<bool, String>) {
    wait_until(PATIENCE, what, || if holds()? { Ok(()) } else { Err("not so".to_owned()) });
}

fn label(cluster: &Cluster, labels: &[&str]) {
    let mut update = vec!["service", "update", "-d"];
    labels.iter().for_each(|label| update.extend(["--label-add", label]));
    cluster.docker(&[&update[..], &["app"]].concat()).ok();
}

#[test]
fn tasks_of_the_same_node_come_first_and_equal_clients_get_equal_tasks() {
    let cluster = serving(2, 4);
    let tasks = cluster.running("app", 4);
    let here = |number: u8| -> BTreeSet<String> {
        let tasks = tasks.iter().filter(|task| task.node == number);
        tasks.map(|task| task.id[..12].to_owned()).collect()
    };
    assert_eq!((here(1).len(), here(2).len()), (2, 2));
    let vip = cluster.manager().vip("app");
    label(&cluster, &["shoal.balance=local-first"]);
    for number in [1, 2] {
        comes_about(&format!("node {number} serves what comes in by its own tasks"), || {
            Ok(all(|| through(&cluster, number))? == here(number))
        });
        let inside = client(&cluster, number);
        comes_about(&format!("a container of node {number} meets its node's tasks"), || {
            Ok(inside.run(move || all(|| who(vip, 80)))? == here(number))
        });
    }
    label(&cluster, &["shoal.balance=source"]);
    comes_about("one client, one task, whatever node is asked", || {
        let (one, two) = (all(|| through(&cluster, 1))?, all(|| through(&cluster, 2))?);
        Ok(one.len() == 1 && one == two)
    });
    let inside = client(&cluster, 1);
    comes_about("one container, one task", || Ok(inside.run(move || all(|| who(vip, 80)))?.len() == 1));
    let after = cluster.running("app", 4);
    assert!(after.iter().zip(&tasks).all(|(after, before)| after.id == before.id), "no task was replaced");
    // Others, where there are none.
    label(&cluster, &["shoal.balance=local-first"]);
    cluster.docker(&["service", "update", "-d", "--constraint-add", "node.hostname==node1", "app"]).ok();
    wait_until(PATIENCE, "all tasks are on the first node", || {
        match cluster.containers("app").iter().filter(|task| task.node == 1).count() {
            4 => Ok(()),
            count => Err(format!("{count} there")),
        }
    });
    cluster.running("app", 4);
    comes_about("the second node serves by the first one's", || Ok(all(|| through(&cluster, 2))?.len() > 1));
    cluster.finish();
}

#[test]
fn a_port_is_for_those_whom_its_labels_name() {
    let cluster = serving(2, 2);
    let outside = |number: u8| through(&cluster, number).map(drop);
    let itself = |number: u8, address: IpAddr| {
        cluster
            .node(number)
            .netns
            .run(move || fetch(SocketAddr::new(address, PORT), "/cgi-bin/who"))
            .map(drop)
    };
    let becomes = |what: &str, allowed: bool, ask: &dyn Fn() -> Result<(), String>| {
        wait_until(PATIENCE, what, || match (ask(), allowed) {
            (Ok(()), true) => Ok(()),
            (Err(error), false) if error.contains("refused") => Ok(()),
            (answer, _) => Err(format!("{answer:?}")),
        });
    };
    label(&cluster, &["shoal.publish.clients=198.51.100.0/24"]);
    for number in [1, 2] {
        becomes("a client of another network is refused", false, &|| outside(number));
        itself(number, Ipv4Addr::LOCALHOST.into()).unwrap();
    }
    label(&cluster, &[&format!("shoal.publish.{PORT}.clients={CLIENT}")]);
    for number in [1, 2] {
        becomes("what is said of the port itself counts more", true, &|| outside(number));
    }
    // The address of the first node only; the second one has it not.
    let first = cluster.node(1).address();
    label(&cluster, &[&format!("shoal.publish.bind={first}")]);
    becomes("another node's address", false, &|| outside(2));
    becomes("localhost is another address", false, &|| itself(1, Ipv4Addr::LOCALHOST.into()));
    outside(1).unwrap();
    itself(1, first.into()).unwrap();
    label(&cluster, &["shoal.publish.bind=eth0"]);
    for number in [1, 2] {
        becomes("by the link it is bound to", true, &|| outside(number));
        becomes("at that link's address", true, &|| itself(number, cluster.node(number).address().into()));
        becomes("by another link", false, &|| itself(number, Ipv4Addr::LOCALHOST.into()));
    }
    label(&cluster, &["shoal.publish.bind=eth9"]);
    becomes("by a link that is not there", false, &|| outside(1));
    let refused = cluster.docker(&["service", "update", "--label-add", "shoal.balance=fastest", "app"]);
    assert!(refused.stderr.contains("invalid label shoal.balance=fastest: known are"), "{refused}");
    cluster.finish();
}
