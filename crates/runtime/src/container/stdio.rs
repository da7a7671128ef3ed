//! A container's input and output: who writes its log, and how clients attach to it.
//!
//! Output always goes to a logger, and attached clients get it from there. With an input but without
//! a terminal, containerd offers no logger: it gets FIFOs, which a logger of ours reads. Those are
//! there for as long as the container is.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Stdio;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use containerd_client::services::v1::{CloseIoRequest, ResizePtyRequest};
use nix::errno::Errno;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use shoal_model::{ContainerId, ContainerSpec, LogSource};
use tokio::io::{AsyncReadExt, AsyncWrite};
use tokio::net::UnixStream;
use tokio::net::unix::pipe::{OpenOptions, Sender};

use super::create::blocking;
use super::files::{LOCK, OUTPUT};
use super::{Containers, remove_dir};
use crate::client::{Client, ask, optional};
use crate::log::has_ended;
use crate::log_shim::{HEADER, parse};
use crate::{Error, Result};

/// A logger is ready within this time, or does not come up.
const LOGGER_START: Duration = Duration::from_secs(10);
/// The longest piece of output that a logger hands out at once.
const PIECE_MAX: u32 = 1 << 20;

/// What containerd is told of a container's streams; empty for none.
pub(super) struct Streams {
    pub(super) stdin: String,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

/// Containers of this kind cannot have a logger that containerd starts.
fn needs_fifos(spec: &ContainerSpec) -> bool {
    spec.open_stdin && !spec.tty
}

impl Containers {
    /// Makes ready what a container's process will read from and write to.
    pub(super) async fn streams(&self, id: &ContainerId, spec: &ContainerSpec) -> Result<Streams> {
        // Left by an attempt that failed, it would tell readers that the output has ended.
        tokio::fs::remove_file(self.dir(id).join(LOCK)).await.ok();
        let io = self.io(id);
        let fifo = |name: &str| io.join(name).display().to_string();
        let names: &[&str] = match (spec.open_stdin, needs_fifos(spec)) {
            (false, _) => &[],
            (true, false) => &["stdin"],
            (true, true) => &["stdin", "stdout", "stderr"],
        };
        let dir = io.clone();
        blocking(move || make_fifos(&dir, names)).await?;
        let stdin = if spec.open_stdin { fifo("stdin") } else { String::new() };
        if needs_fifos(spec) {
            self.start_logger(id).await?;
            return Ok(Streams { stdin, stdout: fifo("stdout"), stderr: fifo("stderr") });
        }
        let logger = self.logger(id);
        // A terminal has one output.
        let stderr = if spec.tty { String::new() } else { logger.clone() };
        Ok(Streams { stdin, stdout: logger, stderr })
    }

    /// The URI by which containerd's shim starts the logger.
    fn logger(&self, id: &ContainerId) -> String {
        let escape = |path: &Path| {
            use std::os::unix::ffi::OsStrExt;
            let keep = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte);
            let one =
                |&byte: &u8| if keep(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
            path.as_os_str().as_bytes().iter().map(one).collect::<String>()
        };
        format!("binary://{}?log-shim={}", escape(&self.config.executable), escape(&self.dir(id)))
    }

    /// Starts a logger that reads the container's FIFOs, and waits until it does. It outlives this
    /// process.
    async fn start_logger(&self, id: &ContainerId) -> Result<()> {
        let program = &self.config.executable;
        let mut child = tokio::process::Command::new(program)
            .arg("log-shim")
            .arg(self.dir(id))
            .arg(self.io(id))
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(Error::io(program))?;
        let mut nothing = Vec::new();
        if let Some(mut output) = child.stdout.take() {
            let ready = tokio::time::timeout(LOGGER_START, output.read_to_end(&mut nothing));
            ready.await.map_err(|_| Error::Task(format!("the logger of {id} does not start")))?.ok();
        }
        Ok(())
    }

