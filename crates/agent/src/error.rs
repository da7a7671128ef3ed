//! What can go wrong on a node.

use std::path::{Path, PathBuf};

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
    /// Docker's text.
    #[error("No such container: {0}")]
    NoSuchContainer(String),
    /// Docker's text.
    #[error("Multiple IDs found with provided prefix: {0}")]
    AmbiguousContainer(String),
    #[error("this node already belongs to a cluster")]
    AlreadyMember,
    #[error("the agent has been shut down")]
    Closed,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { doing, path: path.to_owned(), source }
    }
}
