//! The resolver process of this node: found or started, fed, watched.
//!
//! It outlives the daemon, so it is looked for before one is started. What it is to serve is kept
//! here and fed in full on every connection; a single change is fed at once.

use std::collections::{BTreeMap, HashSet};
use std::future::Future;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use shoal_balancer::{Balancer, DnsPorts, SandboxEntry};
use shoal_model::trace::Lookup;
use shoal_model::{NameCounts, NetworkId};
use shoal_resolver::Names;
use shoal_resolver::feed::{Client, SandboxView, State};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::lock;
use crate::{AgentConfig, Error, Result};

/// How long a change waits for a resolver that is being (re)started.
const CALL_BOUND: Duration = Duration::from_secs(10);
/// How long a started process may take until its socket answers.
const START_BOUND: Duration = Duration::from_secs(5);
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// A sandbox whose names are served.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Served {
    pub view: SandboxView,
    /// Of its network namespace.
    pub cookie: u64,
    /// Its networks' numbers in kernel maps.
    pub vnis: Vec<u32>,
}

#[derive(Default)]
struct Wanted {
    sandboxes: BTreeMap<String, Served>,
    /// The ports that the kernel was told, of the sandboxes that are in force.
    balanced: BTreeMap<String, DnsPorts>,
    names: BTreeMap<NetworkId, Names>,
}

impl Wanted {
    /// These, and everything that is wanted by now.
    fn and(
        &self,
        sandboxes: &HashSet<String>,
        networks: &HashSet<NetworkId>,
    ) -> (HashSet<String>, HashSet<NetworkId>) {
        let sandboxes = sandboxes.iter().chain(self.sandboxes.keys()).cloned().collect();
        (sandboxes, networks.iter().chain(self.names.keys()).cloned().collect())
    }
}

/// The agent's hold on its resolver process.
pub(crate) struct Resolver {
    config: AgentConfig,
    balancer: Arc<Balancer>,
    wanted: std::sync::Mutex<Wanted>,
    /// Connected and fed; `None` while it is looked for or started.
    client: watch::Sender<Option<Arc<Client>>>,
}

impl Resolver {
    pub(crate) fn new(config: AgentConfig, balancer: Arc<Balancer>) -> Self {
        Self { config, balancer, wanted: std::sync::Mutex::default(), client: watch::Sender::new(None) }
    }

    /// Keeps a resolver running and fed until cancelled.
    pub(crate) async fn supervise(&self, closing: CancellationToken) {
        let mut retry = RETRY_FIRST;
        while !closing.is_cancelled() {
            let session = async {
                let client = Arc::new(self.connect_or_start().await?);
                self.feed(&client).await?;
                self.client.send_replace(Some(client));
                Ok::<_, Error>(())
            };
            match closing.run_until_cancelled(session).await {
                None => return,
                Some(Ok(())) => retry = RETRY_FIRST,
                Some(Err(error)) => {
                    tracing::warn!(%error, "resolver process cannot be used, trying again");
                    closing.run_until_cancelled(tokio::time::sleep(retry)).await;
                    retry = (retry * 2).min(RETRY_MAX);
                    continue;
                }
            }
            let lost = async {
                let mut client = self.client.subscribe();
                let socket = self.config.resolver_socket();
                tokio::select! {
                    () = ended(&socket) => {}
                    _ = client.wait_for(Option::is_none) => {}
                }
            };
            if closing.run_until_cancelled(lost).await.is_some() {
                tracing::warn!("lost the resolver process, connecting anew");
                self.client.send_replace(None);
            }
        }
    }

