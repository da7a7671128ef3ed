//! A node whose disk is full: what cannot be kept is refused, what runs goes on, and once there is room nothing has
//! to be started anew.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use serde_json::{Value, json};
use shoal_e2e::dns::{A, Transport, ask};
use shoal_e2e::load::Load;
use shoal_e2e::web::fetch;
use shoal_e2e::{Cluster, Container, NODE, Node, NodeOptions, PATIENCE, wait_until};

const DISK: u64 = 32 << 20;
/// More than the stores have room for without growing, in a few requests.
const LABEL: usize = 400_000;
const PORT: u16 = 8000;

/// Writes until there is no room for a single byte.
fn fill(path: &Path) {
    let mut file = File::options().create(true).append(true).open(path).unwrap();
    for size in [1 << 16, 1 << 12, 1] {
        while file.write_all(&vec![7; size]).is_ok() {}
    }
}

/// The status of a raw request, and its message if there is one.
fn raw(node: &Node, method: &str, path: &str, body: &Value) -> (u16, String) {
    let answer = node.http(method, path, &body.to_string()).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let body: Value = serde_json::from_str(answer.split("\r\n\r\n").last().unwrap()).unwrap_or_default();
    (status, body["message"].as_str().unwrap_or_default().to_owned())
}

/// Names of services or containers that are there.
fn listed(node: &Node, arguments: &[&str]) -> BTreeSet<String> {
    node.docker(arguments).ok().lines().map(str::to_owned).collect()
}

#[test]
fn a_full_disk_refuses_changes_and_touches_nothing_that_runs() {
    let node = Node::cluster_with(NodeOptions { disk: Some(DISK), ..NodeOptions::default() });
    node.docker(&["network", "create", "-d", "overlay", "--attachable", "mynet"]).ok();
    let tasks = node.web("web", 2, &["--network", "mynet", "--publish", &format!("{PORT}:80")]);
    let client = node.run("client", &["--network", "mynet"], &["idle"]).netns();
    let vip: IpAddr = node.vip_on("web", Some("mynet")).into();
    node.resolves(&client, "tasks.web", tasks.iter().map(|task| task.address("mynet").into()).collect());
    let outside = node.world.netns.clone();
    wait_until(PATIENCE, "the published port answers", || {
        outside.run(|| fetch((NODE, PORT), "/index.html")).map(drop)
    });
    let daemon = node.daemon_pid();
    let traffic = [
        Load::start(&client, 1, 100, move || {
            let answer = ask("web", A, Transport::Udp).map_err(|error| error.to_string())?;
            if answer.addresses() == [vip] { Ok(()) } else { Err(format!("{answer:?}")) }
        }),
        Load::start(&client, 1, 50, move || fetch(SocketAddr::from((vip, 80)), "/index.html").map(drop)),
        Load::start(&outside, 1, 50, || fetch((NODE, PORT), "/index.html").map(drop)),
    ];

    let filler = node.disk().join("filler");
    fill(&filler);
    refuses(&node);
    let before: Vec<u64> = traffic.iter().map(Load::done).collect();
    wait_until(PATIENCE, "traffic goes on", || {
        let now: Vec<u64> = traffic.iter().map(Load::done).collect();
        if now.iter().zip(&before).all(|(now, before)| *now > before + 100) {
            Ok(())
        } else {
            Err(format!("{now:?}"))
        }
    });

    std::fs::remove_file(&filler).unwrap();
    wait_until(PATIENCE, "services are created again", || {
        let created = node.docker(&["service", "create", "-d", "--name", "after", "busybox", "idle"]);
        if created.code == 0 { Ok(()) } else { Err(created.to_string()) }
    });
    node.running("after", 1);
    node.run("plain-after", &["--network", "mynet"], &["idle"]);
    node.docker(&["service", "scale", "-d", "web=3"]).ok();
    let tasks = node.serving("web", 3);
    node.resolves(&client, "tasks.web", tasks.iter().map(|task| task.address("mynet").into()).collect());
    for (load, at_least) in traffic.into_iter().zip([50, 20, 20]) {
        load.stop().assert_clean(at_least);
    }
    assert_eq!(node.daemon_pid(), daemon);
    node.finish();
}

/// What cannot be written is answered so, and is not there afterwards; the rest is.
fn refuses(node: &Node) {
    let services = ["service", "ls", "--format", "{{.Name}}"];
    let mut wanted = listed(node, &services);
    let mut refused = 0;
    for number in 0..12 {
        let name = format!("large-{number}");
        let spec = json!({
            "Name": name,
            "Labels": { "large": "x".repeat(LABEL) },
            "TaskTemplate": { "ContainerSpec": { "Image": "busybox" } },
            "Mode": { "Replicated": { "Replicas": 0 } },
        });
        match raw(node, "POST", "/v1.41/services/create", &spec) {
            (201, _) => drop(wanted.insert(name.clone())),
            (500, message) => {
                assert!(message.contains("space"), "{message}");
                refused += 1;
            }
            other => panic!("{name}: {other:?}"),
        }
        assert_eq!(listed(node, &services), wanted, "after {name}");
    }
    assert!(refused > 0, "the disk is not full");

    let containers = ["ps", "-a", "--format", "{{.Names}}", "--filter", "is-task=false"];
    let mut wanted = listed(node, &containers);
    for number in 0..4 {
        let name = format!("plain-{number}");
        let label = format!("large={}", "x".repeat(100_000));
        let ran = node.docker(&["create", "--name", &name, "--label", &label, "busybox", "idle"]);
        if ran.code == 0 {
            wanted.insert(name);
        } else {
            assert!(ran.stderr.contains("space"), "{ran}");
        }
        assert_eq!(listed(node, &containers), wanted, "after plain-{number}");
    }
}

/// What a manager says takes effect all the same.
#[test]
fn a_node_with_a_full_disk_follows_its_manager() {
    let mut cluster = Cluster::start_with(2, &NodeOptions { disk: Some(DISK), ..NodeOptions::default() });
    cluster.docker(&["network", "create", "-d", "overlay", "--attachable", "mynet"]).ok();
    let place = ["--network", "mynet", "--constraint", "node.hostname==node1"];
    let tasks = cluster.service("web", 1, &place, &["idle"]);
    let node = cluster.node(2);
    let client = node.run("client", &["--network", "mynet"], &["idle"]).netns();
    let addresses = |tasks: &[Container]| tasks.iter().map(|task| task.address("mynet").into()).collect();
    node.resolves(&client, "tasks.web", addresses(&tasks));
    let filler = node.disk().join("filler");
    fill(&filler);
    for replicas in [3, 1, 2] {
        cluster.docker(&["service", "scale", "-d", &format!("web={replicas}")]).ok();
        let tasks = cluster.running("web", replicas);
        node.resolves(&client, "tasks.web", addresses(&tasks));
    }
    std::fs::remove_file(&filler).unwrap();
    node.tables_are_true();
    cluster.node_mut(2).kill_daemon();
    cluster.node_mut(2).start_daemon();
    cluster.ready(2);
    let tasks = cluster.running("web", 2);
    cluster.node(2).resolves(&client, "tasks.web", addresses(&tasks));
    cluster.finish();
}
