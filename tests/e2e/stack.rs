//! `docker stack`: an application of several services from a Compose file, changed in place.

use std::collections::BTreeMap;

use shoal_e2e::{Node, PATIENCE, wait_until};

const COMPOSE: &str = r#"
version: "3.8"
services:
  web:
    image: busybox
    command: serve
    ports: ["8080:80"]
    networks: [front, back]
    configs:
      - source: site_SITE
        target: /www/site.txt
        mode: 0444
    environment:
      COLOR: "COLOUR"
    healthcheck:
      test: wget -q -O /dev/null http://127.0.0.1/index.html
      interval: 300ms
      retries: 5
    deploy:
      replicas: REPLICAS
      labels: { tier: web }
      update_config: { parallelism: 1, delay: 100ms, order: start-first, monitor: 500ms }
      rollback_config: { parallelism: 0 }
      restart_policy: { condition: on-failure, delay: 200ms, max_attempts: 5, window: 60s }
      resources:
        limits: { cpus: "0.50", memory: 64M }
        reservations: { memory: 8M }
      placement:
        constraints: ["node.role == manager"]
  api:
    image: busybox
    command: serve
    hostname: "api-{{.Task.Slot}}"
    networks:
      back: { aliases: [backend] }
      shared: {}
    secrets:
      - db_password
      - source: outside
        target: token
        uid: "65534"
        mode: 0400
    environment:
      PASSWORD_FILE: /run/secrets/db_password
    stop_grace_period: 2s
    deploy:
      replicas: 2
      endpoint_mode: dnsrr
  db:
    image: busybox
    command: idle
    networks: [back]
    secrets: [db_password]
    volumes:
      - data:/var/data
      - type: tmpfs
        target: /scratch
    deploy:
      placement: { max_replicas_per_node: 1 }
EXTRA
networks:
  front: {}
  back:
    driver: overlay
    attachable: true
  shared:
    external: true
secrets:
  db_password:
    file: ./password.txt
  outside:
    external: true
configs:
  site_SITE:
    file: ./site.txt
volumes:
  data:
    labels: { keep: "yes" }
"#;

const CRON: &str = "  cron:\n    image: busybox\n    command: idle\n    networks: [back]\n";

/// Writes the file with these values and deploys it.
fn deploy(node: &Node, flags: &[&str], values: &[(&str, &str)]) -> String {
    let mut text = COMPOSE.to_owned();
    for (key, value) in values {
        text = text.replace(key, value);
    }
    std::fs::write(node.path("stack.yml"), text).unwrap();
    let file = node.path("stack.yml").display().to_string();
    node.docker(&[&["stack", "deploy", "-c", &file], flags, &["app"]].concat()).ok()
}

