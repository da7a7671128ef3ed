//! Refusals, and failures of the manager itself.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::ca::CaError;

/// What kind of refusal it is: gRPC's words, which Docker's messages carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    InvalidArgument,
    NotFound,
    AlreadyExists,
    FailedPrecondition,
    /// The object changed since the caller read it.
    OutOfSequence,
    Unavailable,
    PermissionDenied,
    Unimplemented,
    Internal,
}

/// A refusal to do what a user asked, in Docker's words where Docker has them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ControlError {
    pub code: Code,
    pub message: String,
}

impl ControlError {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }

    pub(crate) fn not_found(kind: &str, what: &str) -> Self {
        Self::new(Code::NotFound, format!("{kind} {what} not found"))
    }
}

/// The manager cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Store(#[from] shoal_store::Error),
    #[error("the store holds a record this build cannot read")]
    Record(#[from] shoal_store::UnreadableRecord),
    #[error("the store holds no cluster")]
    NoCluster,
    #[error("the store holds a cluster already")]
    ClusterExists,
    #[error("cannot serve nodes on {path}")]
    Socket { path: PathBuf, source: std::io::Error },
    #[error("cannot serve nodes on {address}: {source}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error(transparent)]
    Refused(#[from] ControlError),
}

impl From<Error> for ControlError {
    fn from(error: Error) -> Self {
        match error {
            Error::Refused(refused) => refused,
            Error::Store(shoal_store::Error::Closed) => {
                Self::new(Code::Unavailable, "the manager is stopping")
            }
            other => Self::new(Code::Internal, other.to_string()),
        }
    }
}

impl From<shoal_store::Error> for ControlError {
    fn from(error: shoal_store::Error) -> Self {
        Error::Store(error).into()
    }
}
