use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;
use shoal_model as model;
use shoal_model::{NetworkId, ServiceSpec};

use super::*;
use crate::body::decode;
use crate::convert::service_out::Defaults;
use crate::convert::{network, service_in, service_out, swarm, task};
use crate::error::{ApiError, Result};

fn read(text: &str) -> Result<ServiceSpec> {
    service_in::service(decode(text.as_bytes())?, &|term| Ok(NetworkId::new(term)))
}

fn show(spec: &ServiceSpec, defaults: Defaults) -> Value {
    serde_json::to_value(service_out::spec(spec, defaults)).unwrap()
}

fn refusal(change: impl Fn(&mut Value)) -> (u16, String) {
    let mut spec = value(golden!("vip-service.request.json"));
    change(&mut spec);
    let ApiError { status, message } = read(&spec.to_string()).unwrap_err();
    (status.as_u16(), message)
}

#[test]
fn a_service_reads_back_as_it_was_declared() {
    let spec = read(golden!("vip-service.request.json")).unwrap();
    assert_eq!(show(&spec, Defaults::Omit), value(golden!("vip-service.json"))["Spec"]);
    assert_eq!(show(&spec, Defaults::Insert), value(golden!("vip-service.defaults.json"))["Spec"]);
}

/// Everything but what is refused: a named volume.
fn full(mut spec: Value) -> Value {
    let template = &mut spec["TaskTemplate"];
    let mounts = template["ContainerSpec"]["Mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| mount["Type"] != "volume");
    spec
}

#[test]
fn every_option_of_a_service_survives() {
    let spec = read(&full(value(golden!("full-service.request.json"))).to_string()).unwrap();
    let expect = full(value(golden!("full-service.defaults.json"))["Spec"].clone());
    assert_eq!(show(&spec, Defaults::Insert), expect);
    let container = &spec.task.container;
    assert_eq!(container.stop_grace_period, Some(std::time::Duration::from_secs(3)));
    assert_eq!(spec.task.resources.limit_nano_cpus, 500_000_000);
    assert_eq!(spec.update.as_ref().unwrap().order, model::UpdateOrder::StartFirst);
    assert_eq!(spec.task.log_options["max-size"], "1m");
}

#[test]
fn what_is_shown_can_be_sent_back() {
    for text in [
        golden!("vip-service.defaults.json"),
        golden!("published-service.defaults.json"),
        golden!("dnsrr-service.defaults.json"),
    ] {
        let shown = value(text)["Spec"].clone();
        let spec = read(&shown.to_string()).unwrap();
        assert_eq!(show(&spec, Defaults::Insert), shown);
        let again = read(&show(&spec, Defaults::Omit).to_string()).unwrap();
        assert_eq!(show(&again, Defaults::Insert), shown);
    }
}

#[test]
fn an_endpoint_is_shown_once_there_is_something_to_reach() {
    let golden = value(golden!("vip-service.json"));
    let mut service = model::Service {
        id: golden["ID"].as_str().unwrap().into(),
        meta: model::Meta {
            version: 19,
            created: golden["CreatedAt"].as_str().unwrap().parse().unwrap(),
            updated: golden["UpdatedAt"].as_str().unwrap().parse().unwrap(),
        },
        spec: read(golden!("vip-service.request.json")).unwrap(),
        previous: None,
        endpoint: model::ServiceEndpoint::default(),
        removing: false,
        allocation_error: String::new(),
        update_status: None,
        job: None,
        credentials: None,
    };
    let show = |service: &model::Service| {
        serde_json::to_value(service_out::service(service, Defaults::Omit)).unwrap()
    };
    assert_eq!(show(&service)["Endpoint"], json!({"Spec": {}}));
    service.endpoint.virtual_ips.push(model::VirtualIp {
        network: "pall5fjo2nc9iy61n88zg3q0w".into(),
        address: "10.0.1.2/24".parse().unwrap(),
    });
    assert_eq!(show(&service), golden);
}

#[test]
fn a_host_port_stays_one() {
    let request = value(golden!("host-port-service.request.json"));
    let spec = read(golden!("host-port-service.request.json")).unwrap();
    assert!(spec.endpoint.ports.iter().all(|port| port.mode == model::PublishMode::Host));
    assert_eq!(show(&spec, Defaults::Omit)["EndpointSpec"], request["EndpointSpec"]);
}

#[test]
fn secrets_and_configs_of_a_service_come_back_as_they_were_declared() {
    let mut spec = value(golden!("vip-service.request.json"));
    let file = |name: &str| json!({"Name": name, "UID": "7", "GID": "0", "Mode": 292});
    let container = &mut spec["TaskTemplate"]["ContainerSpec"];
    container["Secrets"] = json!([{"File": file("sec1"), "SecretID": "abc", "SecretName": "sec1"}]);
    container["Configs"] = json!([{"File": file("/cfg"), "ConfigID": "def", "ConfigName": "cfg1"}]);
    let read = read(&spec.to_string()).unwrap();
    assert_eq!(read.task.container.configs[0].file.mode, 0o444);
    let shown = show(&read, Defaults::Omit);
    for key in ["Secrets", "Configs"] {
        assert_eq!(
            shown["TaskTemplate"]["ContainerSpec"][key], spec["TaskTemplate"]["ContainerSpec"][key],
            "{key}"
        );
    }
}

#[test]
fn a_global_service_stays_one() {
    let mut spec = value(golden!("vip-service.request.json"));
    spec["Mode"] = json!({"Global": {}});
    let spec = read(&spec.to_string()).unwrap();
    assert_eq!(spec.mode, model::ServiceMode::Global);
    assert_eq!(show(&spec, Defaults::Omit)["Mode"], json!({"Global": {}}));
}

#[test]
fn a_job_is_shown_with_its_execution() {
    let mut spec = value(golden!("vip-service.request.json"));
    spec["Mode"] = json!({"ReplicatedJob": {"MaxConcurrent": 2}});
    let declared = read(&spec.to_string()).unwrap();
    assert_eq!(declared.mode, model::ServiceMode::ReplicatedJob { concurrent: 2, total: 2 });
    spec["Mode"]["ReplicatedJob"]["TotalCompletions"] = json!(3);
    let declared = read(&spec.to_string()).unwrap();
    let shown = show(&declared, Defaults::Insert);
    assert_eq!(shown["Mode"], spec["Mode"]);
    assert_eq!(shown.get("UpdateConfig"), None, "it would be refused if it came back");
    spec["Mode"] = json!({"GlobalJob": {}});
    assert_eq!(read(&spec.to_string()).unwrap().mode, model::ServiceMode::GlobalJob);
    spec["Mode"]["Replicated"] = json!({});
    assert_eq!(read(&spec.to_string()).unwrap_err().message, "must specify only one service mode");

    let begun = "2026-11-23T08:33:45.30473267Z";
    let mut job = model::Service {
        id: "job".into(),
        meta: model::Meta::new(begun.parse().unwrap()),
        spec: declared,
        previous: None,
        endpoint: model::ServiceEndpoint::default(),
        removing: false,
        allocation_error: String::new(),
        update_status: None,
        credentials: None,
        job: Some(model::JobStatus { iteration: 0, begun: begun.parse().unwrap() }),
    };
    let status =
        |job: &model::Service| serde_json::to_value(service_out::service(job, Defaults::Omit)).unwrap();
    assert_eq!(status(&job)["JobStatus"], json!({"JobIteration": {}, "LastExecution": begun}));
    job.job.as_mut().unwrap().iteration = 2;
    assert_eq!(status(&job)["JobStatus"]["JobIteration"], json!({"Index": 2}));
}

#[test]
fn what_cannot_be_honoured_is_refused_by_name() {
    let template = |path: &'static [&'static str], what: Value| {
        move |spec: &mut Value| {
            let mut at = &mut spec["TaskTemplate"];
            for key in path {
                at = &mut at[*key];
            }
            *at = what.clone();
        }
    };
    let yet = |what: &str| (501, format!("{what} not supported by shoal yet"));
    let config = json!([{"ConfigID": "x", "Runtime": {}}]);
    let refused = refusal(template(&["ContainerSpec", "Configs"], config));
    assert_eq!(refused, yet("configs for the runtime (credential specs) are"));
    let volume = json!([{"Type": "volume", "Source": "v", "Target": "/v",
                         "VolumeOptions": {"DriverConfig": {"Name": "nfs"}}}]);
    assert_eq!(refusal(template(&["ContainerSpec", "Mounts"], volume)), yet("volume driver nfs is"));
    let generic = json!([{"DiscreteResourceSpec": {"Kind": "gpu", "Value": 1}}]);
    assert_eq!(
        refusal(template(&["Resources", "Reservations", "GenericResources"], generic)),
        yet("generic resources are")
    );
    let driver = json!({"Name": "syslog"});
    assert_eq!(refusal(template(&["LogDriver"], driver)), yet("log driver syslog is"));
    assert_eq!(refusal(template(&["ContainerSpec", "Privileges", "NoNewPrivileges"], json!(true))).0, 501);
    assert_eq!(
        refusal(|spec| spec["Mode"] = json!({"Replicated": {}, "Global": {}})),
        (400, "must specify only one service mode".to_owned())
    );
    assert_eq!(
        refusal(|spec| spec["EndpointSpec"]["Mode"] = json!("foo")),
        (400, "invalid resolution mode: \"foo\"".to_owned())
    );
    assert_eq!(refusal(|spec| spec["EndpointSpec"]["Ports"] = json!([{"TargetPort": 99999}])).0, 400);
    assert_eq!(refusal(|spec| spec["Mode"]["Replicated"]["Replicas"] = json!(-1)).0, 400);
}

