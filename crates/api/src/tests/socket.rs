//! Connections: what is hijacked, what is too large, what a stop ends.

use std::path::PathBuf;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use axum::response::Response;
use axum::routing::post;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use crate::hijack::Hijack;
use crate::server::{App, connection, server_header};

/// Sends back what it gets, in capitals, until the client has no more to say.
async fn shout(mut request: Request<Body>) -> Response {
    Hijack::take(&mut request).answer(|mut connection| async move {
        let mut text = String::new();
        connection.read_to_string(&mut text).await.unwrap();
        connection.write_all(format!("[{}]", text.to_uppercase()).as_bytes()).await.unwrap();
        connection.shutdown().await.unwrap();
    })
}

struct Socket {
    path: PathBuf,
    stop: CancellationToken,
    _dir: tempfile::TempDir,
}

impl Socket {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let stop = CancellationToken::new();
        let app = App { router: Router::new().route("/shout", post(shout)), server: server_header("1.2.3") };
        let stopping = stop.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(connection(stream, app.clone(), stopping.clone()));
            }
        });
        Self { path, stop, _dir: dir }
    }

    async fn send(&self, head: &str) -> UnixStream {
        let mut stream = UnixStream::connect(&self.path).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    }
}

async fn rest(mut stream: UnixStream) -> String {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut bytes));
    read.await.expect("the connection ends").unwrap();
    String::from_utf8(bytes).unwrap()
}

/// Reads up to the empty line that ends a head.
async fn head(stream: &mut UnixStream) -> String {
    let mut text = String::new();
    while !text.ends_with("\r\n\r\n") {
        text.push(char::from(stream.read_u8().await.unwrap()));
    }
    text
}

#[tokio::test]
async fn a_hijacked_connection_is_a_stream_both_ways() {
    let socket = Socket::new();
    let mut stream = socket
        .send("POST /shout HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n")
        .await;
    let head = head(&mut stream).await.to_lowercase();
    assert!(head.starts_with("http/1.1 101 upgraded\r\n"), "{head}");
    for line in ["connection: upgrade", "upgrade: tcp", "content-type: application/vnd.docker.raw-stream"] {
        assert!(head.contains(line), "{line} in {head}");
    }
    stream.write_all(b"hello").await.unwrap();
    stream.write_all(b" world").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(rest(stream).await, "[HELLO WORLD]");
}

#[tokio::test]
async fn without_an_upgrade_the_stream_is_a_body() {
    let socket = Socket::new();
    let stream = socket
        .send("POST /shout HTTP/1.1\r\nHost: d\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        .await;
    let answer = rest(stream).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("[]"), "{answer}");
}

#[tokio::test]
async fn a_refused_upload_is_taken_in_before_the_refusal() {
    let swarm = std::sync::Arc::new(super::router::Alone);
    let side = crate::engine::ClusterSide::new(swarm, PathBuf::from("/nonexistent"), "1.2.3".to_owned());
    let (mut near, far) = UnixStream::pair().unwrap();
    let router = crate::routes::cluster::<crate::engine::ClusterSide>().with_state(side);
    tokio::spawn(connection(far, App { router, server: server_header("1.2.3") }, CancellationToken::new()));
    let context = vec![0; 4 << 20];
    let head = format!(
        "POST /v1.41/build HTTP/1.1\r\nHost: d\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        context.len()
    );
    near.write_all(head.as_bytes()).await.unwrap();
    near.write_all(&context).await.expect("nobody hangs up on a client that is sending");
    assert!(rest(near).await.starts_with("HTTP/1.1 501"));
}

#[tokio::test]
async fn a_head_without_end_is_refused() {
    let socket = Socket::new();
    let mut stream = socket.send("GET /x HTTP/1.1\r\nHost: d\r\n").await;
    let line = format!("X-Long: {}\r\n", "a".repeat(8000));
    for _ in 0..16 {
        // The server may have hung up already.
        if stream.write_all(line.as_bytes()).await.is_err() {
            break;
        }
    }
    let mut answer = [0; 64];
    let read =
        tokio::time::timeout(Duration::from_secs(10), stream.read(&mut answer)).await.expect("an answer");
    let text = String::from_utf8_lossy(&answer[..read.unwrap_or_default()]).into_owned();
    assert!(text.is_empty() || text.starts_with("HTTP/1.1 431"), "{text}");
}

#[tokio::test]
async fn a_stop_ends_idle_connections() {
    let socket = Socket::new();
    let mut stream = socket.send("GET /nosuch HTTP/1.1\r\nHost: d\r\n\r\n").await;
    assert!(head(&mut stream).await.starts_with("HTTP/1.1 404"));
    socket.stop.cancel();
    rest(stream).await;
}
