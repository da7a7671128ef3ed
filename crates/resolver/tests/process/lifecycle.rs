//! The process: its start, its end, and what outlives it.

use std::collections::HashSet;
use std::io::Write;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use shoal_model::NetworkId;
use shoal_resolver::Error;
use shoal_resolver::feed::Client;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use crate::world::{Network, Sandbox, World, mynet, until};

#[tokio::test]
async fn a_killed_resolver_comes_back_as_it_was() {
    let (mut world, client) = World::start(&[]).await;
    mynet().feed(&client).await;
    let sandbox = Sandbox::new(&client, "s1", &["mynet"]).await;
    let before = client.read_back().await.unwrap();
    assert_eq!(before.sandboxes["s1"].ports, sandbox.ports);
    assert_eq!(before.networks[&NetworkId::new("mynet")].version.revision, 1);

    world.kill_resolver();
    assert!(matches!(client.read_back().await, Err(Error::Feed { .. })));
    assert!(matches!(client.read_back().await, Err(Error::Feed { .. })), "and it stays unusable");
    let client = world.start_resolver().await;
    // Nobody has fed anything since.
    assert_eq!(client.read_back().await.unwrap(), before);
    assert_eq!(sandbox.short("web"), ["10.0.1.2"]);
    assert_eq!(sandbox.short("tasks.web +tcp"), ["10.0.1.4", "10.0.1.5"]);
    assert_eq!(client.set_sandbox(sandbox.view.clone()).await.unwrap(), sandbox.ports);
}

#[tokio::test]
async fn a_port_taken_meanwhile_is_replaced_and_told() {
    let (mut world, client) = World::start(&[]).await;
    mynet().feed(&client).await;
    let mut sandbox = Sandbox::new(&client, "s1", &["mynet"]).await;
    world.kill_resolver();
    let taken = sandbox.ports.udp;
    let _thief = sandbox.netns.enter(move || UdpSocket::bind(("127.0.0.11", taken)).unwrap());
    let client = world.start_resolver().await;
    let state = client.read_back().await.unwrap();
    let ports = state.sandboxes["s1"].ports;
    assert_ne!(ports.udp, taken);
    assert_eq!(ports.tcp, sandbox.ports.tcp);
    sandbox.ports = ports;
    assert_eq!(sandbox.short("web"), ["10.0.1.2"]);
}

#[tokio::test]
async fn what_is_gone_is_not_taken_up_again() {
    let (mut world, client) = World::start(&[]).await;
    mynet().feed(&client).await;
    let kept = Sandbox::new(&client, "kept", &["mynet"]).await;
    let gone = Sandbox::new(&client, "gone", &["mynet"]).await;
    world.kill_resolver();
    drop(gone);
    let client = world.start_resolver().await;
    let state = client.read_back().await.unwrap();
    assert_eq!(state.sandboxes.keys().collect::<Vec<_>>(), ["kept"]);
    assert_eq!(kept.short("web"), ["10.0.1.2"]);
}

#[tokio::test]
async fn damaged_state_is_passed_over() {
    let (mut world, client) = World::start(&[]).await;
    mynet().feed(&client).await;
    let sandbox = Sandbox::new(&client, "s1", &["mynet"]).await;
    world.kill_resolver();
    std::fs::write(world.state_dir().join("sandboxes.json"), b"{\"s1\":").unwrap();
    std::fs::write(world.state_dir().join("names/mynet.json"), b"").unwrap();
    let client = world.start_resolver().await;
    assert_eq!(client.read_back().await.unwrap(), Default::default());
    mynet().feed(&client).await;
    let ports = client.set_sandbox(sandbox.view.clone()).await.unwrap();
    assert_eq!(Sandbox { ports, ..sandbox }.short("web"), ["10.0.1.2"]);
}

#[tokio::test]
async fn a_second_resolver_is_refused() {
    let (mut world, client) = World::start(&[]).await;
    let second = world.resolver_command().output().unwrap();
    assert_eq!(second.status.code(), Some(7));
    let text = String::from_utf8_lossy(&second.stderr).into_owned();
    let expected = format!(
        "a resolver already runs at {} (process {})",
        world.socket().display(),
        world.resolver().id()
    );
    assert!(text.contains(&expected), "{text}");
    assert_eq!(client.hello().pid, world.resolver().id());
    client.read_back().await.expect("the first one is not disturbed");
}

#[tokio::test]
async fn sigterm_ends_it_and_keeps_its_state() {
    let (mut world, client) = World::start(&[]).await;
    mynet().feed(&client).await;
    let sandbox = Sandbox::new(&client, "s1", &["mynet"]).await;
    let pid = i32::try_from(world.resolver().id()).unwrap();
    kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    assert!(world.resolver().wait().unwrap().success());
    assert!(!world.socket().exists());
    let client = world.start_resolver().await;
    assert_eq!(client.read_back().await.unwrap().sandboxes["s1"].ports, sandbox.ports);
}

