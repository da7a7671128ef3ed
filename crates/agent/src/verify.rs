//! What a node holds, against what its kernel and resolver say they hold.
//!
//! Tables change underneath a look. So a network counts only if nothing was done about it from the
//! beginning of a look to its end, and a difference only if two looks, a moment apart, see it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use shoal_balancer::{DnsPorts, KernelState, LocalPort, PortKey, SandboxEntry};
use shoal_model::{
    Backends, IpVersion, NetworkId, NetworkTable, NodeId, NodeReport, TableCounts, TableReport,
};
use shoal_network::{FabricState, SandboxConfig};
use shoal_resolver::Names;
use shoal_resolver::feed::State;

use crate::node::Node;
use crate::resolver::Served;
use crate::sandbox::Tenant;
use crate::tables::{InForce, Own, local_ports, ports, services};
use crate::{Error, Result, sandbox};

/// Between the two looks.
const SECOND_LOOK: Duration = Duration::from_secs(1);
/// Differences of one network that are told one by one.
const DIFFERENCES_MAX: usize = 100;
/// A resolver that takes longer is one that does not answer.
const RESOLVER_BOUND: Duration = Duration::from_secs(2);

/// The kernel does not know which networks a sandbox is on, or which name server it has.
pub(crate) const SANDBOX_NOT_IN_FORCE: &str = "balancer: the networks of the sandbox are not in force";

/// What differs: whose business it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Names,
    Balancer,
    Fabric,
    Ports,
    Sandbox,
    Node,
}

impl Kind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Names => "names",
            Self::Balancer => "balancer",
            Self::Fabric => "fabric",
            Self::Ports => "ports",
            Self::Sandbox => "sandbox",
            Self::Node => "node",
        }
    }
}

/// Where it differs: what has to be made anew.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    Network(NetworkId),
    /// A task's or a plain container's, by its id.
    Sandbox(String),
    /// The balancer's programs and pins.
    Programs,
    /// The node's own addresses in the balancer.
    Addresses,
    /// nftables rules, gateway, settings, and ports of single tasks.
    Node,
    /// The resolver process, which is watched elsewhere.
    Resolver,
}

/// One difference. Equal ones are the same difference, seen again.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    pub place: Place,
    pub kind: Kind,
    pub text: String,
}

impl Finding {
    fn new(place: Place, kind: Kind, text: impl Into<String>) -> Self {
        Self { place, kind, text: text.into() }
    }
}

/// What one look saw.
#[derive(Debug, Default)]
pub(crate) struct Sighting {
    pub findings: BTreeSet<Finding>,
    /// What changed while it was looked at, or could not be: of these nothing is known.
    pub unseen: BTreeSet<Place>,
    /// Of every network in force, without differences.
    reports: Vec<TableReport>,
}

impl Sighting {
    fn add(&mut self, place: &Place, kind: Kind, texts: impl IntoIterator<Item = String>) {
        self.findings.extend(texts.into_iter().map(|text| Finding::new(place.clone(), kind, text)));
    }
}

/// The last of two looks, with the differences that both saw. One look is enough where nothing
/// differs.
pub(crate) async fn confirmed(node: &Node) -> Result<Sighting> {
    let first = look(node).await?;
    if first.findings.is_empty() {
        return Ok(first);
    }
    confirm(node, first).await
}

/// A second look, with the differences of the first that it sees too.
pub(crate) async fn confirm(node: &Node, first: Sighting) -> Result<Sighting> {
    tokio::time::sleep(SECOND_LOOK).await;
    let mut second = look(node).await?;
    second.findings.retain(|finding| first.findings.contains(finding));
    Ok(second)
}

/// A node's report, with its confirmed differences.
pub(crate) async fn report(node: &Node) -> Result<NodeReport> {
    let Sighting { findings, reports, .. } = confirmed(node).await?;
    if !findings.is_empty() {
        node.drift.hurry();
    }
    let counts = node.drift.counts();
    let locals: BTreeSet<NetworkId> = node.locals.all().into_iter().map(|network| network.id).collect();
    let is_local = |finding: &Finding| match &finding.place {
        Place::Network(network) => locals.contains(network),
        _ => true,
    };
    // A manager knows nothing of networks of this node alone.
    let tables = reports.into_iter().filter(|report| !locals.contains(&report.network)).map(|report| {
        let (found, repaired) = node.drift.of_network(&report.network);
        let place = Place::Network(report.network.clone());
        let differences = texts(&findings, |finding| finding.place == place);
        TableReport { found, repaired, differences, ..report }
    });
    Ok(NodeReport {
        node: node.membership().map(|member| member.node),
        tables: tables.collect(),
        differences: texts(&findings, is_local),
        drift: counts,
        taken_ports: node.tables.ports_held().borrow().taken.clone(),
    })
}

