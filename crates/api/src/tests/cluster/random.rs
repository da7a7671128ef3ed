//! Whatever a client declares: it is refused with a reason, or what comes of it is told.

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;

/// Places of a declaration, and what may stand there: sense and nonsense.
fn wishes() -> Vec<(&'static str, Vec<Value>)> {
    let port = |more: Value| {
        let mut port = json!({"TargetPort": 80});
        port.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        port
    };
    let mode = |mode: Value| json!({"Replicated": {"Replicas": mode}});
    vec![
        ("/Name", vec![json!("bad name"), json!("a.b"), json!("x".repeat(64)), json!(7), json!("other")]),
        ("/Labels", vec![json!({"a": "b"}), json!({"a": 1}), json!(null)]),
        ("/Mode", vec![mode(json!(0)), mode(json!(3)), mode(json!(-1)), mode(json!(u64::MAX))]),
        ("/Mode", vec![mode(json!(1e30)), mode(json!("x")), mode(json!(null)), mode(json!(1_u64 << 62))]),
        ("/Mode", vec![json!({}), json!(null), json!(5), json!({"Global": {}}), json!({"GlobalJob": {}})]),
        (
            "/Mode",
            vec![
                json!({"ReplicatedJob": {}}),
                json!({"ReplicatedJob": {"MaxConcurrent": 2, "TotalCompletions": 5}}),
                json!({"ReplicatedJob": {"MaxConcurrent": 0, "TotalCompletions": 3}}),
                json!({"ReplicatedJob": {"MaxConcurrent": -1}}),
                json!({"ReplicatedJob": {}, "Global": {}}),
            ],
        ),
        ("/TaskTemplate/ContainerSpec/Image", vec![json!(""), json!("a b"), json!("busybox@x"), json!(1)]),
        ("/TaskTemplate/ContainerSpec/Env", vec![json!(["A=b"]), json!([1]), json!("A=b")]),
        ("/TaskTemplate/ContainerSpec/Mounts", vec![json!([{}]), json!([{"Type": "bind"}])]),
        (
            "/TaskTemplate/ContainerSpec/Mounts",
            vec![
                json!([{"Type": "tmpfs", "Target": "/t"}]),
                json!([{"Type": "bind", "Source": "/", "Target": "/t"}]),
            ],
        ),
        ("/TaskTemplate/ContainerSpec/Healthcheck", vec![json!({"Interval": 1}), json!({"Retries": -1})]),
        ("/TaskTemplate/ContainerSpec/StopGracePeriod", vec![json!(0), json!(-1), json!(1_000_000_000)]),
        ("/TaskTemplate/Resources/Limits", vec![json!({"NanoCPUs": 1}), json!({"MemoryBytes": -1})]),
        (
            "/TaskTemplate/Resources/Reservations",
            vec![
                json!({"MemoryBytes": 1_u64 << 50}),
                json!({"NanoCPUs": 1_000_000_000}),
                json!({"NanoCPUs": "1"}),
            ],
        ),
        (
            "/TaskTemplate/Placement",
            vec![
                json!({"Constraints": ["node.role==manager"]}),
                json!({"Constraints": ["node.labels.a!=b", "node.id==x"]}),
                json!({"Constraints": ["foo"]}),
                json!({"Constraints": [5]}),
                json!({"MaxReplicas": 1}),
                json!({"Preferences": [{"Spread": {"SpreadDescriptor": "node.labels.zone"}}]}),
                json!({"Preferences": [{"Spread": {"SpreadDescriptor": "zone"}}]}),
                json!({"Platforms": [{"Architecture": "sparc", "OS": "plan9"}]}),
            ],
        ),
        (
            "/TaskTemplate/RestartPolicy",
            vec![
                json!({"Condition": "any"}),
                json!({"Condition": "x"}),
                json!({"Delay": -1, "Condition": "none"}),
            ],
        ),
        (
            "/TaskTemplate/Networks",
            vec![
                json!([{"Target": "mynet"}]),
                json!([{"Target": "mynet"}, {"Target": "mynet"}]),
                json!([{"Target": "host"}]),
                json!([{"Target": "host"}, {"Target": "mynet"}]),
                json!([{"Target": "ingress"}]),
                json!([{"Target": "nosuch"}]),
                json!(["mynet"]),
            ],
        ),
        ("/TaskTemplate/ForceUpdate", vec![json!(1), json!(-1), json!("1")]),
        ("/TaskTemplate/Runtime", vec![json!("container"), json!("plugin"), json!("x")]),
        (
            "/UpdateConfig",
            vec![
                json!({"Parallelism": 2, "Order": "start-first"}),
                json!({"FailureAction": "x"}),
                json!({"MaxFailureRatio": 2}),
                json!({"Delay": -1}),
            ],
        ),
        ("/RollbackConfig", vec![json!({"FailureAction": "rollback"}), json!({"Parallelism": 1})]),
        ("/EndpointSpec/Mode", vec![json!("dnsrr"), json!("foo"), json!(1)]),
        (
            "/EndpointSpec/Ports",
            vec![
                json!([port(json!({}))]),
                json!([port(json!({"PublishedPort": 8000}))]),
                json!([port(json!({"PublishedPort": 8000, "PublishMode": "host"}))]),
                json!([port(json!({"PublishedPort": 8000})), port(json!({"PublishedPort": 8000}))]),
                json!([port(json!({"PublishedPort": 70_000}))]),
                json!([port(json!({"TargetPort": 0}))]),
                json!([port(json!({"Protocol": "sctp"}))]),
                json!([port(json!({"PublishMode": "x"}))]),
                json!({}),
            ],
        ),
    ]
}

