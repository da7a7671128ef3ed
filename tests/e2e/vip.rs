//! One address per service, balanced in the kernel before the first packet.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use shoal_e2e::{Container, Netns, Node, PATIENCE, wait_until};

const PORT: u16 = 5000;

/// A TCP and a UDP server in a task's namespace that say which task they are. With `hold`, they never
/// close a connection.
fn serve_name(task: &Container, hold: bool) {
    let name = task.name.clone();
    let (tcp, udp) = task
        .netns()
        .run(|| (TcpListener::bind(("0.0.0.0", PORT)).unwrap(), UdpSocket::bind(("0.0.0.0", PORT)).unwrap()));
    let over_udp = name.clone();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, from)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(over_udp.as_bytes(), from);
        }
    });
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for mut stream in tcp.incoming().flatten() {
            let _ = std::io::Write::write_all(&mut stream, name.as_bytes());
            if hold {
                open.push(stream);
            }
        }
    });
}

/// A cluster with `back` (two tasks that serve their names), a client beside it, and the VIP.
fn balanced() -> (Node, Vec<Container>, Netns, Ipv4Addr) {
    balanced_by(false)
}

fn balanced_by(hold: bool) -> (Node, Vec<Container>, Netns, Ipv4Addr) {
    let node = Node::cluster();
    node.network("mynet");
    let tasks = node.service("back", 2, &["--network", "mynet"], &["idle"]);
    tasks.iter().for_each(|task| serve_name(task, hold));
    let client = node.service("client", 1, &["--network", "mynet"], &["idle"])[0].netns();
    let vip = node.vip("back");
    node.resolves(&client, "tasks.back", tasks.iter().map(|task| task.address("mynet").into()).collect());
    (node, tasks, client, vip)
}

fn ask_tcp(to: SocketAddr) -> Result<(String, SocketAddr), String> {
    let mut stream =
        TcpStream::connect_timeout(&to, Duration::from_secs(5)).map_err(|error| error.to_string())?;
    let peer = stream.peer_addr().map_err(|error| error.to_string())?;
    let mut name = String::new();
    stream.read_to_string(&mut name).map_err(|error| error.to_string())?;
    Ok((name, peer))
}

fn mapped(address: Ipv4Addr) -> SocketAddr {
    SocketAddr::V6(SocketAddrV6::new(address.to_ipv6_mapped(), PORT, 0, 0))
}

#[test]
fn connections_spread_over_the_tasks_and_show_the_vip() {
    let (node, tasks, client, vip) = balanced();
    for to in [SocketAddr::from((vip, PORT)), mapped(vip)] {
        let seen = client.run(move || (0..200).map(|_| ask_tcp(to).unwrap()).collect::<Vec<_>>());
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for (name, peer) in seen {
            assert_eq!(peer, to, "the peer's name is the address that was asked for");
            *counts.entry(name).or_default() += 1;
        }
        assert_eq!(counts.len(), 2, "{counts:?}");
        // A fair coin stays within 50..150 of 200 but once in 10^12.
        assert!(counts.values().all(|&count| (50..=150).contains(&count)), "{counts:?}");
        assert!(tasks.iter().all(|task| counts.contains_key(&task.name)), "{counts:?}");
    }
    node.finish();
}

#[test]
fn a_udp_socket_keeps_its_backend() {
    const DATAGRAMS: usize = 10_000;
    let (node, _, client, vip) = balanced();
    let exchange = move |socket: UdpSocket, connected: bool, to: SocketAddr| {
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        if connected {
            socket.connect(to).unwrap();
            assert_eq!(socket.peer_addr().unwrap(), to);
        }
        let mut first = None;
        let mut buffer = [0; 256];
        for number in 0..DATAGRAMS {
            if connected { socket.send(b"who") } else { socket.send_to(b"who", to) }.unwrap();
            let (length, from) = socket.recv_from(&mut buffer).unwrap();
            assert_eq!(from, to, "datagram {number}: the reply must show the virtual address");
            let name = String::from_utf8_lossy(&buffer[..length]).into_owned();
            assert_eq!(*first.get_or_insert(name.clone()), name, "datagram {number} went elsewhere");
        }
    };
    client.run(move || {
        let plain = || UdpSocket::bind("0.0.0.0:0").unwrap();
        let dual = || UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
        exchange(plain(), false, (vip, PORT).into());
        exchange(plain(), true, (vip, PORT).into());
        exchange(dual(), false, mapped(vip));
        exchange(dual(), true, mapped(vip));
    });
    node.finish();
}

