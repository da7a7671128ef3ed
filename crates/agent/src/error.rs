//! What can go wrong on a node.

use std::path::{Path, PathBuf};

use shoal_model::{DepositKind, Protocol, Refusal, RefusalReason};

/// An operation of the agent that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{doing} {}: {source}", path.display())]
    Io { doing: &'static str, path: PathBuf, source: std::io::Error },
    #[error("data directory {} is in use by another daemon", .0.display())]
    Locked(PathBuf),
    #[error("node store {}: {source}", path.display())]
    Store { path: PathBuf, source: Box<redb::Error> },
    #[error("node store {} has schema {found}, this build knows {known}", path.display())]
    NewerSchema { path: PathBuf, found: u64, known: u64 },
    #[error(transparent)]
    Runtime(#[from] shoal_runtime::Error),
    #[error(transparent)]
    Network(#[from] shoal_network::Error),
    #[error(transparent)]
    Balancer(#[from] shoal_balancer::Error),
    #[error("resolver: {0}")]
    Resolver(#[from] shoal_resolver::Error),
    #[error("the resolver process did not answer: {0}")]
    ResolverStart(String),
    #[error("host-mode port {port}/{} is in use by another program on this node", protocol.as_str())]
    PortTaken { protocol: Protocol, port: u16 },
    #[error("host-mode port {port}/{} cannot be reserved: {source}", protocol.as_str())]
    Port { protocol: Protocol, port: u16, source: std::io::Error },
    /// Docker's text.
    #[error("Bind for {address}:{port} failed: port is already allocated")]
    PortAllocated { address: std::net::IpAddr, port: u16 },
    #[error(
        "a host-mode port cannot lead to a task that the node does not reach: its networks are internal, or macvlan"
    )]
    Secluded,
    /// Docker's text, which leaves out the reason.
    #[error("No such image: {name} ({reason})")]
    NoImage { name: String, reason: String },
    /// Docker's text.
    #[error("No such container: {0}")]
    NoSuchContainer(String),
    /// Docker's text.
    #[error("Multiple IDs found with provided prefix: {0}")]
    AmbiguousContainer(String),
    /// Docker's text.
    #[error("Invalid container name ({0}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")]
    InvalidName(String),
    /// Docker's text.
    #[error(
        "Conflict. The container name \"/{name}\" is already in use by container \"{by}\". You have to remove \
         (or rename) that container to be able to reuse that name."
    )]
    NameInUse { name: String, by: String },
    /// Docker's text.
    #[error(
        "You cannot remove a running container {0}. Stop the container before attempting removal or force remove"
    )]
    Running(String),
    #[error("container {0} does not end, although it was killed")]
    DoesNotEnd(String),
    /// The container is a task's.
    #[error("container {0} belongs to a service")]
    OfService(String),
    /// Docker's text.
    #[error("get {0}: no such volume")]
    NoSuchVolume(String),
    /// Docker's text.
    #[error("remove {name}: volume is in use - [{users}]")]
    VolumeInUse { name: String, users: String },
    /// Docker's text.
    #[error(
        "create {0}: \"{0}\" includes invalid characters for a local volume name, only \
         \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path"
    )]
    InvalidVolumeName(String),
    /// Docker's text.
    #[error("volume name is too short, names should be at least two alphanumeric characters")]
    ShortVolumeName,
    /// What a task names was removed before it could start.
    #[error("{kind} not found: {name}")]
    NoSuchDeposit { kind: DepositKind, name: String },
    #[error("cannot fill in {kind} {name}: {reason}")]
    Template { kind: DepositKind, name: String, reason: String },
    /// Docker's text.
    #[error("all ports are allocated")]
    RangeTaken,
    /// Docker's text.
    #[error("network with name {0} already exists")]
    NetworkExists(String),
    /// An option of a network that cannot be honoured.
    #[error("{0}")]
    NetworkOption(String),
    /// A network that cannot be had beside the others.
    #[error("{0}")]
    NetworkRefused(String),
    /// Docker's text.
    #[error("configuration network {0:?} does not exist")]
    NoConfiguration(String),
    /// Docker's text.
    #[error("error while removing network: network {name} has active endpoints ({users})")]
    NetworkInUse { name: String, users: String },
    /// Docker's text.
    #[error("all predefined address pools have been fully subnetted")]
    NoPool,
    /// Docker's text.
    #[error("no available addresses on this pool")]
    NoAddress,
    /// Docker's text.
    #[error("Address already in use")]
    AddressInUse,
    /// Docker's text.
    #[error("invalid endpoint settings:\nno configured subnet contains IP address {0}")]
    AddressOutside(std::net::IpAddr),
    /// Docker's text.
    #[error("endpoint with name {container} already exists in network {network}")]
    AlreadyAttached { container: String, network: String },
    /// Docker's text.
    #[error("container {container} is not connected to network {network}")]
    NotAttachedTo { container: String, network: String },
    /// Docker's text.
    #[error(
        "container sharing network namespace with another container or host cannot be connected to any other network"
    )]
    SharesNetwork,
    /// Docker's text.
    #[error("could not get container for {0}: No such container: {0}")]
    NoSuchLink(String),
    /// Docker's text.
    #[error("cannot join network of a non running container: {0}")]
    OtherNotRunning(String),
    /// The node is in no cluster.
    #[error("network {0} not found")]
    NoSuchNetwork(String),
    /// Docker's text, with the manager's word.
    #[error("Could not attach to network {network}: {}", rpc(refusal))]
    NotAttached { network: String, refusal: Refusal },
    #[error("Could not attach to network {0}: no manager of the cluster can be reached")]
    NoManager(String),
    #[error("Could not attach to network {0}: it is not in force on this node yet")]
    NotInForce(String),
    /// Nothing of ours answers this container's names.
    #[error("container {container} has no name server of the cluster: {reason}")]
    Untraceable { container: String, reason: &'static str },
    #[error("this node already belongs to a cluster")]
    AlreadyMember,
    #[error("the agent has been shut down")]
    Closed,
}

/// A refusal as Docker's daemon passes it on.
fn rpc(refusal: &Refusal) -> String {
    let code = match refusal.reason {
        RefusalReason::NotFound => "NotFound",
        RefusalReason::NotAttachable => "PermissionDenied",
        RefusalReason::Address => "FailedPrecondition",
        RefusalReason::Unavailable => "Unavailable",
    };
    format!("rpc error: code = {code} desc = {}", refusal.message)
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { doing, path: path.to_owned(), source }
    }
}
