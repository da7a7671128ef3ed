//! Connections to managers.

use std::error::Error as StdError;
use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use shoal_protocol::tls;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::lock;

/// Until a manager's kernel answers: its machine may be gone. No longer, since the kernel asks again after
/// one, three and seven seconds: a manager that comes back in between is found sooner by a new attempt.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// Until the manager's process answers: it may have much to do.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// A connection on which nothing has come for so long is tried, and given up when no answer comes in the
/// other time: a broken one is known as such after three seconds, like a silent node.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
const KEEP_ALIVE_ANSWER: Duration = Duration::from_secs(2);

/// A manager's dispatcher on this node.
pub(crate) async fn local(socket: &Path) -> io::Result<Channel> {
    let stream = UnixStream::connect(socket).await?;
    over(stream).await
}

/// A manager on another node; `address` is `host:port`.
pub(crate) async fn remote(address: &str, config: Arc<ClientConfig>) -> io::Result<Channel> {
    over(secured(dial(address).await?, config).await?).await
}

pub(crate) async fn dial(address: &str) -> io::Result<TcpStream> {
    let stream = in_time(CONNECT_MAX, TcpStream::connect(address)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

pub(crate) async fn secured(
    stream: TcpStream,
    config: Arc<ClientConfig>,
) -> io::Result<TlsStream<TcpStream>> {
    in_time(HANDSHAKE_MAX, TlsConnector::from(config).connect(tls::manager_name(), stream)).await
}

async fn in_time<T>(bound: Duration, connecting: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let overdue = |_| io::Error::new(io::ErrorKind::TimedOut, "no answer");
    tokio::time::timeout(bound, connecting).await.map_err(overdue)?
}

/// gRPC over one connection that stands. When it breaks, the channel is of no use any more: a session
/// begins anew on a new one.
pub(crate) async fn over<S>(stream: S) -> io::Result<Channel>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let stream = Mutex::new(Some(TokioIo::new(stream)));
    let once = move |_: Uri| {
        let stream = lock(&stream).take().ok_or_else(|| io::Error::other("the connection is broken"));
        std::future::ready(stream)
    };
    // The address is not used: the connection is there.
    let endpoint = Endpoint::from_static("http://manager")
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_ANSWER)
        .keep_alive_while_idle(true);
    endpoint.connect_with_connector(tower::service_fn(once)).await.map_err(io::Error::other)
}

/// An error with everything it came from: gRPC keeps the reason in the sources.
pub(crate) fn reasons(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let reason = error.to_string();
        if !text.contains(&reason) {
            text.push_str(": ");
            text.push_str(&reason);
        }
        source = error.source();
    }
    text
}
