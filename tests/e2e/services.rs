//! Desired state: tasks that die, scale, sicken or get stuck, and what the user is told.

use nix::sys::signal::Signal;
use shoal_e2e::{Node, PATIENCE, process, wait_until};

fn ps(node: &Node, service: &str) -> String {
    node.docker(&["service", "ps", "--no-trunc", service]).ok()
}

#[test]
fn a_dead_task_is_replaced_in_its_slot() {
    let node = Node::cluster();
    node.network("mynet");
    let flags = ["--network", "mynet", "--restart-delay", "100ms"];
    let before = node.service("web", 2, &flags, &["idle"]);
    process::signal(before[0].pid, Signal::SIGKILL);
    let after = wait_until(PATIENCE, "slot 1 has another container", || {
        let now = node.containers("web");
        let replaced = now.len() == 2 && now[0].id != before[0].id;
        if replaced { Ok(now) } else { Err(ps(&node, "web")) }
    });
    assert!(after[0].name.starts_with("web.1."), "{}", after[0].name);
    assert_eq!(after[1].id, before[1].id, "the other slot was left alone");
    let told = ps(&node, "web");
    assert!(told.contains("\\_ web.1") && told.contains("task: non-zero exit (137)"), "{told}");
    node.finish();
}

#[test]
fn a_task_that_ended_well_is_replaced_or_not_as_asked() {
    let node = Node::cluster();
    node.network("mynet");
    let once =
        ["service", "create", "-d", "--name", "once", "--restart-condition", "none", "--network", "mynet"];
    node.docker(&[&once[..], &["busybox", "true"]].concat()).ok();
    let told = wait_until(PATIENCE, "the task completes", || {
        let told = ps(&node, "once");
        if told.contains("Complete") { Ok(told) } else { Err(told) }
    });
    assert_eq!(told.matches("once.1").count(), 1, "{told}");
    let always =
        ["service", "create", "-d", "--name", "always", "--restart-delay", "10ms", "--network", "mynet"];
    node.docker(&[&always[..], &["busybox", "false"]].concat()).ok();
    wait_until(PATIENCE, "failed tasks are kept as history", || {
        let told = ps(&node, "always");
        if told.matches("task: non-zero exit (1)").count() >= 3 { Ok(()) } else { Err(told) }
    });
    node.finish();
}

#[test]
fn attempts_are_counted_and_the_past_is_kept_as_long_as_the_cluster_says() {
    let node = Node::cluster();
    node.docker(&["swarm", "update", "--task-history-limit", "2"]).ok();
    let create = ["service", "create", "-d", "--restart-delay", "10ms", "--name"];
    let fails = ["busybox", "false"];
    node.docker(&[&create[..], &["ever"], &fails].concat()).ok();
    let few = ["few", "--restart-max-attempts", "3", "--restart-window", "10m"];
    node.docker(&[&create[..], &few, &fails].concat()).ok();
    wait_until(PATIENCE, "it is given up after its attempts", || {
        let told = ps(&node, "few");
        let failed = told.matches("task: non-zero exit (1)").count();
        if failed == 4 && !told.contains("Running") { Ok(()) } else { Err(told) }
    });
    let count = || ps(&node, "ever").lines().skip(1).count();
    let newest = || node.docker(&["service", "ps", "-q", "ever"]).ok().lines().next().map(str::to_owned);
    let before = newest();
    wait_until(PATIENCE, "the other one goes on", || {
        let now = newest();
        if now != before { Ok(()) } else { Err(format!("{now:?}")) }
    });
    assert!(count() <= 3, "two that are kept, one that is on its way: {}", ps(&node, "ever"));
    assert_eq!(ps(&node, "few").matches("task: non-zero exit (1)").count(), 4, "kept for what was counted");
    node.finish();
}

#[test]
fn scaling_changes_only_what_it_must() {
    let node = Node::cluster();
    node.network("mynet");
    let two = node.service("web", 2, &["--network", "mynet"], &["idle"]);
    node.docker(&["service", "scale", "-d", "web=5"]).ok();
    let five = node.running("web", 5);
    assert!(two.iter().all(|old| five.iter().any(|new| new.id == old.id)), "the first two stayed");
    let mut addresses: Vec<_> = five.iter().map(|task| task.address("mynet")).collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 5, "an address of its own for each");
    node.docker(&["service", "scale", "-d", "web=1"]).ok();
    let one = node.running("web", 1);
    assert!(five.iter().any(|old| old.id == one[0].id), "the survivor was there before");
    let listed = node.docker(&["service", "ls", "--format", "{{.Name}} {{.Replicas}}"]).ok();
    assert_eq!(listed.trim(), "web 1/1");
    node.finish();
}

