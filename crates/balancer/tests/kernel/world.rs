//! A network of its own for each test: a bridge in one namespace, sandboxes on it, a balancer.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use shoal_balancer::{Balancer, BalancerConfig, SandboxEntry, ServiceKey};

pub(crate) const VNI: u32 = 4097;
pub(crate) const PORT: u16 = 7000;
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// No sandbox holds these.
pub(crate) const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 9, 200));
pub(crate) const VIP6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 0x200));

pub(crate) struct World {
    prefix: String,
    sandboxes: Vec<String>,
    pub(crate) config: BalancerConfig,
    pub(crate) balancer: Option<Balancer>,
}

impl World {
    /// Sandboxes get 10.0.9.2, .3, … and fd00:9::2, … in this order, and are members of network `VNI`.
    pub(crate) fn new(sandboxes: &[&str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("sb{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let config = BalancerConfig { pins: format!("/sys/fs/bpf/shoal-test-{prefix}").into() };
        let mut world = Self { prefix, sandboxes: Vec::new(), config, balancer: None };
        world.make("net");
        world.ip("net", "link add br0 type bridge");
        world.ip("net", "link set br0 up");
        for (name, number) in sandboxes.iter().zip(2..) {
            world.make(name);
            let netns = world.name(name);
            world.ip("net", &format!("link add h-{name} type veth peer name eth0 netns {netns}"));
            world.ip("net", &format!("link set h-{name} master br0 up"));
            world.ip(name, &format!("addr add 10.0.9.{number}/24 dev eth0"));
            world.ip(name, &format!("addr add fd00:9::{number}/64 dev eth0 nodad"));
            world.ip(name, "link set eth0 up");
        }
        world.balancer = Some(Balancer::open(&world.config).unwrap());
        for name in sandboxes {
            world.join(name, &[VNI]);
        }
        world
    }

    pub(crate) fn balancer(&self) -> &Balancer {
        self.balancer.as_ref().unwrap()
    }

    pub(crate) fn join(&self, sandbox: &str, networks: &[u32]) {
        let entry = SandboxEntry { networks: networks.to_vec(), dns: None };
        self.balancer().set_sandbox(self.cookie(sandbox), &entry).unwrap();
    }

    pub(crate) fn service(&self, vip: IpAddr, backends: &[IpAddr]) {
        self.balancer().set_service(key(vip), &backends.iter().copied().collect()).unwrap();
    }

    pub(crate) fn cookie(&self, sandbox: &str) -> u64 {
        shoal_balancer::netns_cookie(&self.netns(sandbox)).unwrap()
    }

    pub(crate) fn netns(&self, sandbox: &str) -> PathBuf {
        format!("/run/netns/{}", self.name(sandbox)).into()
    }

    pub(crate) fn address(&self, sandbox: &str) -> IpAddr {
        Ipv4Addr::new(10, 0, 9, self.number(sandbox)).into()
    }

    pub(crate) fn address6(&self, sandbox: &str) -> IpAddr {
        Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, self.number(sandbox).into()).into()
    }

    /// Runs `work` on a thread inside the sandbox. Sockets it returns stay there.
    pub(crate) fn inside<T: Send>(&self, sandbox: &str, work: impl FnOnce() -> T + Send) -> T {
        let netns = File::open(self.netns(sandbox)).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Serves the sandbox's name on TCP and UDP, both families, at `PORT`.
    pub(crate) fn serve(&self, sandbox: &'static str) {
        let (tcp, udp) = self.inside(sandbox, || {
            (TcpListener::bind(("::", PORT)).unwrap(), UdpSocket::bind(("::", PORT)).unwrap())
        });
        serve_tcp(tcp, sandbox);
        serve_udp(udp, sandbox);
    }

    /// Runs a command inside the sandbox; what it printed, if it succeeded.
    pub(crate) fn run(&self, sandbox: &str, command: &str) -> Option<String> {
        let netns = format!("--net={}", self.netns(sandbox).display());
        let output = Command::new("nsenter").arg(netns).args(command.split(' ')).output().unwrap();
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    pub(crate) fn ip(&self, sandbox: &str, arguments: &str) {
        ip(&format!("-n {} {arguments}", self.name(sandbox)));
    }

    pub(crate) fn make(&mut self, sandbox: &str) {
        let name = self.name(sandbox);
        ip(&format!("netns add {name}"));
        self.sandboxes.push(sandbox.into());
        self.ip(sandbox, "link set lo up");
    }

    pub(crate) fn name(&self, sandbox: &str) -> String {
        format!("{}-{sandbox}", self.prefix)
    }

    fn number(&self, sandbox: &str) -> u8 {
        // "net" is the first of the list and has no number; the first sandbox has 2.
        u8::try_from(self.sandboxes.iter().position(|name| name == sandbox).unwrap() + 1).unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.balancer = None;
        let removed = Balancer::remove(&self.config);
        for sandbox in &self.sandboxes {
            let _ = Command::new("ip").args(["netns", "del", &self.name(sandbox)]).status();
        }
        if !std::thread::panicking() {
            removed.unwrap();
        }
    }
}

pub(crate) fn key(vip: IpAddr) -> ServiceKey {
    ServiceKey { vni: VNI, address: vip }
}

pub(crate) fn mapped(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().into(),
        v6 @ IpAddr::V6(_) => v6,
    }
}

pub(crate) fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

pub(crate) fn serve_tcp(listener: TcpListener, name: &'static str) {
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let _ = stream.write_all(name.as_bytes());
                let _ = stream.read(&mut [0]); // until the client goes
            });
        }
    });
}

/// Answers every datagram with the name.
pub(crate) fn serve_udp(socket: UdpSocket, name: &'static str) {
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(name.as_bytes(), from);
        }
    });
}

/// Connects, and reads the name of who answers.
pub(crate) fn ask_tcp(to: SocketAddr) -> std::io::Result<(String, SocketAddr)> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut buffer = [0; 16];
    let len = stream.read(&mut buffer)?;
    Ok((String::from_utf8_lossy(&buffer[..len]).into_owned(), stream.peer_addr()?))
}

/// Sends a datagram without connecting; who answered, and what address the answer shows.
pub(crate) fn ask_udp(socket: &UdpSocket, to: SocketAddr) -> std::io::Result<(String, SocketAddr)> {
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send_to(b"who", to)?;
    receive(socket)
}

pub(crate) fn receive(socket: &UdpSocket) -> std::io::Result<(String, SocketAddr)> {
    let mut buffer = [0; 16];
    let (len, from) = socket.recv_from(&mut buffer)?;
    Ok((String::from_utf8_lossy(&buffer[..len]).into_owned(), from))
}

/// Asks until both of two backends have answered, or a bound that chance does not reach.
pub(crate) fn both(mut ask: impl FnMut() -> String) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    for _ in 0..64 {
        seen.insert(ask());
        if seen.len() == 2 {
            break;
        }
    }
    seen
}

pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
