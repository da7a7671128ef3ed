//! Making a container: snapshot, files, specification, containerd's record.

use std::collections::HashMap;
use std::path::PathBuf;

use containerd_client::services::v1::container::Runtime;
use containerd_client::services::v1::snapshots::PrepareSnapshotRequest;
use containerd_client::services::v1::{Container as Stored, CreateContainerRequest, GetContainerRequest};
use prost_types::Any;
use serde_json::Value;
use shoal_model::{ContainerId, Mount, MountKind};

use super::{ContainerConfig, Containers, Record, init};
use crate::client::{ask, optional};
use crate::image::{Entry, SNAPSHOTTER, remove_snapshot};
use crate::lease::Lease;
use crate::rootfs::Root;
use crate::{Error, Result, spec, volume};

/// containerd's shim for runc.
const RUNTIME: &str = "io.containerd.runc.v2";
/// What containerd calls a runtime specification.
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
/// Under which name and type our own record is kept in containerd's.
const EXTENSION: &str = "shoal/container";

impl Containers {
    /// Makes a container of an image. What a failed attempt left is removed; what a killed one left
    /// is taken over.
    pub(crate) async fn create(&self, config: &ContainerConfig, image: &Entry) -> Result<()> {
        if self.stored(&config.id).await?.is_some() {
            return Err(Error::ContainerExists(config.id.to_string()));
        }
        let lease = Lease::new(&self.client).await?;
        let made = self.make(&lease, config, image).await;
        if made.is_err() {
            // The first error is the one to tell; what cannot be removed now, the next sweep removes.
            remove_snapshot(&self.client, config.id.as_str()).await.ok();
            self.files(&config.id).remove().ok();
        }
        lease.end().await;
        made
    }

    async fn make(&self, lease: &Lease, config: &ContainerConfig, image: &Entry) -> Result<()> {
        let defaults = image.image().config;
        check_mounts(config).await?;
        let hostname = spec::hostname(&config.spec, config.id.short());
        let record = Record {
            config: config.clone(),
            argv: spec::argv(&config.spec, &defaults)?,
            env: spec::environment(&config.spec, &defaults, &hostname),
            image_id: image.id().to_owned(),
            stop_signal: spec::stop_signal(&config.spec, &defaults)?,
        };
        let files = self.files(&config.id);
        let (dir, copy, name) = (self.files(&config.id), config.clone(), hostname.clone());
        blocking(move || dir.create(&copy, &name)).await?;
        let mounts = self.prepare(lease, config.id.as_str(), image).await?;
        let root = Root::Snapshot { mounts: mounts.clone(), at: files.root() };
        let accounts = root.accounts().await?;
        for (mount, into) in self.volumes(config).await? {
            let root = Root::Snapshot { mounts: mounts.clone(), at: files.root() };
            root.copy(mount.target.clone(), into).await?;
        }
        let wanted = if config.spec.user.is_empty() { &defaults.user } else { &config.spec.user };
        let identity =
            spec::resolve_identity(&accounts.passwd, &accounts.group, wanted, &config.spec.groups)?;
        let init = if config.spec.init == Some(true) {
            let run_dir = self.config.run_dir.clone();
            Some(blocking(move || init::install(&run_dir)).await?)
        } else {
            None
        };
        let specification = spec::build(&spec::Input {
            config,
            init: init.as_deref(),
            argv: &record.argv,
            env: &record.env,
            directory: &spec::directory(&config.spec, &defaults)?,
            hostname: &hostname,
            identity: &identity,
            cgroup: &self.cgroup(&config.id),
            dir: &files.dir,
            data_dir: &self.config.data_dir,
            netns: config.netns.clone().unwrap_or_else(own_netns),
            kernel: self.kernel,
            architecture: std::env::consts::ARCH,
        })?;
        self.store(lease, &record, image, &specification).await
    }

