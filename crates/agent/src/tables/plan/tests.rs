use proptest::prelude::*;
use shoal_model::{NetworkId, PortConfig, ServiceId};

use super::*;
use crate::testing;

/// What a pretended node holds.
#[derive(Default)]
struct Node {
    held: Held,
    fabric: Option<BTreeSet<IpAddr>>,
    names: Option<NetworkTable>,
}

impl Node {
    /// Performs a plan, checking at each step what the order promises.
    fn apply(&mut self, wanted: Option<&NetworkTable>, dead: &BTreeSet<EndpointId>) -> Vec<Step> {
        let steps = plan(&self.held, wanted, dead, &here());
        let addresses = |table: &NetworkTable| -> BTreeSet<IpAddr> {
            table.endpoints.values().map(|endpoint| endpoint.address.addr()).collect()
        };
        for step in &steps {
            match step {
                Step::ApplyFabric => {
                    self.fabric.get_or_insert_default().extend(addresses(wanted.unwrap()));
                }
                Step::SetService(key, backends) => {
                    self.held.services.insert(*key, backends.clone());
                }
                Step::AcceptPorts(ports) => self.held.ports = ports.clone(),
                Step::SetPort(key, backends) => {
                    self.held.local_ports.insert(*key, backends.clone());
                }
                Step::SetNames => self.names = wanted.cloned(),
                Step::RemoveNames => self.names = None,
                Step::RemovePort(key) => {
                    self.held.local_ports.remove(key);
                }
                Step::RemoveService(key) => {
                    self.held.services.remove(key);
                }
                Step::PruneFabric => self.fabric = Some(addresses(wanted.unwrap())),
                Step::RemoveFabric => self.fabric = None,
                Step::Release(address) => {
                    self.held.released.insert(*address);
                }
            }
            self.check();
        }
        self.held.table = wanted.cloned();
        self.held.released = gone(&self.held, wanted, dead);
        steps
    }

    /// Every name that resolves to a VIP has its VIP balanced; every balanced backend is reachable; every
    /// port that is accepted is translated for the node's own clients.
    fn check(&self) {
        let known = self.fabric.clone().unwrap_or_default();
        for backends in self.held.services.values() {
            assert!(backends.members.is_subset(&known), "{backends:?} balanced, reachable {known:?}");
        }
        let named = self.names.iter().filter(|table| !table.config.ingress);
        for vip in named.flat_map(|table| table.services.values()).filter_map(|s| s.vip) {
            assert!(self.held.services.keys().any(|key| key.address == vip), "{vip} has a name only");
        }
        for &(protocol, port) in self.held.ports.keys() {
            for version in IpVersion::ALL {
                let key = PortKey { version, protocol, port };
                let known = self.held.local_ports.contains_key(&key);
                assert!(known, "{port} is accepted, but not for the node itself");
            }
        }
    }
}

fn here() -> Own {
    let addresses = |list: &[&str]| list.iter().map(|address| address.parse().unwrap()).collect();
    let links = [("eth0", addresses(&["192.0.2.1", "2001:db8::1"])), ("eth1", addresses(&["10.9.0.1"]))];
    let links = links.map(|(name, addresses)| (name.to_owned(), addresses)).into();
    Own { node: Some(NodeId::new("node1")), links }
}

fn table(revision: u64, services: &[(&str, &[&str])], endpoints: &[(&str, u8)]) -> NetworkTable {
    let mut table = testing::table("n1", revision);
    for (at, (name, backends)) in services.iter().enumerate() {
        let vip = format!("10.0.1.{}", 100 + at);
        table.services.insert(ServiceId::new(name), testing::service(name, Some(&vip), backends));
    }
    for (id, host) in endpoints {
        let entry = testing::endpoint("node1", &format!("10.0.1.{host}/24"));
        table.endpoints.insert(EndpointId::new(id), entry);
    }
    table
}

#[test]
fn additions_go_fabric_balancer_names_and_removals_back() {
    let mut node = Node::default();
    let full = table(1, &[("web", &["t1"])], &[("t1", 5)]);
    let key = ServiceKey { vni: 4097, address: "10.0.1.100".parse().unwrap() };
    let backends = Backends::from(["10.0.1.5".parse().unwrap()]);
    assert_eq!(
        node.apply(Some(&full), &BTreeSet::new()),
        [Step::ApplyFabric, Step::SetService(key, backends), Step::SetNames, Step::PruneFabric]
    );
    assert_eq!(node.apply(Some(&full), &BTreeSet::new()), [], "nothing to do twice");
    assert_eq!(
        node.apply(Some(&table(2, &[], &[])), &BTreeSet::new()),
        [
            Step::ApplyFabric,
            Step::SetNames,
            Step::RemoveService(key),
            Step::PruneFabric,
            Step::Release("10.0.1.5".parse().unwrap())
        ]
    );
}

