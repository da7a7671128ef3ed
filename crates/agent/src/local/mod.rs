//! Networks of this node alone: it gives out their addresses itself, and derives their tables, which then
//! go the way of every other network's.

mod design;
mod here;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use shoal_model::{
    AddressPool, Attachment, Driver, EndpointEntry, EndpointId, IdGenerator, MacAddr, NetworkId,
    NetworkTable, NodeDriver, NodeId, TableConfig, TableVersion,
};
use tokio::sync::watch;

use crate::node::Node;
use crate::{Error, Result, lock};

pub use self::design::LocalSpec;
pub(crate) use self::design::{DEFAULT, DEFAULT_LINK};
use self::design::{Surroundings, address, clash, design};
use self::here::on_this_node;
pub(crate) use self::here::unbuilt;

/// One of them as it is kept on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalNetwork {
    pub id: NetworkId,
    pub config: TableConfig,
}

/// Who wants to be on a network, and how.
pub(crate) struct Wanted<'a> {
    pub(crate) endpoint: EndpointId,
    /// What is to resolve to it, the primary name first.
    pub(crate) names: Vec<String>,
    pub(crate) aliases: &'a [String],
    pub(crate) address: Option<IpAddr>,
    pub(crate) address_v6: Option<IpAddr>,
    pub(crate) mac: Option<MacAddr>,
    /// What it has already.
    pub(crate) held: Option<&'a Attachment>,
}

/// The subnets of a node's configurations, by name.
pub(crate) type Configurations = BTreeMap<String, Vec<AddressPool>>;

pub(crate) struct Locals {
    networks: Mutex<BTreeMap<NetworkId, Present>>,
    configurations: watch::Sender<Configurations>,
    /// Of the tables' versions; another one in each process, since revisions begin anew.
    epoch: u64,
}

struct Present {
    config: TableConfig,
    endpoints: BTreeMap<EndpointId, EndpointEntry>,
    /// Raised with every change.
    revision: u64,
    /// Given out last, in each version of IP.
    last: [Option<IpAddr>; 2],
}

impl Present {
    fn new(config: TableConfig) -> Self {
        Self { config, endpoints: BTreeMap::new(), revision: 1, last: [None; 2] }
    }

    /// It is no network, but what others are made from.
    fn is_configuration(&self) -> bool {
        self.config.driver == Driver::Configuration
    }

    fn table(&self, id: &NetworkId, epoch: u64) -> NetworkTable {
        NetworkTable {
            network: id.clone(),
            version: TableVersion { epoch, revision: self.revision },
            config: self.config.clone(),
            services: BTreeMap::new(),
            endpoints: self.endpoints.clone(),
            nodes: BTreeMap::new(),
        }
    }

    fn used(&self, except: &EndpointId) -> BTreeSet<IpAddr> {
        let others = self.endpoints.iter().filter(|(id, _)| *id != except);
        let addresses = others.flat_map(|(_, entry)| [Some(entry.address), entry.address_v6]);
        addresses.flatten().map(|address| address.addr()).collect()
    }

    /// Gives the endpoint a place.
    fn admit(&mut self, id: &NetworkId, wanted: Wanted<'_>) -> Result<Attachment> {
        let used = self.used(&wanted.endpoint);
        let held = wanted.held.filter(|held| held.network == *id);
        let had =
            |v6: Option<IpNet>| v6.map(|address| address.addr()).filter(|address| !used.contains(address));
        let asked = wanted.address.or_else(|| had(held.map(|held| held.address)));
        let asked_v6 = wanted.address_v6.or_else(|| had(held.and_then(|held| held.address_v6)));
        let v4 = address(&self.config, &used, asked, self.last[0], false)?.ok_or(Error::NoAddress)?;
        let v6 = address(&self.config, &used, asked_v6, self.last[1], true)?;
        if asked.is_none() {
            self.last[0] = Some(v4.addr());
        }
        if asked_v6.is_none() {
            self.last[1] = v6.map(|address| address.addr());
        }
        let mac = wanted.mac.or(held.map(|held| held.mac));
        let attachment = Attachment {
            network: id.clone(),
            address: v4,
            address_v6: v6,
            mac: mac.unwrap_or_else(|| MacAddr::random(&mut IdGenerator::from_os())),
            aliases: wanted.aliases.to_vec(),
        };
        let entry = EndpointEntry {
            // Nobody asks: the network is nowhere else.
            node: NodeId::new(""),
            address: attachment.address,
            address_v6: attachment.address_v6,
            mac: attachment.mac,
            names: wanted.names,
        };
        self.endpoints.insert(wanted.endpoint, entry);
        self.revision += 1;
        Ok(attachment)
    }
}

impl Locals {
    /// Starts from what a former process stored.
    pub(crate) fn new(stored: Vec<LocalNetwork>) -> Self {
        let networks: BTreeMap<_, _> =
            stored.into_iter().map(|network| (network.id, Present::new(network.config))).collect();
        let epoch = u64::from_ne_bytes(IdGenerator::from_os().bytes::<8>());
        let configurations = watch::Sender::new(configurations(&networks));
        Self { networks: Mutex::new(networks), configurations, epoch }
    }