    /// The empty volumes of a container that are to have what its image holds in their places. Their directories
    /// have to be there.
    async fn volumes<'a>(&self, config: &'a ContainerConfig) -> Result<Vec<(&'a Mount, PathBuf)>> {
        let mut empty = Vec::new();
        for mount in &config.spec.mounts {
            let MountKind::Volume { name, no_copy, .. } = &mount.kind else { continue };
            let dir = volume::dir(&self.config.data_dir, name);
            let mut entries = tokio::fs::read_dir(&dir).await.map_err(Error::io(&dir))?;
            let is_empty = entries.next_entry().await.map_err(Error::io(&dir))?.is_none();
            if is_empty && !no_copy {
                empty.push((mount, dir));
            }
        }
        Ok(empty)
    }

    /// A writable snapshot on top of the image's layers.
    async fn prepare(
        &self,
        lease: &Lease,
        key: &str,
        image: &Entry,
    ) -> Result<Vec<containerd_client::types::Mount>> {
        let parent = image.contents.chain.last().cloned().unwrap_or_default();
        remove_snapshot(&self.client, key).await?;
        let prepared = ask!(
            lease.client,
            format!("preparing the file system of {key}"),
            snapshots.prepare(PrepareSnapshotRequest {
                snapshotter: SNAPSHOTTER.to_owned(),
                key: key.to_owned(),
                parent: parent.clone(),
                labels: HashMap::new(),
            })
        );
        Ok(prepared?.mounts)
    }

    async fn store(
        &self,
        lease: &Lease,
        record: &Record,
        image: &Entry,
        specification: &Value,
    ) -> Result<()> {
        let id = record.config.id.as_str();
        let any = |kind: &str, value: Result<Vec<u8>, serde_json::Error>| {
            let value = value.map_err(|error| Error::InvalidConfig(error.to_string()))?;
            Ok::<_, Error>(Any { type_url: kind.to_owned(), value })
        };
        let stored = Stored {
            id: id.to_owned(),
            image: image.record_name(),
            runtime: Some(Runtime { name: RUNTIME.to_owned(), options: None }),
            spec: Some(any(SPEC_TYPE, serde_json::to_vec(specification))?),
            snapshotter: SNAPSHOTTER.to_owned(),
            snapshot_key: id.to_owned(),
            extensions: HashMap::from([(EXTENSION.to_owned(), any(EXTENSION, serde_json::to_vec(record))?)]),
            ..Stored::default()
        };
        let created = ask!(
            lease.client,
            format!("creating container {id}"),
            containers.create(CreateContainerRequest { container: Some(stored.clone()) })
        );
        match created {
            // Looked for before: this can only be an attempt whose answer was lost.
            Err(error) if !error.is_already_exists() => Err(error),
            _ => Ok(()),
        }
    }

    /// containerd's record, if it has one.
    pub(super) async fn stored(&self, id: &ContainerId) -> Result<Option<Stored>> {
        let request = || GetContainerRequest { id: id.to_string() };
        let found =
            optional(ask!(self.client, format!("looking for container {id}"), containers.get(request())))?;
        Ok(found.and_then(|found| found.container))
    }

    /// containerd's record with the specification it holds.
    pub(crate) async fn specification(&self, id: &ContainerId) -> Result<Value> {
        let stored = self.stored(id).await?.ok_or_else(|| Error::NoSuchContainer(id.to_string()))?;
        specification_of(id, &stored)
    }
}

pub(super) fn specification_of(id: &ContainerId, stored: &Stored) -> Result<Value> {
    let bytes = stored.spec.as_ref().map(|any| any.value.as_slice()).unwrap_or_default();
    serde_json::from_slice(bytes)
        .map_err(|error| Error::InvalidConfig(format!("the specification of {id} is damaged: {error}")))
}

pub(super) fn specification_any(specification: &Value) -> Any {
    Any { type_url: SPEC_TYPE.to_owned(), value: specification.to_string().into_bytes() }
}

/// Our own part of containerd's record; `None` when the container is not ours or damaged.
pub(super) fn record_of(stored: &Stored) -> Option<Record> {
    serde_json::from_slice(&stored.extensions.get(EXTENSION)?.value).ok()
}

/// The network namespace of this process, as containerd's shim can find it.
pub(super) fn own_netns() -> PathBuf {
    PathBuf::from(format!("/proc/{}/ns/net", std::process::id()))
}

/// runc would make a missing source an error without a name.
async fn check_mounts(config: &ContainerConfig) -> Result<()> {
    for mount in &config.spec.mounts {
        if let MountKind::Bind { source, .. } = &mount.kind
            && !tokio::fs::try_exists(source).await.unwrap_or(false)
        {
            return Err(Error::InvalidConfig(format!(
                "invalid mount config for type \"bind\": bind source path does not exist: {source}"
            )));
        }
    }
    Ok(())
}

/// Runs file work on a thread that may block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Error::Task(error.to_string()))?
}
