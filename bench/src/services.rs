//! Many services by the API.

use std::net::Ipv4Addr;

use serde_json::{Value, json};
use shoal_e2e::Node;

/// Requests at a time.
const CLIENTS: usize = 8;

/// Services without a task on a network, each with a virtual address.
pub(crate) fn create(node: &Node, network: &str, names: &[String]) {
    each(names, |name| {
        let body = json!({
            "Name": name,
            "TaskTemplate": {
                "ContainerSpec": { "Image": "busybox", "Command": ["idle"] },
                "Networks": [{ "Target": network }],
            },
            "Mode": { "Replicated": { "Replicas": 0 } },
            "EndpointSpec": { "Mode": "vip" },
        });
        request(node, "POST", "/services/create", &body.to_string());
    });
}

pub(crate) fn remove(node: &Node, names: &[String]) {
    each(names, |name| drop(request(node, "DELETE", &format!("/services/{name}"), "")));
}

/// Names and virtual addresses of all services.
pub(crate) fn addresses(node: &Node) -> Vec<(String, Ipv4Addr)> {
    let listed = request(node, "GET", "/services", "");
    let address = |service: &Value| {
        let text = service["Endpoint"]["VirtualIPs"][0]["Addr"].as_str()?.split('/').next()?;
        Some((service["Spec"]["Name"].as_str()?.to_owned(), text.parse().ok()?))
    };
    listed.as_array().into_iter().flatten().filter_map(address).collect()
}

fn each(names: &[String], work: impl Fn(&str) + Sync) {
    let work = &work;
    std::thread::scope(|scope| {
        for part in names.chunks(names.len().div_ceil(CLIENTS).max(1)) {
            scope.spawn(move || part.iter().for_each(|name| work(name)));
        }
    });
}

fn request(node: &Node, method: &str, path: &str, body: &str) -> Value {
    let answer = node.http(method, path, body).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    assert!(head.starts_with("HTTP/1.1 2"), "{method} {path}: {answer}");
    if body.is_empty() { Value::Null } else { serde_json::from_str(body).unwrap_or(Value::Null) }
}
