//! Which node runs a task: spread over nodes, within what the service asks for. A task without a node
//! says why.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use shoal_model::{
    Availability, Node, NodeId, Placement, Protocol, PublishMode, ServiceId, Task, TaskSpec, TaskState,
    TaskStatus,
};

use shoal_store::State;

use super::allocate::{Addresses, join};
use super::preference::Branches;
use super::slots::is_wanted;
use super::{Constraint, Planner, Preference, failures};

/// What a node carries already.
#[derive(Default)]
struct Load {
    /// Tasks that are to go on.
    tasks: u64,
    by_service: BTreeMap<ServiceId, u64>,
    nano_cpus: u64,
    memory: u64,
    host_ports: BTreeSet<(Protocol, u16)>,
}

/// Why a node does not take a task, in the order in which SwarmKit asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Refusal {
    NotReady,
    Resources,
    Constraints,
    Platform,
    HostPort,
    MaxReplicas,
    Configuration,
    Addresses,
}

impl Refusal {
    fn explain(self, nodes: usize) -> String {
        let on = if nodes == 1 { "1 node".to_owned() } else { format!("{nodes} nodes") };
        match self {
            Self::NotReady => format!("{on} not available for new tasks"),
            Self::Resources => format!("insufficient resources on {on}"),
            Self::Constraints => format!("scheduling constraints not satisfied on {on}"),
            Self::Platform => format!("unsupported platform on {on}"),
            Self::HostPort => format!("host-mode port already in use on {on}"),
            Self::Configuration => format!("network configuration missing on {on}"),
            Self::Addresses => format!("no available address on {on}"),
            Self::MaxReplicas => "max replicas per node limit exceed".to_owned(),
        }
    }
}

pub(super) fn plan(planner: &mut Planner<'_>, addresses: &mut Addresses) {
    let mut pending = planner.tasks();
    pending.retain(|task| task.status.state == TaskState::Pending && task.node.is_none() && is_wanted(task));
    if pending.is_empty() {
        return;
    }
    pending.sort_by(|a, b| (a.meta.created, a.slot, &a.id).cmp(&(b.meta.created, b.slot, &b.id)));
    let nodes: Vec<Arc<Node>> = planner.state().nodes().cloned().collect();
    let mut loads: BTreeMap<NodeId, Load> = nodes
        .iter()
        .map(|node| {
            let mut load = Load::default();
            let carried = planner.state().node_tasks(&node.id);
            carried.filter(|task| !task.status.state.is_terminal()).for_each(|task| load.add(task));
            (node.id.clone(), load)
        })
        .collect();
    let mut failures: BTreeMap<ServiceId, BTreeMap<NodeId, usize>> = BTreeMap::new();
    for task in pending {
        let failures = failures
            .entry(task.service.clone())
            .or_insert_with(|| failures::by_node(planner.state(), &task.service, planner.now.wall));
        let mut needs =
            Needs { configurations: configurations(planner.state(), &task.spec), full: BTreeSet::new() };
        let mut task = Task::clone(&task);
        let chosen = loop {
            match choose(&nodes, &loads, failures, &task, &needs) {
                Ok(node) if join(planner, addresses, &mut task, Some(&node)).is_err() => {
                    needs.full.insert(node);
                }
                chosen => break chosen,
            }
        };
        match chosen {
            Ok(node) => {
                if let Some(load) = loads.get_mut(&node) {
                    load.add(&task);
                }
                task.node = Some(node);
                task.status =
                    TaskStatus::new(TaskState::Assigned, planner.now.wall, "scheduler assigned task to node");
            }
            Err(reason) => task.status.error = reason,
        }
        planner.put_task(task);
    }
}

/// What a task needs of its node's networks.
struct Needs {
    /// Configurations that its networks are made from.
    configurations: BTreeSet<String>,
    /// Nodes on which one of them has no address left.
    full: BTreeSet<NodeId>,
}

/// What a task's networks are made from on each node.
pub(super) fn configurations(state: &State, spec: &TaskSpec) -> BTreeSet<String> {
    let networks = spec.networks.iter().filter_map(|target| state.network(&target.network));
    networks.filter_map(|network| network.spec.config_from.clone()).collect()
}

impl Needs {
    fn refusal(&self, node: &Node) -> Option<Refusal> {
        let has = |name: &String| node.description.configurations.contains_key(name);
        if !self.configurations.iter().all(has) {
            return Some(Refusal::Configuration);
        }
        self.full.contains(&node.id).then_some(Refusal::Addresses)
    }
}

