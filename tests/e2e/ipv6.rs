//! Networks with IPv6: names, virtual addresses and balancing in both families.

use std::collections::BTreeSet;
use std::io::Read;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use shoal_e2e::dns::{A, AAAA, PTR, Transport, ask};
use shoal_e2e::load::Load;
use shoal_e2e::web::fetch;
use shoal_e2e::{Container, Netns, Node, PATIENCE, wait_until};

const PORT: u16 = 5000;

/// A TCP and a UDP server on a task's IPv6 address that say which task they are; connections stay open.
fn serve_name(task: &Container) {
    let (name, over_udp) = (task.name.clone(), task.name.clone());
    let at = SocketAddr::from((task.address_v6("six"), PORT));
    let (tcp, udp) = task.netns().run(move || (TcpListener::bind(at).unwrap(), UdpSocket::bind(at).unwrap()));
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, from)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(over_udp.as_bytes(), from);
        }
    });
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for mut stream in tcp.incoming().flatten() {
            let _ = std::io::Write::write_all(&mut stream, format!("{name}\n").as_bytes());
            open.push(stream);
        }
    });
}

struct Six {
    node: Node,
    back: Vec<Container>,
    client: Container,
    vip: Ipv6Addr,
}

/// A dual-stack network with two tasks of `back` that serve their names over IPv6, and a client.
fn six() -> Six {
    let node = Node::cluster();
    node.docker(&["network", "create", "-d", "overlay", "--ipv6", "--subnet", "fd00:5::/64", "six"]).ok();
    let back = node.service("back", 2, &["--network", "six"], &["idle"]);
    back.iter().for_each(serve_name);
    let client = node.service("client", 1, &["--network", "six"], &["idle"]).remove(0);
    let vip = node.vip_v6("back");
    node.resolves(&client.netns(), "tasks.back", addresses(&back));
    Six { node, back, client, vip }
}

fn addresses(tasks: &[Container]) -> Vec<IpAddr> {
    tasks.iter().map(|task| task.address_v6("six").into()).collect()
}

/// Connects and reads a line: the name, the stream, and whom it is connected to.
fn meet(to: SocketAddr) -> Result<(String, TcpStream), String> {
    let mut stream =
        TcpStream::connect_timeout(&to, Duration::from_secs(5)).map_err(|error| error.to_string())?;
    let mut name = String::new();
    let mut byte = [0];
    while stream.read_exact(&mut byte).is_ok() && byte[0] != b'\n' {
        name.push(byte[0] as char);
    }
    Ok((name, stream))
}

#[test]
fn names_resolve_in_both_families() {
    let Six { node, back, client, vip } = six();
    let inside = client.netns();
    let rr = node.service("rr", 2, &["--network", "six", "--endpoint-mode", "dnsrr"], &["idle"]);
    node.resolves(&inside, "back", vec![vip.into()]);
    node.resolves(&inside, "back", vec![node.vip("back").into()]);
    node.resolves(&inside, "rr", addresses(&rr));
    node.resolves(&inside, "rr", rr.iter().map(|task| task.address("six").into()).collect());
    node.resolves(&inside, &back[0].name, vec![back[0].address_v6("six").into()]);
    // Of a network without IPv6 there is no such address, and nobody else is asked for it.
    node.network("four");
    let both = ["--network", "six", "--network", "four"];
    let between = node.service("between", 1, &both, &["idle"])[0].netns();
    node.service("plain", 1, &["--network", "four"], &["idle"]);
    node.resolves(&between, "plain", vec![node.vip("plain").into()]);
    let none = between.run(|| ask("plain", AAAA, Transport::Udp)).unwrap();
    assert!(none.records.is_empty(), "{none:?}");
    assert!(!node.world.asked().iter().any(|name| name == "plain"));
    // And back from the address.
    let nibbles: Vec<String> =
        vip.octets().iter().rev().map(|byte| format!("{:x}.{:x}", byte & 15, byte >> 4)).collect();
    let question = format!("{}.ip6.arpa", nibbles.join("."));
    let answer = inside.run(move || ask(&question, PTR, Transport::Udp)).unwrap();
    assert_eq!(answer.names(), ["back.six"]);
    node.finish();
}

#[test]
fn docker_shows_both_addresses() {
    let Six { node, back, client, vip } = six();
    let network = node.inspect("network", "six");
    assert_eq!(network["EnableIPv6"], true);
    let subnets: Vec<&str> = network["IPAM"]["Config"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|pool| pool["Subnet"].as_str())
        .collect();
    assert_eq!(subnets, ["fd00:5::/64", "10.0.1.0/24"]);
    assert_eq!(network["IPAM"]["Config"][0]["Gateway"], "fd00:5::1");
    let shown = network["Containers"][&back[0].id]["IPv6Address"].as_str().unwrap();
    assert_eq!(shown, format!("{}/64", back[0].address_v6("six")));
    let tasks = node.docker(&["inspect", "--type", "task", back[0].name.split('.').nth(2).unwrap()]).ok();
    assert!(
        tasks.contains(&shown.to_owned()) && tasks.contains(&format!("{}/24", back[0].address("six"))),
        "{tasks}"
    );
    let hosts = node.exec(&back[0], &["cat", "/etc/hosts"]).ok();
    assert!(hosts.contains(&back[0].address_v6("six").to_string()), "{hosts}");
    // Neighbour discovery and echo for an address that no interface holds.
    for target in [vip, back[0].address_v6("six")] {
        let answer = node.exec(&client, &["ping", "-6", "-c", "2", "-W", "2", &target.to_string()]).ok();
        assert!(answer.contains("2 packets received"), "{answer}");
    }
    // A subnet of the node's choice is there, too.
    node.docker(&["network", "create", "-d", "overlay", "--ipv6", "chosen"]).ok();
    let chosen =
        node.inspect("network", "chosen")["IPAM"]["Config"][1]["Subnet"].as_str().unwrap().to_owned();
    assert!(chosen.starts_with("fd") && chosen.ends_with("/64"), "{chosen}");
    node.finish();
}

