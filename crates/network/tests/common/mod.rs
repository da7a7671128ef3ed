//! Hosts in network namespaces of their own, joined as a test needs them. Everything a test makes is
//! gone with its values, also when it fails.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use shoal_model::*;
use shoal_network::*;

pub const DEADLINE: Duration = Duration::from_secs(10);

/// A network namespace.
#[derive(Clone)]
pub struct Host(Arc<File>);

impl Host {
    pub fn new() -> Self {
        let thread = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let host = Self(Arc::new(thread.join().unwrap()));
        host.sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1; \
             sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=1; ip link set lo up");
        host
    }

    pub fn at(path: &Path) -> Self {
        Self(Arc::new(File::open(path).unwrap()))
    }

    /// Runs work inside, on a thread of its own.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&*self.0, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs a shell script inside and gives its output.
    pub fn sh(&self, script: &str) -> String {
        let (ok, output) = self.try_sh(script);
        assert!(ok, "{script}: {output}");
        output
    }

    pub fn try_sh(&self, script: &str) -> (bool, String) {
        let output = self.run(|| Command::new("sh").args(["-ec", script]).output().unwrap());
        let text =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.success(), text)
    }

    /// Joins this host to another by a pair of links.
    pub fn join(&self, name: &str, other: &Self, other_name: &str) {
        let pid = std::process::id();
        let fd = other.0.as_raw_fd();
        self.sh(&format!(
            "ip link add {name} type veth peer name {other_name} netns /proc/{pid}/fd/{fd}; ip link set {name} up"
        ));
        other.sh(&format!("ip link set {other_name} up"));
    }

    /// Answers every connection, or datagram, with a prefix and the address it came from.
    pub fn serve(&self, address: &str, prefix: &str) {
        let address: SocketAddr = address.parse().unwrap();
        let (tcp, udp) =
            self.run(|| (TcpListener::bind(address).unwrap(), UdpSocket::bind(address).unwrap()));
        let name = prefix.to_owned();
        std::thread::spawn(move || {
            for stream in tcp.incoming() {
                let Ok(mut stream) = stream else { break };
                let name = name.clone();
                std::thread::spawn(move || {
                    let peer = stream.peer_addr().unwrap();
                    let mut byte = [0];
                    // One answer per byte received.
                    while stream.read_exact(&mut byte).is_ok() {
                        if writeln!(stream, "{name} {peer}").is_err() {
                            break;
                        }
                    }
                });
            }
        });
        let name = prefix.to_owned();
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(format!("{name} {peer}\n").as_bytes(), peer);
            }
        });
    }

    /// Connects and asks once.
    pub fn ask(&self, target: &str) -> std::io::Result<String> {
        self.connect(target, 0)?.ask()
    }

    /// The same from one of this host's addresses.
    pub fn ask_from(&self, source: IpAddr, target: &str) -> std::io::Result<String> {
        self.connect_from(SocketAddr::new(source, 0), target)?.ask()
    }

    /// A TCP connection, from a given port if that is not zero.
    pub fn connect(&self, target: &str, port: u16) -> std::io::Result<Connection> {
        let any: IpAddr = match target.parse().unwrap() {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        self.connect_from(SocketAddr::new(any, port), target)
    }

    fn connect_from(&self, source: SocketAddr, target: &str) -> std::io::Result<Connection> {
        let target: SocketAddr = target.parse().unwrap();
        self.run(|| {
            let domain = socket2::Domain::for_address(target);
            let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.bind(&source.into())?;
            socket.connect_timeout(&target.into(), Duration::from_secs(3))?;
            let stream = TcpStream::from(socket);
            stream.set_read_timeout(Some(Duration::from_secs(3)))?;
            Ok(Connection(stream))
        })
    }

    /// A UDP socket bound to a port, or to any with zero.
    pub fn udp(&self, port: u16) -> Datagrams {
        self.udp_at(Ipv4Addr::UNSPECIFIED.into(), port)
    }

    /// The same for IPv6.
    pub fn udp_v6(&self, port: u16) -> Datagrams {
        self.udp_at(Ipv6Addr::UNSPECIFIED.into(), port)
    }

    fn udp_at(&self, address: IpAddr, port: u16) -> Datagrams {
        self.run(|| {
            let socket = UdpSocket::bind((address, port)).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
            Datagrams(socket)
        })
    }
}

