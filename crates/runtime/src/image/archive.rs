//! An image archive laid out on disk, so that its parts can be read in any order.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::io::AsyncRead;

use crate::{Error, Result};

/// Manifests and configurations larger than this are not believed.
const LARGEST_DOCUMENT: u64 = 8 << 20;
/// Links to links: more are a loop.
const MOST_LINKS: usize = 16;
const BUFFER: usize = 256 << 10;

/// How a stream of bytes is compressed, by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            _ => Self::None,
        }
    }

    pub(super) fn of_file(path: &Path) -> Result<Self> {
        let mut start = Vec::new();
        let file = File::open(path).map_err(Error::io(path))?;
        file.take(4).read_to_end(&mut start).map_err(Error::io(path))?;
        Ok(Self::of(&start))
    }
}

/// A file of known contents.
#[derive(Debug, Clone)]
pub(super) struct Spooled {
    pub(super) path: PathBuf,
    pub(super) size: u64,
    /// `sha256:…`
    pub(super) digest: String,
}

/// The regular files of a tar, numbered in a directory that goes with this value. No name from the
/// archive is ever used as a path on disk.
pub(super) struct Archive {
    _dir: TempDir,
    files: HashMap<String, Spooled>,
    links: HashMap<String, String>,
}

/// A new directory below `parent`. It is named after this process, so that one left by a process
/// that was killed can be told from those in use.
pub(super) fn temporary(parent: &Path) -> Result<TempDir> {
    std::fs::create_dir_all(parent).map_err(Error::io(parent))?;
    let prefix = format!("{}-", std::process::id());
    tempfile::Builder::new().prefix(&prefix).tempdir_in(parent).map_err(Error::io(parent))
}

/// Runs file work on a thread that may block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Error::Task(error.to_string()))?
}

/// Writes a stream to a file of `dir` and takes its digest.
pub(super) async fn spool(input: impl AsyncRead + Send + Unpin, dir: &Path) -> Result<Spooled> {
    let path = dir.join("stream");
    receive(input, &path).await?;
    blocking(move || digest(path)).await
}

/// Copies a caller's stream, which need not be `'static`, to a file.
async fn receive(mut input: impl AsyncRead + Send + Unpin, path: &Path) -> Result<()> {
    let mut file = tokio::fs::File::create(path).await.map_err(Error::io(path))?;
    file.set_max_buf_size(BUFFER);
    tokio::io::copy(&mut input, &mut file).await.map_err(Error::io(path))?;
    tokio::io::AsyncWriteExt::flush(&mut file).await.map_err(Error::io(path))
}

fn digest(path: PathBuf) -> Result<Spooled> {
    let mut file = File::open(&path).map_err(Error::io(&path))?;
    let (mut hash, mut size, mut buffer) = (Sha256::new(), 0, vec![0; BUFFER]);
    loop {
        let count = file.read(&mut buffer).map_err(Error::io(&path))?;
        if count == 0 {
            return Ok(Spooled { path, size, digest: format!("sha256:{}", hex::encode(hash.finalize())) });
        }
        hash.update(&buffer[..count]);
        size += count as u64;
    }
}

impl Archive {
    /// Reads a tar, plain or gzip, to its end.
    pub(super) async fn read(input: impl AsyncRead + Send + Unpin, parent: &Path) -> Result<Self> {
        let dir = temporary(parent)?;
        let whole = dir.path().join("archive");
        receive(input, &whole).await?;
        blocking(move || Self::unpack(&whole, dir)).await
    }