#[test]
fn a_stack_is_read_and_shown_as_it_was_declared() {
    let declared = value(golden!("stack-service.request.json"));
    let spec = read(&declared.to_string()).unwrap();
    let shown = show(&spec, Defaults::Omit);
    for key in ["Configs", "Mounts"] {
        let of = |spec: &Value| spec["TaskTemplate"]["ContainerSpec"][key].clone();
        assert!(of(&declared).is_array() && of(&shown) == of(&declared), "{key}: {:#}", of(&shown));
    }
    assert_eq!(spec.task.networks[0].network.as_str(), "st_front");
    assert!(spec.task.networks[0].aliases.contains(&"database".to_owned()));
}

fn overlay(golden: &Value) -> model::Network {
    let request = decode(golden!("network.request.json").as_bytes()).unwrap();
    let network::Declared::OfCluster(spec) = network::create(request).unwrap() else { panic!() };
    let pools = spec.pools.clone();
    model::Network {
        id: golden["Id"].as_str().unwrap().into(),
        meta: model::Meta::new(golden["Created"].as_str().unwrap().parse().unwrap()),
        spec,
        state: Some(model::NetworkState {
            vni: 4098,
            pools,
            last_address: None,
            last_address_v6: None,
            resting: Vec::new(),
        }),
    }
}

