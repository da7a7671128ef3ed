//! The network table: the only thing discovery and balancing read.
//!
//! The leader derives one table per network from the store. It goes to exactly those nodes that
//! have an endpoint on that network (the ingress table: to every node), as a snapshot and then as
//! deltas; each node acknowledges the version that is in force in its kernel and resolver.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    AddressPool, Driver, EndpointId, Labels, MacAddr, NetworkId, NodeId, Policy, PortConfig, ServiceId,
};

/// Names one state of a table. Versions of different epochs cannot be compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TableVersion {
    /// Random; renewed when the store's history begins anew.
    pub epoch: u64,
    /// Store revision at which the table last changed.
    pub revision: u64,
}

impl TableVersion {
    /// This version holds everything `other` does.
    pub fn covers(self, other: Self) -> bool {
        self.epoch == other.epoch && self.revision >= other.revision
    }
}

/// Everything a node needs to know of one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkTable {
    pub network: NetworkId,
    pub version: TableVersion,
    pub config: TableConfig,
    pub services: BTreeMap<ServiceId, ServiceEntry>,
    pub endpoints: BTreeMap<EndpointId, EndpointEntry>,
    /// The nodes that have an endpoint on the network.
    pub nodes: BTreeMap<NodeId, NodeEntry>,
}

/// What a node must build for the network; fixed for the network's life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableConfig {
    pub name: String,
    /// VXLAN network identifier; also the network's number in kernel maps.
    pub vni: u32,
    /// With every gateway filled in.
    pub pools: Vec<AddressPool>,
    pub internal: bool,
    pub ingress: bool,
    /// Bytes; `None` derives it from the underlay.
    pub mtu: Option<u32>,
    /// UDP port of the VXLAN data path.
    pub data_path_port: u16,
    #[serde(default)]
    pub driver: Driver,
    /// The node's configuration that it is made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_from: Option<String>,
    #[serde(default)]
    pub shown: Shown,
}

impl TableConfig {
    /// The network is its node's alone: no manager knows of it.
    pub fn is_local(&self) -> bool {
        self.vni >= Self::FIRST_LOCAL
    }

    /// Containers on other nodes are reached through tunnels, and services have virtual addresses.
    pub fn is_overlay(&self) -> bool {
        self.driver == Driver::Overlay
    }

    /// Numbers from here on are those of networks of one node alone: a VXLAN network identifier has 24 bits.
    pub const FIRST_LOCAL: u32 = 1 << 24;
}

/// What a node shows of a network beyond what it must build.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    pub created: Option<Timestamp>,
    pub attachable: bool,
    pub labels: Labels,
    /// As the user gave them.
    pub options: Labels,
}

/// A service as seen on one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceEntry {
    pub name: String,
    /// Further names on this network.
    pub aliases: Vec<String>,
    /// `None`: the name resolves to the backends (dnsrr).
    pub vip: Option<IpAddr>,
    pub vip_v6: Option<IpAddr>,
    /// Published ports; only in the ingress table.
    pub ports: Vec<PortConfig>,
    /// The endpoints that take new connections.
    pub backends: BTreeSet<EndpointId>,
    /// Its other endpoints on the network: not healthy yet, or not any more.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub others: BTreeSet<EndpointId>,
    #[serde(default)]
    pub policy: Policy,
}

/// One task or container on the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointEntry {
    pub node: NodeId,
    /// With the subnet's prefix length.
    pub address: IpNet,
    pub address_v6: Option<IpNet>,
    pub mac: MacAddr,
    /// What resolves to it, the primary name first; empty while it does not serve.
    pub names: Vec<String>,
}

/// A node as seen on one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeEntry {
    /// Where its VXLAN frames go.
    pub data_path_address: IpAddr,
    /// Its own address on the network; only in the ingress table.
    pub address: Option<IpNet>,
    /// The same in IPv6.
    #[serde(default)]
    pub address_v6: Option<IpNet>,
    /// Where else connections of the node itself may come from; only in the ingress table.
    #[serde(default)]
    pub addresses: BTreeSet<IpAddr>,
}

