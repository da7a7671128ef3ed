//! Volumes: directories of this node that outlive containers. They are the node's own; leaving a cluster leaves
//! them alone.

mod names;

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Mutex;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use shoal_model::{ContainerId, IdGenerator, Labels, Mount, MountKind};
use shoal_runtime::{Container, Image, volume};
use tokio::sync::{RwLock, RwLockReadGuard};

use crate::node::Node;
use crate::{Error, Result, lock};

/// Docker's mark of a volume that nobody named.
const ANONYMOUS_LABEL: &str = "com.docker.volume.anonymous";

/// A volume as the node keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    pub name: String,
    pub labels: Labels,
    pub created: Timestamp,
    /// The container for which it was made, and where in it, when nobody named it: it goes with that container.
    #[serde(default)]
    pub(crate) owner: Option<(ContainerId, String)>,
}

/// A volume as others see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeView {
    pub volume: Volume,
    pub path: PathBuf,
    /// The containers that mount it, running or not.
    pub users: Vec<ContainerId>,
}

impl VolumeView {
    /// Nobody named it.
    pub fn is_anonymous(&self) -> bool {
        self.volume.labels.contains_key(ANONYMOUS_LABEL)
    }
}

#[derive(Default)]
pub(crate) struct Volumes {
    known: Mutex<BTreeMap<String, Volume>>,
    /// Held for writing by whoever removes one, for reading while a container that is to mount one is made.
    turn: RwLock<()>,
}

impl Volumes {
    /// Takes over what a former process knew. What it did not live to write down, or what a lost node store does not
    /// say any more, is still there as a directory.
    pub(crate) fn new(stored: Vec<Volume>, data_dir: &std::path::Path) -> Self {
        let mut known: BTreeMap<String, Volume> =
            stored.into_iter().map(|volume| (volume.name.clone(), volume)).collect();
        let found = std::fs::read_dir(data_dir.join(volume::VOLUMES)).into_iter().flatten().flatten();
        for name in found.filter_map(|entry| entry.file_name().into_string().ok()) {
            known.entry(name.clone()).or_insert_with(|| Volume {
                created: Timestamp::now(),
                labels: Labels::new(),
                owner: None,
                name,
            });
        }
        Self { known: Mutex::new(known), turn: RwLock::default() }
    }

    fn find(&self, name: &str) -> Option<Volume> {
        lock(&self.known).get(name).cloned()
    }

    fn owned(&self, owner: &ContainerId) -> Vec<Volume> {
        let known = lock(&self.known);
        let owned = |volume: &&Volume| volume.owner.as_ref().is_some_and(|(id, _)| id == owner);
        known.values().filter(owned).cloned().collect()
    }

    fn all(&self) -> Vec<Volume> {
        lock(&self.known).values().cloned().collect()
    }

    async fn put(&self, node: &Node, volume: Volume) -> Result<()> {
        let dir = volume::dir(&node.config.data_dir, &volume.name);
        tokio::fs::create_dir_all(&dir).await.map_err(Error::io("create", &dir))?;
        node.store.put_volume(&volume).await?;
        lock(&self.known).insert(volume.name.clone(), volume);
        Ok(())
    }

    async fn drop(&self, node: &Node, name: &str) -> Result<()> {
        let dir = node.config.data_dir.join(volume::VOLUMES).join(name);
        match tokio::fs::remove_dir_all(&dir).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("remove", &dir)(error));
            }
            _ => {}
        }
        node.store.remove_volume(name).await?;
        lock(&self.known).remove(name);
        Ok(())
    }
}

/// As long as it is kept no volume is removed.
pub(crate) type Held<'a> = RwLockReadGuard<'a, ()>;

/// Makes the volumes that a container wants and that are not there: those it names, and one of its own for each
/// mount without a name and for each place that its image declares. Their names are filled in.
pub(crate) async fn furnish<'a>(
    node: &'a Node,
    id: &ContainerId,
    mounts: &mut Vec<Mount>,
    image: &Image,
) -> Result<Held<'a>> {
    let held = node.volumes.turn.read().await;
    declared(mounts, &image.config.volumes);
    for mount in mounts {
        let MountKind::Volume { name, labels, .. } = &mut mount.kind else { continue };
        let owner = name.is_empty().then(|| (id.clone(), mount.target.clone()));
        if let Some(owner) = &owner {
            *name = own_name(node, owner);
            labels.insert(ANONYMOUS_LABEL.to_owned(), String::new());
        }
        names::check(name)?;
        if node.volumes.find(name).is_none() {
            let volume =
                Volume { name: name.clone(), labels: labels.clone(), created: Timestamp::now(), owner };
            node.volumes.put(node, volume).await?;
        } else {
            // A directory that somebody removed is no reason to fail.
            let dir = volume::dir(&node.config.data_dir, name);
            tokio::fs::create_dir_all(&dir).await.map_err(Error::io("create", &dir))?;
        }
    }
    Ok(held)
}

/// The image's volumes are mounts like any other, where the user wants nothing else.
fn declared(mounts: &mut Vec<Mount>, volumes: &[String]) {
    for target in volumes {
        let is_taken =
            mounts.iter().any(|mount| mount.target.trim_end_matches('/') == target.trim_end_matches('/'));
        if !is_taken {
            let kind = MountKind::Volume { name: String::new(), labels: Labels::new(), no_copy: false };
            mounts.push(Mount { kind, target: target.clone(), read_only: false });
        }
    }
}

