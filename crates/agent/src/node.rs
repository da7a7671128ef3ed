//! What all parts of the agent share, and what a node is called.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use nix::fcntl::{Flock, FlockArg};
use shoal_balancer::{Balancer, BalancerConfig};
use shoal_model::{
    ContainerId, Driver, IdGenerator, LogEntry, LogSelector, NetworkId, NetworkTable, NodeDescription,
    NodeReport, TaskId, TaskStatus,
};
use shoal_network::{Fabric, NetworkConfig, OwnNetwork};
use shoal_runtime::{Container as RuntimeContainer, Runtime, RuntimeConfig};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::deposits::Deposits;
use crate::drift::Drift;
use crate::events::Events;
use crate::guests::Guests;
use crate::host_ports::{self, Binding, HostPorts};
use crate::local::{Configurations, Locals};
use crate::plain::{PlainRecord, Plains};
use crate::resolver::Resolver;
use crate::sandbox::TASK_LABEL;
use crate::session::{Assigned, Host, SessionState};
use crate::store::{NodeStore, Stored, TaskRecord};
use crate::tables::{Effects, Own, Tables};
use crate::task::{self, Container, Observed};
use crate::tasks::Tasks;
use crate::volumes::Volumes;
use crate::{AgentConfig, Error, Membership, Result, deposits, lock, prepare, volumes};

/// How long a node whose store was lost waits, once it knows its tasks, before it removes the rest.
const DISOWN_DELAY: Duration = Duration::from_secs(15);

/// Everything of a running node.
pub(crate) struct Node {
    pub config: AgentConfig,
    pub tag: String,
    pub runtime: Runtime,
    pub fabric: Fabric,
    pub balancer: Arc<Balancer>,
    pub resolver: Arc<Resolver>,
    pub store: NodeStore,
    pub tables: Arc<Tables>,
    pub drift: Drift,
    pub tasks: Tasks,
    pub deposits: Deposits,
    pub volumes: Volumes,
    pub plains: Plains,
    pub locals: Arc<Locals>,
    pub events: Events,
    pub host_ports: Arc<HostPorts>,
    pub guests: Guests,
    pub membership: watch::Sender<Option<Membership>>,
    pub session: watch::Sender<SessionState>,
    /// The daemon has been told to stop; it goes on for a while.
    pub retiring: CancellationToken,
    /// Containers of tasks that the node store does not know: the store was lost, and the manager
    /// will say which of them it still wants.
    pub strangers: Mutex<HashMap<TaskId, RuntimeContainer>>,
    /// Ends every task of the agent.
    pub closing: CancellationToken,
    pub tracker: TaskTracker,
    /// Held as long as the agent lives: no two daemons on one data directory.
    _lock: Flock<std::fs::File>,
}

impl Node {
    /// Opens everything; nothing runs yet.
    pub(crate) async fn open(config: AgentConfig) -> Result<(Arc<Self>, Stored)> {
        make_dir(&config.data_dir, 0o700)?;
        // Can be passed through, not read: the API's socket usually lives here, and has its own mode.
        make_dir(&config.run_dir, 0o711)?;
        let guard = lock_data_dir(&config)?;
        let (store, mut stored) = NodeStore::open(&config.node_store())?;
        let tag = tag(&config.data_dir)?;
        let runtime = Runtime::connect(runtime_config(&config)).await?;
        let member = stored.membership.as_ref();
        let fabric = Fabric::open(NetworkConfig {
            run_dir: config.run_dir.clone(),
            tag: tag.clone(),
            node: member.map(|member| member.node.clone()),
            underlay: member.map(|member| member.data_path_address),
        })
        .await?;
        let balancer = Arc::new(Balancer::open(&balancer_config(&tag))?);
        let resolver = Arc::new(Resolver::new(config.clone(), balancer.clone()));
        let node = Arc::new(Self {
            tag,
            runtime,
            fabric,
            balancer,
            resolver,
            store,
            tables: Arc::new(Tables::new(std::mem::take(&mut stored.tables))),
            drift: Drift::default(),
            tasks: Tasks::default(),
            deposits: Deposits::default(),
            volumes: Volumes::new(std::mem::take(&mut stored.volumes), &config.data_dir),
            plains: Plains::default(),
            locals: Arc::new(Locals::new(std::mem::take(&mut stored.networks))),
            events: Events::default(),
            host_ports: Arc::default(),
            guests: Guests::default(),
            membership: watch::Sender::new(stored.membership.clone()),
            session: watch::Sender::default(),
            retiring: CancellationToken::new(),
            strangers: Mutex::default(),
            closing: CancellationToken::new(),
            tracker: TaskTracker::new(),
            config,
            _lock: guard,
        });
        Ok((node, stored))
    }

