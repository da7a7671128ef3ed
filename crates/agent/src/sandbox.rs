//! What a sandbox looks like, as pure functions of who lives in it and the tables in force.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use shoal_model::{Attachment, ContainerSpec, Driver, Labels, NetworkId, NetworkTable, NodeId, Task};
use shoal_network::{SandboxAttachment, SandboxConfig};
use shoal_resolver::feed::SandboxView;
use shoal_resolver::resolv_conf::ContainerFile;

use crate::local;

type Networks = BTreeMap<NetworkId, Arc<NetworkTable>>;

/// Who lives in a sandbox: a task or a plain container.
#[derive(Clone, Copy)]
pub(crate) struct Tenant<'a> {
    /// The task's or the container's id; the sandbox's name.
    pub id: &'a str,
    pub attachments: &'a [Attachment],
    pub spec: &'a ContainerSpec,
    /// Without a way out, whatever its networks have.
    pub secluded: bool,
    /// Names of its own for other containers' names.
    pub links: &'a [Link],
}

/// A name of a container's own for another container (Docker's `--link`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    pub alias: String,
    /// A name of the other container on a network that both are on.
    pub target: String,
}

impl<'a> From<&'a Task> for Tenant<'a> {
    fn from(task: &'a Task) -> Self {
        Self {
            id: task.id.as_str(),
            attachments: &task.attachments,
            spec: &task.spec.container,
            secluded: false,
            links: &[],
        }
    }
}

/// The task runs in the node's own network namespace: it names networks, none of which gives it an
/// address.
pub(crate) fn uses_host(task: &Task) -> bool {
    task.attachments.is_empty() && !task.spec.networks.is_empty()
}

/// The networks on which the tenant looks up names: all but the ingress network and the node's default one. In the
/// order in which they are looked at, Docker's: the cluster's, then the node's own; those that lead out first; by
/// name.
fn named<'a>(tenant: Tenant<'a>, tables: &'a Networks) -> Vec<(&'a Attachment, &'a NetworkTable)> {
    let known = |attachment: &'a Attachment| Some((attachment, &**tables.get(&attachment.network)?));
    let mut named: Vec<_> =
        tenant.attachments.iter().filter_map(known).filter(|(_, table)| has_names(table)).collect();
    named.sort_by_key(|(_, NetworkTable { config, .. })| (config.is_local(), config.internal, &config.name));
    named
}

/// Names of the network resolve on it.
pub(crate) fn has_names(table: &NetworkTable) -> bool {
    !table.config.ingress && !is_default(table)
}

/// The node's default network (Docker's `bridge`).
pub(crate) fn is_default(table: &NetworkTable) -> bool {
    table.config.is_local() && table.config.name == local::DEFAULT
}

/// The namespace to build.
pub(crate) fn config<'a>(tenant: impl Into<Tenant<'a>>, tables: &Networks) -> SandboxConfig {
    let tenant = tenant.into();
    let config = |network| tables.get(network).map(|table| &table.config);
    let way_out = way_out(tenant, tables);
    let attachments = tenant.attachments.iter().map(|attachment| SandboxAttachment {
        network: attachment.network.clone(),
        ingress: config(&attachment.network).is_some_and(|config| config.ingress),
        address: attachment.address,
        address_v6: attachment.address_v6,
        subnets: config(&attachment.network)
            .iter()
            .flat_map(|config| &config.pools)
            .map(|pool| pool.subnet)
            .collect(),
        mac: attachment.mac,
        default_via: match &way_out {
            Some((network, gateways)) if **network == attachment.network => gateways.clone(),
            _ => Vec::new(),
        },
    });
    SandboxConfig {
        id: tenant.id.to_owned(),
        attachments: attachments.collect(),
        egress: !tenant.secluded && !is_internal(tenant, tables),
        sysctls: tenant.spec.sysctls.clone(),
    }
}

/// The bridge, or interface of the node, that the tenant's way out leads over, and its gateways. Of several it is the
/// first by name (Docker's order). None where the routing mesh has the way out.
fn way_out<'a>(tenant: Tenant<'a>, tables: &'a Networks) -> Option<(&'a NetworkId, Vec<IpAddr>)> {
    let joined = || tenant.attachments.iter().filter_map(|at| Some((at, tables.get(&at.network)?)));
    if tenant.secluded || joined().any(|(_, table)| table.config.ingress) {
        return None;
    }
    let leads_out = joined().filter(|(_, table)| !table.config.is_overlay() && !table.config.internal);
    let (attachment, table) = leads_out.min_by_key(|(_, table)| &table.config.name)?;
    let usable = |gateway: &IpAddr| gateway.is_ipv4() || attachment.address_v6.is_some();
    let gateways = table.config.pools.iter().filter_map(|pool| pool.gateway).filter(usable);
    Some((&attachment.network, gateways.collect()))
}

