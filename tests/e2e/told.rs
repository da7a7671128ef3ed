//! What services say, and what happened to them: `service logs` and `events` across nodes.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use shoal_e2e::{Cluster, Node, PATIENCE, wait_until};

use crate::containers::alone;
use crate::locals::run;

/// Two tasks on two nodes; each says its host name, and then a line whenever its file has one.
fn talkers(cluster: &Cluster) {
    let script =
        "echo hello from $(hostname); while :; do cat /tmp/say 2>/dev/null && rm /tmp/say; sleep 0.1; done";
    cluster.service("talker", 2, &["--hostname", "{{.Node.Hostname}}"], &["sh", "-c", script]);
    wait_until(PATIENCE, "both have spoken", || {
        let output = cluster.docker(&["service", "logs", "talker"]).ok();
        if output.matches("hello from").count() == 2 { Ok(()) } else { Err(output) }
    });
}

fn say(cluster: &Cluster, slot: usize, what: &str) {
    let task = &cluster.running("talker", 2)[slot];
    let node = cluster.node(task.node);
    node.exec(task, &["sh", "-c", &format!("echo {what} > /tmp/say.new; mv /tmp/say.new /tmp/say")]).ok();
}

/// The lines a command of docker prints while it goes on.
struct Following {
    child: Child,
    lines: Receiver<String>,
}

