//! What clients on every node see, over and over, and when.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use shoal_e2e::dns::{A, Transport, ask};
use shoal_e2e::load::Load;
use shoal_e2e::web::fetch_within;
use shoal_e2e::{Cluster, Netns};

/// Names are asked for more often: an answer costs a tenth of a connection.
const QUESTIONS_PER_SECOND: u32 = 200;
const CONNECTIONS_PER_SECOND: u32 = 50;
/// Enough that those who wait for a lost node do not keep others from trying.
const CONNECTING: u32 = 48;
/// A connection that is not there by then is led to where nobody answers: on a busy machine the first
/// packet may be sent twice.
pub(crate) const BOUND: Duration = Duration::from_secs(3);

/// One look from one node.
#[derive(Debug, Clone)]
struct Sample<T> {
    node: u8,
    began: Instant,
    ended: Instant,
    seen: T,
}

type Samples<T> = Arc<Mutex<Vec<Sample<T>>>>;

/// Clients on several nodes: each asks for a name, and connects to a virtual address.
pub(crate) struct Watch {
    names: Samples<Vec<IpAddr>>,
    /// Whether the connection was answered.
    connections: Samples<bool>,
    nodes: Vec<u8>,
    loads: Vec<Load>,
}

/// Where an effect is looked for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place {
    Names,
    Connections,
}

impl Watch {
    /// From the clients of all nodes but `absent`; on networks where `service` has a virtual address.
    pub(crate) fn start(clients: &[(u8, Netns)], service: &str, vip: Ipv4Addr) -> Self {
        let (names, connections) = (Samples::default(), Samples::default());
        let mut loads = Vec::new();
        for (node, client) in clients {
            let name = format!("tasks.{service}");
            loads.push(record(client, *node, 1, QUESTIONS_PER_SECOND, &names, move || {
                ask(&name, A, Transport::Udp).map(|answer| answer.addresses()).unwrap_or_default()
            }));
            loads.push(record(client, *node, CONNECTING, CONNECTIONS_PER_SECOND, &connections, move || {
                fetch_within(BOUND, (vip, 80), "/index.html").is_ok()
            }));
        }
        Self { names, connections, nodes: clients.iter().map(|(node, _)| *node).collect(), loads }
    }

    /// How long after `event` a client anywhere could still notice that `address` was there, or that a
    /// connection was led to where nobody answers. No later than this it was gone everywhere.
    pub(crate) fn gone(&self, place: Place, event: Instant, address: Ipv4Addr) -> Duration {
        let ends: Vec<Instant> = match place {
            Place::Names => {
                let names = self.names.lock().unwrap();
                names.iter().filter(|s| s.seen.contains(&address.into())).map(|s| s.ended).collect()
            }
            Place::Connections => {
                let connections = self.connections.lock().unwrap();
                connections.iter().filter(|s| !s.seen).map(|s| s.ended).collect()
            }
        };
        ends.into_iter().max().map_or(Duration::ZERO, |last| last.saturating_duration_since(event))
    }

    /// How long after `event` the last connection began that nobody answered.
    pub(crate) fn last_failure(&self, event: Instant) -> Duration {
        let connections = self.connections.lock().unwrap();
        let began = connections.iter().filter(|s| !s.seen).map(|s| s.began).max();
        began.map_or(Duration::ZERO, |last| last.saturating_duration_since(event))
    }

    /// When the last node saw the effect for the first time: the name leads to `address`, a connection
    /// is answered. `None` while one has not.
    pub(crate) fn there(&self, place: Place, address: Ipv4Addr) -> Option<Instant> {
        let first = |node: u8| match place {
            Place::Names => {
                let names = self.names.lock().unwrap();
                names
                    .iter()
                    .filter(|s| s.node == node && s.seen.contains(&address.into()))
                    .map(|s| s.ended)
                    .min()
            }
            Place::Connections => {
                let connections = self.connections.lock().unwrap();
                connections.iter().filter(|s| s.node == node && s.seen).map(|s| s.ended).min()
            }
        };
        let firsts: Option<Vec<Instant>> = self.nodes.iter().map(|node| first(*node)).collect();
        firsts?.into_iter().max()
    }

    /// Waits for what is under way, so that every sample is in.
    pub(crate) fn stop(&mut self) {
        // All at once: waiting for one after the other takes its time.
        self.loads.iter().for_each(Load::halt);
        self.loads.drain(..).for_each(|load| drop(load.stop()));
    }
}

/// Looks `per_second` times a second from inside a namespace and keeps what was seen.
fn record<T: Send + 'static>(
    netns: &Netns,
    node: u8,
    workers: u32,
    per_second: u32,
    samples: &Samples<T>,
    look: impl Fn() -> T + Send + Sync + 'static,
) -> Load {
    let samples = samples.clone();
    Load::start(netns, workers, per_second, move || {
        let began = Instant::now();
        let seen = look();
        samples.lock().unwrap().push(Sample { node, began, ended: Instant::now(), seen });
        Ok(())
    })
}

/// The network namespaces of the clients of all nodes.
pub(crate) fn clients(cluster: &Cluster) -> Vec<(u8, Netns)> {
    cluster
        .nodes()
        .map(|node| (node.number, node.running(&format!("client-{}", node.number), 1)[0].netns()))
        .collect()
}
