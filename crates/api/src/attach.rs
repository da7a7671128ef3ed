//! Attached clients: a container's output to them, their input to it.

use std::sync::Arc;

use shoal_agent::Agent;
use shoal_model::{ContainerId, LogSource};
use shoal_runtime::ContainerOutput;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

use crate::detach::Keys;
use crate::hijack::Duplex;
use crate::logs::Framing;

/// What a client wants of a container.
#[derive(Debug, Clone)]
pub(crate) struct Wishes {
    pub(crate) container: ContainerId,
    pub(crate) tty: bool,
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
    /// The end of the client's input is the end of the container's.
    pub(crate) stdin_once: bool,
    pub(crate) detach: Keys,
}

/// Serves a client until the container's output ends, the client goes, or it detaches.
pub(crate) async fn serve(
    agent: Agent,
    wishes: Wishes,
    output: impl Future<Output = Option<ContainerOutput>>,
    connection: Box<dyn Duplex>,
) {
    let (input, mut client) = tokio::io::split(connection);
    let Some(mut output) = output.await else {
        let _ = client.shutdown().await;
        return;
    };
    let detached = Arc::new(Notify::new());
    let feeding = wishes.stdin.then(|| tokio::spawn(feed(agent, wishes.clone(), input, detached.clone())));
    let framing = Framing::of_tty(wishes.tty);
    loop {
        let piece = tokio::select! {
            piece = output.next() => piece,
            () = detached.notified() => None,
        };
        let Some((source, bytes)) = piece else { break };
        let wanted = match source {
            LogSource::Stdout => wishes.stdout,
            LogSource::Stderr => wishes.stderr,
        };
        if wanted && client.write_all(&framing.frame(source, &[&bytes])).await.is_err() {
            break;
        }
    }
    if let Some(feeding) = feeding {
        feeding.abort();
    }
    let _ = client.shutdown().await;
}

/// Passes the client's input on, and its end if that is what it means.
async fn feed(agent: Agent, wishes: Wishes, mut from: impl AsyncRead + Unpin, detached: Arc<Notify>) {
    let mut to = match agent.runtime().input(&wishes.container) {
        Ok(input) => input,
        Err(error) => {
            tracing::warn!(container = %wishes.container, %error, "cannot open the container's input");
            return;
        }
    };
    let mut keys = wishes.detach;
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let count = match from.read(&mut buffer).await {
            Ok(count) if count > 0 => count,
            _ => break,
        };
        let (passed, over) = keys.filter(&buffer[..count]);
        if to.write_all(&passed).await.is_err() {
            return;
        }
        if over {
            return detached.notify_one();
        }
    }
    if wishes.stdin_once
        && let Err(error) = to.close().await
    {
        tracing::debug!(container = %wishes.container, %error, "the end of the input was not told");
    }
}
