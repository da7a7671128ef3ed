//! containerd's content store and snapshots: writing, reading and unpacking images.

use std::collections::HashMap;
use std::io::Read;

use bytes::Bytes;
use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
};
use containerd_client::services::v1::{
    ApplyRequest, Info, InfoRequest, ReadContentRequest, UpdateRequest, WriteAction, WriteContentRequest,
};
use containerd_client::types;
use futures::Stream;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::archive::Spooled;
use super::bundle::Bundle;
use super::document::Descriptor;
use crate::client::{Client, OUTAGE, ask, optional};
use crate::lease::Lease;
use crate::{Error, Result};

pub(crate) const SNAPSHOTTER: &str = "overlayfs";
/// What one message of a transfer carries.
const CHUNK: usize = 1 << 20;
/// Chunks in flight: the transfer's bound on memory.
const CHUNKS: usize = 4;
/// What points from content to the content and snapshots it needs; the collector follows these.
const GC_CONTENT: &str = "containerd.io/gc.ref.content";
const GC_SNAPSHOT: &str = "containerd.io/gc.ref.snapshot";

/// Stores all content of an image and unpacks its layers; returns what names are to point to.
/// Until something does, the lease protects it.
pub(super) async fn store(lease: &Lease, bundle: &Bundle) -> Result<types::Descriptor> {
    let client = &lease.client;
    for (layer, file) in &bundle.layers {
        let Some(file) = file else { continue };
        write(client, &layer.digest, layer.size, HashMap::new(), Source::File(file)).await?;
    }
    let top = unpack(lease, bundle).await?;
    let mut labels = HashMap::new();
    if let Some(top) = top {
        labels.insert(format!("{GC_SNAPSHOT}.{SNAPSHOTTER}"), top);
    }
    let config = &bundle.config_descriptor;
    write(client, &config.digest, config.size, labels, Source::Bytes(&bundle.config)).await?;
    let mut labels = HashMap::from([(format!("{GC_CONTENT}.config"), config.digest.clone())]);
    for (number, (layer, _)) in bundle.layers.iter().enumerate() {
        labels.insert(format!("{GC_CONTENT}.l.{number}"), layer.digest.clone());
    }
    let digest = super::digest_of(&bundle.manifest);
    let size = bundle.manifest.len() as u64;
    write(client, &digest, size, labels, Source::Bytes(&bundle.manifest)).await?;
    Ok(types::Descriptor {
        media_type: bundle.manifest_type.clone(),
        digest,
        size: size as i64,
        annotations: HashMap::new(),
    })
}

/// Whether the store has a blob. From now on it is leased, so it stays.
pub(super) async fn has(lease: &Lease, digest: &str) -> Result<bool> {
    lease.add("content", digest).await?;
    let request = || InfoRequest { digest: digest.to_owned() };
    let found = ask!(lease.client, format!("looking for {digest}"), content.info(request()));
    Ok(optional(found)?.is_some())
}

