//! What a node counts, gathered from where it is counted: kernel, resolver and agent.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use shoal_balancer::{Counted, Counts};
use shoal_model::{DriftCounts, NameCounts, NetworkTable, TaskState};

use crate::node::Node;
use crate::tables::InForce;
use crate::{Error, Result};

/// A resolver that takes longer is left out.
const RESOLVER_BOUND: Duration = Duration::from_secs(2);

/// A node in numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Measures {
    /// Of virtual addresses, as this node's containers used them.
    pub services: Vec<ServiceCount>,
    /// `None`: the resolver did not tell.
    pub names: Option<NameCounts>,
    pub tables: Vec<TableMeasure>,
    pub drift: DriftCounts,
    /// This node's tasks by observed state.
    pub tasks: BTreeMap<TaskState, usize>,
}

/// How often something happened to a virtual address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceCount {
    /// Names.
    pub network: String,
    pub service: String,
    pub address: IpAddr,
    pub what: Counted,
    /// The task or container behind the backend that is concerned.
    pub endpoint: Option<String>,
    pub count: u64,
}

/// A table in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableMeasure {
    pub network: String,
    pub revision: u64,
    pub services: usize,
    pub endpoints: usize,
}

pub(crate) async fn measure(node: &Node) -> Result<Measures> {
    let in_force = node.tables.in_force().borrow().clone();
    let balancer = node.balancer.clone();
    let counts =
        tokio::task::spawn_blocking(move || balancer.counts()).await.map_err(|_| Error::Closed)??;
    // None is started for a node without sandboxes, and one that does not answer is no reason to tell nothing.
    let names = tokio::time::timeout(RESOLVER_BOUND, node.resolver.counts()).await;
    let mut tasks = BTreeMap::new();
    for snapshot in node.tasks.snapshots() {
        *tasks.entry(snapshot.record.progress.status.state).or_default() += 1;
    }
    let tables = in_force.values().map(|table| TableMeasure {
        network: table.config.name.clone(),
        revision: table.version.revision,
        services: table.services.len(),
        endpoints: table.endpoints.len(),
    });
    Ok(Measures {
        services: services(&in_force, counts),
        names: names.ok().and_then(Result::ok),
        tables: tables.collect(),
        drift: node.drift.counts(),
        tasks,
    })
}

/// The kernel's numbers with the names that the tables have for them. What is in no table any more is on its
/// way out.
fn services(in_force: &InForce, counts: Counts) -> Vec<ServiceCount> {
    let by_vni: BTreeMap<u32, &Arc<NetworkTable>> =
        in_force.values().map(|table| (table.config.vni, table)).collect();
    let named = counts.into_iter().filter_map(|((key, what), count)| {
        let table = by_vni.get(&key.vni)?;
        let has = |vips: [Option<IpAddr>; 2]| vips.contains(&Some(key.address));
        let service = table.services.values().find(|service| has([service.vip, service.vip_v6]))?;
        let backend = match what {
            Counted::Connected(backend) | Counted::Bypassing(backend) => Some(backend),
            Counted::Rejected | Counted::Pinged => None,
        };
        Some(ServiceCount {
            network: table.config.name.clone(),
            service: service.name.clone(),
            address: key.address,
            what,
            endpoint: backend.and_then(|backend| endpoint(table, backend)),
            count,
        })
    });
    named.collect()
}

fn endpoint(table: &NetworkTable, address: IpAddr) -> Option<String> {
    let mut endpoints = table.endpoints.iter();
    let own =
        |[v4, v6]: [Option<ipnet::IpNet>; 2]| [v4, v6].into_iter().flatten().any(|own| own.addr() == address);
    endpoints.find_map(|(id, at)| own([Some(at.address), at.address_v6]).then(|| id.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use shoal_balancer::ServiceKey;
    use shoal_model::{EndpointId, ServiceId};

    #[test]
    fn numbers_get_the_names_that_the_tables_have() {
        let mut table = testing::table("n1", 7);
        let vni = table.config.vni;
        table.services.insert(ServiceId::new("s"), testing::service("web", Some("10.0.0.2"), &["t1"]));
        table.endpoints.insert(EndpointId::new("t1"), testing::endpoint("node1", "10.0.0.5/24"));
        let in_force: InForce = Arc::new([(table.network.clone(), Arc::new(table))].into());
        let key = |vni, address: &str| ServiceKey { vni, address: address.parse().unwrap() };
        let backend: IpAddr = "10.0.0.5".parse().unwrap();
        let counts = Counts::from([
            ((key(vni, "10.0.0.2"), Counted::Connected(backend)), 3),
            ((key(vni, "10.0.0.2"), Counted::Rejected), 2),
            ((key(vni, "10.0.0.9"), Counted::Rejected), 1),
            ((key(vni + 1, "10.0.0.2"), Counted::Pinged), 1),
        ]);
        let told = services(&in_force, counts);
        let short: Vec<_> =
            told.iter().map(|one| (&*one.service, one.endpoint.as_deref(), one.count)).collect();
        assert_eq!(short, [("web", Some("t1"), 3), ("web", None, 2)]);
    }
}
