//! One served sandbox: sockets inside its namespace, and the loops that answer on them.

use std::io;
use std::sync::Arc;

use arc_swap::ArcSwap;
use hickory_proto::op::ResponseCode;
use rand::rngs::SmallRng;
use shoal_model::NameCounts;
use shoal_model::trace::Lookup;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;

use crate::answer::{Transport, Verdict, answer, refuse};
use crate::feed::{DnsPorts, SandboxState, SandboxView};
use crate::forward::{Forwarder, Pool};
use crate::tally::Tally;
use crate::trace::trace;
use crate::view::View;

mod socket;
mod tcp;
mod udp;

pub(crate) use socket::{Namespace, Sockets};

/// Questions of one sandbox in flight; Docker's bound. More are refused at once.
const IN_FLIGHT_MAX: usize = 1024;

/// A sandbox being served, until it is dropped.
#[derive(Debug)]
pub(crate) struct Sandbox {
    pub(crate) state: SandboxState,
    namespace: Namespace,
    serving: Arc<Serving>,
    loops: [AbortHandle; 2],
}

/// What the loops of one sandbox share.
#[derive(Debug)]
struct Serving {
    sight: ArcSwap<Sight>,
    forwarder: Arc<Forwarder>,
    in_flight: Arc<Semaphore>,
    tally: Arc<Tally>,
}

/// What the sandbox sees and where its other names are asked.
#[derive(Debug)]
struct Sight {
    view: View,
    /// `None`: the node's servers.
    own_pool: Option<Arc<Pool>>,
}

/// What a query has come to.
enum Handled {
    /// The reply is in the scratch buffer.
    Reply,
    Ask(Question),
    Nothing,
}

/// A question to other servers, with its place among those in flight.
struct Question {
    pool: Arc<Pool>,
    packet: Vec<u8>,
    transport: Transport,
    tally: Arc<Tally>,
    _permits: [OwnedSemaphorePermit; 2],
}

impl Sandbox {
    /// Begins to answer on the sockets.
    pub(crate) fn start(
        feed: SandboxView,
        view: View,
        sockets: Sockets,
        forwarder: Arc<Forwarder>,
    ) -> io::Result<Self> {
        let ports = sockets.ports()?;
        let udp = Arc::new(UdpSocket::from_std(sockets.udp)?);
        let tcp = TcpListener::from_std(sockets.tcp)?;
        let sight = ArcSwap::from_pointee(Sight::new(&feed, view, &forwarder));
        let in_flight = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
        let serving = Arc::new(Serving { sight, forwarder, in_flight, tally: Arc::default() });
        let loops = [
            tokio::spawn(udp::serve(udp, serving.clone())).abort_handle(),
            tokio::spawn(tcp::serve(tcp, serving.clone())).abort_handle(),
        ];
        let state = SandboxState { view: feed, ports };
        Ok(Self { state, namespace: sockets.namespace, serving, loops })
    }

    /// Changes what is seen, with the next query.
    pub(crate) fn set_view(&mut self, feed: SandboxView, view: View) {
        self.serving.sight.store(Arc::new(Sight::new(&feed, view, &self.serving.forwarder)));
        self.state.view = feed;
    }

    /// The sockets are in this very namespace.
    pub(crate) fn is_in(&self, namespace: Namespace) -> bool {
        self.namespace == namespace
    }

    /// What it would answer now, and how it comes to that.
    pub(crate) fn trace(&self, name: &str) -> Lookup {
        let sight = self.serving.sight.load();
        trace(&sight.view, &sight.pool(&self.serving.forwarder), name)
    }

    /// What became of its questions so far.
    pub(crate) fn counts(&self) -> NameCounts {
        self.serving.tally.counts()
    }

    pub(crate) fn ports(&self) -> DnsPorts {
        self.state.ports
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.loops.iter().for_each(AbortHandle::abort);
        self.serving.forwarder.keep_counts(self.counts());
    }
}

impl Sight {
    fn new(feed: &SandboxView, view: View, forwarder: &Forwarder) -> Self {
        let own_pool = (!feed.upstreams.is_empty()).then(|| forwarder.pool_of(&feed.upstreams));
        Self { view, own_pool }
    }

    /// Who is asked for names that are not ours.
    fn pool(&self, forwarder: &Forwarder) -> Arc<Pool> {
        self.own_pool.clone().unwrap_or_else(|| forwarder.node_pool())
    }
}

impl Serving {
    /// Decides on a packet; a reply goes to `reply`.
    fn handle(
        &self,
        packet: &[u8],
        transport: Transport,
        random: &mut SmallRng,
        reply: &mut Vec<u8>,
    ) -> Handled {
        let sight = self.sight.load();
        match answer(&sight.view, packet, transport, random, reply) {
            Verdict::Local => {
                self.tally.local.raise();
                Handled::Reply
            }
            Verdict::Ignore => {
                self.tally.ignored.raise();
                Handled::Nothing
            }
            Verdict::Forward => {
                let pool = sight.pool(&self.forwarder);
                self.forward(packet, transport, pool, reply)
            }
        }
    }

    fn forward(&self, packet: &[u8], transport: Transport, pool: Arc<Pool>, reply: &mut Vec<u8>) -> Handled {
        if pool.recall(packet, transport, reply) {
            self.tally.cached.raise();
            return Handled::Reply;
        }
        let refused = if pool.servers().is_empty() {
            self.tally.failed.raise();
            ResponseCode::ServFail
        } else {
            let permits = self.in_flight.clone().try_acquire_owned().ok().zip(self.forwarder.admit());
            if let Some((own, all)) = permits {
                let (packet, tally) = (packet.to_vec(), self.tally.clone());
                tally.forwarded.raise();
                return Handled::Ask(Question { pool, packet, transport, tally, _permits: [own, all] });
            }
            self.tally.refused.raise();
            ResponseCode::Refused
        };
        match refuse(packet, refused, reply) {
            Some(()) => Handled::Reply,
            None => Handled::Nothing,
        }
    }
}

impl Question {
    /// The servers' answer, or SERVFAIL.
    async fn ask(self) -> Vec<u8> {
        if let Some(reply) = self.pool.ask(&self.packet, self.transport).await {
            return reply;
        }
        self.tally.failed.raise();
        let mut reply = Vec::new();
        refuse(&self.packet, ResponseCode::ServFail, &mut reply);
        reply
    }
}
