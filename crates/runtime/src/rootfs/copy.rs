//! Copying a directory tree with its owners, modes and times, from inside a container's root to a directory that
//! was opened outside of it.

use std::fs::{File, Metadata};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, fchmod, futimens, mkdirat, mknodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, fchownat, symlinkat};

use crate::{Error, Result};

/// Copies what is in `from`, and what `from` itself is like. No directory is nothing to copy.
pub(super) fn directory(from: &Path, into: &File) -> Result<()> {
    match std::fs::metadata(from) {
        Ok(data) if data.is_dir() => contents(from, &data, into),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io(from)(error)),
    }
}

fn contents(from: &Path, data: &Metadata, into: &File) -> Result<()> {
    for entry in std::fs::read_dir(from).map_err(Error::io(from))? {
        let path = entry.map_err(Error::io(from))?.path();
        one(&path, into)?;
    }
    // Last: writing into it changes its times.
    liken(data, into).map_err(failed(from))
}

fn one(path: &Path, into: &File) -> Result<()> {
    let data = std::fs::symlink_metadata(path).map_err(Error::io(path))?;
    let Some(name) = path.file_name() else { return Ok(()) };
    let kind = data.file_type();
    let failed = || failed(path);
    if kind.is_dir() {
        mkdirat(into, name, Mode::S_IRWXU).map_err(failed())?;
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let made = File::from(openat(into, name, flags, Mode::empty()).map_err(failed())?);
        return contents(path, &data, &made);
    }
    if kind.is_file() {
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        let mut made = File::from(openat(into, name, flags, Mode::S_IRUSR).map_err(failed())?);
        let mut source = File::open(path).map_err(Error::io(path))?;
        std::io::copy(&mut source, &mut made).map_err(Error::io(path))?;
        return liken(&data, &made).map_err(failed());
    }
    if kind.is_symlink() {
        let target = std::fs::read_link(path).map_err(Error::io(path))?;
        symlinkat(&target, into, name).map_err(failed())?;
    } else if kind.is_fifo() || kind.is_char_device() || kind.is_block_device() {
        let kind = SFlag::from_bits_truncate(data.mode() & SFlag::S_IFMT.bits());
        mknodat(into, name, kind, Mode::from_bits_truncate(data.mode()), data.rdev()).map_err(failed())?;
    } else {
        // A socket is nothing without its program.
        return Ok(());
    }
    let (uid, gid) = owner(&data);
    fchownat(into, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW).map_err(failed())?;
    let (read, written) = times(&data);
    utimensat(into, name, &read, &written, UtimensatFlags::NoFollowSymlink).map_err(failed())
}

/// Gives a file the owner, mode and times of another one.
fn liken(data: &Metadata, file: &impl AsFd) -> Result<(), Errno> {
    let (uid, gid) = owner(data);
    fchown(file, Some(uid), Some(gid))?;
    // After the owner: a change of that clears the set-user-ID bit.
    fchmod(file, Mode::from_bits_truncate(data.mode()))?;
    let (read, written) = times(data);
    futimens(file, &read, &written)
}

fn owner(data: &Metadata) -> (Uid, Gid) {
    (Uid::from_raw(data.uid()), Gid::from_raw(data.gid()))
}

fn times(data: &Metadata) -> (TimeSpec, TimeSpec) {
    (TimeSpec::new(data.atime(), data.atime_nsec()), TimeSpec::new(data.mtime(), data.mtime_nsec()))
}

fn failed(path: &Path) -> impl FnOnce(Errno) -> Error {
    let path = path.to_owned();
    move |errno| Error::Io { path, source: errno.into() }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    #[test]
    fn a_tree_is_copied_with_owners_modes_and_links() {
        let dir = tempfile::tempdir().unwrap();
        let (from, into) = (dir.path().join("from"), dir.path().join("into"));
        std::fs::create_dir_all(from.join("sub")).unwrap();
        std::fs::create_dir(&into).unwrap();
        std::fs::write(from.join("sub/file"), "text").unwrap();
        chown(from.join("sub/file"), Some(7), Some(8)).unwrap();
        std::fs::set_permissions(from.join("sub/file"), PermissionsExt::from_mode(0o4750)).unwrap();
        std::fs::set_permissions(&from, PermissionsExt::from_mode(0o1777)).unwrap();
        symlink("/etc/passwd", from.join("link")).unwrap();
        directory(&from, &File::open(&into).unwrap()).unwrap();
        let data = std::fs::metadata(into.join("sub/file")).unwrap();
        assert_eq!((data.uid(), data.gid(), data.mode() & 0o7777), (7, 8, 0o4750));
        assert_eq!(std::fs::read(into.join("sub/file")).unwrap(), b"text");
        let original = std::fs::metadata(from.join("sub/file")).unwrap();
        assert_eq!(data.modified().unwrap(), original.modified().unwrap());
        assert_eq!(std::fs::read_link(into.join("link")).unwrap(), Path::new("/etc/passwd"));
        assert_eq!(std::fs::metadata(&into).unwrap().mode() & 0o7777, 0o1777);
    }

    #[test]
    fn what_is_no_directory_is_nothing_to_copy() {
        let dir = tempfile::tempdir().unwrap();
        let into = File::open(dir.path()).unwrap();
        directory(&dir.path().join("nosuch"), &into).unwrap();
        std::fs::write(dir.path().join("file"), "x").unwrap();
        directory(&dir.path().join("file"), &into).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
