//! A list of servers and how a question is put to them.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use rand::Rng;
use shoal_model::trace::{Silence, Upstream, UpstreamHealth};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{timeout, timeout_at};

use super::cache::{self, Cache};
use super::health::{Health, Plan};
use super::lane::{Event, Lane, Ticket};
use crate::answer::{Transport, limit};
use crate::wire::{Query, Response, readdress};

/// A silent server is waited for this long before another one is asked as well.
const PATIENCE: Duration = Duration::from_secs(1);
/// When no server has answered by then, the client gets SERVFAIL; its own patience is five seconds.
const DEADLINE: Duration = Duration::from_secs(4);
/// Sockets per server that new questions go over.
const LANES: usize = 4;
/// Servers of a list that are used; the C library stops at three.
const SERVERS_MAX: usize = 8;
/// The port of DNS servers.
const DNS_PORT: u16 = 53;

/// Servers that are asked alike, what is known of them, and what they said.
#[derive(Debug)]
pub(crate) struct Pool {
    servers: Vec<IpAddr>,
    udp: Mutex<Health>,
    /// Kept apart: a server may well speak UDP only.
    tcp: Mutex<Health>,
    lanes: Vec<[Mutex<Option<Arc<Lane>>>; LANES]>,
    cache: Mutex<Cache>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // What these locks guard is whole after each statement, so a panic elsewhere does no harm.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    pub(crate) fn new(servers: &[IpAddr]) -> Self {
        let servers = servers[..servers.len().min(SERVERS_MAX)].to_vec();
        Self {
            udp: Mutex::new(Health::new(servers.len())),
            tcp: Mutex::new(Health::new(servers.len())),
            lanes: servers.iter().map(|_| Default::default()).collect(),
            cache: Mutex::default(),
            servers,
        }
    }

    pub(crate) fn servers(&self) -> &[IpAddr] {
        &self.servers
    }

    /// The servers as they stand now, in the order in which they would be asked over UDP.
    pub(crate) fn outlook(&self) -> Vec<Upstream> {
        let now = Instant::now();
        let silence = |retry_at: Instant| {
            let wait = retry_at.saturating_duration_since(now).as_millis();
            Silence { retry_in: u64::try_from(wait).unwrap_or(u64::MAX) }
        };
        let tcp: HashMap<usize, Option<Instant>> = lock(&self.tcp).outlook().into_iter().collect();
        let udp = lock(&self.udp).outlook();
        udp.into_iter()
            .map(|(server, retry_at)| Upstream {
                server: self.servers[server],
                udp: UpstreamHealth { silent: retry_at.map(silence) },
                tcp: UpstreamHealth { silent: tcp.get(&server).copied().flatten().map(silence) },
            })
            .collect()
    }

    /// Writes a kept answer into `out`, if there is one.
    pub(crate) fn recall(&self, packet: &[u8], transport: Transport, out: &mut Vec<u8>) -> bool {
        let Ok(query) = Query::parse(packet) else { return false };
        let limit = limit(&query, transport);
        cache::key(&query).is_some_and(|key| lock(&self.cache).get(&key, &query, limit, Instant::now(), out))
    }

    /// Asks the servers; the answer has the query's own id and spelling. `None`: nobody had one.
    pub(crate) async fn ask(self: &Arc<Self>, packet: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let query = Query::parse(packet).ok()?;
        let mut reply = match transport {
            Transport::Udp => self.ask_udp(packet, query.question()).await?,
            Transport::Tcp => self.ask_tcp(packet, query.question()).await?,
        };
        readdress(&mut reply, query.id(), query.question(), 0);
        if let Some(key) = cache::key(&query) {
            lock(&self.cache).put(key, &reply, Instant::now());
        }
        Some(reply)
    }

    async fn ask_udp(self: &Arc<Self>, packet: &[u8], question: &[u8]) -> Option<Vec<u8>> {
        let start = Instant::now();
        let Plan { order, probe } = lock(&self.udp).plan(start);
        let (to, mut events) = mpsc::channel(2 * order.len() + 2);
        // Each server's ticket; dropped with this call, whatever comes later is ignored.
        let mut tickets: Vec<Ticket> = Vec::new();
        let mut unasked = order.iter().copied();
        let mut silent: Vec<usize> = Vec::new();
        if let Some(server) = probe {
            tokio::spawn(self.clone().probe_udp(server, packet.to_vec(), question.to_vec()));
        }
        let deadline = start + DEADLINE;
        loop {
            match unasked.next() {
                Some(server) => match self.send(server, packet, question, &to) {
                    Some(ticket) => {
                        tickets.push(ticket);
                        silent.push(server);
                    }
                    None => continue,
                },
                // All have been asked: what is lost on the way is sent once more.
                None if silent.is_empty() => return None,
                None => {
                    for &server in &silent {
                        tickets.extend(self.send(server, packet, question, &to));
                    }
                }
            }
            let wait = (Instant::now() + PATIENCE).min(deadline);
            let next = self.await_answer(&mut events, wait, &mut silent).await;
            match next {
                Next::Answer(reply) => return Some(reply),
                Next::Another => {}
                Next::Silence => {
                    let now = Instant::now();
                    let mut health = lock(&self.udp);
                    silent.iter().for_each(|&server| health.failed(server, now));
                    if now >= deadline {
                        return None;
                    }
                }
            }
        }
    }

    /// Waits for the first useful answer, or until another server should be asked.
    async fn await_answer(
        &self,
        events: &mut mpsc::Receiver<Event>,
        until: Instant,
        silent: &mut Vec<usize>,
    ) -> Next {
        loop {
            match timeout_at(until.into(), events.recv()).await {
                Ok(Some(Event::Answer { server, packet })) => {
                    lock(&self.udp).answered(server);
                    if is_final(&packet) {
                        return Next::Answer(packet);
                    }
                    silent.retain(|&waiting| waiting != server);
                    return Next::Another;
                }
                Ok(Some(Event::Broken { server })) => {
                    lock(&self.udp).failed(server, Instant::now());
                    if silent.contains(&server) {
                        silent.retain(|&waiting| waiting != server);
                        return Next::Another;
                    }
                }
                Ok(None) | Err(_) => return Next::Silence,
            }
        }
    }

    /// Sees whether a failed server answers again. Apart from the question that gave rise to it, since
    /// that one will mostly be answered by a nearer server first.
    async fn probe_udp(self: Arc<Self>, server: usize, packet: Vec<u8>, question: Vec<u8>) {
        let (to, mut events) = mpsc::channel(1);
        let ticket = self.send(server, &packet, &question, &to);
        let event = timeout(PATIENCE, events.recv()).await;
        drop(ticket);
        match event {
            Ok(Some(Event::Answer { .. })) => lock(&self.udp).answered(server),
            _ => lock(&self.udp).failed(server, Instant::now()),
        }
    }

    /// Sends to one server; `None` when that failed at once.
    fn send(
        &self,
        server: usize,
        packet: &[u8],
        question: &[u8],
        to: &mpsc::Sender<Event>,
    ) -> Option<Ticket> {
        let now = Instant::now();
        let sent = self.lane(server, now).and_then(|lane| lane.send(packet, question, to));
        sent.inspect_err(|_| lock(&self.udp).failed(server, now)).ok()
    }

    /// One of the server's sockets, by chance.
    fn lane(&self, server: usize, now: Instant) -> io::Result<Arc<Lane>> {
        let mut slot = lock(&self.lanes[server][rand::rng().random_range(0..LANES)]);
        if let Some(lane) = slot.as_ref().filter(|lane| lane.is_fresh(now)) {
            return Ok(lane.clone());
        }
        let lane = Lane::open(server, self.address(server), now)?;
        *slot = Some(lane.clone());
        Ok(lane)
    }

    async fn ask_tcp(self: &Arc<Self>, packet: &[u8], question: &[u8]) -> Option<Vec<u8>> {
        let start = Instant::now();
        let Plan { order, probe } = lock(&self.tcp).plan(start);
        if let Some(server) = probe {
            tokio::spawn(self.clone().probe_tcp(server));
        }
        for server in order {
            let until = (Instant::now() + 2 * PATIENCE).min(start + DEADLINE);
            let exchange = exchange_tcp(self.address(server), packet, question);
            match timeout_at(until.into(), exchange).await {
                Ok(Ok(reply)) => {
                    lock(&self.tcp).answered(server);
                    if is_final(&reply) {
                        return Some(reply);
                    }
                }
                Ok(Err(_)) | Err(_) => lock(&self.tcp).failed(server, Instant::now()),
            }
        }
        None
    }

    /// Sees whether a failed server accepts connections again.
    async fn probe_tcp(self: Arc<Self>, server: usize) {
        match timeout(PATIENCE, TcpStream::connect(self.address(server))).await {
            Ok(Ok(_)) => lock(&self.tcp).answered(server),
            Ok(Err(_)) | Err(_) => lock(&self.tcp).failed(server, Instant::now()),
        }
    }

    fn address(&self, server: usize) -> SocketAddr {
        (self.servers[server], DNS_PORT).into()
    }
}

