//! Whose name it is, by a table.

use super::{Elsewhere, Resolution, Who};
use crate::NetworkTable;

/// What stands before a service's name that means its tasks.
const TASKS: &str = "tasks.";
/// The same for those that are not healthy yet, too.
const ALL: &str = "all.";

/// Everybody on the table's network who has this name, in whatever case. Nobody has one on the ingress
/// network.
pub fn holders(table: &NetworkTable, name: &str) -> Vec<Who> {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    if table.config.ingress || name.is_empty() {
        return Vec::new();
    }
    let is = |own: &String, wanted: &str| own.trim_end_matches('.').eq_ignore_ascii_case(wanted);
    let tasks_of = name.strip_prefix(TASKS);
    let services = table.services.iter().flat_map(|(id, service)| {
        let has =
            |wanted: &str| is(&service.name, wanted) || service.aliases.iter().any(|own| is(own, wanted));
        let has_vip = service.vip.is_some() || service.vip_v6.is_some();
        let mode = if has_vip { Resolution::Vip } else { Resolution::Dnsrr };
        let own = has(&name).then(|| Who::Service {
            service: id.clone(),
            name: service.name.clone(),
            alias: !is(&service.name, &name),
            mode,
        });
        let tasks = tasks_of.is_some_and(has);
        let tasks = tasks.then(|| Who::Tasks { service: id.clone(), name: service.name.clone() });
        own.into_iter().chain(tasks)
    });
    let endpoints = table.endpoints.iter().filter_map(|(id, endpoint)| {
        let place = endpoint.names.iter().position(|own| is(own, &name))?;
        Some(Who::Endpoint {
            endpoint: id.clone(),
            node: endpoint.node.clone(),
            name: endpoint.names.first()?.clone(),
            alias: place > 0,
        })
    });
    let found: Vec<Who> = services.chain(endpoints).collect();
    match name.strip_prefix(ALL) {
        // A name that somebody has wins.
        Some(head) if found.is_empty() => holders(table, head).into_iter().filter_map(all_of).collect(),
        _ => found,
    }
}

fn all_of(who: Who) -> Option<Who> {
    match who {
        Who::Service { service, name, .. } => Some(Who::All { service, name }),
        _ => None,
    }
}

/// The same for somebody who is not on the network: also by `NAME.NETWORK`.
pub fn beyond(table: &NetworkTable, name: &str) -> Option<Elsewhere> {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    let network = table.config.name.to_ascii_lowercase();
    let head = name.strip_suffix(&network).and_then(|head| head.strip_suffix('.'));
    let who =
        [Some(name.as_str()), head].into_iter().flatten().find_map(|name| holders(table, name).pop())?;
    Some(Elsewhere {
        network: table.network.clone(),
        network_name: table.config.name.clone(),
        name: match who {
            Who::Service { name, .. }
            | Who::Tasks { name, .. }
            | Who::All { name, .. }
            | Who::Endpoint { name, .. } => name,
        },
    })
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::{
        EndpointEntry, EndpointId, MacAddr, NetworkId, NodeId, ServiceEntry, ServiceId, TableConfig,
        TableVersion,
    };

    fn table() -> NetworkTable {
        let service = |name: &str, aliases: &[&str], vip: Option<&str>| {
            let entry = ServiceEntry {
                name: name.to_owned(),
                aliases: aliases.iter().map(|alias| (*alias).to_owned()).collect(),
                vip: vip.map(|vip| vip.parse().unwrap()),
                vip_v6: None,
                ports: Vec::new(),
                backends: BTreeSet::new(),
                others: BTreeSet::new(),
                policy: Default::default(),
            };
            (ServiceId::new(format!("id-{name}")), entry)
        };
        let endpoint = EndpointEntry {
            node: NodeId::new("node1"),
            address: "10.0.1.5/24".parse().unwrap(),
            address_v6: None,
            mac: MacAddr([2, 0, 0, 0, 0, 1]),
            names: vec!["web.1.abc".to_owned(), "5a08ed112e50".to_owned(), "shop".to_owned()],
        };
        NetworkTable {
            network: NetworkId::new("n1"),
            version: TableVersion::default(),
            config: TableConfig {
                driver: Default::default(),
                config_from: None,
                name: "MyNet".to_owned(),
                vni: 4097,
                pools: Vec::new(),
                internal: false,
                ingress: false,
                mtu: None,
                data_path_port: 4789,
                shown: Default::default(),
            },
            services: BTreeMap::from([service("web", &["shop"], Some("10.0.1.2")), service("rr", &[], None)]),
            endpoints: BTreeMap::from([(EndpointId::new("t1"), endpoint)]),
            nodes: BTreeMap::new(),
        }
    }

    #[test]
    fn a_name_is_a_services_a_tasks_or_an_alias() {
        let table = table();
        let service = |name: &str, alias, mode| Who::Service {
            service: ServiceId::new(format!("id-{name}")),
            name: name.to_owned(),
            alias,
            mode,
        };
        let task = |alias| Who::Endpoint {
            endpoint: EndpointId::new("t1"),
            node: NodeId::new("node1"),
            name: "web.1.abc".to_owned(),
            alias,
        };
        assert_eq!(holders(&table, "WEB."), [service("web", false, Resolution::Vip)]);
        assert_eq!(holders(&table, "rr"), [service("rr", false, Resolution::Dnsrr)]);
        assert_eq!(holders(&table, "shop"), [service("web", true, Resolution::Vip), task(true)]);
        assert_eq!(holders(&table, "web.1.abc"), [task(false)]);
        let tasks = |name: &str| holders(&table, name);
        assert!(matches!(&tasks("tasks.web")[..], [Who::Tasks { name, .. }] if name == "web"));
        assert!(matches!(&tasks("tasks.shop")[..], [Who::Tasks { name, .. }] if name == "web"));
        assert!(matches!(&tasks("all.shop")[..], [Who::All { name, .. }] if name == "web"));
        assert!(tasks("nobody").is_empty() && tasks("").is_empty());
        let mut ingress = table.clone();
        ingress.config.ingress = true;
        assert!(holders(&ingress, "web").is_empty());
    }

    #[test]
    fn from_beyond_a_name_is_known_with_its_network_too() {
        let found = |name: &str| beyond(&table(), name).map(|found| found.name);
        assert_eq!(found("web").as_deref(), Some("web"));
        assert_eq!(found("web.mynet").as_deref(), Some("web"));
        assert_eq!(found("web.1.ABC.mynet").as_deref(), Some("web.1.abc"));
        assert_eq!(found("web.other"), None);
        assert_eq!(found("webmynet"), None);
    }
}
