//! The routing mesh while things change and while they do not: from outside, through every node at once.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use shoal_e2e::load::Load;
use shoal_e2e::stream::Stream;
use shoal_e2e::web::fetch;
use shoal_e2e::{Cluster, Container, Netns, PATIENCE, process, program, wait_until};

use super::updates::comes_to;
use super::{PAGE, PORT};

const NODES: u8 = 3;

// === new connections ===

/// Through each node.
const PER_SECOND: u32 = 60;

/// New connections from outside through every node's port.
struct Outside(Vec<Load>);

impl Outside {
    fn start(cluster: &Cluster) -> Self {
        let through = |address: Ipv4Addr| {
            let operation = move || fetch((address, PORT), PAGE).map(drop);
            Load::start(&cluster.world.netns, 4, PER_SECOND, operation)
        };
        Self(cluster.nodes().map(|node| through(node.address())).collect())
    }

    fn done(&self) -> Vec<u64> {
        self.0.iter().map(Load::done).collect()
    }

    /// Does something, and waits until each node has let in some more connections after it.
    fn during(&self, what: &str, change: impl FnOnce()) {
        let (before, started) = (self.done(), Instant::now());
        change();
        let then = self.done();
        wait_until(PATIENCE, "traffic flows", || {
            let slow = self.done().iter().zip(&then).any(|(now, then)| *now < then + 30);
            if slow { Err(String::new()) } else { Ok(()) }
        });
        let made: Vec<u64> = self.done().iter().zip(&before).map(|(now, before)| now - before).collect();
        eprintln!("{what}: {made:?} connections through the nodes in {:?}", started.elapsed());
    }

    fn assert_clean(self) {
        for (number, load) in (1..).zip(self.0) {
            let report = load.stop();
            let failed = report.failures.len();
            eprintln!("node {number}: {} connections, {failed} failed, in {:?}", report.done, report.lasted);
            report.assert_clean(0);
        }
    }
}

#[test]
fn connections_under_load_through_every_node_survive_every_planned_change() {
    let mut cluster = Cluster::start(NODES);
    cluster.web("app", 6, &["--publish", "8000:80"]);
    cluster.nodes().for_each(|node| answers(&cluster, node.address(), PORT));
    let outside = Outside::start(&cluster);
    outside.during("nothing", || ());
    for order in ["stop-first", "start-first"] {
        outside.during(&format!("update {order}"), || update(&cluster, "app", order));
    }
    for replicas in [2, 6, 1, 6] {
        outside.during(&format!("scale to {replicas}"), || {
            cluster.docker(&["service", "scale", "-d", &format!("app={replicas}")]).ok();
            cluster.serving("app", replicas);
        });
    }
    for number in [3, 1] {
        outside.during(&format!("restart of the daemon of node {number}"), || {
            cluster.node_mut(number).stop_daemon();
            cluster.node_mut(number).start_daemon();
            cluster.ready(NODES.into());
            cluster.serving("app", 6);
        });
    }
    outside.during("drain of node 2", || drain(&cluster, 2));
    outside.during("node 2 takes tasks again", || {
        cluster.docker(&["node", "update", "--availability", "active", "node2"]).ok();
        update(&cluster, "app", "start-first");
    });
    outside.assert_clean();
    cluster.finish();
}

/// Waits until something at the port of a node answers from outside.
#[track_caller]
fn answers(cluster: &Cluster, address: Ipv4Addr, port: u16) {
    wait_until(PATIENCE, &format!("{address}:{port} answers"), || {
        cluster.world.netns.run(move || fetch((address, port), PAGE))
    });
}

/// Replaces every task of a service, one after the other.
fn update(cluster: &Cluster, service: &str, order: &str) {
    let pace = ["--update-monitor", "100ms", "--update-parallelism", "1", "--update-order", order];
    cluster.docker(&[&["service", "update", "-d", "--force"][..], &pace, &[service]].concat()).ok();
    assert_eq!(comes_to(cluster, service, "completed"), "update completed");
}

fn drain(cluster: &Cluster, number: u8) {
    cluster.docker(&["node", "update", "--availability", "drain", &format!("node{number}")]).ok();
    let drained = cluster.node(number);
    wait_until(PATIENCE, "nothing runs on the drained node", || {
        let left = drained.docker(&["ps", "-q"]).ok();
        if left.is_empty() { Ok(()) } else { Err(format!("{left}\n{}", drained.log_tail())) }
    });
    cluster.serving("app", 6);
}

// === datagrams ===

