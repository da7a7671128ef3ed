//! A node's namespace with a resolver in it, and sandboxes. Everything goes with the world.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use nix::sched::{CloneFlags, setns};
use shoal_model::{
    EndpointEntry, EndpointId, MacAddr, NetworkId, NetworkTable, NodeId, ServiceEntry, ServiceId,
    TableConfig, TableVersion,
};
use shoal_resolver::feed::{Client, DnsPorts, SandboxView};
use shoal_resolver::{Names, socket_path};

/// Tells the child where to live.
pub(crate) const CHILD_DIRECTORY: &str = "SHOAL_RESOLVER_TEST_DIRECTORY";
/// Whatever is waited for comes within this, or never.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

// === namespaces ===

/// A network namespace with lo up.
pub(crate) struct Netns {
    name: String,
}

impl Netns {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let netns =
            Self { name: format!("srt-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)) };
        netns.create();
        netns
    }

    /// Makes it anew under the same path.
    pub(crate) fn recreate(&self) {
        run("ip", &["netns", "del", &self.name]);
        self.create();
    }

    fn create(&self) {
        run("ip", &["netns", "add", &self.name]);
        run("ip", &["-n", &self.name, "link", "set", "lo", "up"]);
    }

    pub(crate) fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// Gives lo an address, if it has not got it.
    pub(crate) fn add_address(&self, address: &str) {
        if address == "::1" {
            return;
        }
        run("ip", &["-n", &self.name, "addr", "add", &format!("{address}/32"), "dev", "lo"]);
    }

    /// Runs something on a thread inside.
    pub(crate) fn enter<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let file = std::fs::File::open(self.path()).unwrap();
        let thread = std::thread::spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        thread.join().unwrap()
    }

    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg(program);
        command
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

// === the node ===

/// A node's namespace, directories and resolver process.
pub(crate) struct World {
    resolver: Option<Child>,
    pub(crate) node: Netns,
    pub(crate) directory: tempfile::TempDir,
}

impl World {
    /// Without a resolver yet; `servers` go into its configuration.
    pub(crate) fn new(servers: &[&str]) -> Self {
        let world = Self { resolver: None, node: Netns::new(), directory: tempfile::tempdir().unwrap() };
        world.set_servers(servers);
        world
    }

    /// With a resolver that serves.
    pub(crate) async fn start(servers: &[&str]) -> (Self, Client) {
        let mut world = Self::new(servers);
        let client = world.start_resolver().await;
        (world, client)
    }

    pub(crate) fn set_servers(&self, servers: &[&str]) {
        let lines: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
        std::fs::write(self.directory.path().join("resolv.conf"), lines).unwrap();
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.directory.path().join("run")
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        socket_path(&self.run_dir())
    }

    /// The command that starts a resolver for this world.
    pub(crate) fn resolver_command(&self) -> Command {
        let mut command = self.node.command(std::env::current_exe().unwrap().to_str().unwrap());
        command.args(["resolver_child", "--exact", "--nocapture"]);
        command.env(CHILD_DIRECTORY, self.directory.path()).stdout(Stdio::null());
        command
    }

    pub(crate) async fn start_resolver(&mut self) -> Client {
        self.resolver = Some(self.resolver_command().spawn().unwrap());
        self.client().await
    }

