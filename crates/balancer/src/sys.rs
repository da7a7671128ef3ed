//! The system calls that no dependency offers. All `unsafe` of this crate is here and in `layout`.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Commands of bpf(2): `enum bpf_cmd` in `<linux/bpf.h>`.
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_LINK_UPDATE: libc::c_long = 29;

/// The head of `union bpf_attr` for `BPF_OBJ_*`; the kernel takes what is missing for zero.
#[repr(C)]
struct ObjectAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

/// The head of `union bpf_attr` for `BPF_LINK_UPDATE`.
#[repr(C)]
struct LinkUpdateAttr {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

/// The head of `union bpf_attr` for `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct InfoAttr {
    fd: u32,
    length: u32,
    info: u64,
}

/// The head of `struct bpf_link_info`, as a link to a cgroup fills it in.
#[repr(C)]
#[derive(Default)]
struct CgroupLinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    cgroup: u64,
    attach_type: u32,
    padding_after: u32,
}

fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is a live, initialised, exclusively borrowed object of exactly the size given.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Opens what is pinned at `path`.
pub(crate) fn object_get(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = ObjectAttr { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    let fd = bpf(BPF_OBJ_GET, &mut attr)?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel just made this descriptor for us, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Pins an object at `path`.
pub(crate) fn object_pin(object: impl AsFd, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let fd = u32::try_from(object.as_fd().as_raw_fd()).map_err(io::Error::other)?;
    let mut attr = ObjectAttr { path: path.as_ptr() as u64, fd, flags: 0 };
    bpf(BPF_OBJ_PIN, &mut attr).map(drop)
}

/// The id of the cgroup that `link` is attached to; `None` once it has been detached.
pub(crate) fn cgroup_of(link: impl AsFd) -> io::Result<Option<u64>> {
    let mut info = CgroupLinkInfo::default();
    let mut attr = InfoAttr {
        fd: u32::try_from(link.as_fd().as_raw_fd()).map_err(io::Error::other)?,
        length: u32::try_from(size_of::<CgroupLinkInfo>()).map_err(io::Error::other)?,
        // The kernel writes at most `length` bytes there, while `info` is alive and not read.
        info: std::ptr::from_mut(&mut info) as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok((info.cgroup != 0).then_some(info.cgroup))
}

/// Puts `program` in the place of the one that `link` runs, between two invocations.
pub(crate) fn link_update(link: impl AsFd, program: impl AsFd) -> io::Result<()> {
    let fd = |fd: i32| u32::try_from(fd).map_err(io::Error::other);
    let mut attr = LinkUpdateAttr {
        link: fd(link.as_fd().as_raw_fd())?,
        program: fd(program.as_fd().as_raw_fd())?,
        flags: 0,
        old_program: 0,
    };
    bpf(BPF_LINK_UPDATE, &mut attr).map(drop)
}

/// The cookie of the network namespace that `socket` was made in; never reused while the machine is up.
pub(crate) fn netns_cookie(socket: impl AsFd) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut len = libc::socklen_t::try_from(size_of::<u64>()).map_err(io::Error::other)?;
    // SAFETY: `cookie` and `len` live across the call, and `len` says how much `cookie` holds.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &mut len,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}
