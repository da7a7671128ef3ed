//! A UDP socket to one server, shared by many questions.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::sockopt::RcvBufForce;
use nix::sys::socket::{self, MsgFlags};
use rand::Rng;
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::wire::{Response, readdress};

/// After this a socket gives way to one on another port…
const LIFE: Duration = Duration::from_secs(30);
/// …or after so many questions: the fewer share a port, the less does it help to know one.
const QUESTIONS_MAX: u32 = 64;

/// The kernel's room for answers that wait, in bytes of its own accounting.
const RECEIVE_BYTES: usize = 1 << 20;

thread_local! {
    /// Room for the largest datagram, shared by the lanes read on this thread.
    static DATAGRAM: RefCell<Vec<u8>> = RefCell::new(vec![0; 1 << 16]);
}

/// What became of a question.
#[derive(Debug)]
pub(super) enum Event {
    Answer {
        server: usize,
        packet: Vec<u8>,
    },
    /// The kernel says that nobody listens there, or that there is no way.
    Broken {
        server: usize,
    },
}

/// One socket, connected to its server so that the kernel drops what others send; on a source port of
/// the kernel's random choice.
#[derive(Debug)]
pub(super) struct Lane {
    shared: Arc<Shared>,
    opened: Instant,
    /// Questions that were sent.
    used: AtomicU32,
    reader: AbortHandle,
}

#[derive(Debug)]
struct Shared {
    server: usize,
    socket: UdpSocket,
    /// By id on the wire. Held for moments only, never across an await.
    waiting: Mutex<HashMap<u16, Waiter>>,
}

#[derive(Debug)]
struct Waiter {
    question: Box<[u8]>,
    /// Taken by the first event. The entry itself stays until its ticket is dropped, so that nobody
    /// else gets the id before.
    to: Option<mpsc::Sender<Event>>,
}

/// A question on its way; dropping it stops waiting for the answer.
#[derive(Debug)]
pub(super) struct Ticket {
    lane: Arc<Lane>,
    id: u16,
}

impl Lane {
    /// Opens a socket to the server at place `server` of its list, in the current namespace.
    pub(super) fn open(server: usize, address: SocketAddr, now: Instant) -> io::Result<Arc<Self>> {
        let any: SocketAddr = match address {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = std::net::UdpSocket::bind(any)?;
        // Answers come in bursts, too. Not being allowed to is no reason not to ask.
        let _ = socket::setsockopt(&socket, RcvBufForce, &RECEIVE_BYTES);
        socket.connect(address)?;
        socket.set_nonblocking(true)?;
        let socket = UdpSocket::from_std(socket)?;
        let shared = Arc::new(Shared { server, socket, waiting: Mutex::default() });
        let reader = tokio::spawn(read(shared.clone())).abort_handle();
        Ok(Arc::new(Self { shared, opened: now, used: AtomicU32::new(0), reader }))
    }

    /// Further questions may go this way.
    pub(super) fn is_fresh(&self, now: Instant) -> bool {
        now < self.opened + LIFE && self.used.load(Ordering::Relaxed) < QUESTIONS_MAX
    }

    /// Sends the query under a random id of its own. Events go to `to`.
    pub(super) fn send(
        self: &Arc<Self>,
        packet: &[u8],
        question: &[u8],
        to: &mpsc::Sender<Event>,
    ) -> io::Result<Ticket> {
        let id = {
            let mut waiting = self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            let mut random = rand::rng();
            let mut id: u16 = random.random();
            while waiting.contains_key(&id) {
                id = random.random();
            }
            waiting.insert(id, Waiter { question: question.into(), to: Some(to.clone()) });
            id
        };
        self.used.fetch_add(1, Ordering::Relaxed);
        let ticket = Ticket { lane: self.clone(), id };
        let mut packet = packet.to_vec();
        readdress(&mut packet, id, question, 0);
        // Not tokio's `try_send`, which sends nothing on a socket it has not polled yet.
        match socket::send(self.shared.socket.as_raw_fd(), &packet, MsgFlags::MSG_DONTWAIT) {
            // A full send buffer is a lost packet; whoever waits sends again.
            Ok(_) | Err(Errno::EAGAIN) => Ok(ticket),
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let shared = &self.lane.shared;
        shared.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

/// Hands answers to those who wait for them, as long as the lane lives.
async fn read(shared: Arc<Shared>) {
    let socket = &shared.socket;
    // An error alone (port unreachable) does not make a socket readable.
    while let Ok(ready) = socket.ready(Interest::READABLE | Interest::ERROR).await {
        if ready.is_error() {
            // Marks the event as seen; there is nothing to try.
            let _ = socket.try_io(Interest::ERROR, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
            if !matches!(socket.take_error(), Ok(None)) {
                shared.fail_all();
            }
        }
        let received = DATAGRAM
            .with_borrow_mut(|buffer| socket.try_recv(buffer).map(|length| buffer[..length].to_vec()));
        match received {
            Ok(packet) => shared.deliver(packet),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => shared.fail_all(),
        }
    }
}

impl Shared {
    /// An answer counts when both its id and its question are those of a query in flight; anything
    /// else is a guess or too late.
    fn deliver(&self, packet: Vec<u8>) {
        let Some(response) = Response::parse(&packet) else { return };
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let id = response.id();
        let Some(waiter) = waiting.get_mut(&id).filter(|waiter| response.answers(&waiter.question)) else {
            return;
        };
        if let Some(to) = waiter.to.take() {
            // Full or closed: the asker has its answer already.
            let _ = to.try_send(Event::Answer { server: self.server, packet });
        }
    }

    fn fail_all(&self) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        for waiter in waiting.values_mut() {
            if let Some(to) = waiter.to.take() {
                let _ = to.try_send(Event::Broken { server: self.server });
            }
        }
    }
}
