//! What happened: differences between two pictures of the cluster, told in Docker's events.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use shoal_agent::{EventKind, NodeEvent};
use shoal_model::{Availability, Deposit, DepositKind, Labels, NodeId, Service, Task, TaskState};
use shoal_store::State;
use tokio::sync::{Notify, broadcast};
use tokio_util::sync::CancellationToken;

use crate::convert;
use crate::engine::{ClusterSide, LocalState};
use crate::filters::Filters;
use crate::wire::system::{Actor, Event};

/// Events kept for `--since`, as many as Docker keeps.
const KEPT: usize = 256;
/// Events a slow listener may lag behind before it misses some.
const LAG_MAX: usize = 1024;
/// How often a node without a manager is asked for one.
const POLL: Duration = Duration::from_millis(500);
/// Changes closer together than this are told together.
const GATHER: Duration = Duration::from_millis(20);

pub(crate) const FILTERS: &[&str] = &[
    "config",
    "container",
    "daemon",
    "event",
    "image",
    "label",
    "network",
    "node",
    "plugin",
    "scope",
    "secret",
    "service",
    "type",
    "volume",
];

/// The latest events, and those to come.
#[derive(Clone)]
pub(crate) struct EventLog {
    kept: Arc<Mutex<VecDeque<Event>>>,
    sender: broadcast::Sender<Event>,
    /// There is a manager to follow now.
    begun: Arc<Notify>,
}

impl Default for EventLog {
    fn default() -> Self {
        Self { kept: Arc::default(), sender: broadcast::Sender::new(LAG_MAX), begun: Arc::default() }
    }
}

impl EventLog {
    fn publish(&self, event: Event) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(event.clone());
        // Nobody listening is fine. Sent under the lock, so that a listener gets each event once.
        let _ = self.sender.send(event);
    }

    /// A cluster has been made here: what happens in it from now on is told.
    pub(crate) fn begin(&self) {
        self.begun.notify_one();
    }

    /// The events kept, and a receiver of every later one.
    pub(crate) fn listen(&self) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        (kept.iter().cloned().collect(), self.sender.subscribe())
    }

    pub(crate) fn listeners(&self) -> usize {
        self.sender.receiver_count()
    }
}

/// Follows the manager of this node, whenever there is one, and tells what changes.
pub(crate) async fn collect(cluster: ClusterSide, stop: CancellationToken) {
    let following = async {
        loop {
            follow(&cluster).await;
            // Who has just made a cluster makes something in it at once.
            let _ = tokio::time::timeout(POLL, cluster.events.begun.notified()).await;
        }
    };
    tokio::select! {
        () = following => {}
        () = stop.cancelled() => {}
    }
}

/// Tells what happens on this node alone.
pub(crate) async fn collect_own(
    mut happening: broadcast::Receiver<NodeEvent>,
    engine: String,
    events: EventLog,
    stop: CancellationToken,
) {
    use broadcast::error::RecvError;
    loop {
        match stop.run_until_cancelled(happening.recv()).await {
            Some(Ok(event)) => events.publish(own(event, &engine)),
            Some(Err(RecvError::Lagged(missed))) => {
                tracing::warn!(missed, "events of this node were not told");
            }
            Some(Err(RecvError::Closed)) | None => return,
        }
    }
}

fn own(happened: NodeEvent, engine: &str) -> Event {
    let NodeEvent { kind, action, id, attributes, at } = happened;
    match kind {
        EventKind::Container => Event {
            status: Some(action.to_owned()),
            id: Some(id.clone()),
            from: attributes.get("image").cloned(),
            scope: "local",
            ..swarm("container", action, &id, attributes, at)
        },
        EventKind::Network => {
            // The default network is known by another id, which it has before it is built, too.
            let name = attributes.get("name").filter(|name| convert::network::is_predefined(name));
            let id = name.map_or(id, |name| convert::network::predefined_id(engine, name));
            Event { scope: "local", ..swarm("network", action, &id, attributes, at) }
        }
    }
}

/// Until the manager is gone, or is another cluster's. It is asked for anew each time: holding on to
/// it would keep a cluster alive that the node has left.
async fn follow(cluster: &ClusterSide) {
    let Some((mut before, mut changes)) =
        cluster.swarm.manager().map(|manager| (manager.state(), manager.changes()))
    else {
        return;
    };
    loop {
        tokio::select! {
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
                tokio::time::sleep(GATHER).await;
            }
            () = tokio::time::sleep(POLL) => {}
        }
        changes.mark_unchanged();
        let Some(after) = cluster.swarm.manager().map(|manager| manager.state()) else { return };
        if after.cluster().map(|cluster| &cluster.id) != before.cluster().map(|cluster| &cluster.id) {
            return;
        }
        if after.revision() == before.revision() {
            continue;
        }
        let node = match cluster.swarm.local_state() {
            LocalState::Active { node, .. } => Some(node),
            _ => None,
        };
        for event in differences(&before, &after, node.as_ref(), Timestamp::now()) {
            cluster.events.publish(event);
        }
        before = after;
    }
}

