//! Containers and images have every field that a real engine shows, with the same values where both
//! know them.

use shoal_agent::{ContainerNetwork, ContainerView};
use shoal_model as model;
use shoal_runtime::{Container, ContainerConfig, ContainerState, History, Image, ImageConfig};

use super::*;
use crate::convert::{container, image};

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

/// The container of the recorded task.
fn view(golden: &Value) -> ContainerView {
    let (config, state) = (&golden["Config"], &golden["State"]);
    let words = |value: &Value| value.as_array().unwrap().iter().map(|word| text(word).to_owned()).collect();
    let networks = golden["NetworkSettings"]["Networks"].as_object().unwrap().iter();
    let networks = networks.map(|(name, at)| ContainerNetwork {
        name: name.clone(),
        attachment: model::Attachment {
            network: text(&at["NetworkID"]).into(),
            address: format!("{}/{}", text(&at["IPAddress"]), at["IPPrefixLen"]).parse().unwrap(),
            address_v6: None,
            mac: text(&at["MacAddress"]).parse().unwrap(),
            aliases: Vec::new(),
        },
        gateway: None,
        leads_out: false,
    });
    ContainerView {
        container: Container {
            config: ContainerConfig {
                id: text(&golden["Id"]).into(),
                name: text(&golden["Name"]).trim_start_matches('/').to_owned(),
                image: text(&config["Image"]).to_owned(),
                spec: model::ContainerSpec {
                    args: words(&config["Cmd"]),
                    init: Some(false),
                    ..model::ContainerSpec::default()
                },
                resources: model::Resources::default(),
                labels: serde_json::from_value(config["Labels"].clone()).unwrap(),
                netns: Some("/run/netns/x".into()),
                resolv_conf: String::new(),
                hosts: String::new(),
                log_options: model::Labels::new(),
                provided: Vec::new(),
                note: String::new(),
            },
            created: text(&golden["Created"]).parse().unwrap(),
            state: ContainerState::Running { pid: 8225, started: text(&state["StartedAt"]).parse().unwrap() },
            argv: words(&config["Cmd"]),
            env: words(&config["Env"]),
            image_id: text(&golden["Image"]).to_owned(),
            stop_signal: 15,
            dir: "/data/containers/x".into(),
        },
        task: Some("w948al4jyt608borkj4ybldnw".into()),
        plain: None,
        networks: networks.collect(),
        ports: Vec::new(),
        health: None,
        healthcheck: None,
    }
}

/// Every path at which two values differ, but those that must.
fn differences(ours: &Value, theirs: &Value, path: &str, may_differ: &[&str], found: &mut Vec<String>) {
    if may_differ.iter().any(|end| path.ends_with(end)) {
        return;
    }
    match (ours, theirs) {
        (Value::Object(ours), Value::Object(theirs)) => {
            for key in ours.keys().chain(theirs.keys().filter(|key| !ours.contains_key(*key))) {
                let missing = Value::from("missing");
                let (a, b) = (ours.get(key).unwrap_or(&missing), theirs.get(key).unwrap_or(&missing));
                differences(a, b, &format!("{path}.{key}"), may_differ, found);
            }
        }
        _ if ours != theirs => found.push(format!("{path}: {ours} / {theirs}")),
        _ => {}
    }
}

#[test]
fn a_container_is_inspected_as_dockers() {
    let golden = value(golden!("container.json"));
    let shown = serde_json::to_value(container::container(&view(&golden), Vec::new(), "engine")).unwrap();
    let own = [
        ".ResolvConfPath",
        ".HostnamePath",
        ".HostsPath",
        ".LogPath",
        ".Driver",
        ".GraphDriver",
        ".SandboxID",
        ".SandboxKey",
        ".EndpointID",
    ];
    let mut found = Vec::new();
    differences(&shown, &golden, "", &own, &mut found);
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn a_container_is_listed_as_dockers() {
    let golden = &value(golden!("containers.json"))[0];
    let mut view = view(&value(golden!("container.json")));
    view.networks.retain(|network| network.name == "mynet");
    let now = jiff::Timestamp::from_second(0).unwrap();
    let shown = serde_json::to_value(container::summary(&view, now, "engine")).unwrap();
    let own = [
        ".Id",
        ".Names",
        ".Created",
        ".Status",
        ".Labels",
        ".EndpointID",
        ".IPAddress",
        ".IPv4Address",
        ".MacAddress",
    ];
    let mut found = Vec::new();
    differences(&shown, golden, "", &own, &mut found);
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn an_image_is_inspected_as_dockers() {
    let golden = value(golden!("image.json"));
    let names = |value: &Value| value.as_array().unwrap().iter().map(|name| text(name).to_owned()).collect();
    let image = Image {
        id: text(&golden["Id"]).to_owned(),
        references: names(&golden["RepoTags"]),
        digests: names(&golden["RepoDigests"]),
        created: Some(text(&golden["Created"]).parse().unwrap()),
        size: golden["Size"].as_u64().unwrap(),
        architecture: "amd64".to_owned(),
        os: "linux".to_owned(),
        author: String::new(),
        comment: "Imported from -".to_owned(),
        docker_version: text(&golden["DockerVersion"]).to_owned(),
        config: ImageConfig {
            env: names(&golden["Config"]["Env"]),
            cmd: names(&golden["Config"]["Cmd"]),
            ..ImageConfig::default()
        },
        layers: names(&golden["RootFS"]["Layers"]),
        history: vec![
            History { comment: "first".to_owned(), ..History::default() },
            History { comment: "last".to_owned(), ..History::default() },
        ],
    };
    let shown = serde_json::to_value(image::image(&image)).unwrap();
    let mut found = Vec::new();
    differences(&shown, &golden, "", &[".GraphDriver", ".LastTagTime"], &mut found);
    assert_eq!(found, Vec::<String>::new());
    let history = image::history(&image);
    assert_eq!((history[0].comment.as_str(), history[0].id.as_str()), ("last", image.id.as_str()));
    assert_eq!(history[1].id, "<missing>");
}