    fn unpack(whole: &Path, dir: TempDir) -> Result<Self> {
        let file = BufReader::with_capacity(BUFFER, File::open(whole).map_err(Error::io(whole))?);
        let plain: Box<dyn Read> = match Compression::of_file(whole)? {
            Compression::None => Box::new(file),
            Compression::Gzip => Box::new(MultiGzDecoder::new(file)),
            Compression::Zstd => {
                return Err(Error::InvalidArchive(
                    "an archive compressed by zstd is not understood".to_owned(),
                ));
            }
        };
        let bad = |error: std::io::Error| Error::InvalidArchive(error.to_string());
        let (mut files, mut links) = (HashMap::new(), HashMap::new());
        for (number, entry) in tar::Archive::new(plain).entries().map_err(bad)?.enumerate() {
            let mut entry = entry.map_err(bad)?;
            let name = clean(&entry.path().map_err(bad)?.to_string_lossy());
            let kind = entry.header().entry_type();
            if kind.is_file() {
                let path = dir.path().join(number.to_string());
                files.insert(name, store(&mut entry, path)?);
            } else if let Some(target) = entry.link_name().map_err(bad)? {
                let target = target.to_string_lossy();
                let base =
                    if kind.is_symlink() { name.rsplit_once('/').map_or("", |(dir, _)| dir) } else { "" };
                links.insert(name.clone(), clean(&format!("{base}/{target}")));
            }
        }
        // The parts are all there now; the whole is not needed twice.
        std::fs::remove_file(whole).map_err(Error::io(whole))?;
        Ok(Self { _dir: dir, files, links })
    }

    /// A file of the archive, through links.
    pub(super) fn file(&self, name: &str) -> Option<&Spooled> {
        let mut name = clean(name);
        for _ in 0..MOST_LINKS {
            if let Some(file) = self.files.get(&name) {
                return Some(file);
            }
            name = self.links.get(&name)?.clone();
        }
        None
    }

    pub(super) fn require(&self, name: &str) -> Result<&Spooled> {
        self.file(name).ok_or_else(|| Error::InvalidArchive(format!("{name} is missing")))
    }

    /// The contents of a small file.
    pub(super) async fn document(&self, name: &str) -> Result<Vec<u8>> {
        let file = self.require(name)?;
        if file.size > LARGEST_DOCUMENT {
            return Err(Error::InvalidArchive(format!("{name} is too large")));
        }
        tokio::fs::read(&file.path).await.map_err(Error::io(&file.path))
    }
}

fn store(entry: &mut impl Read, path: PathBuf) -> Result<Spooled> {
    let file = File::create(&path).map_err(Error::io(&path))?;
    let mut writer = Hashing { inner: BufWriter::with_capacity(BUFFER, file), hash: Sha256::new() };
    let size = std::io::copy(entry, &mut writer).map_err(|error| Error::InvalidArchive(error.to_string()))?;
    writer.flush().map_err(Error::io(&path))?;
    Ok(Spooled { path, size, digest: format!("sha256:{}", hex::encode(writer.hash.finalize())) })
}

struct Hashing<W> {
    inner: W,
    hash: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hash.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

/// One spelling per file: without `.`, `..` and superfluous slashes.
fn clean(name: &str) -> String {
    let mut parts = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tar(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        build(&mut builder);
        builder.into_inner().unwrap()
    }

    fn add(builder: &mut tar::Builder<Vec<u8>>, name: &str, data: &[u8]) {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, data).unwrap();
    }

    #[tokio::test]
    async fn files_are_found_through_links_and_never_leave_the_directory() {
        let bytes = tar(|builder| {
            add(builder, "./a/layer.tar", b"hello");
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            builder.append_link(&mut header, "b/layer.tar", "../a/layer.tar").unwrap();
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            builder.append_link(&mut header, "loop", "loop").unwrap();
        });
        let parent = tempfile::tempdir().unwrap();
        let archive = Archive::read(&bytes[..], parent.path()).await.unwrap();
        assert_eq!(archive.document("b/layer.tar").await.unwrap(), b"hello");
        let digest = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        assert_eq!(archive.require("a/layer.tar").unwrap().digest, digest);
        assert!(archive.file("loop").is_none());
        assert!(archive.file("nothing").is_none());
        drop(archive);
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0, "nothing stays");
    }

    #[tokio::test]
    async fn what_is_no_tar_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let error = Archive::read(&[7u8; 2000][..], parent.path()).await.err().unwrap();
        assert!(matches!(error, Error::InvalidArchive(_)), "{error}");
    }
}
