//! The ways to one task: directly, through the mesh, and through others' proxies on the same nodes.

use std::net::{Ipv4Addr, SocketAddr};

use serde_json::Value;
use shoal_e2e::{Cluster, Container, Node, PATIENCE, wait_until, web};

use crate::namespace::{Program, run};

/// Where a connection from outside comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Entry {
    /// The node with the task.
    Its,
    /// One without.
    Other,
}

impl Entry {
    pub(crate) const ALL: [Self; 2] = [Self::Its, Self::Other];

    /// The number of the node.
    pub(crate) fn node(self) -> u8 {
        match self {
            Self::Its => 2,
            Self::Other => 3,
        }
    }

    /// Another port of the task's server, to which there is a route by this node.
    fn direct(self) -> u16 {
        match self {
            Self::Its => 81,
            Self::Other => 82,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Its => "on the task's node",
            Self::Other => "on another node",
        }
    }
}

/// Through what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    /// To the task's address, by a route to the node.
    Direct(Entry),
    Mesh(Entry),
    HaProxy(Entry),
    Nginx(Entry),
}

impl Way {
    /// In the order of a round.
    pub(crate) fn all() -> Vec<Self> {
        let by = |entry| [Self::Direct(entry), Self::Mesh(entry), Self::HaProxy(entry), Self::Nginx(entry)];
        Entry::ALL.into_iter().flat_map(by).collect()
    }

    pub(crate) fn name(self) -> String {
        let through = match self {
            Self::Direct(_) => "direct",
            Self::Mesh(_) => "mesh",
            Self::HaProxy(_) => "HAProxy",
            Self::Nginx(_) => "nginx",
        };
        format!("{through}, {}", self.entry().name())
    }

    pub(crate) fn entry(self) -> Entry {
        let (Self::Direct(entry) | Self::Mesh(entry) | Self::HaProxy(entry) | Self::Nginx(entry)) = self;
        entry
    }

    /// Where the client connects to, when so many ports are published: the last of them.
    pub(crate) fn target(self, cluster: &Cluster, task: Ipv4Addr, ports: u16) -> SocketAddr {
        let at = |entry: Entry, first: u16| (cluster.node(entry.node()).address(), first + ports - 1).into();
        match self {
            Self::Direct(entry) => (task, entry.direct()).into(),
            Self::Mesh(entry) => at(entry, MESH),
            Self::HaProxy(entry) => at(entry, HAPROXY),
            Self::Nginx(entry) => at(entry, NGINX),
        }
    }
}

/// The first published port, and the first of each proxy.
pub(crate) const MESH: u16 = 10_000;
const HAPROXY: u16 = 16_000;
const NGINX: u16 = 22_000;
/// The task's port.
pub(crate) const TASK: u16 = 80;

/// The ingress network lets nobody in who did not come by a published port. What is not tracked at all it does
/// not see, so this is the bare way: routed, and nothing else.
pub(crate) fn open_direct(cluster: &Cluster, task: Ipv4Addr) {
    let ip = |words: String| cluster.world.netns.ip(&words.split(' ').collect::<Vec<_>>());
    for entry in Entry::ALL {
        let (node, port) = (cluster.node(entry.node()), entry.direct());
        ip(format!("rule add ipproto tcp dport {port} lookup {port}"));
        ip(format!("route add {task} via {} table {port}", node.address()));
        run(&node.netns, "nft", &["-f", "-"], DIRECT.replace("TASK", &task.to_string()).as_bytes());
    }
}

const DIRECT: &str = "table ip bench {\nchain untracked {\ntype filter hook prerouting priority raw\n\
    ip daddr TASK tcp dport { 81, 82 } notrack\nip saddr TASK tcp sport { 81, 82 } notrack\n}\n}\n";

/// Undoes [`open_direct`].
pub(crate) fn close_direct(cluster: &Cluster) {
    for entry in Entry::ALL {
        let port = entry.direct().to_string();
        run(&cluster.node(entry.node()).netns, "nft", &["delete", "table", "ip", "bench"], b"");
        cluster.world.netns.ip(&["rule", "del", "lookup", &port]);
        cluster.world.netns.ip(&["route", "flush", "table", &port]);
    }
}

/// A task's address behind published ports.
pub(crate) fn ingress_address(task: &Container) -> Ipv4Addr {
    let networks = &task.detail["NetworkSettings"]["Networks"];
    let text = networks["ingress"]["IPAddress"].as_str();
    let found = text.and_then(|text| text.parse().ok());
    found.unwrap_or_else(|| {
        panic!("{} has no address behind its ports: {:#}", task.name, Value::clone(networks))
    })
}

/// Both proxies on both nodes; each listens on as many ports as are published, and leads to the task.
pub(crate) fn start_proxies(cluster: &Cluster, task: Ipv4Addr, ports: u16) -> Vec<Program> {
    let on = |entry: Entry| {
        let node = cluster.node(entry.node());
        [haproxy(node, task, ports), nginx(node, task, ports)]
    };
    let proxies = Entry::ALL.into_iter().flat_map(on).collect();
    for entry in Entry::ALL {
        for first in [HAPROXY, NGINX] {
            let to = SocketAddr::from((cluster.node(entry.node()).address(), first + ports - 1));
            let client = &cluster.world.netns;
            wait_until(PATIENCE, "a proxy answers", || client.run(move || web::fetch(to, "/small")));
        }
    }
    proxies
}

fn start(node: &Node, program: &str, name: &str, config: &str, flags: &[&str]) -> Program {
    let path = node.path(name);
    std::fs::write(&path, config).unwrap();
    let arguments = [flags, &[path.to_str().unwrap()]].concat();
    Program::start(&node.netns, &node.path(&format!("{name}.log")), program, &arguments)
}

/// Without a log, otherwise as it comes.
fn haproxy(node: &Node, task: Ipv4Addr, ports: u16) -> Program {
    let config = format!(
        "global\n  maxconn 4000\n\
         defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n\
         listen mesh\n  bind :{HAPROXY}-{}\n  server task {task}:{TASK}\n",
        HAPROXY + ports - 1
    );
    start(node, "haproxy", "haproxy.cfg", &config, &["-db", "-f"])
}

/// The same.
fn nginx(node: &Node, task: Ipv4Addr, ports: u16) -> Program {
    let config = format!(
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\nuser root;\ndaemon off;\n\
         worker_processes auto;\nerror_log stderr crit;\npid {};\n\
         events {{ worker_connections 15000; }}\n\
         stream {{ server {{ listen {NGINX}-{}; proxy_pass {task}:{TASK}; }} }}\n",
        node.path("nginx.pid").display(),
        NGINX + ports - 1
    );
    start(node, "nginx", "nginx.conf", &config, &["-e", "stderr", "-c"])
}
