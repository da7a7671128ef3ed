//! Opening sockets inside another network namespace.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;

use crate::feed::DnsPorts;
use crate::{Error, LISTEN_ADDRESS, Result};

/// The kernel's room for queries that wait, in bytes of its own accounting, of which it gives twice as many:
/// ten thousand, each of which gets an answer then, if only a refusal. It takes memory only while they wait.
const RECEIVE_BYTES: usize = 4 << 20;

/// Which namespace it is, wherever it is mounted. The sockets keep theirs alive, so the number is not
/// given to another one meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Namespace {
    device: u64,
    inode: u64,
}

/// A sandbox's open sockets.
#[derive(Debug)]
pub(crate) struct Sockets {
    pub(crate) udp: UdpSocket,
    pub(crate) tcp: TcpListener,
    pub(crate) namespace: Namespace,
}

impl Namespace {
    pub(crate) fn at(path: &Path) -> Result<Self> {
        let metadata = std::fs::metadata(path).map_err(sockets_error(path))?;
        Ok(Self { device: metadata.dev(), inode: metadata.ino() })
    }
}

impl Sockets {
    /// Opens both sockets in the namespace, on the wanted ports where they are free.
    pub(crate) async fn open(netns: PathBuf, wanted: Option<DnsPorts>) -> Result<Self> {
        let path = netns.clone();
        // A thread of its own, since it ends in another namespace; a pool's thread would go on there.
        let opened = tokio::task::spawn_blocking(move || {
            std::thread::spawn(move || open_here_in(&path, wanted)).join()
        });
        match opened.await {
            Ok(Ok(opened)) => opened.map_err(sockets_error(&netns)),
            _ => Err(sockets_error(&netns)(io::Error::other("the opening thread panicked"))),
        }
    }

    pub(crate) fn ports(&self) -> io::Result<DnsPorts> {
        Ok(DnsPorts { udp: self.udp.local_addr()?.port(), tcp: self.tcp.local_addr()?.port() })
    }
}

/// Moves the calling thread into the namespace and opens the sockets there.
fn open_here_in(netns: &Path, wanted: Option<DnsPorts>) -> io::Result<Sockets> {
    let file = File::open(netns)?;
    let metadata = file.metadata()?;
    setns(&file, CloneFlags::CLONE_NEWNET)?;
    let udp = on_port(wanted.map(|ports| ports.udp), UdpSocket::bind)?;
    let tcp = on_port(wanted.map(|ports| ports.tcp), TcpListener::bind)?;
    // Room for bursts. Not being allowed to is no reason not to serve.
    let _ = setsockopt(&udp, RcvBufForce, &RECEIVE_BYTES);
    udp.set_nonblocking(true)?;
    tcp.set_nonblocking(true)?;
    let namespace = Namespace { device: metadata.dev(), inode: metadata.ino() };
    Ok(Sockets { udp, tcp, namespace })
}

fn on_port<T>(wanted: Option<u16>, bind: impl Fn((Ipv4Addr, u16)) -> io::Result<T>) -> io::Result<T> {
    match wanted.map(|port| bind((LISTEN_ADDRESS, port))) {
        Some(Ok(socket)) => Ok(socket),
        _ => bind((LISTEN_ADDRESS, 0)),
    }
}

fn sockets_error(netns: &Path) -> impl FnOnce(io::Error) -> Error {
    let netns = netns.to_owned();
    move |source| Error::Sockets { netns, source }
}
