//! What a connection to an address meets, as a pure function of the tables in force and of what the
//! kernel's maps hold.

use std::net::IpAddr;
use std::sync::Arc;

use shoal_balancer::{KernelState, ServiceKey};
use shoal_model::trace::{Backend, Outcome, Resolution, Target, TargetKind, Who};
use shoal_model::{Backends, EndpointEntry, EndpointId, NetworkTable, ServiceEntry, ServiceId};

use crate::tables::{Own, services};
use crate::verify;

/// Where a container stands.
pub(super) struct Ground<'a> {
    pub own: &'a Own,
    /// Of the container's networks, in order.
    pub tables: &'a [Arc<NetworkTable>],
    pub kernel: &'a KernelState,
    /// Of its namespace.
    pub cookie: u64,
}

impl Ground<'_> {
    /// What a connection to the address meets; and where kernel and table disagree about it.
    pub(super) fn target(&self, address: IpAddr) -> (Target, Option<String>) {
        let found = self.in_kernel(address);
        let kernel_table =
            found.and_then(|(key, _)| self.tables.iter().find(|table| table.config.vni == key.vni));
        let wanted = self.by_tables(address);
        // As the kernel goes; what only the table knows is a difference.
        let Some((table, wanted)) = kernel_table.map(|table| (table, self.of(table, address))).or(wanted)
        else {
            return (self.beside(address), None);
        };
        let found = found.map(|(_, backends)| backends);
        let difference = verify::service_difference(address, wanted.as_ref(), found);
        let service = virtual_at(table, address);
        let members = wanted.iter().flat_map(|wanted| &wanted.members);
        let target = Target {
            address,
            network: Some(table.network.clone()),
            kind: TargetKind::Virtual {
                service: service.map(|(id, _)| id.clone()),
                backends: members.filter_map(|member| backend(table, *member)).collect(),
                kernel: found.map(|found| found.members.iter().copied().collect()),
                by_source: found.is_some_and(|found| found.by_source),
            },
            outcome: match found {
                None => Outcome::Direct,
                Some(found) if found.members.is_empty() => Outcome::Refused,
                Some(_) => Outcome::Balanced,
            },
        };
        (target, difference)
    }

    /// As the kernel's programs look: through the networks it has for this namespace, in its order.
    fn in_kernel(&self, address: IpAddr) -> Option<(ServiceKey, &Backends<IpAddr>)> {
        let sandbox = self.kernel.sandboxes.get(&self.cookie)?;
        sandbox.networks.iter().find_map(|&vni| {
            let key = ServiceKey { vni, address };
            Some((key, self.kernel.services.get(&key)?))
        })
    }

    /// The first network on which it is a virtual address, and where it leads.
    fn by_tables(&self, address: IpAddr) -> Option<(&Arc<NetworkTable>, Option<Backends<IpAddr>>)> {
        let mut tables = self.tables.iter();
        tables.find_map(|table| Some((table, Some(self.of(table, address)?))))
    }

    fn of(&self, table: &NetworkTable, address: IpAddr) -> Option<Backends<IpAddr>> {
        services(table, self.own).remove(&ServiceKey { vni: table.config.vni, address })
    }

    /// An address that nobody translates.
    fn beside(&self, address: IpAddr) -> Target {
        let direct = |network, kind| Target { address, network, kind, outcome: Outcome::Direct };
        for table in self.tables {
            if let Some((id, endpoint)) = endpoint_at(table, address) {
                let kind = TargetKind::Endpoint {
                    endpoint: id.clone(),
                    node: endpoint.node.clone(),
                    name: endpoint.names.first().cloned().unwrap_or_else(|| id.to_string()),
                    listening: None,
                };
                return direct(Some(table.network.clone()), kind);
            }
        }
        let holds =
            |table: &&Arc<NetworkTable>| table.config.pools.iter().any(|pool| pool.subnet.contains(&address));
        match self.tables.iter().find(holds) {
            Some(table) => direct(Some(table.network.clone()), TargetKind::Nobody),
            None => direct(None, TargetKind::Outside),
        }
    }
}

/// Who has an address.
pub(super) fn at(table: &NetworkTable, address: IpAddr) -> Option<Who> {
    if let Some((id, service)) = virtual_at(table, address) {
        let (service, name) = (id.clone(), service.name.clone());
        return Some(Who::Service { service, name, alias: false, mode: Resolution::Vip });
    }
    let (id, endpoint) = endpoint_at(table, address)?;
    let name = endpoint.names.first().cloned().unwrap_or_else(|| id.to_string());
    Some(Who::Endpoint { endpoint: id.clone(), node: endpoint.node.clone(), name, alias: false })
}