/// The bridge of the node's that the tenant's way out leads over.
pub(crate) fn bridge_out(tenant: Tenant<'_>, tables: &Networks) -> Option<NetworkId> {
    let (network, _) = way_out(tenant, tables)?;
    let is_bridge = |table: &Arc<NetworkTable>| matches!(table.config.driver, Driver::Bridge(_));
    tables.get(network).is_some_and(is_bridge).then(|| network.clone())
}

/// The node's own address on the network that the tenant's way out leads over; `None` where that is the gateway
/// link, or none of the node's.
pub(crate) fn own_gateway(tenant: Tenant<'_>, tables: &Networks) -> Option<IpAddr> {
    let gateway = |table: &NetworkTable| {
        table.config.pools.iter().filter_map(|pool| pool.gateway).find(IpAddr::is_ipv4)
    };
    let joined = tenant.attachments.iter().filter_map(|at| tables.get(&at.network));
    if let Some(ingress) = joined.clone().find(|table| table.config.ingress) {
        return gateway(ingress);
    }
    let (network, _) = way_out(tenant, tables)?;
    let table = tables.get(network)?;
    gateway(table).filter(|_| matches!(table.config.driver, Driver::Bridge(_)))
}

/// No network of the tenant leads out of the cluster.
fn is_internal(tenant: Tenant<'_>, tables: &Networks) -> bool {
    let mut all =
        tenant.attachments.iter().filter_map(|attachment| tables.get(&attachment.network)).peekable();
    all.peek().is_some() && all.all(|table| table.config.internal)
}

/// What the resolver is told.
pub(crate) fn view<'a>(
    tenant: impl Into<Tenant<'a>>,
    tables: &Networks,
    netns: &Path,
    file: &ContainerFile,
) -> SandboxView {
    let tenant = tenant.into();
    SandboxView {
        id: tenant.id.to_owned(),
        netns: netns.to_owned(),
        networks: named(tenant, tables)
            .into_iter()
            .map(|(attachment, _)| attachment.network.clone())
            .collect(),
        upstreams: file.upstreams.clone(),
        ndots_set: file.ndots_set,
        internal: is_internal(tenant, tables),
        links: tenant
            .links
            .iter()
            .map(|link| (link.alias.to_ascii_lowercase(), link.target.to_ascii_lowercase()))
            .collect(),
    }
}

/// The networks whose virtual addresses the tenant may use, by their number in the kernel's maps.
pub(crate) fn vnis<'a>(tenant: impl Into<Tenant<'a>>, tables: &Networks) -> Vec<u32> {
    named(tenant.into(), tables).into_iter().map(|(_, table)| table.config.vni).collect()
}

/// The host name inside the container.
pub(crate) fn hostname(spec: &ContainerSpec, default: &str) -> String {
    let own = &spec.hostname;
    if own.is_empty() { default.to_owned() } else { own.clone() }
}

/// `/etc/hosts` as Docker writes it: localhost, what the user adds, the container itself. `gateway` is
/// the address of the gateway link, for a container that has no other.
///
/// `node` is where the node itself is reached from inside (`host-gateway`).
pub(crate) fn hosts<'a>(
    tenant: impl Into<Tenant<'a>>,
    hostname: &str,
    gateway: Option<IpAddr>,
    node: Option<IpAddr>,
) -> String {
    let tenant = tenant.into();
    let mut text = "127.0.0.1\tlocalhost\n\
        ::1\tlocalhost ip6-localhost ip6-loopback\n\
        fe00::0\tip6-localnet\n\
        ff00::0\tip6-mcastprefix\n\
        ff02::1\tip6-allnodes\n\
        ff02::2\tip6-allrouters\n"
        .to_owned();
    text += &extra_hosts(tenant.spec, node);
    let short = hostname.split('.').next().unwrap_or(hostname);
    let names = if short == hostname { hostname.to_owned() } else { format!("{hostname} {short}") };
    let attached = tenant.attachments.iter().flat_map(|at| [Some(at.address), at.address_v6]).flatten();
    let mut addresses: Vec<IpAddr> = attached.map(|address| address.addr()).collect();
    if addresses.is_empty() {
        addresses.extend(gateway);
    }
    for address in addresses {
        text += &format!("{address}\t{names}\n");
    }
    text
}

/// `/etc/hosts` on the host network: the node's own names, and what the user adds.
pub(crate) fn host_hosts(spec: &ContainerSpec, node_text: &str) -> String {
    let end = if node_text.is_empty() || node_text.ends_with('\n') { "" } else { "\n" };
    format!("{node_text}{end}{}", extra_hosts(spec, Some(IpAddr::V4(Ipv4Addr::LOCALHOST))))
}

