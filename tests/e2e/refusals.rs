//! Bad input, and Docker's words for it.

use serde_json::{Value, json};
use shoal_e2e::Node;

/// What Docker's client says of services and nodes that cannot be, as a real engine made it say that. `{…}`
/// stands for an id.
const SAID: &[(&str, &str)] = &[
    (
        "service create --name s1 --constraint foo busybox",
        "rpc error: code = Unknown desc = constraint expected one operator from ==, !=",
    ),
    ("service create --name s1 --endpoint-mode foo busybox", "invalid resolution mode: \"foo\""),
    ("service create --name bad+name busybox", NAME),
    ("service create --name my.svc busybox", NAME),
    ("service create --name -x busybox", NAME),
    ("service create --name s1 --network brnet busybox", "network brnet not found"),
    (
        "service create --name taken busybox",
        "rpc error: code = AlreadyExists desc = name conflicts with an existing object: service taken already exists",
    ),
    ("service rm nosuch", "service nosuch not found"),
    ("service scale nosuch=2", "service nosuch not found"),
    ("service update nosuch", "service nosuch not found"),
    (
        "service rollback taken",
        "rpc error: code = FailedPrecondition desc = service {taken} does not have a previous spec",
    ),
    (
        "service create --name web2 --publish 8000:80 busybox",
        "rpc error: code = InvalidArgument desc = port '8000' is already in use by service 'taken' ({taken}) as an \
         ingress port",
    ),
    (
        "service create --name web2 --publish mode=host,target=80,published=8000 busybox",
        "rpc error: code = InvalidArgument desc = port '8000' is already in use by service 'taken' ({taken}) as an \
         ingress port",
    ),
    (
        "service create --name web2 --publish 8001:80 --publish 8001:81 busybox",
        "rpc error: code = InvalidArgument desc = EndpointSpec: duplicate published ports provided",
    ),
    (
        "network rm mynet",
        "rpc error: code = FailedPrecondition desc = network {mynet} is in use by service {taken}",
    ),
    (
        "node demote {node}",
        "rpc error: code = FailedPrecondition desc = attempting to demote the last manager of the swarm",
    ),
    (
        "node rm {node}",
        "rpc error: code = FailedPrecondition desc = node {node} is a cluster manager and is a member of the raft \
         cluster. It must be demoted to worker before removal",
    ),
    ("node update --availability drain nosuch", "node nosuch not found"),
    ("node inspect nosuch", "node nosuch not found"),
    ("service inspect nosuch", "no such service: nosuch"),
    ("service ps nosuch", "no such service: nosuch"),
    ("service logs nosuch", "no such task or service: nosuch"),
    (
        "service create --name s1 --limit-memory 1k busybox",
        "rpc error: code = InvalidArgument desc = invalid memory value 1024: Must be at least 4MiB",
    ),
    (
        "service create --name s1 --limit-cpu 0.0001 busybox",
        "rpc error: code = InvalidArgument desc = invalid cpu value 0.0001: Must be at least 0.001",
    ),
];

const NAME: &str = "rpc error: code = InvalidArgument desc = name must be valid as a DNS name component";

#[test]
fn docker_says_what_it_says_of_a_real_engine() {
    let node = Node::cluster();
    node.network("mynet");
    node.service("taken", 1, &["--network", "mynet", "--publish", "8000:80"], &["idle"]);
    let id = |kind: &str, name: &str, key: &str| node.inspect(kind, name)[key].as_str().unwrap().to_owned();
    let ids = [
        ("{taken}", id("service", "taken", "ID")),
        ("{mynet}", id("network", "mynet", "Id")),
        ("{node}", id("node", "self", "ID")),
    ];
    let named = |text: &str| ids.iter().fold(text.to_owned(), |text, (name, id)| text.replace(name, id));
    let mut wrong = Vec::new();
    for (command, said) in SAID {
        let command = named(command);
        let output = node.docker(&command.split(' ').collect::<Vec<_>>());
        if output.code != 1 || !output.stderr.contains(&named(said)) {
            wrong.push(format!("{output}\nis not: {}", named(said)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    node.finish();
}

/// The status and the message of one raw request.
fn raw(node: &Node, method: &str, path: &str, body: &str) -> (u16, String) {
    let answer = node.http(method, path, body).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let body: Value = serde_json::from_str(answer.split("\r\n\r\n").last().unwrap()).unwrap_or_default();
    (status, body["message"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn what_no_client_would_send_is_refused_too() {
    let node = Node::cluster();
    let filter = "/v1.41/services?filters=%7B%22foo%22%3A%5B%22x%22%5D%7D";
    assert_eq!(raw(&node, "GET", "/v1.41/nosuch", ""), (404, "page not found".into()));
    assert_eq!(raw(&node, "PATCH", "/v1.41/services", ""), (404, "page not found".into()));
    assert_eq!(raw(&node, "GET", filter, ""), (400, "Invalid filter 'foo'".into()));
    for list in ["nodes", "tasks", "networks", "events"] {
        let path = filter.replace("services", list);
        assert_eq!(raw(&node, "GET", &path, ""), (400, "Invalid filter 'foo'".into()), "{list}");
    }
    let create = "/v1.41/services/create";
    for body in ["{bad", "", "[]", "null", "5", r#"{"Name":7}"#] {
        assert_eq!(raw(&node, "POST", create, body).0, 400, "{body}");
    }
    let task = json!({ "ContainerSpec": { "Image": "busybox" } });
    let spec = |change: Value| {
        let mut spec = json!({ "Name": "s", "TaskTemplate": task });
        spec.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        spec.to_string()
    };
    for (change, status) in [
        (json!({ "Mode": { "Replicated": { "Replicas": -1 } } }), 400),
        (json!({ "Mode": { "Replicated": { "Replicas": u64::MAX } } }), 400),
        (json!({ "Mode": { "Replicated": {}, "Global": {} } }), 400),
        (json!({ "Mode": { "GlobalJob": {} }, "UpdateConfig": { "Parallelism": 1 } }), 400),
        (json!({ "TaskTemplate": {} }), 400),
        (json!({ "EndpointSpec": { "Ports": [{ "TargetPort": 0 }] } }), 400),
        (json!({ "EndpointSpec": { "Ports": [{ "TargetPort": 80, "PublishedPort": 70000 }] } }), 400),
        (json!({ "EndpointSpec": { "Ports": [{ "TargetPort": 80, "Protocol": "sctp" }] } }), 501),
    ] {
        let (found, message) = raw(&node, "POST", create, &spec(change.clone()));
        assert_eq!(found, status, "{change}: {message}");
        assert!(!message.is_empty(), "{change}");
    }
    node.docker(&["service", "create", "-d", "--name", "s", "busybox", "idle"]).ok();
    let stale = raw(&node, "POST", "/v1.41/services/s/update?version=1", &spec(json!({})));
    assert_eq!(stale, (409, "rpc error: code = Unknown desc = update out of sequence".into()));
    node.finish();
}