/// What changed, told at time `now`. Containers are told of for `node` only.
fn differences(before: &State, after: &State, node: Option<&NodeId>, now: Timestamp) -> Vec<Event> {
    let mut told = Vec::new();
    networks(before, after, now, &mut told);
    services(before, after, now, &mut told);
    nodes(before, after, now, &mut told);
    deposits(before, after, now, &mut told);
    if let Some(node) = node {
        containers(before, after, node, now, &mut told);
    }
    told
}

fn networks(before: &State, after: &State, now: Timestamp, told: &mut Vec<Event>) {
    let name = |name: &str| Labels::from([("name".to_owned(), name.to_owned())]);
    for network in after.networks() {
        match before.network(&network.id) {
            None => told.push(swarm("network", "create", network.id.as_str(), name(&network.spec.name), now)),
            Some(old) if old.meta.version != network.meta.version && old.spec != network.spec => {
                told.push(swarm("network", "update", network.id.as_str(), name(&network.spec.name), now));
            }
            Some(_) => {}
        }
    }
    for network in before.networks().filter(|network| after.network(&network.id).is_none()) {
        told.push(swarm("network", "remove", network.id.as_str(), name(&network.spec.name), now));
    }
}

fn services(before: &State, after: &State, now: Timestamp, told: &mut Vec<Event>) {
    let alive = |state: &State, id| state.service(id).filter(|service| !service.removing).cloned();
    for service in after.services() {
        let mut attributes = Labels::from([("name".to_owned(), service.spec.name.clone())]);
        match alive(before, &service.id) {
            None => told.push(swarm("service", "create", service.id.as_str(), attributes, now)),
            Some(old) if old.meta.version != service.meta.version => {
                let (was, is) = (old.spec.mode.replicas(), service.spec.mode.replicas());
                if let (Some(was), Some(is)) = (was, is)
                    && was != is
                {
                    attributes.insert("replicas.old".to_owned(), was.to_string());
                    attributes.insert("replicas.new".to_owned(), is.to_string());
                }
                let (was, is) = (update_state(&old), update_state(service));
                if was != is {
                    let old = was.map(|was| ("updatestate.old", was));
                    let new = is.map(|is| ("updatestate.new", is));
                    attributes.extend(
                        old.into_iter().chain(new).map(|(key, state)| (key.to_owned(), state.to_owned())),
                    );
                }
                told.push(swarm("service", "update", service.id.as_str(), attributes, now));
            }
            Some(_) => {}
        }
    }
    for service in before.services().filter(|service| alive(after, &service.id).is_none()) {
        let attributes = Labels::from([("name".to_owned(), service.spec.name.clone())]);
        told.push(swarm("service", "remove", service.id.as_str(), attributes, now));
    }
}

fn update_state(service: &Service) -> Option<&'static str> {
    Some(service.update_status.as_ref()?.state.as_str())
}

fn nodes(before: &State, after: &State, now: Timestamp, told: &mut Vec<Event>) {
    for node in after.nodes() {
        let mut attributes = Labels::from([("name".to_owned(), node.description.hostname.clone())]);
        let Some(old) = before.node(&node.id) else {
            told.push(swarm("node", "create", node.id.as_str(), attributes, now));
            continue;
        };
        if old.meta.version == node.meta.version {
            continue;
        }
        let mut note = |what: &str, was: &str, is: &str| {
            if was != is {
                attributes.insert(format!("{what}.old"), was.to_owned());
                attributes.insert(format!("{what}.new"), is.to_owned());
            }
        };
        note("state", convert::node::state(old), convert::node::state(node));
        note("availability", availability(old.spec.availability), availability(node.spec.availability));
        note("role", convert::node::role(old.spec.role), convert::node::role(node.spec.role));
        told.push(swarm("node", "update", node.id.as_str(), attributes, now));
    }
    for node in before.nodes().filter(|node| after.node(&node.id).is_none()) {
        let attributes = Labels::from([("name".to_owned(), node.description.hostname.clone())]);
        told.push(swarm("node", "remove", node.id.as_str(), attributes, now));
    }
}

