//! Published ports: from outside, from the node, from containers, the client's address kept.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use shoal_e2e::web::{fetch, fetch_over};
use shoal_e2e::{CLIENT, Container, GATEWAY, NODE, Node, PATIENCE, node_address_v6, wait_until};

const PORT: u16 = 8000;
const WHO: &str = "/cgi-bin/who";

fn published() -> Node {
    let node = Node::cluster();
    node.network("appnet");
    node.web("app", 2, &["--network", "appnet", "--publish", "8000:80"]);
    wait_until(PATIENCE, "the port answers", || from_client(&node).map(drop));
    node
}

/// What a routed client outside gets: the task's host name and the address it saw.
fn from_client(node: &Node) -> Result<(String, String), String> {
    let stream = node.world.connect_from_client((NODE, PORT).into()).map_err(|error| error.to_string())?;
    parse(fetch_over(stream, WHO)?)
}

fn parse(body: String) -> Result<(String, String), String> {
    let (task, client) = body.split_once(' ').ok_or_else(|| body.clone())?;
    // busybox prints an IPv4 client of its IPv6 socket in mapped form.
    let client = client.trim_start_matches("::ffff:").trim_start_matches("[::ffff:").trim_end_matches(']');
    Ok((task.to_owned(), client.to_owned()))
}

#[test]
fn from_outside_the_task_sees_the_client() {
    let node = published();
    let mut tasks = BTreeSet::new();
    for _ in 0..40 {
        let (task, client) = from_client(&node).unwrap();
        assert_eq!(client, CLIENT.to_string());
        tasks.insert(task);
    }
    assert_eq!(tasks.len(), 2, "both tasks take their share");
    let (_, client) = parse(node.world.netns.run(|| fetch((NODE, PORT), WHO)).unwrap()).unwrap();
    assert_eq!(client, GATEWAY.to_string(), "a neighbour of the node");
    node.finish();
}

#[test]
fn from_the_node_itself() {
    let node = published();
    for address in [IpAddr::from(NODE), Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
        wait_until(PATIENCE, "the node's own programs are served", || {
            node.netns.run(move || fetch((address, PORT), WHO)).map(drop)
        });
        let mut tasks = BTreeSet::new();
        for _ in 0..40 {
            let body = node.netns.run(move || fetch((address, PORT), WHO));
            let (task, _) = parse(body.unwrap_or_else(|error| panic!("{address}: {error}"))).unwrap();
            tasks.insert(task);
        }
        assert_eq!(tasks.len(), 2, "{address}");
    }
    node.finish();
}

#[test]
fn from_containers_members_or_not() {
    let node = published();
    node.network("othernet");
    let inside = node.running("app", 2)[0].netns();
    let stranger = node.service("stranger", 1, &["--network", "othernet"], &["idle"])[0].netns();
    for (who, netns) in [("a task of the service", inside), ("a stranger", stranger)] {
        let body = netns.run(|| fetch((NODE, PORT), WHO));
        body.unwrap_or_else(|error| panic!("{who}: {error}"));
    }
    node.finish();
}

#[test]
fn datagrams_are_balanced_and_answered_from_the_published_address() {
    let node = Node::cluster();
    node.network("appnet");
    let tasks = node.service("app", 2, &["--network", "appnet", "--publish", "9000:7000/udp"], &["idle"]);
    for task in &tasks {
        let name = task.name.clone();
        let socket = task.netns().run(|| UdpSocket::bind("0.0.0.0:7000").unwrap());
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(format!("{name} {}", from.ip()).as_bytes(), from);
            }
        });
    }
    let ask = |address: Ipv4Addr| -> Result<(String, String), String> {
        let socket = UdpSocket::bind("0.0.0.0:0").map_err(|error| error.to_string())?;
        socket.set_read_timeout(Some(Duration::from_secs(2))).map_err(|error| error.to_string())?;
        let to = SocketAddr::from((address, 9000));
        socket.send_to(b"who", to).map_err(|error| error.to_string())?;
        let mut buffer = [0; 256];
        let (length, from) = socket.recv_from(&mut buffer).map_err(|error| error.to_string())?;
        if from != to {
            return Err(format!("the reply came from {from}"));
        }
        parse(String::from_utf8_lossy(&buffer[..length]).into_owned())
    };
    wait_until(PATIENCE, "the port answers from outside", || {
        node.world.netns.run(move || ask(NODE)).map(drop)
    });
    let mut seen = BTreeSet::new();
    for _ in 0..40 {
        let (task, client) = node.world.netns.run(move || ask(NODE)).unwrap();
        assert_eq!(client, GATEWAY.to_string());
        seen.insert(task);
    }
    assert_eq!(seen.len(), 2);
    for address in [NODE, Ipv4Addr::LOCALHOST] {
        node.netns.run(move || ask(address)).unwrap_or_else(|error| panic!("{address}: {error}"));
    }
    node.finish();
}

