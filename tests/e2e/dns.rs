//! Names, asked at 127.0.0.11 from inside containers.

use std::net::{IpAddr, TcpListener, UdpSocket};

use shoal_e2e::dns::{A, NOERROR, SERVFAIL, Transport, ask};
use shoal_e2e::load::Load;
use shoal_e2e::{Container, Netns, Node, OUTSIDE_NAME, PATIENCE, wait_until};

struct Named {
    node: Node,
    client: Netns,
    vip: IpAddr,
}

/// `web` (VIP), `rr` (dnsrr) and a client on `mynet`.
fn named() -> Named {
    let node = Node::cluster();
    node.network("mynet");
    let web = node.service("web", 2, &["--network", "mynet"], &["idle"]);
    let rr = node.service("rr", 3, &["--network", "mynet", "--endpoint-mode", "dnsrr"], &["idle"]);
    let client = node.service("client", 1, &["--network", "mynet"], &["idle"])[0].netns();
    let vip = node.vip("web").into();
    node.resolves(&client, "tasks.web", addresses(&web));
    node.resolves(&client, "rr", addresses(&rr));
    Named { node, client, vip }
}

fn addresses(tasks: &[Container]) -> Vec<IpAddr> {
    tasks.iter().map(|task| task.address("mynet").into()).collect()
}

#[test]
fn times_to_live_are_short_and_honest() {
    let Named { node, client, .. } = named();
    let ttl = |name: &'static str| {
        let answer = client.run(move || ask(name, A, Transport::Udp)).unwrap();
        answer.records.iter().map(|record| record.ttl).max().unwrap()
    };
    assert_eq!(ttl("web"), 10);
    assert_eq!(ttl("tasks.web"), 2);
    assert_eq!(ttl("rr"), 2);
    node.finish();
}

#[test]
fn a_dead_upstream_hurts_only_outside_names() {
    let Named { node, client, vip, .. } = named();
    node.world.disconnect(node.number);
    let answer = client.run(|| ask(OUTSIDE_NAME, A, Transport::Udp)).unwrap();
    assert_eq!(answer.rcode, SERVFAIL);
    node.resolves(&client, "web", vec![vip]);
    node.finish();
}

#[test]
fn names_are_scoped_to_the_askers_networks() {
    let Named { node, client, vip, .. } = named();
    node.network("othernet");
    node.service("hidden", 1, &["--network", "othernet"], &["idle"]);
    let both = ["--network", "mynet", "--network", "othernet"];
    let between = node.service("between", 1, &both, &["idle"])[0].netns();
    let hidden = node.vip("hidden").into();
    node.resolves(&between, "web", vec![vip]);
    node.resolves(&between, "hidden", vec![hidden]);
    for name in ["hidden", "tasks.hidden", "hidden.othernet", "web.othernet"] {
        let answer = client.run(move || ask(name, A, Transport::Udp)).unwrap();
        assert!(answer.records.is_empty(), "{name}: {answer:?}");
    }
    node.finish();
}

#[test]
fn a_service_without_tasks_keeps_its_name() {
    let Named { node, client, vip, .. } = named();
    node.docker(&["service", "scale", "-d", "web=0", "rr=0"]).ok();
    node.resolves(&client, "tasks.web", vec![]);
    node.resolves(&client, "rr", vec![]);
    node.resolves(&client, "web", vec![vip]);
    let answer = client.run(|| ask("rr", A, Transport::Udp)).unwrap();
    assert_eq!(answer.rcode, NOERROR, "no task now is not no such name");
    assert!(!node.world.asked().iter().any(|name| name == "rr" || name == "tasks.web"));
    node.finish();
}

#[test]
fn a_container_may_run_its_own_name_server() {
    let Named { node, client, vip, .. } = named();
    let own =
        client.run(|| (UdpSocket::bind("0.0.0.0:53").unwrap(), TcpListener::bind("0.0.0.0:53").unwrap()));
    for transport in [Transport::Udp, Transport::Tcp] {
        let answer = client.run(move || ask("web", A, transport)).unwrap();
        assert_eq!(answer.addresses(), [vip], "{transport:?}");
    }
    client.run(move || {
        let asking = UdpSocket::bind("127.0.0.1:0").unwrap();
        asking.send_to(b"mine", "127.0.0.1:53").unwrap();
        let mut buffer = [0; 16];
        own.0.set_read_timeout(Some(std::time::Duration::from_secs(2))).unwrap();
        assert_eq!(own.0.recv(&mut buffer).unwrap(), 4, "its own server hears its own clients");
    });
    node.finish();
}