#[test]
fn health_decides_who_is_found_and_who_is_replaced() {
    let node = Node::cluster();
    node.network("mynet");
    let client = node.service("client", 1, &["--network", "mynet"], &["idle"])[0].netns();
    let flags = [
        "--network",
        "mynet",
        "--health-cmd",
        "test -f /tmp/ok",
        "--health-interval",
        "200ms",
        "--health-retries",
        "3",
        "--health-start-period",
        "60s",
        "--restart-delay",
        "100ms",
    ];
    let web = &node.service("web", 1, &flags, &["idle"])[0];
    let status = || node.docker(&["ps", "--format", "{{.Names}} {{.Status}}"]).ok();
    wait_until(PATIENCE, "it is shown as starting", || {
        let shown = status();
        if shown.contains("(health: starting)") { Ok(()) } else { Err(shown) }
    });
    assert!(ps(&node, "web").contains("Starting"), "{}", ps(&node, "web"));
    node.resolves(&client, "tasks.web", vec![]);

    node.exec(web, &["touch", "/tmp/ok"]).ok();
    node.resolves(&client, "tasks.web", vec![web.address("mynet").into()]);
    let shown = status();
    assert!(shown.contains("(healthy)"), "{shown}");
    let health = node.inspect("container", &web.id)["State"]["Health"].clone();
    assert_eq!(health["Status"], "healthy", "{health:#}");

    node.exec(web, &["rm", "/tmp/ok"]).ok();
    let replacement = wait_until(PATIENCE, "the sick task is replaced", || {
        let now = node.containers("web");
        let found = now.into_iter().find(|task| task.id != web.id);
        found.ok_or_else(|| ps(&node, "web"))
    });
    let told = ps(&node, "web");
    assert!(told.contains("unhealthy"), "the reason is told: {told}");
    node.exec(&replacement, &["touch", "/tmp/ok"]).ok();
    node.resolves(&client, "tasks.web", vec![replacement.address("mynet").into()]);
    node.finish();
}

#[test]
fn a_restarted_daemon_trusts_no_task_that_was_never_healthy() {
    let mut node = Node::cluster();
    node.network("mynet");
    let client = node.service("client", 1, &["--network", "mynet"], &["idle"])[0].netns();
    let flags = ["--network", "mynet", "--health-cmd", "false", "--health-interval", "200ms"];
    let start_period = ["--health-start-period", "600s"];
    node.service("web", 1, &[&flags[..], &start_period].concat(), &["idle"]);
    node.kill_daemon();
    node.start_daemon();
    wait_until(PATIENCE, "it is probed again", || {
        let shown = node.docker(&["ps", "--format", "{{.Names}} {{.Status}}"]).ok();
        if shown.contains("(health: starting)") { Ok(()) } else { Err(shown) }
    });
    assert!(ps(&node, "web").contains("Starting"), "{}", ps(&node, "web"));
    node.resolves(&client, "tasks.web", vec![]);
    node.finish();
}

#[test]
fn a_stuck_task_says_why() {
    let node = Node::cluster();
    node.network("mynet");
    let create = |name: &str, flags: &[&str], image: &str| {
        let fixed = ["service", "create", "-d", "--name", name, "--network", "mynet"];
        node.docker(&[&fixed[..], flags, &[image, "idle"]].concat()).ok();
    };
    let told = |name: &str, words: &str| {
        wait_until(PATIENCE, &format!("{name} says {words:?}"), || {
            let told = ps(&node, name);
            if told.contains(words) { Ok(()) } else { Err(told) }
        });
    };
    create("noimage", &[], "nosuchimage:1.2");
    told("noimage", "No such image: nosuchimage:1.2");
    create("nowhere", &["--constraint", "node.labels.zone==mars"], "busybox");
    told("nowhere", "no suitable node (scheduling constraints not satisfied on 1 node)");
    create("huge", &["--reserve-memory", "1000G"], "busybox");
    told("huge", "no suitable node (insufficient resources on 1 node)");

    // A network with room for its gateway, one VIP and one task.
    node.docker(&["network", "create", "-d", "overlay", "--subnet", "10.77.0.0/29", "tiny"]).ok();
    node.docker(&[
        "service",
        "create",
        "-d",
        "--name",
        "full",
        "--replicas",
        "8",
        "--network",
        "tiny",
        "busybox",
        "idle",
    ])
    .ok();
    told("full", "address");
    node.finish();
}