fn deposits(before: &State, after: &State, now: Timestamp, told: &mut Vec<Event>) {
    for kind in [DepositKind::Secret, DepositKind::Config] {
        let mut tell = |action: &str, deposit: &Deposit| {
            let attributes = Labels::from([("name".to_owned(), deposit.spec.name.clone())]);
            told.push(swarm(kind.as_str(), action, deposit.id.as_str(), attributes, now));
        };
        for deposit in after.deposits(kind) {
            match before.deposit(&deposit.id) {
                None => tell("create", deposit),
                Some(old) if old.meta.version != deposit.meta.version => tell("update", deposit),
                Some(_) => {}
            }
        }
        for deposit in before.deposits(kind).filter(|deposit| after.deposit(&deposit.id).is_none()) {
            tell("remove", deposit);
        }
    }
}

fn availability(availability: Availability) -> &'static str {
    match availability {
        Availability::Active => "active",
        Availability::Pause => "pause",
        Availability::Drain => "drain",
    }
}

fn containers(before: &State, after: &State, node: &NodeId, now: Timestamp, told: &mut Vec<Event>) {
    for task in after.node_tasks(node) {
        let old = before.task(&task.id);
        if old.is_some_and(|old| old.status == task.status) {
            continue;
        }
        match (old.is_some_and(|old| runs(old)), runs(task)) {
            (false, true) => {
                told.extend(container("create", task, now));
                told.extend(container("start", task, now));
            }
            (true, false) => told.extend(container("die", task, now)),
            _ => {}
        }
    }
    for task in before.node_tasks(node).filter(|task| after.task(&task.id).is_none()) {
        if runs(task) {
            told.extend(container("die", task, now));
        }
        told.extend(container("destroy", task, now));
    }
}

/// The task has a container that runs.
fn runs(task: &Task) -> bool {
    task.status.container.is_some() && (TaskState::Starting..=TaskState::Running).contains(&task.status.state)
}

fn container(action: &str, task: &Task, now: Timestamp) -> Option<Event> {
    let container = task.status.container.as_ref()?;
    let image = task.spec.container.image.clone();
    let mut attributes = task.spec.container.labels.clone();
    attributes.extend([
        ("image".to_owned(), image.clone()),
        ("name".to_owned(), task.name()),
        (
            "com.docker.swarm.node.id".to_owned(),
            task.node.as_ref().map(ToString::to_string).unwrap_or_default(),
        ),
        ("com.docker.swarm.service.id".to_owned(), task.service.to_string()),
        ("com.docker.swarm.service.name".to_owned(), task.service_name.clone()),
        ("com.docker.swarm.task.id".to_owned(), task.id.to_string()),
        ("com.docker.swarm.task.name".to_owned(), task.name()),
    ]);
    // A task that is forgotten in the moment it ends takes its exit code with it.
    if action == "die" && task.status.state.is_terminal() {
        attributes.insert("exitCode".to_owned(), container.exit_code.to_string());
    }
    let id = container.id.to_string();
    Some(Event {
        status: Some(action.to_owned()),
        id: Some(id.clone()),
        from: Some(image),
        scope: "local",
        ..swarm("container", action, &id, attributes, now)
    })
}

fn swarm(kind: &'static str, action: &str, id: &str, attributes: Labels, now: Timestamp) -> Event {
    Event {
        status: None,
        id: None,
        from: None,
        kind,
        action: action.to_owned(),
        actor: Actor { id: id.to_owned(), attributes },
        scope: "swarm",
        time: now.as_second(),
        time_nanos: i64::try_from(now.as_nanosecond()).unwrap_or_default(),
    }
}

/// Whether a listener wants an event.
pub(crate) fn wanted(filters: &Filters, event: &Event) -> bool {
    let attributes = &event.actor.attributes;
    let name = attributes.get("name").map(String::as_str).unwrap_or_default();
    let object = |key: &str| {
        let names = [event.actor.id.as_str(), name];
        filters.values(key).next().is_none() || (event.kind == key && filters.any_of(key, names.into_iter()))
    };
    let image = attributes.get("image").map(String::as_str).unwrap_or_default();
    filters.exact("type", event.kind)
        && filters.exact("event", &event.action)
        && filters.exact("scope", event.scope)
        && filters.exact("image", image)
        && filters.labels("label", attributes)
        && ["container", "network", "node", "service", "config", "daemon", "plugin", "secret", "volume"]
            .into_iter()
            .all(object)
}

#[cfg(test)]
mod tests;
