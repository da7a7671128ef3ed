//! Network namespaces: named by bind mounts, entered on threads of their own.
//!
//! A thread that enters a namespace is never given back to a pool, so no other work ever runs in a
//! namespace by accident. Sockets belong to the namespace they were made in and are handed out.

use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{NSFS_MAGIC, statfs};
use tokio::sync::oneshot;

use crate::{Error, Result};

/// More mounts than this on one path are not ours to clear.
const MAX_STACKED_MOUNTS: usize = 8;

/// An open network namespace.
#[derive(Debug, Clone)]
pub(crate) struct Namespace {
    file: Arc<OwnedFd>,
    path: PathBuf,
}

impl Namespace {
    /// The one the calling thread is in.
    pub(crate) fn current() -> Result<Self> {
        let path = Path::new("/proc/thread-self/ns/net");
        let file = Arc::new(open(path)?);
        // Valid for this process's life, and for others that may look into it.
        let path = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()));
        Ok(Self { file, path })
    }

    /// A named one.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        if !is_mounted(path)? {
            return Err(Error::NoNamespace(path.to_owned()));
        }
        Ok(Self { file: Arc::new(open(path)?), path: path.to_owned() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn fd(&self) -> i32 {
        self.file.as_raw_fd()
    }

    /// Runs blocking work inside the namespace.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let file = self.file.clone();
        let path = self.path.clone();
        on_thread(move || {
            setns(&*file, CloneFlags::CLONE_NEWNET)
                .map_err(Error::nix(format!("enter {}", path.display())))?;
            work()
        })
        .await
    }
}

fn open(path: &Path) -> Result<OwnedFd> {
    Ok(File::open(path).map_err(Error::io(format!("open {}", path.display())))?.into())
}

/// Runs work on a thread that ends with it.
async fn on_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new()
        .name("netns".to_owned())
        .spawn(move || sender.send(work()))
        .map_err(Error::io("start a thread"))?;
    receiver.await.map_err(|_| Error::Unexpected("a namespace thread died".to_owned()))?
}

/// The directory that holds a node's namespaces.
#[derive(Debug, Clone)]
pub(crate) struct Directory(PathBuf);

impl Directory {
    pub(crate) fn new(run_dir: &Path) -> Self {
        Self(run_dir.join("netns"))
    }

    /// Where the namespace of that name is, or would be.
    pub(crate) fn path(&self, name: &str) -> Result<PathBuf> {
        let plain = !name.is_empty()
            && name.len() <= 200
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
            && !name.starts_with('.');
        if plain { Ok(self.0.join(name)) } else { Err(Error::InvalidName(name.to_owned())) }
    }

    /// Opens the namespace of that name, making it first where it does not exist. The second value
    /// tells whether it is new.
    pub(crate) async fn ensure(&self, name: &str) -> Result<(Namespace, bool)> {
        let path = self.path(name)?;
        if is_mounted(&path)? {
            return Ok((Namespace::open(&path)?, false));
        }
        fs::create_dir_all(&self.0).map_err(Error::io(format!("create {}", self.0.display())))?;
        // A file without a mount is what a reboot leaves of a former namespace.
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(Error::io(format!("create {}", path.display())))?;
        let target = path.clone();
        on_thread(move || {
            unshare(CloneFlags::CLONE_NEWNET).map_err(Error::nix("make a network namespace"))?;
            let source = Path::new("/proc/thread-self/ns/net");
            mount(Some(source), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .map_err(Error::nix(format!("mount a namespace at {}", target.display())))
        })
        .await?;
        Ok((Namespace::open(&path)?, true))
    }

    /// Opens the namespace of that name; `None` where there is none.
    pub(crate) fn get(&self, name: &str) -> Result<Option<Namespace>> {
        let path = self.path(name)?;
        if is_mounted(&path)? { Namespace::open(&path).map(Some) } else { Ok(None) }
    }

    /// Takes the name away; the namespace lives on as long as something is in it.
    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        let path = self.path(name)?;
        for _ in 0..MAX_STACKED_MOUNTS {
            match umount2(&path, MntFlags::MNT_DETACH) {
                Ok(()) => {}
                Err(Errno::EINVAL | Errno::ENOENT) => break,
                Err(error) => return Err(Error::nix(format!("unmount {}", path.display()))(error)),
            }
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io(format!("remove {}", path.display()))(error))
            }
            _ => Ok(()),
        }
    }

    /// All names, also of files that are no namespace (any more).
    pub(crate) fn names(&self) -> Result<Vec<String>> {
        let entries = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(Error::io(format!("read {}", self.0.display())))?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(Error::io(format!("read {}", self.0.display())))?;
            names.extend(entry.file_name().into_string().ok());
        }
        names.sort();
        Ok(names)
    }

    /// Removes the directory itself when it is empty.
    pub(crate) fn remove_if_empty(&self) {
        // Not empty, or not there: both are fine.
        let _ = fs::remove_dir(&self.0);
    }
}

fn is_mounted(path: &Path) -> Result<bool> {
    match statfs(path) {
        Ok(stat) => Ok(stat.filesystem_type() == NSFS_MAGIC),
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(false),
        Err(error) => Err(Error::nix(format!("look at {}", path.display()))(error)),
    }
}
