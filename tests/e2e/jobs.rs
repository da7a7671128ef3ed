//! Jobs: what the docker client waits for and shows, on real nodes.

use shoal_e2e::{Cluster, Node, PATIENCE, wait_until};

fn listed(node: &Node, service: &str) -> String {
    let listed = node.docker(&["service", "ls", "--format", "{{.Name}} {{.Mode}} {{.Replicas}}"]).ok();
    let line = listed.lines().find(|line| line.starts_with(&format!("{service} ")));
    line.unwrap_or(&listed).to_owned()
}

#[test]
fn a_replicated_job_is_waited_for_and_executed_anew_on_demand() {
    let node = Node::cluster();
    let create = ["service", "create", "--name", "job", "--mode", "replicated-job"];
    let numbers = ["--replicas", "3", "--max-concurrent", "2"];
    let told = node.docker(&[&create[..], &numbers, &["busybox", "true"]].concat()).ok();
    assert!(told.contains("job complete"), "{told}");
    assert_eq!(listed(&node, "job"), "job replicated job 0/2 (3/3 completed)");
    let ps = node.docker(&["service", "ps", "--format", "{{.DesiredState}} {{.CurrentState}}", "job"]).ok();
    assert_eq!(ps.matches("Complete Complete").count(), 3, "{ps}");
    let shown = node.inspect("service", "job");
    assert_eq!(shown["JobStatus"]["JobIteration"], serde_json::json!({}), "{shown:#}");

    node.docker(&["service", "update", "--force", "--quiet", "job"]).ok();
    let shown = node.inspect("service", "job");
    assert_eq!(shown["JobStatus"]["JobIteration"]["Index"], 1, "{shown:#}");
    assert_eq!(listed(&node, "job"), "job replicated job 0/2 (3/3 completed)");
    let scaled = node.docker(&["service", "scale", "job=4"]).ok();
    assert!(scaled.contains("job scaled to 4") && scaled.contains("job complete"), "{scaled}");
    assert_eq!(listed(&node, "job"), "job replicated job 0/2 (4/4 completed)");

    let update = ["service", "update", "--update-parallelism", "2", "job"];
    let refused = node.docker(&update);
    assert!(refused.code == 1 && refused.stderr.contains("Jobs may not have an update config"), "{refused}");
    node.finish();
}

#[test]
fn what_fails_is_tried_again_until_the_policy_says_no() {
    let node = Node::cluster();
    let job = |name: &str, flags: &[&str], command: &str| {
        let create = ["service", "create", "-d", "--name", name, "--mode", "replicated-job"];
        let words = ["--restart-delay", "100ms"];
        node.docker(&[&create[..], &words, flags, &["busybox", "sh", "-c", command]].concat()).ok();
    };
    // Succeeds at the third try.
    let once = node.path("tries").display().to_string();
    std::fs::create_dir_all(node.path("tries")).unwrap();
    let mount = format!("type=bind,source={once},target=/tries");
    job("again", &["--mount", &mount], "echo x >> /tries/n; test $(wc -l < /tries/n) -ge 3");
    job("never", &["--restart-max-attempts", "1"], "exit 3");
    wait_until(PATIENCE, "the job is done at last", || match listed(&node, "again") {
        line if line.ends_with("(1/1 completed)") => Ok(()),
        line => Err(line),
    });
    let ps = wait_until(PATIENCE, "the other one has been given up", || {
        let ps = node.docker(&["service", "ps", "--no-trunc", "never"]).ok();
        if ps.matches("task: non-zero exit (3)").count() == 2 { Ok(ps) } else { Err(ps) }
    });
    assert!(listed(&node, "never").ends_with("0/1 (0/1 completed)"), "{ps}");
    node.finish();
}

#[test]
fn a_global_job_runs_once_on_every_node() {
    let cluster = Cluster::start(2);
    let create = ["service", "create", "--name", "gjob", "--mode", "global-job", "busybox"];
    let told = cluster.docker(&[&create[..], &["echo", "done here"]].concat()).ok();
    assert!(told.contains("job complete"), "{told}");
    assert_eq!(listed(cluster.manager(), "gjob"), "gjob global job 0/0 (2/2 completed)");
    let ps = cluster.docker(&["service", "ps", "--format", "{{.Node}} {{.CurrentState}}", "gjob"]).ok();
    for node in ["node1", "node2"] {
        assert_eq!(ps.matches(&format!("{node} Complete")).count(), 1, "{ps}");
    }
    let output = wait_until(PATIENCE, "what both said can be read", || {
        let output = cluster.docker(&["service", "logs", "gjob"]).ok();
        if output.matches("done here").count() == 2 { Ok(output) } else { Err(output) }
    });
    assert!(output.contains("node1") && output.contains("node2"), "{output}");
    cluster.finish();
}