/// The way from one version of a table to the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableDelta {
    pub network: NetworkId,
    pub from: TableVersion,
    pub to: TableVersion,
    pub services: Changes<ServiceId, ServiceEntry>,
    pub endpoints: Changes<EndpointId, EndpointEntry>,
    pub nodes: Changes<NodeId, NodeEntry>,
}

/// Entries to put and keys to remove.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound(deserialize = "K: Ord + Deserialize<'de>, V: Deserialize<'de>"))]
pub struct Changes<K, V> {
    pub put: BTreeMap<K, V>,
    pub remove: BTreeSet<K>,
}

/// A delta that does not start where the table stands; a snapshot must be asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("delta for {network} starts at {from:?}, the table is at {held:?}")]
pub struct TableMismatch {
    pub network: NetworkId,
    pub from: TableVersion,
    pub held: TableVersion,
}

impl<K: Ord + Clone, V: PartialEq + Clone> Changes<K, V> {
    fn between(old: &BTreeMap<K, V>, new: &BTreeMap<K, V>) -> Self {
        Self {
            put: new
                .iter()
                .filter(|(key, value)| old.get(key) != Some(value))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
            remove: old.keys().filter(|key| !new.contains_key(key)).cloned().collect(),
        }
    }

    fn apply(&self, to: &mut BTreeMap<K, V>) {
        for key in &self.remove {
            to.remove(key);
        }
        to.extend(self.put.iter().map(|(key, value)| (key.clone(), value.clone())));
    }

    fn is_empty(&self) -> bool {
        self.put.is_empty() && self.remove.is_empty()
    }
}

impl NetworkTable {
    /// The same entries, whatever the version.
    pub fn same_content(&self, other: &Self) -> bool {
        self.config == other.config
            && self.services == other.services
            && self.endpoints == other.endpoints
            && self.nodes == other.nodes
    }

    /// The delta that makes `self` into `next`. Both must be of one network.
    pub fn delta_to(&self, next: &Self) -> TableDelta {
        TableDelta {
            network: self.network.clone(),
            from: self.version,
            to: next.version,
            services: Changes::between(&self.services, &next.services),
            endpoints: Changes::between(&self.endpoints, &next.endpoints),
            nodes: Changes::between(&self.nodes, &next.nodes),
        }
    }

    /// Takes over a delta, or changes nothing.
    pub fn apply(&mut self, delta: &TableDelta) -> Result<(), TableMismatch> {
        if delta.from != self.version || delta.network != self.network {
            return Err(TableMismatch {
                network: delta.network.clone(),
                from: delta.from,
                held: self.version,
            });
        }
        delta.services.apply(&mut self.services);
        delta.endpoints.apply(&mut self.endpoints);
        delta.nodes.apply(&mut self.nodes);
        self.version = delta.to;
        Ok(())
    }

    /// The table as a node serves it when it knows some endpoints to be out of service before the
    /// manager does: they take no new connection and have no names, but stay reachable.
    pub fn without(&self, withdrawn: &BTreeSet<EndpointId>) -> Self {
        let mut table = self.clone();
        for service in table.services.values_mut() {
            service.others.extend(service.backends.intersection(withdrawn).cloned());
            service.backends.retain(|backend| !withdrawn.contains(backend));
        }
        for (id, endpoint) in &mut table.endpoints {
            if withdrawn.contains(id) {
                endpoint.names.clear();
            }
        }
        table
    }

    /// The addresses a service's new connections go to.
    pub fn backend_addresses<'a>(&'a self, service: &'a ServiceEntry) -> impl Iterator<Item = IpAddr> + 'a {
        service
            .backends
            .iter()
            .filter_map(|id| self.endpoints.get(id))
            .map(|endpoint| endpoint.address.addr())
    }
}

impl TableDelta {
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && self.endpoints.is_empty() && self.nodes.is_empty()
    }
}

#[cfg(test)]
mod tests;
