//! Services on the host network.

use serde_json::Value;
use shoal_e2e::web::fetch;
use shoal_e2e::{NODE, Netns, Node, PATIENCE, wait_until};

fn host_service(node: &Node, replicas: usize) -> Vec<shoal_e2e::Container> {
    node.service("onhost", replicas, &["--network", "host"], &["serve"])
}

/// The task's server is the node's own: at the node's address, seen from outside, with the node's names.
#[test]
fn a_task_on_the_host_network_is_in_the_nodes_own_namespace() {
    let mut node = Node::cluster();
    let task = host_service(&node, 1).remove(0);
    assert_eq!(Netns::of_process(task.pid).inode(), node.netns.inode());
    wait_until(PATIENCE, "it answers at the node's address", || {
        node.world.netns.run(|| fetch((NODE, 80), "/index.html")).map(drop)
    });
    let resolv = node.exec(&task, &["cat", "/etc/resolv.conf"]).ok();
    assert_eq!(resolv, std::fs::read_to_string(node.path("resolv.conf")).unwrap());
    let own = std::fs::read_to_string("/etc/hosts").unwrap();
    assert_eq!(node.exec(&task, &["cat", "/etc/hosts"]).ok(), own);
    assert_eq!(node.exec(&task, &["hostname"]).ok(), "node1\n");

    // As Docker shows it: no address, the node's network of that name.
    assert_eq!(task.detail["HostConfig"]["NetworkMode"], "host");
    let networks = task.detail["NetworkSettings"]["Networks"].as_object().unwrap();
    assert_eq!(networks.keys().collect::<Vec<_>>(), ["host"]);
    assert_eq!(networks["host"]["IPAddress"], "");
    assert_eq!(networks["host"]["NetworkID"], node.inspect("network", "host")["Id"]);
    let service = node.inspect("service", "onhost");
    assert_eq!(service["Endpoint"]["VirtualIPs"], Value::Null);
    let pretty = node.docker(&["service", "inspect", "--pretty", "onhost"]).ok();
    assert!(pretty.contains("Networks: host"), "{pretty}");
    assert_eq!(node.docker(&["network", "ls", "-q", "--filter", "name=host"]).ok().lines().count(), 1);

    node.kill_daemon();
    node.start_daemon();
    assert_eq!(node.running("onhost", 1)[0].pid, task.pid, "taken over like any other");
    node.finish();
}

#[test]
fn what_the_host_network_cannot_do_is_refused() {
    let node = Node::cluster();
    node.network("mynet");
    let create = |flags: &[&str]| {
        let fixed = ["service", "create", "-d", "--name", "onhost", "--network", "host"];
        let refused = node.docker(&[&fixed[..], flags, &["busybox", "idle"]].concat());
        assert_eq!(refused.code, 1, "{refused}");
        refused.stderr
    };
    assert!(
        create(&["--publish", "8000:80"]).contains("ports cannot be published for tasks on the host network")
    );
    assert!(
        create(&["--network", "mynet"]).contains("the host network cannot be joined together with others")
    );
    let removed = node.docker(&["network", "rm", "host"]);
    assert!(removed.stderr.contains("host is a pre-defined network and cannot be removed"), "{removed}");
    // A sysctl of the network would be the node's.
    let flags =
        ["--network", "host", "--sysctl", "net.ipv4.ip_default_ttl=33", "--restart-condition", "none"];
    let fixed = ["service", "create", "-d", "--name", "onhost"];
    node.docker(&[&fixed[..], &flags, &["busybox", "idle"]].concat()).ok();
    wait_until(PATIENCE, "the task says why", || {
        let told = node.docker(&["service", "ps", "--no-trunc", "onhost"]).ok();
        if told.contains("is not allowed on the host network") { Ok(()) } else { Err(told) }
    });
    node.finish();
}
