//! Errors as Docker's clients expect them: a status and `{"message": …}`.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use shoal_manager::{Code, ControlError};
use shoal_model::RefusalReason;

use crate::body;

/// An answer that is a refusal. Nothing else leaves a handler as an error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
}

pub(crate) type Result<T, E = ApiError> = std::result::Result<T, E>;

/// What Docker says on a node that manages no cluster.
pub(crate) const NOT_A_MANAGER: &str = "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm \
                                 join\" to connect this node to swarm and try again.";

/// What Docker says on a worker.
pub(crate) const A_WORKER: &str = "This node is not a swarm manager. Worker nodes can't be used to view or modify \
                                   cluster state. Please run this command on a manager node or promote the current \
                                   node to a manager.";

impl ApiError {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    pub(crate) fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, message)
    }

    pub(crate) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, message)
    }

    pub(crate) fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, message)
    }

    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// Something Docker has and this engine does not: said, never silently dropped.
    pub(crate) fn unsupported(what: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, format!("{what} not supported by shoal yet"))
    }

    /// The same, with what to do instead.
    pub(crate) fn unsupported_but(what: impl std::fmt::Display, instead: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, format!("{what} not supported by shoal yet: {instead}"))
    }

    /// An answer of the manager to a change, with the prefix Docker's daemon leaves in front of what
    /// its manager says. Clients match on it.
    pub(crate) fn from_control(error: ControlError) -> Self {
        let (status, code) = match error.code {
            Code::InvalidArgument => (StatusCode::BAD_REQUEST, "InvalidArgument"),
            Code::FailedPrecondition => (StatusCode::BAD_REQUEST, "FailedPrecondition"),
            Code::NotFound => (StatusCode::NOT_FOUND, "NotFound"),
            Code::AlreadyExists => (StatusCode::CONFLICT, "AlreadyExists"),
            Code::PermissionDenied => (StatusCode::FORBIDDEN, "PermissionDenied"),
            Code::Unimplemented => (StatusCode::NOT_IMPLEMENTED, "Unimplemented"),
            Code::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "Unavailable"),
            // Docker answers 500; a conflict is what it is, and retrying clients can tell.
            Code::OutOfSequence => (StatusCode::CONFLICT, "Unknown"),
            Code::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "Unknown"),
        };
        Self::new(status, format!("rpc error: code = {code} desc = {}", error.message))
    }

    /// An answer of a look-up or of the node itself: Docker has no prefix there.
    pub(crate) fn from_lookup(error: ControlError) -> Self {
        let status = Self::from_control(error.clone()).status;
        Self::new(status, error.message)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        #[derive(serde::Serialize)]
        struct Message<'a> {
            message: &'a str,
        }
        body::json(self.status, &Message { message: &self.message })
    }
}

impl From<shoal_agent::Error> for ApiError {
    fn from(error: shoal_agent::Error) -> Self {
        match error {
            shoal_agent::Error::NoSuchContainer(_) | shoal_agent::Error::NoSuchVolume(_) => {
                Self::not_found(error.to_string())
            }
            shoal_agent::Error::AmbiguousContainer(_) => Self::bad_request(error.to_string()),
            shoal_agent::Error::Runtime(error) => error.into(),
            shoal_agent::Error::InvalidName(_)
            | shoal_agent::Error::InvalidVolumeName(_)
            | shoal_agent::Error::ShortVolumeName => Self::bad_request(error.to_string()),
            shoal_agent::Error::NameInUse { .. }
            | shoal_agent::Error::VolumeInUse { .. }
            | shoal_agent::Error::Running(_)
            | shoal_agent::Error::Untraceable { .. } => Self::conflict(error.to_string()),
            shoal_agent::Error::OfService(_) => Self::unsupported_but(
                "doing this to a service's container is",
                "change the service, which replaces its containers",
            ),
            shoal_agent::Error::NetworkExists(_) => Self::conflict(error.to_string()),
            shoal_agent::Error::NetworkOption(_)
            | shoal_agent::Error::AddressOutside(_)
            | shoal_agent::Error::SharesNetwork
            // Docker's 404 would have the client pull the image.
            | shoal_agent::Error::NoSuchLink(_)
            | shoal_agent::Error::NoPool => Self::bad_request(error.to_string()),
            shoal_agent::Error::NetworkRefused(_)
            | shoal_agent::Error::NetworkInUse { .. }
            | shoal_agent::Error::AddressInUse
            | shoal_agent::Error::AlreadyAttached { .. } => Self::forbidden(error.to_string()),
            shoal_agent::Error::NoAddress => Self::unavailable(error.to_string()),
            // Docker answers 500 to these.
            shoal_agent::Error::PortAllocated { .. }
            | shoal_agent::Error::RangeTaken
            | shoal_agent::Error::OtherNotRunning(_) => {
                Self::conflict(error.to_string())
            }
            shoal_agent::Error::NotAttachedTo { .. } => Self::not_found(error.to_string()),
            shoal_agent::Error::NoSuchNetwork(_) | shoal_agent::Error::NoConfiguration(_) => Self::not_found(error.to_string()),
            shoal_agent::Error::NoManager(_) => Self::unavailable(error.to_string()),
            // Docker answers 500 to all of these.
            shoal_agent::Error::NotAttached { ref refusal, .. } => {
                let status = match refusal.reason {
                    RefusalReason::NotFound => StatusCode::NOT_FOUND,
                    RefusalReason::NotAttachable => StatusCode::FORBIDDEN,
                    RefusalReason::Address => StatusCode::CONFLICT,
                    RefusalReason::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
                };
                Self::new(status, error.to_string())
            }
            shoal_agent::Error::Closed => Self::unavailable(error.to_string()),
            other => Self::internal(other.to_string()),
        }
    }
}

impl From<shoal_runtime::Error> for ApiError {
    fn from(error: shoal_runtime::Error) -> Self {
        use shoal_runtime::Error;
        let status = match &error {
            Error::NoSuchImage(_)
            | Error::NoSuchManifest(_)
            | Error::NoSuchContainer(_)
            | Error::NoSuchExec(_) => StatusCode::NOT_FOUND,
            Error::ImageInUse(_) | Error::ContainerExists(_) | Error::NotRunning(_) => StatusCode::CONFLICT,
            // A program that is not there is the caller's mistake.
            Error::Start(_)
            | Error::InvalidReference(_)
            | Error::InvalidArchive(_)
            | Error::InvalidConfig(_) => StatusCode::BAD_REQUEST,
            Error::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}
