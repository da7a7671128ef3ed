//! The process that writes a container's output to its log.

use std::path::Path;

/// Entry of `shoal log-shim DIR`.
pub fn run(_container_dir: &Path) -> ! {
    unimplemented!()
}
