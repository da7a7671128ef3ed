//! Who may use a published port, and how equal clients get equal tasks, on the real kernel.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind::ConnectionRefused;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use common::*;
use shoal_model::Protocol::{Tcp, Udp};
use shoal_model::{Admission, Backends, Bind};
use shoal_network::{Ports, PublishedPort};

/// Two nodes; three tasks on the first one, in both versions of IP.
fn mesh() -> World {
    let world = World::new(2);
    world.speak_v6();
    let mut table = world.ingress().dual();
    for number in 0..3 {
        let (id, last) = (format!("t{number}"), 10 + number);
        table = table.endpoint(&id, 0, &format!("10.0.0.{last}")).v6(&id, &format!("fd00:5a::{last}/64"));
    }
    let table = table.done();
    world.nodes.iter().for_each(|node| node.apply(&table));
    for number in 0..3 {
        let id = format!("t{number}");
        world.nodes[0].sandbox(&sandbox(&table, &id, true)).serve("[::]:80", &id);
    }
    world
}

fn tasks(numbers: &[u8]) -> Backends<std::net::SocketAddr> {
    let both = |number: &u8| [format!("10.0.0.{}:80", 10 + number), format!("[fd00:5a::{}]:80", 10 + number)];
    numbers.iter().flat_map(both).map(|address| address.parse().unwrap()).collect()
}

fn publish(node: &Node, port: &PublishedPort) {
    let ports = Ports::from([((Tcp, 8000), port.clone()), ((Udp, 8000), port.clone())]);
    node.block(node.fabric.apply_ports(&ports)).unwrap();
    assert_eq!(node.block(node.fabric.port_differences(&ports)).unwrap(), Vec::<String>::new());
}

fn targets(node: &Node) -> [String; 2] {
    [format!("{}:8000", node.address), format!("[{}]:8000", node.address_v6())]
}

#[test]
fn equal_clients_get_equal_tasks_through_every_node() {
    let world = mesh();
    let client = &world.client;
    let sources: Vec<[IpAddr; 2]> = (0..40)
        .map(|number| {
            [
                Ipv4Addr::new(203, 0, 113, 20 + number).into(),
                Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 1, number.into()).into(),
            ]
        })
        .collect();
    for [v4, v6] in &sources {
        client.sh(&format!("ip addr add {v4}/24 dev eth0; ip -6 addr add {v6}/64 dev eth0 nodad"));
    }
    let led = |node: &Node| -> BTreeMap<IpAddr, String> {
        let asked = sources.iter().flat_map(|pair| pair.iter().zip(targets(node)));
        let answer = |(source, target): (&IpAddr, String)| {
            let answer = client.ask_from(*source, &target).unwrap();
            (*source, answer.split(' ').next().unwrap().to_owned())
        };
        asked.map(answer).collect()
    };
    let by_source = |numbers: &[u8]| PublishedPort {
        backends: Backends { by_source: true, ..tasks(numbers) },
        admission: Admission::default(),
    };
    let all = |numbers: &[u8]| {
        world.nodes.iter().for_each(|node| publish(node, &by_source(numbers)));
        let through: Vec<_> = world.nodes.iter().map(led).collect();
        assert_eq!(through[0], through[1], "the same through every node");
        assert_eq!(through[0], led(&world.nodes[0]), "and every time");
        through[0].clone()
    };
    let before = all(&[0, 1, 2]);
    let seen: BTreeSet<&String> = before.values().collect();
    assert_eq!(seen.len(), 3, "all tasks have clients");
    let after = all(&[0, 2]);
    for (source, task) in &before {
        assert!(task == "t1" || after[source] == *task, "{source} moved from {task}");
    }
    assert_eq!(all(&[0, 1, 2]), before, "who comes back has the clients of before");
}

#[test]
fn a_port_may_be_bound_to_addresses_and_links() {
    let world = mesh();
    let node = &world.nodes[0];
    node.host.sh("ip addr add 10.77.0.101/24 dev eth0");
    let ask = |target: &str| world.client.ask(target);
    let [v4, v6] = targets(node);
    let second = "10.77.0.101:8000";
    let bound = |binds: &[Bind]| PublishedPort {
        backends: tasks(&[0]),
        admission: Admission { bind: binds.iter().cloned().collect(), clients: BTreeSet::new() },
    };
    let address = |text: &str| Bind::Address(text.parse().unwrap());
    let refused = |target: &str| assert_eq!(ask(target).unwrap_err().kind(), ConnectionRefused, "{target}");
    publish(node, &bound(&[address("10.77.0.101")]));
    assert!(ask(second).unwrap().contains(CLIENT));
    refused(&v4);
    refused(&v6);
    publish(node, &bound(&[address("10.77.0.1"), Bind::Address(node.address_v6().into())]));
    assert!(ask(&v4).is_ok() && ask(&v6).unwrap().contains(CLIENT_V6));
    refused(second);
    let datagram = world.client.udp(0).ask_connected(second).unwrap_err();
    assert_eq!(datagram.kind(), ConnectionRefused);
    publish(node, &bound(&[Bind::Link("eth0".to_owned())]));
    assert!(ask(&v4).is_ok() && ask(&v6).is_ok() && ask(second).is_ok());
    publish(node, &bound(&[Bind::Link("eth7".to_owned())]));
    refused(&v4);
    refused(&v6);
    publish(node, &bound(&[]));
    assert!(ask(&v4).is_ok() && ask(&v6).is_ok());
}

#[test]
fn a_port_may_be_for_some_clients() {
    let world = mesh();
    world.client.sh("ip addr add 203.0.113.77/24 dev eth0");
    let allowed = |nets: &[&str]| PublishedPort {
        backends: tasks(&[0]),
        admission: Admission {
            bind: BTreeSet::new(),
            clients: nets.iter().map(|net| net.parse().unwrap()).collect(),
        },
    };
    // Through a node with the task, and through one without.
    for node in &world.nodes {
        let [v4, v6] = targets(node);
        let ask = |source: &str, target: &str| world.client.ask_from(source.parse().unwrap(), target);
        let refused = |source: &str, target: &str| {
            assert_eq!(ask(source, target).unwrap_err().kind(), ConnectionRefused, "{source} asks {target}");
        };
        publish(node, &allowed(&["203.0.113.9/32", "2001:db8:113::/48"]));
        assert!(ask(CLIENT, &v4).unwrap().contains(CLIENT));
        assert!(ask(CLIENT_V6, &v6).unwrap().contains(CLIENT_V6));
        refused("203.0.113.77", &v4);
        publish(node, &allowed(&["203.0.113.64/26", "203.0.113.128/25", "192.0.2.0/24"]));
        assert!(ask("203.0.113.77", &v4).is_ok());
        refused(CLIENT, &v4);
        refused(CLIENT_V6, &v6);
        // The node's second line of sight: what was let in before goes on.
        let mut connection = world.client.connect(&v4, 0);
        assert!(connection.is_err(), "by its first address");
        publish(node, &allowed(&[]));
        connection = world.client.connect(&v4, 0);
        publish(node, &allowed(&["192.0.2.0/24"]));
        assert!(connection.unwrap().ask().is_ok(), "what was let in goes on");
        refused(CLIENT, &v4);
    }
}
