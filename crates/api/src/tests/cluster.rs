//! The router over a real manager with a store of its own, and no node that would run anything.

use std::sync::Arc;

use async_trait::async_trait;
use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use serde_json::json;
use shoal_manager::{Code, ControlError, InitOptions, Manager, ManagerConfig};
use shoal_model::{Availability, ClusterSpec, NodeDescription, NodeId};

use super::*;
use crate::engine::{ClusterSide, InitRequest, JoinRequest, LocalState, Swarm};
use crate::server::{App, server_header};

mod random;

struct Member {
    manager: Manager,
    node: NodeId,
}

#[async_trait]
impl Swarm for Member {
    fn manager(&self) -> Option<Manager> {
        Some(self.manager.clone())
    }

    fn local_state(&self) -> LocalState {
        LocalState::Active { node: self.node.clone(), address: "10.99.0.1".parse().unwrap() }
    }

    async fn init(&self, _: InitRequest) -> Result<NodeId, ControlError> {
        Err(ControlError::new(Code::Internal, "never asked"))
    }

    async fn join(&self, _: JoinRequest) -> Result<(), ControlError> {
        Err(ControlError::new(Code::Internal, "never asked"))
    }

    fn remote_managers(&self) -> Vec<(Option<NodeId>, String)> {
        Vec::new()
    }

    async fn leave(&self, force: bool) -> Result<(), ControlError> {
        if force { Ok(()) } else { Err(ControlError::new(Code::Unavailable, "say --force")) }
    }
}

struct World {
    app: App,
    manager: Manager,
    node: NodeId,
    _dir: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = ManagerConfig {
            store: dir.path().join("cluster.redb"),
            socket: dir.path().join("manager.sock"),
            key: dir.path().join("cluster.key"),
        };
        let options = InitOptions {
            node_name: "one".to_owned(),
            listen: "127.0.0.1:0".parse().unwrap(),
            advertise: "10.99.0.1:2377".parse().unwrap(),
            data_path_address: "10.99.0.1".parse().unwrap(),
            spec: ClusterSpec::default(),
            availability: Availability::Active,
            description: NodeDescription { hostname: "one".to_owned(), ..NodeDescription::default() },
        };
        let (manager, node) = Manager::init(config, options).await.unwrap();
        let swarm = Arc::new(Member { manager: manager.clone(), node: node.clone() });
        let side = ClusterSide::new(swarm, dir.path().to_owned(), "1.2.3".to_owned());
        let router = crate::routes::cluster::<ClusterSide>().with_state(side);
        Self { app: App { router, server: server_header("1.2.3") }, manager, node, _dir: dir }
    }

    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
        let mut request = Request::builder().method(method).uri(format!("/v1.41{path}"));
        let body = match body {
            Some(body) => {
                request = request.header("Content-Type", "application/json");
                Body::from(body.to_string())
            }
            None => Body::empty(),
        };
        let response = self.app.answer(request.body(body).unwrap()).await;
        let status = response.status();
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes).unwrap() })
    }

    async fn get(&self, path: &str) -> Value {
        let (status, value) = self.ask(Method::GET, path, None).await;
        assert_eq!(status, 200, "{path}: {value}");
        value
    }

    async fn refused(&self, method: Method, path: &str, body: Option<Value>) -> (u16, String) {
        let (status, value) = self.ask(method, path, body).await;
        (status.as_u16(), value["message"].as_str().unwrap().to_owned())
    }

    async fn end(self) {
        self.manager.shutdown().await;
    }
}

fn network(name: &str) -> Value {
    json!({"Name": name, "Driver": "overlay", "IPAM": {"Driver": "default", "Options": {}, "Config": []},
           "Options": {}, "Labels": {}, "CheckDuplicate": true})
}

fn service(name: &str, change: impl Fn(&mut Value)) -> Value {
    let mut spec = json!({"Name": name, "Labels": {}, "Mode": {"Replicated": {"Replicas": 2}},
        "TaskTemplate": {"ContainerSpec": {"Image": "busybox:latest", "Init": false, "DNSConfig": {}},
                         "Resources": {"Limits": {}, "Reservations": {}}, "Placement": {}, "ForceUpdate": 0},
        "EndpointSpec": {"Mode": "vip"}});
    change(&mut spec);
    spec
}