/// The value of `--add-host` that stands for the node's address, as the container sees it.
const HOST_GATEWAY: &str = "host-gateway";

/// A name for a node that cannot be reached is left out.
fn extra_hosts(spec: &ContainerSpec, node: Option<IpAddr>) -> String {
    let line = |line: &String| {
        let mut words = line.split_whitespace().map(str::to_owned);
        let address = match words.next()? {
            text if text == HOST_GATEWAY => node?.to_string(),
            text => text,
        };
        Some(std::iter::once(address).chain(words).collect::<Vec<_>>().join("\t") + "\n")
    };
    spec.hosts.iter().filter_map(line).collect()
}

/// The labels Docker's swarm puts on a task's container (`executor/container/container.go`).
pub(crate) fn labels(task: &Task, node: Option<&NodeId>) -> Labels {
    let mut labels = task.spec.container.labels.clone();
    let mut set = |key: &str, value: &str| labels.insert(key.to_owned(), value.to_owned());
    set("com.docker.swarm.task", "");
    set(TASK_LABEL, task.id.as_str());
    set("com.docker.swarm.task.name", &task.name());
    set("com.docker.swarm.service.id", task.service.as_str());
    set("com.docker.swarm.service.name", &task.service_name);
    if let Some(node) = task.node.as_ref().or(node) {
        set("com.docker.swarm.node.id", node.as_str());
    }
    labels
}

/// The label by which a container is known to be a task's.
pub(crate) const TASK_LABEL: &str = "com.docker.swarm.task.id";

/// The gateway of an attachment's subnet, if its table has one.
pub(crate) fn gateway(attachment: &Attachment, table: &NetworkTable) -> Option<IpAddr> {
    let address = attachment.address.addr();
    table.config.pools.iter().find(|pool| pool.subnet.contains(&address))?.gateway
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use shoal_model::NetworkTarget;

    fn tables(tables: &[NetworkTable]) -> Networks {
        tables.iter().map(|table| (table.network.clone(), Arc::new(table.clone()))).collect()
    }

    fn on(networks: &[(&str, &str)]) -> Task {
        let mut task = testing::task("t1");
        task.attachments =
            networks.iter().map(|(network, address)| testing::attachment(network, address)).collect();
        task
    }

    #[test]
    fn a_published_task_looks_names_up_on_its_own_networks_only() {
        let mut ingress = testing::table("ing", 1);
        ingress.config.ingress = true;
        ingress.config.vni = 4096;
        let known = tables(&[testing::table("n1", 1), ingress]);
        let task = on(&[("n1", "10.0.1.5/24"), ("ing", "10.0.0.9/24")]);
        let file = ContainerFile { text: String::new(), upstreams: Vec::new(), ndots_set: false };
        let view = view(&task, &known, Path::new("/run/x"), &file);
        assert_eq!(view.networks, [NetworkId::new("n1")]);
        assert_eq!(vnis(&task, &known), [4097]);
        let config = config(&task, &known);
        assert_eq!(config.attachments.iter().map(|at| at.ingress).collect::<Vec<_>>(), [false, true]);
        assert!(config.egress && !view.internal);
    }

    #[test]
    fn only_internal_networks_lead_nowhere() {
        let mut inside = testing::table("in", 1);
        inside.config.internal = true;
        let known = tables(&[testing::table("n1", 1), inside]);
        assert!(!config(&on(&[("in", "10.0.2.5/24")]), &known).egress);
        assert!(config(&on(&[("in", "10.0.2.5/24"), ("n1", "10.0.1.5/24")]), &known).egress);
        assert!(config(&on(&[]), &known).egress, "without any network there is the gateway link");
    }

    #[test]
    fn the_host_network_is_a_network_without_an_address() {
        let mut task = on(&[]);
        assert!(!uses_host(&task));
        task.spec.networks = vec![NetworkTarget { network: NetworkId::new("host"), aliases: Vec::new() }];
        assert!(uses_host(&task));
    }

    #[test]
    fn hosts_names_the_container_itself_last() {
        let mut task = on(&[("n1", "10.0.1.5/24")]);
        task.spec.container.hosts = vec!["1.2.3.4 db  backup".to_owned(), "host-gateway node".to_owned()];
        let text = hosts(&task, "box.example.org", None, Some([172, 18, 0, 1].into()));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "127.0.0.1\tlocalhost");
        assert_eq!(lines[6..], ["1.2.3.4\tdb\tbackup", "172.18.0.1\tnode", "10.0.1.5\tbox.example.org box"]);
        assert_eq!(
            host_hosts(&task.spec.container, "192.0.2.10 node"),
            "192.0.2.10 node\n1.2.3.4\tdb\tbackup\n127.0.0.1\tnode\n"
        );
    }
}
