//! Services on networks that end at the node: macvlan on the network that the nodes are on, and bridges.

use std::net::Ipv4Addr;

use shoal_e2e::dns::{A, Transport, ask};
use shoal_e2e::web::fetch;
use shoal_e2e::{Cluster, Container, Netns, Node, OUTSIDE, PATIENCE, wait_until};

use crate::locals::netns;

const SUBNET: [&str; 4] = ["--subnet", "192.0.2.0/24", "--gateway", "192.0.2.1"];

/// A part of the nodes' own network for one node's containers.
fn configure(node: &Node, range: &str) {
    let create = ["network", "create", "--config-only", "--ip-range", range, "-o", "parent=eth0"];
    node.docker(&[&create[..], &SUBNET, &["part"]].concat()).ok();
}

fn declare(cluster: &Cluster, name: &str, network: &str, flags: &[&str], command: &str) {
    let create = ["service", "create", "-d", "--name", name, "--network", network];
    cluster.docker(&[&create[..], flags, &["busybox", command]].concat()).ok();
}

fn task_states(cluster: &Cluster, service: &str) -> String {
    let format = ["service", "ps", "--no-trunc", "--format", "{{.CurrentState}} {{.Error}}"];
    cluster.docker(&[&format[..], &[service]].concat()).ok()
}

#[track_caller]
fn removed(node: &Node, network: &str) {
    wait_until(PATIENCE, &format!("{network} can be removed"), || {
        let output = node.docker(&["network", "rm", network]);
        if output.code == 0 { Ok(()) } else { Err(output.to_string()) }
    });
}

fn addresses(tasks: &[Container]) -> Vec<Ipv4Addr> {
    tasks.iter().map(|task| task.address("lan")).collect()
}

#[test]
fn services_on_the_nodes_own_network_find_each_other_by_name() {
    let mut cluster = Cluster::start(3);
    configure(cluster.node(1), "192.0.2.128/28");
    configure(cluster.node(2), "192.0.2.144/28");
    cluster.docker(&["network", "prune", "-f"]).ok();
    let shown = cluster.manager().inspect("network", "part");
    assert_eq!((&shown["Driver"], &shown["ConfigOnly"]), (&"null".into(), &true.into()), "{shown:#}");
    let from = ["network", "create", "-d", "macvlan", "--scope", "swarm", "--config-from", "part"];
    cluster.docker(&[&from[..], &["--attachable", "lan"]].concat()).ok();
    let shown = cluster.manager().inspect("network", "lan");
    assert_eq!((&shown["Scope"], &shown["ConfigFrom"]["Network"]), (&"swarm".into(), &"part".into()));

    // The third node has no part of it: who insists on it is told.
    declare(&cluster, "app", "lan", &["--mode", "global"], "serve");
    let app = cluster.running("app", 2);
    declare(&cluster, "late", "lan", &["--constraint", "node.hostname==node3"], "idle");
    wait_until(PATIENCE, "the task says what it waits for", || {
        let states = task_states(&cluster, "late");
        let waits = states.contains("network configuration missing on 1 node");
        if waits { Ok(()) } else { Err(states) }
    });
    cluster.docker(&["run", "-d", "--name", "guest", "--network", "lan", "busybox", "idle"]).ok();
    let guest = netns(cluster.manager(), "guest");
    let given = addresses(&app);
    let (first, second) = (Ipv4Addr::new(192, 0, 2, 128), Ipv4Addr::new(192, 0, 2, 144));
    let part = |address: &Ipv4Addr| u32::from(*address) & !15;
    let mut parts: Vec<u32> = given.iter().map(part).collect();
    parts.sort();
    assert_eq!(parts, [u32::from(first), u32::from(second)], "{given:?}");

    let check = |cluster: &Cluster| {
        let wanted = || given.iter().map(|address| (*address).into()).collect::<Vec<_>>();
        // A name is the tasks' addresses: there is no virtual one.
        for name in ["app", "tasks.app", "app.lan"] {
            cluster.manager().resolves(&guest, name, wanted());
        }
        for task in &app {
            let netns = task.netns();
            assert_eq!(netns.run(|| ask("guest", A, Transport::Udp)).unwrap().addresses().len(), 1);
            for &address in &given {
                assert_eq!(netns.run(move || fetch((address, 80), "/index.html")).unwrap(), "busybox");
            }
            let own = task.address("lan");
            assert_eq!(netns.run(|| fetch((OUTSIDE, 80), "/")).unwrap(), format!("outside saw {own}"));
        }
        // They are neighbours of everybody on the nodes' network.
        for &address in &given {
            assert_eq!(
                cluster.world.netns.run(move || fetch((address, 80), "/index.html")).unwrap(),
                "busybox"
            );
        }
    };
    check(&cluster);
    for number in [1, 2] {
        cluster.node_mut(number).kill_daemon();
        cluster.node_mut(number).start_daemon();
    }
    cluster.ready(3);
    check(&cluster);
    cluster.manager().tables_are_true();

    // The third node gets its part, and with it its task.
    configure(cluster.node(3), "192.0.2.160/28");
    cluster.running("late", 1);
    let app = cluster.running("app", 3);
    let given = addresses(&app).into_iter().map(Into::into).collect();
    cluster.manager().resolves(&guest, "app", given);
    let taken = cluster.node(3).docker(&["network", "rm", "part"]);
    assert!(taken.stderr.contains("configuration network \"part\" is in use"), "{taken}");

    cluster.docker(&["service", "rm", "app", "late"]).ok();
    cluster.manager().docker(&["rm", "-f", "guest"]).ok();
    removed(cluster.manager(), "lan");
    cluster.nodes().for_each(|node| removed(node, "part"));
    cluster.finish();
}