    /// Replaces the logger of a running container with FIFOs if it is gone.
    pub(crate) async fn keep_logged(&self, id: &ContainerId, spec: &ContainerSpec) -> Result<()> {
        if needs_fifos(spec) && has_ended(&self.dir(id)) {
            tracing::warn!(container = %id, "the container's logger is gone, starting another");
            self.start_logger(id).await?;
        }
        Ok(())
    }

    /// Where a container's own FIFOs are; removed with the container.
    fn io(&self, id: &ContainerId) -> PathBuf {
        self.fifos(id.as_str()).join("io")
    }

    /// What the container prints from now on; `None` when its output has ended.
    pub(crate) async fn output(&self, id: &ContainerId) -> Result<Option<ContainerOutput>> {
        let dir = self.dir(id);
        // A socket's path may have 108 bytes only: the directory is named by its descriptor.
        let opened = std::fs::File::open(&dir).map_err(Error::io(&dir))?;
        let short = format!("/proc/self/fd/{}/{OUTPUT}", std::os::fd::AsRawFd::as_raw_fd(&opened));
        match UnixStream::connect(short).await {
            Ok(stream) => Ok(Some(ContainerOutput { stream })),
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                Ok(None)
            }
            Err(error) => Err(Error::io(dir.join(OUTPUT))(error)),
        }
    }

    /// Where to write the input of a started container that has one.
    pub(crate) fn input(&self, id: &ContainerId) -> Result<ContainerInput> {
        let path = self.io(id).join("stdin");
        // For reading too, so that opening does not depend on who else has it open.
        let pipe = OpenOptions::new().read_write(true).open_sender(&path).map_err(Error::io(&path))?;
        Ok(ContainerInput { pipe, client: self.client().clone(), container: id.to_string() })
    }

    /// Tells the size of the container's terminal, in characters.
    pub(crate) async fn resize(&self, id: &ContainerId, width: u32, height: u32) -> Result<()> {
        let request =
            || ResizePtyRequest { container_id: id.to_string(), exec_id: String::new(), width, height };
        // One that has ended meanwhile has no terminal any more, which nobody minds.
        optional(ask!(self.client(), "resizing a terminal", tasks.resize_pty(request()))).map(drop)
    }
}

/// New ones each time: what an earlier run left unread is not for the next.
fn make_fifos(dir: &Path, names: &[&str]) -> Result<()> {
    remove_dir(dir)?;
    if names.is_empty() {
        return Ok(());
    }
    std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
    for name in names {
        let path = dir.join(name);
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)
            .map_err(|errno: Errno| Error::io(&path)(errno.into()))?;
    }
    Ok(())
}

/// What a container prints, piece by piece as it comes.
pub struct ContainerOutput {
    stream: UnixStream,
}

impl ContainerOutput {
    /// The next piece; `None` when the output has ended. Not to be cancelled.
    pub async fn next(&mut self) -> Option<(LogSource, Bytes)> {
        let mut header = [0; HEADER];
        self.stream.read_exact(&mut header).await.ok()?;
        let (source, length) = parse(header).filter(|(_, length)| *length <= PIECE_MAX)?;
        let mut bytes = vec![0; usize::try_from(length).ok()?];
        self.stream.read_exact(&mut bytes).await.ok()?;
        Some((source, bytes.into()))
    }
}

/// Where to write a container's input. Dropping it is not the input's end: others may write too.
pub struct ContainerInput {
    pipe: Sender,
    client: Client,
    container: String,
}

impl ContainerInput {
    /// Ends the container's input.
    pub async fn close(self) -> Result<()> {
        let Self { pipe, client, container } = self;
        drop(pipe);
        let request =
            || CloseIoRequest { container_id: container.clone(), exec_id: String::new(), stdin: true };
        // The shim holds the FIFO open too, until it is told.
        optional(ask!(client, "closing an input", tasks.close_io(request()))).map(drop)
    }
}

impl AsyncWrite for ContainerInput {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.pipe).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
