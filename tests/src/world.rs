//! Everything outside the nodes: a DNS server, a web server, clients, and the bridge that joins the
//! nodes. One namespace, no way out of it.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use crate::Netns;
use crate::dns::{Stub, bind};

/// The address of a world's first node, on its `eth0`; the others follow.
pub const NODE: Ipv4Addr = node_address(1);
/// The world's own address on the bridge, every node's default gateway.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// A client that reaches the node through the gateway.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
/// The same in IPv6 (RFC 3849).
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 1);
pub const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 113, 0, 0, 0, 0, 7);
/// A web server that says who asked.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 80);
/// Its name in the outside DNS.
pub const OUTSIDE_NAME: &str = "www.outside.example";
/// The outside DNS server.
pub const DNS_SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 53);

/// Joins the nodes' links.
const BRIDGE: &str = "nodes";
/// Set, so that it does not change with the links that come and go.
const BRIDGE_MAC: &str = "02:00:c0:00:02:01";

/// The address of a world's Nth node, counted from 1.
pub const fn node_address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, 9 + number)
}

/// The same in IPv6.
pub const fn node_address_v6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 9 + number as u16)
}

/// The world's end of a node's link.
fn port(number: u8) -> String {
    format!("node{number}")
}

/// The names that reached the outside DNS server.
type Asked = Arc<Mutex<Vec<String>>>;

pub struct World {
    pub netns: Netns,
    asked: Asked,
}

impl World {
    pub fn new() -> Self {
        let netns = Netns::new();
        for address in [CLIENT, OUTSIDE, DNS_SERVER] {
            netns.ip(&["addr", "add", &format!("{address}/32"), "dev", "lo"]);
        }
        netns.ip(&["addr", "add", &format!("{CLIENT_V6}/128"), "dev", "lo"]);
        netns.ip(&["link", "add", BRIDGE, "address", BRIDGE_MAC, "type", "bridge"]);
        netns.ip(&["addr", "add", &format!("{GATEWAY}/24"), "dev", BRIDGE]);
        netns.ip(&["addr", "add", &format!("{GATEWAY_V6}/64"), "dev", BRIDGE, "nodad"]);
        netns.ip(&["link", "set", BRIDGE, "up"]);
        let world = Self { netns, asked: Asked::default() };
        world.serve_dns();
        world.serve_machines_dns();
        world.serve_web();
        world
    }

    /// Joins the namespace of the Nth node to the world: `eth0` there, address and default route set.
    pub fn connect(&self, node: &Netns, number: u8) {
        let (path, port) = (node.path(), port(number));
        let path = path.to_str().unwrap();
        self.netns.ip(&["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", path]);
        self.netns.ip(&["link", "set", &port, "master", BRIDGE, "up"]);
        node.ip(&["addr", "add", &format!("{}/24", node_address(number)), "dev", "eth0"]);
        node.ip(&["addr", "add", &format!("{}/64", node_address_v6(number)), "dev", "eth0", "nodad"]);
        // The strictest that a machine may be (`ip-sysctl.rst`).
        node.run(|| {
            for link in ["all", "default", "eth0"] {
                std::fs::write(format!("/proc/sys/net/ipv4/conf/{link}/rp_filter"), "1").unwrap();
            }
        });
        node.ip(&["link", "set", "eth0", "up"]);
        node.ip(&["route", "add", "default", "via", &GATEWAY.to_string()]);
        node.ip(&["-6", "route", "add", "default", "via", &GATEWAY_V6.to_string()]);
    }

    /// Takes the Nth node's link away, with its addresses and routes.
    pub fn disconnect(&self, number: u8) {
        self.netns.ip(&["link", "del", &port(number)]);
    }

    /// A partition: the Nth node hears nothing and is heard by nobody, and keeps all it has.
    pub fn cut(&self, number: u8) {
        self.netns.ip(&["link", "set", &port(number), "down"]);
    }

    /// Ends the partition.
    pub fn restore(&self, number: u8) {
        self.netns.ip(&["link", "set", &port(number), "up"]);
    }

    /// Names that the outside DNS server was asked for so far.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    /// A connection from [`CLIENT`] or [`CLIENT_V6`], addresses that are routed to the node and not on its
    /// link.
    pub fn connect_from_client(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        let source = if to.is_ipv4() { CLIENT.into() } else { CLIENT_V6.into() };
        self.netns.run(move || connect_from(source, to))
    }

