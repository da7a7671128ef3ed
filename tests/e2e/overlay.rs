//! Overlay networks across nodes: every protocol in both families, frames as large as they may be,
//! names and virtual addresses from everywhere, and nothing at all for a node that is not on them.

use std::collections::BTreeSet;
use std::io::Read;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use shoal_e2e::{Cluster, Container, Netns, Node, PATIENCE, wait_until};

const PORT: u16 = 5000;
/// What one frame carries: the underlay's 1500 bytes without the tunnel's 50.
const MTU: usize = 1450;

/// Servers in both families and protocols that say which task they are.
fn serve_name(task: &Container) {
    for address in both(task) {
        let at = SocketAddr::from((address, PORT));
        let (tcp, udp) =
            task.netns().run(move || (TcpListener::bind(at).unwrap(), UdpSocket::bind(at).unwrap()));
        let (name, over_udp) = (task.name.clone(), task.name.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, from)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(over_udp.as_bytes(), from);
            }
        });
        std::thread::spawn(move || {
            for mut stream in tcp.incoming().flatten() {
                let _ = std::io::Write::write_all(&mut stream, name.as_bytes());
            }
        });
    }
}

fn both(task: &Container) -> [IpAddr; 2] {
    [task.address("six").into(), task.address_v6("six").into()]
}

fn over_tcp(to: SocketAddr) -> Result<String, String> {
    let text = |error: std::io::Error| error.to_string();
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5)).map_err(text)?;
    let mut name = String::new();
    stream.read_to_string(&mut name).map_err(text)?;
    Ok(name)
}

fn over_udp(to: SocketAddr) -> Result<String, String> {
    let text = |error: std::io::Error| error.to_string();
    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).map_err(text)?;
    socket.set_read_timeout(Some(Duration::from_secs(5))).map_err(text)?;
    socket.send_to(b"who", to).map_err(text)?;
    let mut buffer = [0; 256];
    let (length, from) = socket.recv_from(&mut buffer).map_err(text)?;
    assert_eq!(from, to, "the answer comes from whom was asked");
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// An echo of so many bytes on the wire, which must not be cut into pieces.
fn ping(from: &Netns, to: IpAddr, bytes: usize) -> bool {
    let headers = if to.is_ipv4() { 28 } else { 48 };
    let size = (bytes - headers).to_string();
    let mut command = from.command("ping");
    command.args(["-M", "do", "-c", "1", "-W", "3", "-s", &size, &to.to_string()]);
    command.output().unwrap().status.success()
}

/// A service that runs on some nodes only: there one task of it each.
fn on_nodes(cluster: &Cluster, nodes: &[u8], network: &str) -> Vec<Container> {
    let each = nodes.iter().map(|number| {
        let name = format!("{network}-{number}");
        let place = format!("node.hostname==node{number}");
        let flags = ["--network", network, "--constraint", &place];
        cluster.service(&name, 1, &flags, &["idle"]).remove(0)
    });
    each.collect()
}

/// A network with both families on the first two of three nodes.
fn spanning() -> (Cluster, Vec<Container>) {
    let cluster = Cluster::start(3);
    let create = ["network", "create", "-d", "overlay", "--ipv6", "--subnet", "fd00:5::/64", "six"];
    cluster.docker(&create).ok();
    let tasks = on_nodes(&cluster, &[1, 2], "six");
    tasks.iter().for_each(serve_name);
    (cluster, tasks)
}

#[test]
fn an_overlay_carries_everything_between_its_nodes_and_nothing_to_others() {
    let (cluster, tasks) = spanning();
    for (from, to) in [(0, 1), (1, 0)] {
        let (inside, other) = (tasks[from].netns(), &tasks[to]);
        for address in both(other) {
            let to = SocketAddr::from((address, PORT));
            wait_until(PATIENCE, &format!("{to} answers over TCP"), || {
                inside.run(move || over_tcp(to)).map(drop)
            });
            assert_eq!(inside.run(move || over_tcp(to)), Ok(other.name.clone()));
            assert_eq!(inside.run(move || over_udp(to)), Ok(other.name.clone()));
            assert!(ping(&inside, address, MTU), "a full frame to {address}");
            assert!(!ping(&inside, address, MTU + 1), "more than fits to {address}");
        }
    }
    names_and_virtual_addresses(&cluster, &tasks);
    what_workers_show(&cluster, &tasks);
    nothing_for_strangers(&cluster, &tasks);
    cluster.finish();
}

/// The same answers on each of the nodes, and connections through a virtual address to all tasks.
fn names_and_virtual_addresses(cluster: &Cluster, tasks: &[Container]) {
    let flags = ["--network", "six", "--constraint", "node.hostname!=node3"];
    let back = cluster.service("back", 4, &flags, &["idle"]);
    assert_eq!(back.iter().map(|task| task.node).collect::<BTreeSet<_>>(), [1, 2].into());
    back.iter().for_each(serve_name);
    let manager = cluster.manager();
    let vips = [IpAddr::from(manager.vip("back")), IpAddr::from(manager.vip_v6("back"))];
    let names: BTreeSet<String> = back.iter().map(|task| task.name.clone()).collect();
    for task in tasks {
        let inside = task.netns();
        for (family, vip) in vips.into_iter().enumerate() {
            manager.resolves(&inside, "back", vec![vip]);
            manager.resolves(&inside, "tasks.back", back.iter().map(|task| both(task)[family]).collect());
            let to = SocketAddr::from((vip, PORT));
            let seen = inside.run(move || (0..100).map(|_| over_tcp(to).unwrap()).collect::<BTreeSet<_>>());
            assert_eq!(seen, names, "through {vip} from {}", task.name);
            assert!(ping(&inside, vip, 100), "{vip} answers ping");
        }
    }
}

