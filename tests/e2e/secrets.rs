//! Secrets and configs: what users do with them, what tasks find, and what nobody else does.

use std::path::Path;

use shoal_e2e::{Cluster, Container, Node, PATIENCE, wait_until};

/// Found nowhere by accident.
const HUSH: &str = "correct-horse-battery-staple";

fn create(node: &Node, kind: &str, flags: &[&str], name: &str, value: &str) -> String {
    let made = node.docker_with_input(&[&[kind, "create"], flags, &[name, "-"]].concat(), value.as_bytes());
    made.ok().trim().to_owned()
}

fn refusal(node: &Node, arguments: &[&str]) -> String {
    let output = node.docker_with_input(arguments, b"x");
    assert_ne!(output.code, 0, "{output}");
    output.stderr
}

/// What a file in a container says, and `mode uid gid` of it.
#[track_caller]
fn read(node: &Node, task: &Container, path: &str) -> (String, String) {
    let text = node.exec(task, &["cat", path]).ok();
    (text, node.exec(task, &["stat", "-c", "%a %u %g", path]).ok().trim().to_owned())
}

/// Events are told from half a second after a cluster began, at the latest.
fn events_are_told(node: &Node) {
    let mut tries = 0;
    wait_until(PATIENCE, "an event is told", || {
        tries += 1;
        let id = create(node, "secret", &[], &format!("try{tries}"), "x");
        node.docker(&["secret", "rm", &id]).ok();
        let told = node.docker(&["events", "--since", "1h", "--until", "0s"]).ok();
        if told.contains("secret create") { Ok(()) } else { Err(told) }
    });
}

