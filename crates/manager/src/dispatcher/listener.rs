//! The doors of a manager: a unix socket for its own node, TLS for everybody else. Who comes in is
//! sorted by what it shows: members to one server, machines without a certificate to another, which
//! offers nothing but enrolment.

use std::io;
use std::net::SocketAddr;
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
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use crate::Error;

/// Connections that may wait for a server to take them.
const WAITING_MAX: usize = 64;
/// Handshakes at the same time, and machines that enrol at the same time.
const STRANGERS_MAX: usize = 256;
/// A handshake takes no longer.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
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
    tcp: TcpListener,
    tls: watch::Receiver<Option<Arc<ServerConfig>>>,
    stop: &CancellationToken,
) -> Doors {
    let (members, members_in) = mpsc::channel(WAITING_MAX);
    let (candidates, candidates_in) = mpsc::channel(WAITING_MAX);
    tokio::spawn(stop.clone().run_until_cancelled_owned(accept_own(unix, members.clone())));
    let hall = Hall { tls, members, candidates, places: Arc::new(Semaphore::new(STRANGERS_MAX)) };
    tokio::spawn(stop.clone().run_until_cancelled_owned(accept_all(tcp, hall)));
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
    loop {
        // Whoever finds no place waits in the kernel's queue.
        let Ok(place) = hall.places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, from)) => {
                let hall = hall.clone();
                tokio::spawn(async move {
                    match tokio::time::timeout(HANDSHAKE_MAX, hall.greet(stream, place)).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => tracing::info!(%from, %error, "a connection was refused"),
                        Err(_) => tracing::debug!(%from, "a handshake took too long"),
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a node's connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

impl Hall {
    /// The handshake, and the way to the server that is for such a peer.
    async fn greet(mut self, stream: TcpStream, place: OwnedSemaphorePermit) -> io::Result<()> {
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
            None => (Peer::Candidate, Some(place), self.candidates),
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
