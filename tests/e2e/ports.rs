//! Published ports beside a node's other programs, and what is left of them when they go.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};
use shoal_e2e::process::Output;
use shoal_e2e::web::fetch;
use shoal_e2e::{Cluster, Node, PATIENCE, wait_until};

const PORT: u16 = 8000;
const WHO: &str = "/cgi-bin/who";
const CYCLES: usize = 1000;

/// A program of the node's own that answers on a port.
struct Program {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Program {
    fn start(node: &Node) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let listener = node.netns.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap());
        listener.set_nonblocking(true).unwrap();
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let Ok((mut stream, _)) = listener.accept() else {
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                };
                stream.set_nonblocking(false).unwrap();
                let _ = stream.read(&mut [0; 1024]);
                let _ = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nmine");
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Who answers on a node's port, asked from outside.
fn answer(node: &Node) -> Result<String, String> {
    let to = SocketAddr::from((node.address(), PORT));
    node.world.netns.run(move || fetch(to, WHO))
}

#[track_caller]
fn answers(node: &Node, wanted: &str) {
    wait_until(PATIENCE, &format!("{wanted} answers on {}", node.options.name), || match answer(node)? {
        body if body.starts_with(wanted) => Ok(()),
        body => Err(body),
    });
}

fn doctor(node: &Node) -> Output {
    node.shoal(&["-H", &node.host(), "doctor"])
}

/// What `docker service ps` shows as errors.
fn errors(cluster: &Cluster) -> String {
    cluster.docker(&["service", "ps", "--no-trunc", "--format", "{{.Error}}", "app"]).ok()
}

#[track_caller]
fn is_told(cluster: &Cluster, wanted: &str) {
    wait_until(PATIENCE, &format!("the task says {wanted:?}"), || {
        let told = errors(cluster);
        if told.trim().trim_matches('"') == wanted { Ok(()) } else { Err(told) }
    });
}

#[test]
fn a_port_that_a_program_has_stays_its_own_is_told_and_comes_back() {
    let mut cluster = Cluster::start(2);
    let program = Program::start(cluster.node(2));
    let on_first = ["--constraint", "node.hostname==node1", "--publish", "8000:80"];
    let task = cluster.web("app", 1, &on_first).remove(0);
    let name = &task.id[..12];
    answers(cluster.node(1), name);
    let why = "port 8000/tcp is in use by another program on node node2";
    is_told(&cluster, why);
    let id = cluster.docker(&["service", "ps", "-q", "--no-trunc", "app"]).ok();
    let told = cluster.docker(&["inspect", "--type", "task", "--format", "{{.Status.Err}}", id.trim()]).ok();
    assert_eq!(told.trim(), why);
    answers(cluster.node(2), "mine");
    let found = doctor(cluster.node(2));
    assert!(found.code == 1 && found.stdout.contains("to tasks: 8000/tcp"), "{found}");
    cluster.each(Node::tables_are_true);

    // Where it is free no other program gets it, by neither version of IP.
    let taken = cluster.node(1).netns.run(|| {
        let local = TcpListener::bind((Ipv4Addr::LOCALHOST, PORT)).map(drop);
        (local, TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)).map(drop))
    });
    assert!(taken.0.is_err() && taken.1.is_err(), "{taken:?}");
    assert!(!doctor(cluster.node(1)).stdout.contains("to tasks: 8000/tcp"));

    cluster.node_mut(2).kill_daemon();
    answers(cluster.node(2), "mine");
    cluster.node_mut(2).start_daemon();
    cluster.ready(2);
    answers(cluster.node(2), "mine");
    is_told(&cluster, why);

    drop(program);
    answers(cluster.node(2), name);
    is_told(&cluster, "");
    assert!(!doctor(cluster.node(2)).stdout.contains("to tasks: 8000/tcp"));
    // Held now, as soon as nothing of the program's connections is left.
    cluster.docker(&["service", "rm", "app"]).ok();
    wait_until(PATIENCE, "the port is anybody's", || {
        let bound = cluster.node(1).netns.run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, PORT)).map(drop));
        bound.map_err(|error| error.to_string())
    });
    cluster.finish();
}

