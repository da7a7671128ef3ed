//! The connection to containerd: namespace and lease headers, and patience while it restarts.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::diff_client::DiffClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::namespaces_client::NamespacesClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::version_client::VersionClient;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::time::Instant;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

use crate::{Error, Result};

/// How long a call waits for a containerd that does not answer (being restarted or upgraded).
pub(crate) const OUTAGE: Duration = Duration::from_secs(30);
/// Pause between two attempts to reach it.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// Lists of a busy node are larger than tonic's 4 MiB.
const LARGEST_REPLY: usize = 64 << 20;

/// A cheap handle on the one lazily (re)connected channel.
#[derive(Clone)]
pub(crate) struct Client {
    channel: Channel,
    socket: PathBuf,
    namespace: MetadataValue<Ascii>,
    lease: Option<MetadataValue<Ascii>>,
}

/// Makes one unary call and repeats it while containerd is away. The message expression is
/// evaluated once per attempt.
macro_rules! ask {
    ($client:expr, $action:expr, $service:ident . $method:ident ( $message:expr )) => {
        $client
            .retry($action, $crate::client::OUTAGE, || {
                let mut service = $client.$service();
                let request = $client.request($message);
                async move { service.$method(request).await }
            })
            .await
    };
}
pub(crate) use ask;

macro_rules! services {
    ($($method:ident: $client:ident),* $(,)?) => {
        $(pub(crate) fn $method(&self) -> $client<Channel> {
            $client::new(self.channel.clone()).max_decoding_message_size(LARGEST_REPLY)
        })*
    };
}

impl Client {
    /// Does not connect yet: the first call does, and each one after containerd went away.
    pub(crate) fn new(socket: &Path, namespace: &str) -> Result<Self> {
        let invalid = |message: String| Error::InvalidConfig(message);
        let path = socket.to_owned();
        // The URI is needed by the interface and goes nowhere: the connector decides.
        let channel = Endpoint::from_static("http://containerd").connect_with_connector_lazy(
            tower::service_fn(move |_| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            }),
        );
        let namespace =
            namespace.parse().map_err(|_| invalid(format!("invalid containerd namespace: {namespace:?}")))?;
        Ok(Self { channel, socket: socket.to_owned(), namespace, lease: None })
    }

    /// The same connection; what is created through it is kept from garbage collection by `lease`.
    pub(crate) fn under(&self, lease: &str) -> Self {
        Self { lease: lease.parse().ok(), ..self.clone() }
    }

    services! {
        containers: ContainersClient,
        content: ContentClient,
        diff: DiffClient,
        images: ImagesClient,
        leases: LeasesClient,
        namespaces: NamespacesClient,
        snapshots: SnapshotsClient,
        tasks: TasksClient,
        version: VersionClient,
    }

    /// Adds the headers that say on whose behalf the call is made.
    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("containerd-namespace", self.namespace.clone());
        if let Some(lease) = &self.lease {
            request.metadata_mut().insert("containerd-lease", lease.clone());
        }
        request
    }

    /// Runs `attempt` until containerd has answered, or has been away for `patience`.
    pub(crate) async fn retry<T, F, Fut>(
        &self,
        action: impl Display,
        patience: Duration,
        mut attempt: F,
    ) -> Result<T>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let deadline = Instant::now().checked_add(patience);
        loop {
            let status = match attempt().await {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) => status,
            };
            if !is_outage(&status) {
                return Err(self.refusal(&action, &status));
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(self.unavailable(&status));
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    pub(crate) fn unavailable(&self, status: &Status) -> Error {
        Error::Unavailable { socket: self.socket.clone(), message: describe(status) }
    }

    pub(crate) fn refusal(&self, action: impl Display, status: &Status) -> Error {
        Error::Containerd {
            action: action.to_string(),
            code: status.code(),
            message: status.message().to_owned(),
        }
    }
}

/// The connection failed or broke, as opposed to an answer that says no: only then does the status
/// carry a cause, or the code that the transport itself uses.
pub(crate) fn is_outage(status: &Status) -> bool {
    status.code() == Code::Unavailable || std::error::Error::source(status).is_some()
}

/// The status with its causes: tonic's own text is only `transport error`.
fn describe(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.contains(&message) {
            text = format!("{text}: {message}");
        }
        cause = error.source();
    }
    text
}

/// Turns "there is no such thing" into `None`.
pub(crate) fn optional<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// containerd's time stamps; `None` for the zero value, which it uses for "never".
pub(crate) fn timestamp(time: Option<prost_types::Timestamp>) -> Option<jiff::Timestamp> {
    let time = time?;
    (time.seconds > 0).then(|| jiff::Timestamp::new(time.seconds, time.nanos).ok())?
}
