//! What can go wrong, in Docker's words where Docker has any.

use std::path::PathBuf;

/// This crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Every way in which an operation of this crate fails.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket does not answer, also after waiting for a restart.
    #[error("containerd at {socket} does not answer: {message}")]
    Unavailable { socket: PathBuf, message: String },
    /// containerd is there, but too old to be used.
    #[error("containerd {found} is too old: version 1.6 or later is needed")]
    UnsupportedVersion { found: String },
    /// containerd refused; `action` is what was asked of it.
    #[error("{action}: {message}")]
    Containerd { action: String, code: tonic::Code, message: String },
    /// Docker's text, with the name in the form it was looked up.
    #[error("No such image: {0}")]
    NoSuchImage(String),
    #[error("No such container: {0}")]
    NoSuchContainer(String),
    #[error("No such exec instance: {0}")]
    NoSuchExec(String),
    /// Docker's text (`conflict: unable to …`): the image is needed by a container or has other names.
    #[error("{0}")]
    ImageInUse(String),
    /// Docker's text (`invalid reference format…`).
    #[error("{0}")]
    InvalidReference(String),
    /// What was to be loaded or imported is not an image.
    #[error("invalid image archive: {0}")]
    InvalidArchive(String),
    /// The registry has no such image, or not for whoever asks (moby's texts).
    #[error("{0}")]
    NoSuchManifest(String),
    /// A registry cannot be asked, or what it says cannot be used.
    #[error("{0}")]
    Registry(String),
    /// The container cannot be made as asked for.
    #[error("{0}")]
    InvalidConfig(String),
    #[error("Conflict. The container id {0} is already in use")]
    ContainerExists(String),
    #[error("Container {0} is not running")]
    NotRunning(String),
    /// The container's process could not be started (runc's text).
    #[error("{0}")]
    Start(String),
    /// The additional process could not be started (runc's text).
    #[error("{0}")]
    Exec(String),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    /// Several parts of a removal failed; the rest was done.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Several(Vec<Error>),
    /// A helper thread of this process ended unexpectedly.
    #[error("internal task ended: {0}")]
    Task(String),
}

impl Error {
    /// For `map_err` on file operations.
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { path, source }
    }

    /// containerd knows no such thing.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Error::Containerd { code: tonic::Code::NotFound, .. })
    }

    /// containerd has it already.
    pub(crate) fn is_already_exists(&self) -> bool {
        matches!(self, Error::Containerd { code: tonic::Code::AlreadyExists, .. })
    }

    /// containerd's own words, without what was asked of it.
    pub(crate) fn into_message(self) -> String {
        match self {
            Error::Containerd { message, .. } => message,
            other => other.to_string(),
        }
    }

    /// One error for what remained of a removal, if anything did.
    pub(crate) fn collect(mut errors: Vec<Error>) -> Result<()> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Error::Several(errors)),
        }
    }
}