#[test]
fn a_port_goes_with_its_service_and_refuses_without_tasks() {
    let node = published();
    node.docker(&["service", "scale", "-d", "app=0"]).ok();
    let refused = |what: &str| {
        wait_until(PATIENCE, what, || {
            let outside = from_client(&node).err().ok_or("answered from outside")?;
            let local =
                node.netns.run(|| fetch((Ipv4Addr::LOCALHOST, PORT), WHO)).err().ok_or("answered locally")?;
            if outside.contains("refused") && local.contains("refused") {
                Ok(())
            } else {
                Err(format!("outside: {outside}; local: {local}"))
            }
        });
    };
    refused("a published port without tasks refuses");
    node.docker(&["service", "scale", "-d", "app=2"]).ok();
    wait_until(PATIENCE, "the port answers again", || from_client(&node).map(drop));
    node.docker(&["service", "rm", "app"]).ok();
    refused("the port went with its service");
    node.finish();
}

/// A server in a task that says its port, in both versions of IP.
fn serve(task: &Container, port: u16) {
    let listener = task.netns().run(move || TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 1024]);
            let _ = write!(stream, "HTTP/1.0 200 OK\r\n\r\n{port}");
        }
    });
}

#[test]
fn ports_are_declared_in_every_form_and_come_and_go_by_update() {
    let node = Node::cluster();
    node.network("appnet");
    let long = "published=8443,target=7443,protocol=tcp,mode=ingress";
    let flags = ["--network", "appnet", "--publish", "8000-8002:7000-7002", "--publish", long];
    let task = node.service("app", 1, &flags, &["idle"]).remove(0);
    for port in [7000, 7001, 7002, 7443] {
        serve(&task, port);
    }
    let ask = |port: u16| {
        let both: [IpAddr; 2] = [NODE.into(), node_address_v6(1).into()];
        let answers = both.map(|address| node.world.netns.run(move || fetch((address, port), "/")));
        let [v4, v6] = answers;
        (v4? == v6.clone()?).then_some(()).ok_or("two answers")?;
        v6
    };
    let leads = |published: u16, target: u16| {
        wait_until(PATIENCE, &format!("{published} leads to {target}"), || match ask(published)? {
            answer if answer == target.to_string() => Ok(()),
            answer => Err(answer),
        });
    };
    for (published, target) in [(8000, 7000), (8001, 7001), (8002, 7002), (8443, 7443)] {
        leads(published, target);
    }
    let update = ["service", "update", "-d", "--publish-rm", "7001", "--publish-add", "8100:7100"];
    node.docker(&[&update[..], &["app"]].concat()).ok();
    let next = wait_until(PATIENCE, "the task is replaced", || match node.containers("app").as_slice() {
        [next] if next.id != task.id => Ok(next.clone()),
        _ => Err("not yet".to_owned()),
    });
    for port in [7000, 7100] {
        serve(&next, port);
    }
    leads(8000, 7000);
    leads(8100, 7100);
    let gone = ask(8001).unwrap_err();
    assert!(gone.contains("refused"), "{gone}");
    node.finish();
}

#[test]
fn an_unnamed_port_is_chosen_and_shown() {
    let node = Node::cluster();
    node.network("appnet");
    node.service("app", 1, &["--network", "appnet", "--publish", "80"], &["serve"]);
    let detail = node.inspect("service", "app");
    let port = detail["Endpoint"]["Ports"][0]["PublishedPort"].as_u64().unwrap() as u16;
    assert!((30000..=32767).contains(&port), "{port}");
    wait_until(PATIENCE, "the chosen port answers", || {
        node.world.netns.run(move || fetch((NODE, port), WHO)).map(drop)
    });
    node.finish();
}

#[test]
fn a_dnsrr_service_can_publish() {
    let node = Node::cluster();
    node.network("appnet");
    // The docker client refuses this combination itself, so this goes to the API directly.
    let network = node.inspect("network", "appnet")["Id"].as_str().unwrap().to_owned();
    let spec = serde_json::json!({
        "Name": "app",
        "TaskTemplate": {
            "ContainerSpec": { "Image": "busybox", "Args": ["serve"] },
            "Networks": [{ "Target": network }],
        },
        "Mode": { "Replicated": { "Replicas": 2 } },
        "EndpointSpec": { "Mode": "dnsrr", "Ports": [{ "Protocol": "tcp", "TargetPort": 80, "PublishedPort": PORT }] },
    });
    let answer = node.http("POST", "/services/create", &spec.to_string()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    wait_until(PATIENCE, "the port answers", || from_client(&node).map(drop));
    node.finish();
}
