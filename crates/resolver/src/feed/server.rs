//! The resolver's end of the feed, and what it is fed into.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::sync::Arc;

use arc_swap::ArcSwap;
use shoal_model::NetworkId;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, watch};

use super::{DnsPorts, FEED_VERSION, Hello, NetworkState, Reply, Request, SandboxState, SandboxView, State};
use crate::forward::Forwarder;
use crate::names::Names;
use crate::sandbox::{Namespace, Sandbox, Sockets};
use crate::state::{StateDir, is_storable};
use crate::view::{NetworkSlot, View};
use crate::{Error, Result};

/// Largest request, in bytes; the names of a network with 65,000 endpoints fit.
const REQUEST_BYTES_MAX: u64 = 64 << 20;

/// Everything the process serves. Requests change it one at a time; queries never wait for them.
#[derive(Debug)]
pub(crate) struct Registry {
    version: String,
    forwarder: Arc<Forwarder>,
    disk: StateDir,
    served: Mutex<Served>,
    /// Set when the process is to end.
    pub(crate) end: watch::Sender<Option<End>>,
}

/// How the feed ends the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// There will be a successor.
    Retired,
    /// Nothing is to be left behind.
    Stopped,
}

#[derive(Debug, Default)]
struct Served {
    sandboxes: BTreeMap<String, Sandbox>,
    /// Also those that a view waits for and nobody has fed yet.
    networks: HashMap<NetworkId, NetworkSlot>,
    /// What is not on disk as it is served: the names of these networks…
    unsaved: BTreeSet<NetworkId>,
    /// …and the sandboxes.
    unsaved_sandboxes: bool,
}

/// Answers on the feed's socket until the listener fails.
pub(crate) async fn serve_feed(listener: UnixListener, registry: Arc<Registry>) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        let registry = registry.clone();
        tokio::spawn(async move {
            if let Err(error) = serve_peer(stream, &registry).await {
                tracing::debug!(%error, "a feed connection ended");
            }
        });
    }
}

async fn serve_peer(stream: UnixStream, registry: &Registry) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut greeted = false;
    loop {
        let mut line = Vec::new();
        (&mut stream).take(REQUEST_BYTES_MAX).read_until(b'\n', &mut line).await?;
        if line.is_empty() {
            return Ok(());
        }
        let request = serde_json::from_slice(&line);
        let end = match request {
            Ok(Request::Retire) => Some(End::Retired),
            Ok(Request::Stop) => Some(End::Stopped),
            _ => None,
        };
        let reply = match request {
            Ok(Request::Hello { feed_version }) => {
                greeted = feed_version == FEED_VERSION;
                registry.hello()
            }
            Ok(_) if !greeted => Reply::Error(format!("feed version {FEED_VERSION} must be agreed on first")),
            Ok(request) => registry.handle(request).await.unwrap_or_else(|error| Reply::Error(chain(&error))),
            Err(error) => Reply::Error(format!("not a request: {error}")),
        };
        let end = end.filter(|_| matches!(reply, Reply::Done));
        let mut line = serde_json::to_vec(&reply)?;
        line.push(b'\n');
        let written = stream.get_mut().write_all(&line).await;
        if end.is_some() {
            registry.end.send_replace(end);
        }
        written?;
    }
}

impl Registry {
    /// Takes up what was served before, as far as its namespaces are still there.
    pub(crate) async fn restore(version: String, forwarder: Arc<Forwarder>, disk: StateDir) -> Result<Self> {
        let (sandboxes, names) = disk.load();
        let mut served = Served::default();
        for names in names {
            served.slot(&names.network.clone()).store(Arc::new(names));
        }
        for (id, kept) in sandboxes {
            let netns = kept.view.netns.clone();
            match served.set_sandbox(kept.view, Some(kept.ports), &forwarder).await {
                Ok(ports) if ports == kept.ports => {}
                Ok(ports) => tracing::warn!(sandbox = id, ?ports, "a sandbox's ports changed over a restart"),
                Err(error) => {
                    tracing::info!(sandbox = id, netns = %netns.display(), error = chain(&error), "a sandbox is gone");
                }
            }
        }
        let registry =
            Self { version, forwarder, disk, served: Mutex::new(served), end: watch::Sender::default() };
        {
            let mut served = registry.served.lock().await;
            served.unsaved_sandboxes = true;
            registry.save(&mut served).await;
        }
        Ok(registry)
    }

    fn hello(&self) -> Reply {
        Reply::Hello(Hello {
            feed_version: FEED_VERSION,
            pid: std::process::id(),
            version: self.version.clone(),
        })
    }

    /// Does what is asked. It is in force before it is on disk, and on disk before the reply if the disk has room.
    async fn handle(&self, request: Request) -> Result<Reply> {
        let mut served = self.served.lock().await;
        match request {
            Request::Hello { .. } => return Ok(self.hello()),
            Request::SetSandbox(view) => {
                let ports = served.set_sandbox(view, None, &self.forwarder).await?;
                served.unsaved_sandboxes = true;
                self.save(&mut served).await;
                return Ok(Reply::Ports(ports));
            }
            Request::RemoveSandbox(id) => {
                if served.sandboxes.remove(&id).is_some() {
                    served.forget_unused();
                    served.unsaved_sandboxes = true;
                    self.save(&mut served).await;
                }
            }
            Request::SetNames(names) => {
                if !is_storable(&names.network) {
                    return Err(Error::Refused(format!("{:?} is no network id", names.network.as_str())));
                }
                let network = names.network.clone();
                served.slot(&network).store(Arc::new(names));
                served.unsaved.insert(network);
                self.save(&mut served).await;
            }
            Request::RemoveNames(network) => self.remove_names(&mut served, [network].into()).await?,
            Request::Prune { sandboxes, networks } => self.prune(&mut served, &sandboxes, &networks).await?,
            Request::ReadBack => {
                self.save(&mut served).await;
                return Ok(Reply::State(served.state()));
            }
            Request::ReadNames(network) => {
                let names = served.networks.get(&network).map(|slot| slot.load_full());
                let names = names.filter(|names| !names.is_unknown());
                return Ok(Reply::Names(names.map(Arc::unwrap_or_clone)));
            }
            Request::Counts => {
                let mut counts = self.forwarder.kept_counts();
                served.sandboxes.values().for_each(|sandbox| counts += sandbox.counts());
                return Ok(Reply::Counts(counts));
            }
            Request::Trace { sandbox, name } => {
                let sandbox = served.sandboxes.get(&sandbox);
                return Ok(Reply::Trace(sandbox.map(|sandbox| sandbox.trace(&name))));
            }
            Request::Retire => {}
            Request::Stop => {
                served.sandboxes.clear();
                self.on_disk(StateDir::clear).await?;
            }
        }
        Ok(Reply::Done)
    }

