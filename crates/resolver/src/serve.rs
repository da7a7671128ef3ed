//! The process.
use std::path::{Path, PathBuf};

use crate::Result;

/// Where a resolver process lives.
#[derive(Debug, Clone)]
pub struct ResolverConfig {
    /// Holds the feed's socket.
    pub run_dir: PathBuf,
    /// Keeps what was fed, for a restart.
    pub state_dir: PathBuf,
    /// The node's own configuration; read again when it changes.
    pub resolv_conf: PathBuf,
    /// Of the program, for [`crate::feed::Hello`].
    pub version: String,
}

/// The feed's socket in a run directory.
pub fn socket_path(run_dir: &Path) -> PathBuf {
    run_dir.join("resolver.sock")
}

/// Runs until SIGTERM or the feed's `stop`.
pub async fn serve(config: ResolverConfig) -> Result<()> {
    let _ = config;
    crate::feed::serve_feed().await;
    Ok(())
}
