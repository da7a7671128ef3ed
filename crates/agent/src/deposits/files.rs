//! Values as the files of one container: a tmpfs under the run directory, parts of which appear, read-only, in the
//! container.

use std::collections::HashSet;
use std::fs::{DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use shoal_model::{ContainerId, ContainerSpec, DepositKind, DepositReference, SECRETS_DIR, Task};
use shoal_runtime::Provided;

use super::{Value, Values};
use crate::node::Node;
use crate::template::{Context, Others};
use crate::{Error, Result};

/// Below the run directory: a directory for each container that has values.
const DIR: &str = "deposits";
/// In it: what appears at [`SECRETS_DIR`], and the files that appear elsewhere, by number.
const SECRETS: &str = "secrets";
const FILES: &str = "files";
/// More mounts than this on one path are not ours to clear.
const MOUNTS_MAX: usize = 16;

/// Makes the files of a container and returns what is to appear in it. `task` has its placeholders filled in.
pub(crate) async fn provide(node: &Node, id: &ContainerId, task: &Task) -> Result<Vec<Provided>> {
    let container = &task.spec.container;
    if container.deposits().next().is_none() {
        return Ok(Vec::new());
    }
    let member = node.membership();
    let own = member.as_ref().map(|member| &member.node);
    let no_node = shoal_model::NodeId::new("");
    let context = Context { task, node: own.unwrap_or(&no_node), node_name: &node.config.node_name };
    let values = node.deposits.of(container);
    let dir = node.config.run_dir.join(DIR).join(id.as_str());
    let layout = layout(container);
    let filled =
        layout.files.iter().map(|file| Ok((file.clone(), content(&context, container, &values, file)?)));
    let filled = filled.collect::<Result<Vec<_>>>()?;
    let at = dir.clone();
    blocking(move || write(&at, &filled)).await?;
    Ok(layout
        .shown
        .iter()
        .map(|(place, target)| Provided { source: dir.join(place), target: target.clone() })
        .collect())
}

/// Takes a container's files away; none are fine. Those of a container that runs stay for it alone.
pub(crate) async fn free(node: &Node, id: &ContainerId) -> Result<()> {
    let dir = node.config.run_dir.join(DIR).join(id.as_str());
    blocking(move || remove(&dir)).await
}

/// The files of a container are there.
pub(crate) fn is_there(run_dir: &Path, id: &ContainerId) -> bool {
    is_mounted(&run_dir.join(DIR).join(id.as_str()))
}

/// Takes away the files of all containers but these. Goes on after errors.
pub(crate) async fn prune(run_dir: &Path, keep: HashSet<ContainerId>) {
    let dir = run_dir.join(DIR);
    let pruned = blocking(move || {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let id = ContainerId::new(entry.file_name().to_string_lossy());
            if !keep.contains(&id)
                && let Err(error) = remove(&entry.path())
            {
                tracing::warn!(container = %id, %error, "cannot take away a container's secrets and configs");
            }
        }
        // Stays when something is left in it.
        let _ = std::fs::remove_dir(&dir);
        Ok(())
    });
    // Nothing of it fails.
    let _ = pruned.await;
}

/// The same for all of a node.
pub(crate) async fn free_all(run_dir: &Path) {
    prune(run_dir, HashSet::new()).await;
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::Closed)?
}

// === which file is where ===

