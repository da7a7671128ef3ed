//! Ports of the routing mesh beside the node's other programs.
//!
//! A published port that is free on this node is held by a socket which is bound to it and on which nobody
//! listens: no other program gets it. One that another program listens on stays that program's: this node leads
//! nobody from it to the tasks, says so, and takes it as soon as it is free. The other nodes serve it meanwhile.
//! See docs/decisions/0016-ports-of-other-programs.md.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use shoal_model::{NetworkTable, Port, Protocol, PublishMode};
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::host_ports::hold;
use crate::tables::Tables;

/// Between two looks at ports that could not be held: whoever has one tells nobody when it ends.
const RETRY: Duration = Duration::from_secs(1);

/// How it stands with the published ports on this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PortsHeld {
    /// Those that another program has.
    pub taken: BTreeSet<Port>,
    /// How many are not held by this node.
    pub waiting: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Published {
    wanted: BTreeSet<Port>,
    held: BTreeMap<Port, OwnedFd>,
    taken: BTreeSet<Port>,
    /// Those that could not be held for another reason, which was told.
    failed: BTreeSet<Port>,
}

impl Published {
    /// The table as this node can serve it: without the ports that other programs have. The ports of a table that
    /// comes are held at once, those of the one before until [`settle`](Self::settle).
    pub(crate) fn serve(&mut self, table: Arc<NetworkTable>) -> Arc<NetworkTable> {
        if !table.config.ingress {
            return table;
        }
        self.wanted = keys(&table).collect();
        self.take();
        if self.taken.is_empty() { table } else { Arc::new(without(&table, &self.taken)) }
    }

    /// The network that carries ports, as it is in force now (`None`: it is gone): what it does not lead any more
    /// is anybody's.
    pub(crate) fn settle(&mut self, in_force: Option<&NetworkTable>) {
        let led: BTreeSet<Port> = in_force.into_iter().flat_map(keys).collect();
        if in_force.is_none() {
            self.wanted.clear();
            self.taken.clear();
        }
        let Self { wanted, held, .. } = self;
        held.retain(|port, _| led.contains(port) || wanted.contains(port));
    }

    /// Tries anew for the ports that are not held; whether another program has begun or ended to have one.
    pub(crate) fn retry(&mut self) -> bool {
        let before = self.taken.clone();
        self.take();
        self.taken != before
    }

    /// Somebody else of this node is to have the port.
    pub(crate) fn give_up(&mut self, port: Port) {
        self.held.remove(&port);
    }

    pub(crate) fn standing(&self) -> PortsHeld {
        let waiting = self.wanted.iter().filter(|port| !self.held.contains_key(port)).count();
        PortsHeld { taken: self.taken.clone(), waiting }
    }

    /// Holds what is wanted and free, and finds out who has the others.
    fn take(&mut self) {
        self.taken.retain(|port| self.wanted.contains(port));
        self.failed.retain(|port| self.wanted.contains(port) && !self.held.contains_key(port));
        let missing: Vec<Port> =
            self.wanted.iter().filter(|port| !self.held.contains_key(port)).copied().collect();
        for port in missing {
            let Port { protocol, number } = port;
            let is_taken = match hold(protocol, number) {
                Ok((socket, _)) => {
                    self.held.insert(port, socket);
                    false
                }
                Err(Error::PortTaken { .. }) => is_served(port),
                Err(error) => {
                    if self.failed.insert(port) {
                        tracing::warn!(%port, %error, "cannot keep a published port from the node's other programs");
                    }
                    false
                }
            };
            if is_taken && self.taken.insert(port) {
                tracing::warn!(%port, "another program on this node has a published port, and keeps it");
            }
            if !is_taken && self.taken.remove(&port) {
                tracing::info!(%port, "the published port is free on this node, and taken");
            }
        }
    }
}

fn keys(table: &NetworkTable) -> impl Iterator<Item = Port> {
    let ports = table.services.values().flat_map(|service| &service.ports);
    let of_mesh = ports.filter(|port| port.mode == PublishMode::Ingress);
    of_mesh.map(|port| Port { protocol: port.protocol, number: port.published })
}

/// The table without these ports.
fn without(table: &NetworkTable, taken: &BTreeSet<Port>) -> NetworkTable {
    let mut table = table.clone();
    for service in table.services.values_mut() {
        service
            .ports
            .retain(|port| !taken.contains(&Port { protocol: port.protocol, number: port.published }));
    }
    table
}

/// Somebody takes connections or datagrams from strangers there. A connection of a client that happens to have the
/// port, or one that a program left open when it ended, is in nobody's way: its packets are told from others.
fn is_served(port: Port) -> bool {
    let tables = match port.protocol {
        Protocol::Tcp => ["tcp", "tcp6"],
        Protocol::Udp => ["udp", "udp6"],
    };
    let read = |name| std::fs::read_to_string(format!("/proc/thread-self/net/{name}"));
    tables.into_iter().any(|name| read(name).is_ok_and(|text| serves(&text, port)))
}