    /// What networks may be made from on this node, and how that changes.
    pub(crate) fn configurations(&self) -> watch::Receiver<Configurations> {
        self.configurations.subscribe()
    }

    /// A cluster's table as it is on this node.
    pub(crate) fn on_this_node(&self, table: &NetworkTable, node: Option<&NodeId>) -> NetworkTable {
        let networks = lock(&self.networks);
        let from = table.config.config_from.as_deref();
        let named = from.and_then(|from| networks.values().find(|present| present.config.name == from));
        let configuration = named.filter(|present| present.is_configuration());
        let configuration = configuration.map(|present| &present.config);
        on_this_node(table.clone(), configuration, node)
    }

    /// Which of the node's own networks a cluster's gets in the way of.
    pub(crate) fn clash(&self, config: &TableConfig) -> Option<String> {
        let networks = lock(&self.networks);
        let mut own = networks.values().map(|present| &present.config);
        let other = own.find(|own| clash(&config.driver, &config.pools, own))?;
        Some(format!("network {} of this node has the same addresses, on the same link", other.name))
    }

    /// Tells of what has changed about configurations.
    fn tell(&self) {
        self.configurations.send_if_modified(|told| {
            let now = configurations(&lock(&self.networks));
            let changed = *told != now;
            *told = now;
            changed
        });
    }

    /// Has all of them brought into force; once what runs has its places again.
    pub(crate) fn begin(&self, node: &Node) {
        let networks = lock(&self.networks);
        for (id, present) in networks.iter().filter(|(_, present)| !present.is_configuration()) {
            node.tables.put(present.table(id, self.epoch));
        }
    }

    pub(crate) fn all(&self) -> Vec<LocalNetwork> {
        let networks = lock(&self.networks);
        networks
            .iter()
            .map(|(id, present)| LocalNetwork { id: id.clone(), config: present.config.clone() })
            .collect()
    }

    /// By id, name or an id prefix that means one only.
    pub(crate) fn find(&self, term: &str) -> Option<NetworkId> {
        let networks = lock(&self.networks);
        if let Some((id, _)) =
            networks.iter().find(|(id, present)| id.as_str() == term || present.config.name == term)
        {
            return Some(id.clone());
        }
        let mut matching = networks.keys().filter(|id| !term.is_empty() && id.as_str().starts_with(term));
        matching.next().filter(|_| matching.next().is_none()).cloned()
    }

    pub(crate) fn get(&self, id: &NetworkId) -> Option<LocalNetwork> {
        let networks = lock(&self.networks);
        networks.get(id).map(|present| LocalNetwork { id: id.clone(), config: present.config.clone() })
    }

    /// A network that only its containers remember.
    pub(crate) async fn restore(&self, node: &Node, network: &LocalNetwork) -> Result<()> {
        {
            let mut networks = lock(&self.networks);
            let is_known = |present: &Present| present.config.name == network.config.name;
            if networks.contains_key(&network.id) || networks.values().any(is_known) {
                return Ok(());
            }
            networks.insert(network.id.clone(), Present::new(network.config.clone()));
        }
        node.store.put_network(network).await
    }

    /// Makes a network.
    pub(crate) async fn create(&self, node: &Arc<Node>, spec: LocalSpec) -> Result<NetworkId> {
        let id = NetworkId::new(IdGenerator::from_os().container_id().as_str());
        let network = self.enter(node, &id, spec, node.fabric.occupied().await?)?;
        if let Err(error) = self.build(node, &network).await {
            lock(&self.networks).remove(&id);
            if let Err(error) = node.fabric.remove_network(&id).await {
                tracing::warn!(network = %id, %error, "what was made of a network stays for now");
            }
            return Err(error);
        }
        if network.config.driver == Driver::Configuration {
            self.tell();
            // The cluster's networks that wait for it.
            node.tables.look_again_at(|config| config.config_from.as_ref() == Some(&network.config.name));
        } else {
            self.put(node, &id);
            node.tables.in_effect(&id).await;
        }
        if network.config.name != DEFAULT {
            node.events.network("create", &id, &network.config, None);
        }
        Ok(id)
    }

    /// Once before it is promised: what cannot be built is refused with the kernel's reason.
    async fn build(&self, node: &Node, network: &LocalNetwork) -> Result<()> {
        let present = Present::new(network.config.clone());
        if present.is_configuration() {
            return node.store.put_network(network).await;
        }
        let table = present.table(&network.id, self.epoch);
        node.fabric.apply_network(&table).await.map_err(|error| match error {
            shoal_network::Error::NoParent(_) => Error::NetworkOption(error.to_string()),
            shoal_network::Error::Foreign { .. } => Error::NetworkRefused(error.to_string()),
            error => error.into(),
        })?;
        node.store.put_network(network).await
    }

