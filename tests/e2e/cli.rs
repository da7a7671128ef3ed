//! Our own client verbs say and do what docker's do.

use serde_json::Value;
use shoal_e2e::{Node, PATIENCE, image, wait_until};

#[test]
fn the_walk_through_without_docker() {
    let node = Node::start();
    let said = node.shoal(&["swarm", "init", "--advertise-addr", "192.0.2.10"]).ok();
    assert!(said.contains(") is now a manager."), "{said}");
    assert_same(&node, &["node", "ls"]);
    assert_same(&node, &["swarm", "join-token", "worker"]);
    assert_same(&node, &["swarm", "join-token", "-q", "manager"]);
    let tar = node.path("busybox.tar");
    std::fs::write(&tar, image::root_file_system()).unwrap();
    let imported = node.shoal(&["image", "import", tar.to_str().unwrap(), "busybox"]).ok();
    assert!(imported.contains("sha256:"), "{imported}");
    assert_same(&node, &["image", "ls", "-q"]);
    assert_eq!(node.shoal(&["network", "create", "-d", "overlay", "mynet"]).ok().trim().len(), 25);
    assert_same(&node, &["network", "ls"]);
    let created = node.shoal(&[
        "service",
        "create",
        "--network",
        "mynet",
        "--name",
        "web",
        "--replicas",
        "2",
        "busybox",
        "serve",
    ]);
    assert!(created.ok().contains("converged"));
    assert_same(&node, &["service", "ls"]);
    assert_same(&node, &["service", "inspect", "web"]);
    let tasks = node.shoal(&["service", "ps", "web"]).ok();
    assert!(tasks.contains("web.1") && tasks.contains("web.2"), "{tasks}");

    let fetched = node.shoal(&["exec", "web.1", "wget", "-q", "-O-", "http://web/index.html"]).ok();
    assert_eq!(fetched, "busybox\n");
    assert_eq!(node.shoal(&["exec", "web.1", "sh", "-c", "exit 9"]).code, 9);
    let scaled = node.shoal(&["service", "scale", "web=1"]).ok();
    assert!(scaled.starts_with("web scaled to 1"), "{scaled}");
    node.running("web", 1);
    assert_eq!(node.shoal(&["service", "rm", "web"]).ok(), "web\n");
    let missing = node.shoal(&["service", "rm", "web"]);
    assert_eq!(
        (missing.code, missing.stderr.trim()),
        (1, "Error response from daemon: service web not found")
    );
    node.finish();
}

/// The same words through either client.
#[track_caller]
fn assert_same(node: &Node, arguments: &[&str]) {
    let clean = |text: String| text.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>();
    assert_eq!(clean(node.shoal(arguments).ok()), clean(node.docker(arguments).ok()), "{arguments:?}");
}

#[test]
fn the_node_tells_what_it_holds_and_what_the_kernel_holds() {
    let node = Node::cluster();
    node.network("mynet");
    node.service("web", 2, &["--network", "mynet"], &["idle"]);
    let report = wait_until(PATIENCE, "the table of mynet is reported", || {
        let text = node.shoal(&["node", "tables", "--format", "json"]).ok();
        let reports: Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
        let found =
            reports.as_array().into_iter().flatten().find(|report| report["name"] == "mynet").cloned();
        found.ok_or(text)
    });
    assert!(report.get("version").is_some(), "{report:#}");
    assert_eq!((&report["held"]["vips"], &report["held"]["backends"]), (&1.into(), &2.into()), "{report:#}");
    assert_eq!(report["read_back"], report["held"], "{report:#}");
    let table = node.shoal(&["node", "tables"]).ok();
    assert!(table.contains("mynet"), "{table}");
    node.finish();
}

#[test]
fn doctor_finds_this_machine_fit() {
    let node = Node::start();
    let report = node.shoal_local("doctor");
    assert_eq!(report.code, 0, "{report}");
    node.finish();
}

#[test]
fn version_and_unreachable_daemons() {
    let version = std::process::Command::new(shoal_e2e::shoal()).arg("--version").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&version.stdout), format!("shoal {}\n", env!("CARGO_PKG_VERSION")));
    let lost = std::process::Command::new(shoal_e2e::shoal())
        .args(["-H", "unix:///nowhere/shoal.sock", "service", "ls"])
        .output()
        .unwrap();
    assert_eq!(lost.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&lost.stderr)
            .contains("Cannot connect to the Shoal daemon at unix:///nowhere/shoal.sock")
    );
}
