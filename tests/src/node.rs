//! A daemon in a namespace of its own.

mod client;
mod processes;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use serde_json::Value;

use crate::{DNS_SERVER, Netns, PATIENCE, World, node_address, wait_until};

/// Where a file system for the data directory is mounted.
const DISK: &str = "disk";

/// What a test may want different.
#[derive(Debug, Clone)]
pub struct NodeOptions {
    pub name: String,
    /// A containerd of the node's own, which the test may kill.
    pub own_containerd: bool,
    /// Seconds between two looks at what kernel and resolver hold; 0: never.
    pub verify_period: u64,
    /// How far the daemon's clock is ahead of the others'; what runs already keeps its time.
    pub clock_ahead: Duration,
    /// The data directory is on a file system of its own, so many bytes large.
    pub disk: Option<u64>,
    /// The node says on [`HEALTH_PORT`](crate::HEALTH_PORT) whether it is in service.
    pub tells_health: bool,
}

impl Default for NodeOptions {
    fn default() -> Self {
        Self {
            name: "node1".to_owned(),
            own_containerd: false,
            verify_period: 10,
            clock_ahead: Duration::ZERO,
            disk: None,
            tells_health: false,
        }
    }
}

/// A running container as `docker inspect` tells it.
#[derive(Debug, Clone)]
pub struct Container {
    /// The number of its node.
    pub node: u8,
    pub id: String,
    pub name: String,
    pub pid: u32,
    pub service: String,
    pub detail: Value,
}

impl Container {
    /// Its address on a network.
    #[track_caller]
    pub fn address(&self, network: &str) -> Ipv4Addr {
        let text = self.detail["NetworkSettings"]["Networks"][network]["IPAddress"].as_str();
        let address = text.and_then(|text| text.parse().ok());
        address.unwrap_or_else(|| {
            panic!("{} has no address on {network}: {:#}", self.name, self.detail["NetworkSettings"])
        })
    }

    /// Its IPv6 address on a network.
    #[track_caller]
    pub fn address_v6(&self, network: &str) -> Ipv6Addr {
        let text = self.detail["NetworkSettings"]["Networks"][network]["GlobalIPv6Address"].as_str();
        let address = text.and_then(|text| text.parse().ok());
        address.unwrap_or_else(|| {
            panic!("{} has no IPv6 address on {network}: {:#}", self.name, self.detail["NetworkSettings"])
        })
    }

    pub fn is_healthy(&self) -> bool {
        self.detail["State"]["Health"]["Status"] == "healthy"
    }

    pub fn netns(&self) -> Netns {
        Netns::of_process(self.pid)
    }
}

pub struct Node {
    pub world: Arc<World>,
    pub netns: Netns,
    /// Which of its world's nodes it is, from 1; decides its address.
    pub number: u8,
    pub options: NodeOptions,
    pub(crate) directory: tempfile::TempDir,
    pub(crate) containerd_namespace: String,
    daemon: Option<Child>,
    containerd: Option<Child>,
    finished: bool,
}

impl Node {
    /// A node whose daemon answers, in no cluster yet.
    pub fn start() -> Self {
        Self::start_with(NodeOptions::default())
    }

    pub fn start_with(options: NodeOptions) -> Self {
        Self::start_in(Arc::default(), 1, options)
    }

    /// The Nth node of a world.
    pub fn start_in(world: Arc<World>, number: u8, options: NodeOptions) -> Self {
        let mut node = Self::bare(world, number, options);
        if node.options.own_containerd {
            node.start_containerd();
        }
        node.start_daemon();
        node
    }

    /// The namespace and the directories of a node, with nothing running.
    pub(crate) fn bare(world: Arc<World>, number: u8, options: NodeOptions) -> Self {
        let netns = Netns::new();
        world.connect(&netns, number);
        let directory = tempfile::Builder::new().prefix("shoal-e2e-").tempdir_in("/tmp").unwrap();
        let suffix = directory.path().file_name().unwrap().to_str().unwrap().to_owned();
        std::fs::write(directory.path().join("resolv.conf"), format!("nameserver {DNS_SERVER}\n")).unwrap();
        std::fs::create_dir(directory.path().join("docker-config")).unwrap();
        if let Some(bytes) = options.disk {
            let disk = directory.path().join(DISK);
            std::fs::create_dir(&disk).unwrap();
            let size = format!("size={bytes}");
            mount(Some("tmpfs"), &disk, Some("tmpfs"), MsFlags::empty(), Some(size.as_str())).unwrap();
        }
        Self {
            world,
            netns,
            number,
            options,
            directory,
            containerd_namespace: suffix.to_lowercase(),
            daemon: None,
            containerd: None,
            finished: false,
        }
    }

    /// A node that is a cluster and has the image `busybox`.
    pub fn cluster() -> Self {
        Self::cluster_with(NodeOptions::default())
    }

    pub fn cluster_with(options: NodeOptions) -> Self {
        let node = Self::start_with(options);
        node.init();
        node.import_busybox();
        node
    }

    /// Begins a cluster.
    pub fn init(&self) {
        self.docker(&["swarm", "init", "--advertise-addr", &self.address().to_string()]).ok();
    }

    /// Its own address, on its `eth0`.
    pub fn address(&self) -> Ipv4Addr {
        node_address(self.number)
    }