#[test]
fn a_service_without_a_healthy_task_refuses_at_once() {
    let (node, _, client, vip) = balanced();
    node.docker(&["service", "scale", "-d", "back=0"]).ok();
    node.running("back", 0);
    wait_until(PATIENCE, "connections are refused", || {
        client.run(move || {
            let started = Instant::now();
            let error = ask_tcp((vip, PORT).into()).err().ok_or("still answered")?;
            assert!(started.elapsed() < Duration::from_millis(500), "refusing took {:?}", started.elapsed());
            if error.contains("refused") { Ok(()) } else { Err(error) }
        })
    });
    // The name stays, so that clients fail fast instead of asking the world outside.
    node.resolves(&client, "back", vec![vip.into()]);
    client.run(move || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        let error = socket.send_to(b"who", (vip, PORT)).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    });
    node.docker(&["service", "scale", "-d", "back=1"]).ok();
    serve_name(&node.running("back", 1)[0], false);
    wait_until(PATIENCE, "the service answers again", || {
        client.run(move || ask_tcp((vip, PORT).into()).map(drop))
    });
    node.finish();
}

#[test]
fn a_virtual_address_answers_ping() {
    let (node, _, _, vip) = balanced();
    let client = &node.running("client", 1)[0];
    let answer = node.exec(client, &["ping", "-c", "3", "-W", "2", "back"]).ok();
    assert!(answer.contains(&vip.to_string()) && answer.contains("3 packets received"), "{answer}");
    node.finish();
}

#[test]
fn only_members_of_a_network_reach_its_services() {
    let (node, tasks, client, vip) = balanced();
    node.network("othernet");
    let stranger = node.service("stranger", 1, &["--network", "othernet"], &["idle"])[0].netns();
    let direct = tasks[0].address("mynet");
    for address in [vip, direct] {
        let answer =
            stranger.run(move || TcpStream::connect_timeout(&(address, PORT).into(), Duration::from_secs(2)));
        assert!(answer.is_err(), "a stranger reached {address}");
    }
    // Nor is its socket led to a task: what the kernel holds as the peer is what was asked for. A
    // connected UDP socket shows that without a packet on the way.
    let peers = |netns: &Netns| {
        netns.run(move || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect((vip, PORT)).unwrap();
            std::fs::read_to_string("/proc/thread-self/net/udp").unwrap()
        })
    };
    // As /proc/net/udp has it: hexadecimal, the address in the byte order of the machine.
    let held = |address: Ipv4Addr| format!("{:08X}:{PORT:04X}", u32::from_ne_bytes(address.octets()));
    assert!(peers(&stranger).contains(&held(vip)), "{}", peers(&stranger));
    let member = peers(&client);
    assert!(tasks.iter().any(|task| member.contains(&held(task.address("mynet")))), "{member}");
    node.finish();
}

#[test]
fn a_task_may_be_its_own_services_client() {
    let (node, tasks, _, vip) = balanced();
    let inside = tasks[0].netns();
    let names = inside.run(move || {
        (0..100).map(|_| ask_tcp((vip, PORT).into()).unwrap().0).collect::<std::collections::BTreeSet<_>>()
    });
    assert_eq!(names.len(), 2, "{names:?}");
    node.finish();
}

#[test]
fn clients_of_a_dead_task_are_let_go() {
    let (node, tasks, client, vip) = balanced_by(true);
    let held = client.run(move || {
        (0..40)
            .map(|_| {
                let mut stream = TcpStream::connect((vip, PORT)).unwrap();
                let mut name = [0; 256];
                let length = stream.read(&mut name).unwrap();
                (String::from_utf8_lossy(&name[..length]).into_owned(), stream)
            })
            .collect::<Vec<_>>()
    });
    assert!(held.iter().any(|(name, _)| *name == tasks[0].name));
    node.docker(&["kill", &tasks[0].id]).ok();
    let survivor = tasks[1].name.clone();
    wait_until(PATIENCE, "new connections reach live tasks only", || {
        let survivor = survivor.clone();
        let text = |error: std::io::Error| error.to_string();
        client.run(move || {
            for _ in 0..40 {
                let mut stream =
                    TcpStream::connect_timeout(&(vip, PORT).into(), Duration::from_secs(5)).map_err(text)?;
                let mut name = [0; 256];
                let length = stream.read(&mut name).map_err(text)?;
                let name = String::from_utf8_lossy(&name[..length]).into_owned();
                if name != survivor {
                    return Err(name);
                }
            }
            Ok(())
        })
    });
    // Its sockets live on in this test, so no FIN tells its clients: the node has to let them go. A
    // connection to the survivor stays, and its reader goes on waiting.
    for (name, mut stream) in held {
        if name == tasks[0].name {
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let error = stream.read(&mut [0]).err().map(|error| error.kind());
            assert_eq!(error, Some(std::io::ErrorKind::ConnectionAborted));
        }
    }
    node.finish();
}
