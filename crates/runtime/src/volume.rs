//! Where volumes are. What they are called and how long they live is their keeper's matter.

use std::path::{Path, PathBuf};

/// Below the data directory: a directory for each volume.
pub const VOLUMES: &str = "volumes";
/// In it: what containers see of it. Docker's name.
const CONTENT: &str = "_data";

/// What containers see of a volume.
pub fn dir(data_dir: &Path, name: &str) -> PathBuf {
    data_dir.join(VOLUMES).join(name).join(CONTENT)
}
