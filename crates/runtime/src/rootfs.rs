//! Looking into a container's file system before it runs, and while it does.
//!
//! Names in there mean what they mean inside the container: links are followed below its root only.
//! A thread of its own takes the container's root, in a mount namespace of its own that goes with
//! the thread, so nothing is left mounted, whatever happens to this process.

mod copy;

use std::io::Read;
use std::path::{Path, PathBuf};

use containerd_client::types::Mount;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{chdir, chroot};

use crate::{Error, Result};

/// Larger account files than this are cut.
const LARGEST_FILE: u64 = 4 << 20;

/// Where a container's root is to be found.
pub(crate) enum Root {
    /// A snapshot that nothing has mounted, and an empty directory to mount it on.
    Snapshot { mounts: Vec<Mount>, at: PathBuf },
    /// The root of a running process.
    Process(u32),
}

/// `/etc/passwd` and `/etc/group` as the container sees them; empty when missing.
pub(crate) struct Accounts {
    pub(crate) passwd: String,
    pub(crate) group: String,
}

impl Root {
    /// Reads the account files.
    pub(crate) async fn accounts(self) -> Result<Accounts> {
        let (reply, answer) = tokio::sync::oneshot::channel();
        let thread = std::thread::Builder::new().name("rootfs".to_owned());
        let work = move || {
            // The receiver is gone only when nobody wants the answer any more.
            let _ = reply.send(
                self.enter().map(|()| Accounts { passwd: read("/etc/passwd"), group: read("/etc/group") }),
            );
        };
        thread.spawn(work).map_err(Error::io("thread"))?;
        answer.await.map_err(|_| Error::Task("reading a container's accounts".to_owned()))?
    }

    /// Copies what is in a directory of it into a directory of the node. None, or something else than a directory, is
    /// fine, and nothing is copied.
    pub(crate) async fn copy(self, from: String, into: PathBuf) -> Result<()> {
        let (reply, answer) = tokio::sync::oneshot::channel();
        let thread = std::thread::Builder::new().name("rootfs".to_owned());
        let work = move || {
            // Opened before the root is another one.
            let opened = std::fs::File::open(&into).map_err(Error::io(&into));
            let copied = opened.and_then(|into| {
                self.enter()?;
                copy::directory(Path::new(&from), &into)
            });
            let _ = reply.send(copied);
        };
        thread.spawn(work).map_err(Error::io("thread"))?;
        answer.await.map_err(|_| Error::Task("filling a volume".to_owned()))?
    }

    /// Makes this thread, and nothing else, see the container's root as its own.
    fn enter(&self) -> Result<()> {
        let failed = |what: &str| {
            let what = PathBuf::from(what);
            move |errno: nix::Error| Error::Io { path: what, source: errno.into() }
        };
        unshare(CloneFlags::CLONE_FS).map_err(failed("unshare"))?;
        let root = match self {
            Root::Process(pid) => PathBuf::from(format!("/proc/{pid}/root")),
            Root::Snapshot { mounts, at } => {
                unshare(CloneFlags::CLONE_NEWNS).map_err(failed("unshare"))?;
                let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
                mount(None::<&str>, "/", None::<&str>, private, None::<&str>).map_err(failed("/"))?;
                for one in mounts {
                    mount_snapshot(one, at).map_err(failed(&one.source))?;
                }
                at.clone()
            }
        };
        chroot(&root).map_err(failed("chroot"))?;
        chdir("/").map_err(failed("/"))
    }
}

fn read(path: &str) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = std::fs::File::open(path) {
        // What cannot be read is treated like what is not there.
        let _ = file.take(LARGEST_FILE).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Mounts what containerd's overlayfs snapshotter describes, read-only.
fn mount_snapshot(description: &Mount, at: &Path) -> nix::Result<()> {
    if description.r#type == "bind" {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
        return mount(Some(description.source.as_str()), at, None::<&str>, flags, None::<&str>);
    }
    // The kernel takes one page of options: many layers fit only as relative paths.
    let base = description.options.iter().find_map(|option| {
        let first = option.strip_prefix("lowerdir=")?.split(':').next()?;
        Some(format!("{}/", Path::new(first).parent()?.parent()?.display()))
    });
    let relative = |option: &String| match &base {
        Some(base) => option.replace(base, ""),
        None => option.clone(),
    };
    let ours = |option: &&String| !matches!(option.as_str(), "ro" | "rw");
    let options: Vec<String> = description.options.iter().filter(ours).map(relative).collect();
    if let Some(base) = &base {
        chdir(base.as_str())?;
    }
    mount(
        Some(description.source.as_str()),
        at,
        Some(description.r#type.as_str()),
        MsFlags::MS_RDONLY,
        Some(options.join(",").as_str()),
    )
}
