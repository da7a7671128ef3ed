//! What is mounted in a container: Docker's own set, the node's `/etc` files, the user's wishes.

use serde_json::{Value, json};
use shoal_model::{Mount, MountKind};

use super::Input;
use crate::container::Provided;
use crate::volume::dir as volume_dir;
use crate::{Error, Result};

/// Docker's default for `--shm-size`.
const SHM_SIZE: &str = "size=67108864";
/// Files of the container's directory that appear in its `/etc`.
pub(crate) const ETC_FILES: [&str; 3] = ["resolv.conf", "hostname", "hosts"];

/// Docker's place for the first process of a container that wants one.
pub(super) const INIT: &str = "/sbin/docker-init";

/// In the order in which they are to be made: parents before children.
pub(super) fn list(input: &Input<'_>) -> Result<Vec<Value>> {
    let wanted = &input.config.spec.mounts;
    let mut mounts: Vec<Value> = defaults(input)
        .into_iter()
        .filter(|mount| !wanted.iter().any(|user| mount["destination"] == clean(&user.target)))
        .collect();
    let mut users = wanted.iter().map(|mount| user_mount(input, mount)).collect::<Result<Vec<_>>>()?;
    users.extend(input.config.provided.iter().map(provided));
    users.sort_by_key(|mount| mount["destination"].as_str().map_or(0, |path| path.matches('/').count()));
    mounts.extend(users);
    Ok(mounts)
}

fn defaults(input: &Input<'_>) -> Vec<Value> {
    let cgroup = if input.kernel.unified { "cgroup2" } else { "cgroup" };
    let plain = |destination: &str, kind: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": kind, "options": options });
    let mut mounts = vec![
        plain("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        plain("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        plain(
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        plain("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        // runc calls both versions "cgroup".
        json!({
            "destination": "/sys/fs/cgroup", "type": "cgroup", "source": cgroup,
            "options": ["ro", "nosuid", "noexec", "nodev"],
        }),
        plain("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        json!({
            "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
            "options": ["nosuid", "noexec", "nodev", "mode=1777", SHM_SIZE],
        }),
    ];
    mounts.extend(ETC_FILES.iter().map(|name| {
        json!({
            "destination": format!("/etc/{name}"), "type": "bind", "source": input.dir.join(name),
            "options": ["rbind", "rprivate"],
        })
    }));
    mounts.extend(input.init.map(|program| {
        json!({ "destination": INIT, "type": "bind", "source": program, "options": ["bind", "ro"] })
    }));
    mounts
}

fn user_mount(input: &Input<'_>, mount: &Mount) -> Result<Value> {
    let target = clean(&mount.target);
    if !target.starts_with('/') || target == "/" {
        return Err(Error::InvalidConfig(format!(
            "invalid mount path: '{}' must be an absolute path other than '/'",
            mount.target
        )));
    }
    let access = if mount.read_only { "ro" } else { "rw" };
    Ok(match &mount.kind {
        MountKind::Bind { source, propagation, non_recursive } => {
            let bind = if *non_recursive { "bind" } else { "rbind" };
            json!({
                "destination": target, "type": "bind", "source": source,
                "options": [bind, propagation.as_str(), access],
            })
        }
        MountKind::Volume { name, .. } => json!({
            "destination": target, "type": "bind", "source": volume_dir(input.data_dir, name),
            "options": ["rbind", "rprivate", access],
        }),
        MountKind::Tmpfs { size, mode } => {
            let mut options =
                vec!["noexec".to_owned(), "nosuid".to_owned(), "nodev".to_owned(), access.to_owned()];
            options.extend(size.map(|bytes| format!("size={bytes}")));
            options.extend(mode.map(|bits| format!("mode={bits:o}")));
            json!({ "destination": target, "type": "tmpfs", "source": "tmpfs", "options": options })
        }
    })
}

fn provided(it: &Provided) -> Value {
    json!({
        "destination": it.target, "type": "bind", "source": it.source,
        "options": ["bind", "rprivate", "ro", "nosuid", "nodev", "noexec"],
    })
}

/// Without the slashes at the end.
fn clean(path: &str) -> String {
    match path.trim_end_matches('/') {
        "" => "/".to_owned(),
        trimmed => trimmed.to_owned(),
    }
}
