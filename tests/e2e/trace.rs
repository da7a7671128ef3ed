//! Why a name leads where it leads: told on every node, as resolver and kernel really do it.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::Value;
use shoal_e2e::dns::{A, Transport, ask, reverse};
use shoal_e2e::{Cluster, Container, DNS_SERVER, Node, NodeOptions, OUTSIDE_NAME, PATIENCE, wait_until};

use crate::containers::alone;
use crate::drift::empty;
use crate::locals::{address, run};

/// Seconds between two looks of a node at what it holds.
const PERIOD: u64 = 5;

/// Two nodes with a client each on `mynet`.
struct Stage {
    cluster: Cluster,
    clients: Vec<Container>,
}

impl Stage {
    fn set(verify_period: u64) -> Self {
        let cluster = Cluster::start_with(2, &NodeOptions { verify_period, ..NodeOptions::default() });
        cluster.manager().network("mynet");
        let clients = cluster.service_on_each("client", &["--network", "mynet"], &["idle"]);
        Self { cluster, clients }
    }

    fn client(&self, node: u8) -> &Container {
        &self.clients[usize::from(node) - 1]
    }

    /// What the node of one of the clients tells.
    fn trace(&self, node: u8, name: &str) -> Told {
        trace(self.cluster.node(node), &self.client(node).name, name)
    }
}

/// Exit code and trace.
#[derive(Debug)]
struct Told(i32, Value);

fn trace(node: &Node, from: &str, name: &str) -> Told {
    try_trace(node, from, name).unwrap_or_else(|error| panic!("{error}"))
}

/// A daemon that has just started has not taken over every container yet, and says so.
fn try_trace(node: &Node, from: &str, name: &str) -> Result<Told, String> {
    let output = node.shoal(&["trace", name, "--from", from, "--format", "json"]);
    let told = serde_json::from_str(&output.stdout).map_err(|error| format!("{error}: {output}"))?;
    Ok(Told(output.code, told))
}

impl Told {
    fn at(&self, pointer: &str) -> &Value {
        self.1.pointer(pointer).unwrap_or(&Value::Null)
    }

    fn list(&self, pointer: &str) -> Vec<&Value> {
        self.at(pointer).as_array().into_iter().flatten().collect()
    }

    fn text(&self, pointer: &str) -> &str {
        self.at(pointer).as_str().unwrap_or_default()
    }

    /// The data of the answer to A, sorted.
    fn addresses(&self) -> BTreeSet<String> {
        let records = self.list("/lookup/answers/0/records");
        records.iter().map(|record| record["data"].as_str().unwrap().to_owned()).collect()
    }

    /// The one service concerned.
    fn service(&self) -> &Value {
        let services = self.1["services"].as_object().unwrap();
        assert_eq!(services.len(), 1, "{self:?}");
        services.values().next().unwrap()
    }

    fn holder(&self) -> (&str, &Value) {
        assert_eq!(self.list("/holders").len(), 1, "{self:?}");
        (self.text("/holders/0/who/kind"), &self.1["holders"][0]["who"])
    }
}

fn addresses(tasks: &[Container]) -> BTreeSet<String> {
    tasks.iter().map(|task| task.address("mynet").to_string()).collect()
}