enum Source<'a> {
    Bytes(&'a [u8]),
    File(&'a Spooled),
}

/// Puts one blob into the store, or finds it there; either way it carries `labels` and is leased.
async fn write(
    client: &Client,
    digest: &str,
    size: u64,
    labels: HashMap<String, String>,
    source: Source<'_>,
) -> Result<()> {
    let path = match source {
        Source::Bytes(_) => None,
        Source::File(file) => Some(file.path.clone()),
    };
    let written = client
        .retry(format!("writing {digest}"), OUTAGE, || {
            let first = WriteContentRequest {
                action: WriteAction::Write as i32,
                // A name of its own per attempt: a broken attempt keeps its lock for a while.
                r#ref: format!("shoal-{:016x}-{digest}", rand::random::<u64>()),
                total: size as i64,
                expected: digest.to_owned(),
                offset: 0,
                data: Vec::new(),
                labels: labels.clone(),
            };
            let reader: Box<dyn FnOnce() -> std::io::Result<Box<dyn Read>> + Send> =
                match (&source, path.clone()) {
                    (Source::Bytes(bytes), _) => {
                        let bytes = bytes.to_vec();
                        Box::new(move || Ok(Box::new(std::io::Cursor::new(bytes))))
                    }
                    (Source::File(_), path) => {
                        let path = path.unwrap_or_default();
                        Box::new(move || Ok(Box::new(std::fs::File::open(path)?)))
                    }
                };
            let mut service = client.content();
            let request = client.request(ReceiverStream::new(chunks(first, reader)));
            async move {
                let mut answers = service.write(request).await?.into_inner();
                while let Some(answer) = answers.next().await {
                    answer?;
                }
                Ok(tonic::Response::new(()))
            }
        })
        .await;
    match written {
        Err(error) if error.is_already_exists() => relabel(client, digest, labels).await,
        other => other,
    }
}

/// Reads a source on a thread of its own into messages, the last of which commits.
fn chunks(
    first: WriteContentRequest,
    open: Box<dyn FnOnce() -> std::io::Result<Box<dyn Read>> + Send>,
) -> mpsc::Receiver<WriteContentRequest> {
    let (sender, receiver) = mpsc::channel(CHUNKS);
    tokio::task::spawn_blocking(move || {
        let template = first.clone();
        let mut offset = 0;
        if sender.blocking_send(first).is_err() {
            return;
        }
        // A source that cannot be read ends the stream without a commit: containerd then discards it,
        // and the digest it expects makes any other ending an error too.
        let Ok(mut reader) = open() else { return };
        loop {
            let mut data = Vec::with_capacity(CHUNK);
            let Ok(count) = reader.by_ref().take(CHUNK as u64).read_to_end(&mut data) else { return };
            let action = if count == 0 { WriteAction::Commit } else { WriteAction::Write };
            let message = WriteContentRequest { action: action as i32, offset, data, ..template.clone() };
            if sender.blocking_send(message).is_err() || count == 0 {
                return;
            }
            offset += count as i64;
        }
    });
    receiver
}

async fn relabel(client: &Client, digest: &str, labels: HashMap<String, String>) -> Result<()> {
    if labels.is_empty() {
        return Ok(());
    }
    let paths = labels.keys().map(|name| format!("labels.{name}")).collect::<Vec<_>>();
    let info = Info { digest: digest.to_owned(), labels, ..Info::default() };
    ask!(
        client,
        format!("labelling {digest}"),
        content.update(UpdateRequest {
            info: Some(info.clone()),
            update_mask: Some(prost_types::FieldMask { paths: paths.clone() }),
        })
    )
    .map(drop)
}

/// The whole of a small blob.
pub(super) async fn read(client: &Client, digest: &str) -> Result<Vec<u8>> {
    client
        .retry(format!("reading {digest}"), OUTAGE, || {
            let mut service = client.content();
            let request =
                client.request(ReadContentRequest { digest: digest.to_owned(), offset: 0, size: 0 });
            async move {
                let mut parts = service.read(request).await?.into_inner();
                let mut bytes = Vec::new();
                while let Some(part) = parts.next().await {
                    bytes.extend_from_slice(&part?.data);
                }
                Ok(tonic::Response::new(bytes))
            }
        })
        .await
}

/// A blob in parts.
pub(super) async fn stream(
    client: &Client,
    digest: &str,
) -> Result<impl Stream<Item = Result<Bytes>> + Unpin + use<>> {
    let action = format!("reading {digest}");
    let request = || ReadContentRequest { digest: digest.to_owned(), offset: 0, size: 0 };
    let parts = ask!(client, action.clone(), content.read(request()))?;
    Ok(parts.map(move |part| match part {
        Ok(part) => Ok(Bytes::from(part.data)),
        Err(status) => Err(Error::Containerd {
            action: action.clone(),
            code: status.code(),
            message: status.message().to_owned(),
        }),
    }))
}

/// Names of the snapshots that layers stacked on each other make, lowest first: the digest of the
/// parent's name and the layer's (<https://github.com/opencontainers/image-spec/blob/v1.1.0/config.md#layer-chainid>).
pub(super) fn chain_ids(diff_ids: &[String]) -> Vec<String> {
    let mut chain: Vec<String> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let next = match chain.last() {
            None => diff_id.clone(),
            Some(parent) => super::digest_of(format!("{parent} {diff_id}").as_bytes()),
        };
        chain.push(next);
    }
    chain
}