/// Which place, and which of what may stand there.
type Choice = (usize, usize);

fn declaration(choices: &[Choice]) -> Value {
    let wishes = wishes();
    let mut spec = service("s", |_| {});
    for (place, what) in choices {
        let (path, values) = &wishes[place % wishes.len()];
        let (parent, key) = path.rsplit_once('/').unwrap();
        if let Some(Value::Object(parent)) = spec.pointer_mut(parent) {
            parent.insert((*key).to_owned(), values[what % values.len()].clone());
        }
    }
    spec
}

/// The answer is one a client can do something with: success, or a refusal with a reason. Where Docker's own
/// engine answers with 500 (`code = Unknown`), so does this one.
fn is_fair(status: StatusCode, answer: &Value) -> bool {
    let message = answer["message"].as_str().unwrap_or_default();
    let own = message.starts_with("rpc error: code = Unknown desc = ");
    status.is_success()
        || (!message.is_empty() && (status.is_client_error() || status == StatusCode::NOT_IMPLEMENTED || own))
}

/// Every task of the service has a node, or says why not.
async fn told(world: &World, id: &str) -> Result<(), String> {
    let shown = world.get(&format!("/services/{id}")).await;
    let tasks = world.get(&format!("/tasks?filters=%7B%22service%22%3A%5B%22{id}%22%5D%7D")).await;
    let tasks = tasks.as_array().unwrap();
    let mode = &shown["Spec"]["Mode"];
    let job = |key: &str| mode["ReplicatedJob"][key].as_u64().unwrap_or_default();
    let wanted = match mode["Replicated"]["Replicas"].as_u64() {
        Some(replicas) => replicas,
        None if mode["ReplicatedJob"].is_object() => job("MaxConcurrent").min(job("TotalCompletions")),
        // The one node is not there: nothing is asked of it.
        None => 0,
    };
    let live =
        tasks.iter().filter(|task| matches!(task["DesiredState"].as_str(), Some("running" | "complete")));
    let live: Vec<&Value> = live.collect();
    if (live.len() as u64) < wanted {
        return Err(format!("{} of {wanted} tasks of {shown:#}", live.len()));
    }
    let silent = |task: &&&Value| task["Status"]["Err"].as_str().is_none_or(str::is_empty);
    match live.iter().find(silent) {
        Some(task) => Err(format!("a task that says nothing: {task:#} of {shown:#}")),
        None => Ok(()),
    }
}

async fn run(world: &World, first: &[Choice], second: &[Choice]) -> Result<(), TestCaseError> {
    let (status, answer) = world.ask(Method::POST, "/services/create", Some(declaration(first))).await;
    prop_assert!(is_fair(status, &answer), "{status} {answer}");
    let Some(id) = answer["ID"].as_str() else { return Ok(()) };
    comes_to_say(world, id).await?;
    let version = world.get(&format!("/services/{id}")).await["Version"]["Index"].clone();
    let path = format!("/services/{id}/update?version={version}");
    let (status, answer) = world.ask(Method::POST, &path, Some(declaration(second))).await;
    prop_assert!(is_fair(status, &answer) || status == StatusCode::CONFLICT, "{status} {answer}");
    comes_to_say(world, id).await?;
    let removed = world.ask(Method::DELETE, &format!("/services/{id}"), None).await;
    prop_assert_eq!(removed.0, 200);
    Ok(())
}

async fn comes_to_say(world: &World, id: &str) -> Result<(), TestCaseError> {
    let mut last = Ok(());
    for _ in 0..500 {
        last = told(world, id).await;
        if last.is_ok() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    last.map_err(TestCaseError::fail)
}

#[test]
fn whatever_is_declared_is_refused_with_a_reason_or_told_what_comes_of_it() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let world = runtime.block_on(World::new());
    let (status, _) = runtime.block_on(world.ask(Method::POST, "/networks/create", Some(network("mynet"))));
    assert_eq!(status, 201);
    let choice = || (any::<usize>(), any::<usize>());
    let mut runner = TestRunner::new(Config { cases: 200, failure_persistence: None, ..Config::default() });
    let choices = (vec(choice(), 0..4), vec(choice(), 0..4));
    runner.run(&choices, |(first, second)| runtime.block_on(run(&world, &first, &second))).unwrap();
    runtime.block_on(world.end());
}