#[tokio::test]
async fn networks_live_and_die() {
    let world = World::new().await;
    let (status, created) = world.ask(Method::POST, "/networks/create", Some(network("mynet"))).await;
    assert_eq!((status.as_u16(), &created["Warning"]), (201, &json!("")));
    let shown = world.get("/networks/mynet?scope=swarm").await;
    assert_eq!(shown["Id"], created["Id"]);
    assert_eq!(shown["IPAM"]["Config"], json!([{"Subnet": "10.0.1.0/24", "Gateway": "10.0.1.1"}]));
    assert_eq!((&shown["Containers"], &shown["Labels"]), (&Value::Null, &Value::Null));
    let names: Vec<_> =
        world.get("/networks").await.as_array().unwrap().iter().map(|n| n["Name"].clone()).collect();
    for name in ["bridge", "docker_gwbridge", "host", "none", "ingress", "mynet"] {
        assert!(names.contains(&json!(name)), "{names:?}");
    }
    assert_eq!(
        world.refused(Method::POST, "/networks/create", Some(network("mynet"))).await,
        (409, "network with name mynet already exists".to_owned())
    );
    let mut clash = network("other");
    clash["IPAM"]["Config"] = json!([{"Subnet": "10.0.1.128/25"}]);
    let (status, message) = world.refused(Method::POST, "/networks/create", Some(clash)).await;
    assert_eq!(status, 400);
    assert!(message.contains("10.0.1.128/25"), "{message}");
    let mut bits = network("other");
    bits["IPAM"]["Config"] = json!([{"Subnet": "10.1.2.3/24"}]);
    assert_eq!(
        world.refused(Method::POST, "/networks/create", Some(bits)).await,
        (400, "invalid network config:\ninvalid subnet 10.1.2.3/24: it should be 10.1.2.0/24".to_owned())
    );
    let mut second = network("ing2");
    second["Ingress"] = json!(true);
    let (status, message) = world.refused(Method::POST, "/networks/create", Some(second)).await;
    assert_eq!(status, 409);
    assert!(message.starts_with("rpc error: code = AlreadyExists desc = ingress network ("), "{message}");
    let pruned = world.ask(Method::POST, "/networks/prune", None).await;
    assert_eq!(pruned, (StatusCode::OK, json!({"NetworksDeleted": ["mynet"]})));
    world.ask(Method::POST, "/networks/create", Some(network("mynet"))).await;
    assert_eq!(world.ask(Method::DELETE, "/networks/mynet", None).await.0, 204);
    assert_eq!(
        world.refused(Method::GET, "/networks/mynet", None).await,
        (404, "network mynet not found".to_owned())
    );
    world.end().await;
}

#[tokio::test]
async fn services_live_change_and_die() {
    let world = World::new().await;
    let (_, net) = world.ask(Method::POST, "/networks/create", Some(network("mynet"))).await;
    let on_net = |spec: &mut Value| spec["TaskTemplate"]["Networks"] = json!([{"Target": "mynet"}]);
    let (status, created) = world.ask(Method::POST, "/services/create", Some(service("web", on_net))).await;
    assert_eq!(status, 201, "{created}");
    let path = format!("/services/{}", created["ID"].as_str().unwrap());

    let shown = world.get(&path).await;
    assert_eq!(shown["Spec"]["TaskTemplate"]["Networks"], json!([{"Target": net["Id"]}]));
    assert_eq!(
        world.get("/services/web?insertDefaults=true").await["Spec"]["UpdateConfig"]["Parallelism"],
        1
    );
    let listed = world.get("/services?status=true").await;
    assert_eq!(
        listed[0]["ServiceStatus"],
        json!({"RunningTasks": 0, "DesiredTasks": 2, "CompletedTasks": 0})
    );
    assert_eq!(
        world.get("/services?filters=%7B%22name%22%3A%5B%22we%22%5D%7D").await[0]["ID"],
        created["ID"]
    );
    assert_eq!(world.get("/services?filters=%7B%22name%22%3A%5B%22x%22%5D%7D").await, json!([]));
    assert_eq!(
        world.refused(Method::POST, "/services/create", Some(service("web", on_net))).await,
        (
            409,
            "rpc error: code = AlreadyExists desc = name conflicts with an existing object: service web already \
             exists"
                .to_owned()
        )
    );
    assert_eq!(
        world.refused(Method::DELETE, "/networks/mynet", None).await,
        (
            400,
            format!(
                "rpc error: code = FailedPrecondition desc = network {} is in use by service {}",
                net["Id"].as_str().unwrap(),
                created["ID"].as_str().unwrap()
            )
        )
    );

    update_and_roll_back(&world, &path, &shown).await;
    assert_eq!(world.ask(Method::DELETE, "/services/web", None).await.0, 200);
    assert_eq!(world.refused(Method::GET, &path, None).await.0, 404);
    assert_eq!(world.get("/services").await, json!([]));
    world.end().await;
}

