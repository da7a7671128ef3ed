//! Lists, and what `--filter` leaves of them.

use std::collections::BTreeSet;

use shoal_e2e::{Cluster, PATIENCE, wait_until};

struct Stage {
    cluster: Cluster,
}

impl Stage {
    fn list(&self, command: &str, format: &str, filters: &[&str]) -> BTreeSet<String> {
        let words: Vec<&str> = command.split(' ').chain(["--format", format]).collect();
        let flags: Vec<&str> = filters.iter().flat_map(|filter| ["--filter", *filter]).collect();
        let text = self.cluster.docker(&[words, flags].concat()).ok();
        text.lines().map(str::to_owned).collect()
    }

    #[track_caller]
    fn names(&self, command: &str, filters: &[&str], expected: &[&str]) {
        let expected: BTreeSet<String> = expected.iter().map(|name| (*name).to_owned()).collect();
        let column = if command.starts_with("node ls") { "{{.Hostname}}" } else { "{{.Name}}" };
        assert_eq!(self.list(command, column, filters), expected, "{command} {filters:?}");
    }
}

#[test]
fn every_list_is_filtered_by_what_docker_filters_it_by() {
    let stage = Stage { cluster: Cluster::start(2) };
    let cluster = &stage.cluster;
    cluster.docker(&["network", "create", "-d", "overlay", "--label", "a=b", "mynet"]).ok();
    cluster.docker(&["node", "update", "--label-add", "zone=north", "node2"]).ok();
    cluster.service("web", 2, &["--label", "tier=front", "--network", "mynet"], &["idle"]);
    cluster
        .docker(&["service", "create", "-d", "--name", "everywhere", "--mode", "global", "busybox", "idle"])
        .ok();
    for mode in ["replicated-job", "global-job"] {
        let name = format!("a-{mode}");
        cluster.docker(&["service", "create", "--name", &name, "--mode", mode, "busybox", "true"]).ok();
    }
    wait_until(PATIENCE, "all is there", || match cluster.containers("everywhere").len() {
        2 => Ok(()),
        other => Err(other.to_string()),
    });
    let id = |kind: &str, name: &str, key: &str| {
        cluster.manager().inspect(kind, name)[key].as_str().unwrap().to_owned()
    };

    let services = "service ls";
    stage.names(services, &["mode=replicated"], &["web"]);
    stage.names(services, &["mode=global"], &["everywhere"]);
    stage.names(services, &["mode=replicated-job"], &["a-replicated-job"]);
    stage.names(services, &["mode=global-job"], &["a-global-job"]);
    stage.names(services, &["label=tier"], &["web"]);
    stage.names(services, &["label=tier=back"], &[]);
    stage.names(services, &["name=a-"], &["a-replicated-job", "a-global-job"]);
    stage.names(services, &[&format!("id={}", &id("service", "web", "ID")[..8])], &["web"]);

    let tasks = "service ps web";
    stage.names(tasks, &["node=node2"], &tasks_on(&stage, "node2"));
    stage.names(tasks, &["name=web.1"], &["web.1"]);
    stage.names(tasks, &["desired-state=running"], &["web.1", "web.2"]);
    stage.names(tasks, &["desired-state=shutdown"], &[]);
    let first = stage.list("service ps web --no-trunc", "{{.ID}}", &["name=web.1"]).pop_first().unwrap();
    stage.names(tasks, &[&format!("id={first}")], &["web.1"]);
    let on_node = stage.list("node ps node2", "{{.Name}}", &["desired-state=running"]);
    assert!(on_node.iter().any(|name| name.starts_with("web.")), "{on_node:?}");

    let nodes = "node ls";
    stage.names(nodes, &["role=worker"], &["node2"]);
    stage.names(nodes, &["role=manager"], &["node1"]);
    stage.names(nodes, &["name=node"], &["node1", "node2"]);
    stage.names(nodes, &["node.label=zone"], &["node2"]);
    stage.names(nodes, &["node.label=zone=south"], &[]);
    stage.names(nodes, &["membership=accepted"], &["node1", "node2"]);
    stage.names(nodes, &[&format!("id={}", id("node", "node2", "ID"))], &["node2"]);

    let networks = "network ls";
    stage.names(networks, &["driver=overlay"], &["ingress", "mynet"]);
    stage.names(networks, &["scope=swarm", "type=custom"], &["ingress", "mynet"]);
    stage.names(networks, &["label=a=b"], &["mynet"]);
    stage.names(networks, &["name=mynet"], &["mynet"]);
    stage.names(networks, &[&format!("id={}", id("network", "mynet", "Id"))], &["mynet"]);

    for list in [services, nodes, networks, tasks] {
        let words: Vec<&str> = list.split(' ').collect();
        let refused = cluster.docker(&[&words[..], &["--filter", "colour=red"]].concat());
        let text = "Error response from daemon: Invalid filter 'colour'";
        assert!(
            refused.code == 1 && refused.stderr.to_lowercase().contains(&text.to_lowercase()),
            "{refused}"
        );
    }
    stage.cluster.finish();
}

/// The tasks of `web` on a node, by the column that says so.
fn tasks_on(stage: &Stage, node: &str) -> Vec<&'static str> {
    let listed = stage.list("service ps web", "{{.Name}} {{.Node}}", &[]);
    ["web.1", "web.2"].into_iter().filter(|name| listed.contains(&format!("{name} {node}"))).collect()
}
