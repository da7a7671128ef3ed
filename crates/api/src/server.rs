//! The socket: connections, their limits, and what every request passes through.

use std::convert::Infallible;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, Request, Response, header};
use axum::response::IntoResponse;
use futures::FutureExt;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use crate::engine::Engine;
use crate::error::ApiError;
use crate::routes::NotFound;
use crate::version;

/// How long a client may take to send a request's head, and may stay silent between two requests.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// Bytes of a request's head.
const HEAD_MAX: usize = 64 * 1024;
/// Header fields of a request.
const HEADERS_MAX: usize = 100;
/// How long open requests may take once the daemon stops.
const DRAIN_MAX: Duration = Duration::from_secs(2);
/// Wait after a failed accept: what fails (no file descriptor left) does not mend itself at once.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Serves Docker's API until `shutdown` completes; then lets open requests end, for a moment.
pub async fn serve(
    listener: UnixListener,
    engine: Engine,
    shutdown: impl Future<Output = ()> + Send,
) -> std::io::Result<()> {
    let about = engine.cluster.about.clone();
    let stop = CancellationToken::new();
    let connections = TaskTracker::new();
    connections.spawn(crate::events::collect(engine.cluster.clone(), stop.clone()));
    let own = engine.node.agent.events();
    connections.spawn(crate::events::collect_own(
        own,
        about.id.clone(),
        engine.cluster.events.clone(),
        stop.clone(),
    ));
    let app = App { router: router(engine), server: server_header(&about.version) };
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => { connections.spawn(connection(stream, app.clone(), stop.clone())); }
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection failed");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            },
        }
    }
    drop(listener);
    stop.cancel();
    connections.close();
    if tokio::time::timeout(DRAIN_MAX, connections.wait()).await.is_err() {
        tracing::debug!(open = connections.len(), "some requests were still open at the end");
    }
    Ok(())
}

/// Every path, without version prefix; [`serve`] puts the rest around it.
pub fn router(engine: Engine) -> Router {
    crate::routes::all().with_state(engine)
}

pub(crate) async fn connection(stream: UnixStream, app: App, stop: CancellationToken) {
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let app = app.clone();
        async move { Ok::<_, Infallible>(app.answer(request.map(Body::new)).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_MAX)
        .max_buf_size(HEAD_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        // A client that goes away in the middle is nothing to report.
        tracing::debug!(%error, "connection ended");
    }
}

/// What every request passes through.
#[derive(Clone)]
pub(crate) struct App {
    pub(crate) router: Router,
    pub(crate) server: HeaderValue,
}

impl App {
    pub(crate) async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        // A fault in one handler must not take a client's connection, let alone the daemon, with it.
        let mut response = match AssertUnwindSafe(self.route(request)).catch_unwind().await {
            Ok(response) => response,
            Err(_) => {
                ApiError::internal(format!("{method} {path} failed unexpectedly; see the daemon's log"))
                    .into_response()
            }
        };
        if response.extensions().get::<NotFound>().is_none() {
            let headers = response.headers_mut();
            headers.insert("Api-Version", HeaderValue::from_static(version::API_VERSION));
            headers.insert("Docker-Experimental", HeaderValue::from_static("false"));
            headers.insert("Ostype", HeaderValue::from_static("linux"));
            headers.insert(header::SERVER, self.server.clone());
        }
        tracing::debug!(%method, path, status = response.status().as_u16(), "request");
        response
    }

    async fn route(&self, mut request: Request<Body>) -> Response<Body> {
        match version::strip_prefix(request.uri()) {
            Ok(Some(uri)) => *request.uri_mut() = uri,
            Ok(None) => {}
            Err(error) => return error.into_response(),
        }
        match self.router.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

/// `Docker/…` first: clients and scripts look for it.
pub(crate) fn server_header(version: &str) -> HeaderValue {
    HeaderValue::from_str(&format!("Docker/{version} (linux)"))
        .unwrap_or_else(|_| HeaderValue::from_static("Docker (linux)"))
}