#[test]
fn a_network_reads_back_as_it_was_declared() {
    let golden = value(golden!("network.json"));
    let network = overlay(&golden);
    assert_eq!(serde_json::to_value(network::cluster(&network, None)).unwrap(), golden);
}

#[test]
fn networks_that_cannot_be_are_refused() {
    let check = |change: &dyn Fn(&mut Value)| {
        let mut request = value(golden!("network.request.json"));
        change(&mut request);
        let error = network::create(decode(request.to_string().as_bytes()).unwrap()).unwrap_err();
        (error.status.as_u16(), error.message)
    };
    assert_eq!(
        check(&|request| request["Options"]["encrypted"] = json!("")),
        (501, "encrypted overlay networks are not supported by shoal yet".to_owned())
    );
    assert_eq!(
        check(&|request| request["Driver"] = json!("nosuchdriver")),
        (404, "plugin \"nosuchdriver\" not found".to_owned())
    );
    assert_eq!(check(&|request| request["Driver"] = json!("ipvlan")).0, 501);
    assert_eq!(check(&|request| request["Driver"] = json!("host")).0, 403);
    assert_eq!(
        check(&|request| request["IPAM"]["Config"][0]["Subnet"] = json!("300.0.0.0/8")),
        (400, "Invalid subnet 300.0.0.0/8 : invalid CIDR address: 300.0.0.0/8".to_owned())
    );
    assert_eq!(check(&|request| request["IPAM"]["Config"][0]["Gateway"] = json!("x")).0, 400);
    assert_eq!(
        check(&|request| request["IPAM"]["Config"] = json!([{"Gateway": "10.0.0.1"}])),
        (400, "every ip-range or gateway must have a corresponding subnet".to_owned())
    );
}

