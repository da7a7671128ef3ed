//! The containers' cgroups: runc makes them; what it did not live to remove is removed here.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Removes cgroups (`/shoal/…`) from every hierarchy, in the order given. One that is missing, in
/// use or has others below it is left alone: `/shoal` is common to the nodes of a machine.
pub(super) fn remove(cgroups: &[&str]) {
    let mounted = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for hierarchy in hierarchies(&mounted) {
        for cgroup in cgroups {
            let path = hierarchy.join(cgroup.trim_start_matches('/'));
            if let Err(error) = std::fs::remove_dir(&path)
                && !matches!(
                    error.kind(),
                    ErrorKind::NotFound | ErrorKind::ResourceBusy | ErrorKind::DirectoryNotEmpty
                )
            {
                tracing::warn!(%error, cgroup = %path.display(), "a cgroup stays");
            }
        }
    }
}

/// Where the kernel shows cgroups, of both versions.
fn hierarchies(mounted: &str) -> impl Iterator<Item = PathBuf> {
    mounted.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (point, kind) = (fields.next()?, fields.next()?);
        matches!(kind, "cgroup" | "cgroup2").then(|| Path::new(point).to_owned())
    })
}