    pub(crate) fn membership(&self) -> Option<Membership> {
        self.membership.borrow().clone()
    }

    /// The node as tables take effect on it.
    pub(crate) fn own(&self) -> Own {
        let links = self.fabric.own_network().borrow().links.clone();
        Own { node: self.membership().map(|member| member.node), links }
    }

    /// The tables in force, and those on their way: what a former process brought into force is, though this one
    /// has not looked at it yet.
    pub(crate) fn known_tables(&self) -> BTreeMap<NetworkId, Arc<NetworkTable>> {
        let own = self.membership().map(|member| member.node);
        let sent = self.tables.sent_tables();
        let here = |table: Arc<NetworkTable>| match table.config.driver {
            Driver::Unconfigured(_) => Arc::new(self.locals.on_this_node(&table, own.as_ref())),
            _ => table,
        };
        let mut known: BTreeMap<_, _> = sent.into_iter().map(|(id, table)| (id, here(table))).collect();
        let in_force = self.tables.in_force().borrow().clone();
        known.extend(in_force.iter().map(|(id, table)| (id.clone(), table.clone())));
        known
    }

    pub(crate) fn effects(&self) -> Effects {
        Effects {
            fabric: self.fabric.clone(),
            balancer: self.balancer.clone(),
            resolver: self.resolver.clone(),
            store: self.store.clone(),
            host_ports: self.host_ports.clone(),
            locals: self.locals.clone(),
            membership: self.membership.subscribe(),
        }
    }

    /// Takes over what a former process left: its tasks run on, what nobody claims is removed.
    pub(crate) async fn adopt(
        self: &Arc<Self>,
        tasks: Vec<TaskRecord>,
        plains: Vec<PlainRecord>,
        rebuilt: bool,
    ) -> Result<()> {
        let containers = self.runtime.containers().await?;
        self.plains.adopt(self, plains, &containers, rebuilt).await;
        self.locals.begin(self);
        let found: HashMap<&ContainerId, &RuntimeContainer> =
            containers.iter().map(|container| (&container.config.id, container)).collect();
        let sandboxes: HashSet<String> = self.fabric.sandboxes().await?.into_iter().collect();
        let mut begun = Vec::new();
        for record in tasks {
            let container = found.get(&record.container);
            let seen = Observed {
                container: container.map_or(Container::Absent, |c| crate::runner::found(&c.state)),
                sandbox: sandboxes.contains(record.task.id.as_str()),
                networks_ready: false,
                obstacle: None,
                values_known: false,
                values: deposits::is_there(&self.config.run_dir, &record.container),
                health: None,
                stop_request: None,
            };
            begun.push((record, seen));
        }
        if rebuilt {
            let known =
                containers.into_iter().filter_map(|container| Some((task_of(&container)?, container)));
            *lock(&self.strangers) = known.collect();
        } else {
            let containers = begun.iter().map(|(record, _)| record.container.clone()).collect();
            let sandboxes = begun.iter().map(|(record, _)| record.task.id.to_string()).collect();
            self.prune(&containers, &sandboxes).await;
        }
        self.resume_ports(&begun).await;
        for (record, seen) in begun {
            self.tasks.spawn(self, record, seen);
        }
        self.plains.resume(self).await;
        Ok(())
    }

