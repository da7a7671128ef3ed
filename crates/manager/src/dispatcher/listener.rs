//! The doors of a manager: a unix socket for its own node, TLS for everybody else. Who comes in is
//! sorted by what it shows: members to one server, machines without a certificate to another, which
//! offers nothing but enrolment.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use shoal_model::{Authority, CertificateInfo, Cluster};
use shoal_protocol::identity::{NodeCertificate, certificates, is_issued_by};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use crate::Error;

/// Connections that may wait for a server to take them.
const WAITING_MAX: usize = 64;
/// Handshakes at the same time.
const HANDSHAKES_MAX: usize = 256;
/// A handshake takes no longer.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// Machines that enrol at the same time.
const CANDIDATES_MAX: usize = 256;
/// An address that cannot be listened on is tried again after this time, and told of after the other.
const BIND_PAUSE: Duration = Duration::from_millis(500);
const BIND_TOLD: Duration = Duration::from_secs(60);
/// After a failure to accept (no file descriptor left, for example) the next try waits.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub(crate) enum Peer {
    /// The node this manager runs on: the socket says so.
    OwnNode,
    Member(Arc<Shown>),
    /// Nobody yet.
    Candidate,
}

/// The certificate a member showed; it has been verified.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) certificate: NodeCertificate,
    der: CertificateDer<'static>,
}

impl Shown {
    /// What the cluster keeps of it; `None` when it is of none of the cluster's roots any more.
    pub(crate) fn info(&self, cluster: &Cluster) -> Option<CertificateInfo> {
        let authorities = [Some(&cluster.authority), cluster.next_authority.as_ref()];
        let is_issuer = |authority: &&Authority| {
            certificates(&authority.root.pem)
                .is_ok_and(|roots| roots.iter().any(|root| is_issued_by(&self.der, root)))
        };
        let issuer = authorities.into_iter().flatten().find(is_issuer)?;
        Some(CertificateInfo { issuer: issuer.root.public_key.clone(), expires: self.certificate.expires })
    }
}

/// A connection that knows its peer.
pub(crate) struct Connection {
    stream: Stream,
    peer: Peer,
    /// Held by those who are nobody yet.
    _place: Option<OwnedSemaphorePermit>,
}

enum Stream {
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

/// Who came in, sorted.
pub(crate) struct Doors {
    pub(crate) members: ReceiverStream<io::Result<Connection>>,
    pub(crate) candidates: ReceiverStream<io::Result<Connection>>,
}

/// Opens the doors. Until there is a TLS configuration, nobody is let in by TLS.
pub(crate) fn open(
    unix: UnixListener,
    tcp: Listen,
    tls: watch::Receiver<Option<Arc<ServerConfig>>>,
    stop: &CancellationToken,
) -> Doors {
    let (members, members_in) = mpsc::channel(WAITING_MAX);
    let (candidates, candidates_in) = mpsc::channel(WAITING_MAX);
    tokio::spawn(stop.clone().run_until_cancelled_owned(accept_own(unix, members.clone())));
    let hall = Hall { tls, members, candidates, places: Arc::new(Semaphore::new(CANDIDATES_MAX)) };
    tokio::spawn(stop.clone().run_until_cancelled_owned(async {
        let listener = match tcp {
            Listen::Now(listener) => listener,
            Listen::WhenUp(address) => bind_when_up(address).await,
        };
        accept_all(listener, hall).await;
    }));
    Doors { members: ReceiverStream::new(members_in), candidates: ReceiverStream::new(candidates_in) }
}

/// Only root may speak to the manager as its own node. A socket file left by a crash is replaced;
/// whether another manager runs is decided by the store's lock, which is held already.
pub(crate) fn bind_unix(socket: &Path) -> Result<UnixListener, Error> {
    use std::os::unix::fs::PermissionsExt;
    let failed = |source| Error::Socket { path: socket.to_owned(), source };
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(socket).map_err(failed)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

/// Where nodes are let in.
pub(crate) enum Listen {
    Now(TcpListener),
    /// An address that has been listened on before. At boot it may not be the machine's yet.
    WhenUp(SocketAddr),
}

impl Listen {
    /// Now, if that is possible.
    pub(crate) async fn at(address: SocketAddr) -> Self {
        TcpListener::bind(address).await.map_or(Self::WhenUp(address), Self::Now)
    }
}

/// Tries until it works: until then the manager serves its own node only.
async fn bind_when_up(address: SocketAddr) -> TcpListener {
    let mut told: Option<Instant> = None;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                if told.is_some() {
                    tracing::info!(%address, "nodes are let in");
                }
                return listener;
            }
            Err(error) if told.is_none_or(|told| told.elapsed() >= BIND_TOLD) => {
                tracing::warn!(%address, %error, "no other node is let in until this address can be listened on");
                told = Some(Instant::now());
            }
            Err(_) => {}
        }
        tokio::time::sleep(BIND_PAUSE).await;
    }
}

pub(crate) async fn bind_tcp(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })
}