#[test]
fn a_name_is_told_from_the_look_up_to_the_tasks_on_every_node() {
    let stage = Stage::set(PERIOD);
    let (cluster, manager) = (&stage.cluster, stage.cluster.manager());
    let web = cluster.web("web", 2, &["--network", "name=mynet,alias=shop"]);
    let rr = cluster.service("rr", 2, &["--network", "mynet", "--endpoint-mode", "dnsrr"], &["idle"]);
    let vip = manager.vip("web");
    for node in [1, 2] {
        let netns = stage.client(node).netns();
        wait_until(PATIENCE, "both backends are in force", || {
            let told = stage.trace(node, "tasks.web");
            if told.addresses() == addresses(&web) { Ok(()) } else { Err(format!("{told:?}")) }
        });
        for (name, kind, wanted) in [
            ("web:80", "service", BTreeSet::from([vip.to_string()])),
            ("shop", "service", BTreeSet::from([vip.to_string()])),
            ("WEB.mynet", "service", BTreeSet::from([vip.to_string()])),
            ("tasks.web", "tasks", addresses(&web)),
            ("rr", "service", addresses(&rr)),
            (web[0].name.as_str(), "endpoint", addresses(&web[..1])),
            (&web[0].id[..12], "endpoint", addresses(&web[..1])),
        ] {
            let told = stage.trace(node, name);
            assert_eq!((told.0, told.text("/lookup/verdict")), (0, "known"), "{name}: {told:?}");
            assert_eq!(told.list("/differences").len(), 0, "{name}: {told:?}");
            assert_eq!((told.holder().0, told.addresses()), (kind, wanted.clone()), "{name}: {told:?}");
            let question = name.trim_end_matches(":80").to_owned();
            let asked = netns.run(move || ask(&question, A, Transport::Udp)).unwrap();
            let asked: BTreeSet<String> = asked.addresses().iter().map(ToString::to_string).collect();
            assert_eq!(asked, wanted, "{name}: what is told is what is answered");
        }

        let told = stage.trace(node, "web:80");
        assert_eq!(told.text("/networks/0/name"), "mynet");
        let own = stage.client(node).address("mynet").to_string();
        assert_eq!(told.list("/networks/0/addresses"), [&Value::from(own)]);
        let revision = |place: &str| told.at(&format!("/networks/0/{place}/revision")).as_u64();
        assert!(revision("in_force").is_some() && revision("in_force") == revision("resolver"), "{told:?}");
        assert_eq!(told.at("/from_manager"), &Value::from(node == 1));
        assert_eq!(revision("current").is_some(), node == 1, "the manager knows what it wants");
        assert_eq!(told.at("/lookup/answers/0/records/0/ttl"), 10);
        assert_eq!(
            (told.text("/targets/0/outcome"), told.text("/targets/0/kind/kind")),
            ("balanced", "virtual")
        );
        let kernel = told.list("/targets/0/kind/kernel");
        let kernel: BTreeSet<String> = kernel.iter().map(|led| led.as_str().unwrap().to_owned()).collect();
        assert_eq!(kernel, addresses(&web));
        for backend in told.list("/targets/0/kind/backends") {
            let task =
                web.iter().find(|task| backend["address"] == task.address("mynet").to_string()).unwrap();
            let heard = (task.node == node).then_some(true);
            assert_eq!(backend["listening"], Value::from(heard), "the own node's only: {told:?}");
        }
        let tasks = told.service()["tasks"].as_array().unwrap();
        let here = web.iter().filter(|task| node == 1 || task.node == node).count();
        assert_eq!(tasks.iter().filter(|task| task["serving"] == true).count(), here, "{told:?}");

        let told = stage.trace(node, "shop");
        assert_eq!(told.holder().1["alias"], true);
        assert_eq!(stage.trace(node, "rr").holder().1["mode"], "dnsrr");
        let told = stage.trace(node, "web.mynet");
        assert_eq!(
            (told.at("/lookup/looks/1/by_network"), told.text("/lookup/looks/1/asked")),
            (&true.into(), "web")
        );
        let told = stage.trace(node, &reverse(web[0].address("mynet")));
        assert_eq!((told.text("/lookup/answers/0/kind"), told.holder().0), ("PTR", "endpoint"));
        let told = stage.trace(node, &format!("{vip}:80"));
        assert_eq!(
            (told.0, told.at("/lookup"), told.text("/targets/0/outcome")),
            (0, &Value::Null, "balanced")
        );
    }
    let text = manager.shoal(&["trace", "web:80", "--from", &stage.client(1).name]).ok();
    for line in ["Led to one of 2 tasks, at random", "The kernel's map agrees with the table"] {
        assert!(text.contains(line), "{text}");
    }
    stage.cluster.finish();
}