/// One file of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
struct File {
    /// In the container's directory.
    place: PathBuf,
    kind: DepositKind,
    reference: DepositReference,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Layout {
    files: Vec<File>,
    /// What of the directory appears where in the container.
    shown: Vec<(PathBuf, String)>,
}

/// What asks for a place below [`SECRETS_DIR`] appears with it, everything else by itself.
fn layout(container: &ContainerSpec) -> Layout {
    let mut layout = Layout::default();
    let secrets = container.secrets.iter().map(|reference| (DepositKind::Secret, SECRETS_DIR, reference));
    let configs = container.configs.iter().map(|reference| (DepositKind::Config, "/", reference));
    for (number, (kind, parent, reference)) in secrets.chain(configs).enumerate() {
        let target = absolute(parent, &reference.file.name);
        let place = match target.strip_prefix(SECRETS_DIR) {
            Ok(below) if below.components().next().is_some() => {
                let dir = (PathBuf::from(SECRETS), SECRETS_DIR.to_owned());
                if !layout.shown.contains(&dir) {
                    layout.shown.push(dir);
                }
                Path::new(SECRETS).join(below)
            }
            _ => {
                let place = Path::new(FILES).join(number.to_string());
                layout.shown.push((place.clone(), target.to_string_lossy().into_owned()));
                place
            }
        };
        layout.files.push(File { place, kind, reference: reference.clone() });
    }
    layout
}

/// A path in the container without `.` and `..`.
fn absolute(parent: &str, name: &str) -> PathBuf {
    let mut path = PathBuf::from("/");
    for part in Path::new(parent).join(name).components() {
        match part {
            Component::Normal(part) => path.push(part),
            Component::ParentDir => drop(path.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    path
}

// === what is in them ===

/// The values that a container's own may draw on.
struct Named<'a> {
    container: &'a ContainerSpec,
    values: &'a Values,
}

impl Named<'_> {
    fn text(&self, references: &[DepositReference], file: &str) -> Option<String> {
        let reference = references.iter().find(|reference| reference.file.name == file)?;
        match self.values.get(&reference.deposit)? {
            Value::Known { bytes, .. } => String::from_utf8(bytes.to_vec()).ok(),
            Value::Gone => None,
        }
    }
}

impl Others for Named<'_> {
    fn secret(&self, file: &str) -> Option<String> {
        self.text(&self.container.secrets, file)
    }

    fn config(&self, file: &str) -> Option<String> {
        self.text(&self.container.configs, file)
    }

    fn container(&self) -> &ContainerSpec {
        self.container
    }
}

fn content(
    context: &Context<'_>,
    container: &ContainerSpec,
    values: &Values,
    file: &File,
) -> Result<Vec<u8>> {
    let name = || (file.kind, file.reference.name.clone());
    let (bytes, templated) = match values.get(&file.reference.deposit) {
        Some(Value::Known { bytes, templated }) => (bytes, *templated),
        Some(Value::Gone) | None => {
            let (kind, name) = name();
            return Err(Error::NoSuchDeposit { kind, name });
        }
    };
    if !templated {
        return Ok(bytes.to_vec());
    }
    let failed = |reason: String| {
        let (kind, name) = name();
        Error::Template { kind, name, reason }
    };
    let text = std::str::from_utf8(bytes).map_err(|error| failed(error.to_string()))?;
    let filled = context.fill_value(text, &Named { container, values });
    filled.map(String::into_bytes).map_err(|error| failed(error.to_string()))
}

// === the tmpfs ===

/// All files anew, in a tmpfs of their own.
fn write(dir: &Path, files: &[(File, Vec<u8>)]) -> Result<()> {
    remove(dir)?;
    make_dir(dir, 0o700)?;
    mount_tmpfs(dir).map_err(|errno| Error::io("mount a tmpfs at", dir)(errno.into()))?;
    for (file, content) in files {
        let path = dir.join(&file.place);
        if let Some(parent) = path.parent() {
            make_dir(parent, 0o755)?;
        }
        let wanted = &file.reference.file;
        std::fs::write(&path, content).map_err(Error::io("write", &path))?;
        chown(&path, Some(wanted.uid), Some(wanted.gid)).map_err(Error::io("give away", &path))?;
        // Last, and whatever this process's umask is.
        std::fs::set_permissions(&path, Permissions::from_mode(wanted.mode))
            .map_err(Error::io("write", &path))?;
    }
    Ok(())
}

fn make_dir(path: &Path, mode: u32) -> Result<()> {
    DirBuilder::new().recursive(true).mode(mode).create(path).map_err(Error::io("create", path))
}

/// Never swapped to a disk where the kernel can promise that (Linux 6.4).
fn mount_tmpfs(dir: &Path) -> Result<(), Errno> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let with = |options: &str| mount(Some("shoal"), dir, Some("tmpfs"), flags, Some(options));
    match with("mode=0700,noswap") {
        Err(Errno::EINVAL) => with("mode=0700"),
        mounted => mounted,
    }
}

fn is_mounted(dir: &Path) -> bool {
    let device = |path: &Path| std::fs::metadata(path).ok().map(|data| data.dev());
    let (own, outer) = (device(dir), dir.parent().and_then(device));
    own.is_some() && own != outer
}

fn remove(dir: &Path) -> Result<()> {
    for _ in 0..MOUNTS_MAX {
        if !is_mounted(dir) {
            break;
        }
        umount2(dir, MntFlags::MNT_DETACH).map_err(|errno| Error::io("unmount", dir)(errno.into()))?;
    }
    match std::fs::remove_dir(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", dir)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
