//! Plain containers: `docker run` and what belongs to it.

use std::process::Stdio;

use nix::sys::signal::Signal;
use serde_json::Value;
use shoal_e2e::{Node, OUTSIDE_NAME, PATIENCE, process, wait_until};

/// A node in no cluster, with the image `busybox`.
pub(crate) fn alone() -> Node {
    let node = Node::start();
    node.import_busybox();
    node
}

pub(crate) fn state(node: &Node, name: &str) -> Value {
    node.inspect("container", name)["State"].take()
}

#[track_caller]
pub(crate) fn comes_to(node: &Node, name: &str, wanted: &str) {
    wait_until(PATIENCE, &format!("{name} is {wanted}"), || {
        let seen = state(node, name);
        if seen["Status"] == wanted { Ok(()) } else { Err(format!("{seen:#}\n{}", node.log_tail())) }
    });
}

#[track_caller]
pub(crate) fn refused(node: &Node, arguments: &[&str], code: i32, text: &str) {
    let answer = node.docker(arguments);
    assert!(answer.code == code && answer.stderr.contains(text), "wanted {code}, {text:?}: {answer}");
}

#[test]
fn a_run_passes_output_input_and_exit_code_and_leaves_nothing() {
    let node = alone();
    let both = node.docker(&["run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2; exit 3"]);
    assert_eq!((both.code, both.stdout.as_str(), both.stderr.as_str()), (3, "out\n", "err\n"));
    let fed = node.docker_with_input(&["run", "-i", "--rm", "busybox", "wc", "-c"], &[b'x'; 300_000]);
    assert_eq!(fed.ok().trim(), "300000");
    let echoed = node.docker_with_input(&["run", "-i", "--rm", "busybox", "cat"], b"there\nand back\n");
    assert_eq!(echoed.ok(), "there\nand back\n");
    let much = node.docker(&["run", "--rm", "busybox", "sh", "-c", "yes 0123456789abcde | head -n 200000"]);
    assert_eq!(much.ok().len(), 200_000 * 16);
    refused(&node, &["run", "--rm", "busybox", "nosuchprogram"], 127, "executable file not found in $PATH");
    assert_eq!(node.docker(&["ps", "-a", "-q"]).ok(), "", "--rm removes also what could not be started");
    node.finish();
}

#[test]
fn a_containers_life_in_dockers_words() {
    let node = alone();
    let id = node.docker(&["create", "--name", "box", "busybox", "sh", "-c", "echo hi; exit 4"]).ok();
    assert_eq!(state(&node, "box")["Status"], "created");
    let attached = node.docker(&["start", "-a", "box"]);
    assert_eq!((attached.code, attached.stdout.as_str()), (4, "hi\n"), "{attached}");
    assert_eq!(state(&node, "box")["Status"], "exited");
    assert_eq!(node.docker(&["start", "-a", "box"]).stdout, "hi\n", "it runs as often as it is started");
    assert_eq!(node.docker(&["logs", "box"]).ok(), "hi\nhi\n");
    assert_eq!(node.docker(&["wait", "box"]).ok().trim(), "4");
    let taken =
        format!("Conflict. The container name \"/box\" is already in use by container \"{}\"", id.trim());
    refused(&node, &["create", "--name", "box", "busybox", "true"], 1, &taken);
    refused(&node, &["create", "--name", "bad name", "busybox"], 1, "Invalid container name (bad name)");
    node.docker(&["rename", "box", "crate"]).ok();
    assert_eq!(node.inspect("container", "crate")["Name"], "/crate");
    refused(&node, &["inspect", "--type", "container", "box"], 1, "No such container: box");
    node.docker(&["rm", "crate"]).ok();
    let filter = format!("container={}", id.trim());
    let told = ["events", "--since", "1", "--until", "0s", "--filter", &filter, "--format", "{{.Action}}"];
    let actions = ["create", "start", "die", "start", "die", "rename", "destroy"];
    // The client asks for what was before the present second.
    wait_until(PATIENCE, "everything was told", || {
        let seen = node.docker(&told).ok();
        if seen.lines().eq(actions) { Ok(()) } else { Err(seen) }
    });

    node.docker(&["run", "-d", "--name", "idle", "busybox", "idle"]).ok();
    let pid = state(&node, "idle")["Pid"].as_u64();
    refused(&node, &["rm", "idle"], 1, "You cannot remove a running container");
    node.docker(&["restart", "-t", "5", "idle"]).ok();
    let again = state(&node, "idle");
    assert!(again["Running"] == true && again["Pid"].as_u64() != pid, "{again:#}");
    assert_eq!(node.docker(&["exec", "idle", "echo", "in"]).ok(), "in\n");
    node.docker(&["stop", "-t", "5", "idle"]).ok();
    assert_eq!(state(&node, "idle")["ExitCode"], 0);
    node.docker(&["start", "idle"]).ok();
    node.docker(&["kill", "idle"]).ok();
    comes_to(&node, "idle", "exited");
    assert_eq!(state(&node, "idle")["ExitCode"], 137);
    node.docker(&["start", "idle"]).ok();
    node.docker(&["rm", "-f", "idle"]).ok();
    assert_eq!(node.docker(&["ps", "-a", "-q"]).ok(), "");
    refused(&node, &["start", "idle"], 1, "No such container: idle");
    // There is no way to it from here.
    refused(&node, &["run", "--rm", "nosuchimage"], 125, "index.docker.io");
    node.finish();
}

