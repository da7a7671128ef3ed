//! The names that all servers hold.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use serde_json::Value;
use shoal_e2e::Node;
use shoal_model::{NetworkId, NetworkTable, ServiceEntry, ServiceId, TableConfig, TableVersion};
use shoal_resolver::feed::Client;
use shoal_resolver::{Names, socket_path};
use tokio::runtime::Runtime;

/// So many names, in a row.
pub(crate) fn numbered(count: u32) -> Vec<String> {
    (0..count).map(|number| format!("svc{number}")).collect()
}

/// A node's resolver process.
pub(crate) fn resolver(node: &Node) -> u32 {
    let runtime = runtime();
    let client = runtime.block_on(Client::connect(&socket_path(&node.run_dir()))).unwrap();
    client.hello().pid
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// The feed of a node's resolver, spoken by somebody else than its daemon.
pub(crate) struct Feed {
    runtime: Runtime,
    client: Client,
    network: NetworkId,
    /// What the daemon has fed last.
    daemons: Names,
}

impl Feed {
    pub(crate) fn open(node: &Node, network: &str) -> Self {
        let detail: Value = node.inspect("network", network);
        let network = NetworkId::new(detail["Id"].as_str().unwrap());
        let runtime = runtime();
        let (client, daemons) = runtime.block_on(async {
            let client = Client::connect(&socket_path(&node.run_dir())).await.unwrap();
            let daemons = client.read_names(&network).await.unwrap().unwrap();
            (client, daemons)
        });
        Self { runtime, client, network, daemons }
    }

    /// Feeds a table of services with these names, as the daemon feeds the cluster's, in its place.
    pub(crate) fn replace(&self, names: &[String]) -> Vec<(String, Ipv4Addr)> {
        let address = |number: usize| Ipv4Addr::from(u32::from(FIRST) + number as u32);
        let known: Vec<(String, Ipv4Addr)> =
            names.iter().enumerate().map(|(number, name)| (name.clone(), address(number))).collect();
        self.set(Names::from_table(&table(&self.network, self.daemons.suffix(), &known)));
        known
    }

    /// Puts back what the daemon had fed.
    pub(crate) fn restore(self) {
        self.set(self.daemons.clone());
    }

    fn set(&self, names: Names) {
        self.runtime.block_on(self.client.set_names(names)).unwrap();
    }
}

/// Of addresses that are nobody's here.
const FIRST: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 1);

fn table(network: &NetworkId, name: &str, known: &[(String, Ipv4Addr)]) -> NetworkTable {
    let service = |(name, address): &(String, Ipv4Addr)| {
        let entry = ServiceEntry {
            name: name.clone(),
            aliases: Vec::new(),
            vip: Some(IpAddr::from(*address)),
            vip_v6: None,
            ports: Vec::new(),
            backends: Default::default(),
            others: Default::default(),
            policy: Default::default(),
        };
        (ServiceId::new(name), entry)
    };
    NetworkTable {
        network: network.clone(),
        version: TableVersion { epoch: 1, revision: 1 },
        config: TableConfig {
            name: name.to_owned(),
            driver: Default::default(),
            config_from: None,
            vni: 4096,
            pools: Vec::new(),
            internal: false,
            ingress: false,
            mtu: None,
            data_path_port: 4789,
            shown: Default::default(),
        },
        services: known.iter().map(service).collect::<BTreeMap<_, _>>(),
        endpoints: BTreeMap::new(),
        nodes: BTreeMap::new(),
    }
}