/// Everything of a node that a published port may leave something in, counted.
fn holdings(node: &Node) -> BTreeMap<String, usize> {
    let mut held = BTreeMap::new();
    let output = node.netns.command("nft").args(["-j", "list", "ruleset"]).output().unwrap();
    let ruleset: Value = serde_json::from_slice(&output.stdout).unwrap();
    for object in ruleset["nftables"].as_array().into_iter().flatten() {
        if let Some(set) = object.get("set").or_else(|| object.get("map")) {
            held.insert(format!("elements of {}", set["name"]), set["elem"].as_array().map_or(0, Vec::len));
        }
        let kind = object.as_object().and_then(|object| object.keys().next()).cloned().unwrap_or_default();
        *held.entry(kind).or_default() += 1;
    }
    for (what, arguments) in [
        ("addresses", &["-o", "addr", "show"][..]),
        ("links", &["-o", "link", "show"]),
        ("rules", &["rule", "show"]),
        ("routes", &["route", "show", "table", "all"]),
    ] {
        held.insert(what.to_owned(), node.netns.ip(arguments).lines().count());
    }
    let sockets = node.netns.command("ss").args(["-Hanut"]).output().unwrap();
    let sockets = String::from_utf8_lossy(&sockets.stdout);
    let bound = sockets.lines().filter(|line| !line.contains("TIME-WAIT") && !line.contains("ESTAB"));
    held.insert("bound sockets".to_owned(), bound.count());
    let files = std::fs::read_dir(format!("/proc/{}/fd", node.daemon_pid())).unwrap().flatten();
    let sockets = files.filter_map(|file| std::fs::read_link(file.path()).ok());
    let sockets = sockets.filter(|target| target.to_string_lossy().starts_with("socket:")).count();
    held.insert("the daemon's sockets".to_owned(), sockets);
    held
}

/// A service without tasks that publishes a TCP and a UDP port.
fn publish(node: &Node, cycle: usize) -> String {
    let number = 9000 + cycle % 100;
    let port = |protocol: &str| json!({"Protocol": protocol, "TargetPort": 80, "PublishedPort": number, "PublishMode": "ingress"});
    let spec = json!({
        "Name": format!("app{cycle}"),
        "TaskTemplate": {"ContainerSpec": {"Image": "busybox"}},
        "Mode": {"Replicated": {"Replicas": 0}},
        "EndpointSpec": {"Ports": [port("tcp"), port("udp")]},
    });
    let answer = node.http("POST", "/services/create", &spec.to_string()).unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let created: Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"));
    created["ID"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
}

#[test]
fn a_thousand_ports_that_come_and_go_leave_nothing() {
    let node = Node::cluster();
    let unpublish = |id: &str| {
        let answer = node.http("DELETE", &format!("/services/{id}"), "").unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    };
    let settled = |what: &str, wanted: usize| {
        wait_until(PATIENCE, what, || {
            let held = holdings(&node).get("elements of \"refused\"").copied().unwrap_or_default();
            if held == wanted { Ok(()) } else { Err(format!("{held} elements")) }
        });
    };
    // In force once, so that what the node has for good is there.
    let first = publish(&node, 0);
    settled("a port is in force", 4);
    unpublish(&first);
    settled("the port is gone", 0);
    // The kernel adds routes of its own when it is sure of an address.
    wait_until(PATIENCE, "no address is tentative", || {
        let tentative = node.netns.ip(&["-o", "-6", "addr", "show", "tentative"]);
        if tentative.is_empty() { Ok(()) } else { Err(tentative) }
    });
    let before = holdings(&node);
    for cycle in 0..CYCLES {
        let id = publish(&node, cycle);
        if cycle % 100 == 0 {
            settled("the port is in force", 4);
        }
        unpublish(&id);
    }
    settled("every port is gone", 0);
    wait_until(PATIENCE, "everything is as before", || {
        let after = holdings(&node);
        if after == before { Ok(()) } else { Err(format!("before: {before:#?}\nafter: {after:#?}")) }
    });
    node.finish();
}