#[test]
fn a_network_taken_away_leaves_nothing() {
    let mut node = Node::default();
    node.apply(Some(&table(1, &[("web", &["t1"])], &[("t1", 5)])), &BTreeSet::new());
    let steps = node.apply(None, &BTreeSet::new());
    assert_eq!(steps.first(), Some(&Step::RemoveNames));
    assert!(steps.contains(&Step::RemoveFabric));
    assert!(node.held.services.is_empty() && node.fabric.is_none() && node.names.is_none());
}

#[test]
fn a_dead_endpoint_is_released_once_and_before_the_manager_knows() {
    let mut node = Node::default();
    let full = table(1, &[("web", &["t1", "t2"])], &[("t1", 5), ("t2", 6)]);
    node.apply(Some(&full), &BTreeSet::new());
    let dead = BTreeSet::from([EndpointId::new("t1")]);
    let steps = node.apply(Some(&full.without(&dead)), &dead);
    let address = "10.0.1.5".parse().unwrap();
    assert_eq!(steps.last(), Some(&Step::Release(address)));
    assert_eq!(steps.iter().filter(|step| matches!(step, Step::SetService(..))).count(), 1);
    assert_eq!(node.apply(Some(&full.without(&dead)), &dead), []);
}

#[test]
fn an_address_with_a_new_owner_is_not_reset() {
    let mut node = Node::default();
    node.apply(Some(&table(1, &[], &[("t1", 5)])), &BTreeSet::new());
    let steps = node.apply(Some(&table(2, &[], &[("t2", 5)])), &BTreeSet::new());
    assert!(!steps.iter().any(|step| matches!(step, Step::Release(_))), "{steps:?}");
}

#[test]
fn published_ports_are_accepted_before_old_ones_are_refused() {
    let ingress = |revision, published: u16, backends: &[&str]| {
        let mut table = table(revision, &[], &[("t1", 5), ("t2", 6)]);
        table.config.ingress = true;
        let mut service = testing::service("app", Some("10.0.1.100"), backends);
        service.ports =
            vec![PortConfig { published, target: 80, protocol: Protocol::Tcp, ..PortConfig::default() }];
        table.services.insert(ServiceId::new("app"), service);
        table
    };
    let mut node = Node::default();
    node.apply(Some(&ingress(1, 8000, &["t1", "t2"])), &BTreeSet::new());
    assert!(node.held.services.is_empty(), "the ingress network has no virtual addresses");
    assert_eq!(node.held.ports[&(Protocol::Tcp, 8000)].backends.members.len(), 2);
    let steps = node.apply(Some(&ingress(2, 8001, &["t1"])), &BTreeSet::new());
    let sizes: Vec<usize> = steps
        .iter()
        .filter_map(|step| match step {
            Step::AcceptPorts(ports) => Some(ports.len()),
            _ => None,
        })
        .collect();
    assert_eq!(sizes, [2, 1]);
    assert_eq!(node.held.local_ports.len(), 2, "one for each version of IP");
    node.apply(None, &BTreeSet::new());
    assert!(node.held.ports.is_empty() && node.held.local_ports.is_empty());
}

fn any_table() -> impl Strategy<Value = Option<NetworkTable>> {
    let services =
        proptest::collection::btree_map(0u8..4, proptest::collection::btree_set(0u8..6, 0..4), 0..4);
    proptest::option::weighted(
        0.9,
        services.prop_map(|services| {
            let mut table = testing::table("n1", 0);
            for (service, backends) in services {
                let ids: Vec<String> = backends.iter().map(|at| format!("t{at}")).collect();
                let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
                let vip = format!("10.0.1.{}", 100 + service);
                let id = ServiceId::new(format!("s{service}"));
                table.services.insert(id, testing::service("s", Some(&vip), &ids));
                for at in backends {
                    let entry = testing::endpoint("node1", &format!("10.0.1.{}/24", at + 5));
                    table.endpoints.insert(EndpointId::new(format!("t{at}")), entry);
                }
            }
            table
        }),
    )
}