/// A worker tells of the networks it has a part in, and of no others.
fn what_workers_show(cluster: &Cluster, tasks: &[Container]) {
    let shown = cluster.node(2).inspect("network", "six");
    assert_eq!(shown["Id"], cluster.manager().inspect("network", "six")["Id"]);
    assert_eq!(
        (shown["EnableIPv6"].as_bool(), shown["Peers"].as_array().map(Vec::len)),
        (Some(true), Some(2))
    );
    let own = &shown["Containers"][&tasks[1].id];
    assert_eq!(own["IPv4Address"], format!("{}/24", tasks[1].address("six")));
    assert!(shown["Containers"][&tasks[0].id].is_null(), "containers of other nodes are theirs");
    let stranger = cluster.node(3);
    let answer = stranger.docker(&["network", "inspect", "six"]);
    assert!(answer.code == 1 && answer.stderr.contains("network six not found"), "{answer}");
}

/// The third node has no table, no tunnel and no namespace of the network; what it sends is not let in.
fn nothing_for_strangers(cluster: &Cluster, tasks: &[Container]) {
    let stranger = cluster.node(3);
    assert!(!networks(stranger).contains("six"));
    let id = cluster.manager().inspect("network", "six")["Id"].as_str().unwrap().to_owned();
    assert!(cluster.node(2).run_dir().join("netns").join(format!("net-{id}")).exists());
    assert!(!stranger.run_dir().join("netns").join(format!("net-{id}")).exists());
    // With all it would need to know: the number, the address, the link address.
    let target = &tasks[1];
    let vni = &cluster.manager().inspect("network", "six")["Options"]["com.docker.network.driver.overlay.vxlanid_list"];
    let mac = target.detail["NetworkSettings"]["Networks"]["six"]["MacAddress"].as_str().unwrap();
    let (member, own) = (cluster.node(2).address().to_string(), stranger.address().to_string());
    let ip = |text: String| stranger.netns.ip(&text.split_whitespace().collect::<Vec<_>>());
    ip(format!(
        "link add crafted type vxlan id {} dstport 4789 local {own} nolearning",
        vni.as_str().unwrap()
    ));
    ip("addr add 10.0.1.200/24 dev crafted".to_owned());
    ip("link set crafted up".to_owned());
    ip(format!("neigh add {} lladdr {mac} dev crafted nud permanent", target.address("six")));
    let fdb = ["fdb", "add", mac, "dev", "crafted", "dst", &member, "self", "permanent"];
    assert!(stranger.netns.command("bridge").args(fdb).status().unwrap().success());
    // One way is enough to do harm, and needs no answer.
    let to = SocketAddr::from((target.address("six"), PORT + 1));
    let heard = target.netns().run(move || UdpSocket::bind(to).unwrap());
    heard.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let sender = stranger.netns.run(|| UdpSocket::bind("10.0.1.200:0").unwrap());
    for _ in 0..10 {
        sender.send_to(b"harm", to).unwrap();
    }
    let error = heard.recv(&mut [0; 16]).map_err(|error| error.kind());
    assert_eq!(error, Err(std::io::ErrorKind::WouldBlock), "a stranger's frame came through");
    ip("link del crafted".to_owned());
}

fn networks(node: &Node) -> BTreeSet<String> {
    let text = node.shoal(&["node", "tables", "--format", "json"]).ok();
    let reports: serde_json::Value = serde_json::from_str(&text).unwrap();
    reports
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|report| Some(report["name"].as_str()?.to_owned()))
        .collect()
}

/// A network comes to a node with the first task there, and goes with the last.
#[test]
fn an_overlay_is_only_where_its_tasks_are() {
    let (cluster, tasks) = spanning();
    let (first, second, third) = (cluster.node(1), cluster.node(2), cluster.node(3));
    let has = |node: &Node| networks(node).contains("six");
    assert!(has(first) && has(second) && !has(third));
    let late = on_nodes(&cluster, &[3], "six").remove(0);
    let to = SocketAddr::from((both(&tasks[1])[1], PORT));
    wait_until(PATIENCE, "the late one reaches the others", || {
        late.netns().run(move || over_tcp(to)).map(drop)
    });
    assert!(has(third));
    cluster.docker(&["service", "rm", "six-2"]).ok();
    wait_until(PATIENCE, "the network leaves the node", || {
        if has(second) { Err(format!("{:?}", networks(second))) } else { Ok(()) }
    });
    let peers = || first.inspect("network", "six")["Peers"].as_array().map_or(0, Vec::len);
    wait_until(PATIENCE, "the others no longer count it", || {
        if peers() == 2 { Ok(()) } else { Err(peers().to_string()) }
    });
    cluster.finish();
}