/// Ask as fast as a busy service would, connect as often, and take the daemon away meanwhile.
#[test]
fn nobody_notices_that_the_daemon_was_killed() {
    let Named { mut node, client, vip, .. } = named();
    let server = node.service("server", 2, &["--network", "mynet"], &["idle"]);
    for task in &server {
        let listener = task.netns().run(|| TcpListener::bind("0.0.0.0:80").unwrap());
        std::thread::spawn(move || listener.incoming().for_each(drop));
    }
    let to = std::net::SocketAddr::from((node.vip("server"), 80));
    wait_until(PATIENCE, "the server answers", || {
        client.run(move || std::net::TcpStream::connect(to).map(drop).map_err(|error| error.to_string()))
    });
    let look_ups = Load::start(&client, 8, 1000, move || {
        let answer = ask("web", A, Transport::Udp).map_err(|error| error.to_string())?;
        if answer.addresses() == [vip] { Ok(()) } else { Err(format!("{answer:?}")) }
    });
    let connections = Load::start(&client, 4, 200, move || {
        std::net::TcpStream::connect(to).map(drop).map_err(|e| e.to_string())
    });
    let resolver = node.helpers("resolver");
    for _ in 0..2 {
        let before = look_ups.done();
        wait_until(PATIENCE, "a second of traffic", || {
            if look_ups.done() > before + 1000 { Ok(()) } else { Err(String::new()) }
        });
        node.kill_daemon();
        let before = look_ups.done();
        wait_until(PATIENCE, "two seconds without a daemon", || {
            if look_ups.done() > before + 2000 { Ok(()) } else { Err(String::new()) }
        });
        node.start_daemon();
    }
    let before = look_ups.done();
    wait_until(PATIENCE, "a second more", || {
        if look_ups.done() > before + 1000 { Ok(()) } else { Err(String::new()) }
    });
    let (look_ups, connections) = (look_ups.stop(), connections.stop());
    look_ups.assert_clean(900);
    connections.assert_clean(180);
    assert_eq!(node.helpers("resolver"), resolver, "the resolver is the same process throughout");
    node.finish();
}

#[test]
fn all_names_also_the_tasks_that_are_not_healthy_yet() {
    let node = Node::cluster();
    node.docker(&["network", "create", "-d", "overlay", "--attachable", "appnet"]).ok();
    let check =
        ["--health-cmd", "test -e /tmp/well", "--health-interval", "200ms", "--health-retries", "9999"];
    node.create_service("app", 1, &[&["--network", "appnet"], &check[..]].concat(), &["idle"]);
    let client = node.service("client", 1, &["--network", "appnet"], &["idle"]).remove(0).netns();
    let task = wait_until(PATIENCE, "the task's container is there", || {
        node.containers("app").pop().ok_or_else(|| "no container".to_owned())
    });
    let own = wait_until(PATIENCE, "it has its address", || {
        let found = client.run(|| ask("all.app", A, Transport::Udp)).map_err(|error| error.to_string())?;
        found.addresses().pop().ok_or_else(|| format!("{found:?}"))
    });
    node.resolves(&client, "tasks.app", vec![]);
    node.exec(&task, &["touch", "/tmp/well"]).ok();
    node.resolves(&client, "tasks.app", vec![own]);
    node.resolves(&client, "ALL.app.appnet", vec![own]);
    // Who has the name has it.
    let run = [
        "run",
        "-d",
        "--name",
        "guest",
        "--network",
        "appnet",
        "--network-alias",
        "all.app",
        "busybox",
        "idle",
    ];
    node.docker(&run).ok();
    let detail = node.inspect("container", "guest");
    let guest =
        detail["NetworkSettings"]["Networks"]["appnet"]["IPAddress"].as_str().unwrap().parse().unwrap();
    node.resolves(&client, "all.app", vec![guest]);
    node.docker(&["rm", "-f", "guest"]).ok();
    node.resolves(&client, "all.app", vec![own]);
    node.finish();
}
