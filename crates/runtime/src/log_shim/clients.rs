//! Whoever is attached to a container's output: one connection each on a socket in the container's
//! directory.
//!
//! What the container prints goes to each of them as it comes, each piece behind a [`header`]. A client that does
//! not read holds the container back, as Docker has it: nothing of what an attached client is to see
//! may be lost.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use shoal_model::LogSource;

use crate::container::OUTPUT;

/// Bytes before each piece of output: its source and, big-endian, its length.
pub(crate) const HEADER: usize = 5;

pub(crate) fn header(source: LogSource, length: u32) -> [u8; HEADER] {
    let [a, b, c, d] = length.to_be_bytes();
    let source = match source {
        LogSource::Stdout => 1,
        LogSource::Stderr => 2,
    };
    [source, a, b, c, d]
}

pub(crate) fn parse(header: [u8; HEADER]) -> Option<(LogSource, u32)> {
    let [source, a, b, c, d] = header;
    let source = match source {
        1 => LogSource::Stdout,
        2 => LogSource::Stderr,
        _ => return None,
    };
    Some((source, u32::from_be_bytes([a, b, c, d])))
}

/// The listening socket and its connections. A socket that cannot be made leaves the container
/// without attached clients, not without a log.
pub(super) struct Clients {
    listener: Option<UnixListener>,
    connected: Vec<UnixStream>,
}

impl Clients {
    /// Listens in `dir`. The path is kept short by going there, since a socket's may have 108 bytes.
    pub(super) fn listen(dir: &Path) -> Self {
        let bind = || {
            std::env::set_current_dir(dir)?;
            std::fs::remove_file(OUTPUT).ok();
            let listener = UnixListener::bind(OUTPUT)?;
            listener.set_nonblocking(true)?;
            Ok::<_, std::io::Error>(listener)
        };
        let listener = bind().ok();
        std::env::set_current_dir("/").ok();
        Self { listener, connected: Vec::new() }
    }

    pub(super) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.listener.as_ref().map(AsFd::as_fd)
    }

    /// Takes in all who wait. To be called before output is read that they are to see.
    pub(super) fn accept(&mut self) {
        while let Some(Ok((client, _))) = self.listener.as_ref().map(UnixListener::accept) {
            if client.set_nonblocking(false).is_ok() {
                self.connected.push(client);
            }
        }
    }

    /// Hands a piece of output to everybody; who is gone is forgotten.
    pub(super) fn send(&mut self, source: LogSource, bytes: &[u8]) {
        let Ok(length) = u32::try_from(bytes.len()) else { return };
        let header = header(source, length);
        self.connected
            .retain_mut(|client| client.write_all(&header).and_then(|()| client.write_all(bytes)).is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_the_way() {
        for source in [LogSource::Stdout, LogSource::Stderr] {
            assert_eq!(parse(header(source, 70_000)), Some((source, 70_000)));
        }
        assert_eq!(parse([3, 0, 0, 0, 1]), None);
    }
}