async fn update_and_roll_back(world: &World, path: &str, shown: &Value) {
    let version = async || world.get(path).await["Version"]["Index"].as_u64().unwrap();
    let rollback = format!("{path}/update?rollback=previous&version={}", version().await);
    let (status, message) = world.refused(Method::POST, &rollback, Some(shown["Spec"].clone())).await;
    assert_eq!(status, 400);
    assert!(message.ends_with("does not have a previous spec"), "{message}");

    let mut spec = shown["Spec"].clone();
    spec["Mode"]["Replicated"]["Replicas"] = json!(3);
    let stale = format!("{path}/update?version=1");
    assert_eq!(
        world.refused(Method::POST, &stale, Some(spec.clone())).await,
        (409, "rpc error: code = Unknown desc = update out of sequence".to_owned())
    );
    let no_version = format!("{path}/update");
    assert_eq!(world.refused(Method::POST, &no_version, Some(spec.clone())).await.0, 400);
    let update = format!("{path}/update?version={}", version().await);
    assert_eq!(
        world.ask(Method::POST, &update, Some(spec.clone())).await,
        (StatusCode::OK, json!({"Warnings": null}))
    );
    let updated = world.get(path).await;
    assert_eq!(updated["Spec"]["Mode"]["Replicated"]["Replicas"], 3);
    assert_eq!(updated["PreviousSpec"]["Mode"]["Replicated"]["Replicas"], 2);
    let rollback = format!("{path}/update?rollback=previous&version={}", version().await);
    assert_eq!(world.ask(Method::POST, &rollback, Some(spec)).await.0, 200);
    assert_eq!(world.get(path).await["Spec"]["Mode"]["Replicated"]["Replicas"], 2);
}

#[tokio::test]
async fn refusals_of_the_manager_carry_dockers_prefix() {
    let world = World::new().await;
    let check = async |change: &dyn Fn(&mut Value), status: u16, message: &str| {
        let answer = world.refused(Method::POST, "/services/create", Some(service("s1", change))).await;
        assert_eq!(answer, (status, message.to_owned()));
    };
    let name = "rpc error: code = InvalidArgument desc = name must be valid as a DNS name component";
    check(&|spec| spec["Name"] = json!("bad name"), 400, name).await;
    let constraint = "rpc error: code = Unknown desc = constraint expected one operator from ==, !=";
    check(&|spec| spec["TaskTemplate"]["Placement"]["Constraints"] = json!(["foo"]), 500, constraint).await;
    let unknown = "network nosuch not found";
    check(&|spec| spec["TaskTemplate"]["Networks"] = json!([{"Target": "nosuch"}]), 404, unknown).await;
    world.end().await;
}

#[tokio::test]
async fn the_node_and_the_cluster_show_themselves() {
    let world = World::new().await;
    let nodes = world.get("/nodes").await;
    assert_eq!(nodes[0]["ID"], world.node.as_str());
    assert_eq!(nodes[0]["ManagerStatus"]["Addr"], "10.99.0.1:2377");
    let node = world.get("/nodes/one").await;
    assert_eq!(node["ID"], nodes[0]["ID"]);
    assert_eq!(
        world.refused(Method::GET, "/nodes/nosuch", None).await,
        (404, "node nosuch not found".to_owned())
    );
    // The manager writes to the node as well: what was read may be out of date by now.
    let spec = json!({"Labels": {"zone": "a"}, "Role": "worker", "Availability": "active"});
    let (status, message) = loop {
        let version = world.get("/nodes/one").await["Version"]["Index"].clone();
        let path = format!("/nodes/{}/update?version={version}", world.node);
        let answer = world.refused(Method::POST, &path, Some(spec.clone())).await;
        if answer.0 != 409 {
            break answer;
        }
    };
    assert_eq!(status, 400);
    assert!(message.ends_with("attempting to demote the last manager of the swarm"), "{message}");
    let (status, message) = world.refused(Method::DELETE, &format!("/nodes/{}", world.node), None).await;
    assert_eq!(status, 400);
    assert!(message.ends_with("It must be demoted to worker before removal"), "{message}");

    let swarm = world.get("/swarm").await;
    let mut spec = swarm["Spec"].clone();
    spec["Orchestration"]["TaskHistoryRetentionLimit"] = json!(3);
    let path = format!("/swarm/update?version={}", swarm["Version"]["Index"]);
    assert_eq!(world.ask(Method::POST, &path, Some(spec)).await.0, 200);
    assert_eq!(world.get("/swarm").await["Spec"]["Orchestration"]["TaskHistoryRetentionLimit"], 3);
    let again = world.refused(Method::POST, "/swarm/init", Some(json!({}))).await;
    assert_eq!(again.0, 503);
    assert!(again.1.starts_with("This node is already part of a swarm."));
    assert_eq!(world.refused(Method::POST, "/swarm/leave", None).await, (503, "say --force".to_owned()));
    assert_eq!(world.ask(Method::POST, "/swarm/leave?force=1", None).await.0, 200);
    world.end().await;
}

