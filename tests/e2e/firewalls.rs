//! Other programs' firewalls on the nodes: honoured, found, told with the rule that helps.

use std::path::Path;

use serde_json::Value;
use shoal_e2e::process;
use shoal_e2e::web::fetch;
use shoal_e2e::{Cluster, NODE, Node, OUTSIDE, PATIENCE, shoal, wait_until};

use crate::containers::alone;
use crate::locals::{netns, run};

const PAGE: &str = "/index.html";

/// Puts a rule set of another program into a node's namespace.
fn load(node: &Node, name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("firewalls/{name}.nft"));
    let output = node.netns.command("nft").arg("-f").arg(path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The tables that are not ours, without counters.
fn foreign(node: &Node) -> String {
    let output = node.netns.command("nft").args(["--stateless", "list", "ruleset"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let tables = text.split("table ").filter(|table| !table.contains(" shoal {")).map(str::trim);
    tables.collect::<Vec<_>>().join("\n")
}

/// What `shoal doctor` finds wrong with a node's firewalls: what is dropped, and the command that helps.
fn doctor(node: &Node) -> Vec<(String, String)> {
    let mut command = node.netns.command(shoal().to_str().unwrap());
    let data_dir = node.data_dir().display().to_string();
    command.args(["-H", &node.host(), "doctor", "--json", "--data-dir", &data_dir]);
    let output = process::run(command, b"", PATIENCE);
    let checks: Value =
        serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output}"));
    let text = |check: &Value, key: &str| check[key].as_str().unwrap_or_default().to_owned();
    let firewalls = checks.as_array().into_iter().flatten().filter(|check| check["name"] == "firewall");
    let wrong = firewalls.filter(|check| check["ok"] == false);
    wrong.map(|check| (text(check, "detail"), text(check, "remedy"))).collect()
}

/// A rule set that lies on both nodes stops the mesh where it says so, the doctor knows why, and what it says helps.
fn is_found_and_helped(name: &str) {
    let cluster = Cluster::start(2);
    let place = ["--constraint", "node.hostname==node2", "--publish", "8000:80"];
    cluster.web("app", 1, &place);
    let world = &cluster.world.netns;
    let reach = |node: &Node| {
        let address = node.address();
        world.run(move || fetch((address, 8000), PAGE))
    };
    let reached = |node: &Node| wait_until(PATIENCE, "the port answers", || reach(node));
    cluster.nodes().for_each(|node| drop(reached(node)));
    cluster.nodes().for_each(|node| assert_eq!(doctor(node), []));

    cluster.nodes().for_each(|node| load(node, name));
    let before: Vec<String> = cluster.nodes().map(foreign).collect();
    reach(cluster.node(1)).expect_err("the drop is honoured");
    cluster.each(Node::tables_are_true);
    let after: Vec<String> = cluster.nodes().map(foreign).collect();
    assert_eq!(before, after, "others' rules are theirs");
    for node in cluster.nodes() {
        let found = doctor(node);
        assert!(!found.is_empty(), "nothing is found on {}", node.options.name);
        for (detail, remedy) in &found {
            assert!(detail.contains(" drops "), "{detail}");
            let help = node.netns.command("sh").args(["-c", remedy]).output().unwrap();
            assert!(help.status.success(), "{remedy}: {}", String::from_utf8_lossy(&help.stderr));
        }
        assert_eq!(doctor(node), [], "after {found:#?}");
    }
    cluster.nodes().for_each(|node| drop(reached(node)));
    cluster.each(Node::tables_are_true);
    for node in cluster.nodes() {
        let flushed = node.netns.command("sh").args(["-c", &removal(node)]).status().unwrap();
        assert!(flushed.success());
    }
    cluster.finish();
}

/// Takes the tables away that are not ours: the end of a test asks whether anything is left.
fn removal(node: &Node) -> String {
    let output = node.netns.command("nft").args(["list", "tables"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let foreign = text.lines().filter(|table| !table.ends_with(" shoal"));
    foreign
        .map(|table| format!("nft delete {table}"))
        .chain(["true".to_owned()])
        .collect::<Vec<_>>()
        .join(" && ")
}

#[test]
fn dockers_rules_are_found_and_what_the_doctor_says_helps() {
    is_found_and_helped("docker");
}

#[test]
fn ufws_rules_are_found_and_what_the_doctor_says_helps() {
    is_found_and_helped("ufw");
}

#[test]
fn firewallds_rules_are_found_and_what_the_doctor_says_helps() {
    is_found_and_helped("firewalld");
}

#[test]
fn what_is_said_helps_containers_on_a_bridge_too() {
    let node = alone();
    node.docker(&["network", "create", "near"]).ok();
    run(&node, "web", &["--network", "near", "--publish", "8000:80"], "serve");
    let reach = || node.world.netns.run(|| fetch((NODE, 8000), PAGE));
    reach().expect("the port answers");
    assert_eq!(doctor(&node), []);
    load(&node, "ufw");
    reach().expect_err("the drop is honoured");
    let found = doctor(&node);
    assert!(found.iter().any(|(_, remedy)| remedy.contains("\"br-")), "{found:#?}");
    for (_, remedy) in &found {
        assert!(node.netns.command("sh").args(["-c", remedy]).status().unwrap().success(), "{remedy}");
    }
    assert_eq!(doctor(&node), [], "after {found:#?}");
    reach().expect("what the doctor says helps");
    assert!(netns(&node, "web").run(|| fetch((OUTSIDE, 80), "/")).is_ok());
    assert!(node.netns.command("sh").args(["-c", &removal(&node)]).status().unwrap().success());
    node.docker(&["rm", "-f", "web"]).ok();
    node.docker(&["network", "rm", "near"]).ok();
    node.finish();
}

/// The daemon says it as well, once.
#[test]
fn the_daemon_warns_of_a_firewall_that_was_there_before_it() {
    let mut node = Node::start();
    node.stop_daemon();
    load(&node, "docker");
    node.start_daemon();
    node.init();
    let warning = "another program's firewall drops what the cluster needs";
    wait_until(PATIENCE, "the daemon warns", || {
        let log = node.log();
        if log.contains(warning) { Ok(()) } else { Err(log) }
    });
    assert_eq!(node.log().matches(warning).count(), 1);
    assert!(node.log().contains("insert rule ip filter DOCKER-USER"), "{}", node.log_tail());
    let removed = node.netns.command("sh").args(["-c", &removal(&node)]).status().unwrap();
    assert!(removed.success());
    node.finish();
}