/// In containers.
const DATAGRAMS: u16 = 7000;
/// What a stream may lose when the task that answered it goes.
const LOSS: Duration = Duration::from_secs(1);
/// Answered in a row, a stream flows.
const FLOWS: usize = 50;

/// Through every node, from a connected socket and from one that is not.
struct Streams(Vec<Stream>);

impl Streams {
    fn start(cluster: &Cluster) -> Self {
        let to = |number: u8| SocketAddr::from((cluster.node(number).address(), PORT));
        let ways = (1..=NODES).flat_map(|number| [(number, true), (number, false)]);
        Self(
            ways.map(|(number, connected)| Stream::start(&cluster.world.netns, to(number), connected))
                .collect(),
        )
    }

    /// Waits until all flow; returns who answers each.
    #[track_caller]
    fn flow(&self) -> Vec<String> {
        let each = self.0.iter().map(|stream| {
            let last = wait_until(PATIENCE, "the stream flows", || stream.last(FLOWS));
            last.last().unwrap().clone()
        });
        each.collect()
    }

    /// Replaces tasks, and looks what each stream has lost and who answers it now.
    fn during(&self, what: &str, cluster: &Cluster, change: impl FnOnce()) {
        let before: Vec<usize> = self.0.iter().map(Stream::settled).collect();
        change();
        let alive: BTreeSet<String> =
            cluster.containers("udp").iter().map(|task| task.id[..12].to_owned()).collect();
        for (stream, from) in self.0.iter().zip(before) {
            wait_until(PATIENCE, "the stream flows to a task that is there", || {
                let last = stream.last(FLOWS)?;
                let gone = last.iter().find(|name| !alive.contains(*name));
                gone.map_or(Ok(()), |name| Err(format!("{name} answers the {stream}, of {alive:?} alive")))
            });
            let lost = stream.lost_since(from);
            eprintln!("{what}: {stream} lost {lost:?}");
            assert!(lost < LOSS, "{what}: {stream} lost {lost:?}");
        }
    }
}

/// Tasks on the first two nodes alone.
fn serve_datagrams(cluster: &Cluster) -> Vec<Container> {
    let program = format!("type=bind,source={},target=/datagrams,readonly", program("datagrams").display());
    let flags = [
        // What the program needs of this machine.
        ["--mount", "type=bind,source=/lib,target=/lib,readonly"],
        ["--mount", "type=bind,source=/lib64,target=/lib64,readonly"],
        ["--mount", &program],
        ["--constraint", "node.hostname!=node3"],
        ["--replicas-max-per-node", "2"],
        ["--restart-delay", "1s"],
        ["--publish", "8000:7000/udp"],
        // Port 7000 is bound.
        ["--health-cmd", "grep -q :1B58 /proc/net/udp"],
        ["--health-interval", "500ms"],
    ];
    let command = ["/datagrams", &DATAGRAMS.to_string()];
    let tasks = cluster.service("udp", 2, &[&["--init"], flags.as_flattened()].concat(), &command);
    assert_eq!(tasks.iter().map(|task| task.node).collect::<BTreeSet<_>>(), [1, 2].into());
    cluster.serving("udp", 2)
}

#[test]
fn streams_of_datagrams_survive_their_tasks() {
    let cluster = Cluster::start(NODES);
    let tasks = serve_datagrams(&cluster);
    let streams = Streams::start(&cluster);
    let by: BTreeSet<String> = streams.flow().into_iter().collect();
    eprintln!("answered by {by:?}");
    for task in tasks {
        streams.during(&format!("task on node {} killed", task.node), &cluster, || {
            process::signal(task.pid, Signal::SIGKILL);
            wait_until(PATIENCE, "another one runs in its place", || {
                let left = cluster.containers("udp");
                let replaced = left.len() == 2 && left.iter().all(|other| other.id != task.id);
                if replaced { Ok(()) } else { Err(format!("{left:?}")) }
            });
            cluster.serving("udp", 2);
        });
    }
    for order in ["stop-first", "start-first"] {
        streams.during(order, &cluster, || update(&cluster, "udp", order));
    }
    streams.during("one task left", &cluster, || {
        cluster.docker(&["service", "scale", "-d", "udp=1"]).ok();
        cluster.serving("udp", 1);
    });
    streams.during("the only task replaced", &cluster, || update(&cluster, "udp", "start-first"));
    streams.0.into_iter().for_each(Stream::stop);
    cluster.finish();
}

// === many connections from one address ===

/// Which nodes connections go through in turn, how they end, and which ports the client has for them.
#[derive(Debug, Clone, Copy)]
struct Way {
    name: &'static str,
    count: u64,
    nodes: &'static [u8],
    end: End,
    ports: &'static str,
}

