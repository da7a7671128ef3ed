//! Docker's hijack: the connection of a request becomes a raw stream both ways.

use std::future::Future;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use axum::response::Response;
use hyper::ext::ReasonPhrase;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

const RAW_STREAM: HeaderValue = HeaderValue::from_static("application/vnd.docker.raw-stream");

/// A request's chance to become a stream.
pub(crate) struct Hijack {
    upgrade: Option<OnUpgrade>,
}

/// Both directions of a hijacked connection.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

impl Hijack {
    /// Takes the connection's upgrade out of a request, if the client asked for one. To be called
    /// before the request is taken apart.
    pub(crate) fn take<B>(request: &mut Request<B>) -> Self {
        let upgrade = wants_upgrade(request.headers()).then(|| hyper::upgrade::on(request));
        Self { upgrade }
    }

    /// Answers `101 UPGRADED` and runs `serve` with the raw connection. A client that did not ask for
    /// an upgrade gets what `serve` writes as the body of a `200`, and has no input to give.
    pub(crate) fn answer<F>(self, serve: impl FnOnce(Box<dyn Duplex>) -> F + Send + 'static) -> Response
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let Some(upgrade) = self.upgrade else {
            let (near, far) = tokio::io::duplex(64 * 1024);
            tokio::spawn(serve(Box::new(tokio::io::join(tokio::io::empty(), near))));
            let mut response = Response::new(Body::from_stream(tokio_util::io::ReaderStream::new(far)));
            response.headers_mut().insert(header::CONTENT_TYPE, RAW_STREAM);
            return response;
        };
        tokio::spawn(async move {
            match upgrade.await {
                Ok(connection) => serve(Box::new(TokioIo::new(connection))).await,
                Err(error) => tracing::debug!(%error, "a connection was not upgraded"),
            }
        });
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response.extensions_mut().insert(ReasonPhrase::from_static(b"UPGRADED"));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, RAW_STREAM);
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("tcp"));
        response
    }
}

fn wants_upgrade(headers: &HeaderMap) -> bool {
    headers.get(header::UPGRADE).is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(b"tcp"))
}
