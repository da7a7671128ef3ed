//! The agent's face: one method per thing that can be asked of a node.

mod networks;

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use shoal_balancer::Balancer;
use shoal_model::trace::Trace;
use shoal_model::{ContainerId, Labels, NodeDescription, NodeReport, TableReport, TaskId};
use shoal_runtime::{Container, ContainerOutput, ContainerState, Runtime};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::events::NodeEvent;
use crate::host_ports::Binding;
use crate::measures::Measures;
use crate::node::{Node, balancer_config};
use crate::plain::{Keeper, Phase, PlainSpec, Shown, WaitFor};
use crate::runner::{Order, Snapshot};
use crate::session::SessionState;
use crate::standing::{Facts, OutOfService};
use crate::store::TaskRecord;
use crate::task::StopCause;
use crate::view::{ContainerView, PlainView};
use crate::volumes::VolumeView;
use crate::{
    AgentConfig, Error, Membership, Result, deposits, drift, firewall, lock, measures, plain, prepare,
    published, session, standing, trace, verify, volumes,
};

/// A stop waits this long beyond grace period and drain before the caller is let go.
const STOP_MARGIN: Duration = Duration::from_secs(20);
/// Without a word from anybody a container that is told to stop has this long.
pub(crate) const DEFAULT_STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long leaving waits for kernel and resolver to let go of the cluster's networks.
const CLEAR_BOUND: Duration = Duration::from_secs(20);
/// How long a start waits for the stored tables to be in force again, so that the manager need not send
/// them, and who asks finds everything as it was.
const SETTLE_BOUND: Duration = Duration::from_secs(3);

/// A running node. Cheap to clone; all clones are the same node.
#[derive(Clone)]
pub struct Agent {
    node: Arc<Node>,
    /// Ends the session with the manager.
    session: Arc<Mutex<Option<CancellationToken>>>,
}

impl Agent {
    /// Opens the node's store, takes over what still runs, and resumes its membership.
    pub async fn start(config: AgentConfig) -> Result<Self> {
        let (node, stored) = Node::open(config).await?;
        let agent = Self { node: node.clone(), session: Arc::default() };
        node.adopt(stored.tasks, stored.containers, stored.rebuilt).await?;
        let (resolver, closing) = (node.resolver.clone(), node.closing.clone());
        node.tracker.spawn(async move { resolver.supervise(closing).await });
        let (tables, effects, closing) = (node.tables.clone(), node.effects(), node.closing.clone());
        node.tracker.spawn(async move { tables.run(&effects, closing).await });
        node.tracker.spawn(published::watch(node.tables.clone(), node.closing.clone()));
        node.tracker.spawn(firewall::watch(node.clone()));
        node.tracker.spawn(follow_addresses(node.clone()));
        node.tracker.spawn(follow_mtu(node.clone()));
        node.tracker.spawn(follow_own_network(node.clone()));
        node.tracker.spawn(drift::watch(node.clone()));
        if !stored.rebuilt {
            node.tracker.spawn(prune_resolver(node.clone(), stored_sandboxes(&node)));
        }
        let wanted = node.tables.wanted();
        let mut in_force = node.tables.in_force();
        let settled = in_force.wait_for(|held| wanted.iter().all(|network| held.contains_key(network)));
        if tokio::time::timeout(SETTLE_BOUND, settled).await.is_err() {
            tracing::warn!("the stored tables are not in force yet");
        }
        if let Some(member) = stored.membership {
            agent.open_session(member);
        }
        Ok(agent)
    }

    /// What the node says of itself.
    pub fn description(&self) -> NodeDescription {
        self.node.description()
    }

    /// Makes the node a member of a cluster and opens its session.
    pub async fn join(&self, membership: Membership) -> Result<()> {
        if self.membership().is_some() {
            return Err(Error::AlreadyMember);
        }
        self.node.fabric.set_node(membership.node.clone(), membership.data_path_address).await?;
        self.node.store.put_membership(&membership).await?;
        self.node.membership.send_replace(Some(membership.clone()));
        self.node.tasks.reopen();
        self.open_session(membership);
        Ok(())
    }