pub struct Connection(TcpStream);

impl Connection {
    pub fn ask(&mut self) -> std::io::Result<String> {
        self.0.write_all(b"?")?;
        let mut answer = String::new();
        let mut byte = [0];
        loop {
            self.0.read_exact(&mut byte)?;
            match byte[0] {
                b'\n' => return Ok(answer),
                byte => answer.push(byte as char),
            }
        }
    }
}

pub struct Datagrams(UdpSocket);

impl Datagrams {
    /// Asks, and insists on the answer coming from whom was asked.
    pub fn ask(&self, target: &str) -> std::io::Result<String> {
        self.0.send_to(b"?", target)?;
        let mut buffer = [0; 64];
        let (length, from) = self.0.recv_from(&mut buffer)?;
        assert_eq!(from, target.parse().unwrap(), "the answer comes from somebody else");
        Ok(String::from_utf8_lossy(&buffer[..length]).trim().to_owned())
    }

    /// As [`ask`](Self::ask) on a connected socket, which is told of refusals.
    pub fn ask_connected(&self, target: &str) -> std::io::Result<String> {
        self.0.connect(target)?;
        self.0.send(b"?")?;
        let mut buffer = [0; 64];
        let length = self.0.recv(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..length]).trim().to_owned())
    }
}

/// Waits until a condition holds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A host that runs a fabric.
pub struct Node {
    pub host: Host,
    pub id: NodeId,
    pub address: Ipv4Addr,
    pub ingress: Ipv4Addr,
    pub run_dir: tempfile::TempDir,
    pub tag: String,
    pub fabric: Fabric,
    runtime: Arc<tokio::runtime::Runtime>,
}

impl Node {
    /// Once the world [speaks IPv6](World::speak_v6).
    pub fn address_v6(&self) -> Ipv6Addr {
        let [.., last] = self.address.octets();
        Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, last.into())
    }

    pub fn config(&self) -> NetworkConfig {
        NetworkConfig {
            run_dir: self.run_dir.path().to_owned(),
            tag: self.tag.clone(),
            node: Some(self.id.clone()),
            underlay: Some(self.address.into()),
        }
    }

    pub fn block<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// What a second process would see.
    pub fn open_again(&self) -> Fabric {
        open(&self.runtime, &self.host, self.config()).unwrap()
    }

    pub fn netns(&self, name: &str) -> PathBuf {
        self.run_dir.path().join("netns").join(name)
    }

    pub fn sandbox(&self, config: &SandboxConfig) -> Host {
        Host::at(&self.block(self.fabric.create_sandbox(config)).unwrap().path)
    }

    pub fn apply(&self, table: &NetworkTable) {
        self.block(self.fabric.apply_network(table)).unwrap();
    }

    pub fn publish(&self, ports: &[(Protocol, u16, &[&str])]) {
        self.block(self.fabric.apply_ports(&port_map(ports))).unwrap();
    }

    pub fn reset(&self) -> Result<()> {
        self.host.run(|| self.runtime.block_on(reset(self.run_dir.path(), &self.tag)))
    }
}

pub fn port_map(ports: &[(Protocol, u16, &[&str])]) -> Ports {
    let each = ports.iter().map(|(protocol, port, backends)| {
        let backends = backends.iter().map(|backend| backend.parse().unwrap()).collect();
        ((*protocol, *port), PublishedPort { backends, admission: Admission::default() })
    });
    each.collect()
}

/// Where ports lead, without all else.
pub fn ways(ports: &Ports) -> BTreeMap<(Protocol, u16), BTreeSet<SocketAddr>> {
    ports.iter().map(|(at, port)| (*at, port.backends.members.clone())).collect()
}

fn open(runtime: &tokio::runtime::Runtime, host: &Host, config: NetworkConfig) -> Result<Fabric> {
    host.run(|| runtime.block_on(Fabric::open(config)))
}