impl Following {
    fn start(node: &Node, arguments: &[&str]) -> Self {
        let mut child = node.docker_command(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Self { child, lines }
    }

    /// Waits for a line with these words; all lines until then.
    #[track_caller]
    fn until(&self, words: &str) -> Vec<String> {
        let mut seen = Vec::new();
        while let Ok(line) = self.lines.recv_timeout(PATIENCE) {
            seen.push(line);
            if seen.last().is_some_and(|line| line.contains(words)) {
                return seen;
            }
        }
        panic!("no line with {words:?} in {seen:#?}")
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_log_of_a_service_is_that_of_its_tasks_on_all_nodes() {
    let cluster = Cluster::start(2);
    talkers(&cluster);
    let logs = |flags: &[&str]| {
        let text = cluster.docker(&[&["service", "logs"], flags, &["talker"]].concat()).ok();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let plain = logs(&[]);
    for (slot, node) in [(1, "node1"), (2, "node2")] {
        let begins = format!("talker.{slot}.");
        let line =
            plain.iter().find(|line| line.starts_with(&begins)).unwrap_or_else(|| panic!("{plain:#?}"));
        let (head, text) = line.split_once('|').unwrap();
        let place = if text.contains("node1") { "node1" } else { "node2" };
        assert!(head.trim().ends_with(&format!("@{place}")), "{line}");
        assert!(plain.iter().any(|line| line.ends_with(&format!("hello from {node}"))), "{plain:#?}");
    }
    assert_eq!(logs(&["--raw"]), ["hello from node1", "hello from node2"]);
    let ids = logs(&["--no-resolve", "--no-trunc"]);
    let node = cluster.manager().inspect("node", "self")["ID"].as_str().unwrap().to_owned();
    assert!(ids.iter().any(|line| line.contains(&format!("@{node}"))), "{ids:#?}");
    let named = logs(&["--no-task-ids"]);
    assert!(named.iter().any(|line| line.starts_with("talker.1@")), "{named:#?}");
    let detailed = logs(&["--raw", "--details"]);
    assert!(detailed.iter().all(|line| line.contains("com.docker.swarm.task.id=")), "{detailed:#?}");

    let between = now();
    let follower = Following::start(cluster.manager(), &["service", "logs", "--follow", "--raw", "talker"]);
    say(&cluster, 0, "one");
    follower.until("one");
    say(&cluster, 1, "two");
    follower.until("two");
    assert_eq!(logs(&["--raw", "--since", &between]), ["one", "two"]);
    let last = logs(&["--raw", "--tail", "1"]);
    assert_eq!(last, ["one", "two"], "of each task");
    let stamped = logs(&["--raw", "--timestamps", "--tail", "1"]);
    assert!(stamped.iter().all(|line| line.starts_with("20") && line.contains("Z ")), "{stamped:#?}");

    let task = cluster.docker(&["service", "ps", "-q", "--no-trunc", "talker"]).ok();
    let task = task.lines().next().unwrap();
    let one = cluster.docker(&["service", "logs", "--raw", task]).ok();
    assert_eq!(one.matches("hello from").count(), 1, "of one task: {one}");
    cluster.finish();
}

/// Now, as docker's `--since` takes it.
fn now() -> String {
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    format!("{}.{:09}", time.as_secs(), time.subsec_nanos())
}

#[test]
fn what_happens_to_services_nodes_and_networks_is_told() {
    let cluster = Cluster::start(2);
    let begun = now();
    let format = ["--format", "{{.Type}} {{.Action}} {{.Scope}} {{json .Actor.Attributes}}"];
    // Since a moment, so that nothing is missed while the client starts.
    let all = Following::start(cluster.manager(), &[&["events", "--since", &begun], &format[..]].concat());
    cluster.manager().network("mynet");
    all.until(r#"network create swarm {"name":"mynet"}"#);
    cluster.service("web", 1, &["--network", "mynet", "--label", "tier=front"], &["idle"]);
    all.until("service create swarm");
    cluster.docker(&["service", "scale", "-d", "web=4"]).ok();
    let scaled = all.until("replicas.new");
    let scaled = scaled.last().unwrap();
    assert!(scaled.contains(r#""replicas.new":"4""#) && scaled.contains(r#""replicas.old":"1""#), "{scaled}");
    all.until("container start local");
    cluster.docker(&["node", "update", "--availability", "drain", "node2"]).ok();
    let drained = all.until("availability.new");
    assert!(drained.last().unwrap().contains(r#""availability.new":"drain""#), "{drained:#?}");
    cluster.docker(&["service", "rm", "web"]).ok();
    all.until("service remove swarm");
    wait_until(PATIENCE, "the network is free", || {
        let removed = cluster.docker(&["network", "rm", "mynet"]);
        if removed.code == 0 { Ok(()) } else { Err(removed.to_string()) }
    });
    all.until("network remove swarm");

    let told = |filters: &[&str]| {
        let until = now();
        let flags: Vec<&str> = filters.iter().flat_map(|filter| ["--filter", *filter]).collect();
        let times = ["events", "--since", &begun, "--until", &until, "--format", "{{.Type}} {{.Action}}"];
        let text = cluster.docker(&[&times[..], &flags].concat()).ok();
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let services = told(&["type=service"]);
    let ends = (services.first().map(String::as_str), services.last().map(String::as_str));
    assert_eq!(ends, (Some("service create"), Some("service remove")), "{services:#?}");
    assert_eq!(told(&["service=web", "event=create"]), ["service create"]);
    assert_eq!(told(&["network=mynet"]), ["network create", "network remove"]);
    assert!(told(&["node=node2"]).iter().all(|line| line == "node update"));
    assert!(told(&["scope=local"]).iter().all(|line| line.starts_with("container ")));
    assert!(told(&["type=container", "label=com.docker.swarm.service.name=web"]).len() >= 2);
    assert!(told(&["type=container", "label=com.docker.swarm.service.name=nosuch"]).is_empty());
    cluster.finish();
}

#[test]
fn what_happens_to_networks_and_who_joins_them_is_told() {
    let node = alone();
    let since = format!("{:.9}", std::time::UNIX_EPOCH.elapsed().unwrap().as_secs_f64());
    let id = node.docker(&["network", "create", "near"]).ok().trim().to_owned();
    node.docker(&["network", "create", "far"]).ok();
    let container = run(&node, "web", &["--network", "near"], "idle");
    node.docker(&["network", "connect", "far", "web"]).ok();
    node.docker(&["network", "disconnect", "far", "web"]).ok();
    node.docker(&["rm", "-f", "web"]).ok();
    node.docker(&["network", "rm", "near", "far"]).ok();
    let until = format!("{:.9}", std::time::UNIX_EPOCH.elapsed().unwrap().as_secs_f64());
    let format = "{{.Action}} {{.Actor.Attributes.name}} {{.Actor.Attributes.container}}";
    let told = |kind: &str| {
        let kind = format!("type={kind}");
        node.docker(&["events", "--since", &since, "--until", &until, "--filter", &kind, "--format", format])
            .ok()
    };
    let expected = [
        "create near <no value>".to_owned(),
        "create far <no value>".to_owned(),
        format!("connect near {container}"),
        format!("connect far {container}"),
        format!("disconnect far {container}"),
        format!("disconnect near {container}"),
        "destroy near <no value>".to_owned(),
        "destroy far <no value>".to_owned(),
    ];
    let told_of = told("network");
    assert_eq!(told_of.lines().collect::<Vec<_>>(), expected, "{told_of}");
    let actor = node
        .docker(&[
            "events",
            "--since",
            &since,
            "--until",
            &until,
            "--filter",
            "network=near",
            "--format",
            "{{.Actor.ID}} {{.Actor.Attributes.type}} {{.Scope}}",
        ])
        .ok();
    assert!(actor.lines().all(|line| line == format!("{id} bridge local")), "{actor}");
    node.finish();
}