    fn open_session(&self, membership: Membership) {
        let ended = self.node.closing.child_token();
        *lock(&self.session) = Some(ended.clone());
        self.node.tracker.spawn(session::keep(self.node.clone(), membership, ended));
    }

    /// Kills and removes everything the cluster gave the node. What cannot be removed is left to the
    /// next start, which finds that nobody claims it.
    pub async fn leave(&self) -> Result<()> {
        if let Some(session) = lock(&self.session).take() {
            session.cancel();
        }
        let records = self.node.tasks.close().await;
        self.node.deposits.clear();
        self.node.store.leave().await?;
        self.node.membership.send_replace(None);
        self.node.session.send_replace(SessionState::Closed);
        self.node.plains.leave(&self.node).await;
        let mut removals = JoinSet::new();
        for record in records {
            removals.spawn(remove(self.node.clone(), record));
        }
        removals.join_all().await;
        self.clear_tables().await;
        Ok(())
    }

    /// Takes all tables out of force.
    async fn clear_tables(&self) {
        self.node.tables.clear();
        if tokio::time::timeout(CLEAR_BOUND, self.node.tables.cleared()).await.is_err() {
            tracing::warn!("the cluster's networks are not removed yet");
        }
    }

    /// The cluster the node belongs to.
    pub fn membership(&self) -> Option<Membership> {
        self.node.membership()
    }

    /// How it stands between the node and its managers, as it changes.
    pub fn session(&self) -> watch::Receiver<SessionState> {
        self.node.session.subscribe()
    }

    /// Whether the node is to be sent traffic from outside. Looks at nothing but memory.
    pub fn in_service(&self) -> Result<(), OutOfService> {
        let (member, session) = (self.membership(), self.node.session.borrow().clone());
        let in_force = self.node.tables.in_force().borrow().clone();
        standing::judge(Facts {
            stopping: self.node.retiring.is_cancelled(),
            refused: matches!(session, SessionState::Refused(_)),
            drained: member.as_ref().is_some_and(|member| member.drained),
            member: member.is_some(),
            ports_in_force: in_force.values().any(|table| table.config.ingress),
        })
    }

    /// From now on the node says that it is out of service, and serves all the same.
    pub fn retire(&self) {
        self.node.retiring.cancel();
    }

    pub fn runtime(&self) -> &Runtime {
        &self.node.runtime
    }

    /// Every container of this node, ended ones too.
    pub async fn containers(&self) -> Result<Vec<ContainerView>> {
        let containers = self.node.runtime.containers().await?;
        Ok(containers.into_iter().map(|container| self.view(container)).collect())
    }

    /// By id, name (with or without Docker's slash) or unambiguous id prefix.
    pub async fn find_container(&self, name: &str) -> Result<ContainerView> {
        let views = self.containers().await?;
        let plain = name.strip_prefix('/').unwrap_or(name);
        let id = |view: &ContainerView| view.container.config.id.clone();
        let exact = views.iter().find(|view| id(view).as_str() == plain || view.name() == plain);
        if let Some(view) = exact {
            return Ok(view.clone());
        }
        let mut matching = views.iter().filter(|view| id(view).as_str().starts_with(plain));
        match (matching.next(), matching.next()) {
            (Some(_), Some(_)) => Err(Error::AmbiguousContainer(name.to_owned())),
            (Some(view), None) if !plain.is_empty() => Ok(view.clone()),
            _ => Err(Error::NoSuchContainer(name.to_owned())),
        }
    }

    fn view(&self, container: Container) -> ContainerView {
        if let Some(keeper) = self.node.plains.get(&container.config.id) {
            return self.plain_view(container, &keeper);
        }
        let Some(snapshot) = self.node.tasks.of_container(&container.config.id) else {
            let task = crate::node::task_of(&container);
            return ContainerView {
                container,
                task,
                plain: None,
                networks: Vec::new(),
                ports: Vec::new(),
                health: None,
                healthcheck: None,
            };
        };
        let Snapshot { record, health, healthcheck } = snapshot;
        // An ended container has no addresses any more.
        let running = matches!(container.state, ContainerState::Running { .. });
        let attachments = record.task.attachments.into_iter().filter(|_| running);
        let networks = self.networks_of(attachments);
        let ports = record.progress.status.ports.iter().map(Binding::from).collect();
        let task = Some(record.task.id);
        ContainerView { container, task, plain: None, networks, ports, health, healthcheck }
    }