#[test]
fn detached_output_can_be_attached_to() {
    let node = alone();
    node.docker(&[
        "run",
        "-d",
        "--name",
        "ticker",
        "busybox",
        "sh",
        "-c",
        "while sleep 0.1; do printf .; done",
    ])
    .ok();
    let mut command = node.docker_command(&["attach", "--sig-proxy=false", "ticker"]);
    let mut client = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut seen = [0; 5];
    std::io::Read::read_exact(client.stdout.as_mut().unwrap(), &mut seen).unwrap();
    assert_eq!(&seen, b".....", "as it is printed, not line by line");
    client.kill().unwrap();
    client.wait().unwrap();
    assert_eq!(state(&node, "ticker")["Running"], true, "the container goes on without its client");
    node.docker(&["rm", "-f", "ticker"]).ok();
    node.finish();
}

#[test]
fn a_terminal_is_a_terminal() {
    let node = alone();
    let run = "docker run -it --rm busybox sh -c 'test -t 0 && test -t 1 && echo yes; read x; echo got $x'";
    let mut command = std::process::Command::new("script");
    command.args(["-q", "-e", "-c", run, "/dev/null"]).env("DOCKER_HOST", node.host());
    let output = process::run(command, b"typed\n", PATIENCE);
    assert!(output.stdout.contains("yes") && output.stdout.contains("got typed"), "{output}");
    node.docker(&["create", "-t", "--name", "sized", "busybox", "sh", "-c", "sleep 1; stty size"]).ok();
    node.docker(&["start", "sized"]).ok();
    let answer = node.http("POST", "/containers/sized/resize?h=33&w=77", "").unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    node.docker(&["wait", "sized"]).ok();
    assert_eq!(node.docker(&["logs", "sized"]).ok().trim(), "33 77");
    node.docker(&["rm", "sized"]).ok();
    node.finish();
}

#[test]
fn policies_start_containers_again() {
    let node = alone();
    let fails = ["run", "-d", "--name", "fails", "--restart", "on-failure:2", "busybox", "false"];
    node.docker(&fails).ok();
    wait_until(PATIENCE, "it was tried three times", || {
        let detail = node.inspect("container", "fails");
        let over = detail["RestartCount"] == 2 && detail["State"]["Status"] == "exited";
        if over { Ok(()) } else { Err(format!("{:#}", detail["State"])) }
    });
    node.docker(&["run", "-d", "--name", "always", "--restart", "always", "busybox", "sleep", "0.2"]).ok();
    wait_until(PATIENCE, "it came back", || {
        let count = node.inspect("container", "always")["RestartCount"].as_u64();
        if count >= Some(2) { Ok(()) } else { Err(format!("{count:?}")) }
    });
    node.docker(&["stop", "always"]).ok();
    comes_to(&node, "always", "exited");
    let count = node.inspect("container", "always")["RestartCount"].as_u64();
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(node.inspect("container", "always")["RestartCount"].as_u64(), count, "a stop is a stop");
    let clash = ["run", "--rm", "--restart", "always", "busybox", "true"];
    refused(&node, &clash, 125, "--restart");
    node.docker(&["rm", "fails", "always"]).ok();
    node.finish();
}

