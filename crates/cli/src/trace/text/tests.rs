//! What users read.

use serde_json::{Value, json};

use super::*;

fn version(revision: u64) -> Value {
    json!({ "epoch": 1, "revision": revision })
}

fn task(id: &str, state: &str, serving: bool, error: &str) -> Value {
    json!({
        "id": id, "name": format!("web.1.{id}"), "node": "n1", "host": "alpha", "state": state,
        "message": "", "error": error, "serving": serving, "health": null, "health_output": "",
    })
}

/// `web` with one task, asked for from `mynet`.
fn known() -> Value {
    json!({
        "name": "web", "port": 80, "from_manager": true, "elsewhere": [], "differences": [],
        "asker": {
            "container": "c", "name": "client.1.x", "task": "x", "node": "n1", "hosts": [],
        },
        "networks": [{
            "network": "id1", "name": "mynet", "addresses": ["10.0.1.7"],
            "in_force": version(41), "resolver": version(41), "current": version(41),
        }],
        "lookup": {
            "looks": [{
                "network": "id1", "asked": "web", "by_network": false,
                "found": { "v4": ["10.0.1.2"], "v6": [], "pointer": null },
            }],
            "verdict": "known",
            "answers": [
                {
                    "kind": "A", "code": "NOERROR", "from_cache": false,
                    "records": [{ "kind": "A", "data": "10.0.1.2", "ttl": 10 }],
                },
                { "kind": "AAAA", "code": "NOERROR", "from_cache": false, "records": [] },
            ],
            "upstreams": [], "versions": { "id1": version(41) },
        },
        "holders": [{
            "network": "id1",
            "who": { "kind": "service", "service": "s1", "name": "web", "alias": false, "mode": "vip" },
        }],
        "targets": [{
            "address": "10.0.1.2", "network": "id1", "outcome": "balanced",
            "kind": {
                "kind": "virtual", "service": "s1", "kernel": ["10.0.1.5"], "by_source": false,
                "backends": [{ "endpoint": "t1", "address": "10.0.1.5", "node": "n1", "listening": true }],
            },
        }],
        "services": { "s1": {
            "name": "web", "replicas": 1, "error": "", "failed": [],
            "tasks": [task("t1", "running", true, "")],
        } },
    })
}

fn text(trace: Value) -> String {
    render(&serde_json::from_value(trace).unwrap())
}

#[track_caller]
fn says(text: &str, lines: &[&str]) {
    for line in lines {
        assert!(text.lines().any(|own| own.trim_start() == *line), "{line:?} is not in\n{text}");
    }
}

#[test]
fn a_healthy_service_is_told_from_name_to_task() {
    let text = text(known());
    says(
        &text,
        &[
            "web, port 80, asked for by container client.1.x",
            "mynet (10.0.1.7): table revision 41 is in force, the resolver answers from 41, the manager wants 41",
            "\"web\" on mynet: 10.0.1.2",
            "It is the name of service web, which has a virtual address (mynet)",
            "Answer to A: 10.0.1.2 (TTL 10 s)",
            "Answer to AAAA: no data",
            "3. What a connection to 10.0.1.2, port 80 meets",
            "Led to one of 1 tasks, at random",
            "10.0.1.5: web.1.t1 on node alpha (this one), a program listens there",
            "The kernel's map agrees with the table",
            "4. Service web: 1 of 1 tasks take connections",
        ],
    );
}

#[test]
fn why_a_connection_is_refused_and_what_differs_is_told() {
    let mut trace = known();
    trace["targets"][0]["outcome"] = json!("refused");
    trace["targets"][0]["kind"]["backends"] = json!([]);
    trace["differences"] = json!(["balancer: 10.0.1.2 leads to {10.0.1.5}, not {}"]);
    let service = &mut trace["services"]["s1"];
    service["tasks"] = json!([task("t2", "pending", false, "no suitable node (scheduling constraints)")]);
    service["failed"] = json!([task("t1", "rejected", false, "No such image: nope")]);
    says(
        &text(trace),
        &[
            "Refused at once: no task takes connections",
            "The kernel's map differs from the table: it leads to 10.0.1.5",
            "web.1.t2 on node alpha: pending: no suitable node (scheduling constraints)",
            "before: web.1.t1 on node alpha: rejected: No such image: nope",
            "balancer: 10.0.1.2 leads to {10.0.1.5}, not {}",
        ],
    );
}

#[test]
fn what_is_asked_elsewhere_is_told_with_whom() {
    let mut trace = known();
    trace["lookup"]["verdict"] = json!("forwarded");
    trace["lookup"]["looks"][0]["found"] = Value::Null;
    trace["lookup"]["answers"] = json!([]);
    trace["lookup"]["upstreams"] = json!([
        { "server": "192.0.2.1", "udp": { "silent": null }, "tcp": { "silent": null } },
        { "server": "192.0.2.2", "udp": { "silent": { "retry_in": 1500 } }, "tcp": { "silent": null } },
    ]);
    trace["elsewhere"] = json!([{ "network": "id2", "network_name": "other", "name": "web" }]);
    (trace["holders"], trace["targets"], trace["services"]) = (json!([]), json!([]), json!({}));
    says(
        &text(trace),
        &[
            "\"web\" on mynet: not known",
            "web is known on network other, which the container is not on.",
            "1. server 192.0.2.1: nothing against it",
            "2. server 192.0.2.2: silent over UDP, looked at again in 1.5 s; nothing against it over TCP",
        ],
    );
}