    fn plain_view(&self, container: Container, keeper: &Keeper) -> ContainerView {
        let Shown { record, phase, check, .. } = keeper.shown();
        let networks = self.networks_of(record.attachments.into_iter());
        let plain = PlainView {
            name: record.name,
            spec: record.spec,
            restarting: phase == Phase::Restarting,
            restarts: record.restarts,
            error: record.error,
        };
        ContainerView {
            container,
            task: None,
            plain: Some(plain),
            networks,
            ports: record.bindings,
            health: keeper.health(),
            healthcheck: check,
        }
    }

    /// Stops a container; one of a task is first taken out of service everywhere. Returns when it has
    /// ended.
    pub async fn stop_container(&self, id: &ContainerId, timeout: Option<Duration>) -> Result<()> {
        if let Some(keeper) = self.node.plains.get(id) {
            return self.finish(move |node| async move { keeper.stop(&node, timeout).await.map(drop) }).await;
        }
        let Some(snapshot) = self.node.tasks.of_container(id) else {
            return self.stop_plain(id, timeout.unwrap_or(DEFAULT_STOP_TIMEOUT)).await;
        };
        let task = snapshot.record.task.id;
        let Some(mut changes) = self.node.tasks.watch(&task) else { return Ok(()) };
        self.node.tasks.order(&task, Order::Stop(StopCause::Requested { grace: timeout }));
        let grace = timeout.unwrap_or(DEFAULT_STOP_TIMEOUT);
        let ended = changes.wait_for(|shown| shown.record.progress.status.state.is_terminal());
        // Either it ended, or its runner did: both are the end of it.
        let _ = tokio::time::timeout(grace + STOP_MARGIN, ended).await;
        Ok(())
    }

    async fn stop_plain(&self, id: &ContainerId, grace: Duration) -> Result<()> {
        let container = self.node.runtime.container(id).await?;
        if !matches!(container.state, ContainerState::Running { .. }) {
            return Ok(());
        }
        self.node.runtime.kill(id, container.stop_signal).await?;
        if tokio::time::timeout(grace, self.node.runtime.wait(id)).await.is_err() {
            self.node.runtime.kill(id, 9).await?;
            self.node.runtime.wait(id).await?;
        }
        Ok(())
    }

    /// Sends a signal, nothing else.
    pub async fn kill_container(&self, id: &ContainerId, signal: i32) -> Result<()> {
        if let Some(keeper) = self.node.plains.get(id) {
            return keeper.kill(&self.node, signal).await;
        }
        Ok(self.node.runtime.kill(id, signal).await?)
    }

    // === volumes ===

    /// Makes a volume; one that is there already is fine. Without a name it is given one.
    pub async fn create_volume(&self, name: Option<String>, labels: Labels) -> Result<VolumeView> {
        self.finish(|node| async move { volumes::create(&node, name, labels).await }).await
    }

    pub async fn volumes(&self) -> Result<Vec<VolumeView>> {
        volumes::all(&self.node).await
    }

    pub async fn find_volume(&self, name: &str) -> Result<VolumeView> {
        volumes::find(&self.node, name).await
    }

    /// Removes a volume that no container mounts, with all it holds.
    pub async fn remove_volume(&self, name: &str) -> Result<()> {
        let name = name.to_owned();
        self.finish(|node| async move { volumes::remove(&node, &name).await }).await
    }

    // === plain containers ===