#[test]
fn of_an_unknown_name_it_is_told_whom_the_resolver_would_ask_and_where_else_it_is_known() {
    let stage = Stage::set(PERIOD);
    let cluster = &stage.cluster;
    cluster.manager().network("other");
    let place = ["--network", "other", "--constraint", "node.hostname==node1"];
    cluster.service("hidden", 1, &place, &["idle"]);
    for node in [1, 2] {
        let told = stage.trace(node, "nobody.example");
        assert_eq!((told.0, told.text("/lookup/verdict")), (0, "forwarded"), "{told:?}");
        assert_eq!(told.text("/lookup/upstreams/0/server"), DNS_SERVER.to_string());
        assert_eq!(told.at("/lookup/upstreams/0/udp/silent"), &Value::Null);
        assert_eq!((told.list("/lookup/answers").len(), told.list("/elsewhere").len()), (0, 0), "{told:?}");
    }
    let asked = cluster.world.asked();
    assert!(asked.iter().all(|name| name != "nobody.example"), "to tell is not to ask: {asked:?}");
    for name in ["hidden", "hidden.other", "tasks.hidden"] {
        let told = stage.trace(1, name);
        assert_eq!(told.text("/lookup/verdict"), "forwarded");
        let places = (told.text("/elsewhere/0/network_name"), told.text("/elsewhere/0/name"));
        assert_eq!(places, ("other", "hidden"), "{told:?}");
    }
    let told = stage.trace(2, "hidden");
    assert_eq!(told.list("/elsewhere").len(), 0, "a node knows its own networks only: {told:?}");

    let client = stage.client(1).netns();
    client.run(|| ask(OUTSIDE_NAME, A, Transport::Udp)).unwrap();
    let told = stage.trace(1, OUTSIDE_NAME);
    assert_eq!(
        (told.at("/lookup/answers/0/from_cache"), told.text("/targets/0/kind/kind")),
        (&true.into(), "outside")
    );
    cluster.world.disconnect(1);
    client.run(|| ask("late.example", A, Transport::Udp)).unwrap();
    let told = stage.trace(1, "late.example");
    assert!(told.at("/lookup/upstreams/0/udp/silent/retry_in").is_u64(), "{told:?}");
    cluster.world.connect(&cluster.node(1).netns, 1);
    cluster.ready(2);
    stage.cluster.finish();
}

#[test]
fn why_a_service_refuses_is_told_with_what_keeps_its_tasks() {
    let stage = Stage::set(PERIOD);
    let manager = stage.cluster.manager();
    let on = ["--network", "mynet"];
    let with = |flags: &[&'static str]| [&on[..], flags].concat();
    manager.create_service("nowhere", 1, &with(&["--constraint", "node.labels.gpu==yes"]), &["idle"]);
    let checked =
        ["--health-cmd", "echo broken; false", "--health-interval", "1s", "--health-retries", "1000"];
    let place = ["--constraint", "node.hostname==node2"];
    manager.create_service("sick", 1, &with(&[&checked[..], &place].concat()), &["idle"]);
    let create = ["service", "create", "-d", "--no-resolve-image", "--restart-delay", "1s", "--name"];
    manager.docker(&[&create[..], &["imageless", "--network", "mynet", "no.such/image:1"]].concat()).ok();

    let refused = |node: u8, name: &str, cause: &dyn Fn(&Value) -> bool| {
        wait_until(PATIENCE, &format!("node {node} tells why {name} refuses"), || {
            let told = stage.trace(node, &format!("{name}:80"));
            let is_refused = told.text("/targets/0/outcome") == "refused" && told.0 == 1;
            if is_refused && cause(told.service()) { Ok(()) } else { Err(format!("{told:?}")) }
        });
    };
    let says = |list: &Value, field: &str, words: &str| {
        let texts = list.as_array().into_iter().flatten().filter_map(|task| task[field].as_str());
        texts.into_iter().any(|text| text.contains(words))
    };
    refused(1, "nowhere", &|service| {
        service["replicas"] == 1 && says(&service["tasks"], "error", "no suitable node")
    });
    refused(1, "imageless", &|service| says(&service["failed"], "error", "No such image"));
    refused(1, "sick", &|service| says(&service["tasks"], "state", "starting"));
    refused(2, "sick", &|service| {
        says(&service["tasks"], "health", "starting") && says(&service["tasks"], "health_output", "broken")
    });
    refused(2, "nowhere", &|service| service["replicas"].is_null());
    let text = manager.shoal(&["trace", "nowhere", "--from", &stage.client(1).name]);
    assert!(text.stdout.contains("Refused at once") && text.stdout.contains("no suitable node"), "{text}");
    stage.cluster.finish();
}

#[test]
fn what_the_kernel_holds_otherwise_than_the_table_is_told() {
    let stage = Stage::set(0);
    stage.cluster.web("web", 1, &["--network", "mynet"]);
    let (node, vip) = (stage.cluster.node(2), stage.cluster.manager().vip("web"));
    wait_until(PATIENCE, "the service is balanced", || {
        let told = stage.trace(2, "web");
        if told.text("/targets/0/outcome") == "balanced" { Ok(()) } else { Err(format!("{told:?}")) }
    });
    empty(&PathBuf::from(format!("/sys/fs/bpf/shoal-{}/2/maps/services", node.tag())));
    let told = stage.trace(2, "web");
    assert_eq!((told.0, told.text("/targets/0/outcome")), (1, "direct"), "{told:?}");
    assert_eq!(told.at("/targets/0/kind/kernel"), &Value::Null);
    assert_eq!(told.list("/targets/0/kind/backends").len(), 1, "what should be is told, too");
    assert_eq!(told.list("/differences"), [&Value::from(format!("balancer: {vip} is missing"))]);
    let text = node.shoal(&["trace", "web", "--from", &stage.client(2).name]).stdout;
    assert!(text.contains(&format!("balancer: {vip} is missing")), "{text}");
    assert_eq!(stage.trace(1, "web").0, 0, "the other node is as it was");
    // A daemon that starts anew brings everything into force.
    let mut stage = stage;
    stage.cluster.node_mut(2).kill_daemon();
    stage.cluster.node_mut(2).start_daemon();
    wait_until(PATIENCE, "what was deleted is back", || {
        let told = try_trace(stage.cluster.node(2), &stage.client(2).name, "web")?;
        if told.0 == 0 { Ok(()) } else { Err(format!("{told:?}")) }
    });
    stage.cluster.ready(2);
    stage.cluster.finish();
}

#[test]
fn who_has_no_name_server_of_the_cluster_is_told_so() {
    let node = Node::cluster();
    node.network("mynet");
    node.docker(&["run", "-d", "--name", "bridged", "busybox", "idle"]).ok();
    node.docker(&["run", "-d", "--name", "hosted", "--network", "host", "busybox", "idle"]).ok();
    node.docker(&["run", "-d", "--name", "alone", "--network", "none", "busybox", "idle"]).ok();
    node.docker(&["create", "--name", "idle", "busybox", "idle"]).ok();
    for (from, status, words) in [
        ("bridged", 409, "it is on the default bridge network"),
        ("hosted", 409, "it is on the node's own network"),
        ("alone", 409, "it is on no network"),
        ("idle", 409, "is not running"),
        ("nobody", 404, "No such container: nobody"),
    ] {
        let answer = node.http("GET", &format!("/shoal/trace?from={from}&name=web"), "").unwrap();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(words),
            "{from}: {answer}"
        );
        let told = node.shoal(&["trace", "web", "--from", from]);
        assert!(told.code != 0 && told.stderr.contains(words), "{from}: {told}");
    }
    let answer = node.http("GET", "/shoal/trace?name=web", "").unwrap();
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    node.finish();
}

