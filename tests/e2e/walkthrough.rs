//! The reference walk-through, command by command, with Docker's words.

use shoal_e2e::{Node, OUTSIDE, OUTSIDE_NAME, image, wait_until};

/// Lines that start alike may differ behind a column; this compares words.
#[track_caller]
fn has_words(text: &str, words: &[&str]) {
    let found = text.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.windows(words.len()).any(|window| window == words)
    });
    assert!(found, "no line with {words:?} in:\n{text}");
}

#[test]
fn the_reference_walk_through() {
    let node = Node::start();
    let said = node.docker(&["swarm", "init", "--advertise-addr", "192.0.2.10"]).ok();
    assert!(said.starts_with("Swarm initialized: current node ("), "{said}");
    assert!(said.contains(") is now a manager."), "{said}");
    has_words(&node.docker(&["node", "ls"]).ok(), &["*", "node1", "Ready", "Active", "Leader"]);
    let info =
        node.docker(&["info", "--format", "{{.Swarm.LocalNodeState}} {{.Swarm.ControlAvailable}}"]).ok();
    assert_eq!(info.trim(), "active true");
    node.import_busybox();

    let id = node.docker(&["network", "create", "-d", "overlay", "mynet"]).ok();
    assert_eq!(id.trim().len(), 25, "{id}");
    has_words(&node.docker(&["network", "ls"]).ok(), &["mynet", "overlay", "swarm"]);
    has_words(&node.docker(&["network", "ls"]).ok(), &["ingress", "overlay", "swarm"]);
    let network = node.inspect("network", "mynet");
    assert_eq!(network["IPAM"]["Config"][0]["Subnet"], "10.0.1.0/24");

    // Without --detach: progress until the service has been stable for its monitoring period.
    let created = node.docker(&[
        "service",
        "create",
        "--network",
        "mynet",
        "--name",
        "myservice",
        "--replicas",
        "2",
        "busybox",
        "ping",
        "localhost",
    ]);
    assert_eq!(created.stderr, "", "no warning: the image is here");
    let created = created.ok();
    let service = created.lines().next().unwrap().to_owned();
    assert_eq!(service.len(), 25, "{created}");
    assert!(created.contains("overall progress: 2 out of 2 tasks"), "{created}");
    // Clients differ in whether they name the service here.
    assert!(created.contains("verify: Service ") && created.trim_end().ends_with(" converged"), "{created}");

    let detail = node.inspect("service", "myservice");
    let addresses = detail["Endpoint"]["VirtualIPs"].as_array().unwrap().clone();
    assert_eq!(addresses.len(), 1);
    assert_eq!(addresses[0]["NetworkID"], id.trim());
    let vip = addresses[0]["Addr"].as_str().unwrap().to_owned();
    assert!(vip.starts_with("10.0.1.") && vip.ends_with("/24"), "{vip}");
    let pretty = node.docker(&["service", "inspect", "--pretty", "myservice"]).ok();
    for words in
        [&["Service", "Mode:", "Replicated"][..], &["Networks:", "mynet"], &["Endpoint", "Mode:", "vip"]]
    {
        has_words(&pretty, words);
    }

    has_words(&node.docker(&["service", "ls"]).ok(), &["myservice", "replicated", "2/2", "busybox:latest"]);
    let tasks = node.docker(&["service", "ps", "myservice"]).ok();
    has_words(&tasks, &["myservice.1", "busybox:latest", "node1", "Running", "Running"]);
    has_words(&tasks, &["myservice.2", "busybox:latest", "node1", "Running", "Running"]);
    let logs = wait_until(shoal_e2e::PATIENCE, "both tasks have logged", || {
        let logs = node.docker(&["service", "logs", "--tail", "3", "myservice"]).ok();
        let both = logs.contains("myservice.1.") && logs.contains("myservice.2.");
        if both { Ok(logs) } else { Err(logs) }
    });
    assert!(logs.contains("@node1    | 64 bytes from 127.0.0.1"), "{logs}");
    has_words(&node.docker(&["ps"]).ok(), &["busybox:latest", "\"ping", "localhost\""]);

    a_client_resolves_and_fetches(&node, vip.trim_end_matches("/24"));
    scaling_and_removing(&node);
    node.finish();
}

