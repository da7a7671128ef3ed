//! What a node tells of itself when it is asked whether it really holds what its tables say.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{NetworkId, NodeId, Port, TableVersion};

/// One node, looked at by itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReport {
    /// `None`: the node belongs to no cluster.
    pub node: Option<NodeId>,
    /// The networks it has tables of.
    pub tables: Vec<TableReport>,
    /// What differs beside any one network: programs, rules, links of sandboxes.
    pub differences: Vec<String>,
    pub drift: DriftCounts,
    /// Published ports that other programs of the node have.
    #[serde(default)]
    pub taken_ports: BTreeSet<Port>,
}

/// What a node holds of one network, and what it reads back from its kernel and resolver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableReport {
    pub network: NetworkId,
    pub name: String,
    /// Version last applied.
    pub version: TableVersion,
    /// Services and endpoints in the table.
    pub services: usize,
    pub endpoints: usize,
    /// What the applied table asks for.
    pub held: TableCounts,
    /// What kernel and resolver have.
    pub read_back: TableCounts,
    /// Differences found, and done away with, since the daemon started.
    pub found: u64,
    pub repaired: u64,
    /// What kernel and resolver lack or have too much, one line each; empty when all is well.
    pub differences: Vec<String>,
}

/// How many entries of each kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableCounts {
    /// Names the resolver answers.
    pub names: usize,
    /// Virtual addresses the balancer translates.
    pub vips: usize,
    /// Backends of all virtual addresses.
    pub backends: usize,
    /// Published ports the balancer translates for the node's own clients.
    pub ports: usize,
    /// Endpoints of other nodes with forwarding entries.
    pub remote_endpoints: usize,
}

/// What a node has found since its daemon started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriftCounts {
    /// Looks at kernel and resolver.
    pub looks: u64,
    /// How long the last look took.
    pub look_micros: u64,
    pub found: u64,
    pub repaired: u64,
    /// Found, and still there after an attempt to repair it.
    pub open: u64,
    /// By what differed: `names`, `balancer`, `fabric`, `ports`, `sandbox`, `node`.
    pub kinds: BTreeMap<String, KindCounts>,
}

/// Differences of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KindCounts {
    pub found: u64,
    pub repaired: u64,
}

/// The whole cluster, looked at by every node and compared with what the manager wants.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterReport {
    pub nodes: Vec<NodeVerdict>,
    /// Requests for tables of networks that the asking node is not on, since the manager started.
    pub refused_requests: u64,
}

/// One node in a [`ClusterReport`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeVerdict {
    /// `None`: the node belongs to no cluster.
    pub id: Option<NodeId>,
    /// Host name.
    pub name: String,
    /// Why there is no report: the node did not answer.
    pub error: Option<String>,
    pub report: Option<NodeReport>,
    /// The versions the manager wants in force there; `None` when nobody knows who was asked.
    pub current: Option<BTreeMap<NetworkId, TableVersion>>,
    /// Where versions in force and current ones differ, one line each.
    pub behind: Vec<String>,
}

impl NodeVerdict {
    /// The node answered, and nothing differs.
    pub fn is_well(&self) -> bool {
        let whole = |report: &NodeReport| {
            report.differences.is_empty() && report.tables.iter().all(|table| table.differences.is_empty())
        };
        self.error.is_none() && self.behind.is_empty() && self.report.as_ref().is_some_and(whole)
    }
}
