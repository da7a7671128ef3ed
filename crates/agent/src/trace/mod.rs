//! Why a name leads where it leads: what the resolver process says, what the kernel's maps hold, and what
//! the tables in force say of both.

mod targets;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use shoal_balancer::{DnsPorts, KernelState, SandboxEntry};
use shoal_model::trace::{
    Asker, Holder, Lookup, LookupVerdict, TargetKind, Trace, TracedNetwork, TracedService, TracedTask, Who,
    beyond, holders,
};
use shoal_model::{ContainerId, ContainerSpec, EndpointId, NetworkTable, ServiceId, TaskId, TaskState};
use shoal_resolver::Names;
use shoal_runtime::ContainerState;

use crate::health::HealthStatus;
use crate::node::Node;
use crate::plain::NetworkMode;
use crate::resolver::Served;
use crate::runner::Snapshot;
use crate::tables::InForce;
use crate::view::ContainerView;
use crate::{Error, Result, connections, sandbox, verify};
use targets::Ground;

/// A difference counts if a second look sees it, too.
const SECOND_LOOK: Duration = Duration::from_secs(1);
/// A resolver that takes longer is one that does not answer.
const RESOLVER_BOUND: Duration = Duration::from_secs(2);

/// What becomes of a name (or an address), asked for by a running container of this node.
pub(crate) async fn trace(
    node: &Node,
    asker: &ContainerView,
    name: &str,
    port: Option<u16>,
) -> Result<Trace> {
    let served = served(node, asker)?;
    let first = look(node, asker, &served, name, port).await?;
    if first.differences.is_empty() {
        return Ok(first);
    }
    tokio::time::sleep(SECOND_LOOK).await;
    let mut second = look(node, asker, &served, name, port).await?;
    second.differences.retain(|difference| first.differences.contains(difference));
    Ok(second)
}

/// How the container is served; or why it is not.
fn served(node: &Node, asker: &ContainerView) -> Result<Served> {
    let container = asker.name().to_owned();
    if !matches!(asker.container.state, ContainerState::Running { .. }) {
        return Err(shoal_runtime::Error::NotRunning(container).into());
    }
    let unserved = |reason| Error::Untraceable { container: container.clone(), reason };
    let sandbox = match inhabited(node, asker.container.config.id.clone()) {
        Inhabited::Sandbox(id) => id,
        Inhabited::Host => {
            return Err(unserved(
                "it is on the node's own network, where the node's own name servers answer",
            ));
        }
        Inhabited::Nothing => return Err(unserved("it is on no network")),
    };
    let served = node.resolver.served().into_iter().find(|served| served.view.id == sandbox);
    match (served, node.plains.record(&sandbox).map(|record| record.spec.network)) {
        (Some(served), mode) if mode != Some(NetworkMode::Bridge) || !served.view.networks.is_empty() => {
            Ok(served)
        }
        (_, Some(NetworkMode::Bridge)) => {
            Err(unserved("it is on the default bridge network, which has no names"))
        }
        _ => Err(unserved("it is on no network yet whose names are served")),
    }
}

/// Where a container's sockets are.
enum Inhabited {
    /// By its name: that of a task or of a container.
    Sandbox(String),
    Host,
    Nothing,
}

/// A container may share what another one has, and that one too.
fn inhabited(node: &Node, mut id: ContainerId) -> Inhabited {
    loop {
        if let Some(snapshot) = node.tasks.of_container(&id) {
            let task = snapshot.record.task;
            return if sandbox::uses_host(&task) {
                Inhabited::Host
            } else {
                Inhabited::Sandbox(task.id.to_string())
            };
        }
        let Some(record) = node.plains.record(id.as_str()) else { return Inhabited::Sandbox(id.to_string()) };
        match (record.spec.network, record.spec.shares) {
            (NetworkMode::Host, _) => return Inhabited::Host,
            (NetworkMode::None, _) => return Inhabited::Nothing,
            (NetworkMode::Container, Some(other)) => id = ContainerId::new(other),
            _ => return Inhabited::Sandbox(id.to_string()),
        }
    }
}