/// The same again for a container that is made again.
fn own_name(node: &Node, owner: &(ContainerId, String)) -> String {
    let owned = node.volumes.owned(&owner.0).into_iter().find(|volume| volume.owner.as_ref() == Some(owner));
    owned.map_or_else(|| IdGenerator::from_os().container_id().to_string(), |volume| volume.name)
}

/// A container is no more: the volumes that were its own go with it, or are left to whoever wants them.
pub(crate) async fn release(node: &Node, id: &ContainerId, remove: bool) -> Result<()> {
    let owned = node.volumes.owned(id);
    if owned.is_empty() {
        return Ok(());
    }
    let _turn = node.volumes.turn.write().await;
    let used = used(&node.runtime.containers().await?);
    for volume in owned {
        if remove && !used.contains_key(&volume.name) {
            node.volumes.drop(node, &volume.name).await?;
        } else {
            node.volumes.put(node, Volume { owner: None, ..volume }).await?;
        }
    }
    Ok(())
}

/// Away with volumes of containers that are no more: of tasks, whose containers nobody else removes.
pub(crate) async fn prune(node: &Node, containers: &HashSet<ContainerId>) {
    for volume in node.volumes.all() {
        let gone = volume.owner.as_ref().filter(|(id, _)| !containers.contains(id));
        if let Some((id, _)) = gone
            && let Err(error) = release(node, id, true).await
        {
            tracing::warn!(volume = volume.name, %error, "cannot remove a volume that nobody claims");
        }
    }
}

/// Who mounts which volume.
fn used(containers: &[Container]) -> BTreeMap<String, Vec<ContainerId>> {
    let mut used: BTreeMap<String, Vec<ContainerId>> = BTreeMap::new();
    for config in containers.iter().map(|container| &container.config) {
        for mount in &config.spec.mounts {
            if let MountKind::Volume { name, .. } = &mount.kind {
                used.entry(name.clone()).or_default().push(config.id.clone());
            }
        }
    }
    used
}

// === what users ask for ===

/// Makes a volume; one that is there already is fine.
pub(crate) async fn create(node: &Node, name: Option<String>, labels: Labels) -> Result<VolumeView> {
    let _turn = node.volumes.turn.write().await;
    let (name, labels) = match name {
        Some(name) => (name, labels),
        None => {
            let mut labels = labels;
            labels.insert(ANONYMOUS_LABEL.to_owned(), String::new());
            (IdGenerator::from_os().container_id().to_string(), labels)
        }
    };
    names::check(&name)?;
    if node.volumes.find(&name).is_none() {
        let volume = Volume { name: name.clone(), labels, created: Timestamp::now(), owner: None };
        node.volumes.put(node, volume).await?;
    }
    find(node, &name).await
}

pub(crate) async fn all(node: &Node) -> Result<Vec<VolumeView>> {
    let mut used = used(&node.runtime.containers().await?);
    let view = |volume: Volume| VolumeView {
        path: volume::dir(&node.config.data_dir, &volume.name),
        users: used.remove(&volume.name).unwrap_or_default(),
        volume,
    };
    Ok(node.volumes.all().into_iter().map(view).collect())
}

pub(crate) async fn find(node: &Node, name: &str) -> Result<VolumeView> {
    let found = all(node).await?.into_iter().find(|view| view.volume.name == name);
    found.ok_or_else(|| Error::NoSuchVolume(name.to_owned()))
}

/// Removes a volume that no container mounts, with all it holds.
pub(crate) async fn remove(node: &Node, name: &str) -> Result<()> {
    let _turn = node.volumes.turn.write().await;
    let view = find(node, name).await?;
    if !view.users.is_empty() {
        let users: Vec<&str> = view.users.iter().map(ContainerId::as_str).collect();
        return Err(Error::VolumeInUse { name: name.to_owned(), users: users.join(", ") });
    }
    node.volumes.drop(node, name).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(name: &str, target: &str) -> Mount {
        let kind = MountKind::Volume { name: name.to_owned(), labels: Labels::new(), no_copy: false };
        Mount { kind, target: target.to_owned(), read_only: false }
    }

    #[test]
    fn an_images_volumes_are_mounts_where_nothing_else_is_wanted() {
        let mut mounts = vec![volume("data", "/data")];
        declared(&mut mounts, &["/data/".to_owned(), "/cache".to_owned()]);
        assert_eq!(mounts, [volume("data", "/data"), volume("", "/cache")]);
    }

    #[test]
    fn a_directory_is_a_volume_also_when_the_store_was_lost() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(volume::dir(dir.path(), "kept")).unwrap();
        let stored = Volume {
            name: "known".to_owned(),
            labels: Labels::from([("a".to_owned(), "b".to_owned())]),
            created: Timestamp::UNIX_EPOCH,
            owner: None,
        };
        let volumes = Volumes::new(vec![stored.clone()], dir.path());
        assert_eq!(volumes.find("known"), Some(stored));
        assert!(volumes.find("kept").is_some_and(|volume| volume.labels.is_empty()));
        assert_eq!(volumes.all().len(), 2);
    }
}