/// What to do after having waited.
enum Next {
    Answer(Vec<u8>),
    /// The server asked last is of no use.
    Another,
    /// Time is up.
    Silence,
}

/// A server that failed or refused is not the last word; every other code is.
fn is_final(packet: &[u8]) -> bool {
    Response::parse(packet)
        .is_some_and(|response| !matches!(response.code(), ResponseCode::ServFail | ResponseCode::Refused))
}

/// One question over a connection of its own (RFC 7766), under a random id.
async fn exchange_tcp(server: SocketAddr, packet: &[u8], question: &[u8]) -> io::Result<Vec<u8>> {
    let connected = timeout(PATIENCE, TcpStream::connect(server)).await;
    let mut stream = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    let id: u16 = rand::rng().random();
    let mut frame = Vec::with_capacity(packet.len() + 2);
    frame.extend_from_slice(&u16::try_from(packet.len()).unwrap_or(u16::MAX).to_be_bytes());
    frame.extend_from_slice(packet);
    readdress(&mut frame[2..], id, question, 0);
    stream.write_all(&frame).await?;
    loop {
        let length = stream.read_u16().await?;
        let mut reply = vec![0; length.into()];
        stream.read_exact(&mut reply).await?;
        let matches =
            Response::parse(&reply).is_some_and(|reply| reply.id() == id && reply.answers(question));
        if matches {
            return Ok(reply);
        }
    }
}