#[test]
fn connections_and_datagrams_are_balanced_and_show_the_virtual_address() {
    let Six { node, back, client, vip } = six();
    let inside = client.netns();
    let to = SocketAddr::from((vip, PORT));
    let seen: BTreeSet<String> = inside.run(move || {
        let once = |_| {
            let (name, stream) = meet(to).unwrap();
            assert_eq!(stream.peer_addr().unwrap(), to);
            name
        };
        (0..60).map(once).collect()
    });
    assert_eq!(seen, back.iter().map(|task| task.name.clone()).collect());
    inside.run(move || {
        for connected in [false, true] {
            let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            if connected {
                socket.connect(to).unwrap();
                assert_eq!(socket.peer_addr().unwrap(), to);
            }
            let (mut names, mut buffer) = (BTreeSet::new(), [0; 256]);
            for _ in 0..200 {
                if connected { socket.send(b"who") } else { socket.send_to(b"who", to) }.unwrap();
                let (length, from) = socket.recv_from(&mut buffer).unwrap();
                assert_eq!(from, to);
                names.insert(buffer[..length].to_vec());
            }
            assert_eq!(names.len(), 1, "a socket keeps its backend");
        }
    });
    // Whoever is not on the network is not led there.
    node.network("other");
    let stranger = node.service("stranger", 1, &["--network", "other"], &["idle"])[0].netns();
    let direct = SocketAddr::from((back[0].address_v6("six"), PORT));
    for address in [to, direct] {
        let answer = stranger.run(move || TcpStream::connect_timeout(&address, Duration::from_secs(2)));
        assert!(answer.is_err(), "a stranger reached {address}");
    }
    node.finish();
}

#[test]
fn no_task_is_refused_at_once_and_a_dead_one_let_go_of() {
    let Six { node, back, client, vip } = six();
    let inside = client.netns();
    let to = SocketAddr::from((vip, PORT));
    let held = inside.run(move || (0..30).map(|_| meet(to).unwrap()).collect::<Vec<_>>());
    assert!(held.iter().any(|(name, _)| *name == back[0].name));
    node.docker(&["kill", &back[0].id]).ok();
    for (name, mut stream) in held {
        if name == back[0].name {
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let error = stream.read(&mut [0]).err().map(|error| error.kind());
            assert_eq!(error, Some(std::io::ErrorKind::ConnectionAborted));
        }
    }
    node.docker(&["service", "scale", "-d", "back=0"]).ok();
    node.running("back", 0);
    wait_until(PATIENCE, "connections are refused", || {
        inside.run(move || {
            let started = Instant::now();
            let error = meet(to).err().ok_or("still answered")?;
            assert!(started.elapsed() < Duration::from_millis(500), "refusing took {:?}", started.elapsed());
            if error.contains("refused") { Ok(()) } else { Err(error) }
        })
    });
    node.resolves(&inside, "back", vec![vip.into()]);
    let sent = inside.run(move || UdpSocket::bind("[::]:0").unwrap().send_to(b"who", to));
    assert_eq!(sent.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    node.finish();
}

#[test]
fn scaling_down_under_load_fails_no_connection_over_ipv6() {
    let Six { node, client, .. } = six();
    node.web("app", 3, &["--network", "six"]);
    let (inside, vip) = (client.netns(), node.vip_v6("app"));
    wait_until(PATIENCE, "the service answers", || {
        inside.run(move || fetch((vip, 80), "/index.html")).map(drop)
    });
    let load = Load::start(&inside, 4, 100, move || fetch((vip, 80), "/index.html").map(drop));
    for replicas in [1, 3, 1] {
        let before = load.done();
        wait_until(PATIENCE, "traffic flows", || {
            if load.done() > before + 100 { Ok(()) } else { Err(String::new()) }
        });
        node.docker(&["service", "scale", "-d", &format!("app={replicas}")]).ok();
        node.running("app", replicas);
    }
    load.stop().assert_clean(50);
    node.finish();
}

#[test]
fn a_dual_stack_service_may_be_published() {
    let Six { node, .. } = six();
    node.service("app", 1, &["--network", "six", "--publish", "8000:80"], &["serve"]);
    let from: Netns = node.world.netns.clone();
    wait_until(PATIENCE, "the port answers", || {
        from.run(|| fetch((shoal_e2e::NODE, 8000), "/index.html")).map(drop)
    });
    let inside = node.service("other", 1, &["--network", "six"], &["idle"])[0].netns();
    let answer = inside.run(|| ask("app", A, Transport::Udp)).unwrap();
    assert_eq!(answer.addresses(), [IpAddr::from(node.vip_on("app", Some("six")))]);
    node.finish();
}
