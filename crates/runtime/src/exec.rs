//! Additional processes in running containers: exec and health probes.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::Stream;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use shoal_model::LogSource;

use crate::Result;

/// An additional process to run in a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecConfig {
    pub argv: Vec<String>,
    /// Added to the container's own environment, `KEY=value`.
    pub env: Vec<String>,
    /// Empty is the container's working directory.
    pub dir: String,
    /// `user[:group]`; empty is the container's user.
    pub user: String,
    pub tty: bool,
    /// Give the process an input.
    pub stdin: bool,
    /// All capabilities.
    pub privileged: bool,
}

/// What a health probe found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeResult {
    /// The probe's exit code; -1 when it could not run or took too long.
    pub exit_code: i32,
    /// The first 4096 bytes it printed, or why it has no exit code.
    pub output: String,
    pub started: Timestamp,
    pub ended: Timestamp,
}

/// A running additional process. It goes on when this is dropped; its output is then discarded.
pub struct Exec {
    pub id: String,
    pub pid: u32,
    /// Shutting it down or dropping it is the end of the process's input.
    pub stdin: Option<ExecInput>,
    pub output: ExecOutput,
}

impl Exec {
    /// Tells the terminal's size, in characters.
    pub async fn resize(&self, _width: u32, _height: u32) -> Result<()> {
        unimplemented!()
    }

    /// The exit code, as soon as there is one. May be called any number of times.
    pub async fn wait(&self) -> Result<i32> {
        unimplemented!()
    }

    /// A handle for waiting and resizing that is independent of input and output.
    pub fn handle(&self) -> ExecHandle {
        unimplemented!()
    }
}

/// Waits for and resizes an [`Exec`] whose streams are elsewhere.
#[derive(Clone)]
pub struct ExecHandle {}

/// Where to write a process's input.
pub struct ExecInput {}

/// What a process prints, as it comes; it ends when the process has closed its outputs.
pub struct ExecOutput {}

impl Stream for ExecOutput {
    type Item = (LogSource, Bytes);

    fn poll_next(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        unimplemented!()
    }
}

impl tokio::io::AsyncWrite for ExecInput {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<std::io::Result<usize>> {
        unimplemented!()
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        unimplemented!()
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        unimplemented!()
    }
}
