//! Volumes: what outlives containers, and what goes with them.

use serde_json::Value;
use shoal_e2e::{Node, PATIENCE, image, wait_until};

use crate::containers::refused;

fn names(node: &Node, filters: &[&str]) -> Vec<String> {
    let listed = node.docker(&[&["volume", "ls", "-q"], filters].concat()).ok();
    listed.lines().map(str::to_owned).collect()
}

#[test]
fn they_are_made_listed_shown_and_removed() {
    let node = Node::start();
    node.import_busybox();
    assert_eq!(node.docker(&["volume", "create", "--label", "a=b", "v1"]).ok(), "v1\n");
    assert_eq!(node.docker(&["volume", "create", "v1"]).ok(), "v1\n", "one that is there is fine");
    node.docker(&["volume", "create", "v2"]).ok();
    let shown = node.inspect("volume", "v1");
    assert_eq!(
        (&shown["Driver"], &shown["Scope"], &shown["Labels"]["a"]),
        (&"local".into(), &"local".into(), &"b".into())
    );
    let path = std::path::PathBuf::from(shown["Mountpoint"].as_str().unwrap());
    assert!(path.is_dir() && path.starts_with(node.data_dir()), "{}", path.display());
    assert_eq!(names(&node, &["--filter", "label=a=b"]), ["v1"]);
    assert_eq!(names(&node, &["--filter", "name=v"]), ["v1", "v2"]);

    node.docker(&["create", "--name", "box", "-v", "v1:/data", "busybox", "idle"]).ok();
    let id = node.inspect("container", "box")["Id"].as_str().unwrap().to_owned();
    refused(&node, &["volume", "rm", "v1"], 1, &format!("remove v1: volume is in use - [{id}]"));
    assert_eq!(names(&node, &["--filter", "dangling=true"]), ["v2"]);
    let mount = node.inspect("container", "box")["Mounts"][0].clone();
    assert_eq!(
        (&mount["Type"], &mount["Name"], &mount["RW"]),
        (&"volume".into(), &"v1".into(), &true.into())
    );
    assert_eq!(mount["Source"], shown["Mountpoint"]);
    std::fs::write(path.join("file"), [b'x'; 1000]).unwrap();
    let df = node.http("GET", "/v1.41/system/df", "").unwrap();
    let df: Value = serde_json::from_str(df.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    let usage = |name: &str| {
        let volume = df["Volumes"].as_array().unwrap().iter().find(|volume| volume["Name"] == name);
        volume.unwrap()["UsageData"].clone()
    };
    assert_eq!(usage("v1"), serde_json::json!({"RefCount": 1, "Size": 1000}));

    let pruned = node.docker(&["volume", "prune", "-f"]).ok();
    assert!(pruned.contains("v2") && !pruned.contains("v1"), "{pruned}");
    node.docker(&["rm", "box"]).ok();
    assert_eq!(names(&node, &[]), ["v1"], "a named volume outlives its containers");
    assert_eq!(node.docker(&["volume", "rm", "v1"]).ok(), "v1\n");
    assert!(!path.exists());
    refused(&node, &["volume", "rm", "v1"], 1, "get v1: no such volume");
    node.docker(&["volume", "rm", "-f", "v1"]).ok();
    refused(&node, &["volume", "create", "../x"], 1, "includes invalid characters for a local volume name");
    refused(&node, &["volume", "create", "-d", "nfs", "v3"], 1, "volume driver nfs is not supported");
    refused(
        &node,
        &["volume", "create", "-o", "type=tmpfs", "v3"],
        1,
        "options of a volume are not supported",
    );
    node.finish();
}

#[test]
fn an_empty_volume_has_what_the_image_has_and_keeps_what_is_written() {
    let mut node = Node::start();
    node.import_busybox();
    let run = |node: &Node, mount: &[&str], command: &str| {
        node.docker(&[&["run", "--rm"], mount, &["busybox", "sh", "-c", command]].concat())
    };
    assert_eq!(
        run(&node, &["-v", "site:/www"], "cat /www/index.html; echo new > /www/index.html").ok(),
        "busybox\n"
    );
    let who = run(&node, &["-v", "site:/www"], "cat /www/index.html; stat -c %a /www/cgi-bin/who").ok();
    assert_eq!(who, "new\n755\n", "what is in it is left alone, modes are kept");
    let bare = ["--mount", "type=volume,source=bare,target=/www,volume-nocopy"];
    assert_eq!(run(&node, &bare, "ls -A /www").ok(), "");
    let denied = run(&node, &["-v", "site:/www:ro"], "echo x > /www/index.html");
    assert!(denied.code != 0 && denied.stderr.contains("Read-only"), "{denied}");
    let labelled = ["--mount", "type=volume,source=marked,target=/m,volume-label=tier=db"];
    run(&node, &labelled, "true").ok();
    assert_eq!(node.inspect("volume", "marked")["Labels"]["tier"], "db");
    node.kill_daemon();
    node.start_daemon();
    assert_eq!(run(&node, &["-v", "site:/www"], "cat /www/index.html").ok(), "new\n");
    assert_eq!(names(&node, &[]), ["bare", "marked", "site"]);
    node.finish();
}

#[test]
fn volumes_without_a_name_go_with_their_container_if_they_are_to() {
    let mut node = Node::start();
    let change = ["import", "--change", "VOLUME /cache", "-", "busybox"];
    node.docker_with_input(&change, &image::root_file_system()).ok();
    let count = |node: &Node| names(node, &[]).len();
    node.docker(&["run", "--rm", "-v", "/own", "busybox", "sh", "-c", "touch /own/x /cache/x"]).ok();
    assert_eq!(count(&node), 0, "--rm takes them along");
    node.docker(&["run", "--name", "box1", "-v", "/own", "-v", "named:/named", "busybox", "true"]).ok();
    node.docker(&["run", "--name", "box2", "busybox", "true"]).ok();
    assert_eq!(count(&node), 4);
    node.kill_daemon();
    node.start_daemon();
    node.docker(&["rm", "-v", "box1"]).ok();
    assert_eq!(count(&node), 2, "what has a name stays");
    node.docker(&["rm", "box2"]).ok();
    assert_eq!(count(&node), 2, "without -v everything stays");
    let pruned = node.docker(&["volume", "prune", "-f"]).ok();
    assert!(pruned.contains("named"), "{pruned}");
    assert_eq!(count(&node), 0);
    node.finish();
}

#[test]
fn tasks_have_volumes_and_say_what_they_miss() {
    let mut node = Node::cluster();
    let mounts = [
        ["--mount", "type=volume,source=data-{{.Task.Slot}},target=/data,volume-label=tier=db"],
        ["--mount", "type=volume,target=/scratch"],
        ["--restart-delay", "50ms"],
    ];
    let tasks = node.service("db", 2, mounts.as_flattened(), &["idle"]);
    for (task, slot) in tasks.iter().zip(["1", "2"]) {
        node.exec(task, &["sh", "-c", &format!("echo {slot} > /data/slot; echo x > /scratch/x")]).ok();
    }
    assert_eq!(names(&node, &["--filter", "label=tier=db"]), ["data-1", "data-2"]);
    let shown = node.inspect("service", "db")["Spec"]["TaskTemplate"]["ContainerSpec"]["Mounts"].clone();
    let data = shown.as_array().unwrap().iter().find(|mount| mount["Target"] == "/data").unwrap();
    assert_eq!(data["VolumeOptions"]["Labels"]["tier"], "db", "{shown:#}");
    node.kill_daemon();
    node.start_daemon();
    node.docker(&["service", "update", "-d", "--force", "--update-parallelism", "2", "db"]).ok();
    let after = wait_until(PATIENCE, "both tasks are replaced", || {
        let now = node.containers("db");
        let new = now.iter().all(|new| tasks.iter().all(|old| old.id != new.id));
        if now.len() == 2 && new { Ok(now) } else { Err(node.docker(&["service", "ps", "db"]).to_string()) }
    });
    for (task, slot) in after.iter().zip(["1", "2"]) {
        assert_eq!(node.exec(task, &["cat", "/data/slot"]).ok().trim(), slot);
        assert_eq!(node.exec(task, &["ls", "-A", "/scratch"]).ok(), "", "a volume of its own for each task");
    }
    node.docker(&["service", "rm", "db"]).ok();
    node.has_no_container();
    wait_until(PATIENCE, "only what has a name is left", || {
        let left = names(&node, &[]);
        if left == ["data-1", "data-2"] { Ok(()) } else { Err(format!("{left:?}")) }
    });
    let bind = [
        ["--mount", "type=bind,source=/no/such,target=/x"],
        ["--mount", "type=volume,target=/own"],
        ["--restart-condition", "none"],
    ];
    node.create_service("sad", 1, bind.as_flattened(), &["idle"]);
    wait_until(PATIENCE, "the reason is told", || {
        let told = node.docker(&["service", "ps", "--no-trunc", "sad"]).ok();
        let expect = "invalid mount config for type \"bind\": bind source path does not exist: /no/such";
        if told.contains(expect) && told.contains("Rejected") { Ok(()) } else { Err(told) }
    });
    assert_eq!(names(&node, &[]), ["data-1", "data-2"], "a task that was never made leaves nothing");
    let twice = ["--mount", "type=volume,target=/x", "--mount", "type=volume,source=vv,target=/x"];
    let create = ["service", "create", "-d", "--name", "twice"];
    refused(&node, &[&create[..], &twice, &["busybox"]].concat(), 1, "duplicate mount point: /x");
    node.finish();
}