#[track_caller]
fn sorted(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

fn replicas(node: &Node) -> BTreeMap<String, String> {
    let listed = node.docker(&["stack", "services", "--format", "{{.Name}} {{.Replicas}}", "app"]).ok();
    listed.lines().filter_map(|line| line.split_once(' ')).map(|(a, b)| (a.into(), b.into())).collect()
}

#[track_caller]
fn settled(node: &Node, wanted: &[(&str, &str)]) {
    let wanted: BTreeMap<String, String> =
        wanted.iter().map(|(name, count)| ((*name).to_owned(), (*count).to_owned())).collect();
    wait_until(PATIENCE, "every service has its tasks", || {
        let seen = replicas(node);
        let told = || node.docker(&["stack", "ps", "--no-trunc", "app"]);
        if seen == wanted { Ok(()) } else { Err(format!("{seen:?}\n{}\n{}", told(), node.log_tail())) }
    });
}

#[test]
fn an_application_is_deployed_changed_in_place_and_removed() {
    let node = Node::cluster();
    std::fs::write(node.path("password.txt"), "sesame").unwrap();
    std::fs::write(node.path("site.txt"), "one\n").unwrap();
    let first = [("SITE", "v1"), ("COLOUR", "red"), ("REPLICAS", "2"), ("EXTRA", CRON)];
    // What is external has to be there, as with Docker.
    let file = node.path("stack.yml").display().to_string();
    std::fs::write(
        &file,
        first.iter().fold(COMPOSE.to_owned(), |text, (key, value)| text.replace(key, value)),
    )
    .unwrap();
    let missing = node.docker(&["stack", "deploy", "-c", &file, "app"]);
    assert!(
        missing.code != 0 && missing.stderr.contains("network \"shared\" is declared as external"),
        "{missing}"
    );
    node.network("shared");
    node.docker_with_input(&["secret", "create", "outside", "-"], b"token").ok();

    let made = deploy(&node, &[], &first);
    let expect = [
        "Creating config app_site_v1",
        "Creating network app_back",
        "Creating network app_front",
        "Creating secret app_db_password",
        "Creating service app_api",
        "Creating service app_cron",
        "Creating service app_db",
        "Creating service app_web",
    ];
    assert_eq!(sorted(&made), expect);
    settled(
        &node,
        &[("app_api", "2/2"), ("app_cron", "1/1"), ("app_db", "1/1 (max 1 per node)"), ("app_web", "2/2")],
    );
    assert_eq!(node.docker(&["stack", "ls", "--format", "{{.Name}} {{.Services}}"]).ok().trim(), "app 4");
    let tasks = node.docker(&["stack", "ps", "--format", "{{.Name}} {{.DesiredState}}", "app"]).ok();
    assert_eq!(tasks.lines().filter(|line| line.ends_with("Running")).count(), 6, "{tasks}");

    let web = node.serving("app_web", 2);
    assert_eq!(node.exec(&web[0], &["cat", "/www/site.txt"]).ok(), "one\n");
    assert_eq!(node.exec(&web[0], &["sh", "-c", "echo $COLOR"]).ok(), "red\n");
    let shown = node.inspect("service", "app_web")["Spec"].clone();
    assert_eq!(shown["Labels"]["tier"], "web");
    assert_eq!(shown["TaskTemplate"]["Resources"]["Limits"]["NanoCPUs"], 500_000_000, "{shown:#}");
    assert_eq!(shown["UpdateConfig"]["Order"], "start-first");
    let api = node.running("app_api", 2);
    assert_eq!(node.exec(&api[0], &["sh", "-c", "cat $PASSWORD_FILE; hostname"]).ok(), "sesameapi-1\n");
    assert_eq!(node.exec(&api[0], &["stat", "-c", "%u %a", "/run/secrets/token"]).ok(), "65534 400\n");
    // Services meet by their short names, on the networks they share.
    node.resolves(
        &web[0].netns(),
        "backend",
        api.iter().map(|task| task.address("app_back").into()).collect(),
    );
    node.resolves(&web[0].netns(), "db", vec![node.vip_on("app_db", Some("app_back")).into()]);
    let db = &node.running("app_db", 1)[0];
    node.exec(db, &["sh", "-c", "echo kept > /var/data/file && touch /scratch/x"]).ok();
    assert_eq!(node.inspect("volume", "app_data")["Labels"]["keep"], "yes");

    // Another config, environment and number; a service less.
    std::fs::write(node.path("site.txt"), "two\n").unwrap();
    let changed =
        deploy(&node, &["--prune"], &[("SITE", "v2"), ("COLOUR", "blue"), ("REPLICAS", "3"), ("EXTRA", "")]);
    assert!(
        changed.contains("Creating config app_site_v2") && changed.contains("Removing service app_cron"),
        "{changed}"
    );
    assert!(changed.contains("Updating service app_web (id: "), "{changed}");
    let web = wait_until(PATIENCE, "every task is new", || {
        let now = node.containers("app_web");
        let is_new = |task: &shoal_e2e::Container| {
            task.is_healthy() && node.exec(task, &["cat", "/www/site.txt"]).stdout == "two\n"
        };
        let all = now.len() == 3 && now.iter().all(is_new);
        if all { Ok(now) } else { Err(node.docker(&["stack", "ps", "--no-trunc", "app"]).to_string()) }
    });
    assert_eq!(node.exec(&web[2], &["sh", "-c", "echo $COLOR"]).ok(), "blue\n");
    settled(&node, &[("app_api", "2/2"), ("app_db", "1/1 (max 1 per node)"), ("app_web", "3/3")]);
    let same: Vec<_> = node.running("app_api", 2).into_iter().map(|task| task.id).collect();
    assert_eq!(
        same,
        api.iter().map(|task| task.id.clone()).collect::<Vec<_>>(),
        "what did not change is left alone"
    );

    let removed = node.docker(&["stack", "rm", "app"]).ok();
    for line in [
        "service app_web",
        "secret app_db_password",
        "config app_site_v1",
        "config app_site_v2",
        "network app_back",
    ] {
        assert!(removed.contains(&format!("Removing {line}")), "{removed}");
    }
    node.has_no_container();
    wait_until(PATIENCE, "its networks are gone", || {
        let left = node.docker(&["network", "ls", "--filter", "name=app_", "--format", "{{.Name}}"]).ok();
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    assert_eq!(node.docker(&["secret", "ls", "--format", "{{.Name}}"]).ok(), "outside\n");
    assert_eq!(node.docker(&["config", "ls", "-q"]).ok(), "");
    assert_eq!(node.docker(&["volume", "ls", "-q"]).ok(), "app_data\n", "data outlives its stack");
    node.finish();
}

#[test]
fn a_stack_that_is_not_there_is_told() {
    let node = Node::cluster();
    for command in [["stack", "rm", "st9"], ["stack", "services", "st9"]] {
        let told = node.docker(&command);
        assert_eq!(told.stderr.trim(), "Nothing found in stack: st9", "{command:?}: {told}");
    }
    let told = node.docker(&["stack", "ps", "st9"]);
    assert!(told.code == 1 && told.stderr.contains("nothing found in stack: st9"), "{told}");
    assert_eq!(node.docker(&["stack", "ls", "--format", "{{.Name}}"]).ok(), "");
    node.finish();
}
