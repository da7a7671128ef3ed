//! The node's health endpoint, for load balancers: a TCP port that says whether the node is to be sent traffic
//! from outside, and nothing else.

use std::future::Future;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, Method, Response, StatusCode, header};
use serde::Serialize;
use shoal_agent::OutOfService;
use tokio::net::TcpListener;

use crate::{body, port};

const PATH: &str = "/health";
/// A check is one request; whoever takes longer than this over it is let go.
const CONNECTION_MAX: Duration = Duration::from_secs(2);
#[derive(Serialize)]
struct Answer {
    in_service: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// Answers with what `look` says until `shutdown` completes.
pub async fn serve_health(
    listener: TcpListener,
    look: impl Fn() -> Result<(), OutOfService> + Clone + Send + Sync + 'static,
    shutdown: impl Future<Output = ()>,
) {
    let answer = move |method: Method, path: String| std::future::ready(answer(&method, &path, &look));
    port::serve(listener, CONNECTION_MAX, answer, shutdown).await;
}

fn answer(method: &Method, path: &str, look: impl Fn() -> Result<(), OutOfService>) -> Response<Body> {
    if path != PATH {
        return body::empty(StatusCode::NOT_FOUND);
    }
    if !matches!(*method, Method::GET | Method::HEAD) {
        return body::empty(StatusCode::METHOD_NOT_ALLOWED);
    }
    let mut response = match look() {
        Ok(()) => body::json(StatusCode::OK, &Answer { in_service: true, reason: None }),
        Err(reason) => {
            let answer = Answer { in_service: false, reason: Some(reason.to_string()) };
            body::json(StatusCode::SERVICE_UNAVAILABLE, &answer)
        }
    };
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::port::CONNECTIONS_MAX;

    async fn ask(to: std::net::SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(to).await.unwrap();
        stream.write_all(format!("{request} HTTP/1.1\r\nHost: node\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        // To the end: the connection is closed after one answer.
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn a_check_is_answered_with_a_status_and_a_reason() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (standing, look) = tokio::sync::watch::channel(Ok(()));
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let serving = tokio::spawn(serve_health(listener, move || *look.borrow(), async {
            stopped.await.unwrap_or_default()
        }));
        let well = ask(address, "GET /health").await;
        assert!(
            well.starts_with("HTTP/1.1 200 ") && well.ends_with("\r\n\r\n{\"in_service\":true}\n"),
            "{well}"
        );
        standing.send_replace(Err(OutOfService::Drained)).unwrap();
        let drained = ask(address, "GET /health").await;
        assert!(drained.starts_with("HTTP/1.1 503 "), "{drained}");
        assert!(
            drained.ends_with("{\"in_service\":false,\"reason\":\"the node is drained\"}\n"),
            "{drained}"
        );
        assert!(ask(address, "HEAD /health").await.starts_with("HTTP/1.1 503 "));
        assert!(ask(address, "GET /containers/json").await.starts_with("HTTP/1.1 404 "));
        assert!(ask(address, "POST /health").await.starts_with("HTTP/1.1 405 "));
        stop.send(()).unwrap();
        serving.await.unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }

    /// Somebody who connects and says nothing keeps nobody else waiting.
    #[tokio::test]
    async fn the_silent_are_let_go() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(serve_health(listener, || Ok(()), std::future::pending()));
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let answer = tokio::time::timeout(2 * CONNECTION_MAX, ask(address, "GET /health")).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        serving.abort();
    }
}
