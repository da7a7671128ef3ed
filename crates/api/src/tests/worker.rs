//! What a node shows of the cluster's networks when it does not manage the cluster.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use axum::body::Body;
use axum::http::{Method, Request};
use serde_json::{Value, json};
use shoal_agent::{NodeEndpoint, NodeNetwork};
use shoal_manager::{Code, ControlError, Manager};
use shoal_model as model;

use crate::engine::{ClusterSide, InitRequest, JoinRequest, LocalState, Swarm};
use crate::server::{App, server_header};

/// A worker with one task on the one network it knows.
struct Worker;

fn here() -> NodeNetwork {
    let node = |address: &str| model::NodeEntry {
        data_path_address: address.parse().unwrap(),
        address: None,
        address_v6: None,
        addresses: Default::default(),
    };
    let pool = model::AddressPool {
        gateway: "10.0.1.1".parse().ok(),
        reserved: [("printer".to_owned(), "10.0.1.9".parse().unwrap())].into(),
        ..model::AddressPool::new("10.0.1.0/24".parse().unwrap())
    };
    let table = model::NetworkTable {
        network: "uw3xfn8aejs0tsbrglzisz4zz".into(),
        version: model::TableVersion::default(),
        config: model::TableConfig {
            name: "mynet".to_owned(),
            vni: 4097,
            pools: vec![pool],
            internal: false,
            ingress: false,
            mtu: None,
            data_path_port: 4789,
            driver: Default::default(),
            config_from: None,
            shown: model::Shown { attachable: true, ..model::Shown::default() },
        },
        services: [].into(),
        endpoints: [].into(),
        nodes: [("node-1".into(), node("10.99.0.1")), ("node-2".into(), node("10.99.0.2"))].into(),
    };
    let endpoint = NodeEndpoint {
        container: model::ContainerId::new("c".repeat(64)),
        owner: "t1".into(),
        name: "web.1.t1".to_owned(),
        attachment: model::Attachment {
            network: table.network.clone(),
            address: "10.0.1.3/24".parse().unwrap(),
            address_v6: "fd00:1::3/64".parse().ok(),
            mac: "02:42:0a:00:01:03".parse().unwrap(),
            aliases: Vec::new(),
        },
    };
    NodeNetwork { table: Arc::new(table), endpoints: vec![endpoint] }
}

#[async_trait]
impl Swarm for Worker {
    fn manager(&self) -> Option<Manager> {
        None
    }

    fn local_state(&self) -> LocalState {
        LocalState::Active { node: "node-2".into(), address: "10.99.0.2".parse().unwrap() }
    }

    fn networks_here(&self) -> Vec<NodeNetwork> {
        vec![here()]
    }

    async fn init(&self, _: InitRequest) -> Result<model::NodeId, ControlError> {
        Err(ControlError::new(Code::Internal, "never asked"))
    }

    async fn join(&self, _: JoinRequest) -> Result<(), ControlError> {
        Err(ControlError::new(Code::Internal, "never asked"))
    }

    fn remote_managers(&self) -> Vec<(Option<model::NodeId>, String)> {
        Vec::new()
    }

    async fn leave(&self, _: bool) -> Result<(), ControlError> {
        Err(ControlError::new(Code::Internal, "never asked"))
    }
}

async fn ask(method: Method, path: &str) -> (u16, Value) {
    let side = ClusterSide::new(Arc::new(Worker), PathBuf::from("/nonexistent"), "1.2.3".to_owned());
    let router = crate::routes::cluster::<ClusterSide>().with_state(side);
    let app = App { router, server: server_header("1.2.3") };
    let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
    let response = app.answer(request).await;
    let status = response.status().as_u16();
    let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    (status, serde_json::from_slice(&bytes).unwrap())
}

#[tokio::test]
async fn a_worker_shows_the_networks_it_has_a_part_in() {
    for name in ["mynet", "uw3xfn8aejs0tsbrglzisz4zz", "uw3xfn8aejs0"] {
        let (status, shown) = ask(Method::GET, &format!("/v1.41/networks/{name}")).await;
        assert_eq!(status, 200, "{name}: {shown}");
        assert_eq!(
            (&shown["Name"], &shown["Scope"], &shown["Driver"]),
            (&json!("mynet"), &json!("swarm"), &json!("overlay"))
        );
        assert_eq!(
            shown["IPAM"]["Config"],
            json!([{"Subnet": "10.0.1.0/24", "Gateway": "10.0.1.1", "AuxiliaryAddresses": {"printer": "10.0.1.9"}}])
        );
        assert_eq!(shown["Attachable"], true);
        assert_eq!(shown["Options"], json!({"com.docker.network.driver.overlay.vxlanid_list": "4097"}));
        assert_eq!(
            shown["Peers"],
            json!([{"Name": "node-1", "IP": "10.99.0.1"}, {"Name": "node-2", "IP": "10.99.0.2"}])
        );
        let container = &shown["Containers"]["c".repeat(64)];
        assert_eq!(
            (&container["Name"], &container["IPv4Address"]),
            (&json!("web.1.t1"), &json!("10.0.1.3/24"))
        );
        assert_eq!(container["IPv6Address"], "fd00:1::3/64");
    }
    let (_, list) = ask(Method::GET, "/v1.41/networks").await;
    assert!(list.as_array().unwrap().iter().any(|network| network["Name"] == "mynet"));
}

#[tokio::test]
async fn a_worker_knows_no_other_network_and_changes_none() {
    let (status, answer) = ask(Method::GET, "/v1.41/networks/other").await;
    assert_eq!((status, &answer["message"]), (404, &json!("network other not found")));
    assert_eq!(ask(Method::GET, "/v1.41/networks/mynet?scope=local").await.0, 404);
    let (status, answer) = ask(Method::DELETE, "/v1.41/networks/mynet").await;
    assert_eq!(status, 503);
    assert!(answer["message"].as_str().unwrap().starts_with("This node is not a swarm manager."), "{answer}");
    assert_eq!(ask(Method::DELETE, "/v1.41/networks/other").await.0, 404);
}