/// Makes the snapshots of an image's layers; returns the topmost.
async fn unpack(lease: &Lease, bundle: &Bundle) -> Result<Option<String>> {
    let diff_ids = &bundle.configuration.rootfs.diff_ids;
    let mut parent = String::new();
    for (chain_id, (diff_id, (layer, _))) in
        chain_ids(diff_ids).into_iter().zip(diff_ids.iter().zip(&bundle.layers))
    {
        // Leased before it is looked for, so that it cannot go once it was seen.
        lease.add(&format!("snapshots/{SNAPSHOTTER}"), &chain_id).await?;
        if !exists(&lease.client, &chain_id).await? {
            unpack_layer(&lease.client, &chain_id, &parent, diff_id, layer).await?;
        }
        parent = chain_id;
    }
    Ok((!parent.is_empty()).then_some(parent))
}

async fn exists(client: &Client, key: &str) -> Result<bool> {
    let request = || StatSnapshotRequest { snapshotter: SNAPSHOTTER.to_owned(), key: key.to_owned() };
    Ok(optional(ask!(client, format!("looking for snapshot {key}"), snapshots.stat(request())))?.is_some())
}

async fn unpack_layer(
    client: &Client,
    chain_id: &str,
    parent: &str,
    diff_id: &str,
    layer: &Descriptor,
) -> Result<()> {
    let key = format!("extract-{:016x} {chain_id}", rand::random::<u64>());
    let result = extract(client, &key, chain_id, parent, diff_id, layer).await;
    if result.is_err() {
        remove_snapshot(client, &key).await.ok();
    }
    match result {
        // Somebody else unpacked the same layer meanwhile.
        Err(error) if error.is_already_exists() => Ok(()),
        other => other,
    }
}

async fn extract(
    client: &Client,
    key: &str,
    chain_id: &str,
    parent: &str,
    diff_id: &str,
    layer: &Descriptor,
) -> Result<()> {
    let prepared = ask!(
        client,
        format!("preparing snapshot for {chain_id}"),
        snapshots.prepare(PrepareSnapshotRequest {
            snapshotter: SNAPSHOTTER.to_owned(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels: HashMap::new(),
        })
    )?;
    let diff = types::Descriptor {
        media_type: layer.media_type.clone(),
        digest: layer.digest.clone(),
        size: layer.size as i64,
        annotations: HashMap::new(),
    };
    let applied = ask!(
        client,
        format!("unpacking {}", layer.digest),
        diff.apply(ApplyRequest {
            diff: Some(diff.clone()),
            mounts: prepared.mounts.clone(),
            payloads: HashMap::new(),
            sync_fs: false,
        })
    )?;
    let found = applied.applied.map(|descriptor| descriptor.digest).unwrap_or_default();
    if found != diff_id {
        return Err(Error::InvalidArchive(format!("layer {diff_id} unpacks to {found}")));
    }
    ask!(
        client,
        format!("committing snapshot {chain_id}"),
        snapshots.commit(CommitSnapshotRequest {
            snapshotter: SNAPSHOTTER.to_owned(),
            name: chain_id.to_owned(),
            key: key.to_owned(),
            labels: HashMap::new(),
        })
    )
    .map(drop)
}

/// Removes a snapshot; one that is not there is fine.
pub(crate) async fn remove_snapshot(client: &Client, key: &str) -> Result<()> {
    let request = || RemoveSnapshotRequest { snapshotter: SNAPSHOTTER.to_owned(), key: key.to_owned() };
    optional(ask!(client, format!("removing snapshot {key}"), snapshots.remove(request()))).map(drop)
}

/// `sha256:…` of some bytes.
pub(crate) fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}