proptest! {
    /// Whatever tables follow each other: the promises of the order hold at each step, and the end
    /// is what a fresh node would have come to.
    #[test]
    fn any_sequence_ends_like_a_fresh_start(tables in proptest::collection::vec(any_table(), 1..12)) {
        let mut node = Node::default();
        for (revision, mut wanted) in tables.into_iter().enumerate() {
            if let Some(table) = &mut wanted {
                table.version.revision = revision as u64;
                table.network = NetworkId::new("n1");
            }
            node.apply(wanted.as_ref(), &BTreeSet::new());
            let mut fresh = Node::default();
            fresh.apply(wanted.as_ref(), &BTreeSet::new());
            prop_assert_eq!(&node.held.services, &fresh.held.services);
            prop_assert_eq!(&node.fabric, &fresh.fabric);
            prop_assert_eq!(&node.names, &fresh.names);
            prop_assert_eq!(plan(&node.held, wanted.as_ref(), &BTreeSet::new(), &here()).len(), usize::from(wanted.is_none()) * 2);
        }
    }
}

/// `web` with one task here and two elsewhere, published on port 80, and its policy.
fn with_policy(ingress: bool, labels: &[(&str, &str)], backends: &[&str]) -> NetworkTable {
    let mut table = table(1, &[], &[("t1", 5)]);
    for (id, host) in [("t2", 6), ("t3", 7)] {
        let entry = testing::endpoint("node2", &format!("10.0.1.{host}/24"));
        table.endpoints.insert(EndpointId::new(id), entry);
    }
    table.config.ingress = ingress;
    let mut service = testing::service("web", Some("10.0.1.100"), backends);
    service.ports = vec![PortConfig { published: 80, target: 8080, ..PortConfig::default() }];
    let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    service.policy = shoal_model::Policy::of(&labels).unwrap();
    table.services.insert(ServiceId::new("web"), service);
    table
}

#[test]
fn tasks_of_this_node_come_first_where_that_is_asked_for() {
    let local = [("shoal.balance", "local-first")];
    let led_to = |table: &NetworkTable| {
        let members = services(table, &here()).into_values().next().unwrap().members;
        members.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(led_to(&with_policy(false, &[], &["t1", "t2", "t3"])).len(), 3);
    assert_eq!(led_to(&with_policy(false, &local, &["t1", "t2", "t3"])), ["10.0.1.5"]);
    assert_eq!(
        led_to(&with_policy(false, &local, &["t2", "t3"])),
        ["10.0.1.6", "10.0.1.7"],
        "others when there is none"
    );
    let ports =
        |labels, backends| ports(&with_policy(true, labels, backends), &here()).into_values().next().unwrap();
    assert_eq!(ports(&local, &["t1", "t2"]).backends.members, ["10.0.1.5:8080".parse().unwrap()].into());
    let source = [("shoal.balance", "source")];
    assert!(ports(&source, &["t1", "t2"]).backends.by_source);
    assert!(services(&with_policy(false, &source, &["t1"]), &here()).into_values().all(|web| web.by_source));
}

#[test]
fn a_port_bound_to_a_link_follows_its_addresses() {
    let table = with_policy(true, &[("shoal.publish.bind", "eth0,192.0.2.77")], &["t1"]);
    let bound = |own: &Own, version| {
        let key = PortKey { version, protocol: Protocol::Tcp, port: 80 };
        let bound = local_ports(&table, own)[&key].bound.clone().unwrap();
        bound.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(bound(&here(), IpVersion::V4), ["192.0.2.1", "192.0.2.77"]);
    assert_eq!(bound(&here(), IpVersion::V6), ["2001:db8::1"]);
    let mut node = Node::default();
    node.apply(Some(&table), &BTreeSet::new());
    let moved = Own { links: BTreeMap::new(), ..here() };
    let steps = plan(&node.held, Some(&table), &BTreeSet::new(), &moved);
    assert!(matches!(steps.as_slice(), [Step::SetPort(..), Step::SetPort(..)]), "{steps:?}");
    let open = with_policy(true, &[("shoal.publish.81.bind", "eth0")], &["t1"]);
    assert!(local_ports(&open, &here()).into_values().all(|port| port.bound.is_none()));
}