/// Who closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Client,
    Server,
    Reset,
}

/// The first one has a port of its own for each connection to a node. All others use each port many times, while
/// what was before is not forgotten on the way: no node is to take it for something else, and no task.
const WAYS: [Way; 6] = [
    Way { name: "all nodes", count: 50_000, nodes: &[1, 2, 3], end: End::Client, ports: "1024 39999" },
    Way { name: "a task's node", count: 10_000, nodes: &[1], end: End::Server, ports: "40000 40199" },
    Way { name: "another node", count: 10_000, nodes: &[3], end: End::Server, ports: "41000 41199" },
    Way { name: "all at once", count: 50_000, nodes: &[1, 2, 3], end: End::Server, ports: "42000 42199" },
    Way { name: "all, reset", count: 10_000, nodes: &[1, 2, 3], end: End::Reset, ports: "43000 43199" },
    Way { name: "all, closed", count: 10_000, nodes: &[1, 2, 3], end: End::Client, ports: "44000 47999" },
];

/// Answers one byte with one byte; a client that wants to close first says so by it.
fn serve_bytes(task: &Container) {
    const AT_ONCE: usize = 8;
    let listener = Arc::new(task.netns().run(|| TcpListener::bind("0.0.0.0:5000").unwrap()));
    for _ in 0..AT_ONCE {
        let listener = listener.clone();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut byte = [0];
                let _ = stream.read_exact(&mut byte).and_then(|()| stream.write_all(&byte));
                if byte[0] != End::Server as u8 {
                    let _ = stream.read(&mut byte);
                }
            }
        });
    }
}

fn once(to: SocketAddr, end: End) -> Result<(), String> {
    let mut stream = TcpStream::connect(to).map_err(|error| format!("connect: {error}"))?;
    if end == End::Reset {
        nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::Linger, &RESET).unwrap();
    }
    let text = |error: std::io::Error| error.to_string();
    stream.set_read_timeout(Some(Duration::from_secs(10))).map_err(text)?;
    stream.write_all(&[end as u8]).map_err(text)?;
    let mut byte = [0];
    stream.read_exact(&mut byte).map_err(text)?;
    if end == End::Server && stream.read(&mut byte).map_err(text)? != 0 {
        return Err("more than one byte".to_owned());
    }
    Ok(())
}

const RESET: nix::libc::linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };

/// First packets of connections that were sent again, and all packets sent again, by the namespace's clients.
fn sent_again(netns: &Netns) -> [u64; 2] {
    netns.run(|| {
        let count = |file: &str, name: &str| -> u64 {
            let text = std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap();
            let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split(' ').collect()).collect();
            let found = lines.chunks(2).find_map(|pair| {
                let at = pair[0].iter().position(|word| *word == name)?;
                pair[1][at].parse().ok()
            });
            found.unwrap_or_else(|| panic!("no {name} in {file}"))
        };
        [count("netstat", "TCPSynRetrans"), count("snmp", "RetransSegs")]
    })
}

fn set(netns: &Netns, setting: &'static str, value: &str) {
    let value = value.to_owned();
    netns.run(move || std::fs::write(format!("/proc/sys/net/{setting}"), value).unwrap());
}

/// Connections one after the other from each of several threads.
fn connect_often(cluster: &Cluster, way: Way) -> Vec<String> {
    const THREADS: u64 = 12;
    let address = |number: &u8| SocketAddr::from((cluster.node(*number).address(), PORT));
    let targets: Vec<SocketAddr> = way.nodes.iter().map(address).collect();
    let (targets, turn) = (Arc::new(targets), Arc::<AtomicU64>::default());
    let threads: Vec<_> = (0..THREADS)
        .map(|_| {
            let (targets, turn) = (targets.clone(), turn.clone());
            cluster.world.netns.spawn(move || {
                let mut failures = Vec::new();
                loop {
                    let turn = turn.fetch_add(1, Ordering::Relaxed);
                    if turn >= way.count {
                        return failures;
                    }
                    let to = targets[turn as usize % targets.len()];
                    if let Err(error) = once(to, way.end) {
                        failures.push(format!("{to}: {error}"));
                    }
                }
            })
        })
        .collect();
    threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
}

