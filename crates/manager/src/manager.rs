//! The manager as the rest of the daemon sees it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::Stream;
use jiff::Timestamp;
use shoal_model::trace::Trace;
use shoal_model::{
    Availability, ClusterReport, ClusterSpec, Deposit, DepositId, DepositKind, DepositSpec, LogEntry,
    LogSelector, Network, NetworkId, NetworkSpec, Node, NodeDescription, NodeId, NodeSpec, Service,
    ServiceId, ServiceSpec, Task, TaskId,
};
use shoal_store::{Embedded, State, Store};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::ca::{self, Ca, ClusterKey, JoinTokens};
use crate::control::Rotate;
use crate::dispatcher::{Dispatcher, Listen, bind_tcp};
use crate::leader::{Shared, follow, lead, load};
use crate::plan::Observed;
use crate::{Code, ControlError, Created, Error, cluster, control, logs, trace, verify};

/// The one office managers campaign for.
const OFFICE: &str = "manager";
/// How long a leader that went away silently keeps others out.
const LEADER_TTL: Duration = Duration::from_secs(10);
/// How long the removal of a network waits for the tasks of removed services to be gone.
const NETWORK_REMOVAL_WAIT: Duration = Duration::from_secs(30);

/// Where the manager keeps its cluster and serves its own node.
#[derive(Debug, Clone)]
pub struct ManagerConfig {
    /// The embedded store's file.
    pub store: PathBuf,
    /// The unix socket on which the manager's own node opens its session.
    pub socket: PathBuf,
    /// The file with the key that opens what the store holds sealed.
    pub key: PathBuf,
}

/// What a new cluster is made from.
#[derive(Debug, Clone)]
pub struct InitOptions {
    pub node_name: String,
    /// Where the manager serves nodes.
    pub listen: SocketAddr,
    /// Where other nodes find it.
    pub advertise: SocketAddr,
    /// Address other nodes send its VXLAN frames to.
    pub data_path_address: IpAddr,
    pub spec: ClusterSpec,
    pub availability: Availability,
    pub description: NodeDescription,
}

/// The managing side of a cluster; clones share it.
#[derive(Clone)]
pub struct Manager {
    shared: Arc<Shared>,
    dispatcher: Arc<Dispatcher>,
    key: Arc<ClusterKey>,
    listening: Option<SocketAddr>,
    /// Taken by the first shutdown.
    tasks: Arc<Mutex<Option<JoinSet<()>>>>,
}

impl Manager {
    /// Makes a new cluster in an empty store: the cluster, the ingress network and this node.
    pub async fn init(config: ManagerConfig, options: InitOptions) -> Result<(Manager, NodeId), Error> {
        let store: Arc<dyn Store> = Arc::new(Embedded::open(&config.store).await?);
        let begun = Self::begin(store.clone(), &config, &options).await;
        if begun.is_err() {
            // The error says more than a failure to close after it would.
            let _ = store.close().await;
        }
        begun
    }

    async fn begin(
        store: Arc<dyn Store>,
        config: &ManagerConfig,
        options: &InitOptions,
    ) -> Result<(Manager, NodeId), Error> {
        if load(&*store).await?.cluster().is_some() {
            return Err(Error::ClusterExists);
        }
        let key = Arc::new(ClusterKey::create(&config.key)?);
        let authority = ca::new_authority(&key, Timestamp::now())?;
        let listener = bind_tcp(options.listen).await?;
        let manager = Self::serve(store, config, key, Listen::Now(listener)).await?;
        let begun = manager
            .shared
            .transact(|draft, now, ids| {
                let node = cluster::begin(draft, options, authority.clone(), now.wall, ids);
                cluster::give_ingress_subnet(draft, ids)?;
                Ok::<_, Error>(node)
            })
            .await;
        match begun {
            Ok(node) => Ok((manager, node)),
            Err(error) => {
                manager.shutdown().await;
                Err(error)
            }
        }
    }

    /// Goes on with the cluster in the store.
    pub async fn open(config: ManagerConfig) -> Result<Manager, Error> {
        let store: Arc<dyn Store> = Arc::new(Embedded::open(&config.store).await?);
        let opened = Self::resume(store.clone(), &config).await;
        if opened.is_err() {
            // As above.
            let _ = store.close().await;
        }
        opened
    }

    async fn resume(store: Arc<dyn Store>, config: &ManagerConfig) -> Result<Manager, Error> {
        let state = load(&*store).await?;
        let cluster = state.cluster().ok_or(Error::NoCluster)?;
        let key = Arc::new(ClusterKey::load(&config.key)?);
        // A key that does not fit is found now, not when the first node joins.
        Ca::open(&cluster.authority, &key)?;
        let addresses = state.nodes().find_map(|node| node.manager).ok_or(Error::NoCluster)?;
        let listen = Listen::at(addresses.listen).await;
        Self::serve(store, config, key, listen).await
    }

