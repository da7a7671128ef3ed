//! Whatever is declared is refused with a reason, or comes about, or says why it does not.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};
use shoal_e2e::{Node, PATIENCE, wait_until};

/// Declarations that are changed once each. Every one of them costs real containers.
const CASES: u32 = 64;
/// Places of a declaration that are not as usual, at most.
const WISHES_MAX: usize = 4;

/// Places of a declaration, and what may stand there: what works, what fails when it runs, what never can.
fn wishes() -> Vec<(&'static str, Vec<Value>)> {
    let replicas = |count: u64| json!({ "Replicated": { "Replicas": count } });
    let check = |command: &str| json!({ "Test": ["CMD-SHELL", command], "Interval": 200_000_000, "Timeout": 1_000_000_000, "Retries": 1 });
    let port = |more: Value| {
        let mut port = json!({ "TargetPort": 80 });
        port.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!([port])
    };
    let mount = |kind: &str, source: &str| json!([{ "Type": kind, "Source": source, "Target": "/there" }]);
    vec![
        ("/Mode", vec![replicas(0), replicas(2), json!({ "Global": {} }), json!({ "GlobalJob": {} })]),
        ("/Mode", vec![json!({ "ReplicatedJob": { "MaxConcurrent": 2, "TotalCompletions": 3 } })]),
        (
            "/Command",
            vec![json!(["true"]), json!(["sh", "-c", "exit 3"]), json!(["nosuch"]), json!(["serve"])],
        ),
        ("/Image", vec![json!("nosuch:1"), json!("busybox@sha256:00"), json!("")]),
        ("/User", vec![json!("nobody"), json!("nosuch"), json!("99999:99999")]),
        ("/Dir", vec![json!("/tmp"), json!("/etc/passwd")]),
        ("/Hostname", vec![json!("{{.Task.Name}}"), json!("{{.Nonsense}}")]),
        ("/Env", vec![json!(["A={{.Task.Slot}}"]), json!(["{{"])]),
        ("/CapabilityAdd", vec![json!(["CAP_NET_ADMIN"]), json!(["CAP_NONSENSE"])]),
        ("/Sysctls", vec![json!({ "net.core.somaxconn": "64" }), json!({ "kernel.nonsense": "1" })]),
        (
            "/Mounts",
            vec![mount("bind", "/nosuch"), mount("bind", "/"), mount("volume", "kept"), mount("volume", "")],
        ),
        (
            "/Mounts",
            vec![mount("tmpfs", ""), mount("nonsense", ""), json!([{ "Type": "tmpfs", "Target": "t" }])],
        ),
        ("/Healthcheck", vec![check("true"), check("false"), json!({ "Test": ["NONE"] })]),
        (
            "/Secrets",
            vec![json!([{ "SecretID": "nosuch", "SecretName": "nosuch", "File": { "Name": "f" } }])],
        ),
        ("/StopSignal", vec![json!("SIGUSR1"), json!("NONSENSE")]),
        (
            "/Limits",
            vec![
                json!({ "MemoryBytes": 64 << 20 }),
                json!({ "NanoCPUs": 100_000_000 }),
                json!({ "Pids": 20 }),
            ],
        ),
        ("/Reservations", vec![json!({ "MemoryBytes": 1_u64 << 50 }), json!({ "NanoCPUs": 1_000_000 })]),
        ("/Placement", vec![json!({ "Constraints": ["node.role==manager"] }), json!({ "MaxReplicas": 1 })]),
        (
            "/Placement",
            vec![json!({ "Constraints": ["node.labels.a==b"] }), json!({ "Constraints": ["foo"] })],
        ),
        (
            "/RestartPolicy",
            vec![json!({ "Condition": "none" }), json!({ "Condition": "any", "MaxAttempts": 1 })],
        ),
        (
            "/Networks",
            vec![json!([{ "Target": "mynet" }]), json!([{ "Target": "host" }]), json!([{ "Target": "x" }])],
        ),
        ("/Mode2", vec![json!("dnsrr"), json!("nonsense")]),
        (
            "/Ports",
            vec![
                port(json!({})),
                port(json!({ "PublishedPort": 8000 })),
                port(json!({ "PublishMode": "host" })),
            ],
        ),
        ("/Ports", vec![port(json!({ "PublishedPort": 70_000 })), port(json!({ "Protocol": "udp" }))]),
    ]
}

/// Where it really stands.
fn place_of(key: &str) -> &'static str {
    match key {
        "/Mode" => "",
        "/Limits" | "/Reservations" => "/TaskTemplate/Resources",
        "/Placement" | "/RestartPolicy" | "/Networks" => "/TaskTemplate",
        "/Mode2" | "/Ports" => "/EndpointSpec",
        _ => "/TaskTemplate/ContainerSpec",
    }
}

/// Which place, and which of what may stand there.
type Choice = (usize, usize);

