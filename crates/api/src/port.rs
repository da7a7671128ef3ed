//! TCP ports that answer one question and nothing else, for machines that ask often.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of a request's head.
const HEAD_MAX: usize = 8 * 1024;
/// Questions that are answered at once; who comes on top of these waits for one to end.
pub(crate) const CONNECTIONS_MAX: usize = 256;
/// Wait after a failed accept: what fails (no file descriptor left) does not mend itself at once.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Answers until `shutdown` completes. A connection is one question; whoever takes longer than `longest` over
/// it is let go.
pub(crate) async fn serve<A, F>(
    listener: TcpListener,
    longest: Duration,
    answer: A,
    shutdown: impl Future<Output = ()>,
) where
    A: Fn(Method, String) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let next = async {
            // Never closed.
            let place = places.clone().acquire_owned().await.ok();
            (place, listener.accept().await)
        };
        tokio::select! {
            () = &mut shutdown => return,
            (place, accepted) = next => match accepted {
                Ok((stream, _)) => { tokio::spawn(connection(stream, longest, answer.clone(), place)); }
                Err(error) => {
                    tracing::warn!(%error, "accepting a question failed");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            },
        }
    }
}

async fn connection<F: Future<Output = Response<Body>>>(
    stream: TcpStream,
    longest: Duration,
    answer: impl Fn(Method, String) -> F,
    _place: Option<OwnedSemaphorePermit>,
) {
    let service = hyper::service::service_fn(|request: Request<Incoming>| {
        let response = answer(request.method().clone(), request.uri().path().to_owned());
        async { Ok::<_, Infallible>(response.await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .max_buf_size(HEAD_MAX)
        .serve_connection(TokioIo::new(stream), service);
    if let Ok(Err(error)) = tokio::time::timeout(longest, served).await {
        tracing::debug!(%error, "a question ended early");
    }
}
