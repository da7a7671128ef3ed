//! What can go wrong between this crate and the kernel.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

/// A failed step, with what it was about.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no cgroup2 file system is mounted")]
    NoCgroup2,
    #[error("the root of cgroup2 at {0} is held exclusively by another program")]
    CgroupHeld(PathBuf),
    #[error("{action} {path}")]
    File { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{path} is not below a bpf file system and none can be mounted there")]
    NoBpffs { path: PathBuf },
    #[error("cannot load the eBPF programs")]
    Load(#[from] aya::EbpfError),
    #[error("eBPF program {name}")]
    Program { name: &'static str, source: aya::programs::ProgramError },
    #[error("link of eBPF program {name}")]
    Link { name: &'static str, source: aya::programs::links::LinkError },
    #[error("{0} is not in the eBPF object")]
    Missing(&'static str),
    #[error("eBPF map {name}")]
    Map { name: &'static str, source: aya::maps::MapError },
    #[error("pinned map {0} is not of this layout's shape")]
    Shape(&'static str),
    #[error("pin {path}")]
    Pin { path: PathBuf, source: aya::pin::PinError },
    #[error("{action}")]
    System { action: &'static str, source: io::Error },
    #[error("{count} networks in one sandbox, at most {max} are possible")]
    TooManyNetworks { count: usize, max: usize },
    #[error("{count} backends of one service, at most {max} are possible")]
    TooManyBackends { count: usize, max: usize },
    #[error("backend {backend} is not of the same address family as {address}")]
    Family { address: IpAddr, backend: IpAddr },
    #[error("backends of both address families on port {0}")]
    MixedFamilies(u16),
    #[error("no interface {interface} in {}", netns.display())]
    NoInterface { interface: String, netns: PathBuf },
    #[error("several steps failed: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Several(Vec<Error>),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;