#[test]
fn they_are_made_listed_shown_labelled_and_removed() {
    let node = Node::cluster();
    events_are_told(&node);
    for kind in ["secret", "config"] {
        let id = create(&node, kind, &["--label", "tier=db"], "one", "value");
        assert_eq!(id.len(), 25, "{id}");
        create(&node, kind, &[], "two", "other");
        assert_eq!(node.docker(&[kind, "ls", "--format", "{{.Name}}"]).ok().lines().count(), 2);
        let only = |filter: &str| {
            node.docker(&[kind, "ls", "--filter", filter, "--format", "{{.Name}} {{.Labels}}"]).ok()
        };
        for filter in ["label=tier=db", "name=on", &format!("id={}", &id[..8])] {
            assert_eq!(only(filter).trim(), "one tier=db", "{filter}");
        }
        let taken = refusal(&node, &[kind, "create", "one", "-"]);
        let expect = format!("rpc error: code = AlreadyExists desc = {kind} one already exists");
        assert!(taken.contains(&expect), "{taken}");
        for name in ["one", &id, &id[..10]] {
            assert_eq!(node.inspect(kind, name)["ID"], id, "by {name}");
        }
        let data = &node.inspect(kind, "one")["Spec"]["Data"];
        match kind {
            "config" => assert_eq!(data, "dmFsdWU="),
            _ => assert!(data.is_null(), "the value of a secret is told: {data}"),
        }
        assert!(node.docker(&[kind, "inspect", "--pretty", "one"]).ok().contains("tier=db"));
        let version = node.inspect(kind, "one")["Version"]["Index"].clone();
        let change = |version: u64, body: &str| {
            node.http("POST", &format!("/v1.41/{kind}s/one/update?version={version}"), body).unwrap()
        };
        let version = version.as_u64().unwrap();
        let renamed = change(version, r#"{"Name":"three"}"#);
        assert!(
            renamed.contains("400") && renamed.contains("only updates to Labels are allowed"),
            "{renamed}"
        );
        let labelled = change(version, r#"{"Name":"one","Labels":{"tier":"web"}}"#);
        assert!(labelled.starts_with("HTTP/1.1 200"), "{labelled}");
        let stale = change(version, r#"{"Name":"one"}"#);
        assert!(stale.contains("update out of sequence"), "{stale}");
        assert_eq!(only("label=tier=web").trim(), "one tier=web");
        assert_eq!(node.docker(&[kind, "rm", "one", "two"]).ok(), "one\ntwo\n");
        let gone = refusal(&node, &[kind, "rm", "one"]);
        assert!(gone.contains(&format!("{kind} one not found")), "{gone}");
        let events = ["events", "--since", "1h", "--until", "0s", "--filter"];
        wait_until(PATIENCE, "the events are told", || {
            let told = node.docker(&[&events[..], &[&format!("type={kind}")]].concat()).ok();
            let words = |action: &&str| format!("{kind} {action} {id} (name=one)");
            let all = ["create", "update", "remove"].iter().all(|action| told.contains(&words(action)));
            if all { Ok(()) } else { Err(told) }
        });
    }
    let unknown = refusal(&node, &["service", "create", "--name", "s1", "--secret", "nosuch", "busybox"]);
    assert_eq!(unknown.trim(), "secret not found: nosuch");
    node.finish();
}

#[test]
fn a_task_finds_them_as_files_it_cannot_change() {
    let node = Node::cluster();
    create(&node, "secret", &[], "password", HUSH);
    create(&node, "secret", &[], "key", "k");
    create(&node, "config", &[], "site", "listen 80\n");
    let flags = [
        ["--secret", "password"],
        ["--secret", "source=key,target=/etc/ssl/app.key,uid=65534,gid=65534,mode=0400"],
        ["--secret", "source=key,target=deep/key"],
        ["--config", "site"],
        ["--config", "source=site,target=/etc/web/site.conf,mode=0440"],
        ["--read-only", "--init"],
    ];
    let task = &node.service("app", 1, flags.as_flattened(), &["idle"])[0];
    let owned = |text: &str, owner: &str| (text.to_owned(), owner.to_owned());
    assert_eq!(read(&node, task, "/run/secrets/password"), owned(HUSH, "444 0 0"));
    assert_eq!(read(&node, task, "/etc/ssl/app.key"), owned("k", "400 65534 65534"));
    assert_eq!(read(&node, task, "/run/secrets/deep/key"), owned("k", "444 0 0"));
    assert_eq!(read(&node, task, "/site"), owned("listen 80\n", "444 0 0"));
    assert_eq!(read(&node, task, "/etc/web/site.conf"), owned("listen 80\n", "440 0 0"));
    for path in ["/run/secrets/password", "/run/secrets/new", "/site"] {
        let written = node.exec(task, &["sh", "-c", &format!("echo x > {path}")]);
        assert!(written.code != 0 && written.stderr.contains("Read-only"), "{written}");
    }
    let mounts = node.exec(task, &["cat", "/proc/mounts"]).ok();
    let is_tmpfs = |path: &str| mounts.lines().any(|line| line.contains(&format!(" {path} tmpfs ro,")));
    assert!(is_tmpfs("/run/secrets") && is_tmpfs("/site"), "{mounts}");

    let shown = node.inspect("service", "app")["Spec"]["TaskTemplate"]["ContainerSpec"].clone();
    let mut files = shown["Secrets"].as_array().unwrap().iter().map(|secret| &secret["File"]);
    let key = files.find(|file| file["Name"] == "/etc/ssl/app.key").unwrap();
    assert_eq!((&key["UID"], &key["Mode"]), (&"65534".into(), &0o400.into()), "{shown:#}");
    let pretty = node.docker(&["service", "inspect", "--pretty", "app"]).ok();
    assert!(pretty.contains("Secrets:") && pretty.contains("deep/key"), "{pretty}");
    assert!(pretty.contains("Configs:") && pretty.contains("/etc/web/site.conf"), "{pretty}");
    let used = refusal(&node, &["secret", "rm", "password"]);
    let expect = "code = InvalidArgument desc = secret 'password' is in use by the following service: app";
    assert!(used.contains(expect), "{used}");

    // Another value is another secret, and the task is replaced.
    create(&node, "secret", &[], "password2", "new");
    let change = [
        "--secret-rm",
        "password",
        "--secret-add",
        "source=password2,target=password",
        "--config-rm",
        "site",
    ];
    node.docker(&[&["service", "update", "-d"], &change[..], &["app"]].concat()).ok();
    let after = wait_until(PATIENCE, "the task is replaced", || {
        let now = node.containers("app");
        let replaced = now.len() == 1 && now[0].id != task.id;
        if replaced { Ok(now) } else { Err(node.docker(&["service", "ps", "app"]).to_string()) }
    });
    assert_eq!(read(&node, &after[0], "/run/secrets/password").0, "new");
    node.docker(&["secret", "rm", "password"]).ok();
    node.docker(&["service", "rm", "app"]).ok();
    node.has_no_container();
    node.docker(&["secret", "rm", "password2", "key"]).ok();
    node.docker(&["config", "rm", "site"]).ok();
    node.finish();
}

#[test]
fn templates_are_filled_in_for_each_task_or_refused() {
    let node = Node::cluster();
    create(&node, "secret", &[], "password", HUSH);
    let text = "{{.Service.Name}}.{{.Task.Slot}} {{env \"COLOR\"}} {{secret \"pw\"}}\n";
    create(&node, "config", &["--template-driver", "golang"], "tmpl", text);
    assert_eq!(node.inspect("config", "tmpl")["Spec"]["Templating"]["Name"], "golang");
    create(&node, "config", &[], "raw", text);
    let flags = [
        ["--secret", "source=password,target=pw"],
        ["--config", "tmpl"],
        ["--config", "raw"],
        ["--env", "COLOR=red-{{.Task.Slot}}"],
    ];
    for task in node.service("app", 2, flags.as_flattened(), &["idle"]) {
        let slot = task.name.split('.').nth(1).unwrap();
        assert_eq!(node.exec(&task, &["cat", "/tmpl"]).ok(), format!("app.{slot} red-{slot} {HUSH}\n"));
        assert_eq!(node.exec(&task, &["cat", "/raw"]).ok(), text);
    }
    create(&node, "config", &["--template-driver", "golang"], "bad", "{{range .Nobody}}");
    node.create_service("sad", 1, &["--config", "bad", "--restart-condition", "none"], &["idle"]);
    wait_until(PATIENCE, "the reason is told", || {
        let told = node.docker(&["service", "ps", "--no-trunc", "sad"]).ok();
        let expect = "cannot fill in config bad: {{range .Nobody}} stands for nothing";
        if told.contains(expect) && told.contains("Rejected") { Ok(()) } else { Err(told) }
    });
    node.finish();
}

/// The files below a directory that contain a text, tmpfs of containers aside.
fn files_with(directory: &Path, text: &str) -> Vec<String> {
    let output = std::process::Command::new("grep")
        .args(["-rlaF", "--exclude-dir=deposits", text])
        .arg(directory)
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn no_disk_holds_them_and_no_node_that_has_no_use_for_them() {
    let mut cluster = Cluster::start(3);
    create(cluster.manager(), "secret", &[], "password", HUSH);
    create(cluster.manager(), "config", &["--template-driver", "golang"], "site", &format!("{HUSH} too"));
    let flags = ["--secret", "password", "--config", "site", "--constraint", "node.hostname==node2"];
    let before = cluster.service("app", 1, &flags, &["idle"]).remove(0);
    assert_eq!(before.node, 2);
    let holds =
        |node: &Node| std::fs::read_dir(node.run_dir().join("deposits")).into_iter().flatten().count();
    for node in cluster.nodes() {
        assert_eq!(holds(node), usize::from(node.number == 2), "node {}", node.number);
        for directory in [node.data_dir(), node.run_dir()] {
            assert_eq!(files_with(&directory, HUSH), Vec::<String>::new(), "node {}", node.number);
        }
    }

    // A daemon that is killed and starts while no manager is there: what runs has its secrets.
    cluster.node_mut(1).kill_daemon();
    cluster.node_mut(2).kill_daemon();
    cluster.node_mut(2).start_daemon();
    let secret = |node: &Node| node.exec(&before, &["cat", "/run/secrets/password"]).ok();
    assert_eq!(secret(cluster.node(2)), HUSH);
    assert_eq!(holds(cluster.node(2)), 1);
    // A task that is replaced once the manager is back gets them again.
    cluster.node_mut(1).start_daemon();
    cluster.manager().docker(&["service", "update", "-d", "--force", "app"]).ok();
    let after = wait_until(PATIENCE, "the task is replaced", || {
        let now = cluster.node(2).containers("app");
        let replaced = now.len() == 1 && now[0].id != before.id;
        if replaced { Ok(now) } else { Err(cluster.manager().docker(&["service", "ps", "app"]).to_string()) }
    });
    assert_eq!(cluster.node(2).exec(&after[0], &["cat", "/site"]).ok(), format!("{HUSH} too"));
    cluster.manager().docker(&["service", "rm", "app"]).ok();
    wait_until(PATIENCE, "the files went with the task", || match holds(cluster.node(2)) {
        0 => Ok(()),
        some => Err(format!("{some} left")),
    });
    cluster.finish();
}