/// Everything as it is now.
async fn look(
    node: &Node,
    asker: &ContainerView,
    served: &Served,
    name: &str,
    port: Option<u16>,
) -> Result<Trace> {
    let in_force = node.tables.in_force().borrow().clone();
    let mut differences = Vec::new();
    let asked: Option<IpAddr> = name.parse().ok();
    let lookup = match asked {
        Some(_) => None,
        None => ask_resolver(node, served, name, &mut differences).await,
    };
    let kernel = verify::read_balancer(node).await?;
    let tables: Vec<Arc<NetworkTable>> =
        served.view.networks.iter().filter_map(|network| in_force.get(network).cloned()).collect();
    differences.extend(sandbox_differences(node, served, &in_force, &kernel).await?);
    differences.extend(lookup.iter().flat_map(|lookup| name_differences(lookup, &tables)));
    let holders = lookup.as_ref().map(|lookup| held(lookup, &in_force)).unwrap_or_default();
    let own = node.own();
    let ground = Ground { own: &own, tables: &tables, kernel: &kernel, cookie: served.cookie };
    let addresses = asked.map(|address| vec![address]);
    let addresses = addresses.or_else(|| lookup.as_ref().map(found)).unwrap_or_default();
    let mut targets = Vec::new();
    for address in addresses {
        let (target, difference) = ground.target(address);
        targets.push(target);
        differences.extend(difference);
    }
    for target in &mut targets {
        listen(node, &mut target.kind, port).await;
    }
    for table in
        tables.iter().filter(|table| targets.iter().any(|at| at.network.as_ref() == Some(&table.network)))
    {
        differences.extend(node.fabric.differences(table).await.unwrap_or_default());
    }
    let services = services(node, &holders, &targets.iter().map(|target| &target.kind).collect::<Vec<_>>());
    let mut trace = Trace {
        name: name.to_owned(),
        port,
        asker: describe(node, asker, name),
        networks: networks(node, served, &in_force, lookup.as_ref()),
        lookup,
        holders,
        targets,
        services,
        elsewhere: Vec::new(),
        differences,
        from_manager: false,
    };
    if !trace.is_known() {
        let others = in_force.values().filter(|table| !served.view.networks.contains(&table.network));
        let others = others.filter(|table| sandbox::has_names(table));
        trace.elsewhere = others.filter_map(|table| beyond(table, name)).collect();
    }
    Ok(trace)
}

/// The resolver's own word; whatever keeps it from being said is a difference.
async fn ask_resolver(
    node: &Node,
    served: &Served,
    name: &str,
    differences: &mut Vec<String>,
) -> Option<Lookup> {
    let answer = node.resolver.trace(&served.view.id, name);
    let text = match tokio::time::timeout(RESOLVER_BOUND, answer).await {
        Ok(Ok(Some(lookup))) => return Some(lookup),
        Ok(Ok(None)) => "resolver: does not serve the sandbox".to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "resolver: does not answer".to_owned(),
    };
    differences.push(text);
    None
}

/// What the look-up found, in the order in which it is answered.
fn found(lookup: &Lookup) -> Vec<IpAddr> {
    if lookup.verdict == LookupVerdict::Known {
        let found = lookup.looks.iter().filter_map(|look| look.found.as_ref());
        let addresses = found.flat_map(|found| {
            let v4 = found.v4.iter().copied().map(IpAddr::from);
            v4.chain(found.v6.iter().copied().map(IpAddr::from))
        });
        return addresses.collect();
    }
    let records = lookup.answers.iter().flat_map(|answer| &answer.records);
    records.filter_map(|record| record.data.parse().ok()).collect()
}

/// Whose name was found.
fn held(lookup: &Lookup, in_force: &InForce) -> Vec<Holder> {
    let found = lookup.looks.iter().filter(|look| look.found.is_some());
    let tables = found.filter_map(|look| Some((look, in_force.get(&look.network)?)));
    let holders = tables.flat_map(|(look, table)| {
        let who = match look.asked.parse::<IpAddr>() {
            Ok(address) => targets::at(table, address).into_iter().collect(),
            Err(_) => holders(table, &look.asked),
        };
        who.into_iter().map(|who| Holder { network: look.network.clone(), who })
    });
    holders.collect()
}

/// Where the resolver found something else than the tables in force have.
fn name_differences(lookup: &Lookup, tables: &[Arc<NetworkTable>]) -> Vec<String> {
    let mut differences = Vec::new();
    for table in tables {
        let name = &table.config.name;
        match lookup.versions.get(&table.network) {
            None => differences.push(format!("resolver: does not look at network {name}")),
            Some(version) if *version != table.version => differences.push(format!(
                "resolver: is at revision {} of network {name}, {} is in force",
                version.revision, table.version.revision
            )),
            Some(_) => {}
        }
        let names = Names::from_table(table);
        for look in lookup.looks.iter().filter(|look| look.network == table.network) {
            let wanted = names.get(&look.asked).map(|entry| (&entry.v4, &entry.v6));
            let found = look.found.as_ref().map(|found| (&found.v4, &found.v6));
            if look.asked.parse::<IpAddr>().is_err() && wanted != found {
                differences
                    .push(format!("resolver: {} on network {name} is not as in the table", look.asked));
            }
        }
    }
    differences
}