async fn accept_own(listener: UnixListener, members: mpsc::Sender<io::Result<Connection>>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let connection =
                    Connection { stream: Stream::Unix(stream), peer: Peer::OwnNode, _place: None };
                if members.send(Ok(connection)).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection of the manager's own node");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// What every handshake needs.
#[derive(Clone)]
struct Hall {
    tls: watch::Receiver<Option<Arc<ServerConfig>>>,
    members: mpsc::Sender<io::Result<Connection>>,
    candidates: mpsc::Sender<io::Result<Connection>>,
    places: Arc<Semaphore>,
}

async fn accept_all(listener: TcpListener, hall: Hall) {
    let mut handshakes = Handshakes::default();
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                let hall = hall.clone();
                let greeting = tokio::spawn(async move {
                    match tokio::time::timeout(HANDSHAKE_MAX, hall.greet(stream)).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => tracing::info!(%from, %error, "a connection was refused"),
                        Err(_) => tracing::debug!(%from, "a handshake took too long"),
                    }
                });
                handshakes.add(from.ip(), greeting.abort_handle());
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a node's connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The handshakes under way, oldest first. Who comes is not known before its end, so nobody may keep others
/// out by not going on with theirs: when there are too many, the one that has lasted longest is given up, of
/// those from the address from which most come. A member's is over in milliseconds.
#[derive(Default)]
struct Handshakes(VecDeque<(IpAddr, AbortHandle)>);

impl Handshakes {
    fn add(&mut self, from: IpAddr, handshake: AbortHandle) {
        self.0.retain(|(_, handshake)| !handshake.is_finished());
        if self.0.len() >= HANDSHAKES_MAX
            && let Some((from, handshake)) =
                self.0.remove(most_suspicious(self.0.iter().map(|(from, _)| *from)))
        {
            tracing::debug!(%from, "a handshake was given up for newer ones");
            handshake.abort();
        }
        self.0.push_back((from, handshake));
    }
}

/// The first of those that share an address with most others.
fn most_suspicious(from: impl Iterator<Item = IpAddr>) -> usize {
    let mut first_and_count: BTreeMap<IpAddr, (usize, usize)> = BTreeMap::new();
    for (index, from) in from.enumerate() {
        first_and_count.entry(from).or_insert((index, 0)).1 += 1;
    }
    let most = first_and_count.into_values().max_by_key(|(first, count)| (*count, std::cmp::Reverse(*first)));
    most.map_or(0, |(first, _)| first)
}

impl Hall {
    /// The handshake, and the way to the server that is for such a peer.
    async fn greet(mut self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let config = self.tls.wait_for(Option::is_some).await.map_err(io::Error::other)?.clone();
        let config = config.ok_or_else(|| io::Error::other("no certificate"))?;
        let stream = TlsAcceptor::from(config).accept(stream).await?;
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let (peer, place, server) = match shown {
            Some(der) => {
                let certificate = NodeCertificate::parse(der).map_err(io::Error::other)?;
                let shown = Shown { certificate, der: der.clone().into_owned() };
                (Peer::Member(Arc::new(shown)), None, self.members)
            }
            None => {
                let place = self.places.try_acquire_owned();
                let place =
                    place.map_err(|_| io::Error::other("too many machines enrol at the same time"))?;
                (Peer::Candidate, Some(place), self.candidates)
            }
        };
        let connection = Connection { stream: Stream::Tls(Box::new(stream)), peer, _place: place };
        server.send(Ok(connection)).await.map_err(|_| io::Error::other("the manager is stopping"))
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().stream {
            Stream::Unix(stream) => Pin::new(stream).poll_write(context, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_write(context, buffer),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Unix(stream) => Pin::new(stream).poll_flush(context),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Unix(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_fills_the_hall_gives_way_first() {
        let from = |addresses: &str| {
            let addresses: Vec<IpAddr> =
                addresses.chars().map(|host| IpAddr::from([192, 0, 2, host as u8])).collect();
            most_suspicious(addresses.into_iter())
        };
        assert_eq!(from("abbb"), 1, "the oldest of those that are most");
        assert_eq!(from("abc"), 0, "the oldest of all");
        assert_eq!(from("abcc"), 2);
        assert_eq!(from("bbaa"), 0);
    }

    /// A certificate of a member, or none, is only shown at the end of a handshake.
    #[tokio::test]
    async fn strangers_that_do_not_go_on_keep_nobody_out() {
        let listener = bind_tcp(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (members, _members) = mpsc::channel(1);
        let (candidates, _candidates) = mpsc::channel(1);
        let (_config, tls) = watch::channel(None);
        let hall = Hall { tls, members, candidates, places: Arc::new(Semaphore::new(1)) };
        tokio::spawn(accept_all(listener, hall));
        let mut strangers = Vec::new();
        for _ in 0..HANDSHAKES_MAX {
            strangers.push(TcpStream::connect(address).await.unwrap());
        }
        let member = tokio::net::TcpSocket::new_v4().unwrap();
        member.bind(([127, 0, 0, 2], 0).into()).unwrap();
        let member = member.connect(address).await.unwrap();
        // The oldest stranger's connection ends, long before its handshake would have.
        let ended = tokio::time::timeout(HANDSHAKE_MAX / 2, strangers[0].readable()).await;
        ended.expect("the oldest stranger gives way").unwrap();
        assert!(matches!(strangers[0].try_read(&mut [0]), Ok(0) | Err(_)));
        let kept = tokio::time::timeout(Duration::from_millis(100), member.readable()).await;
        assert!(kept.is_err(), "the member's handshake goes on");
    }
}