    async fn serve(
        store: Arc<dyn Store>,
        config: &ManagerConfig,
        key: Arc<ClusterKey>,
        listen: Listen,
    ) -> Result<Manager, Error> {
        let fence = store.campaign(OFFICE, LEADER_TTL).await?;
        let state = load(&*store).await?;
        let shared = Shared::new(store, fence, state);
        let listening = match &listen {
            Listen::Now(listener) => listener.local_addr().ok(),
            Listen::WhenUp(address) => Some(*address),
        };
        let mut tasks = JoinSet::new();
        let (observed, observations) = watch::channel(Arc::new(Observed::default()));
        let dispatcher =
            Dispatcher::start(shared.clone(), &config.socket, listen, key.clone(), observed, &mut tasks)?;
        tasks.spawn(follow(shared.clone()));
        tasks.spawn(lead(shared.clone(), observations));
        Ok(Manager { shared, dispatcher, key, listening, tasks: Arc::new(Mutex::new(Some(tasks))) })
    }

    /// Where nodes are served, or will be once that address is up; with port 0 asked for, the port that was
    /// given.
    pub fn listening(&self) -> Option<SocketAddr> {
        self.listening
    }

    /// What machines join with.
    pub fn join_tokens(&self) -> Result<JoinTokens, ControlError> {
        let state = self.state();
        let cluster = state.cluster().ok_or(Error::NoCluster)?;
        Ok(Ca::open(&cluster.authority, &self.key).map_err(Error::Ca)?.tokens())
    }

    /// The cluster as it is now.
    pub fn state(&self) -> Arc<State> {
        self.shared.state()
    }

