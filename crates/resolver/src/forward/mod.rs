//! Names of the outside: asked elsewhere, packets relayed as they are.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use shoal_model::NameCounts;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{info, warn};

use crate::resolv_conf::{DEFAULT_FILE, ResolvConf, SYSTEMD_RESOLVED_FILE};

mod cache;
mod health;
mod lane;
mod pool;

pub(crate) use pool::Pool;

/// Questions of all sandboxes in flight; those beyond are refused, so that a flood of one kind of
/// query cannot eat the node.
const IN_FLIGHT_MAX: usize = 8192;
/// How often, at most, the node's configuration is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Where each sandbox's outside names are asked. All sockets are opened in the process's own namespace.
#[derive(Debug)]
pub(crate) struct Forwarder {
    node: Mutex<NodeServers>,
    /// Sandboxes with the same servers of their own share a pool.
    own: Mutex<HashMap<Vec<IpAddr>, Weak<Pool>>>,
    in_flight: Arc<Semaphore>,
    /// Of sandboxes that are no more.
    counts: Mutex<NameCounts>,
}

/// The servers of the node's configuration.
#[derive(Debug)]
struct NodeServers {
    path: PathBuf,
    looked: Instant,
    seen: [Option<Stamp>; 2],
    pool: Arc<Pool>,
}

/// Tells one state of a file from another.
type Stamp = (SystemTime, u64);

impl Forwarder {
    pub(crate) fn new(resolv_conf: &Path) -> Self {
        Self {
            node: Mutex::new(NodeServers::read(resolv_conf.to_owned())),
            own: Mutex::default(),
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT_MAX)),
            counts: Mutex::default(),
        }
    }

    /// The pool of the node's servers, as its configuration is now.
    pub(crate) fn node_pool(&self) -> Arc<Pool> {
        let mut node = self.node.lock().unwrap_or_else(PoisonError::into_inner);
        node.refresh(Instant::now());
        node.pool.clone()
    }

    /// The pool of a sandbox's own servers.
    pub(crate) fn pool_of(&self, servers: &[IpAddr]) -> Arc<Pool> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = own.get(servers).and_then(Weak::upgrade) {
            return pool;
        }
        own.retain(|_, pool| pool.strong_count() > 0);
        let pool = Arc::new(Pool::new(servers));
        own.insert(servers.to_vec(), Arc::downgrade(&pool));
        pool
    }

    /// A sandbox ends: what it counted is not lost.
    pub(crate) fn keep_counts(&self, counts: NameCounts) {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner) += counts;
    }

    /// What sandboxes that are no more have counted.
    pub(crate) fn kept_counts(&self) -> NameCounts {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Room for one more question, as long as the permit lives.
    pub(crate) fn admit(&self) -> Option<OwnedSemaphorePermit> {
        self.in_flight.clone().try_acquire_owned().ok()
    }
}

impl NodeServers {
    fn read(path: PathBuf) -> Self {
        let seen = stamps(&path);
        let pool = Arc::new(Pool::new(&read_servers(&path)));
        Self { path, looked: Instant::now(), seen, pool }
    }

    fn refresh(&mut self, now: Instant) {
        if now < self.looked + LOOK_INTERVAL {
            return;
        }
        self.looked = now;
        let seen = stamps(&self.path);
        if seen == self.seen {
            return;
        }
        self.seen = seen;
        let servers = read_servers(&self.path);
        if servers != self.pool.servers() {
            info!(?servers, "the node's servers changed");
            self.pool = Arc::new(Pool::new(&servers));
        }
    }
}

fn stamps(path: &Path) -> [Option<Stamp>; 2] {
    [path, Path::new(SYSTEMD_RESOLVED_FILE)].map(|path| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    })
}

/// The servers the node's configuration names. systemd-resolved's stub may only stand in the system's
/// own file; a file that was chosen means what it says.
fn read_servers(path: &Path) -> Vec<IpAddr> {
    let behind_stub = (path == Path::new(DEFAULT_FILE)).then_some(Path::new(SYSTEMD_RESOLVED_FILE));
    servers_of(path, behind_stub)
}

/// The servers of a file. Where it names only systemd-resolved's stub, the servers behind that are
/// meant: the stub is not there in a namespace of one's own.
fn servers_of(path: &Path, behind_stub: Option<&Path>) -> Vec<IpAddr> {
    let read = |path: &Path| std::fs::read_to_string(path).map(|text| ResolvConf::parse(&text));
    let node = read(path).unwrap_or_else(|error| {
        warn!(path = %path.display(), %error, "the node's resolver configuration is not readable");
        ResolvConf::default()
    });
    let real = behind_stub.filter(|_| node.is_systemd_stub()).and_then(|path| read(path).ok());
    real.unwrap_or(node).upstreams()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_behind_systemds_stub_are_meant() {
        let directory = tempfile::tempdir().unwrap();
        let (stub, real) = (directory.path().join("stub"), directory.path().join("real"));
        let servers = |behind| servers_of(&stub, behind).iter().map(ToString::to_string).collect::<Vec<_>>();
        std::fs::write(&stub, "nameserver 127.0.0.53\n").unwrap();
        assert_eq!(servers(Some(&real)), ["127.0.0.53"], "there is no other file");
        std::fs::write(&real, "nameserver 10.0.0.1\nnameserver 10.0.0.2\n").unwrap();
        assert_eq!(servers(Some(&real)), ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(servers(None), ["127.0.0.53"], "a chosen file means what it says");
        std::fs::write(&stub, "nameserver 10.0.0.9\n").unwrap();
        assert_eq!(servers(Some(&real)), ["10.0.0.9"]);
        std::fs::remove_file(&stub).unwrap();
        assert_eq!(servers(Some(&real)), [""; 0]);
    }
}