impl Drop for Node {
    fn drop(&mut self) {
        for entry in std::fs::read_dir(self.run_dir.path().join("netns")).into_iter().flatten().flatten() {
            let _ = umount2(&entry.path(), MntFlags::MNT_DETACH);
        }
    }
}

/// Nodes on one wire, and a client behind a router.
pub struct World {
    pub wire: Host,
    pub router: Host,
    pub client: Host,
    pub nodes: Vec<Node>,
    runtime: Arc<tokio::runtime::Runtime>,
}

pub const CLIENT: &str = "203.0.113.9";
pub const CLIENT_V6: &str = "2001:db8:113::9";

impl World {
    /// Node `n` (from 0) has the underlay address 10.77.0.(n+1) and the ingress address 10.0.0.(n+2).
    pub fn new(count: u8) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let runtime = Arc::new(runtime);
        let (wire, router, client) = (Host::new(), Host::new(), Host::new());
        wire.sh("ip link add br0 type bridge; ip link set br0 up");
        let plug = |host: &Host, name: &str, address: &str| {
            host.join("eth0", &wire, name);
            wire.sh(&format!("ip link set {name} master br0"));
            host.sh(&format!("ip addr add {address}/24 dev eth0"));
        };
        plug(&router, "router", "10.77.0.254");
        router.join("eth1", &client, "eth0");
        router.sh("ip addr add 203.0.113.1/24 dev eth1; sysctl -qw net.ipv4.ip_forward=1");
        client.sh(&format!("ip addr add {CLIENT}/24 dev eth0; ip route add default via 203.0.113.1"));
        let nodes = (0..count).map(|number| {
            let host = Host::new();
            let address = Ipv4Addr::new(10, 77, 0, number + 1);
            plug(&host, &format!("node{number}"), &address.to_string());
            host.sh("ip route add default via 10.77.0.254");
            let run_dir = tempfile::Builder::new().prefix("shoal-net").tempdir().unwrap();
            let tag = format!("{:08x}", 0x1000 + u32::from(number));
            let id = NodeId::new(format!("node{number}"));
            let config = NetworkConfig {
                run_dir: run_dir.path().to_owned(),
                tag: tag.clone(),
                node: Some(id.clone()),
                underlay: Some(address.into()),
            };
            let fabric = open(&runtime, &host, config).unwrap();
            let ingress = Ipv4Addr::new(10, 0, 0, number + 2);
            Node { host, id, address, ingress, run_dir, tag, fabric, runtime: runtime.clone() }
        });
        let nodes = nodes.collect();
        Self { wire, router, client, nodes, runtime }
    }

    pub fn network(&self, id: &str, vni: u32, subnet: &str) -> TableBuilder<'_> {
        TableBuilder { world: self, table: self.empty_table(id, vni, subnet, false) }
    }

    /// The ingress network, 10.0.0.0/24, with every node on it.
    pub fn ingress(&self) -> TableBuilder<'_> {
        TableBuilder { world: self, table: self.empty_table("ingress", 4096, "10.0.0.0/24", true) }
    }

    /// Gives everybody IPv6 as well: the client and the router, and every node its
    /// [`address_v6`](Node::address_v6).
    pub fn speak_v6(&self) {
        let on = |host: &Host, link: &str, address: &str| {
            host.sh(&format!(
                "sysctl -qw net.ipv6.conf.{link}.accept_dad=0 net.ipv6.conf.{link}.disable_ipv6=0; ip -6 addr add {address}/64 dev {link} nodad"
            ));
        };
        on(&self.router, "eth0", "2001:db8:77::fe");
        on(&self.router, "eth1", "2001:db8:113::1");
        self.router.sh("sysctl -qw net.ipv6.conf.all.forwarding=1");
        on(&self.client, "eth0", CLIENT_V6);
        self.client.sh("ip -6 route add default via 2001:db8:113::1");
        for node in &self.nodes {
            on(&node.host, "eth0", &node.address_v6().to_string());
            node.host.sh("ip -6 route add default via 2001:db8:77::fe");
        }
    }

    fn empty_table(&self, id: &str, vni: u32, subnet: &str, ingress: bool) -> NetworkTable {
        let subnet: ipnet::IpNet = subnet.parse().unwrap();
        let nodes = self.nodes.iter().map(|node| {
            let address =
                ingress.then(|| ipnet::IpNet::new(node.ingress.into(), subnet.prefix_len()).unwrap());
            let data_path_address = node.address.into();
            let entry =
                NodeEntry { data_path_address, address, address_v6: None, addresses: BTreeSet::new() };
            (node.id.clone(), entry)
        });
        NetworkTable {
            network: id.into(),
            version: TableVersion::default(),
            config: TableConfig {
                name: id.to_owned(),
                vni,
                pools: vec![AddressPool { gateway: subnet.hosts().next(), ..AddressPool::new(subnet) }],
                internal: false,
                ingress,
                mtu: None,
                data_path_port: 4789,
                driver: Default::default(),
                config_from: None,
                shown: Default::default(),
            },
            services: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            nodes: nodes.collect(),
        }
    }
}