#[tokio::test]
async fn tasks_are_listed_by_what_they_belong_to() {
    let world = World::new().await;
    world.ask(Method::POST, "/services/create", Some(service("web", |_| {}))).await;
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
    let by_service = "/tasks?filters=%7B%22service%22%3A%7B%22web%22%3Atrue%7D%2C%22_up-to-date%22%3A%7B%22true%22\
                      %3Atrue%7D%7D";
    while world.get(by_service).await.as_array().unwrap().len() < 2 {
        assert!(tokio::time::Instant::now() < deadline, "the orchestrator makes two tasks");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let tasks = world.get("/tasks").await;
    let task = &tasks[0];
    assert_eq!(task["DesiredState"], "running");
    assert_eq!(world.get(&format!("/tasks/{}", task["ID"].as_str().unwrap())).await["Slot"], task["Slot"]);
    assert_eq!(world.get("/tasks?filters=%7B%22desired-state%22%3A%5B%22shutdown%22%5D%7D").await, json!([]));
    let bad = "/tasks?filters=%7B%22desired-state%22%3A%5B%22x%22%5D%7D";
    assert_eq!(world.refused(Method::GET, bad, None).await.0, 400);
    let unknown = "/tasks?filters=%7B%22service%22%3A%5B%22x%22%5D%7D";
    assert_eq!(world.refused(Method::GET, unknown, None).await, (404, "service x not found".to_owned()));
    assert_eq!(
        world.refused(Method::GET, "/services/web/logs", None).await,
        (400, "Bad parameters: you must choose at least one stream".to_owned())
    );
    world.end().await;
}

#[tokio::test]
async fn secrets_and_configs_are_answered_as_by_docker() {
    let world = World::new().await;
    for kind in ["secret", "config"] {
        let declared = json!({"Name": "one", "Labels": {}, "Data": "dm0K"});
        let make = format!("/{kind}s/create");
        let (status, made) = world.ask(Method::POST, &make, Some(declared.clone())).await;
        assert_eq!((status.as_u16(), made.as_object().unwrap().len()), (201, 1), "{made}");
        let shown = world.get(&format!("/{kind}s")).await;
        assert_eq!(shown, json!([world.get(&format!("/{kind}s/one")).await]));
        let expect = match kind {
            "secret" => json!({"Name": "one", "Labels": {}}),
            _ => declared.clone(),
        };
        assert_eq!((&shown[0]["ID"], &shown[0]["Spec"]), (&made["ID"], &expect));
        let taken = format!("rpc error: code = AlreadyExists desc = {kind} one already exists");
        assert_eq!(world.refused(Method::POST, &make, Some(declared)).await, (409, taken));
        let large = json!({"Name": "large", "Data": "AAAA".repeat(350_000)});
        let (status, message) = world.refused(Method::POST, &make, Some(large)).await;
        assert!(status == 400 && message.contains("data must be larger than 0 and less than"), "{message}");
        assert_eq!(world.ask(Method::DELETE, &format!("/{kind}s/one"), None).await.0, 204);
        let gone = world.refused(Method::GET, &format!("/{kind}s/one"), None).await;
        assert_eq!(gone, (404, format!("{kind} one not found")));
        assert_eq!(world.get(&format!("/{kind}s")).await, json!([]));
    }
    world.end().await;
}