/// What is amiss with the asker's own sandbox.
async fn sandbox_differences(
    node: &Node,
    served: &Served,
    in_force: &InForce,
    kernel: &KernelState,
) -> Result<Vec<String>> {
    let mut differences = Vec::new();
    let ports: Option<DnsPorts> =
        node.resolver.balanced().into_iter().find(|(known, _)| known == served).map(|(_, ports)| ports);
    let wanted = SandboxEntry { networks: served.vnis.clone(), dns: ports };
    if kernel.sandboxes.get(&served.cookie) != Some(&wanted) {
        differences.push(verify::SANDBOX_NOT_IN_FORCE.to_owned());
    }
    if let Some(config) = verify::sandbox_config(node, &served.view.id, in_force) {
        let found = node.fabric.sandbox_differences(std::slice::from_ref(&config)).await?;
        differences.extend(found.into_values().flatten());
        differences.extend(verify::unanswered(node, &config).await);
    }
    Ok(differences)
}

fn describe(node: &Node, asker: &ContainerView, name: &str) -> Asker {
    let spec = match (&asker.task, &asker.plain) {
        (Some(task), _) => node.tasks.record(task.as_str()).map(|record| record.task.spec.container),
        (None, plain) => plain.as_ref().map(|plain| plain.spec.container.clone()),
    };
    Asker {
        container: asker.container.config.id.clone(),
        name: asker.name().to_owned(),
        task: asker.task.clone(),
        node: node.membership().map(|member| member.node),
        hosts: spec.map(|spec| hosts(&spec, name)).unwrap_or_default(),
    }
}

/// The lines a user added to the container's `/etc/hosts` that name it.
fn hosts(spec: &ContainerSpec, name: &str) -> Vec<String> {
    let names = |line: &&String| line.split_whitespace().skip(1).any(|own| own.eq_ignore_ascii_case(name));
    spec.hosts.iter().filter(names).cloned().collect()
}

fn networks(node: &Node, served: &Served, in_force: &InForce, lookup: Option<&Lookup>) -> Vec<TracedNetwork> {
    let id = &served.view.id;
    let of_task = node.tasks.record(id).map(|record| record.task.attachments);
    let attachments = of_task.or_else(|| node.plains.record(id).map(|record| record.attachments));
    let attachments = attachments.unwrap_or_default();
    let network = |id: &shoal_model::NetworkId| {
        let table = in_force.get(id);
        let own = attachments.iter().filter(|attachment| attachment.network == *id);
        let addresses = own.flat_map(|own| [Some(own.address), own.address_v6]).flatten();
        TracedNetwork {
            network: id.clone(),
            name: table.map_or_else(|| id.to_string(), |table| table.config.name.clone()),
            addresses: addresses.map(|address| address.addr()).collect(),
            in_force: table.map(|table| table.version),
            resolver: lookup.and_then(|lookup| lookup.versions.get(id).copied()),
            current: None,
        }
    };
    served.view.networks.iter().map(network).collect()
}

/// The services concerned, with this node's tasks of them.
fn services(node: &Node, holders: &[Holder], targets: &[&TargetKind]) -> BTreeMap<ServiceId, TracedService> {
    let named = holders.iter().filter_map(|holder| match &holder.who {
        Who::Service { service, .. } | Who::Tasks { service, .. } | Who::All { service, .. } => {
            Some(service.clone())
        }
        Who::Endpoint { .. } => None,
    });
    let balanced = targets.iter().filter_map(|target| match target {
        TargetKind::Virtual { service, .. } => service.clone(),
        _ => None,
    });
    let mut services: BTreeMap<ServiceId, TracedService> =
        named.chain(balanced).map(|id| (id, TracedService::default())).collect();
    for holder in holders {
        if let Who::Service { service, name, .. } | Who::Tasks { service, name } | Who::All { service, name } =
            &holder.who
            && let Some(traced) = services.get_mut(service)
        {
            traced.name.clone_from(name);
        }
    }
    let own = node.membership().map(|member| member.node);
    for snapshot in node.tasks.snapshots() {
        let task = &snapshot.record.task;
        let Some(traced) = services.get_mut(&task.service) else { continue };
        traced.name.clone_from(&task.service_name);
        let told = TracedTask { node: own.clone(), ..task_of(&snapshot) };
        if matches!(told.state, TaskState::Failed | TaskState::Rejected) {
            traced.failed.push(told);
        } else if snapshot.record.assigned && task.desired <= TaskState::Running {
            traced.tasks.push(told);
        }
    }
    services
}