    /// Makes a container of no service; without a name it is given one.
    pub async fn create_container(&self, name: Option<String>, mut spec: PlainSpec) -> Result<ContainerId> {
        if let Some(other) = &spec.shares {
            let other = self.find_container(other).await?;
            spec.shares = Some(other.container.config.id.to_string());
        }
        for link in &mut spec.links {
            // By name: its id is no name of it.
            let found = self.find_container(&link.target).await;
            link.target = found.map_err(|_| Error::NoSuchLink(link.target.clone()))?.name().to_owned();
        }
        self.finish(|node| async move { node.plains.create(&node, name, spec).await }).await
    }

    /// Starts a plain container that does not run; `false` when it does.
    pub async fn start_container(&self, id: &ContainerId) -> Result<bool> {
        let keeper = self.keeper(id)?;
        self.finish(|node| async move { keeper.start(&node).await }).await
    }

    pub async fn restart_container(&self, id: &ContainerId, timeout: Option<Duration>) -> Result<()> {
        let keeper = self.keeper(id)?;
        self.finish(move |node| async move { plain::restart(&keeper, &node, timeout).await }).await
    }

    pub async fn rename_container(&self, id: &ContainerId, name: String) -> Result<()> {
        let keeper = self.keeper(id)?;
        self.finish(|node| async move { node.plains.rename(&node, &keeper, &name).await }).await
    }

    /// Removes a plain container; one that runs only by force. Volumes that nobody named go with it, if they are to.
    pub async fn remove_container(&self, id: &ContainerId, force: bool, with_volumes: bool) -> Result<()> {
        let keeper = self.keeper(id)?;
        self.finish(move |node| async move { keeper.remove(&node, force, with_volumes).await }).await
    }

    /// The exit code of the run that is waited for, once that is over. What is waited for begins now.
    pub fn wait_container(
        &self,
        id: &ContainerId,
        condition: WaitFor,
    ) -> impl Future<Output = Result<i32>> + Send + 'static + use<> {
        let plain = self.node.plains.get(id).map(|keeper| keeper.wait(condition));
        let (runtime, id) = (self.node.runtime.clone(), id.clone());
        async move {
            match plain {
                Some(over) => Ok(over.await),
                // A task's container runs once.
                None => Ok(runtime.wait(&id).await?.code),
            }
        }
    }

    /// What the container prints from now on; a plain container that does not run is waited for, as
    /// long as it is there.
    pub fn container_output(
        &self,
        id: &ContainerId,
    ) -> impl Future<Output = Option<ContainerOutput>> + Send + 'static + use<> {
        let plain = self.node.plains.get(id).map(|keeper| keeper.output(&self.node));
        let (runtime, id) = (self.node.runtime.clone(), id.clone());
        async move {
            match plain {
                Some(output) => output.await,
                None => runtime.output(&id).await.unwrap_or_default(),
            }
        }
    }

    /// What happens to plain containers and to the node's own networks from now on.
    pub fn events(&self) -> broadcast::Receiver<NodeEvent> {
        self.node.events.listen()
    }

    fn keeper(&self, id: &ContainerId) -> Result<Arc<Keeper>> {
        self.node.plains.get(id).ok_or_else(|| match self.node.tasks.of_container(id) {
            Some(_) => Error::OfService(id.to_string()),
            None => Error::NoSuchContainer(id.to_string()),
        })
    }

    /// Does something to its end, whatever becomes of whoever asked for it.
    async fn finish<T: Send + 'static, F>(&self, work: impl FnOnce(Arc<Node>) -> F) -> Result<T>
    where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        tokio::spawn(work(self.node.clone())).await.map_err(|_| Error::Closed)?
    }

    /// Every network table in force, against what kernel and resolver really hold.
    pub async fn tables(&self) -> Result<Vec<TableReport>> {
        Ok(verify::report(&self.node).await?.tables)
    }

    /// What the node really holds, and what it has found since it started.
    pub async fn verify(&self) -> Result<NodeReport> {
        verify::report(&self.node).await
    }

    /// The node in numbers.
    pub async fn measures(&self) -> Result<Measures> {
        measures::measure(&self.node).await
    }

    /// Why a name, or an address, leads a container of this node where it leads. As far as the node knows:
    /// a manager may add what is known to it alone.
    pub async fn trace(&self, container: &str, name: &str, port: Option<u16>) -> Result<Trace> {
        let asker = self.find_container(container).await?;
        trace::trace(&self.node, &asker, name, port).await
    }

    /// Ends the agent; containers go on running. When none runs, all that the node has in the
    /// kernel goes too.
    pub async fn shutdown(&self) {
        if let Some(session) = lock(&self.session).take() {
            session.cancel();
        }
        self.node.tasks.close().await;
        let idle = match self.node.runtime.containers().await {
            Ok(containers) => {
                !containers.iter().any(|container| matches!(container.state, ContainerState::Running { .. }))
            }
            // Rather leave something behind than pull the network from under a container.
            Err(_) => false,
        };
        self.node.closing.cancel();
        self.node.tracker.close();
        self.node.tracker.wait().await;
        if idle {
            self.clear_node().await;
        }
    }

    /// Takes everything of this node out of the kernel. The stored tables stay: the next start
    /// builds from them.
    async fn clear_node(&self) {
        let node = &self.node;
        node.resolver.stop().await;
        for network in node.tables.wanted() {
            report("remove a network", node.fabric.remove_network(&network).await);
        }
        for sandbox in node.fabric.sandboxes().await.unwrap_or_default() {
            report("remove a sandbox", node.fabric.remove_sandbox(&sandbox).await);
        }
        deposits::free_all(&node.config.run_dir).await;
        report("clear the node's network", node.fabric.clear_node().await);
        report("remove the balancer", Balancer::remove(&balancer_config(&node.tag)));
    }
}

