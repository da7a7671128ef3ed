//! The connection to a daemon: bollard for what its types hold faithfully, plain JSON for the rest.
//!
//! Service specs go as plain JSON: a typed read-change-write would drop every field the generated types
//! do not know (they spell `Healthcheck` differently, for one).

use std::path::{Path, PathBuf};

use bollard::{ClientVersion, Docker};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

pub type Result<T> = std::result::Result<T, Error>;

/// Why a verb failed, in the words that are printed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("Cannot connect to the Shoal daemon at {host}. Is it running? ({reason})")]
    Unreachable { host: String, reason: String },
    #[error("unable to parse daemon host \"{0}\": only unix:// sockets are supported")]
    BadHost(String),
    #[error("Error response from daemon: {message}")]
    Daemon { status: u16, message: String },
    #[error("unexpected answer from daemon: {0}")]
    UnexpectedAnswer(String),
    #[error("{0}")]
    Usage(String),
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
}

impl Error {
    /// Whether the daemon said that the thing asked for does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Daemon { status: 404, .. })
    }
}

impl From<bollard::errors::Error> for Error {
    fn from(error: bollard::errors::Error) -> Self {
        use bollard::errors::Error as Bollard;
        match error {
            Bollard::DockerResponseServerError { status_code, message } => {
                Self::Daemon { status: status_code, message }
            }
            Bollard::DockerStreamError { error } => Self::Daemon { status: 200, message: error },
            other => Self::UnexpectedAnswer(other.to_string()),
        }
    }
}

/// The newest API this client was written against; the daemon accepts it or anything below its own.
const API_VERSION: ClientVersion = ClientVersion { major_version: 1, minor_version: 41 };
/// Seconds bollard waits for an answer to begin. Importing a large image takes its time.
const TIMEOUT_SECONDS: u64 = 600;

/// One daemon.
pub struct Client {
    docker: Docker,
    host: String,
    socket: PathBuf,
}

impl Client {
    /// `host` as in `DOCKER_HOST`; `unix:///path` or a bare path.
    pub fn connect(host: &str) -> Result<Self> {
        let socket = socket_path(host)?;
        let unreachable = |reason: String| Error::Unreachable { host: host.to_owned(), reason };
        let path = socket.to_str().ok_or_else(|| Error::BadHost(host.to_owned()))?;
        let docker = Docker::connect_with_unix(path, TIMEOUT_SECONDS, &API_VERSION)
            .map_err(|error| unreachable(error.to_string()))?;
        Ok(Self { docker, host: host.to_owned(), socket })
    }

    pub(crate) fn docker(&self) -> &Docker {
        &self.docker
    }

    /// The answer's JSON, byte for byte as the daemon wrote it.
    pub(crate) async fn get(&self, path: &str) -> Result<Bytes> {
        self.request(Method::GET, path, None).await
    }

    pub(crate) async fn get_json(&self, path: &str) -> Result<Value> {
        parse(&self.get(path).await?)
    }

    pub(crate) async fn post_json(&self, path: &str, body: &Value) -> Result<Value> {
        let answer = self.request(Method::POST, path, Some(body)).await?;
        if answer.is_empty() { Ok(Value::Null) } else { parse(&answer) }
    }

    async fn request(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Bytes> {
        let unreachable = |reason: &dyn std::fmt::Display| Error::Unreachable {
            host: self.host.clone(),
            reason: reason.to_string(),
        };
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| unreachable(&error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| unreachable(&error))?;
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path).header("Host", "shoal");
        let payload = match body {
            Some(value) => {
                request = request.header("Content-Type", "application/json");
                Bytes::from(value.to_string())
            }
            None => Bytes::new(),
        };
        let request =
            request.body(Full::new(payload)).map_err(|error| Error::Usage(format!("{path}: {error}")))?;
        let answer = sender.send_request(request).await.map_err(|error| unreachable(&error))?;
        let status = answer.status();
        let body = answer.into_body().collect().await.map_err(|error| unreachable(&error))?.to_bytes();
        if status.is_success() {
            return Ok(body);
        }
        let message = parse(&body)
            .ok()
            .and_then(|value| value.get("message").and_then(Value::as_str).map(str::to_owned))
            .unwrap_or_else(|| String::from_utf8_lossy(&body).into_owned());
        Err(Error::Daemon { status: status.as_u16(), message })
    }
}

fn parse(body: &[u8]) -> Result<Value> {
    serde_json::from_slice(body).map_err(|error| Error::UnexpectedAnswer(error.to_string()))
}

fn socket_path(host: &str) -> Result<PathBuf> {
    let path = host.strip_prefix("unix://").unwrap_or(host);
    if path.is_empty() || path.contains("://") || !Path::new(path).is_absolute() {
        return Err(Error::BadHost(host.to_owned()));
    }
    Ok(PathBuf::from(path))
}

/// A path segment or query value with everything but unreserved characters escaped (RFC 3986 §2.3).
pub(crate) fn escape(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => (byte as char).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_unix_sockets() {
        assert_eq!(socket_path("unix:///run/x.sock").unwrap(), PathBuf::from("/run/x.sock"));
        assert_eq!(socket_path("/run/x.sock").unwrap(), PathBuf::from("/run/x.sock"));
        for bad in ["tcp://1.2.3.4:2375", "", "unix://", "relative.sock"] {
            assert!(matches!(socket_path(bad), Err(Error::BadHost(_))), "{bad}");
        }
    }

    #[test]
    fn names_cannot_escape_their_path_segment() {
        assert_eq!(escape("a/b?c d"), "a%2Fb%3Fc%20d");
        assert_eq!(escape("my-service_1.x~"), "my-service_1.x~");
    }

    #[test]
    fn an_absent_daemon_is_named() {
        let Err(error) = Client::connect("unix:///nowhere/shoal.sock") else { panic!("connected") };
        assert!(error.to_string().contains("unix:///nowhere/shoal.sock"), "{error}");
    }
}