#[tokio::test]
async fn a_retired_resolver_leaves_its_place_to_the_next() {
    let (mut world, client) = World::start(&[]).await;
    mynet().feed(&client).await;
    let sandbox = Sandbox::new(&client, "s1", &["mynet"]).await;
    client.retire().await.unwrap();
    assert!(world.resolver().wait().unwrap().success());
    assert!(!world.socket().exists());
    let _client = world.start_resolver().await;
    assert_eq!(sandbox.short("web"), ["10.0.1.2"], "on the same port");
}

#[tokio::test]
async fn stop_leaves_nothing_behind() {
    let (mut world, client) = World::start(&[]).await;
    mynet().feed(&client).await;
    let _sandbox = Sandbox::new(&client, "s1", &["mynet"]).await;
    client.stop().await.unwrap();
    assert!(world.resolver().wait().unwrap().success());
    assert!(!world.state_dir().exists());
    assert_eq!(std::fs::read_dir(world.run_dir()).unwrap().count(), 0);
}

#[tokio::test]
async fn what_is_removed_is_served_no_more() {
    let (_world, client) = World::start(&[]).await;
    for name in ["one", "two", "three"] {
        Network::new(name).endpoint("a", "10.0.0.1", &[name]).feed(&client).await;
    }
    let mut sandboxes = Vec::new();
    for id in ["a", "b", "c"] {
        sandboxes.push(Sandbox::new(&client, id, &["one"]).await);
    }
    client.remove_sandbox("a").await.unwrap();
    client.remove_sandbox("a").await.expect("removing twice is no error");
    client.remove_names(&NetworkId::new("two")).await.unwrap();
    client.remove_names(&NetworkId::new("nosuch")).await.unwrap();
    client.prune(&HashSet::from(["b".to_owned()]), &HashSet::from([NetworkId::new("one")])).await.unwrap();
    let state = client.read_back().await.unwrap();
    assert_eq!(state.sandboxes.keys().collect::<Vec<_>>(), ["b"]);
    assert_eq!(state.networks.keys().map(NetworkId::as_str).collect::<Vec<_>>(), ["one"]);
    assert_eq!(sandboxes[1].short("one"), ["10.0.0.1"]);
    for closed in [&sandboxes[0], &sandboxes[2]] {
        until("the sockets are closed", async || closed.dig("one").contains("no servers could be reached"))
            .await;
    }
}

#[tokio::test]
async fn a_namespace_made_anew_gets_new_sockets() {
    let (_world, client) = World::start(&[]).await;
    mynet().feed(&client).await;
    let mut sandbox = Sandbox::new(&client, "s1", &["mynet"]).await;
    sandbox.netns.recreate();
    sandbox.change(&client, |_| {}).await;
    assert_eq!(sandbox.short("web"), ["10.0.1.2"]);
}

#[tokio::test]
async fn a_namespace_that_is_not_there_is_named() {
    let (_world, client) = World::start(&[]).await;
    let mut view = Sandbox::new(&client, "s1", &[]).await.view;
    view.id = "s2".to_owned();
    view.netns = "/run/netns/nosuch".into();
    let error = client.set_sandbox(view).await.unwrap_err().to_string();
    assert!(error.contains("/run/netns/nosuch") && error.contains("No such file"), "{error}");
    assert_eq!(client.read_back().await.unwrap().sandboxes.len(), 1);
}

#[tokio::test]
async fn the_feed_reads_names_back() {
    let (_world, client) = World::start(&[]).await;
    let names = shoal_resolver::Names::from_table(&mynet().0);
    client.set_names(names.clone()).await.unwrap();
    assert_eq!(client.read_names(&names.network).await.unwrap(), Some(names));
    assert_eq!(client.read_names(&NetworkId::new("nosuch")).await.unwrap(), None);
}

#[tokio::test]
async fn the_feed_is_private_and_versioned() {
    let (world, _client) = World::start(&[]).await;
    let mode = std::fs::metadata(world.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut stream = BufReader::new(tokio::net::UnixStream::connect(world.socket()).await.unwrap());
    for (line, expected) in [
        ("\"read_back\"", "feed version 1 must be agreed on first"),
        ("nonsense", "not a request"),
        ("{\"hello\":{\"feed_version\":99}}", "\"feed_version\":1"),
        ("\"stop\"", "must be agreed on first"),
        ("{\"hello\":{\"feed_version\":1}}", "\"pid\":"),
        ("\"read_back\"", "\"sandboxes\":{}"),
    ] {
        stream.write_all(format!("{line}\n").as_bytes()).await.unwrap();
        let mut reply = String::new();
        stream.read_line(&mut reply).await.unwrap();
        assert!(reply.contains(expected), "{line}: {reply}");
    }
}

#[tokio::test]
async fn a_dead_socket_file_is_no_hindrance() {
    let mut world = World::new(&[]);
    std::fs::create_dir_all(world.run_dir()).unwrap();
    drop(std::os::unix::net::UnixListener::bind(world.socket()).unwrap());
    std::fs::File::create(world.run_dir().join("resolver.lock")).unwrap().write_all(b"1\n").unwrap();
    let client = world.start_resolver().await;
    assert_eq!(client.hello().feed_version, 1);
    let error = Client::connect(&world.run_dir().join("nosuch.sock")).await.unwrap_err();
    assert!(matches!(error, Error::Feed { .. }), "{error}");
}