fn texts(findings: &BTreeSet<Finding>, concerned: impl Fn(&Finding) -> bool) -> Vec<String> {
    let named = |finding: &Finding| match &finding.place {
        Place::Sandbox(id) => format!("{} (container or task {id})", finding.text),
        _ => finding.text.clone(),
    };
    findings.iter().filter(|finding| concerned(finding)).map(named).collect()
}

/// One look at everything.
pub(crate) async fn look(node: &Node) -> Result<Sighting> {
    let mut sighting = Sighting::default();
    let in_force = node.tables.in_force().borrow().clone();
    let is_settled = |table: &Arc<NetworkTable>| is_settled(node, table);
    let settled: BTreeSet<NetworkId> =
        in_force.values().filter(|table| is_settled(table)).map(|table| table.network.clone()).collect();
    let served = node.resolver.balanced();
    if in_force.is_empty() && served.is_empty() {
        return Ok(sighting);
    }
    let mut kernel = read_balancer(node).await?;
    let of_tasks = node.host_ports.differences(&node.fabric, &kernel).await?;
    sighting.add(&Place::Node, Kind::Ports, of_tasks);
    let others = node.host_ports.keys();
    kernel.ports.retain(|key, _| !others.contains(key));
    let names = match tokio::time::timeout(RESOLVER_BOUND, node.resolver.read_back()).await {
        Ok(Ok(names)) => Some(names),
        _ => {
            sighting.add(&Place::Resolver, Kind::Names, ["resolver: does not answer".to_owned()]);
            sighting.unseen.extend(in_force.keys().cloned().map(Place::Network));
            sighting.unseen.extend(served.iter().map(|(served, _)| Place::Sandbox(served.view.id.clone())));
            None
        }
    };
    let own = node.own();
    for table in in_force.values() {
        let (differences, report) = look_at_network(node, table, &own, &kernel, names.as_ref()).await;
        sighting.reports.push(report);
        let place = Place::Network(table.network.clone());
        // Read while something else came into force, all of this says nothing.
        if settled.contains(&table.network) && is_settled(table) {
            bounded(differences).into_iter().for_each(|(kind, text)| sighting.add(&place, kind, [text]));
        } else {
            sighting.unseen.insert(place);
        }
    }
    look_at_sandboxes(node, &mut sighting, &served, &in_force, &kernel, names.as_ref()).await?;
    if !in_force.is_empty() {
        look_at_node(node, &mut sighting).await?;
    }
    Ok(sighting)
}

/// The first of many differences, and how many more there are: somebody may have emptied a map of tens
/// of thousands.
fn bounded(mut differences: Vec<(Kind, String)>) -> Vec<(Kind, String)> {
    let more = differences.len().saturating_sub(DIFFERENCES_MAX);
    if let Some(&(kind, _)) = differences.get(DIFFERENCES_MAX) {
        differences.truncate(DIFFERENCES_MAX);
        differences.push((kind, format!("{more} more differences")));
    }
    differences
}

/// The very table is in force, and nothing is being done about it.
fn is_settled(node: &Node, table: &Arc<NetworkTable>) -> bool {
    node.tables.settled(&table.network).is_some_and(|now| Arc::ptr_eq(&now, table))
}

pub(crate) async fn read_balancer(node: &Node) -> Result<KernelState> {
    let balancer = node.balancer.clone();
    let read = tokio::task::spawn_blocking(move || balancer.read_back());
    Ok(read.await.map_err(|_| Error::Closed)??)
}

async fn look_at_network(
    node: &Node,
    table: &NetworkTable,
    own: &Own,
    kernel: &KernelState,
    names: Option<&State>,
) -> (Vec<(Kind, String)>, TableReport) {
    let fabric = node.fabric.read_ways(&table.network).await.unwrap_or_default();
    let (mut differences, report) = compare(table, own, kernel, names, &fabric);
    let unseen = |error: shoal_network::Error| vec![format!("fabric: cannot be looked at: {error}")];
    let found = node.fabric.differences(table).await.unwrap_or_else(unseen);
    differences.extend(found.into_iter().map(|text| (Kind::Fabric, text)));
    if table.config.ingress {
        let found = node.fabric.port_differences(&ports(table, own)).await.unwrap_or_else(unseen);
        differences.extend(found.into_iter().map(|text| (Kind::Ports, text)));
    }
    (differences, report)
}

