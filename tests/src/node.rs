//! A daemon in a world of its own.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::process::{self, Output};
use crate::{DNS_SERVER, NODE, Netns, PATIENCE, World, image, wait_until};

/// What a test may want different.
#[derive(Debug, Clone)]
pub struct NodeOptions {
    pub name: String,
    /// A containerd of the node's own, which the test may kill.
    pub own_containerd: bool,
}

impl Default for NodeOptions {
    fn default() -> Self {
        Self { name: "node1".to_owned(), own_containerd: false }
    }
}

/// A running container as `docker inspect` tells it.
#[derive(Debug, Clone)]
pub struct Container {
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

    pub fn netns(&self) -> Netns {
        Netns::of_process(self.pid)
    }
}

pub struct Node {
    pub world: World,
    pub netns: Netns,
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
        let world = World::new();
        let netns = Netns::new();
        world.connect(&netns);
        let directory = tempfile::Builder::new().prefix("shoal-e2e-").tempdir_in("/tmp").unwrap();
        let suffix = directory.path().file_name().unwrap().to_str().unwrap().to_owned();
        std::fs::write(directory.path().join("resolv.conf"), format!("nameserver {DNS_SERVER}\n")).unwrap();
        std::fs::create_dir(directory.path().join("docker-config")).unwrap();
        let mut node = Self {
            world,
            netns,
            options,
            directory,
            containerd_namespace: suffix.to_lowercase(),
            daemon: None,
            containerd: None,
            finished: false,
        };
        if node.options.own_containerd {
            node.start_containerd();
        }
        node.start_daemon();
        node
    }

    /// A node that is a cluster and has the image `busybox`.
    pub fn cluster() -> Self {
        Self::cluster_with(NodeOptions::default())
    }

    pub fn cluster_with(options: NodeOptions) -> Self {
        let node = Self::start_with(options);
        node.docker(&["swarm", "init", "--advertise-addr", &NODE.to_string()]).ok();
        node.import_busybox();
        node
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
        self.path("data")
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

    // === processes ===

    /// The flags every verb that works without a daemon needs as well.
    fn node_flags(&self) -> Vec<String> {
        let path = |name: &str| self.path(name).display().to_string();
        [
            ("--data-dir", path("data")),
            ("--run-dir", path("run")),
            ("--node-name", self.options.name.clone()),
            ("--resolv-conf", path("resolv.conf")),
            ("--containerd", self.containerd_socket().display().to_string()),
            ("--containerd-namespace", self.containerd_namespace.clone()),
        ]
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect()
    }

    /// Starts the daemon and waits until it answers.
    pub fn start_daemon(&mut self) {
        assert!(self.daemon.is_none(), "the daemon runs already");
        let log = File::options().create(true).append(true).open(self.path("daemon.log")).unwrap();
        let daemon = self
            .netns
            .command(shoal().to_str().unwrap())
            .arg("daemon")
            .args(["-H", &self.host()])
            .args(self.node_flags())
            .env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| "info".to_owned()))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.daemon = Some(daemon);
        wait_until(PATIENCE, "the daemon answers", || {
            if let Some(status) = self.daemon.as_mut().and_then(|daemon| daemon.try_wait().unwrap()) {
                panic!("the daemon ended with {status}:\n{}", self.log_tail());
            }
            self.ping().map_err(|error| format!("{error}\n{}", self.log_tail()))
        });
    }

    fn ping(&self) -> Result<(), String> {
        let answer = self.http("GET", "/_ping", "").map_err(|error| error.to_string())?;
        if answer.starts_with("HTTP/1.1 200") { Ok(()) } else { Err(answer) }
    }

    /// One raw request on the API socket; the whole answer, head and body.
    pub fn http(&self, method: &str, path: &str, body: &str) -> std::io::Result<String> {
        let mut stream = UnixStream::connect(self.socket())?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: shoal\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    pub fn daemon_pid(&self) -> u32 {
        self.daemon.as_ref().expect("the daemon runs").id()
    }

    /// SIGTERM, and the end of the process.
    pub fn stop_daemon(&mut self) {
        let mut daemon = self.daemon.take().expect("the daemon runs");
        process::signal(daemon.id(), Signal::SIGTERM);
        let code = process::wait(&mut daemon, PATIENCE);
        if code.is_none() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        assert_eq!(code, Some(0), "the daemon did not end cleanly on SIGTERM:\n{}", self.log_tail());
    }

    /// SIGKILL: no chance to tidy up.
    pub fn kill_daemon(&mut self) {
        let mut daemon = self.daemon.take().expect("the daemon runs");
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    /// Processes of this node of one kind (`resolver`, `log-shim`).
    pub fn helpers(&self, verb: &str) -> Vec<u32> {
        let directory = self.directory.path().display().to_string();
        let own = process::processes(&directory, 0);
        own.into_iter()
            .filter(|process| process.command.split(' ').nth(1) == Some(verb))
            .map(|process| process.pid)
            .collect()
    }

    pub fn start_containerd(&mut self) {
        assert!(self.options.own_containerd && self.containerd.is_none());
        let config = self.path("containerd.toml");
        let path = |name: &str| self.path(name).display().to_string();
        std::fs::write(
            &config,
            format!(
                "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
                 [grpc]\naddress = {:?}\n",
                path("containerd-root"),
                path("containerd-state"),
                path("containerd.sock"),
            ),
        )
        .unwrap();
        let log = File::options().create(true).append(true).open(self.path("containerd.log")).unwrap();
        let containerd = Command::new("containerd")
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("containerd can be started");
        self.containerd = Some(containerd);
        wait_until(PATIENCE, "containerd answers", || {
            let version = self.ctr(&["version"]);
            if version.code == 0 { Ok(()) } else { Err(version.to_string()) }
        });
    }

    pub fn kill_containerd(&mut self) {
        let mut containerd = self.containerd.take().expect("containerd is this node's own");
        containerd.kill().unwrap();
        containerd.wait().unwrap();
    }

    /// What a reboot leaves: the data directory and containerd's root. Processes, namespaces, run
    /// directory, mounts and pinned programs are gone.
    pub fn reboot(&mut self) {
        assert!(self.options.own_containerd, "a reboot ends containerd too");
        self.kill_daemon();
        self.kill_containerd();
        self.kill_everything();
        crate::leaks::unmount_below(self.directory.path());
        for name in ["run", "containerd-state", "shoal.sock", "containerd.sock"] {
            let path = self.path(name);
            let _ = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        }
        crate::leaks::unpin(&self.tag());
        self.world.disconnect();
        self.netns = Netns::new();
        self.world.connect(&self.netns);
        self.start_containerd();
        self.start_daemon();
    }

    /// Ends every process of this node: helpers, shims and what runs in their containers.
    pub(crate) fn kill_everything(&self) {
        let directory = self.directory.path().display().to_string();
        let marks = [directory.as_str(), &format!("-namespace {}", self.containerd_namespace)];
        let mut pids: Vec<u32> =
            marks.iter().flat_map(|mark| process::processes(mark, 0)).map(|process| process.pid).collect();
        let mut at = 0;
        while at < pids.len() {
            pids.extend(children(pids[at]));
            at += 1;
        }
        pids.iter().for_each(|&pid| process::signal(pid, Signal::SIGKILL));
    }

    // === clients ===

    /// The unmodified docker client against this node.
    pub fn docker(&self, arguments: &[&str]) -> Output {
        self.docker_with_input(arguments, b"")
    }

    pub fn docker_with_input(&self, arguments: &[&str], input: &[u8]) -> Output {
        process::run(self.docker_command(arguments), input, PATIENCE * 2)
    }

    pub fn docker_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command
            .args(arguments)
            .env("DOCKER_HOST", self.host())
            .env("DOCKER_CONFIG", self.path("docker-config"))
            .env_remove("DOCKER_CONTEXT");
        command
    }

    /// Our own binary against this node.
    pub fn shoal(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(shoal());
        command.args(arguments).env("DOCKER_HOST", self.host());
        process::run(command, b"", PATIENCE * 2)
    }

    /// A verb of our own binary that needs no daemon, such as `reset` or `doctor`.
    pub fn shoal_local(&self, verb: &str) -> Output {
        let mut command = self.netns.command(shoal().to_str().unwrap());
        command.arg(verb).args(self.node_flags());
        process::run(command, b"", PATIENCE)
    }

    pub fn ctr(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("ctr");
        command
            .arg("--address")
            .arg(self.containerd_socket())
            .args(["--namespace", &self.containerd_namespace]);
        command.args(arguments);
        process::run(command, b"", PATIENCE)
    }

    pub fn import_busybox(&self) {
        self.docker_with_input(&["import", "-", "busybox"], &image::root_file_system()).ok();
    }

    /// What `docker … inspect` prints, as JSON; its first element.
    #[track_caller]
    pub fn inspect(&self, kind: &str, name: &str) -> Value {
        let text = self.docker(&[kind, "inspect", name]).ok();
        let mut list: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        list[0].take()
    }

    /// Running containers of a service, by slot.
    pub fn containers(&self, service: &str) -> Vec<Container> {
        let ids = self.docker(&["ps", "-q", "--no-trunc"]).ok();
        let ids: Vec<&str> = ids.lines().collect();
        if ids.is_empty() {
            return Vec::new();
        }
        // One that ends meanwhile makes docker exit 1 and print the others.
        let text = self.docker(&[&["inspect", "--type", "container"], &ids[..]].concat()).stdout;
        let list: Value = serde_json::from_str(&text).unwrap_or_default();
        let mut found: Vec<Container> = list
            .as_array()
            .into_iter()
            .flatten()
            .map(|detail| Container {
                id: detail["Id"].as_str().unwrap_or_default().to_owned(),
                name: detail["Name"].as_str().unwrap_or_default().trim_start_matches('/').to_owned(),
                pid: detail["State"]["Pid"].as_u64().unwrap_or(0) as u32,
                service: detail["Config"]["Labels"]["com.docker.swarm.service.name"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned(),
                detail: detail.clone(),
            })
            .filter(|container| container.service == service && container.pid != 0)
            .collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        found
    }

    /// Waits until a service has exactly this many running containers.
    #[track_caller]
    pub fn running(&self, service: &str, count: usize) -> Vec<Container> {
        wait_until(PATIENCE, &format!("{service} has {count} running containers"), || {
            let found = self.containers(service);
            if found.len() == count {
                return Ok(found);
            }
            let names: Vec<&str> = found.iter().map(|container| container.name.as_str()).collect();
            let tasks = self.docker(&["service", "ps", "--no-trunc", service]);
            Err(format!("{names:?}\n{tasks}\n{}", self.log_tail()))
        })
    }

    /// Creates a service without waiting for Docker's five quiet seconds, and waits for its containers.
    #[track_caller]
    pub fn service(&self, name: &str, replicas: usize, flags: &[&str], command: &[&str]) -> Vec<Container> {
        let count = replicas.to_string();
        let fixed = ["service", "create", "--detach", "--name", name, "--replicas", &count];
        self.docker(&[&fixed[..], flags, &["busybox"], command].concat()).ok();
        self.running(name, replicas)
    }

    pub fn network(&self, name: &str) {
        self.docker(&["network", "create", "-d", "overlay", name]).ok();
    }

    /// Runs a command in a container, as a user would.
    pub fn exec(&self, container: &Container, command: &[&str]) -> Output {
        self.docker(&[&["exec", &container.id], command].concat())
    }

    /// A service's virtual address on its first network.
    #[track_caller]
    pub fn vip(&self, service: &str) -> Ipv4Addr {
        self.vip_on(service, None)
    }

    #[track_caller]
    pub fn vip_on(&self, service: &str, network: Option<&str>) -> Ipv4Addr {
        let id = network.map(|name| self.inspect("network", name)["Id"].as_str().unwrap().to_owned());
        let detail = self.inspect("service", service);
        let addresses = detail["Endpoint"]["VirtualIPs"].as_array().cloned().unwrap_or_default();
        let entry = addresses.iter().find(|entry| id.as_deref().is_none_or(|id| entry["NetworkID"] == id));
        let text = entry.and_then(|entry| entry["Addr"].as_str());
        let address = text.and_then(|text| text.split('/').next()?.parse().ok());
        address.unwrap_or_else(|| panic!("{service} has no virtual address: {:#}", detail["Endpoint"]))
    }

    /// Waits until a name resolves to exactly these addresses, asked from inside a namespace.
    #[track_caller]
    pub fn resolves(&self, from: &Netns, name: &str, mut wanted: Vec<IpAddr>) {
        use crate::dns::{A, Transport, ask};
        wanted.sort();
        wait_until(PATIENCE, &format!("{name} resolves to {wanted:?}"), || {
            let question = name.to_owned();
            let seen = from.run(move || ask(&question, A, Transport::Udp));
            match seen {
                Ok(answer) if answer.addresses() == wanted => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }

    pub fn log_tail(&self) -> String {
        const LINES: usize = 40;
        let text = std::fs::read_to_string(self.path("daemon.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        format!("--- daemon log ---\n{}", lines[lines.len().saturating_sub(LINES)..].join("\n"))
    }

    // === the end ===

    /// Removes everything a user can remove, leaves the cluster, stops the daemon; then nothing of the
    /// node may be left anywhere, except images, which `shoal reset` removes too.
    pub fn finish(mut self) {
        if self.daemon.is_none() {
            self.start_daemon();
        }
        self.remove_all();
        let programs = crate::leaks::programs(&self.tag());
        self.stop_daemon();
        crate::leaks::assert_clean(&self, &programs);
        self.shoal_local("reset").ok();
        crate::leaks::assert_reset(&self);
        self.finished = true;
    }

    /// The end of a node whose daemon is gone for good: `shoal reset` alone removes everything.
    pub fn finish_by_reset(mut self) {
        assert!(self.daemon.is_none());
        self.shoal_local("reset").ok();
        crate::leaks::assert_reset(&self);
        self.finished = true;
    }

    fn remove_all(&self) {
        let services = self.docker(&["service", "ls", "-q"]);
        if services.code == 0 {
            for service in services.stdout.lines() {
                self.docker(&["service", "rm", service]).ok();
            }
            wait_until(PATIENCE, "every container is gone", || {
                let left = self.docker(&["ps", "-a", "-q"]).ok();
                if left.is_empty() { Ok(()) } else { Err(format!("{left}\n{}", self.log_tail())) }
            });
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
            self.docker(&["swarm", "leave", "--force"]).ok();
        }
    }
}

/// The binary under test, built by the same profile as this test.
pub fn shoal() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let directory = own.parent().filter(|path| path.ends_with("deps")).and_then(Path::parent);
    let path = directory.unwrap_or(Path::new(".")).join("shoal");
    assert!(path.exists(), "{} is missing: run `cargo build --release --workspace` first", path.display());
    path
}

fn children(pid: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
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