fn a_client_resolves_and_fetches(node: &Node, vip: &str) {
    node.service("web", 2, &["--network", "mynet"], &["serve"]);
    node.service("rr", 2, &["--network", "mynet", "--endpoint-mode", "dnsrr"], &["serve"]);
    let app = ["--network", "mynet", "--publish", "8000:80"];
    node.service("app", 2, &app, &["serve"]);
    let client = &node.service("client", 1, &["--network", "mynet"], &["idle"])[0];
    let answer = node.exec(client, &["nslookup", "myservice"]).ok();
    assert!(answer.contains("127.0.0.11") && answer.contains(vip), "{answer}");

    let mut answered = std::collections::BTreeSet::new();
    wait_until(shoal_e2e::PATIENCE, "both tasks of web have answered", || {
        let who = node.exec(client, &["wget", "-q", "-O-", "http://web/cgi-bin/who"]).ok();
        answered.insert(who.split_whitespace().next().unwrap_or_default().to_owned());
        if answered.len() == 2 { Ok(()) } else { Err(format!("{answered:?}")) }
    });
    let answer = node.exec(client, &["wget", "-q", "-O-", &format!("http://{OUTSIDE_NAME}/")]).ok();
    assert_eq!(answer.trim(), "outside saw 192.0.2.10", "the way out is masqueraded");
    let answer = node.exec(client, &["nslookup", OUTSIDE_NAME]).ok();
    assert!(answer.contains(&OUTSIDE.to_string()), "{answer}");

    let members: Vec<String> =
        node.running("rr", 2).iter().map(|task| task.address("mynet").to_string()).collect();
    let answer = node.exec(client, &["nslookup", "rr"]).ok();
    assert!(members.iter().all(|member| answer.contains(member)), "{members:?} in {answer}");
    has_words(
        &node.docker(&["service", "ls"]).ok(),
        &["app", "replicated", "2/2", "busybox:latest", "*:8000->80/tcp"],
    );
}