/// One table against what balancer and resolver hold; what the fabric has is only counted here.
fn compare(
    table: &NetworkTable,
    own: &Own,
    kernel: &KernelState,
    names: Option<&State>,
    fabric: &FabricState,
) -> (Vec<(Kind, String)>, TableReport) {
    let mut differences = Vec::new();
    let expected = services(table, own);
    let vni = table.config.vni;
    let found: BTreeMap<_, _> = kernel.services.iter().filter(|(key, _)| key.vni == vni).collect();
    let mut differs = |text: String| differences.push((Kind::Balancer, text));
    for key in expected.keys().chain(found.keys().copied().filter(|key| !expected.contains_key(key))) {
        let (wanted, found) = (expected.get(key), found.get(key).copied());
        service_difference(key.address, wanted, found).into_iter().for_each(&mut differs);
    }
    let local = local_ports(table, own);
    let published = if table.config.ingress { kernel.ports.clone() } else { BTreeMap::new() };
    for (key, backends) in &local {
        let name = port_name(key);
        match published.get(key) {
            None => differs(format!("balancer: {name} is missing")),
            Some(found) if found != backends => {
                differs(format!(
                    "balancer: {name} leads to {}, not {}",
                    local_words(found),
                    local_words(backends)
                ));
            }
            Some(_) => {}
        }
    }
    for key in published.keys().filter(|key| !local.contains_key(key)) {
        differs(format!("balancer: {} belongs to no service", port_name(key)));
    }
    let wanted_names = Names::from_table(table);
    let resolver = names.and_then(|names| names.networks.get(&table.network));
    differences.extend(name_difference(&wanted_names, names, &table.network));
    let backends = |services: &mut dyn Iterator<Item = usize>| services.sum();
    let remote = remote(table, own.node.as_ref());
    let report = TableReport {
        network: table.network.clone(),
        name: table.config.name.clone(),
        version: table.version,
        services: table.services.len(),
        endpoints: table.endpoints.len(),
        held: TableCounts {
            names: wanted_names.len(),
            vips: expected.len(),
            backends: backends(&mut expected.values().map(|backends| backends.members.len())),
            ports: count_ports(local.keys()),
            remote_endpoints: remote.len(),
        },
        read_back: TableCounts {
            names: resolver.map_or(0, |state| state.names),
            vips: found.len(),
            backends: backends(&mut found.values().map(|backends| backends.members.len())),
            ports: count_ports(published.keys()),
            remote_endpoints: fabric.remote.len(),
        },
        found: 0,
        repaired: 0,
        differences: Vec::new(),
    };
    (differences, report)
}

/// Where a virtual address leads, against where it should.
pub(crate) fn service_difference(
    address: IpAddr,
    wanted: Option<&Backends<IpAddr>>,
    found: Option<&Backends<IpAddr>>,
) -> Option<String> {
    match (wanted, found) {
        (Some(_), None) => Some(format!("balancer: {address} is missing")),
        (None, Some(_)) => Some(format!("balancer: {address} belongs to no service")),
        (Some(wanted), Some(found)) if wanted != found => {
            Some(format!("balancer: {address} leads to {}, not {}", words(found), words(wanted)))
        }
        _ => None,
    }
}

/// A resolver that does not answer is told of elsewhere.
fn name_difference(wanted: &Names, read: Option<&State>, network: &NetworkId) -> Option<(Kind, String)> {
    let text = match read?.networks.get(network) {
        None => "resolver: does not know the network".to_owned(),
        Some(state) if state.version != wanted.version => {
            format!("resolver: is at revision {}", state.version.revision)
        }
        Some(state) if state.digest.is_some_and(|digest| digest != wanted.digest()) => {
            "resolver: answers other names than the table's".to_owned()
        }
        Some(_) => return None,
    };
    Some((Kind::Names, text))
}

fn words<A: Ord + std::fmt::Debug>(backends: &Backends<A>) -> String {
    format!("{:?}{}", backends.members, if backends.by_source { " by source" } else { "" })
}

fn local_words(port: &LocalPort) -> String {
    let bound = port.bound.as_ref().map(|bound| format!(" from {bound:?}")).unwrap_or_default();
    words(&port.backends) + &bound
}

/// One that is reached by both versions of IP is one port.
fn count_ports<'a>(keys: impl Iterator<Item = &'a PortKey>) -> usize {
    keys.map(|key| (key.protocol, key.port)).collect::<BTreeSet<_>>().len()
}

