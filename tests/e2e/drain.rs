//! Removing tasks under load: no connection refused, none reset.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use shoal_e2e::load::Load;
use shoal_e2e::web::{fetch, fetch_over};
use shoal_e2e::{NODE, Node, PATIENCE, process, wait_until};

fn more(load: &Load, operations: u64) {
    let before = load.done();
    wait_until(PATIENCE, "traffic flows", || {
        if load.done() > before + operations { Ok(()) } else { Err(String::new()) }
    });
}

#[test]
fn scaling_down_under_load_fails_no_connection() {
    let node = Node::cluster();
    node.network("appnet");
    let flags = ["--network", "appnet", "--publish", "8000:80"];
    node.web("app", 4, &flags);
    let client = node.service("client", 1, &["--network", "appnet"], &["idle"])[0].netns();
    let vip = node.vip("app");
    wait_until(PATIENCE, "the service answers", || {
        client.run(move || fetch((vip, 80), "/index.html")).map(drop)
    });
    wait_until(PATIENCE, "the port answers", || {
        node.world.netns.run(|| fetch((NODE, 8000), "/index.html")).map(drop)
    });
    let inside = Load::start(&client, 8, 100, move || fetch((vip, 80), "/index.html").map(drop));
    let outside = Load::start(&node.world.netns, 4, 50, || fetch((NODE, 8000), "/index.html").map(drop));
    for replicas in [1, 4, 2, 1] {
        more(&inside, 100);
        node.docker(&["service", "scale", "-d", &format!("app={replicas}")]).ok();
        node.serving("app", replicas);
    }
    more(&inside, 100);
    let (inside, outside) = (inside.stop(), outside.stop());
    inside.assert_clean(50);
    outside.assert_clean(25);
    node.finish();
}

/// While a node has not acknowledged that a task left its tables, connections may still be led to the
/// task: it is not told to stop. The resolver held still keeps this node from acknowledging.
#[test]
fn a_task_is_not_stopped_before_every_table_let_it_go() {
    let node = Node::cluster();
    node.network("appnet");
    node.web("app", 2, &["--network", "appnet"]);
    let client = node.service("client", 1, &["--network", "appnet"], &["idle"])[0].netns();
    let vip = node.vip("app");
    let ask = || client.run(move || fetch((vip, 80), "/index.html"));
    wait_until(PATIENCE, "the service answers", || ask().map(drop));
    let resolver = node.helpers("resolver");
    assert_eq!(resolver.len(), 1);
    process::signal(resolver[0], Signal::SIGSTOP);
    node.docker(&["service", "scale", "-d", "app=1"]).ok();
    // Well below the bound of five seconds, well above what a stop takes.
    let held = Instant::now();
    while held.elapsed() < Duration::from_secs(3) {
        ask().unwrap_or_else(|error| panic!("{error} after {:?}", held.elapsed()));
        let running = node.containers("app").len();
        assert!(
            running == 2 || held.elapsed() > Duration::from_secs(3),
            "stopped after {:?}",
            held.elapsed()
        );
    }
    process::signal(resolver[0], Signal::SIGCONT);
    node.running("app", 1);
    node.finish();
}

/// A request that is being answered when its task is told to stop is answered to its end.
#[test]
fn an_open_connection_gets_its_grace() {
    let node = Node::cluster();
    node.network("appnet");
    let slow = r#"printf '#!/bin/sh\nsleep 1\nprintf "Content-Type: text/plain\\r\\n\\r\\ndone"\n' > /www/cgi-bin/slow
chmod +x /www/cgi-bin/slow
exec serve"#;
    node.service("app", 1, &["--network", "appnet"], &["sh", "-c", slow]);
    let client = node.service("client", 1, &["--network", "appnet"], &["idle"])[0].netns();
    let vip = node.vip("app");
    wait_until(PATIENCE, "the service answers", || {
        client.run(move || fetch((vip, 80), "/index.html")).map(drop)
    });
    let stream = client.run(move || std::net::TcpStream::connect((vip, 80)).unwrap());
    let asking = client.spawn(move || fetch_over(stream, "/cgi-bin/slow"));
    node.docker(&["service", "scale", "-d", "app=0"]).ok();
    assert_eq!(asking.join().unwrap().as_deref(), Ok("done"));
    node.running("app", 0);
    node.finish();
}