    /// A connection to the resolver as soon as it is there.
    pub(crate) async fn client(&self) -> Client {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Client::connect(&self.socket()).await {
                Ok(client) => return client,
                Err(error) => assert!(Instant::now() < deadline, "{error:?}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) fn resolver(&mut self) -> &mut Child {
        self.resolver.as_mut().unwrap()
    }

    /// As `kill -9`.
    pub(crate) fn kill_resolver(&mut self) {
        let mut child = self.resolver.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(mut child) = self.resolver.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Repeats until the condition holds.
pub(crate) async fn until<F: AsyncFnMut() -> bool>(what: &str, mut condition: F) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "{what}: not in time");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

// === sandboxes ===

/// A served sandbox.
pub(crate) struct Sandbox {
    pub(crate) netns: Netns,
    pub(crate) view: SandboxView,
    pub(crate) ports: DnsPorts,
}

impl Sandbox {
    /// A sandbox on networks, served with the node's servers.
    pub(crate) async fn new(client: &Client, id: &str, networks: &[&str]) -> Self {
        let netns = Netns::new();
        let view = SandboxView {
            id: id.to_owned(),
            netns: netns.path(),
            networks: networks.iter().map(NetworkId::new).collect(),
            upstreams: Vec::new(),
            ndots_set: false,
            internal: false,
            links: Default::default(),
        };
        let ports = client.set_sandbox(view.clone()).await.unwrap();
        Self { netns, view, ports }
    }

    /// Changes how it is served.
    pub(crate) async fn change(&mut self, client: &Client, change: impl FnOnce(&mut SandboxView)) {
        change(&mut self.view);
        self.ports = client.set_sandbox(self.view.clone()).await.unwrap();
    }

    /// What `dig` prints.
    pub(crate) fn dig(&self, arguments: &str) -> String {
        let words: Vec<&str> = arguments.split_whitespace().collect();
        let Output { stdout, .. } = self
            .netns
            .command("dig")
            .args(["-p", &self.port_for(&words).to_string(), "@127.0.0.11", "+tries=1", "+time=6"])
            .args(words)
            .output()
            .unwrap();
        String::from_utf8(stdout).unwrap()
    }

    fn port_for(&self, words: &[&str]) -> u16 {
        if words.contains(&"+tcp") { self.ports.tcp } else { self.ports.udp }
    }

    /// The answers `dig +short` prints, sorted.
    pub(crate) fn short(&self, arguments: &str) -> Vec<String> {
        let mut lines: Vec<String> =
            self.dig(&format!("{arguments} +short")).lines().map(str::to_owned).collect();
        lines.sort();
        lines
    }

    /// The response code `dig` sees.
    pub(crate) fn status(&self, arguments: &str) -> String {
        let text = self.dig(arguments);
        let status = text.split("status: ").nth(1).and_then(|rest| rest.split(',').next());
        status.unwrap_or_else(|| panic!("no reply to {arguments}: {text}")).to_owned()
    }

    /// A socket inside, connected to the resolver, that waits as long as tests do.
    pub(crate) fn udp(&self) -> UdpSocket {
        let to: SocketAddr = ([127, 0, 0, 11], self.ports.udp).into();
        self.netns.enter(move || {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.connect(to).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket
        })
    }

    /// Asks over a bare socket: the reply and how long it took.
    pub(crate) fn ask(&self, name: &str) -> (Message, Duration) {
        let socket = self.udp();
        let start = Instant::now();
        socket.send(&query(name, RecordType::A, 1)).unwrap();
        let mut buffer = [0; 4096];
        let length = socket.recv(&mut buffer).unwrap();
        (Message::from_vec(&buffer[..length]).unwrap(), start.elapsed())
    }
}

/// A query packet.
pub(crate) fn query(name: &str, kind: RecordType, id: u16) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.to_vec().unwrap()
}

/// The answers of a reply as text, sorted.
pub(crate) fn answers(reply: &Message) -> Vec<String> {
    let mut list: Vec<String> = reply.answers.iter().map(|record| record.data.to_string()).collect();
    list.sort();
    list
}

// === tables ===

/// A network in the making.
pub(crate) struct Network(pub(crate) NetworkTable);

impl Network {
    /// Its id is its name.
    pub(crate) fn new(name: &str) -> Self {
        Self(NetworkTable {
            network: NetworkId::new(name),
            version: TableVersion { epoch: 1, revision: 1 },
            config: TableConfig {
                name: name.to_owned(),
                vni: 4097,
                pools: Vec::new(),
                internal: false,
                ingress: false,
                mtu: None,
                data_path_port: 4789,
                driver: Default::default(),
                config_from: None,
                shown: Default::default(),
            },
            services: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            nodes: BTreeMap::new(),
        })
    }

    pub(crate) fn endpoint(mut self, id: &str, address: &str, names: &[&str]) -> Self {
        let entry = EndpointEntry {
            node: NodeId::new("node"),
            address: format!("{address}/8").parse().unwrap(),
            address_v6: None,
            mac: MacAddr([2, 0, 0, 0, 0, 1]),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
        };
        self.0.endpoints.insert(EndpointId::new(id), entry);
        self
    }

    pub(crate) fn service(mut self, name: &str, vip: Option<&str>, backends: &[&str]) -> Self {
        let entry = ServiceEntry {
            name: name.to_owned(),
            aliases: Vec::new(),
            vip: vip.map(|vip| vip.parse::<IpAddr>().unwrap()),
            vip_v6: None,
            ports: Vec::new(),
            backends: backends.iter().map(|id| EndpointId::new(*id)).collect(),
            others: Default::default(),
            policy: Default::default(),
        };
        self.0.services.insert(ServiceId::new(name), entry);
        self
    }

    pub(crate) async fn feed(&self, client: &Client) {
        client.set_names(Names::from_table(&self.0)).await.unwrap();
    }
}

/// `web` (VIP) with two tasks, `rr` with the same ones, a container `box`.
pub(crate) fn mynet() -> Network {
    Network::new("mynet")
        .endpoint("t1", "10.0.1.4", &["web.1.abc", "0123456789ab"])
        .endpoint("t2", "10.0.1.5", &["web.2.def", "ba9876543210"])
        .endpoint("c1", "10.0.1.9", &["box"])
        .service("web", Some("10.0.1.2"), &["t1", "t2"])
        .service("rr", None, &["t1", "t2"])
}