fn scaling_and_removing(node: &Node) {
    let scaled = node.docker(&["service", "scale", "myservice=3"]).ok();
    assert!(scaled.starts_with("myservice scaled to 3"), "{scaled}");
    assert!(scaled.contains("converged"), "{scaled}");
    has_words(&node.docker(&["service", "ls"]).ok(), &["myservice", "replicated", "3/3"]);
    assert_eq!(node.docker(&["service", "rm", "myservice"]).ok(), "myservice\n");
    node.running("client", 1);
    wait_until(shoal_e2e::PATIENCE, "its containers are gone", || {
        let left = node.containers("myservice");
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    let refused = node.docker(&["swarm", "leave"]);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("Use `--force` to ignore this message."), "{refused}");
}

#[test]
fn mistakes_are_answered_in_dockers_words() {
    const NO_SWARM: &str = "Error response from daemon: This node is not a swarm manager. Use \"docker swarm init\" or \
                            \"docker swarm join\" to connect this node to swarm and try again.";
    let node = Node::start();
    let refused = |arguments: &[&str], code: i32, words: &str| {
        let answer = node.docker(arguments);
        assert_eq!(answer.code, code, "{answer}");
        assert!(answer.stderr.contains(words), "wanted {words:?} in:\n{answer}");
    };
    // Clients before 23 have words of their own for what the daemon does not find.
    let unknown = |arguments: &[&str], kind: &str, words: &str| {
        let answer = node.docker(arguments);
        let own = format!("Error: No such {kind}: nosuch");
        assert_eq!(answer.code, 1, "{answer}");
        assert!(answer.stderr.contains(words) || answer.stderr.contains(&own), "{answer}");
    };
    for command in [
        &["network", "create", "-d", "overlay", "mynet"][..],
        &["service", "ls"],
        &["node", "ls"],
        &["service", "create", "--name", "x", "busybox"],
    ] {
        refused(command, 1, NO_SWARM);
    }
    refused(&["swarm", "leave"], 1, "Error response from daemon: This node is not part of a swarm");

    node.docker(&["swarm", "init", "--advertise-addr", "192.0.2.10"]).ok();
    node.import_busybox();
    node.network("mynet");
    node.service("taken", 1, &["--network", "mynet", "--publish", "8000:80"], &["idle"]);
    refused(&["swarm", "init"], 1, "This node is already part of a swarm. Use \"docker swarm leave\"");
    refused(&["network", "create", "-d", "overlay", "mynet"], 1, "network with name mynet already exists");
    refused(&["network", "create", "-d", "nosuchdriver", "x"], 1, "plugin \"nosuchdriver\" not found");
    refused(&["network", "create", "-d", "overlay", "--opt", "encrypted", "x"], 1, "encrypted");
    unknown(&["network", "inspect", "nosuch"], "network", "network nosuch not found");
    refused(&["network", "rm", "mynet"], 1, "rpc error: code = FailedPrecondition desc = network ");
    refused(
        &["service", "create", "--name", "taken", "busybox"],
        1,
        "rpc error: code = AlreadyExists desc = name conflicts with an existing object: service taken already exists",
    );
    refused(
        &["service", "create", "--name", "my.svc", "busybox"],
        1,
        "rpc error: code = InvalidArgument desc = name must be valid as a DNS name component",
    );
    refused(
        &["service", "create", "--publish", "8000:80", "--name", "other", "busybox"],
        1,
        "rpc error: code = InvalidArgument desc = port '8000' is already in use by service 'taken'",
    );
    unknown(&["service", "create", "--network", "nosuch", "busybox"], "network", "network nosuch not found");
    refused(&["service", "inspect", "nosuch"], 1, "no such service: nosuch");
    refused(&["service", "ps", "nosuch"], 1, "no such service: nosuch");
    let not_found = "Error response from daemon: service nosuch not found";
    unknown(&["service", "rm", "nosuch"], "service", not_found);
    unknown(&["service", "scale", "nosuch=2"], "service", &format!("nosuch: {not_found}"));
    refused(&["service", "logs", "nosuch"], 1, "no such task or service: nosuch");
    let not_found = "Error response from daemon: No such container: nosuch";
    unknown(&["exec", "nosuch", "true"], "container", not_found);
    refused(&["image", "inspect", "nosuch"], 1, "No such image: nosuch");
    node.finish();
}

#[test]
fn images_come_in_every_format() {
    let node = Node::cluster();
    let loaded = node.docker_with_input(&["load"], &image::docker_archive("archived:1")).ok();
    assert_eq!(loaded.trim(), "Loaded image: archived:1");
    let loaded = node.docker_with_input(&["load"], &image::oci_layout("docker.io/library/layout:2")).ok();
    assert_eq!(loaded.trim(), "Loaded image: layout:2");
    let imported = node.docker_with_input(
        &["import", "-c", "CMD [\"idle\"]", "-", "imported:3"],
        &image::root_file_system(),
    );
    let imported = imported.ok();
    assert!(imported.trim().starts_with("sha256:") && imported.trim().len() == 71, "{imported}");
    node.docker(&["tag", "archived:1", "renamed/it:4"]).ok();
    let listed = node.docker(&["image", "ls", "--format", "{{.Repository}}:{{.Tag}}"]).ok();
    for name in ["archived:1", "layout:2", "imported:3", "renamed/it:4", "busybox:latest"] {
        assert!(listed.lines().any(|line| line == name), "{name} in {listed}");
    }
    let detail = node.inspect("image", "layout:2");
    assert_eq!(detail["Config"]["Cmd"][0], "idle");
    assert_eq!(detail["Architecture"], "amd64");

    node.network("mynet");
    for (number, name) in ["archived:1", "layout:2", "imported:3", "renamed/it:4"].iter().enumerate() {
        let service = format!("from{number}");
        node.docker(&["service", "create", "-d", "--name", &service, "--network", "mynet", name]).ok();
        let container = &node.running(&service, 1)[0];
        assert_eq!(node.exec(container, &["echo", "runs"]).ok(), "runs\n");
    }
    let container = &node.running("from1", 1)[0];
    assert_eq!(node.exec(container, &["sh", "-c", "echo $FROM_IMAGE; pwd"]).ok(), "yes\n/root\n");
    node.finish();
}