#[test]
fn a_task_is_shown_as_dockers() {
    let golden = value(golden!("task.json"));
    let network_of = |at: &Value, ingress: bool| {
        let (network, pool) = (&at["Network"], &at["Network"]["IPAMOptions"]["Configs"][0]);
        let pools = vec![model::AddressPool {
            gateway: Some(pool["Gateway"].as_str().unwrap().parse().unwrap()),
            ..model::AddressPool::new(pool["Subnet"].as_str().unwrap().parse().unwrap())
        }];
        let mut meta = model::Meta::new(network["CreatedAt"].as_str().unwrap().parse().unwrap());
        meta.updated = network["UpdatedAt"].as_str().unwrap().parse().unwrap();
        meta.version = network["Version"]["Index"].as_u64().unwrap();
        let vni =
            network["DriverState"]["Options"]["com.docker.network.driver.overlay.vxlanid_list"].as_str();
        model::Network {
            id: network["ID"].as_str().unwrap().into(),
            meta,
            spec: model::NetworkSpec {
                name: network["Spec"]["Name"].as_str().unwrap().to_owned(),
                labels: model::Labels::new(),
                driver: model::NetworkDriver::Overlay,
                options: model::Labels::new(),
                internal: false,
                attachable: false,
                ingress,
                ipv6: false,
                pools: Vec::new(),
                config_from: None,
            },
            state: Some(model::NetworkState {
                vni: vni.unwrap().parse().unwrap(),
                pools,
                last_address: None,
                resting: Vec::new(),
                last_address_v6: None,
            }),
        }
    };
    let attached = golden["NetworksAttachments"].as_array().unwrap();
    let networks = [network_of(&attached[0], true), network_of(&attached[1], false)];
    let at = |index: usize| model::Attachment {
        network: networks[index].id.clone(),
        address: attached[index]["Addresses"][0].as_str().unwrap().parse().unwrap(),
        address_v6: None,
        mac: "02:42:00:00:00:01".parse().unwrap(),
        aliases: Vec::new(),
    };
    let mut meta = model::Meta::new(golden["CreatedAt"].as_str().unwrap().parse().unwrap());
    meta.updated = golden["UpdatedAt"].as_str().unwrap().parse().unwrap();
    meta.version = 105;
    let mut spec = read(golden!("vip-service.request.json")).unwrap().task;
    spec.container.labels.insert("cx".to_owned(), "cy".to_owned());
    spec.force_update = 1;
    let status = &golden["Status"];
    let mut observed = model::TaskStatus::new(
        model::TaskState::Running,
        status["Timestamp"].as_str().unwrap().parse().unwrap(),
        "started",
    );
    observed.container = Some(model::ContainerStatus {
        id: status["ContainerStatus"]["ContainerID"].as_str().unwrap().into(),
        pid: 8225,
        exit_code: 0,
    });
    let made = model::Task {
        id: golden["ID"].as_str().unwrap().into(),
        meta,
        service: golden["ServiceID"].as_str().unwrap().into(),
        service_name: "myservice".to_owned(),
        service_labels: Default::default(),
        slot: 1,
        pinned: None,
        spec,
        ports: Vec::new(),
        node: Some(golden["NodeID"].as_str().unwrap().into()),
        desired: model::TaskState::Running,
        status: observed,
        attachments: vec![at(1), at(0)],
        running_since: None,
        released: false,
        credentials: None,
        start_after: None,
        failures: Vec::new(),
        iteration: None,
    };
    let networks: Vec<_> = networks.into_iter().map(Arc::new).collect();
    let shown =
        task::task(&made, None, |id| networks.iter().find(|network| network.id == *id).map(Arc::as_ref));
    let mut expect = golden.clone();
    // Docker shows the driver of the network it makes itself as unset; here it is what it is.
    expect["NetworksAttachments"][0]["Network"]["Spec"]["DriverConfiguration"] = json!({"Name": "overlay"});
    expect["NetworksAttachments"][0]["Network"]["Spec"]["IPAMOptions"] =
        json!({"Driver": {"Name": "default"}});
    assert_eq!(serde_json::to_value(shown).unwrap(), expect);
}

