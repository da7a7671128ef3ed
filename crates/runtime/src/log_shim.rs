//! The process that writes a container's output to its log.
//!
//! containerd's shim starts it with the container's output at descriptor 3, its errors at 4, and 5
//! to be closed when all is ready (`binary://` in
//! <https://github.com/containerd/containerd/blob/v1.6.20/runtime/v2/README.md#logging>). It is part
//! of the container's life: if it died, the container's next write would fail. So it does this one
//! thing, needs no runtime and no daemon, and ends only at the end of both streams. When the disk is
//! full, lines are dropped and counted.
//!
//! A container with an input but no terminal cannot have such a logger: containerd gives it FIFOs, and
//! the daemon starts the same program to read them. Attached clients are served either way.

mod clients;

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::SigSet;
use shoal_model::{Labels, LogSource};

use crate::container::{LOCK, LOG, LOG_OPTIONS, OUTPUT};
use crate::log::Encoder;
use clients::Clients;
pub(crate) use clients::{HEADER, parse};

const STDOUT: i32 = 3;
const STDERR: i32 = 4;
const READY: i32 = 5;
/// With FIFOs, the end of the standard output says that all is ready.
const READY_WITH_FIFOS: i32 = 1;
/// Docker's pipe size: one read empties a pipe.
const BUFFER: usize = 64 << 10;
const DEFAULT_SIZE: u64 = 10_000_000;
const DEFAULT_FILES: u32 = 3;

/// Entry of `shoal log-shim DIR [FIFOS]`: logs to the container directory `dir` until the container's
/// output ends. It comes from inherited descriptors, or from the FIFOs in the directory `fifos`.
pub fn run(dir: &Path, fifos: Option<&Path>) -> ! {
    // containerd asks it to end when the task is deleted, while there may still be output to write:
    // blocked signals stay pending for ever. (SIGPIPE is ignored by Rust's runtime already.)
    SigSet::all().thread_block().ok();
    std::env::set_current_dir("/").ok();
    // What cannot be locked is logged all the same; readers that follow then end with the directory.
    let _lock = lock(dir);
    let mut log = Log::open(dir);
    let mut clients = Clients::listen(dir);
    let streams = [(STDOUT, "stdout", LogSource::Stdout), (STDERR, "stderr", LogSource::Stderr)];
    let sources = streams.into_iter().filter_map(|(descriptor, name, source)| match fifos {
        Some(fifos) => Source::fifo(&fifos.join(name), source),
        None => Source::inherited(descriptor, source),
    });
    let sources = sources.collect();
    nix::unistd::close(if fifos.is_some() { READY_WITH_FIFOS } else { READY }).ok();
    copy(&mut log, &mut clients, sources);
    std::fs::remove_file(dir.join(OUTPUT)).ok();
    std::process::exit(0)
}

/// Tells readers that a logger lives: the kernel lets go of the lock when this process ends, and
/// tells those who watch the file that it was closed. It is locked before it has its name, so that
/// whoever finds it unlocked knows that the logger has ended.
fn lock(dir: &Path) -> Option<File> {
    let new = dir.join(format!("{LOCK}.new"));
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&new).ok()?;
    fcntl(&file, FcntlArg::F_OFD_SETLK(&whole_file(nix::libc::F_WRLCK))).ok()?;
    std::fs::rename(&new, dir.join(LOCK)).ok()?;
    Some(file)
}

/// A record lock on all of a file.
pub(crate) fn whole_file(kind: i32) -> nix::libc::flock {
    nix::libc::flock {
        l_type: kind as i16,
        l_whence: nix::libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// One of the container's outputs.
struct Source {
    pipe: File,
    source: LogSource,
    encoder: Encoder,
}

impl Source {
    /// Opens an inherited descriptor anew, which needs no trust in its being one.
    fn inherited(descriptor: i32, source: LogSource) -> Option<Self> {
        let pipe = File::open(format!("/proc/self/fd/{descriptor}")).ok()?;
        nix::unistd::close(descriptor).ok();
        Some(Self { pipe, source, encoder: Encoder::new(source) })
    }

    /// Without waiting for the writer: until there is one, there is nothing to read and no end.
    fn fifo(path: &Path, source: LogSource) -> Option<Self> {
        let pipe = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path).ok()?;
        Some(Self { pipe, source, encoder: Encoder::new(source) })
    }
}

fn copy(log: &mut Log, clients: &mut Clients, mut sources: Vec<Source>) {
    let mut buffer = vec![0; BUFFER];
    while !sources.is_empty() {
        let socket = clients.socket();
        let descriptors = sources.iter().map(|source| source.pipe.as_fd()).chain(socket);
        let mut waiting: Vec<PollFd<'_>> = descriptors.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        if poll(&mut waiting, PollTimeout::NONE).is_err() {
            continue;
        }
        let ready: Vec<bool> = waiting.iter().map(|fd| fd.any().unwrap_or(true)).collect();
        clients.accept();
        let mut ready = ready.into_iter();
        sources
            .retain_mut(|source| !ready.next().unwrap_or(false) || log.drain(source, &mut buffer, clients));
    }
}

