//! Ports published in host mode: each node's lead to its own task and to no other.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use shoal_e2e::web::{fetch, fetch_over};
use shoal_e2e::{CLIENT, CLIENT_V6, Cluster, NODE, Node, PATIENCE, node_address_v6, process, wait_until};

const WHO: &str = "/cgi-bin/who";

/// What a routed client outside gets: the task's host name, and the address it saw.
fn from_client(node: &Node, port: u16) -> Result<(String, String), String> {
    let to = SocketAddr::from((node.address(), port));
    let stream = node.world.connect_from_client(to).map_err(|error| error.to_string())?;
    let body = fetch_over(stream, WHO)?;
    let (task, client) = body.split_once(' ').ok_or_else(|| body.clone())?;
    let client = client.trim_start_matches("::ffff:").trim_start_matches("[::ffff:").trim_end_matches(']');
    Ok((task.to_owned(), client.to_owned()))
}

#[track_caller]
fn answers(node: &Node, port: u16) -> (String, String) {
    wait_until(PATIENCE, &format!("port {port} answers"), || from_client(node, port))
}

fn refuses(node: &Node, port: u16) {
    wait_until(PATIENCE, &format!("port {port} is closed"), || match from_client(node, port) {
        Err(error) if error.contains("refused") => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

fn ps(node: &Node, service: &str) -> String {
    let format = "{{.Name}} {{.Node}} {{.CurrentState}} {{.Error}} {{.Ports}}";
    node.docker(&["service", "ps", "--no-trunc", "--format", format, service]).ok()
}

#[test]
fn a_port_of_the_node_leads_to_its_task() {
    let mut node = Node::cluster();
    node.network("appnet");
    let host = ["--publish", "mode=host,target=80,published=8080", "--publish", "mode=host,target=80"];
    let both = [&["--network", "appnet", "--publish", "8000:80"][..], &host].concat();
    let task = &node.web("app", 1, &both)[0];
    let (name, client) = answers(&node, 8080);
    assert_eq!((name.as_str(), client), (&task.id[..12], CLIENT.to_string()), "the client's address is kept");
    assert_eq!(answers(&node, 8000).0, name, "beside a port of the routing mesh");

    let told = ps(&node, "app");
    assert!(told.contains("*:8080->80/tcp"), "{told}");
    let own = told.split("*:").filter_map(|part| part.split_once("->80/tcp")?.0.parse::<u16>().ok());
    let chosen = own.into_iter().find(|port| *port != 8080).unwrap_or_else(|| panic!("{told}"));
    assert_eq!(answers(&node, chosen).0, name, "the node's own choice");
    let shown = node.docker(&["ps", "--format", "{{.Ports}}"]).ok();
    assert!(shown.contains("0.0.0.0:8080->80/tcp"), "{shown}");

    let over_v6 = || {
        let to = (node_address_v6(1), 8080).into();
        let stream = node.world.connect_from_client(to).map_err(|error| error.to_string())?;
        fetch_over(stream, WHO)
    };
    let body = over_v6().unwrap();
    assert!(body.starts_with(&name) && body.contains(&CLIENT_V6.to_string()), "by IPv6: {body}");
    for address in [IpAddr::from(NODE), Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
        let body = node.netns.run(move || fetch((address, 8080), WHO));
        assert!(body.as_ref().is_ok_and(|body| body.starts_with(&name)), "from the node: {body:?}");
    }
    let inside = node.service("other", 1, &[], &["idle"])[0].netns();
    assert!(inside.run(|| fetch((NODE, 8080), WHO)).unwrap().starts_with(&name), "from a container");
    let taken = node.netns.run(|| TcpListener::bind("0.0.0.0:8080").map(drop));
    assert!(taken.is_err(), "no other program gets it");

    node.kill_daemon();
    assert_eq!(answers(&node, 8080).0, name, "without the daemon");
    node.start_daemon();
    assert_eq!(answers(&node, 8080).0, name, "with the next one");
    node.tables_are_true();
    for wrong in ["nft flush map inet shoal host_ports", "nft flush ruleset"] {
        assert_eq!(node.netns.run(move || sh(wrong)), Some(0), "{wrong}");
        node.shoal(&["verify"]);
        assert_eq!(answers(&node, 8080).0, name, "after {wrong}");
    }

    node.docker(&["service", "rm", "app"]).ok();
    refuses(&node, 8080);
    refuses(&node, chosen);
    node.finish();
}

fn sh(command: &str) -> Option<i32> {
    std::process::Command::new("sh").args(["-c", command]).status().ok()?.code()
}

#[test]
fn each_node_has_its_own_task_and_no_more_than_one() {
    let cluster = Cluster::start(2);
    let host = ["--publish", "mode=host,target=80,published=8080"];
    cluster.manager().create_service("app", 3, &host, &["serve"]);
    let tasks = cluster.running("app", 2);
    for node in cluster.nodes() {
        let own = tasks.iter().find(|task| task.node == node.number).unwrap();
        assert_eq!(answers(node, 8080), (own.id[..12].to_owned(), CLIENT.to_string()));
    }
    wait_until(PATIENCE, "the third says why it waits", || {
        let told = ps(cluster.manager(), "app");
        let why = "no suitable node (host-mode port already in use on 2 nodes)";
        if told.contains(why) { Ok(()) } else { Err(told) }
    });
    cluster.docker(&["node", "update", "--availability", "drain", "node2"]).ok();
    refuses(cluster.node(2), 8080);
    answers(cluster.node(1), 8080);
    cluster.docker(&["node", "update", "--availability", "active", "node2"]).ok();
    answers(cluster.node(2), 8080);

    // A new task on the same node takes the port over from the one before.
    cluster.docker(&["service", "scale", "-d", "app=2"]).ok();
    let before = cluster.running("app", 2);
    cluster.docker(&["service", "update", "--force", "--quiet", "app"]).ok();
    for node in cluster.nodes() {
        let old = before.iter().find(|task| task.node == node.number).unwrap();
        wait_until(PATIENCE, "the new task answers", || match from_client(node, 8080)? {
            (name, _) if name != old.id[..12] => Ok(()),
            (name, _) => Err(format!("still {name}")),
        });
    }
    cluster.finish();
}

#[test]
fn a_port_that_another_program_has_is_told_on_the_task() {
    let node = Node::cluster();
    let other = node.netns.run(|| TcpListener::bind("0.0.0.0:8080").unwrap());
    let flags = ["--publish", "mode=host,target=80,published=8080", "--restart-delay", "100ms"];
    node.create_service("app", 1, &flags, &["serve"]);
    wait_until(PATIENCE, "it is told", || {
        let told = ps(&node, "app");
        let why = "host-mode port 8080/tcp is in use by another program on this node";
        if told.contains(why) && told.contains("Rejected") { Ok(()) } else { Err(told) }
    });
    drop(other);
    answers(&node, 8080);
    node.finish();
}

#[test]
fn datagrams_find_their_task_and_a_connection_ends_in_peace() {
    let node = Node::cluster();
    let flags = [
        "--publish",
        "mode=host,target=7000,published=7000,protocol=udp",
        "--publish",
        "mode=host,target=80,published=8080",
    ];
    let task = &node.service("app", 1, &flags, &["serve"])[0];
    let socket = task.netns().run(|| UdpSocket::bind("0.0.0.0:7000").unwrap());
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(from.ip().to_string().as_bytes(), from);
        }
    });
    let ask = move || -> Result<String, String> {
        let socket = UdpSocket::bind("0.0.0.0:0").map_err(|error| error.to_string())?;
        socket.set_read_timeout(Some(Duration::from_secs(2))).map_err(|error| error.to_string())?;
        socket.send_to(b"who", SocketAddr::from((NODE, 7000))).map_err(|error| error.to_string())?;
        let mut buffer = [0; 64];
        let (length, _) = socket.recv_from(&mut buffer).map_err(|error| error.to_string())?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    };
    wait_until(PATIENCE, "a datagram is answered", || node.world.netns.run(ask).map(drop));
    node.netns.run(ask).unwrap();

    answers(&node, 8080);
    let open = node.world.connect_from_client((NODE, 8080).into()).unwrap();
    let pid = task.pid;
    node.docker(&["service", "rm", "app"]).ok();
    refuses(&node, 8080);
    assert!(process::state(pid).is_some(), "the task still runs: a connection is open");
    assert!(fetch_over(open, WHO).unwrap().starts_with(&task.id[..12]));
    node.finish();
}