fn port_name(key: &PortKey) -> String {
    let version = match key.version {
        IpVersion::V4 => "",
        IpVersion::V6 => " in IPv6",
    };
    format!("port {}/{}{version}", key.port, key.protocol.as_str())
}

/// Addresses that other nodes answer for.
fn remote(table: &NetworkTable, own: Option<&NodeId>) -> BTreeSet<IpAddr> {
    let elsewhere = table.endpoints.values().filter(|endpoint| Some(&endpoint.node) != own);
    let addresses = elsewhere.flat_map(|endpoint| [Some(endpoint.address), endpoint.address_v6]).flatten();
    addresses.map(|address| address.addr()).collect()
}

async fn look_at_sandboxes(
    node: &Node,
    sighting: &mut Sighting,
    served: &[(Served, DnsPorts)],
    in_force: &InForce,
    kernel: &KernelState,
    names: Option<&State>,
) -> Result<()> {
    let configs: Vec<SandboxConfig> =
        served.iter().filter_map(|(served, _)| sandbox_config(node, &served.view.id, in_force)).collect();
    let mut found = node.fabric.sandbox_differences(&configs).await?;
    for config in &configs {
        let unanswered = unanswered(node, config).await;
        if !found.contains_key(&config.id) && !unanswered.is_empty() {
            found.insert(config.id.clone(), unanswered);
        }
    }
    let now = node.resolver.balanced();
    for (served, ports) in served {
        let id = &served.view.id;
        let place = Place::Sandbox(id.clone());
        // Served anew or no more: it was read while it changed.
        if !now.iter().any(|(now, now_ports)| now == served && now_ports == ports) {
            sighting.unseen.insert(place);
            continue;
        }
        sighting.add(&place, Kind::Sandbox, found.remove(id).unwrap_or_default());
        let wanted = SandboxEntry { networks: served.vnis.clone(), dns: Some(*ports) };
        if kernel.sandboxes.get(&served.cookie) != Some(&wanted) {
            sighting.add(&place, Kind::Balancer, [SANDBOX_NOT_IN_FORCE.to_owned()]);
        }
        let known = names.is_none_or(|names| {
            names.sandboxes.get(id).is_some_and(|state| {
                let own = (state.ports.udp, state.ports.tcp);
                state.view == served.view && own == (ports.udp, ports.tcp)
            })
        });
        if !known {
            sighting.add(&place, Kind::Names, ["resolver: does not serve the sandbox".to_owned()]);
        }
    }
    Ok(())
}

/// What a task's or a plain container's sandbox is made from; `None` while not all of its networks are in
/// force, or when it is nobody's.
pub(crate) fn sandbox_config(node: &Node, id: &str, in_force: &InForce) -> Option<SandboxConfig> {
    let config = |tenant: Tenant<'_>| {
        let ready = tenant.attachments.iter().all(|at| in_force.contains_key(&at.network));
        ready.then(|| sandbox::config(tenant, in_force))
    };
    match node.tasks.record(id) {
        Some(record) => config(Tenant::from(&record.task)),
        None => config(node.plains.record(id).filter(|record| !record.left)?.tenant()),
    }
}

/// The networks on which nobody answers for virtual addresses beside `connect`.
pub(crate) async fn unanswered(node: &Node, config: &SandboxConfig) -> Vec<String> {
    let ends = node.fabric.overlay_ends(config).await;
    let balancer = node.balancer.clone();
    let looked = tokio::task::spawn_blocking(move || {
        let silent = ends
            .into_iter()
            .filter(|(_, netns, interface)| !balancer.has_answerer(netns, interface).unwrap_or(false));
        silent.map(|(network, _, _)| format!("balancer: no answerer on network {network}")).collect()
    });
    looked.await.unwrap_or_default()
}