    /// One step: that the name is free, and that it is taken.
    fn enter(
        &self,
        node: &Node,
        id: &NetworkId,
        spec: LocalSpec,
        (occupied, own): (Vec<IpNet>, Vec<IpNet>),
    ) -> Result<LocalNetwork> {
        let mut networks = lock(&self.networks);
        let tables = node.tables.in_force().borrow().clone();
        let pools = tables.values().flat_map(|table| &table.config.pools).map(|pool| pool.subnet);
        let of_cluster = tables.values().filter(|table| !table.config.is_local());
        let around = Surroundings {
            present: networks.iter().map(|(id, present)| (id, &present.config)).collect(),
            beside: of_cluster.map(|table| (&table.network, &table.config)).collect(),
            taken: occupied.into_iter().chain(pools).collect(),
            own,
        };
        let config = design(id, spec, &around, Timestamp::now())?;
        networks.insert(id.clone(), Present::new(config.clone()));
        Ok(LocalNetwork { id: id.clone(), config })
    }

    /// The network for containers that name no other; made with the first of them.
    pub(crate) async fn default_network(&self, node: &Arc<Node>) -> Result<NetworkId> {
        if let Some(id) = self.find(DEFAULT) {
            return Ok(id);
        }
        let options = [
            ("com.docker.network.bridge.default_bridge", "true"),
            ("com.docker.network.bridge.enable_icc", "true"),
            ("com.docker.network.bridge.enable_ip_masquerade", "true"),
            ("com.docker.network.bridge.host_binding_ipv4", "0.0.0.0"),
            ("com.docker.network.bridge.name", DEFAULT_LINK),
        ];
        let spec = LocalSpec {
            name: DEFAULT.to_owned(),
            driver: Some(NodeDriver::Bridge),
            config_from: None,
            pools: Vec::new(),
            ipv6: false,
            internal: false,
            attachable: false,
            options: options.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            labels: Default::default(),
        };
        match self.create(node, spec).await {
            // Somebody else was faster.
            Err(Error::NetworkExists(_)) => {
                self.find(DEFAULT).ok_or_else(|| Error::NoSuchNetwork(DEFAULT.to_owned()))
            }
            made => made,
        }
    }

    /// Removes a network that nobody is on.
    pub(crate) async fn remove(&self, node: &Node, id: &NetworkId) -> Result<()> {
        let config = {
            let mut networks = lock(&self.networks);
            let Some(present) = networks.get(id) else { return Err(Error::NoSuchNetwork(id.to_string())) };
            let uses_it = |config: &TableConfig| config.config_from.as_ref() == Some(&present.config.name);
            if present.is_configuration()
                && (networks.values().any(|other| uses_it(&other.config)) || node.tables.any(uses_it))
            {
                let text = format!("configuration network \"{}\" is in use", present.config.name);
                return Err(Error::NetworkRefused(text));
            }
            if !present.endpoints.is_empty() {
                let names = present.endpoints.values().filter_map(|entry| entry.names.first().cloned());
                let users = names.collect::<Vec<_>>().join(", ");
                return Err(Error::NetworkInUse { name: present.config.name.clone(), users });
            }
            let config = present.config.clone();
            networks.remove(id);
            config
        };
        self.tell();
        node.tables.remove(id);
        node.store.remove_network(id).await?;
        node.tables.in_effect(id).await;
        node.events.network("destroy", id, &config, None);
        Ok(())
    }

    /// Gives an endpoint a place on a network; one that it has already it keeps.
    pub(crate) fn attach(&self, node: &Node, id: &NetworkId, wanted: Wanted<'_>) -> Result<Attachment> {
        let mut networks = lock(&self.networks);
        let Some(present) = networks.get_mut(id) else { return Err(Error::NoSuchNetwork(id.to_string())) };
        if present.is_configuration() {
            let text = "cannot create endpoint on configuration-only network".to_owned();
            return Err(Error::NetworkRefused(text));
        }
        let attachment = present.admit(id, wanted)?;
        node.tables.put(present.table(id, self.epoch));
        Ok(attachment)
    }

    /// The endpoint is on no network of this node any more, or not on this one.
    pub(crate) fn detach(&self, node: &Node, endpoint: &EndpointId, from: Option<&NetworkId>) {
        for (id, present) in lock(&self.networks).iter_mut() {
            if from.is_none_or(|from| from == id) && present.endpoints.remove(endpoint).is_some() {
                present.revision += 1;
                node.tables.put(present.table(id, self.epoch));
            }
        }
    }

    fn put(&self, node: &Node, id: &NetworkId) {
        if let Some(present) = lock(&self.networks).get(id) {
            node.tables.put(present.table(id, self.epoch));
        }
    }
}

fn configurations(networks: &BTreeMap<NetworkId, Present>) -> Configurations {
    let all = networks.values().filter(|present| present.is_configuration());
    all.map(|present| (present.config.name.clone(), present.config.pools.clone())).collect()
}