    /// Ports that led to a container when the former process ended go on doing so, those of tasks that ended
    /// meanwhile are closed.
    async fn resume_ports(&self, begun: &[(TaskRecord, Observed)]) {
        self.plains.resume_ports(self).await;
        let concerned =
            begun.iter().filter(|(record, _)| host_ports::declared(&record.task).next().is_some());
        for (record, seen) in concerned.filter(|(record, _)| !record.progress.status.ports.is_empty()) {
            let serves = task::takes_connections(record, seen);
            let addresses = match self.fabric.sandbox(record.task.id.as_str()).await {
                Ok(sandbox) if serves => sandbox.map(|sandbox| prepare::way_in(self, &record.task, &sandbox)),
                Ok(_) => None,
                Err(error) => {
                    tracing::warn!(task = %record.task.id, %error, "cannot look at the task's sandbox");
                    None
                }
            };
            let ports: Vec<Binding> = record.progress.status.ports.iter().map(Binding::from).collect();
            self.host_ports.resume(record.task.id.as_str(), &ports, addresses.unwrap_or_default());
        }
        if let Err(error) = self.host_ports.apply(self).await {
            tracing::warn!(%error, "cannot bring the ports of single tasks into force yet");
        }
    }

    /// The container a lost node store leaves for a task that is assigned again.
    pub(crate) fn stranger(&self, task: &TaskId) -> Option<RuntimeContainer> {
        lock(&self.strangers).remove(task)
    }

    /// The manager has named all tasks of this node. When the node store was lost, what it did not
    /// name is removed, a little later: tables and sandboxes must first be claimed again.
    pub(crate) fn disown_the_rest(self: &Arc<Self>) {
        if std::mem::take(&mut *lock(&self.strangers)).is_empty() {
            return;
        }
        let node = self.clone();
        self.tracker.spawn(async move {
            let closing = node.closing.clone();
            if closing.run_until_cancelled(tokio::time::sleep(DISOWN_DELAY)).await.is_some() {
                let claimed = node.tasks.snapshots();
                let containers = claimed.iter().map(|task| task.record.container.clone()).collect();
                let sandboxes = claimed.iter().map(|task| task.record.task.id.to_string()).collect();
                node.prune(&containers, &sandboxes).await;
            }
        });
    }

    /// Removes every container, sandbox, network and map entry that no task, no table and no plain
    /// container claims. A
    /// failure here leaves something behind, but must not keep a node from starting.
    async fn prune(&self, containers: &HashSet<ContainerId>, sandboxes: &HashSet<String>) {
        let containers = &(containers | &self.plains.containers());
        let sandboxes = &(sandboxes | &self.plains.sandboxes());
        if let Err(error) = self.runtime.prune(containers).await {
            tracing::warn!(%error, "cannot remove containers that nobody claims");
        }
        deposits::prune(&self.config.run_dir, containers.clone()).await;
        volumes::prune(self, containers).await;
        if let Err(error) = self.fabric.prune(sandboxes, &self.tables.wanted()).await {
            tracing::warn!(%error, "cannot remove namespaces and links that nobody claims");
        }
        let cookies: BTreeSet<u64> = sandboxes
            .iter()
            .filter_map(|id| shoal_balancer::netns_cookie(&self.config.run_dir.join("netns").join(id)).ok())
            .collect();
        let stale = self.balancer.read_back().map(|kernel| kernel.sandboxes).unwrap_or_default();
        for cookie in stale.into_keys().filter(|cookie| !cookies.contains(cookie)) {
            if let Err(error) = self.balancer.remove_sandbox(cookie) {
                tracing::warn!(cookie, %error, "cannot remove a stale sandbox from the balancer");
            }
        }
    }

    /// What the node says of itself.
    pub(crate) fn description(&self) -> NodeDescription {
        let uname = nix::sys::utsname::uname().ok();
        let machine = uname.as_ref().map(|name| name.machine().to_string_lossy().into_owned());
        let own = self.fabric.own_network().borrow().clone();
        NodeDescription {
            hostname: self.config.node_name.clone(),
            architecture: machine.unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            os: std::env::consts::OS.to_owned(),
            nano_cpus: std::thread::available_parallelism().map_or(1, |n| n.get() as u64) * 1_000_000_000,
            memory: memory(),
            engine_version: env!("CARGO_PKG_VERSION").to_owned(),
            engine_labels: self.config.engine_labels.clone(),
            routes: own.routes,
            taken_ports: self.tables.ports_held().borrow().taken.clone(),
            addresses: own.addresses,
            configurations: self.locals.configurations().borrow().clone(),
        }
    }
}

impl Host for Node {
    fn description(&self) -> NodeDescription {
        Node::description(self)
    }

    fn own_network(&self) -> watch::Receiver<OwnNetwork> {
        self.fabric.own_network()
    }