    // === places ===

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.path("shoal.sock")
    }

    pub fn host(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    pub fn run_dir(&self) -> PathBuf {
        self.path("run")
    }

    pub fn data_dir(&self) -> PathBuf {
        if self.options.disk.is_some() { self.disk().join("data") } else { self.path("data") }
    }

    /// The file system of the data directory, if it has one of its own.
    pub fn disk(&self) -> PathBuf {
        self.path(DISK)
    }

    /// The text that tells this node's things from every other's in global places.
    pub fn tag(&self) -> String {
        let tag = std::fs::read_to_string(self.data_dir().join("tag"));
        tag.map(|tag| tag.trim().to_owned()).unwrap_or_default()
    }

    pub fn containerd_socket(&self) -> PathBuf {
        if self.options.own_containerd {
            return self.path("containerd.sock");
        }
        std::env::var_os("SHOAL_E2E_CONTAINERD")
            .map_or_else(|| PathBuf::from("/run/containerd/containerd.sock"), PathBuf::from)
    }

    /// All that its daemons have said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("daemon.log")).unwrap_or_default()
    }

    pub fn log_tail(&self) -> String {
        const LINES: usize = 40;
        let text = self.log();
        let lines: Vec<&str> = text.lines().collect();
        format!(
            "--- daemon log of {} ---\n{}",
            self.options.name,
            lines[lines.len().saturating_sub(LINES)..].join("\n")
        )
    }

    /// Removes everything a user can remove, leaves the cluster, stops the daemon; then nothing of the
    /// node may be left anywhere, except images, which `shoal reset` removes too.
    pub fn finish(mut self) {
        if self.daemon.is_none() {
            self.start_daemon();
        }
        self.tables_are_true();
        self.remove_all();
        crate::leaks::assert_idle(&self);
        self.leave();
        self.end();
    }

    /// The end of a node that left its cluster: after its daemon stopped, nothing may be left.
    pub(crate) fn end(&mut self) {
        let programs = crate::leaks::programs(&self.tag());
        self.stop_daemon();
        crate::leaks::assert_clean(self, &programs);
        self.shoal_local("reset").ok();
        crate::leaks::assert_reset(self);
        self.finished = true;
    }

    /// The end of a node whose daemon is gone for good: `shoal reset` alone removes everything.
    pub fn finish_by_reset(mut self) {
        assert!(self.daemon.is_none());
        self.shoal_local("reset").ok();
        crate::leaks::assert_reset(&self);
        self.finished = true;
    }

    /// Removes what a user made: plain containers, and what is in the cluster if the node manages one.
    pub(crate) fn remove_all(&self) {
        let plain = self.docker(&["ps", "-a", "-q", "--filter", "is-task=false"]).ok();
        for container in plain.lines() {
            self.docker(&["rm", "-f", container]).ok();
        }
        let services = self.docker(&["service", "ls", "-q"]);
        if services.code != 0 {
            return;
        }
        for service in services.stdout.lines() {
            self.docker(&["service", "rm", service]).ok();
        }
        self.has_no_container();
        let networks = self.docker(&["network", "ls", "-q", "--filter", "driver=overlay"]).ok();
        for network in networks.lines() {
            if self.inspect("network", network)["Ingress"] == true {
                continue;
            }
            wait_until(PATIENCE, "the network can be removed", || {
                let removed = self.docker(&["network", "rm", network]);
                if removed.code == 0 { Ok(()) } else { Err(removed.to_string()) }
            });
        }
    }

    /// Waits until every container of this node is gone.
    #[track_caller]
    pub fn has_no_container(&self) {
        wait_until(PATIENCE, "every container is gone", || {
            let left = self.docker(&["ps", "-a", "-q"]).ok();
            if left.is_empty() { Ok(()) } else { Err(format!("{left}\n{}", self.log_tail())) }
        });
    }

    /// Leaves the cluster, if it is in one.
    pub(crate) fn leave(&self) {
        let state = self.docker(&["info", "--format", "{{.Swarm.LocalNodeState}}"]).ok();
        if state.trim() != "inactive" {
            self.docker(&["swarm", "leave", "--force"]).ok();
        }
    }
}

/// The binary under test, built by the same profile as this test.
pub fn shoal() -> PathBuf {
    program("shoal")
}

/// A program that was built by the same profile as this test.
pub fn program(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let beside = own.parent().unwrap_or(Path::new("."));
    let directory = if beside.ends_with("deps") { beside.parent().unwrap_or(beside) } else { beside };
    let path = directory.join(name);
    assert!(path.exists(), "{} is missing: run `cargo build --release --workspace` first", path.display());
    path
}

impl Drop for Node {
    /// The way out of a failed test: shows the daemon's last words and takes the whole node down by
    /// force, so that the next test finds the machine as this one did.
    fn drop(&mut self) {
        if !self.finished {
            eprintln!("{}", self.log_tail());
            if let Some(mut daemon) = self.daemon.take() {
                let _ = daemon.kill();
                let _ = daemon.wait();
            }
            crate::leaks::remove_by_force(self);
        }
        if let Some(mut containerd) = self.containerd.take() {
            let _ = containerd.kill();
            let _ = containerd.wait();
        }
        crate::leaks::unmount_below(self.directory.path());
    }
}