    async fn connect_or_start(&self) -> Result<Client> {
        let socket = self.config.resolver_socket();
        match Client::connect(&socket).await {
            Ok(client) if client.hello().version == env!("CARGO_PKG_VERSION") => return Ok(client),
            Ok(client) => {
                tracing::info!(found = client.hello().version, "replacing a resolver of another version");
                client.retire().await?;
                ended(&socket).await;
            }
            Err(shoal_resolver::Error::Feed { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        self.start().await?;
        let connected = async {
            loop {
                match Client::connect(&socket).await {
                    Ok(client) => return client,
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        };
        tokio::time::timeout(START_BOUND, connected)
            .await
            .map_err(|_| Error::ResolverStart(format!("see {}", self.config.resolver_log().display())))
    }

    async fn start(&self) -> Result<()> {
        let log_path = self.config.resolver_log();
        let open = std::fs::OpenOptions::new().create(true).append(true).open(&log_path);
        let log = open.map_err(Error::io("open", &log_path))?;
        let errors = log.try_clone().map_err(Error::io("open", &log_path))?;
        let mut child = tokio::process::Command::new(&self.config.executable)
            .arg("resolver")
            .arg("--run-dir")
            .arg(&self.config.run_dir)
            .arg("--state-dir")
            .arg(self.config.resolver_state())
            .arg("--resolv-conf")
            .arg(&self.config.resolv_conf)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .map_err(Error::io("start", &self.config.executable))?;
        tracing::info!(pid = child.id(), "started the resolver process");
        tokio::spawn(async move {
            match child.wait().await {
                Ok(status) if status.success() => {}
                Ok(status) => tracing::warn!(%status, "the resolver process ended"),
                Err(error) => tracing::warn!(%error, "cannot wait for the resolver process"),
            }
        });
        Ok(())
    }

    /// Everything, for a connection that may lead to a new process.
    async fn feed(&self, client: &Client) -> Result<()> {
        let (names, sandboxes) = {
            let wanted = lock(&self.wanted);
            (wanted.names.clone(), wanted.sandboxes.clone())
        };
        for names in names.into_values() {
            client.set_names(names).await?;
        }
        for served in sandboxes.into_values() {
            // One sandbox that is just being removed must not keep all others from being served.
            match client.set_sandbox(served.view.clone()).await {
                Ok(ports) => self.balance(&served, ports)?,
                Err(error @ shoal_resolver::Error::Feed { .. }) => return Err(error.into()),
                Err(error) => tracing::warn!(sandbox = served.view.id, %error, "cannot serve names"),
            }
        }
        Ok(())
    }

    fn balance(&self, served: &Served, ports: shoal_resolver::feed::DnsPorts) -> Result<()> {
        let dns = DnsPorts { udp: ports.udp, tcp: ports.tcp };
        let entry = SandboxEntry { networks: served.vnis.clone(), dns: Some(dns) };
        self.balancer.set_sandbox(served.cookie, &entry)?;
        let mut wanted = lock(&self.wanted);
        if wanted.sandboxes.get(&served.view.id) == Some(served) {
            wanted.balanced.insert(served.view.id.clone(), dns);
        }
        Ok(())
    }

    /// Serves a sandbox's names, and makes its resolver and virtual addresses reachable.
    pub(crate) async fn serve(&self, served: Served) -> Result<()> {
        lock(&self.wanted).sandboxes.insert(served.view.id.clone(), served.clone());
        let ports = self.call(|client| {
            let view = served.view.clone();
            async move { client.set_sandbox(view).await }
        });
        self.balance(&served, ports.await?)
    }

    pub(crate) async fn forget(&self, sandbox: &str) -> Result<()> {
        let known = {
            let mut wanted = lock(&self.wanted);
            wanted.balanced.remove(sandbox);
            wanted.sandboxes.remove(sandbox).map(|served| served.cookie)
        };
        // One that a former process served is known by its namespace, which goes last.
        let netns = self.config.run_dir.join("netns").join(sandbox);
        let cookie = known.or_else(|| shoal_balancer::netns_cookie(&netns).ok());
        let told = self.call(|client| async move { client.remove_sandbox(sandbox).await }).await;
        if let Some(cookie) = cookie {
            self.balancer.remove_sandbox(cookie)?;
        }
        told
    }

    /// In force when this returns.
    pub(crate) async fn set_names(&self, names: Names) -> Result<()> {
        lock(&self.wanted).names.insert(names.network.clone(), names.clone());
        self.call(|client| {
            let names = names.clone();
            async move { client.set_names(names).await }
        })
        .await
    }

    pub(crate) async fn remove_names(&self, network: &NetworkId) -> Result<()> {
        lock(&self.wanted).names.remove(network);
        self.call(|client| async move { client.remove_names(network).await }).await
    }

    /// Away with every sandbox and network this agent did not ask for and does not mean to. What it
    /// asks for while the resolver is still being looked for stays too.
    pub(crate) async fn prune(
        &self,
        sandboxes: &HashSet<String>,
        networks: &HashSet<NetworkId>,
    ) -> Result<()> {
        self.call(|client| {
            let (sandboxes, networks) = lock(&self.wanted).and(sandboxes, networks);
            async move { client.prune(&sandboxes, &networks).await }
        })
        .await
    }

    pub(crate) async fn read_back(&self) -> Result<State> {
        self.call(|client| async move { client.read_back().await }).await
    }

    /// What became of the questions of all sandboxes so far.
    pub(crate) async fn counts(&self) -> Result<NameCounts> {
        self.call(|client| async move { client.counts().await }).await
    }

    /// What a sandbox would be answered; `None` when it is not served.
    pub(crate) async fn trace(&self, sandbox: &str, name: &str) -> Result<Option<Lookup>> {
        self.call(|client| async move { client.trace(sandbox, name).await }).await
    }

    /// The sandboxes being served, for whoever must look into all of them.
    pub(crate) fn served(&self) -> Vec<Served> {
        lock(&self.wanted).sandboxes.values().cloned().collect()
    }

    /// The sandboxes that are in force, with the ports of their resolver.
    pub(crate) fn balanced(&self) -> Vec<(Served, DnsPorts)> {
        let wanted = lock(&self.wanted);
        let in_force = wanted.sandboxes.iter();
        in_force.filter_map(|(id, served)| Some((served.clone(), *wanted.balanced.get(id)?))).collect()
    }

    /// Ends the process; the supervisor must have been cancelled.
    pub(crate) async fn stop(&self) {
        let socket = self.config.resolver_socket();
        stop_at(&socket).await;
    }

    /// One call, on a new connection when the old one turns out to be lost.
    async fn call<'a, T, F>(&'a self, call: impl Fn(Arc<Client>) -> F) -> Result<T>
    where
        F: Future<Output = shoal_resolver::Result<T>> + 'a,
    {
        let attempts = async {
            let mut changes = self.client.subscribe();
            loop {
                let client = match changes.wait_for(Option::is_some).await {
                    Ok(client) => client.clone(),
                    Err(_) => return Err(Error::Closed),
                };
                let Some(client) = client else { continue };
                match call(client.clone()).await {
                    Err(shoal_resolver::Error::Feed { .. }) => self.lost(&client),
                    other => return Ok(other?),
                }
            }
        };
        let late = |_| Error::ResolverStart("it is not running".to_owned());
        tokio::time::timeout(CALL_BOUND, attempts).await.map_err(late)?
    }

    fn lost(&self, client: &Arc<Client>) {
        self.client.send_if_modified(|held| {
            let same = held.as_ref().is_some_and(|held| Arc::ptr_eq(held, client));
            if same {
                *held = None;
            }
            same
        });
    }
}

/// Ends the resolver process behind a socket, if there is one.
pub(crate) async fn stop_at(socket: &Path) {
    match Client::connect(socket).await {
        Ok(client) => {
            if let Err(error) = client.stop().await {
                tracing::warn!(%error, "the resolver process does not stop");
            } else {
                let bound = tokio::time::timeout(START_BOUND, ended(socket));
                if bound.await.is_err() {
                    tracing::warn!("the resolver process still runs");
                }
            }
        }
        Err(shoal_resolver::Error::Feed { .. }) => {}
        Err(error) => tracing::warn!(%error, "cannot tell the resolver process to stop"),
    }
}

/// Returns when the process behind the socket is gone: an idle connection of its own is closed.
async fn ended(socket: &Path) {
    let Ok(stream) = UnixStream::connect(socket).await else { return };
    let mut byte = [0];
    loop {
        if stream.readable().await.is_err() {
            return;
        }
        match stream.try_read(&mut byte) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn what_is_asked_for_meanwhile_is_not_pruned() {
        let mut wanted = Wanted::default();
        let later = Names::from_table(&testing::table("later", 1));
        wanted.names.insert(later.network.clone(), later);
        let stored = HashSet::from([NetworkId::new("stored")]);
        let (sandboxes, networks) = wanted.and(&HashSet::from(["t1".to_owned()]), &stored);
        assert!(sandboxes.contains("t1"));
        assert_eq!(networks, HashSet::from([NetworkId::new("stored"), NetworkId::new("later")]));
    }
}
