//! The process: one per run directory, from its lock to its end.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{Flock, FlockArg};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::feed::{End, Registry, serve_feed};
use crate::forward::Forwarder;
use crate::state::StateDir;
use crate::{Error, Result};

/// Where a resolver process lives.
#[derive(Debug, Clone)]
pub struct ResolverConfig {
    /// Holds the feed's socket.
    pub run_dir: PathBuf,
    /// Keeps what was fed, for a restart.
    pub state_dir: PathBuf,
    /// The node's own configuration; read again when it changes.
    pub resolv_conf: PathBuf,
    /// Of the program, for [`crate::feed::Hello`].
    pub version: String,
}

/// The feed's socket in a run directory.
pub fn socket_path(run_dir: &Path) -> PathBuf {
    run_dir.join("resolver.sock")
}

/// Runs until SIGTERM or the feed's `retire`, which keep the state for a restart, or the feed's `stop`,
/// which clears it.
///
/// Fails with [`Error::AlreadyRunning`] when another resolver serves the same run directory.
pub async fn serve(config: ResolverConfig) -> Result<()> {
    // Apart from the terminal and the process group of the daemon that started it. Fails for a process
    // that leads a group already, which is as good.
    let _ = nix::unistd::setsid();
    let mut terminated =
        signal(SignalKind::terminate()).map_err(Error::path("handle signals in", &config.run_dir))?;
    std::fs::create_dir_all(&config.run_dir).map_err(Error::path("create", &config.run_dir))?;
    let lock = ProcessLock::take(&config.run_dir)?;
    let disk = StateDir::open(&config.state_dir)?;
    let forwarder = Arc::new(Forwarder::new(&config.resolv_conf));
    let registry = Arc::new(Registry::restore(config.version, forwarder, disk).await?);

    let path = socket_path(&config.run_dir);
    let listener = bind_private(&path)?;
    tracing::info!(socket = %path.display(), "the resolver serves");
    let mut end = registry.end.subscribe();
    let ended = tokio::select! {
        failed = serve_feed(listener, registry.clone()) => failed.map_err(Error::path("accept at", &path)),
        end = end.wait_for(Option::is_some) => match end.ok().and_then(|end| *end) {
            Some(End::Stopped) => lock.remove(),
            _ => Ok(()),
        },
        _ = terminated.recv() => Ok(()),
    };
    let _ = std::fs::remove_file(&path);
    tracing::info!("the resolver ends");
    ended
}

/// Binds a unix socket that only its owner can reach, in place of one that a dead process left.
fn bind_private(path: &Path) -> Result<UnixListener> {
    // Made under another name first: under its own it is never open to others nor missing.
    let unfinished = path.with_extension("sock.new");
    let _ = std::fs::remove_file(&unfinished);
    let listener = UnixListener::bind(&unfinished).map_err(Error::path("bind", &unfinished))?;
    std::fs::set_permissions(&unfinished, Permissions::from_mode(0o600))
        .and_then(|()| std::fs::rename(&unfinished, path))
        .map_err(Error::path("bind", path))?;
    Ok(listener)
}

/// Held by the one process of a run directory, also while its socket is being replaced.
struct ProcessLock {
    path: PathBuf,
    _file: Flock<File>,
}

impl ProcessLock {
    fn take(run_dir: &Path) -> Result<Self> {
        let path = run_dir.join("resolver.lock");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(Error::path("open", &path))?;
        let mut holder = String::new();
        let _ = file.read_to_string(&mut holder);
        let mut file =
            Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| Error::AlreadyRunning {
                path: socket_path(run_dir),
                pid: holder.trim().parse().unwrap_or_default(),
            })?;
        let written = file.set_len(0).and_then(|()| {
            std::io::Seek::rewind(&mut *file)?;
            writeln!(file, "{}", std::process::id())
        });
        written.map_err(Error::path("write", &path))?;
        Ok(Self { path, _file: file })
    }

    /// Leaves nothing behind.
    fn remove(&self) -> Result<()> {
        std::fs::remove_file(&self.path).map_err(Error::path("remove", &self.path))
    }
}
