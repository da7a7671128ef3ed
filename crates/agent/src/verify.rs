//! What a node holds, against what its kernel and resolver say they hold.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use shoal_balancer::KernelState;
use shoal_model::{EndpointEntry, NetworkTable, NodeId};
use shoal_network::FabricState;
use shoal_resolver::Names;
use shoal_resolver::feed::State;

use crate::Result;
use crate::node::Node;
use crate::tables::{port_keys, services};
use crate::view::{TableCounts, TableReport};

pub(crate) async fn tables(node: &Node) -> Result<Vec<TableReport>> {
    let in_force = node.tables.in_force().borrow().clone();
    if in_force.is_empty() {
        return Ok(Vec::new());
    }
    let kernel = node.balancer.read_back()?;
    let names = node.resolver.read_back().await?;
    let own = node.membership().map(|member| member.node);
    let mut reports = Vec::new();
    for table in in_force.values() {
        let fabric = node.fabric.read_back(&table.network).await?;
        reports.push(compare(table, own.as_ref(), &kernel, &names, &fabric));
    }
    Ok(reports)
}

/// One table against everything read back.
fn compare(
    table: &NetworkTable,
    own: Option<&NodeId>,
    kernel: &KernelState,
    names: &State,
    fabric: &FabricState,
) -> TableReport {
    let mut differences = fabric.broken.clone();
    let expected = services(table);
    let vni = table.config.vni;
    let found: BTreeMap<_, _> = kernel.services.iter().filter(|(key, _)| key.vni == vni).collect();
    for (key, backends) in &expected {
        match found.get(key) {
            None => differences.push(format!("balancer: {} is missing", key.address)),
            Some(found) if *found != backends => {
                differences.push(format!("balancer: {} leads to {found:?}, not {backends:?}", key.address));
            }
            Some(_) => {}
        }
    }
    for key in found.keys().filter(|key| !expected.contains_key(key)) {
        differences.push(format!("balancer: {} belongs to no service", key.address));
    }
    let ports = port_keys(table);
    for key in ports.iter().filter(|key| !kernel.ports.contains_key(key)) {
        differences.push(format!("balancer: port {}/{} is missing", key.port, key.protocol.as_str()));
    }
    let remote = remote(table, own);
    let reachable: BTreeSet<IpAddr> = fabric.remote.keys().copied().collect();
    differences.extend(remote.difference(&reachable).map(|gone| format!("fabric: no way to {gone}")));
    differences.extend(reachable.difference(&remote).map(|odd| format!("fabric: stale way to {odd}")));
    let expected_names = Names::from_table(table).len();
    let resolver = names.networks.get(&table.network);
    match resolver {
        None => differences.push("resolver: does not know the network".to_owned()),
        Some(state) if state.version != table.version => {
            differences.push(format!("resolver: is at revision {}", state.version.revision));
        }
        Some(_) => {}
    }
    let backends = |services: &mut dyn Iterator<Item = usize>| services.sum();
    TableReport {
        network: table.network.clone(),
        name: table.config.name.clone(),
        version: table.version,
        services: table.services.len(),
        endpoints: table.endpoints.len(),
        held: TableCounts {
            names: expected_names,
            vips: expected.len(),
            backends: backends(&mut expected.values().map(BTreeSet::len)),
            ports: ports.len(),
            remote_endpoints: remote.len(),
        },
        read_back: TableCounts {
            names: resolver.map_or(0, |state| state.names),
            vips: found.len(),
            backends: backends(&mut found.values().map(|backends| backends.len())),
            ports: if table.config.ingress { kernel.ports.len() } else { 0 },
            remote_endpoints: reachable.len(),
        },
        differences,
    }
}

/// Addresses that other nodes answer for. The ingress network carries IPv4 only.
fn remote(table: &NetworkTable, own: Option<&NodeId>) -> BTreeSet<IpAddr> {
    let elsewhere = table.endpoints.values().filter(|endpoint| Some(&endpoint.node) != own);
    let v6 = |endpoint: &EndpointEntry| endpoint.address_v6.filter(|_| !table.config.ingress);
    let addresses = elsewhere.flat_map(|endpoint| [Some(endpoint.address), v6(endpoint)]).flatten();
    addresses.map(|address| address.addr()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use shoal_model::{EndpointId, ServiceId};
    use shoal_resolver::feed::NetworkState;

    #[test]
    fn every_kind_of_drift_is_named() {
        let mut table = testing::table("n1", 7);
        table.services.insert(ServiceId::new("s"), testing::service("web", Some("10.0.1.2"), &["t1"]));
        table.endpoints.insert(EndpointId::new("t1"), testing::endpoint("other", "10.0.1.5/24"));
        table.endpoints.get_mut(&EndpointId::new("t1")).unwrap().address_v6 = "fd00::5/64".parse().ok();
        let own = NodeId::new("node1");
        let report =
            compare(&table, Some(&own), &KernelState::default(), &State::default(), &FabricState::default());
        assert_eq!(
            report.differences,
            [
                "balancer: 10.0.1.2 is missing",
                "fabric: no way to 10.0.1.5",
                "fabric: no way to fd00::5",
                "resolver: does not know the network"
            ]
        );
        assert_eq!((report.held.vips, report.held.backends, report.held.remote_endpoints), (1, 1, 2));
        assert_eq!(report.read_back, TableCounts::default());

        let kernel = KernelState { services: services(&table), ..KernelState::default() };
        let fabric = FabricState::default();
        let state = NetworkState { version: table.version, names: Names::from_table(&table).len() };
        let names = State { networks: BTreeMap::from([(table.network.clone(), state)]), ..State::default() };
        table.endpoints.values_mut().for_each(|endpoint| endpoint.node = own.clone());
        let report = compare(&table, Some(&own), &kernel, &names, &fabric);
        assert_eq!(report.differences, Vec::<String>::new());
        assert_eq!(report.held, report.read_back);
    }
}