impl Load {
    fn add(&mut self, task: &Task) {
        if is_wanted(task) {
            self.tasks += 1;
            *self.by_service.entry(task.service.clone()).or_default() += 1;
        }
        // What is on its way out still takes its part.
        self.nano_cpus += task.spec.resources.reserve_nano_cpus;
        self.memory += task.spec.resources.reserve_memory;
        self.host_ports.extend(host_ports(task));
    }
}

fn host_ports(task: &Task) -> impl Iterator<Item = (Protocol, u16)> {
    let host = task.ports.iter().filter(|port| port.mode == PublishMode::Host && port.published != 0);
    host.map(|port| (port.protocol, port.published))
}

/// SwarmKit's order: preferences first; then a node on which the service keeps failing comes last, then
/// the one with the fewest tasks of the service comes first, then the one with the fewest tasks.
fn choose(
    nodes: &[Arc<Node>],
    loads: &BTreeMap<NodeId, Load>,
    failures: &BTreeMap<NodeId, usize>,
    task: &Task,
    needs: &Needs,
) -> Result<NodeId, String> {
    let empty = Load::default();
    let load = |node: &Node| loads.get(&node.id).unwrap_or(&empty);
    let constraints = Constraint::parse_all(&task.spec.placement.constraints)?;
    let mut refusals: BTreeMap<Refusal, usize> = BTreeMap::new();
    let preferences = Preference::parse_all(&task.spec.placement.spread)?;
    let of_service = |node: &Node| load(node).by_service.get(&task.service).copied().unwrap_or_default();
    let mut branches = Branches::default();
    let mut fit: Vec<&Node> = Vec::new();
    for node in nodes.iter().filter(|node| task.pinned.as_ref().is_none_or(|pinned| *pinned == node.id)) {
        let refusal = refusal(node, load(node), &constraints, task).or_else(|| needs.refusal(node));
        if let Some(refusal) = refusal {
            *refusals.entry(refusal).or_default() += 1;
            continue;
        }
        branches.add(&preferences, node, of_service(node));
        fit.push(node);
    }
    let rank = |node: &Node| {
        let failed = failures.get(&node.id).copied().filter(|count| *count >= failures::MANY);
        let carried = branches.carried(&preferences, node);
        (carried, failed.unwrap_or_default(), of_service(node), load(node).tasks)
    };
    let best = fit.into_iter().min_by_key(|node| rank(node));
    best.map(|node| node.id.clone()).ok_or_else(|| explain(&refusals))
}

fn refusal(node: &Node, load: &Load, constraints: &[Constraint], task: &Task) -> Option<Refusal> {
    let (resources, placement) = (&task.spec.resources, &task.spec.placement);
    let description = &node.description;
    let fits =
        |reserved: u64, carried: u64, total: u64| reserved == 0 || carried.saturating_add(reserved) <= total;
    if node.is_silent() || node.spec.availability != Availability::Active {
        return Some(Refusal::NotReady);
    }
    if !fits(resources.reserve_nano_cpus, load.nano_cpus, description.nano_cpus)
        || !fits(resources.reserve_memory, load.memory, description.memory)
    {
        return Some(Refusal::Resources);
    }
    if !constraints.iter().all(|constraint| constraint.holds(node)) {
        return Some(Refusal::Constraints);
    }
    if !is_platform(placement, node) {
        return Some(Refusal::Platform);
    }
    if host_ports(task).any(|port| load.host_ports.contains(&port)) {
        return Some(Refusal::HostPort);
    }
    let replicas = load.by_service.get(&task.service).copied().unwrap_or_default();
    (placement.max_replicas != 0 && replicas >= placement.max_replicas).then_some(Refusal::MaxReplicas)
}

/// The image runs on the node, as far as one knows.
pub(super) fn is_platform(placement: &Placement, node: &Node) -> bool {
    placement.platforms.is_empty() || placement.platforms.iter().any(|wanted| runs_on(wanted, node))
}

fn runs_on((architecture, os): &(String, String), node: &Node) -> bool {
    let same = |wanted: &str, actual: &str| wanted.is_empty() || canonical(wanted) == canonical(actual);
    same(architecture, &node.description.architecture) && same(os, &node.description.os)
}

/// Registries say `amd64` where kernels say `x86_64`.
fn canonical(word: &str) -> &str {
    match word {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        word => word,
    }
}

fn explain(refusals: &BTreeMap<Refusal, usize>) -> String {
    if refusals.is_empty() {
        return "no suitable node".to_owned();
    }
    let mut refusals: Vec<_> = refusals.iter().collect();
    refusals.sort_by_key(|(_, nodes)| std::cmp::Reverse(**nodes));
    let reasons: Vec<String> = refusals.iter().map(|(refusal, nodes)| refusal.explain(**nodes)).collect();
    format!("no suitable node ({})", reasons.join("; "))
}
