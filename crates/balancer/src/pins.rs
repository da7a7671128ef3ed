//! Where the kernel's objects are kept while no process holds them.
//!
//! `<pins>/<layout>/maps/<map>` and `<pins>/<layout>/links/<hook>`. Another layout's pins are never
//! adopted; they go on working beside ours until they are retired.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use crate::layout::LAYOUT;
use crate::{Error, Result, sys};

const BPFFS: &str = "/sys/fs/bpf";

pub(crate) struct Pins {
    pub(crate) maps: PathBuf,
    pub(crate) links: PathBuf,
}

impl Pins {
    /// Where they are, or would be.
    pub(crate) fn of(root: &Path) -> Self {
        let layout = root.join(LAYOUT.to_string());
        Self { maps: layout.join("maps"), links: layout.join("links") }
    }

    pub(crate) fn prepare(root: &Path) -> Result<Self> {
        mount_bpffs(root)?;
        let pins = Self::of(root);
        for directory in [&pins.maps, &pins.links] {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
            made.map_err(|source| Error::File { action: "make", path: directory.clone(), source })?;
        }
        Ok(pins)
    }
}

/// Maps by the names under which they are pinned, held open: they can be pinned again.
pub(crate) struct PinnedMaps(Vec<(OsString, OwnedFd)>);

impl PinnedMaps {
    pub(crate) fn open(pins: &Pins) -> Result<Self> {
        let open = |path: PathBuf| {
            let failed = |source| Error::File { action: "open", path: path.clone(), source };
            let map = sys::object_get(&path).map_err(failed)?;
            Ok((path.file_name().unwrap_or_default().to_owned(), map))
        };
        Ok(Self(entries(&pins.maps)?.into_iter().map(open).collect::<Result<_>>()?))
    }

    /// The names under which none is pinned any more.
    pub(crate) fn missing(&self, pins: &Pins) -> Vec<String> {
        let missing = self.0.iter().filter(|(name, _)| !pins.maps.join(name).exists());
        missing.map(|(name, _)| name.to_string_lossy().into_owned()).collect()
    }

    /// Pins again what is not pinned any more.
    pub(crate) fn restore(&self, pins: &Pins) -> Result<()> {
        for (name, map) in &self.0 {
            let path = pins.maps.join(name);
            if !path.exists() {
                let failed = |source| Error::File { action: "pin", path: path.clone(), source };
                sys::object_pin(map, &path).map_err(failed)?;
            }
        }
        Ok(())
    }
}

/// Removes the pins of every layout version but ours.
pub(crate) fn retire_other_layouts(root: &Path) -> Result<()> {
    let ours = LAYOUT.to_string();
    let others = entries(root)?.into_iter().filter(|path| !path.ends_with(&ours));
    several(others.map(|path| remove_tree(&path)).filter_map(Result::err).collect())
}

/// Removes a directory of pins and all below, links before what they use. Nothing there: done already.
pub(crate) fn remove_tree(directory: &Path) -> Result<()> {
    let mut errors = Vec::new();
    match entries(directory) {
        Ok(mut paths) => {
            paths.sort(); // "links" before "maps": no program runs any more when its maps go
            errors.extend(paths.iter().map(|path| remove_entry(path)).filter_map(Result::err));
        }
        Err(error) => errors.push(error),
    }
    errors.extend(gone(directory, fs::remove_dir(directory)).err());
    several(errors)
}

fn remove_entry(path: &Path) -> Result<()> {
    if path.is_dir() { remove_tree(path) } else { remove(path) }
}

/// Removes one pin.
pub(crate) fn remove(path: &Path) -> Result<()> {
    gone(path, fs::remove_file(path))
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let listed = fs::read_dir(directory)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect());
    match listed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        listed => listed.map_err(|source| Error::File { action: "list", path: directory.into(), source }),
    }
}

fn gone(path: &Path, result: io::Result<()>) -> Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(|source| Error::File { action: "remove", path: path.into(), source }),
    }
}

/// Teardown goes on after an error and then tells all of them.
pub(crate) fn several(mut errors: Vec<Error>) -> Result<()> {
    match errors.len() {
        0 => Ok(()),
        1 => Err(errors.remove(0)),
        _ => Err(Error::Several(errors)),
    }
}

/// Mounts bpffs at its usual place if `root` lies there and it is not mounted yet. It stays mounted:
/// it is the machine's, and others may use it.
fn mount_bpffs(root: &Path) -> Result<()> {
    if is_bpffs(root) {
        return Ok(());
    }
    if !root.starts_with(BPFFS) {
        return Err(Error::NoBpffs { path: root.into() });
    }
    let failed = |source| Error::File { action: "mount bpffs on", path: BPFFS.into(), source };
    // A second mount would hide what somebody pinned in the first, so the look and the mount are one
    // step for all who go this way: the lock is on the directory below the mount.
    let below = File::open(BPFFS).map_err(failed)?;
    let _lock = Flock::lock(below, FlockArg::LockExclusive).map_err(|(_, errno)| failed(errno.into()))?;
    if is_bpffs(root) {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), BPFFS, Some("bpf"), flags, Some("mode=700")).map_err(|errno| failed(errno.into()))
}

/// Whether `path`, or the nearest directory above it that exists, is on a bpf file system.
fn is_bpffs(path: &Path) -> bool {
    path.ancestors()
        .find_map(|path| statfs(path).ok())
        .is_some_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
}