async fn look_at_node(node: &Node, sighting: &mut Sighting) -> Result<()> {
    sighting.add(&Place::Node, Kind::Node, node.fabric.node_differences().await?);
    let programs = node.balancer.differences()?;
    sighting.add(&Place::Programs, Kind::Node, programs.into_iter().map(|text| format!("balancer: {text}")));
    let wanted = (shoal_balancer::own_netns_cookie()?, node.fabric.address_changes().borrow().clone());
    if node.balancer.read_node()? != wanted {
        let text = "balancer: the node's own addresses are not in force";
        sighting.add(&Place::Addresses, Kind::Node, [text.to_owned()]);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use shoal_balancer::PortKey;
    use shoal_model::{EndpointId, PortConfig, Protocol, PublishMode, ServiceId};
    use shoal_resolver::feed::NetworkState;

    fn names(state: NetworkState) -> State {
        State { networks: BTreeMap::from([(NetworkId::new("n1"), state)]), ..State::default() }
    }

    fn differences(table: &NetworkTable, kernel: &KernelState, names: &State) -> Vec<String> {
        let own = Own { node: Some(NodeId::new("node1")), ..Own::default() };
        let (found, _) = compare(table, &own, kernel, Some(names), &FabricState::default());
        found.into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn every_kind_of_drift_is_named() {
        let mut table = testing::table("n1", 7);
        table.services.insert(ServiceId::new("s"), testing::service("web", Some("10.0.1.2"), &["t1"]));
        table.endpoints.insert(EndpointId::new("t1"), testing::endpoint("other", "10.0.1.5/24"));
        table.endpoints.get_mut(&EndpointId::new("t1")).unwrap().address_v6 = "fd00::5/64".parse().ok();
        assert_eq!(
            differences(&table, &KernelState::default(), &State::default()),
            ["balancer: 10.0.1.2 is missing", "resolver: does not know the network"]
        );

        let kernel = KernelState { services: services(&table, &Own::default()), ..KernelState::default() };
        let wanted = Names::from_table(&table);
        let whole =
            NetworkState { version: table.version, names: wanted.len(), digest: Some(wanted.digest()) };
        assert_eq!(differences(&table, &kernel, &names(whole)), Vec::<String>::new());
        let old = NetworkState { digest: None, ..whole };
        assert_eq!(differences(&table, &kernel, &names(old)), Vec::<String>::new(), "it does not tell");
        let other = NetworkState { digest: Some(7), ..whole };
        assert_eq!(
            differences(&table, &kernel, &names(other)),
            ["resolver: answers other names than the table's"]
        );

        let own = Own { node: Some(NodeId::new("other")), ..Own::default() };
        let (_, report) = compare(&table, &own, &kernel, Some(&names(whole)), &FabricState::default());
        assert_eq!(report.held, report.read_back);
        assert_eq!((report.held.vips, report.held.backends, report.held.remote_endpoints), (1, 1, 0));
    }

    #[test]
    fn of_many_differences_the_first_are_told() {
        let many =
            |count: usize| (0..count).map(|number| (Kind::Ports, number.to_string())).collect::<Vec<_>>();
        assert_eq!(bounded(many(DIFFERENCES_MAX)), many(DIFFERENCES_MAX));
        let told = bounded(many(80_000));
        assert_eq!(told[..DIFFERENCES_MAX], many(DIFFERENCES_MAX));
        assert_eq!(told[DIFFERENCES_MAX..], [(Kind::Ports, "79900 more differences".to_owned())]);
    }

    #[test]
    fn ports_are_compared_with_where_they_lead() {
        let mut table = testing::table("n1", 7);
        table.config.ingress = true;
        let mut service = testing::service("web", None, &["t1"]);
        service.ports = vec![PortConfig {
            protocol: Protocol::Tcp,
            target: 80,
            published: 8000,
            mode: PublishMode::Ingress,
            ..PortConfig::default()
        }];
        table.services.insert(ServiceId::new("s"), service);
        table.endpoints.insert(EndpointId::new("t1"), testing::endpoint("node1", "10.0.0.5/24"));
        let wanted = Names::from_table(&table);
        let state =
            NetworkState { version: table.version, names: wanted.len(), digest: Some(wanted.digest()) };
        let of = |ports: &[(u16, &str)]| {
            let ports = ports.iter().flat_map(|(port, backend)| {
                let backends = LocalPort { backends: [backend.parse().unwrap()].into(), bound: None };
                let key = |version| PortKey { version, protocol: Protocol::Tcp, port: *port };
                IpVersion::ALL.map(|version| (key(version), backends.clone()))
            });
            let kernel = KernelState { ports: ports.collect(), ..KernelState::default() };
            differences(&table, &kernel, &names(state))
        };
        assert_eq!(of(&[(8000, "10.0.0.5:80")]), Vec::<String>::new());
        let missing = ["balancer: port 8000/tcp is missing", "balancer: port 8000/tcp in IPv6 is missing"];
        assert_eq!(of(&[]), missing);
        let found = of(&[(8000, "10.0.0.9:80"), (1, "10.0.0.5:80")]);
        assert!(found[0].starts_with("balancer: port 8000/tcp leads to {10.0.0.9:80}"), "{found:?}");
        assert_eq!(found[2], "balancer: port 1/tcp belongs to no service");
    }
}