/// The log files of one container.
struct Log {
    dir: PathBuf,
    file: Option<File>,
    size: u64,
    limit: u64,
    files: u32,
    /// Lines that could not be written since the last that could.
    dropped: u64,
}

impl Log {
    fn open(dir: &Path) -> Self {
        let options = std::fs::read(dir.join(LOG_OPTIONS)).ok();
        let options: Labels = options.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        let (limit, files) = rotation(&options);
        let mut log = Self { dir: dir.to_owned(), file: None, size: 0, limit, files, dropped: 0 };
        log.reopen();
        log
    }

    fn reopen(&mut self) {
        self.file = OpenOptions::new().create(true).append(true).open(self.dir.join(LOG)).ok();
        self.size = self.file.as_ref().and_then(|file| file.metadata().ok()).map_or(0, |data| data.len());
    }

    /// Writes what one source has ready, then hands it to the clients; `false` at its end.
    fn drain(&mut self, source: &mut Source, buffer: &mut [u8], clients: &mut Clients) -> bool {
        let now = Timestamp::now();
        match source.pipe.read(buffer) {
            Ok(0) => {
                source.encoder.flush(now, &mut |line| self.write(line));
                false
            }
            Ok(count) => {
                // Lines of one read go to the file together, up to where it is full.
                let mut batch = Vec::with_capacity(count * 2);
                let mut lines = 0;
                source.encoder.push(&buffer[..count], now, &mut |line| {
                    if self.size + (batch.len() + line.len()) as u64 > self.limit && !batch.is_empty() {
                        self.write_lines(&batch, lines);
                        (batch, lines) = (Vec::new(), 0);
                    }
                    batch.extend_from_slice(line);
                    lines += 1;
                });
                self.write_lines(&batch, lines);
                clients.send(source.source, &buffer[..count]);
                true
            }
            Err(error) => matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock),
        }
    }

    fn write(&mut self, line: &[u8]) {
        self.write_lines(line, 1);
    }

    fn write_lines(&mut self, batch: &[u8], lines: u64) {
        if batch.is_empty() {
            return;
        }
        if self.size > 0 && self.size + batch.len() as u64 > self.limit {
            self.rotate();
        }
        // The note goes with the lines after it or not at all: alone it would fit again and again
        // where they do not.
        let mut text = Vec::new();
        if self.dropped > 0 {
            let note = format!("{} lines could not be written: the disk was full\n", self.dropped);
            let mut encoder = Encoder::new(LogSource::Stderr);
            encoder.push(note.as_bytes(), Timestamp::now(), &mut |line| text.extend_from_slice(line));
        }
        text.extend_from_slice(batch);
        if self.append(&text) {
            self.dropped = 0;
        } else {
            self.dropped += lines;
        }
    }

    /// All of the batch or nothing: a part of it would spoil the next line.
    fn append(&mut self, batch: &[u8]) -> bool {
        if self.file.is_none() {
            self.reopen();
        }
        let Some(file) = &mut self.file else { return false };
        if file.write_all(batch).is_ok() {
            self.size += batch.len() as u64;
            return true;
        }
        file.set_len(self.size).ok();
        file.seek(SeekFrom::End(0)).ok();
        false
    }

    /// `json.log` becomes `json.log.1`, and so on; the oldest goes. With a single file its contents
    /// go, as Docker has it.
    fn rotate(&mut self) {
        let name = |number: u32| match number {
            0 => self.dir.join(LOG),
            number => self.dir.join(format!("{LOG}.{number}")),
        };
        if self.files == 1 {
            std::fs::remove_file(name(0)).ok();
        }
        for number in (1..self.files).rev() {
            std::fs::rename(name(number - 1), name(number)).ok();
        }
        self.file = None;
        self.reopen();
    }
}

/// How large a file may become and how many there are. What makes no sense is taken for the default:
/// a logger that gives up would end the container.
fn rotation(options: &Labels) -> (u64, u32) {
    let limit = options.get("max-size").and_then(|text| bytes(text)).unwrap_or(DEFAULT_SIZE);
    let files = options.get("max-file").and_then(|text| text.parse().ok()).unwrap_or(DEFAULT_FILES);
    (limit.max(1), files.max(1))
}

/// Docker's sizes: `10m`, `512k`, `1g`, in powers of 1024; `-1` is no limit.
fn bytes(text: &str) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    if text == "-1" {
        return Some(u64::MAX);
    }
    let text = text.strip_suffix('b').unwrap_or(&text);
    let (digits, scale) = match text.strip_suffix(['k', 'm', 'g']) {
        Some(digits) if text.ends_with('k') => (digits, 1 << 10),
        Some(digits) if text.ends_with('m') => (digits, 1 << 20),
        Some(digits) => (digits, 1 << 30),
        None => (text, 1),
    };
    digits.trim().parse::<u64>().ok()?.checked_mul(scale).filter(|&size| size > 0)
}