fn report<E: std::fmt::Display>(what: &str, outcome: Result<(), E>) {
    if let Err(error) = outcome {
        tracing::warn!(%error, "cannot {what}");
    }
}

/// Removes a task's container and sandbox, the one whatever happens to the other.
async fn remove(node: Arc<Node>, record: TaskRecord) {
    let id: &TaskId = &record.task.id;
    report("remove a task's container", node.runtime.remove(&record.container).await);
    report("close a task's ports", node.host_ports.release(&node, id.as_str()).await);
    report("remove a task's volumes", volumes::release(&node, &record.container, true).await);
    report("remove a task's sandbox", prepare::free_sandbox(&node, id.as_str()).await);
    report("take a task's secrets and configs away", deposits::free(&node, &record.container).await);
}

/// Tells the balancer which addresses are the node's own, now and whenever they change.
async fn follow_addresses(node: Arc<Node>) {
    let mut changes = node.fabric.address_changes();
    loop {
        changes.mark_unchanged();
        report("tell the balancer the node's addresses", drift::tell_addresses(&node));
        let changed = node.closing.run_until_cancelled(changes.changed()).await;
        if !matches!(changed, Some(Ok(()))) {
            return;
        }
    }
}

/// What is bound to a link follows the link's addresses.
async fn follow_own_network(node: Arc<Node>) {
    let mut changes = node.fabric.own_network();
    while let Some(Ok(())) = node.closing.run_until_cancelled(changes.changed()).await {
        node.tables.look_again_at(|config| config.ingress);
    }
}

/// Keeps the size of all links in line with the one that the tunnels go over.
async fn follow_mtu(node: Arc<Node>) {
    let mut changes = node.fabric.mtu_changes();
    while let Some(Ok(())) = node.closing.run_until_cancelled(changes.changed()).await {
        report("follow the size of the underlay's frames", node.fabric.follow_mtu().await);
    }
}

fn stored_sandboxes(node: &Node) -> std::collections::HashSet<String> {
    let tasks = node.tasks.snapshots().into_iter().map(|snapshot| snapshot.record.task.id.to_string());
    tasks.chain(node.plains.sandboxes()).collect()
}

/// Away with what a resolver of a former process serves and nobody wants any more.
async fn prune_resolver(node: Arc<Node>, sandboxes: std::collections::HashSet<String>) {
    let networks = node.tables.wanted();
    let pruned = node.closing.run_until_cancelled(node.resolver.prune(&sandboxes, &networks)).await;
    report("prune the resolver", pruned.unwrap_or(Ok(())));
}