#[test]
fn containers_outlive_the_daemon() {
    let mut node = alone();
    node.docker(&["run", "-d", "--name", "stays", "busybox", "idle"]).ok();
    let waits = ["run", "-d", "-i", "--name", "waits", "busybox", "sh", "-c", "read x; echo got $x; exit 5"];
    node.docker(&waits).ok();
    node.docker(&["run", "-d", "--name", "ends", "busybox", "sh", "-c", "sleep 3; exit 9"]).ok();
    node.docker(&["run", "-d", "--rm", "--name", "goes", "busybox", "sleep", "3"]).ok();
    let policy = ["run", "-d", "--name", "policy", "--restart", "unless-stopped", "busybox", "sleep", "3"];
    node.docker(&policy).ok();
    let pid = state(&node, "stays")["Pid"].as_u64();
    node.kill_daemon();
    std::thread::sleep(std::time::Duration::from_secs(4));
    node.start_daemon();
    assert_eq!(state(&node, "stays")["Pid"].as_u64(), pid, "it never noticed");
    let ended = state(&node, "ends");
    assert_eq!((&ended["Status"], &ended["ExitCode"]), (&"exited".into(), &9.into()), "{ended:#}");
    wait_until(PATIENCE, "what was to be removed at its end is gone", || {
        let left = node.docker(&["ps", "-a", "--format", "{{.Names}}"]).ok();
        if left.lines().any(|name| name == "goes") { Err(left) } else { Ok(()) }
    });
    comes_to(&node, "policy", "running");
    // The daemon that attaches is not the one that started it.
    let fed = node.docker_with_input(&["attach", "waits"], b"typed\n");
    assert_eq!((fed.code, fed.stdout.as_str()), (5, "got typed\n"), "{fed}");
    node.docker(&["rm", "-f", "stays", "waits", "ends", "policy"]).ok();
    node.finish();
}

#[test]
fn the_loggers_death_loses_no_interactive_container() {
    let mut node = alone();
    let waits =
        ["run", "-d", "-i", "--name", "waits", "busybox", "sh", "-c", "while sleep 0.1; do echo tick; done"];
    node.docker(&waits).ok();
    let loggers = node.helpers("log-shim");
    assert_eq!(loggers.len(), 1, "{loggers:?}");
    node.kill_daemon();
    process::signal(loggers[0], Signal::SIGKILL);
    node.start_daemon();
    let lines = || node.docker(&["logs", "waits"]).ok().lines().count();
    let before = lines();
    wait_until(PATIENCE, "its output is logged again", || {
        let now = lines();
        if now > before + 2 { Ok(()) } else { Err(format!("{before}, then {now}")) }
    });
    node.docker(&["rm", "-f", "waits"]).ok();
    node.finish();
}

#[test]
fn the_networks_that_every_node_has_are_what_they_say() {
    let node = alone();
    let page =
        node.docker(&["run", "--rm", "busybox", "wget", "-q", "-O-", &format!("http://{OUTSIDE_NAME}/")]);
    assert!(!page.ok().is_empty());
    let links = |network: &str| {
        node.docker(&["run", "--rm", "--network", network, "busybox", "ls", "/sys/class/net"]).ok()
    };
    assert_eq!(links("none").split_whitespace().collect::<Vec<_>>(), ["lo"]);
    let own =
        node.docker(&["run", "--rm", "--network", "host", "busybox", "readlink", "/proc/self/ns/net"]).ok();
    assert!(own.contains(&node.netns.inode().to_string()), "{own}");
    for (flags, text) in [
        (&["--privileged"][..], "HostConfig.Privileged of a container is not supported"),
        (&["-v", "data:/data:foo"], "option foo of a mount (data:/data:foo) is not supported"),
        (&["--network", "nosuch"], "network nosuch not found"),
    ] {
        refused(&node, &[&["run", "--rm"], flags, &["busybox", "true"]].concat(), 125, text);
    }
    node.finish();
}

#[test]
fn health_and_environment_are_the_containers_own() {
    let node = alone();
    std::fs::write(node.path("given"), "by a mount\n").unwrap();
    let bind = format!("{}:/given:ro", node.path("given").display());
    let flags = [
        "run",
        "--rm",
        "-e",
        "A=b",
        "--hostname",
        "me",
        "--add-host",
        "db:10.9.8.7",
        "-v",
        &bind,
        "-w",
        "/tmp",
    ];
    let script = "echo $A; hostname; grep db /etc/hosts; cat /given; pwd";
    let seen = node.docker(&[&flags[..], &["busybox", "sh", "-c", script]].concat()).ok();
    assert_eq!(seen, "b\nme\n10.9.8.7\tdb\nby a mount\n/tmp\n");
    let check = ["--health-cmd", "test ! -e /tmp/ill", "--health-interval", "200ms", "--health-retries", "2"];
    node.docker(&[&["run", "-d", "--name", "well"], &check[..], &["busybox", "idle"]].concat()).ok();
    let is = |wanted: &str| {
        wait_until(PATIENCE, wanted, || {
            let seen = state(&node, "well")["Health"]["Status"].clone();
            if seen == wanted { Ok(()) } else { Err(seen.to_string()) }
        });
    };
    is("healthy");
    node.docker(&["exec", "well", "touch", "/tmp/ill"]).ok();
    is("unhealthy");
    assert_eq!(state(&node, "well")["Running"], true, "nobody replaces a plain container");
    node.docker(&["rm", "-f", "well"]).ok();
    node.finish();
}
