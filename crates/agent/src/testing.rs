//! Nouns for unit tests.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use shoal_model::*;

use crate::{Managers, Membership};

pub(crate) fn task(id: &str) -> Task {
    Task {
        id: TaskId::new(id),
        meta: Meta::new(Timestamp::UNIX_EPOCH),
        service: ServiceId::new("s1"),
        service_name: "web".to_owned(),
        service_labels: shoal_model::Labels::new(),
        slot: 1,
        pinned: None,
        spec: TaskSpec {
            container: ContainerSpec { image: "busybox".to_owned(), ..ContainerSpec::default() },
            resources: Resources::default(),
            restart: RestartPolicy::default(),
            placement: Placement::default(),
            networks: Vec::new(),
            force_update: 0,
            log_options: Labels::new(),
        },
        ports: Vec::new(),
        node: Some(NodeId::new("node1")),
        desired: TaskState::Running,
        status: TaskStatus::new(
            TaskState::Assigned,
            Timestamp::UNIX_EPOCH,
            "scheduler assigned task to node",
        ),
        attachments: Vec::new(),
        running_since: None,
        released: false,
        credentials: None,
        start_after: None,
        failures: Vec::new(),
        iteration: None,
    }
}

pub(crate) fn attachment(network: &str, address: &str) -> Attachment {
    Attachment {
        network: NetworkId::new(network),
        address: address.parse().unwrap(),
        address_v6: None,
        mac: "02:42:0a:00:01:05".parse().unwrap(),
        aliases: Vec::new(),
    }
}

pub(crate) fn table(network: &str, revision: u64) -> NetworkTable {
    NetworkTable {
        network: NetworkId::new(network),
        version: TableVersion { epoch: 1, revision },
        config: TableConfig {
            name: network.to_owned(),
            vni: 4097,
            pools: Vec::new(),
            internal: false,
            ingress: false,
            mtu: None,
            data_path_port: 4789,
            driver: Default::default(),
            config_from: None,
            shown: Default::default(),
        },
        services: BTreeMap::new(),
        endpoints: BTreeMap::new(),
        nodes: BTreeMap::new(),
    }
}

pub(crate) fn endpoint(node: &str, address: &str) -> EndpointEntry {
    EndpointEntry {
        node: NodeId::new(node),
        address: address.parse().unwrap(),
        address_v6: None,
        mac: "02:42:0a:00:01:05".parse().unwrap(),
        names: vec!["web.1.t1".to_owned()],
    }
}

pub(crate) fn service(name: &str, vip: Option<&str>, backends: &[&str]) -> ServiceEntry {
    ServiceEntry {
        name: name.to_owned(),
        aliases: Vec::new(),
        vip: vip.map(|vip| vip.parse().unwrap()),
        vip_v6: None,
        ports: Vec::new(),
        backends: backends.iter().map(EndpointId::new).collect(),
        others: Default::default(),
        policy: shoal_model::Policy::default(),
    }
}

pub(crate) fn membership() -> Membership {
    Membership {
        node: NodeId::new("node1"),
        cluster: Some(ClusterId::new("cluster1")),
        managers: Managers::Here("/run/shoal/manager.sock".into()),
        address: IpAddr::from([10, 1, 2, 3]),
        data_path_address: IpAddr::from([10, 1, 2, 3]),
        drained: false,
    }
}