#[test]
fn no_connection_of_very_many_from_one_address_has_to_knock_twice() {
    let cluster = Cluster::start(NODES);
    let flags = ["--publish", "8000:5000", "--constraint", "node.hostname!=node3"];
    // As many as there are nodes, or else a port that is used through two of them may lead to one task.
    let tasks = cluster.service("app", 4, &flags, &["idle"]);
    assert_eq!(tasks.iter().map(|task| task.node).collect::<BTreeSet<_>>(), [1, 2].into());
    tasks.iter().for_each(serve_bytes);
    let outside = cluster.world.netns.clone();
    for node in cluster.nodes() {
        let to = SocketAddr::from((node.address(), PORT));
        let often = move || (0..20).try_for_each(|_| once(to, End::Client));
        wait_until(PATIENCE, &format!("{to} answers"), || outside.run(often));
    }
    set(&outside, "ipv4/tcp_tw_reuse", "1");
    for way in WAYS {
        set(&outside, "ipv4/ip_local_port_range", way.ports);
        let (before, started) = (sent_again(&outside), Instant::now());
        let failures = connect_often(&cluster, way);
        let after = sent_again(&outside);
        let [syns, segments] = [0, 1].map(|at| after[at] - before[at]);
        eprintln!(
            "through {}: {} connections in {:?}, {} failed, {syns} first packets and {segments} in all sent again",
            way.name,
            way.count,
            started.elapsed(),
            failures.len(),
        );
        assert_eq!(failures.len(), 0, "{}: {:?}", way.name, &failures[..failures.len().min(5)]);
        assert_eq!(syns, 0, "{}", way.name);
    }
    cluster.finish();
}

// === idle connections ===

/// What the nodes believe a connection may be idle for, and how long it is.
const PATIENT: &str = "2";
const IDLE: Duration = Duration::from_secs(5);

/// To each connection: a byte at once, another one after it was idle, and from then on what it says.
fn serve_late(task: &Container) {
    let listener = task.netns().run(|| TcpListener::bind("0.0.0.0:5000").unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                stream.write_all(b"1")?;
                std::thread::sleep(IDLE);
                stream.write_all(b"2")?;
                let mut byte = [0];
                while stream.read(&mut byte)? != 0 {
                    stream.write_all(&byte)?;
                }
                std::io::Result::Ok(())
            });
        }
    });
}

/// Idle until the server says something, and idle again until the client does.
fn stay(to: SocketAddr) -> Result<(), String> {
    let text = |what: &'static str| move |error: std::io::Error| format!("{what}: {error}");
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5)).map_err(text("connect"))?;
    stream.set_read_timeout(Some(IDLE * 2)).map_err(text("set"))?;
    let mut byte = [0];
    stream.read_exact(&mut byte).map_err(text("greeting"))?;
    stream.read_exact(&mut byte).map_err(text("what the server says later"))?;
    std::thread::sleep(IDLE);
    stream.write_all(b"3").map_err(text("write"))?;
    stream.read_exact(&mut byte).map_err(text("the answer later"))?;
    if byte == *b"3" { Ok(()) } else { Err(format!("answered {byte:?}")) }
}

#[test]
fn an_idle_connection_outlives_what_the_nodes_remember_others_for() {
    const EACH: usize = 8;
    let cluster = Cluster::start(NODES);
    for node in cluster.nodes() {
        set(&node.netns, "netfilter/nf_conntrack_tcp_timeout_established", PATIENT);
    }
    let flags = ["--publish", "8000:5000", "--constraint", "node.hostname!=node3"];
    let tasks = cluster.service("app", 4, &flags, &["idle"]);
    assert_eq!(tasks.iter().map(|task| task.node).collect::<BTreeSet<_>>(), [1, 2].into());
    tasks.iter().for_each(serve_late);
    let address = |node: &shoal_e2e::Node| SocketAddr::from((node.address(), PORT));
    let mut clients = Vec::new();
    for node in cluster.nodes() {
        let to = address(node);
        let connect = move || TcpStream::connect(to).map(drop).map_err(|error| error.to_string());
        wait_until(PATIENCE, "the port answers", || cluster.world.netns.run(connect));
        clients.push(("outside", cluster.world.netns.clone(), to));
        clients.push(("the node itself", node.netns.clone(), to));
    }
    let connections: Vec<_> = clients
        .iter()
        .flat_map(|(who, netns, to)| {
            (0..EACH).map(move |_| {
                (
                    who,
                    to,
                    netns.spawn({
                        let to = *to;
                        move || stay(to)
                    }),
                )
            })
        })
        .collect();
    let failures: Vec<String> = connections
        .into_iter()
        .filter_map(|(who, to, thread)| Some(format!("{who} to {to}: {}", thread.join().unwrap().err()?)))
        .collect();
    assert_eq!(failures, Vec::<String>::new());
    cluster.finish();
}
