use std::path::PathBuf;

/// Why the resolver or its client failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another resolver process serves this run directory.
    #[error("a resolver already runs at {} (process {pid})", path.display())]
    AlreadyRunning { path: PathBuf, pid: u32 },
    /// A file, directory or socket could not be used.
    #[error("{action} {}", path.display())]
    Path { action: &'static str, path: PathBuf, source: std::io::Error },
    /// The sockets inside a sandbox's namespace could not be opened.
    #[error("open the resolver's sockets in {}", netns.display())]
    Sockets { netns: PathBuf, source: std::io::Error },
    /// The resolver at the other end of the feed is gone, hung or not a resolver.
    #[error("resolver feed at {}", path.display())]
    Feed { path: PathBuf, source: std::io::Error },
    /// The resolver speaks another version of the feed.
    #[error("resolver speaks feed version {theirs}, this build version {ours}")]
    FeedVersion { ours: u32, theirs: u32 },
    /// The resolver understood the request and could not do it.
    #[error("resolver: {0}")]
    Refused(String),
}

impl Error {
    pub(crate) fn path(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Path { action, path, source }
    }
}
