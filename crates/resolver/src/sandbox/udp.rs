//! Questions over UDP: those that have come are taken together, and their answers are sent together.

use std::cell::RefCell;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmmsg};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::{Handled, Question, Serving};
use crate::answer::Transport;
use crate::wire::QUERY_BYTES_MAX;

/// Datagrams handled before other sandboxes get their turn.
const BATCH: usize = 32;

thread_local! {
    static WORK: RefCell<Work> = RefCell::new(Work::new());
}

/// Working memory of one thread; no query keeps any of it.
struct Work {
    packets: Vec<[u8; QUERY_BYTES_MAX]>,
    replies: Vec<Vec<u8>>,
    /// Whom the first of the replies are for.
    to: Vec<Option<SockaddrIn>>,
    received: MultiHeaders<SockaddrIn>,
    sent: MultiHeaders<SockaddrIn>,
    random: SmallRng,
}

pub(super) async fn serve(socket: Arc<UdpSocket>, serving: Arc<Serving>) {
    loop {
        if let Err(error) = socket.readable().await {
            tracing::error!(%error, "a sandbox's UDP socket is of no use any more");
            return;
        }
        match WORK.with_borrow_mut(|work| work.answer(&socket, &serving)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => tracing::debug!(%error, "a datagram could not be received"),
        }
    }
}

impl Work {
    fn new() -> Self {
        Self {
            packets: vec![[0; QUERY_BYTES_MAX]; BATCH],
            replies: vec![Vec::new(); BATCH],
            to: Vec::with_capacity(BATCH),
            received: MultiHeaders::preallocate(BATCH, None),
            sent: MultiHeaders::preallocate(BATCH, None),
            random: SmallRng::from_os_rng(),
        }
    }

    /// Answers what has come. `WouldBlock`: that was all, what comes next makes the socket readable anew.
    fn answer(&mut self, socket: &Arc<UdpSocket>, serving: &Serving) -> io::Result<()> {
        self.to.clear();
        let taken = socket.try_io(Interest::READABLE, || {
            let count = self.take(socket, serving)?;
            if count < BATCH { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
        });
        self.send(socket);
        taken
    }

    /// Takes what has come and handles it; questions for other servers go on by themselves. How many there were.
    fn take(&mut self, socket: &Arc<UdpSocket>, serving: &Serving) -> io::Result<usize> {
        let mut room: Vec<[IoSliceMut<'_>; 1]> =
            self.packets.iter_mut().map(|packet| [IoSliceMut::new(packet)]).collect();
        let flags = MsgFlags::MSG_DONTWAIT;
        let taken = recvmmsg(socket.as_raw_fd(), &mut self.received, &mut room, flags, None)?;
        let mut count = 0;
        for datagram in taken {
            count += 1;
            let (Some(packet), Some(from)) = (datagram.iovs().next(), datagram.address) else { continue };
            let reply = &mut self.replies[self.to.len()];
            match serving.handle(packet, Transport::Udp, &mut self.random, reply) {
                Handled::Reply => self.to.push(Some(from)),
                Handled::Ask(question) => {
                    let from = SocketAddr::from((from.ip(), from.port()));
                    tokio::spawn(ask(socket.clone(), from, question));
                }
                Handled::Nothing => {}
            }
        }
        Ok(count)
    }

    /// Sends the replies. One that cannot be sent is a lost packet to the client, which asks again.
    fn send(&mut self, socket: &UdpSocket) {
        let replies: Vec<[IoSlice<'_>; 1]> =
            self.replies.iter().take(self.to.len()).map(|reply| [IoSlice::new(reply)]).collect();
        let mut done = 0;
        while done < replies.len() {
            let (left, to) = (&replies[done..], &self.to[done..]);
            let sent = sendmmsg(socket.as_raw_fd(), &mut self.sent, left, to, [], MsgFlags::MSG_DONTWAIT);
            // An error is the first one's.
            done += sent.map_or(1, |sent| sent.count().max(1));
        }
    }
}

async fn ask(socket: Arc<UdpSocket>, from: SocketAddr, question: Question) {
    let reply = question.ask().await;
    if let Err(error) = socket.send_to(&reply, from).await {
        tracing::debug!(%error, bytes = reply.len(), "a reply could not be sent");
    }
}
