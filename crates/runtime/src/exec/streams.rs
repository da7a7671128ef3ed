//! An exec's input and output: FIFOs between us and containerd's shim.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use containerd_client::services::v1::CloseIoRequest;
use futures::Stream;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use shoal_model::LogSource;
use tokio::io::{AsyncReadExt, AsyncWrite};
use tokio::net::unix::pipe::{OpenOptions, Receiver, Sender};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::{End, ExecConfig, ExecHandle};
use crate::client::{ask, optional};
use crate::{Error, Result};

/// Chunks of output that wait for a slow reader; the process is held back beyond that.
const QUEUE: usize = 16;
const CHUNK: usize = 32 << 10;
/// A process that has ended may have left others that hold its output open: they are listened to
/// for so long after their last word.
const LINGER: Duration = Duration::from_secs(2);

/// One FIFO, or none where the exec has no such stream.
pub(super) struct Fifo<T> {
    path: PathBuf,
    end: Option<T>,
}

impl<T> Fifo<T> {
    fn none() -> Self {
        Self { path: PathBuf::new(), end: None }
    }

    fn create(path: PathBuf, open: impl FnOnce(&Path) -> io::Result<T>) -> Result<Self> {
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).map_err(|errno| Error::io(&path)(errno.into()))?;
        let end = Some(open(&path).map_err(Error::io(&path))?);
        Ok(Self { path, end })
    }

    /// As containerd wants it: empty for none.
    pub(super) fn path(&self) -> String {
        self.path.to_string_lossy().into_owned()
    }
}

/// The FIFOs of one exec, opened on our side before the other side opens them.
pub(super) struct Fifos {
    pub(super) stdin: Fifo<Sender>,
    pub(super) stdout: Fifo<Receiver>,
    pub(super) stderr: Fifo<Receiver>,
}

impl Fifos {
    pub(super) fn create(dir: &Path, config: &ExecConfig) -> Result<Self> {
        std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
        let reader = |path: &Path| OpenOptions::new().open_receiver(path);
        // For reading too, as there is no reader yet.
        let writer = |path: &Path| OpenOptions::new().read_write(true).open_sender(path);
        Ok(Self {
            stdin: if config.stdin { Fifo::create(dir.join("stdin"), writer)? } else { Fifo::none() },
            stdout: Fifo::create(dir.join("stdout"), reader)?,
            // A terminal has one output.
            stderr: if config.tty { Fifo::none() } else { Fifo::create(dir.join("stderr"), reader)? },
        })
    }

    /// Sets the streams in motion.
    pub(super) fn stream(self, handle: &ExecHandle) -> (Option<ExecInput>, ExecOutput, Vec<JoinHandle<()>>) {
        let stdin = self.stdin.end.map(|pipe| ExecInput::new(pipe, handle.clone()));
        let (sender, receiver) = mpsc::channel(QUEUE);
        let ends = [(LogSource::Stdout, self.stdout.end), (LogSource::Stderr, self.stderr.end)];
        let pumps = ends
            .into_iter()
            .filter_map(|(source, pipe)| {
                Some(tokio::spawn(pump(pipe?, source, sender.clone(), handle.end.clone())))
            })
            .collect();
        (stdin, ExecOutput { receiver }, pumps)
    }
}

/// Hands on what the process prints; when nobody listens any more, reads on so that the process
/// does not get stuck.
async fn pump(
    mut pipe: Receiver,
    source: LogSource,
    sender: mpsc::Sender<(LogSource, Bytes)>,
    end: watch::Receiver<End>,
) {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(CHUNK);
        let read = tokio::select! {
            read = pipe.read_buf(&mut buffer) => read,
            () = linger(end.clone()) => return,
        };
        match read {
            Ok(count) if count > 0 => drop(sender.send((source, buffer.split().freeze())).await),
            _ => return,
        }
    }
}

async fn linger(mut end: watch::Receiver<End>) {
    end.wait_for(|end| *end != End::Running).await.ok();
    tokio::time::sleep(LINGER).await;
}

/// What a process prints, as it comes; it ends when the process has closed its outputs.
pub struct ExecOutput {
    receiver: mpsc::Receiver<(LogSource, Bytes)>,
}

impl Stream for ExecOutput {
    type Item = (LogSource, Bytes);

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.receiver.poll_recv(context)
    }
}

/// Where to write a process's input.
pub struct ExecInput {
    /// `None` once the input has ended.
    open: Option<Open>,
}

/// The pipe goes before the word that it has gone: fields drop in order.
struct Open {
    pipe: Sender,
    _closed: oneshot::Sender<()>,
}

impl ExecInput {
    fn new(pipe: Sender, handle: ExecHandle) -> Self {
        let (closed, closing) = oneshot::channel::<()>();
        tokio::spawn(async move {
            // Dropping the sender is the message.
            closing.await.ok();
            let request = || CloseIoRequest {
                container_id: handle.container.clone(),
                exec_id: handle.exec.clone(),
                stdin: true,
            };
            // The shim holds the FIFO open too, until it is told.
            if let Err(error) = optional(ask!(handle.client, "closing an input", tasks.close_io(request()))) {
                tracing::debug!(%error, exec = handle.exec, "the end of an exec's input was not told");
            }
        });
        Self { open: Some(Open { pipe, _closed: closed }) }
    }
}

impl AsyncWrite for ExecInput {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.open {
            Some(open) => Pin::new(&mut open.pipe).poll_write(context, bytes),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.open = None;
        Poll::Ready(Ok(()))
    }
}