#[test]
fn a_cluster_is_declared_and_shown() {
    let request = swarm::init(decode(golden!("swarm-init.request.json").as_bytes()).unwrap()).unwrap();
    assert_eq!((request.advertise.as_str(), request.listen.as_str()), ("eth0", "0.0.0.0:2377"));
    assert_eq!(request.spec, model::ClusterSpec::default());
    let update = decode(golden!("swarm-update.request.json").as_bytes()).unwrap();
    let spec = swarm::spec(update, model::ClusterSpec::default()).unwrap();
    assert_eq!(spec, model::ClusterSpec { task_history: 3, ..model::ClusterSpec::default() });
    let cluster = model::Cluster {
        id: "c".into(),
        meta: model::Meta::new(jiff::Timestamp::UNIX_EPOCH),
        spec,
        epoch: 1,
        last_vni: None,
        authority: model::Authority::default(),
        next_authority: None,
    };
    let shown = serde_json::to_value(swarm::cluster(&cluster, None)).unwrap();
    assert_eq!(shown["Spec"], value(golden!("swarm-update.request.json")));
    assert_eq!(shown["DefaultAddrPool"], Value::Null);
    assert!(shown.get("JoinTokens").is_none(), "tokens are secrets");
}

/// Any JSON, with names that the API knows among its keys.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop_oneof!["[a-z/:.0-9]{0,12}", "\\PC{0,6}"].prop_map(Value::from),
    ];
    let keys = prop::sample::select(vec![
        "Name",
        "Labels",
        "TaskTemplate",
        "ContainerSpec",
        "Mounts",
        "Type",
        "Source",
        "Target",
        "Mode",
        "Replicated",
        "Replicas",
        "Global",
        "EndpointSpec",
        "Ports",
        "TargetPort",
        "PublishedPort",
        "Protocol",
        "UpdateConfig",
        "Delay",
        "MaxFailureRatio",
        "RestartPolicy",
        "Condition",
        "Healthcheck",
        "Interval",
        "Resources",
        "Limits",
        "NanoCPUs",
        "Networks",
        "DNSConfig",
        "Nameservers",
        "IPAM",
        "Config",
        "Subnet",
        "Gateway",
        "Driver",
        "Options",
        "Spec",
        "DefaultAddrPool",
        "SubnetSize",
        "DataPathPort",
        "Dispatcher",
        "HeartbeatPeriod",
        "Orchestration",
        "TaskHistoryRetentionLimit",
        "Role",
        "Availability",
        "Secrets",
    ]);
    leaf.prop_recursive(5, 48, 8, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((keys.clone(), inner), 0..8)
                .prop_map(|pairs| pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
        ]
    })
}

proptest! {
    #[test]
    fn no_json_upsets_a_conversion(body in any_json()) {
        let text = body.to_string();
        let described = |error: ApiError| {
            assert!(!error.message.is_empty());
            assert!(matches!(error.status.as_u16(), 400 | 404 | 501), "{error:?}");
        };
        read(&text).map(drop).unwrap_or_else(described);
        decode(text.as_bytes()).and_then(network::create).map(drop).unwrap_or_else(described);
        decode(text.as_bytes()).and_then(swarm::init).map(drop).unwrap_or_else(described);
        decode(text.as_bytes()).and_then(crate::convert::node::spec).map(drop).unwrap_or_else(described);
    }

    #[test]
    fn a_spec_that_was_taken_reads_back_the_same(body in any_json()) {
        if let Ok(spec) = read(&body.to_string()) {
            let shown = show(&spec, Defaults::Insert).to_string();
            prop_assert_eq!(show(&read(&shown).unwrap(), Defaults::Insert).to_string(), shown);
        }
    }
}