fn task_of(snapshot: &Snapshot) -> TracedTask {
    let (task, status) = (&snapshot.record.task, &snapshot.record.progress.status);
    let health = snapshot.health.as_ref().filter(|_| snapshot.healthcheck.is_some());
    let word = |status: HealthStatus| match status {
        HealthStatus::Starting => "starting",
        HealthStatus::Healthy => "healthy",
        HealthStatus::Unhealthy => "unhealthy",
    };
    let failed = health.and_then(|health| health.log.iter().rev().find(|result| result.exit_code != 0));
    TracedTask {
        id: task.id.clone(),
        name: task.name(),
        node: None,
        host: None,
        state: status.state,
        message: status.message.clone(),
        error: status.error.clone(),
        serving: status.state == TaskState::Running && !status.draining,
        health: health.map(|health| word(health.status).to_owned()),
        health_output: failed.map(|result| result.output.trim().to_owned()).unwrap_or_default(),
    }
}

/// Looks whether programs of this node listen where a connection leads.
async fn listen(node: &Node, kind: &mut TargetKind, port: Option<u16>) {
    let Some(port) = port else { return };
    match kind {
        TargetKind::Virtual { backends, .. } => {
            for backend in backends {
                backend.listening = listens(node, &backend.endpoint, port).await;
            }
        }
        TargetKind::Endpoint { endpoint, listening, .. } => {
            *listening = listens(node, endpoint, port).await;
        }
        TargetKind::Nobody | TargetKind::Outside => {}
    }
}

/// `None` for an endpoint of another node.
async fn listens(node: &Node, endpoint: &EndpointId, port: u16) -> Option<bool> {
    let task = node.tasks.record(TaskId::new(endpoint.as_str()).as_str());
    let container = match task {
        Some(record) => record.container,
        None => node.plains.record(endpoint.as_str())?.id,
    };
    match node.runtime.container(&container).await.ok()?.state {
        ContainerState::Running { pid, .. } => connections::listens(pid, port).await,
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use shoal_model::trace::{Found, Look};

    #[test]
    fn what_the_resolver_finds_is_compared_with_the_table() {
        let mut table = testing::table("n1", 7);
        table.services.insert(ServiceId::new("s"), testing::service("web", Some("10.0.0.2"), &[]));
        let look = |found: Option<&str>| Look {
            network: table.network.clone(),
            asked: "web".to_owned(),
            by_network: false,
            found: found.map(|v4| Found { v4: vec![v4.parse().unwrap()], ..Found::default() }),
        };
        let differences = |look: Look, revision| {
            let version = shoal_model::TableVersion { revision, ..table.version };
            let lookup = Lookup {
                link: None,
                looks: vec![look],
                verdict: LookupVerdict::Known,
                answers: Vec::new(),
                upstreams: Vec::new(),
                versions: [(table.network.clone(), version)].into(),
            };
            name_differences(&lookup, &[Arc::new(table.clone())])
        };
        assert!(differences(look(Some("10.0.0.2")), 7).is_empty());
        let name = &table.config.name;
        let other = [format!("resolver: web on network {name} is not as in the table")];
        assert_eq!(differences(look(Some("10.0.0.3")), 7), other);
        assert_eq!(differences(look(None), 7), other);
        let behind = [format!("resolver: is at revision 6 of network {name}, 7 is in force")];
        assert_eq!(differences(look(Some("10.0.0.2")), 6), behind);
    }

    #[test]
    fn lines_that_a_user_added_come_first() {
        let hosts_of = ["192.0.2.1 db backup", "192.0.2.2 dbx"].map(str::to_owned).to_vec();
        let spec = ContainerSpec { hosts: hosts_of, ..ContainerSpec::default() };
        assert_eq!(hosts(&spec, "Backup"), ["192.0.2.1 db backup"]);
        assert!(hosts(&spec, "192.0.2.2").is_empty());
    }
}
