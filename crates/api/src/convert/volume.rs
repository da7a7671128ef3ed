//! Volumes: the node's → Docker's JSON.

use std::path::Path;

use jiff::Timestamp;
use shoal_agent::VolumeView;

use super::{some, time};
use crate::wire::volume as wire;

/// The one driver there is.
pub(crate) const DRIVER: &str = "local";

pub(crate) fn volume(view: &VolumeView) -> wire::Volume {
    let volume = &view.volume;
    // Docker shows seconds.
    let created = Timestamp::from_second(volume.created.as_second()).unwrap_or(volume.created);
    wire::Volume {
        created_at: time(created),
        driver: DRIVER,
        labels: some(volume.labels.clone()),
        mountpoint: view.path.display().to_string(),
        name: volume.name.clone(),
        options: None,
        scope: "local",
        usage_data: None,
    }
}

/// With what it takes on the disk.
pub(crate) fn used(view: &VolumeView) -> wire::Volume {
    let usage = wire::Usage { ref_count: view.users.len(), size: size(&view.path) };
    wire::Volume { usage_data: Some(usage), ..volume(view) }
}

/// Bytes of all files below a directory; what goes meanwhile counts for nothing.
pub(crate) fn size(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(data) if data.is_dir() => size(&entry.path()),
        Ok(data) => data.len(),
        Err(_) => 0,
    });
    sizes.sum()
}