    async fn remove_names(&self, served: &mut Served, networks: BTreeSet<NetworkId>) -> Result<()> {
        for network in &networks {
            if let Some(slot) = served.networks.get(network) {
                slot.store(Arc::new(Names::unknown(network.clone())));
            }
        }
        served.forget_unused();
        self.on_disk(move |disk| {
            networks
                .iter()
                .filter(|network| is_storable(network))
                .try_for_each(|network| disk.remove_names(network))
        })
        .await
    }

    async fn prune(&self, served: &mut Served, sandboxes: &[String], networks: &[NetworkId]) -> Result<()> {
        let keep: BTreeSet<&String> = sandboxes.iter().collect();
        served.sandboxes.retain(|id, _| keep.contains(id));
        served.unsaved_sandboxes = true;
        self.save(served).await;
        let keep: BTreeSet<&NetworkId> = networks.iter().collect();
        let gone = served.networks.keys().filter(|network| !keep.contains(network)).cloned().collect();
        self.remove_names(served, gone).await
    }

    /// Writes what is not on disk yet. What cannot be written (the disk is full) is served all the same, and tried
    /// again with the requests that follow.
    async fn save(&self, served: &mut Served) {
        let sandboxes = served.unsaved_sandboxes.then(|| served.sandbox_states());
        let slots = served.unsaved.iter().filter_map(|network| served.networks.get(network));
        let names: Vec<_> = slots.map(|slot| slot.load_full()).filter(|names| !names.is_unknown()).collect();
        let written = self.on_disk(move |disk| {
            names.iter().try_for_each(|names| disk.save_names(names))?;
            sandboxes.map_or(Ok(()), |sandboxes| disk.save_sandboxes(&sandboxes))
        });
        match written.await {
            Ok(()) => {
                served.unsaved.clear();
                served.unsaved_sandboxes = false;
            }
            Err(error) => tracing::warn!(error = chain(&error), "what is served is not kept for a restart"),
        }
    }

    async fn on_disk(&self, work: impl FnOnce(&StateDir) -> Result<()> + Send + 'static) -> Result<()> {
        let disk = self.disk.clone();
        tokio::task::spawn_blocking(move || work(&disk))
            .await
            .unwrap_or_else(|error| Err(Error::Refused(error.to_string())))
    }
}

impl Served {
    /// The network's slot, made if it is not there.
    fn slot(&mut self, network: &NetworkId) -> NetworkSlot {
        self.networks
            .entry(network.clone())
            .or_insert_with(|| Arc::new(ArcSwap::from_pointee(Names::unknown(network.clone()))))
            .clone()
    }

    async fn set_sandbox(
        &mut self,
        feed: SandboxView,
        wanted: Option<DnsPorts>,
        forwarder: &Arc<Forwarder>,
    ) -> Result<DnsPorts> {
        let view = View {
            networks: feed.networks.iter().map(|network| self.slot(network)).collect(),
            internal: feed.internal,
            links: Arc::new(feed.links.clone()),
            ndots_set: feed.ndots_set,
        };
        let namespace = Namespace::at(&feed.netns)?;
        if let Some(sandbox) = self.sandboxes.get_mut(&feed.id).filter(|sandbox| sandbox.is_in(namespace)) {
            sandbox.set_view(feed, view);
            let ports = sandbox.ports();
            self.forget_unused();
            return Ok(ports);
        }
        let sockets = Sockets::open(feed.netns.clone(), wanted).await?;
        let (id, netns) = (feed.id.clone(), feed.netns.clone());
        let sandbox = Sandbox::start(feed, view, sockets, forwarder.clone())
            .map_err(|source| Error::Sockets { netns, source })?;
        let ports = sandbox.ports();
        self.sandboxes.insert(id, sandbox);
        Ok(ports)
    }

    /// Drops networks that nobody fed and no view holds.
    fn forget_unused(&mut self) {
        self.networks.retain(|_, slot| Arc::strong_count(slot) > 1 || !slot.load().is_unknown());
    }

    fn sandbox_states(&self) -> BTreeMap<String, SandboxState> {
        self.sandboxes.iter().map(|(id, sandbox)| (id.clone(), sandbox.state.clone())).collect()
    }

    fn state(&self) -> State {
        let networks = self.networks.iter().filter_map(|(id, slot)| {
            let names = slot.load();
            let digest = Some(names.digest());
            let state = NetworkState { version: names.version, names: names.len(), digest };
            (!names.is_unknown()).then(|| (id.clone(), state))
        });
        State { sandboxes: self.sandbox_states(), networks: networks.collect() }
    }
}

/// An error and what it stems from, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}