pub struct TableBuilder<'a> {
    world: &'a World,
    pub table: NetworkTable,
}

impl TableBuilder<'_> {
    /// Puts an endpoint on a node; its link address follows from its address.
    pub fn endpoint(mut self, id: &str, node: usize, address: &str) -> Self {
        let address: IpAddr = address.parse().unwrap();
        let prefix = self.table.config.pools[0].subnet.prefix_len();
        self.table.endpoints.insert(
            id.into(),
            EndpointEntry {
                node: self.world.nodes[node].id.clone(),
                address: ipnet::IpNet::new(address, prefix).unwrap(),
                address_v6: None,
                mac: mac(self.table.config.vni, address),
                names: Vec::new(),
            },
        );
        self
    }

    /// Gives the ingress network IPv6 as well, and tells of the nodes' own addresses in it.
    pub fn dual(mut self) -> Self {
        let subnet: ipnet::IpNet = "fd00:5a::/64".parse().unwrap();
        let pool = AddressPool { gateway: "fd00:5a::1".parse().ok(), ..AddressPool::new(subnet) };
        self.table.config.pools.push(pool);
        for node in &self.world.nodes {
            let entry = self.table.nodes.get_mut(&node.id).unwrap();
            let [.., last] = node.ingress.octets();
            entry.address_v6 = format!("fd00:5a::{last:x}/64").parse().ok();
            entry.addresses = BTreeSet::from([node.address.into(), node.address_v6().into()]);
        }
        self
    }

    /// Gives an endpoint an IPv6 address as well.
    pub fn v6(mut self, id: &str, address: &str) -> Self {
        self.table.endpoints.get_mut(&id.into()).unwrap().address_v6 = address.parse().ok();
        self
    }

    pub fn done(self) -> NetworkTable {
        self.table
    }
}

pub fn mac(vni: u32, address: IpAddr) -> MacAddr {
    let IpAddr::V4(address) = address else { panic!("the main address is an IPv4 one") };
    let [_, b, c, d] = address.octets();
    MacAddr([2, 0x42, vni as u8, b, c, d])
}

/// A sandbox for one endpoint of a table.
pub fn sandbox(table: &NetworkTable, id: &str, egress: bool) -> SandboxConfig {
    sandbox_on(&[table], id, egress)
}

pub fn sandbox_on(tables: &[&NetworkTable], id: &str, egress: bool) -> SandboxConfig {
    let attachments = tables.iter().map(|table| {
        let endpoint = &table.endpoints[&EndpointId::new(id)];
        SandboxAttachment {
            network: table.network.clone(),
            ingress: table.config.ingress,
            address: endpoint.address,
            address_v6: endpoint.address_v6,
            subnets: table.config.pools.iter().map(|pool| pool.subnet).collect(),
            mac: endpoint.mac,
            default_via: Vec::new(),
        }
    });
    SandboxConfig { id: id.to_owned(), attachments: attachments.collect(), egress, sysctls: BTreeMap::new() }
}