fn declaration(name: &str, choices: &[Choice]) -> Value {
    let mut spec = json!({
        "Name": name,
        "TaskTemplate": {
            "ContainerSpec": { "Image": "busybox", "Command": ["idle"], "StopGracePeriod": 1_000_000_000 },
            "Resources": {},
            "RestartPolicy": { "Condition": "any", "Delay": 200_000_000 },
        },
        "Mode": { "Replicated": { "Replicas": 1 } },
        "EndpointSpec": {},
    });
    let wishes = wishes();
    for (place, what) in choices {
        let (key, values) = &wishes[place % wishes.len()];
        let parent = spec.pointer_mut(place_of(key)).and_then(Value::as_object_mut).unwrap();
        let key = if *key == "/Mode2" { "Mode" } else { &key[1..] };
        parent.insert(key.to_owned(), values[what % values.len()].clone());
    }
    spec
}

/// Status and answer.
fn ask(node: &Node, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let answer = node.http(method, &format!("/v1.41{path}"), &body).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}

/// Success, or a refusal with a reason. Where Docker's own engine answers with 500 (`code = Unknown`), so does
/// this one.
fn is_fair(status: u16, answer: &Value) -> bool {
    let message = answer["message"].as_str().unwrap_or_default();
    let own = message.starts_with("rpc error: code = Unknown desc = ");
    match status {
        200..=299 => true,
        400..=499 | 501 => !message.is_empty(),
        _ => own,
    }
}

/// In every place of the service a task runs, has done its work, or says what is wrong.
fn comes_to_say(node: &Node, id: &str) {
    wait_until(PATIENCE, "every task runs or says why not", || {
        let (_, service) = ask(node, "GET", &format!("/services/{id}"), &Value::Null);
        let filters = format!("/tasks?filters=%7B%22service%22%3A%5B%22{id}%22%5D%7D");
        let (_, tasks) = ask(node, "GET", &filters, &Value::Null);
        let mut places: BTreeMap<(u64, String), bool> = BTreeMap::new();
        for task in tasks.as_array().ok_or_else(|| tasks.to_string())? {
            let wanted = matches!(task["DesiredState"].as_str(), Some("running" | "complete"));
            let runs = wanted && task["Status"]["State"] == "running";
            let done = task["Status"]["State"] == "complete";
            let told = task["Status"]["Err"].as_str().is_some_and(|error| !error.is_empty());
            let node = if task["Slot"].is_null() { task["NodeID"].to_string() } else { String::new() };
            let place = places.entry((task["Slot"].as_u64().unwrap_or_default(), node)).or_default();
            *place |= told || done || runs;
        }
        let mode = &service["Spec"]["Mode"];
        let job = &mode["ReplicatedJob"];
        let count = |value: &Value| value.as_u64().unwrap_or_default() as usize;
        // Of a global service with constraints no task may be due.
        let due = match mode["Replicated"]["Replicas"].as_u64() {
            Some(replicas) => replicas as usize,
            None => count(&job["MaxConcurrent"]).min(count(&job["TotalCompletions"])),
        };
        let fine = places.values().filter(|fine| **fine).count() >= due;
        if fine { Ok(()) } else { Err(format!("{service:#}\n{tasks:#}\n{}", node.log_tail())) }
    });
}

fn run(node: &Node, first: &[Choice], second: &[Choice]) -> Result<(), TestCaseError> {
    let (status, answer) = ask(node, "POST", "/services/create", &declaration("s", first));
    prop_assert!(is_fair(status, &answer), "{} {}", status, answer);
    let Some(id) = answer["ID"].as_str() else { return Ok(()) };
    comes_to_say(node, id);
    let (_, service) = ask(node, "GET", &format!("/services/{id}"), &Value::Null);
    let path = format!("/services/{id}/update?version={}", service["Version"]["Index"]);
    let (status, answer) = ask(node, "POST", &path, &declaration("s", second));
    // The manager's own changes may have been first.
    prop_assert!(is_fair(status, &answer), "{} {}", status, answer);
    comes_to_say(node, id);
    let (status, answer) = ask(node, "DELETE", &format!("/services/{id}"), &Value::Null);
    prop_assert_eq!(status, 200, "{}", answer);
    Ok(())
}

#[test]
fn whatever_is_declared_comes_about_or_is_refused_or_says_why_not() {
    let node = Node::cluster();
    node.network("mynet");
    let choice = || (any::<usize>(), any::<usize>());
    let config = Config { cases: CASES, failure_persistence: None, max_shrink_iters: 0, ..Config::default() };
    let choices = (vec(choice(), 0..=WISHES_MAX), vec(choice(), 0..=WISHES_MAX));
    let mut runner = TestRunner::new(config);
    runner.run(&choices, |(first, second)| run(&node, &first, &second)).unwrap();
    node.finish();
}