#[test]
fn names_on_networks_of_one_node_are_told_too() {
    let node = alone();
    node.docker(&["network", "create", "near"]).ok();
    node.docker(&["network", "create", "far"]).ok();
    run(&node, "web", &["--network", "near", "--network-alias", "site"], "serve");
    run(&node, "client", &["--network", "near", "--link", "web:db"], "idle");
    run(&node, "lodger", &["--network", "container:client"], "idle");
    run(&node, "stranger", &["--network", "far"], "idle");
    let web = BTreeSet::from([address(&node, "web", "near").to_string()]);
    for from in ["client", "lodger"] {
        for name in ["web:80", "site", "web.near", "db"] {
            let told = trace(&node, from, name);
            assert_eq!((told.0, told.text("/lookup/verdict")), (0, "known"), "{name} from {from}: {told:?}");
            assert_eq!((told.addresses(), told.holder().0), (web.clone(), "endpoint"), "{told:?}");
            assert_eq!(told.text("/targets/0/outcome"), "direct", "{told:?}");
            assert_eq!(told.list("/differences").len(), 0, "{told:?}");
        }
    }
    let told = trace(&node, "client", "web:80");
    assert_eq!(told.at("/targets/0/kind/listening"), &Value::Bool(true), "{told:?}");
    let told = trace(&node, "stranger", "web");
    assert_eq!((told.text("/lookup/verdict"), told.text("/elsewhere/0/network_name")), ("forwarded", "near"));
    let text = node.shoal(&["trace", "db", "--from", "lodger"]).ok();
    for line in
        ["It is the container's own name for \"web\" (a link)", "Container web on this node, directly"]
    {
        assert!(text.contains(line), "{text}");
    }
    node.docker(&["rm", "-f", "web", "lodger", "client", "stranger"]).ok();
    node.docker(&["network", "rm", "near", "far"]).ok();
    node.finish();
}
