//! `shoal daemon`: a node, its cluster membership, and the API over both.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use shoal_agent::Agent;
use shoal_api::Engine;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::membership::Membership;
use crate::options::{Health, LogFormat, Options};

/// Members of this group may use the API, if the group exists.
const GROUP: &str = "shoal";

pub(crate) fn run(options: Options) -> anyhow::Result<()> {
    log_to_stderr(options.log_format);
    allow_open_files();
    crate::runtime()?.block_on(serve(options))
}

async fn serve(options: Options) -> anyhow::Result<()> {
    // Caught from here on: a stop during the start is a clean stop, too.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let version = env!("CARGO_PKG_VERSION");
    tracing::info!(version, data_dir = %options.agent.data_dir.display(), "starting");
    let agent = Agent::start(options.agent.clone()).await?;
    let membership = Arc::new(Membership::resume(agent.clone(), &options.agent).await);
    let listener = listen(&options.socket).await?;
    let engine = Engine::new(agent.clone(), membership.clone(), options.agent.data_dir.clone(), version);
    tracing::info!(socket = %options.socket.display(), "ready");
    let ended = CancellationToken::new();
    let health = match options.health {
        Some(Health { address, .. }) => Some(tell_health(address, agent.clone(), ended.clone()).await?),
        None => None,
    };
    let metrics = match options.metrics {
        Some(address) => Some(tell_metrics(address, agent.clone(), ended.clone()).await?),
        None => None,
    };
    let mut signals = async || {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let stopped = async {
        signals().await;
        agent.retire();
        if let Some(Health { grace, .. }) = options.health {
            tracing::info!(
                seconds = grace.as_secs(),
                "out of service; stopping when load balancers had time to see it"
            );
            // Whoever asks again does not want to wait.
            let _ = tokio::time::timeout(grace, signals()).await;
        }
        tracing::info!("stopping; containers go on running");
    };
    let served = shoal_api::serve(listener, engine, stopped).await;
    // Gone before the rest, so that nobody finds a socket that does not answer.
    let _ = std::fs::remove_file(&options.socket);
    agent.shutdown().await;
    membership.shutdown().await;
    ended.cancel();
    for telling in [health, metrics].into_iter().flatten() {
        let _ = telling.await;
    }
    tracing::info!("stopped");
    served.context("serve the API")
}

/// As many as the system lets the daemon have: each published port is held by a socket.
fn allow_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        tracing::warn!(%error, "the number of open files stays limited");
    }
}

/// Says at this address whether the node is in service, until the end.
async fn tell_health(
    address: SocketAddr,
    agent: Agent,
    ended: CancellationToken,
) -> anyhow::Result<JoinHandle<()>> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
    tracing::info!(%address, "telling load balancers whether the node is in service");
    Ok(tokio::spawn(shoal_api::serve_health(listener, move || agent.in_service(), async move {
        ended.cancelled().await;
    })))
}

/// Tells the node's numbers at this address, until the end.
async fn tell_metrics(
    address: SocketAddr,
    agent: Agent,
    ended: CancellationToken,
) -> anyhow::Result<JoinHandle<()>> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
    tracing::info!(%address, "telling the node's numbers");
    Ok(tokio::spawn(shoal_api::serve_metrics(listener, agent, async move {
        ended.cancelled().await;
    })))
}

/// Binds the API's socket; one that a former process left is replaced.
async fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    }
    match UnixStream::connect(path).await {
        Ok(_) => bail!("another daemon answers on {}", path.display()),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).with_context(|| format!("remove stale {}", path.display()))?;
        }
        Err(_) => {}
    }
    let listener = UnixListener::bind(path).with_context(|| format!("listen on {}", path.display()))?;
    if let Some(group) = nix::unistd::Group::from_name(GROUP)? {
        nix::unistd::chown(path, None, Some(group.gid))
            .with_context(|| format!("chown {}", path.display()))?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))
        .with_context(|| format!("chmod {}", path.display()))?;
    Ok(listener)
}

/// What is logged is chosen by `RUST_LOG` (`warn,shoal_agent=debug`), `info` by default.
///
/// Not by tracing-subscriber's own reader of that variable: it brings an engine for regular expressions.
pub(crate) fn log_to_stderr(format: LogFormat) {
    use tracing_subscriber::filter::{LevelFilter, Targets};
    use tracing_subscriber::prelude::*;
    let chosen = std::env::var("RUST_LOG").ok().filter(|text| !text.trim().is_empty());
    let filter = chosen.and_then(|text| text.parse().ok());
    let filter = filter.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        LogFormat::Text => lines.with_ansi(false).boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    tracing_subscriber::registry().with(lines.with_filter(filter)).init();
}