/// A node that lacks what a network needs holds nobody else up, and says why.
#[test]
fn a_node_that_cannot_build_a_network_says_so_and_the_others_go_on() {
    let cluster = Cluster::start(2);
    cluster.node(1).netns.ip(&["link", "add", "lan0", "type", "veth", "peer", "name", "far0"]);
    cluster.node(1).netns.ip(&["link", "set", "far0", "up"]);
    let create = ["network", "create", "-d", "macvlan", "--scope", "swarm", "-o", "parent=lan0"];
    cluster.docker(&[&create[..], &["--subnet", "10.44.0.0/29", "lan"]].concat()).ok();
    declare(
        &cluster,
        "there",
        "lan",
        &["--restart-delay", "1s", "--constraint", "node.hostname==node2"],
        "idle",
    );
    wait_until(PATIENCE, "the task says what is missing", || {
        let states = task_states(&cluster, "there");
        if states.contains("no interface lan0 on this node") { Ok(()) } else { Err(states) }
    });
    // The first node has six addresses to itself, and gets every one of them back.
    for _ in 0..4 {
        declare(
            &cluster,
            "here",
            "lan",
            &["--replicas", "2", "--constraint", "node.hostname==node1"],
            "idle",
        );
        let tasks = cluster.running("here", 2);
        let wanted = addresses(&tasks).into_iter().map(Into::into).collect();
        cluster.manager().resolves(&tasks[0].netns(), "here", wanted);
        cluster.docker(&["service", "rm", "here"]).ok();
        cluster.running("here", 0);
    }
    // What was missing comes.
    cluster.node(2).netns.ip(&["link", "add", "lan0", "type", "veth", "peer", "name", "far0"]);
    cluster.running("there", 1);
    cluster.docker(&["service", "rm", "there"]).ok();
    removed(cluster.manager(), "lan");
    for node in cluster.nodes() {
        node.netns.ip(&["link", "del", "lan0"]);
    }
    cluster.finish();
}

#[test]
fn a_bridge_of_the_cluster_is_one_on_each_node() {
    let mut cluster = Cluster::start(2);
    cluster.docker(&["network", "create", "-d", "bridge", "--scope", "swarm", "--attachable", "near"]).ok();
    declare(&cluster, "app", "near", &["--mode", "global", "--publish", "8000:80"], "serve");
    let own = "mode=host,published=8100,target=80";
    declare(&cluster, "own", "near", &["--mode", "global", "--publish", own], "serve");
    declare(&cluster, "client", "near", &["--mode", "global"], "idle");
    for service in ["app", "own", "client"] {
        cluster.running(service, 2);
    }
    cluster.each(|node| node.docker(&["run", "-d", "--name", "guest", "busybox", "idle"]).ok());
    cluster.each(|node| node.docker(&["network", "connect", "near", "guest"]).ok());
    let check = |cluster: &Cluster| cluster.nodes().for_each(|node| on_its_node(cluster, node));
    check(&cluster);
    for number in [1, 2] {
        cluster.node_mut(number).kill_daemon();
        cluster.node_mut(number).start_daemon();
    }
    cluster.ready(2);
    check(&cluster);
    cluster.each(Node::tables_are_true);
    cluster.each(|node| node.docker(&["network", "disconnect", "near", "guest"]).ok());
    for node in cluster.nodes() {
        let client = task_of(&cluster, "client", node);
        node.resolves(&client, "guest", vec![]);
        node.docker(&["rm", "-f", "guest"]).ok();
    }
    cluster.docker(&["service", "rm", "app", "own", "client"]).ok();
    removed(cluster.manager(), "near");
    cluster.finish();
}

fn task_of(cluster: &Cluster, service: &str, node: &Node) -> Netns {
    let tasks = cluster.running(service, 2);
    tasks.iter().find(|task| task.node == node.number).expect("one on each node").netns()
}

/// Who is on the bridge of a node: found, reached, led out and in.
fn on_its_node(cluster: &Cluster, node: &Node) {
    let (server, client) = (task_of(cluster, "app", node), task_of(cluster, "client", node));
    // Whose name resolves can be reached: those of the same node.
    for name in ["app", "own", "guest"] {
        let found = wait_until(PATIENCE, "the name resolves", || {
            let answer =
                client.run(move || ask(name, A, Transport::Udp)).map_err(|error| error.to_string())?;
            match answer.addresses()[..] {
                [one] => Ok(one),
                ref other => Err(format!("{name}: {other:?}")),
            }
        });
        if name == "app" {
            assert!(server.ip(&["-4", "-o", "addr"]).contains(&format!("{found}/")), "it is its own node's");
        }
        if name != "guest" {
            assert_eq!(client.run(move || fetch((found, 80), "/index.html")).unwrap(), "busybox");
        }
    }
    let seen = client.run(|| fetch((OUTSIDE, 80), "/")).unwrap();
    assert_eq!(seen, format!("outside saw {}", node.address()));
    let address = node.address();
    for port in [8000, 8100] {
        wait_until(PATIENCE, &format!("the published port {port} answers"), || {
            cluster.world.netns.run(move || fetch((address, port), "/index.html")).map(drop)
        });
    }
}
