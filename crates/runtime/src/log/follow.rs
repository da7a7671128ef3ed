//! A container's log as a stream, followed by inotify: no polling.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use shoal_model::{LogEntry, LogSelector, LogSource};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use super::line::decode;
use super::reader::Reader;
use crate::container::LOCK;
use crate::log_shim::whole_file;
use crate::{Error, Result};

/// Entries that wait for a slow reader.
const QUEUE: usize = 256;

/// The entries of the log in `dir` that `selector` wants. With `follow` it ends when the logger has
/// ended or the directory is gone. `id` is for the error when there is no such directory.
pub(crate) fn read(dir: PathBuf, id: String, selector: LogSelector) -> mpsc::Receiver<Result<LogEntry>> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let failed = if dir.is_dir() {
            send(&dir, &selector, &sender).await.err()
        } else {
            Some(Error::NoSuchContainer(id))
        };
        if let Some(error) = failed {
            // The receiver may be gone: then nobody wants to know.
            sender.send(Err(error)).await.ok();
        }
    });
    receiver
}

async fn send(dir: &Path, selector: &LogSelector, sender: &mpsc::Sender<Result<LogEntry>>) -> Result<()> {
    // Watched before it is read, so that no change falls between.
    let watch = if selector.follow { Some(watch(dir)?) } else { None };
    let (owned, tail) = (dir.to_owned(), selector.tail);
    let mut reader = blocking(dir, move || Reader::open(&owned, tail)).await?;
    loop {
        // Asked before reading: what a logger wrote before it ended is then read for certain.
        let ended = has_ended(dir);
        let lines;
        (reader, lines) = blocking(dir, move || reader.lines().map(|lines| (reader, lines))).await?;
        let idle = lines.is_empty();
        for entry in lines.iter().filter_map(|line| decode(line)) {
            if selector.until.is_some_and(|until| entry.time >= until) {
                return Ok(());
            }
            if wanted(selector, &entry) && sender.send(Ok(entry)).await.is_err() {
                return Ok(());
            }
        }
        match &watch {
            _ if !idle => {}
            Some(watch) if !ended => {
                tokio::select! {
                    changed = next_change(watch, dir) => if !changed? { return Ok(()) },
                    () = sender.closed() => return Ok(()),
                    () = passed(selector.until) => return Ok(()),
                }
            }
            _ => return Ok(()),
        }
    }
}

fn wanted(selector: &LogSelector, entry: &LogEntry) -> bool {
    let stream = match entry.source {
        LogSource::Stdout => selector.stdout,
        LogSource::Stderr => selector.stderr,
    };
    stream && selector.since.is_none_or(|since| entry.time >= since)
}

async fn passed(until: Option<Timestamp>) {
    match until {
        None => std::future::pending().await,
        Some(until) => {
            let left = until.duration_since(Timestamp::now());
            tokio::time::sleep(left.try_into().unwrap_or_default()).await;
        }
    }
}

/// The logger was there and is not any more: its file is there and unlocked.
pub(crate) fn has_ended(dir: &Path) -> bool {
    let path = dir.join(LOCK);
    let Ok(file) = File::open(&path) else { return !dir.is_dir() };
    let mut lock = whole_file(nix::libc::F_WRLCK);
    match fcntl(&file, FcntlArg::F_OFD_GETLK(&mut lock)) {
        Ok(_) => i32::from(lock.l_type) == nix::libc::F_UNLCK,
        Err(_) => false,
    }
}

/// An inotify instance as tokio wants it.
struct Watch(Inotify);

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

fn watch(dir: &Path) -> Result<AsyncFd<Watch>> {
    let failed = |errno: Errno| Error::io(dir)(errno.into());
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).map_err(failed)?;
    let changes = AddWatchFlags::IN_MODIFY
        | AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_ONLYDIR;
    inotify.add_watch(dir, changes).map_err(failed)?;
    // Its successor is for those who cannot vouch for their descriptor: `Watch` owns its own.
    #[expect(deprecated)]
    AsyncFd::new(Watch(inotify)).map_err(Error::io(dir))
}

/// Waits until something in the directory changes; `false` when the directory is gone.
async fn next_change(watch: &AsyncFd<Watch>, dir: &Path) -> Result<bool> {
    loop {
        let mut ready = watch.readable().await.map_err(Error::io(dir))?;
        match watch.get_ref().0.read_events() {
            Ok(events) => {
                let gone = AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_IGNORED;
                return Ok(!events.iter().any(|event| event.mask.intersects(gone)));
            }
            Err(Errno::EAGAIN) => ready.clear_ready(),
            Err(errno) => return Err(Error::io(dir)(errno.into())),
        }
    }
}

async fn blocking<T: Send + 'static>(
    dir: &Path,
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await.map_err(|error| Error::Task(error.to_string()))?;
    done.map_err(Error::io(dir))
}