fn virtual_at(table: &NetworkTable, address: IpAddr) -> Option<(&ServiceId, &ServiceEntry)> {
    let has = |service: &ServiceEntry| [service.vip, service.vip_v6].contains(&Some(address));
    table.services.iter().find(|(_, service)| has(service))
}

fn endpoint_at(table: &NetworkTable, address: IpAddr) -> Option<(&EndpointId, &EndpointEntry)> {
    let has = |endpoint: &EndpointEntry| {
        let own = [Some(endpoint.address), endpoint.address_v6];
        own.into_iter().flatten().any(|own| own.addr() == address)
    };
    table.endpoints.iter().find(|(_, endpoint)| has(endpoint))
}

fn backend(table: &NetworkTable, address: IpAddr) -> Option<Backend> {
    let (endpoint, entry) = endpoint_at(table, address)?;
    Some(Backend { endpoint: endpoint.clone(), address, node: entry.node.clone(), listening: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use shoal_balancer::SandboxEntry;

    const COOKIE: u64 = 7;

    fn table() -> Arc<NetworkTable> {
        let mut table = testing::table("n1", 7);
        table.services.insert(ServiceId::new("s"), testing::service("web", Some("10.0.0.2"), &["t1"]));
        table.services.insert(ServiceId::new("i"), testing::service("idle", Some("10.0.0.3"), &[]));
        table.endpoints.insert(EndpointId::new("t1"), testing::endpoint("node1", "10.0.0.5/24"));
        Arc::new(table)
    }

    fn kernel(vni: u32, services: &[(&str, &[&str])]) -> KernelState {
        let service = |(vip, backends): &(&str, &[&str])| {
            let backends = backends.iter().map(|backend| backend.parse().unwrap()).collect();
            (ServiceKey { vni, address: vip.parse().unwrap() }, backends)
        };
        KernelState {
            sandboxes: [(COOKIE, SandboxEntry { networks: vec![vni], dns: None })].into(),
            services: services.iter().map(service).collect(),
            ..KernelState::default()
        }
    }

    fn run(kernel: &KernelState, address: &str) -> (Target, Option<String>) {
        let (tables, own) = ([table()], Own::default());
        let ground = Ground { own: &own, tables: &tables, kernel, cookie: COOKIE };
        ground.target(address.parse().unwrap())
    }

    fn vni() -> u32 {
        table().config.vni
    }

    #[test]
    fn kernel_and_table_agree_on_who_is_led_where_and_who_is_refused() {
        let kernel = kernel(vni(), &[("10.0.0.2", &["10.0.0.5"]), ("10.0.0.3", &[])]);
        let (web, difference) = run(&kernel, "10.0.0.2");
        assert_eq!((web.outcome, difference), (Outcome::Balanced, None));
        let TargetKind::Virtual { service, backends, kernel: led, .. } = web.kind else { panic!("virtual") };
        assert_eq!(service, Some(ServiceId::new("s")));
        assert_eq!((backends[0].endpoint.as_str(), backends[0].node.as_str()), ("t1", "node1"));
        assert_eq!(led, Some(vec!["10.0.0.5".parse().unwrap()]));
        let (idle, difference) = run(&kernel, "10.0.0.3");
        assert_eq!((idle.outcome, difference), (Outcome::Refused, None));
    }

    #[test]
    fn what_the_kernel_lacks_or_has_otherwise_is_told_and_taken_for_true() {
        let (web, difference) = run(&kernel(vni(), &[]), "10.0.0.2");
        assert_eq!(web.outcome, Outcome::Direct);
        assert_eq!(difference.as_deref(), Some("balancer: 10.0.0.2 is missing"));
        let (web, difference) = run(&kernel(vni(), &[("10.0.0.2", &[])]), "10.0.0.2");
        assert_eq!(web.outcome, Outcome::Refused);
        assert_eq!(difference.as_deref(), Some("balancer: 10.0.0.2 leads to {}, not {10.0.0.5}"));
        let (_, difference) = run(&kernel(vni(), &[("10.0.0.9", &["10.0.0.5"])]), "10.0.0.9");
        assert_eq!(difference.as_deref(), Some("balancer: 10.0.0.9 belongs to no service"));
    }

    #[test]
    fn other_addresses_are_tasks_free_ones_or_outside() {
        let kernel = kernel(vni(), &[]);
        let kind = |address| run(&kernel, address).0.kind;
        assert!(matches!(kind("10.0.0.5"), TargetKind::Endpoint { node, .. } if node.as_str() == "node1"));
        assert_eq!(kind("192.0.2.1"), TargetKind::Outside);
        let who = |address: &str| at(&table(), address.parse().unwrap());
        assert!(matches!(who("10.0.0.2"), Some(Who::Service { name, .. }) if name == "web"));
        assert!(matches!(who("10.0.0.5"), Some(Who::Endpoint { .. })));
        assert_eq!(who("10.0.0.77"), None);
    }
}
