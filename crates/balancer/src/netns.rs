//! Doing something inside another network namespace.

use std::fs::File;
use std::io;
use std::path::Path;

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::{Error, Result, sys};

/// Runs `work` on a thread of its own inside the namespace at `netns`.
///
/// A thread of its own, since a namespace belongs to a thread: one that came back to a pool still
/// inside it would serve somebody else's work in the wrong place.
pub(crate) fn inside<T: Send>(netns: &Path, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let enter = || {
        let file = |source| Error::File { action: "enter network namespace", path: netns.into(), source };
        let namespace = File::open(netns).map_err(file)?;
        setns(namespace, CloneFlags::CLONE_NEWNET).map_err(|errno| file(errno.into()))?;
        work()
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".into());
        let thread = thread.spawn_scoped(scope, enter).map_err(system("start a thread"))?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

pub(crate) fn system(action: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::System { action, source }
}

/// The cookie of the network namespace at `netns`: what the balancer knows a sandbox by.
///
/// Never used twice while the machine is up; another one after a reboot.
pub fn netns_cookie(netns: &Path) -> Result<u64> {
    inside(netns, own_netns_cookie)
}

/// The cookie of the calling thread's network namespace.
pub fn own_netns_cookie() -> Result<u64> {
    // Any socket knows its namespace; this one never gets a port.
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .map_err(|errno| system("make a socket")(errno.into()))?;
    sys::netns_cookie(&socket).map_err(system("read the network namespace's cookie"))
}