    fn configurations(&self) -> watch::Receiver<Configurations> {
        self.locals.configurations()
    }

    fn tables(&self) -> &Tables {
        &self.tables
    }

    fn obey(self: &Arc<Self>, assigned: Assigned) {
        // Known before anything asks for them.
        self.deposits.take(assigned.complete, assigned.values);
        if assigned.complete {
            self.tasks.retain(&assigned.put.iter().map(|task| task.id.clone()).collect());
        }
        for id in &assigned.remove {
            self.tasks.unassign(id);
        }
        for task in assigned.put {
            self.tasks.assign(self, task);
        }
        self.deposits.retain(&self.tasks.deposits());
        if assigned.complete {
            self.disown_the_rest();
        }
    }

    fn guests(&self) -> &Guests {
        &self.guests
    }

    fn report_all(&self) {
        self.tasks.report_all();
    }

    async fn news(&self) {
        self.tasks.news().await;
    }

    fn take_unreported(&self) -> Vec<(TaskId, TaskStatus)> {
        self.tasks.take_unreported()
    }

    async fn keep_membership(&self, member: &Membership) -> Result<()> {
        self.store.update_membership(member).await?;
        self.membership.send_modify(|present| {
            if present.is_some() {
                *present = Some(member.clone());
            }
        });
        Ok(())
    }

    fn show_session(&self, state: SessionState) {
        self.session.send_replace(state);
    }

    fn verify(self: &Arc<Self>) -> BoxFuture<'static, Result<NodeReport, String>> {
        let node = self.clone();
        Box::pin(async move { crate::verify::report(&node).await.map_err(|error| error.to_string()) })
    }

    fn lines(self: &Arc<Self>, task: TaskId, selector: LogSelector) -> BoxStream<'static, Vec<LogEntry>> {
        crate::logs::lines(self.clone(), task, selector)
    }
}

/// Tasks by the containers that carry their label: what is left when the node store is lost.
pub(crate) fn task_of(container: &RuntimeContainer) -> Option<TaskId> {
    container.config.labels.get(TASK_LABEL).map(TaskId::new)
}

pub(crate) fn runtime_config(config: &AgentConfig) -> RuntimeConfig {
    RuntimeConfig {
        socket: config.containerd.clone(),
        namespace: config.containerd_namespace.clone(),
        data_dir: config.data_dir.clone(),
        run_dir: config.run_dir.clone(),
        executable: config.executable.clone(),
        registries: config.registries.clone(),
    }
}

pub(crate) fn balancer_config(tag: &str) -> BalancerConfig {
    BalancerConfig { pins: PathBuf::from(format!("/sys/fs/bpf/shoal-{tag}")) }
}

/// Bytes of memory of this machine.
fn memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    line.and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}

fn make_dir(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(path).map_err(Error::io("create", path))
}

/// Fails when another daemon uses the data directory.
pub(crate) fn lock_data_dir(config: &AgentConfig) -> Result<Flock<std::fs::File>> {
    let path = config.data_dir.join("lock");
    let mut options = std::fs::OpenOptions::new();
    let file =
        options.create(true).truncate(false).write(true).open(&path).map_err(Error::io("open", &path))?;
    let locked = Flock::lock(file, FlockArg::LockExclusiveNonblock);
    let mut lock = locked.map_err(|_| Error::Locked(config.data_dir.clone()))?;
    // Only for a human who looks: whose lock it is.
    let _ = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
    Ok(lock)
}

/// Eight hexadecimal characters that mark everything of this node in the kernel; made once.
fn tag(data_dir: &Path) -> Result<String> {
    if let Some(tag) = known_tag(data_dir)? {
        return Ok(tag);
    }
    let path = data_dir.join("tag");
    let bytes = IdGenerator::from_os().bytes::<4>();
    let tag: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    std::fs::write(&path, &tag).map_err(Error::io("write", &path))?;
    Ok(tag)
}

/// The tag of a node that has been started before.
pub(crate) fn known_tag(data_dir: &Path) -> Result<Option<String>> {
    let path = data_dir.join("tag");
    let text = match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(Error::io("read", &path))?,
    };
    let tag = text.trim();
    let valid = tag.len() == 8 && tag.bytes().all(|byte| byte.is_ascii_hexdigit());
    Ok(valid.then(|| tag.to_owned()))
}