    fn serve_dns(&self) {
        let stub = Stub { names: vec![(OUTSIDE_NAME.to_owned(), OUTSIDE)] };
        let (udp, tcp) = self.netns.run(|| bind(SocketAddr::from((DNS_SERVER, 53))).unwrap());
        let (over_udp, over_tcp) = (stub.clone(), stub);
        let (seen_udp, seen_tcp) = (self.asked.clone(), self.asked.clone());
        std::thread::spawn(move || over_udp.serve_udp(&udp, |name| seen_udp.lock().unwrap().push(name)));
        std::thread::spawn(move || {
            for stream in tcp.incoming().flatten() {
                let (stub, seen) = (over_tcp.clone(), seen_tcp.clone());
                std::thread::spawn(move || stub.serve_tcp(stream, |name| seen.lock().unwrap().push(name)));
            }
        });
    }

    /// The machine's own name servers, which know nothing here: what a daemon asks by itself it asks them, and
    /// it would wait for one that is not there.
    fn serve_machines_dns(&self) {
        let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        let named = text.lines().filter_map(|line| line.strip_prefix("nameserver ")?.trim().parse().ok());
        for address in named.filter(|address: &Ipv4Addr| !address.is_loopback()) {
            self.netns.ip(&["addr", "add", &format!("{address}/32"), "dev", "lo"]);
            let (udp, _) = self.netns.run(move || bind(SocketAddr::from((address, 53))).unwrap());
            std::thread::spawn(move || Stub { names: Vec::new() }.serve_udp(&udp, drop));
        }
    }

    fn serve_web(&self) {
        let listener = self.netns.run(|| TcpListener::bind((OUTSIDE, 80)).unwrap());
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let peer = stream.peer_addr().map_or_else(|_| String::new(), |peer| peer.ip().to_string());
                let _ = stream.read(&mut [0; 1024]);
                let _ = write!(
                    stream,
                    "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\noutside saw {peer}\n",
                    "outside saw \n".len() + peer.len()
                );
            }
        });
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

/// A connection with a chosen source address, which the standard library cannot make.
fn connect_from(source: IpAddr, to: SocketAddr) -> std::io::Result<TcpStream> {
    use std::os::fd::AsRawFd;

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, socket};
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let made = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    bind(made.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(source, 0)))?;
    connect(made.as_raw_fd(), &SockaddrStorage::from(to))?;
    Ok(TcpStream::from(made))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::web::{fetch, fetch_over};

    const BRIEFLY: std::time::Duration = std::time::Duration::from_millis(500);

    #[test]
    fn a_node_reaches_the_world_and_only_the_world() {
        let (world, node) = (World::new(), Netns::new());
        world.connect(&node, 1);
        assert_eq!(node.run(|| fetch((OUTSIDE, 80), "/")).unwrap(), format!("outside saw {}", crate::NODE));
        let beyond = node.run(|| fetch((Ipv4Addr::new(192, 88, 99, 1), 80), "/"));
        assert!(beyond.is_err(), "{beyond:?}");
        let listener = node.run(|| TcpListener::bind((NODE, 80)).unwrap());
        let accepted = std::thread::spawn(move || {
            let (mut server, peer) = listener.accept().unwrap();
            let _ = server.read(&mut [0; 256]).unwrap();
            server.write_all(b"HTTP/1.0 200 OK\r\n\r\nfine").unwrap();
            peer.ip()
        });
        let stream = world.connect_from_client((NODE, 80).into()).unwrap();
        assert_eq!(fetch_over(stream, "/").unwrap(), "fine");
        assert_eq!(accepted.join().unwrap(), CLIENT);
    }

    #[test]
    fn nodes_reach_each_other_unless_cut() {
        let (world, one, two) = (World::new(), Netns::new(), Netns::new());
        world.connect(&one, 1);
        world.connect(&two, 2);
        let listener = two.run(|| TcpListener::bind((node_address(2), 80)).unwrap());
        let reach = || one.run(|| TcpStream::connect_timeout(&(node_address(2), 80).into(), BRIEFLY));
        reach().unwrap();
        world.cut(2);
        reach().unwrap_err();
        world.restore(2);
        crate::wait_until(crate::PATIENCE, "the link works again", || {
            reach().map_err(|error| error.to_string())
        });
        drop(listener);
    }
}