    /// The revision of [`state`](Self::state), as it changes.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.revision.subscribe()
    }

    // === services ===

    /// Declares a service. Its virtual addresses and published ports are there when this returns,
    /// unless a warning says why not. `credentials` are for the image's registry, in the form of Docker's
    /// `X-Registry-Auth`.
    pub async fn create_service(
        &self,
        spec: ServiceSpec,
        credentials: Option<&str>,
    ) -> Result<Created, ControlError> {
        self.shared
            .transact(|draft, now, ids| {
                let created = control::create_service(draft, now, ids, spec.clone())?;
                if let Some(credentials) = credentials {
                    control::entrust(draft, now, ids, &created.id, credentials, &self.key)?;
                }
                Ok(created)
            })
            .await
    }

    /// Changes a service whose record is at `version`; warnings, if any. Without `credentials` it keeps those
    /// it has.
    pub async fn update_service(
        &self,
        id: &ServiceId,
        version: u64,
        spec: ServiceSpec,
        credentials: Option<&str>,
    ) -> Result<Vec<String>, ControlError> {
        self.shared
            .transact(|draft, now, ids| {
                let warnings = control::update_service(draft, now, id, version, spec.clone())?;
                if let Some(credentials) = credentials {
                    control::entrust(draft, now, ids, id, credentials, &self.key)?;
                }
                Ok(warnings)
            })
            .await
    }

    /// Goes back to what was declared before the last update.
    pub async fn rollback_service(&self, id: &ServiceId, version: u64) -> Result<Vec<String>, ControlError> {
        self.shared.transact(|draft, now, _| control::rollback_service(draft, now, id, version)).await
    }

    /// Removes a service: from the users' sight at once, its tasks one drain barrier later.
    pub async fn remove_service(&self, id: &ServiceId) -> Result<(), ControlError> {
        self.shared.transact(|draft, _, _| control::remove_service(draft, id)).await
    }

    // === networks ===

    /// Declares a network; it has its subnets when this returns.
    pub async fn create_network(&self, spec: NetworkSpec) -> Result<NetworkId, ControlError> {
        self.shared.transact(|draft, now, ids| control::create_network(draft, now, ids, spec.clone())).await
    }

    /// Removes a network that nothing uses. Tasks that are on their way out are waited for.
    pub async fn remove_network(&self, id: &NetworkId) -> Result<(), ControlError> {
        let deadline = tokio::time::Instant::now() + NETWORK_REMOVAL_WAIT;
        let mut changes = self.changes();
        loop {
            changes.mark_unchanged();
            if self.shared.transact(|draft, _, _| control::remove_network(draft, id)).await? {
                return Ok(());
            }
            if tokio::time::timeout_at(deadline, changes.changed()).await.is_err() {
                let state = self.state();
                let task = state.network_tasks(id).find(|task| !task.released);
                let user = task.map_or("a removed service".to_owned(), |task| format!("task {}", task.id));
                let text = format!("network {id} is in use by {user}");
                return Err(ControlError::new(Code::FailedPrecondition, text));
            }
        }
    }

    // === secrets and configs ===

    /// Keeps a value for tasks.
    pub async fn create_deposit(&self, spec: DepositSpec, value: &[u8]) -> Result<DepositId, ControlError> {
        self.shared
            .transact(|draft, now, ids| {
                control::create_deposit(draft, now, ids, spec.clone(), value, &self.key)
            })
            .await
    }

    /// Changes the labels of a secret or config whose record is at `version`; nothing else of it can be changed.
    pub async fn update_deposit(
        &self,
        id: &DepositId,
        version: u64,
        spec: DepositSpec,
        value: Option<&[u8]>,
    ) -> Result<(), ControlError> {
        self.shared
            .transact(|draft, _, _| {
                control::update_deposit(draft, id, version, spec.clone(), value, &self.key)
            })
            .await
    }

    /// Removes a secret or config that no service names. Tasks that have its value keep it.
    pub async fn remove_deposit(&self, kind: DepositKind, id: &DepositId) -> Result<(), ControlError> {
        self.shared.transact(|draft, _, _| control::remove_deposit(draft, kind, id)).await
    }

    /// What a config says; a secret's value is for its tasks alone.
    pub fn config_value(&self, config: &Deposit) -> Result<Vec<u8>, ControlError> {
        if config.spec.kind != DepositKind::Config {
            return Err(ControlError::new(Code::PermissionDenied, "the value of a secret is not told"));
        }
        control::open_deposit(config, &self.key).map_err(|error| Error::Ca(error).into())
    }

    // === nodes and cluster ===

    pub async fn update_node(&self, id: &NodeId, version: u64, spec: NodeSpec) -> Result<(), ControlError> {
        self.shared.transact(|draft, _, _| control::update_node(draft, id, version, spec.clone())).await
    }

    /// Takes a node out of the cluster. One that is not down goes by force only.
    pub async fn remove_node(&self, id: &NodeId, force: bool) -> Result<(), ControlError> {
        self.shared.transact(|draft, _, _| control::remove_node(draft, id, force)).await
    }

    /// Changes the cluster's settings, and the tokens that are asked to be new. Another
    /// `force_rotate` than before begins a rotation of the certificate authority.
    pub async fn update_cluster(
        &self,
        version: u64,
        spec: ClusterSpec,
        rotate: Rotate,
    ) -> Result<(), ControlError> {
        self.shared
            .transact(|draft, now, _| {
                control::update_cluster(draft, now.wall, version, spec.clone(), rotate, &self.key)
            })
            .await
    }

    // === look-ups: by id, exact name, or id prefix, with Docker's errors ===

    pub fn find_service(&self, term: &str) -> Result<Arc<Service>, ControlError> {
        let state = self.state();
        control::find("service", term, state.services(), |it| it.id.as_str(), |it| &it.spec.name)
    }

    pub fn find_network(&self, term: &str) -> Result<Arc<Network>, ControlError> {
        let state = self.state();
        control::find("network", term, state.networks(), |it| it.id.as_str(), |it| &it.spec.name)
    }

    pub fn find_deposit(&self, kind: DepositKind, term: &str) -> Result<Arc<Deposit>, ControlError> {
        let state = self.state();
        control::find(kind.as_str(), term, state.deposits(kind), |it| it.id.as_str(), |it| &it.spec.name)
    }

    /// A node's name is its host name.
    pub fn find_node(&self, term: &str) -> Result<Arc<Node>, ControlError> {
        let state = self.state();
        control::find("node", term, state.nodes(), |it| it.id.as_str(), |it| &it.description.hostname)
    }

    /// A task's name is its container's: `web.1.<task id>`.
    pub fn find_task(&self, term: &str) -> Result<Arc<Task>, ControlError> {
        let state = self.state();
        let named = state.tasks().find(|task| task.name() == term).cloned();
        match named {
            Some(task) => Ok(task),
            None => control::find("task", term, state.tasks(), |it| it.id.as_str(), |it| it.id.as_str()),
        }
    }

    // === logs ===

    /// The lines of these tasks, as their nodes send them. Tasks that never had a node have none. When
    /// something is missing (a node away, a reader too slow) the last item is an error that says so.
    pub fn logs(
        &self,
        tasks: Vec<TaskId>,
        selector: LogSelector,
    ) -> impl Stream<Item = Result<(TaskId, LogEntry), ControlError>> + Send + 'static + use<> {
        let state = self.state();
        let placed = |id: TaskId| {
            let node = state.task(&id)?.node.clone()?;
            Some((id, node))
        };
        let tasks: BTreeMap<TaskId, NodeId> = tasks.into_iter().filter_map(placed).collect();
        logs::read(self.dispatcher.clone(), tasks, &selector)
    }

    // === truth ===

    /// Every node looks at what its kernel and resolver really hold, and what is in force there is
    /// compared with what should be.
    pub async fn verify(&self) -> ClusterReport {
        verify::cluster(&self.dispatcher, &self.state()).await
    }

    /// Adds to a node's trace what only a manager knows.
    pub fn explain(&self, trace: &mut Trace) {
        let wanted = trace.asker.node.as_ref().and_then(|node| self.dispatcher.wanted(node));
        trace::explain(&self.state(), &wanted.unwrap_or_default(), trace);
    }

    /// Stops serving and lets go of the store, so that it can be opened again. The cluster is kept.
    pub async fn shutdown(&self) {
        self.shared.stop.cancel();
        let tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut tasks) = tasks {
            while tasks.join_next().await.is_some() {}
        }
        if let Err(error) = self.shared.store.close().await {
            tracing::warn!(%error, "the store did not close cleanly");
        }
    }
}
