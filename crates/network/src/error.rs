//! What can go wrong in the kernel's network stack.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use shoal_model::NetworkId;

pub type Result<T> = std::result::Result<T, Error>;

/// Every text says what was attempted and on which thing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call, a netlink request or a file of `/proc/sys` failed.
    #[error("{action}: {source}")]
    Io { action: String, source: io::Error },
    /// `nft` refused a change; the text is its own.
    #[error("nft: {0}")]
    Nft(String),
    /// The kernel or `nft` answered something that was not understood.
    #[error("{0}")]
    Unexpected(String),
    /// The node has no identity yet; `Fabric::set_node` comes first.
    #[error("the node has not joined a cluster")]
    NoNode,
    /// The network's table must be applied before a sandbox can be attached to it.
    #[error("network {0} is not set up on this node")]
    NetworkNotApplied(NetworkId),
    /// The interface that a macvlan network is on is not there.
    #[error("no interface {0} on this node")]
    NoParent(String),
    /// The network is made from a configuration that the node does not have.
    #[error("configuration network {0:?} does not exist on this node, or does not fit the driver")]
    Unconfigured(String),
    /// The table lacks something the node needs from it.
    #[error("network {network}: {what}")]
    InvalidTable { network: NetworkId, what: String },
    /// Every local address pool overlaps with an address or route of the node.
    #[error("no local address pool is free: all of them overlap with routes of this node")]
    NoFreePool,
    /// The gateway bridge has no address left.
    #[error("no address is left on the gateway bridge ({0})")]
    NoFreeAddress(ipnet::Ipv4Net),
    /// Something of this name exists and carries another owner's tag, or none.
    #[error("{name} exists already and does not belong to this node")]
    Foreign { name: String },
    /// A name or id that cannot be used as a file name.
    #[error("invalid name {0:?}")]
    InvalidName(String),
    /// Only keys of the `net.` family can be set in a sandbox.
    #[error("invalid sysctl {0:?}")]
    InvalidSysctl(String),
    /// Not supported for this address family.
    #[error("{what} does not support {address}")]
    Unsupported { what: &'static str, address: IpAddr },
    /// The sandbox's namespace is gone.
    #[error("no namespace at {0}")]
    NoNamespace(PathBuf),
    /// Several things failed; the work went on in between.
    #[error("{}", join(.0))]
    Several(Vec<Error>),
}

fn join(errors: &[Error]) -> String {
    errors.iter().map(Error::to_string).collect::<Vec<_>>().join("; ")
}

impl Error {
    pub(crate) fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| Self::Io { action, source }
    }

    /// The kernel's reason, when it was the kernel that refused.
    pub(crate) fn errno(&self) -> Option<nix::Error> {
        match self {
            Self::Io { source, .. } => source.raw_os_error().map(nix::Error::from_raw),
            _ => None,
        }
    }

    pub(crate) fn nix(action: impl Into<String>) -> impl FnOnce(nix::Error) -> Self {
        let action = action.into();
        move |source| Self::Io { action, source: source.into() }
    }
}

/// Collects failures while work goes on.
#[derive(Default)]
pub(crate) struct Failures(Vec<Error>);

impl Failures {
    /// Notes the error and gives the value, if there is one.
    pub(crate) fn note<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|error| self.0.push(error)).ok()
    }

    pub(crate) fn finish(mut self) -> Result<()> {
        match self.0.len() {
            0 => Ok(()),
            1 => Err(self.0.remove(0)),
            _ => Err(Error::Several(self.0)),
        }
    }
}
