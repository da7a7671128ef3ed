//! Removing what nobody wants: single left-overs, or everything.

use std::collections::HashSet;
use std::fs::read_dir;
use std::path::Path;
use std::time::Duration;

use containerd_client::services::v1::snapshots::{Kind, ListSnapshotsRequest};
use containerd_client::services::v1::{
    DeleteContentRequest, DeleteImageRequest, DeleteNamespaceRequest, DeleteRequest, ListContainersRequest,
    ListContentRequest, ListImagesRequest, ListRequest,
};
use shoal_model::ContainerId;
use tokio::time::Instant;
use tokio_stream::StreamExt;

use super::create::blocking;
use super::files::{parent, remove_dir};
use super::{Containers, cgroup};
use crate::client::{OUTAGE, ask, optional};
use crate::image::{SNAPSHOTTER, remove_snapshot};
use crate::{Error, Result};

/// containerd's collector runs on its own; the namespace can go when it is through.
const EMPTYING: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(100);

impl Containers {
    /// Removes containers, their snapshots, directories and FIFOs that are not in `keep`, shims without
    /// a task, and what killed processes left in `scratch`. Goes on after errors.
    pub(crate) async fn prune(&self, keep: &HashSet<ContainerId>, scratch: &Path) -> Result<()> {
        let mut errors = Vec::new();
        errors.extend(self.end_stray_shims().await.err());
        let mut doomed: HashSet<String> = self.ids().await?.into_iter().collect();
        doomed.extend(self.writable_snapshots().await?);
        let dirs = [parent(&self.config.data_dir), self.config.run_dir.join("exec")];
        doomed
            .extend(blocking(move || Ok(dirs.iter().flat_map(|dir| names(dir)).collect::<Vec<_>>())).await?);
        for id in doomed.into_iter().map(ContainerId::new).filter(|id| !keep.contains(id)) {
            tracing::info!(container = %id, "removing what nobody claims");
            errors.extend(self.remove(&id).await.err());
        }
        let (scratch, namespace) = (scratch.to_owned(), self.config.namespace.clone());
        let nothing_stays = keep.is_empty();
        let sweep = move || {
            if nothing_stays {
                cgroup::remove(&[&format!("/shoal/{namespace}"), "/shoal"]);
            }
            sweep_scratch(&scratch)
        };
        errors.extend(blocking(sweep).await.err());
        Error::collect(errors)
    }

    async fn ids(&self) -> Result<Vec<String>> {
        let request = || ListContainersRequest { filters: Vec::new() };
        let stored = ask!(self.client, "listing containers", containers.list(request()))?.containers;
        Ok(stored.into_iter().map(|stored| stored.id).collect())
    }

    /// Snapshots of containers; those being unpacked into belong to a load.
    async fn writable_snapshots(&self) -> Result<Vec<String>> {
        let all = self.snapshots().await?;
        let ours = |name: &String| name.len() == 64;
        Ok(all
            .into_iter()
            .filter(|(_, kind)| *kind == Kind::Active)
            .map(|(name, _)| name)
            .filter(ours)
            .collect())
    }

    async fn snapshots(&self) -> Result<Vec<(String, Kind)>> {
        self.client
            .retry("listing snapshots", OUTAGE, || {
                let mut service = self.client.snapshots();
                let request =
                    ListSnapshotsRequest { snapshotter: SNAPSHOTTER.to_owned(), filters: Vec::new() };
                let request = self.client.request(request);
                async move {
                    let mut parts = service.list(request).await?.into_inner();
                    let mut found = Vec::new();
                    while let Some(part) = parts.next().await {
                        found.extend(part?.info.into_iter().map(|info| (info.kind(), info.name)));
                    }
                    Ok(tonic::Response::new(found.into_iter().map(|(kind, name)| (name, kind)).collect()))
                }
            })
            .await
    }

    /// Removes everything in the containerd namespace, the namespace, and our directories.
    pub(crate) async fn purge(&self, scratch: &Path) -> Result<()> {
        self.prune(&HashSet::new(), scratch).await?;
        self.remove_images().await?;
        let request = || ListRequest { filters: Vec::new() };
        for lease in ask!(self.client, "listing leases", leases.list(request()))?.leases {
            let request = || DeleteRequest { id: lease.id.clone(), sync: true };
            optional(ask!(self.client, format!("deleting lease {}", lease.id), leases.delete(request())))?;
        }
        let deadline = Instant::now() + EMPTYING;
        loop {
            self.remove_remains().await?;
            let request = || DeleteNamespaceRequest { name: self.config.namespace.clone() };
            match optional(ask!(self.client, "removing namespace", namespaces.delete(request()))) {
                Ok(_) => break,
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
        let dirs = [parent(&self.config.data_dir), self.config.run_dir.join("exec"), scratch.to_owned()];
        blocking(move || Error::collect(dirs.iter().filter_map(|dir| remove_dir(dir).err()).collect())).await
    }

    async fn remove_images(&self) -> Result<()> {
        let request = || ListImagesRequest { filters: Vec::new() };
        let images = ask!(self.client, "listing images", images.list(request()))?.images;
        let last = images.len();
        for (place, image) in images.into_iter().enumerate() {
            // The last one waits for the collector.
            let sync = place + 1 == last;
            let request = || DeleteImageRequest { name: image.name.clone(), sync, target: None };
            optional(ask!(self.client, format!("removing image {}", image.name), images.delete(request())))?;
        }
        Ok(())
    }

    /// Snapshots and content that nothing names. Children go before parents by trying again.
    async fn remove_remains(&self) -> Result<()> {
        for (name, _) in self.snapshots().await? {
            // One with children refuses, until they are gone in the next round.
            remove_snapshot(&self.client, &name).await.ok();
        }
        for digest in self.content().await? {
            let request = || DeleteContentRequest { digest: digest.clone() };
            optional(ask!(self.client, format!("deleting {digest}"), content.delete(request())))?;
        }
        Ok(())
    }

    async fn content(&self) -> Result<Vec<String>> {
        self.client
            .retry("listing content", OUTAGE, || {
                let mut service = self.client.content();
                let request = self.client.request(ListContentRequest { filters: Vec::new() });
                async move {
                    let mut parts = service.list(request).await?.into_inner();
                    let mut found = Vec::new();
                    while let Some(part) = parts.next().await {
                        found.extend(part?.info.into_iter().map(|info| info.digest));
                    }
                    Ok(tonic::Response::new(found))
                }
            })
            .await
    }
}

/// Names in a directory, which need not exist.
fn names(dir: &Path) -> Vec<String> {
    let entries = read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Removes what other processes than this one left: names start with their process id.
fn sweep_scratch(scratch: &Path) -> Result<()> {
    let own = format!("{}-", std::process::id());
    let others = names(scratch).into_iter().filter(|name| !name.starts_with(&own));
    Error::collect(others.filter_map(|name| remove_dir(&scratch.join(name)).err()).collect())
}