/// Whether one of the sockets of a table of /proc/net serves there.
fn serves(sockets: &str, port: Port) -> bool {
    /// Of /proc/net/tcp; a datagram socket without a peer is in the other.
    const LISTENING: &str = "0A";
    const UNCONNECTED: &str = "07";
    let state = match port.protocol {
        Protocol::Tcp => LISTENING,
        Protocol::Udp => UNCONNECTED,
    };
    let suffix = format!(":{:04X}", port.number);
    sockets.lines().skip(1).any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, _, found) = (fields.next(), fields.next(), fields.next());
        local.is_some_and(|local| local.ends_with(&suffix)) && found == Some(state)
    })
}

/// Looks again at ports that could not be held, as long as there are some, until the node closes.
pub(crate) async fn watch(tables: Arc<Tables>, closing: CancellationToken) {
    let mut standing = tables.ports_held();
    let retry = async {
        while standing.wait_for(|ports| ports.waiting > 0).await.is_ok() {
            tokio::time::sleep(RETRY).await;
            tables.retry_ports();
        }
    };
    closing.run_until_cancelled(retry).await;
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};

    use shoal_model::{PortConfig, ServiceEntry, ServiceId};

    use super::*;
    use crate::testing;

    fn table(published: &[Port]) -> Arc<NetworkTable> {
        let mut table = testing::table("ingress", 1);
        table.config.ingress = true;
        let port = |port: &Port| PortConfig {
            protocol: port.protocol,
            target: 80,
            published: port.number,
            mode: PublishMode::Ingress,
            ..PortConfig::default()
        };
        let entry = ServiceEntry {
            name: "web".into(),
            aliases: Vec::new(),
            vip: None,
            vip_v6: None,
            ports: published.iter().map(port).collect(),
            backends: BTreeSet::new(),
            others: Default::default(),
            policy: Default::default(),
        };
        table.services.insert(ServiceId::new("s1"), entry);
        Arc::new(table)
    }

    fn tcp(number: u16) -> Port {
        Port { protocol: Protocol::Tcp, number }
    }

    fn led(table: &NetworkTable) -> BTreeSet<Port> {
        keys(table).collect()
    }

    /// A number that was free a moment ago.
    fn free() -> u16 {
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap().local_addr().unwrap().port()
    }

    #[test]
    fn a_free_port_is_kept_from_others_until_it_leads_nowhere() {
        let (port, mut published) = (tcp(free()), Published::default());
        let served = published.serve(table(&[port]));
        assert_eq!(led(&served), BTreeSet::from([port]));
        assert_eq!(published.standing(), PortsHeld::default());
        let attempt = || TcpListener::bind((Ipv4Addr::LOCALHOST, port.number)).map(drop);
        let attempt_v6 = || TcpListener::bind((Ipv6Addr::LOCALHOST, port.number)).map(drop);
        assert!(attempt().is_err() && attempt_v6().is_err());
        published.settle(Some(&served));
        assert!(attempt().is_err());

        let next = published.serve(table(&[]));
        assert!(attempt().is_err(), "the last table is in force still");
        published.settle(Some(&next));
        attempt().unwrap();
    }

    #[test]
    fn a_port_that_a_program_listens_on_is_its_own_until_it_ends() {
        let other = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (taken, free) = (tcp(other.local_addr().unwrap().port()), tcp(free()));
        let mut published = Published::default();
        assert_eq!(led(&published.serve(table(&[taken, free]))), BTreeSet::from([free]));
        let standing = PortsHeld { taken: BTreeSet::from([taken]), waiting: 1 };
        assert_eq!(published.standing(), standing);
        assert!(!published.retry(), "nothing new");
        drop(other);
        assert!(published.retry(), "free");
        assert_eq!(led(&published.serve(table(&[taken, free]))), BTreeSet::from([taken, free]));
        assert_eq!(published.standing(), PortsHeld::default());
    }

    #[test]
    fn a_published_port_that_is_none_any_more_is_in_nobodys_way() {
        let other = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let taken = Port { protocol: Protocol::Udp, number: other.local_addr().unwrap().port() };
        let mut published = Published::default();
        published.serve(table(&[taken]));
        assert_eq!(published.standing().taken, BTreeSet::from([taken]));
        let served = published.serve(table(&[]));
        published.settle(Some(&served));
        assert_eq!(published.standing(), PortsHeld::default());
        published.serve(table(&[taken]));
        published.settle(None);
        assert_eq!(published.standing(), PortsHeld::default());
    }

    /// The number of a client's own end is no service: the mesh takes new connections there.
    #[test]
    fn a_client_that_happens_to_have_the_number_is_no_reason_to_withhold_it() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let port = tcp(client.local_addr().unwrap().port());
        let mut published = Published::default();
        assert_eq!(led(&published.serve(table(&[port]))), BTreeSet::from([port]));
        assert_eq!(published.standing(), PortsHeld { taken: BTreeSet::new(), waiting: 1 });
    }

    #[test]
    fn who_serves_is_read_from_the_kernels_tables() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
                    0: 0100007F:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100\n   \
                    1: 0100007F:1F41 0100007F:1F40 01 00000000:00000000 00:00000000 00000000     0        0 2 1 0 100\n";
        assert!(serves(text, tcp(8000)) && !serves(text, tcp(8001)) && !serves(text, tcp(800)));
        let udp = text.replace(" 0A ", " 07 ");
        assert!(serves(&udp, Port { protocol: Protocol::Udp, number: 8000 }));
    }
}
