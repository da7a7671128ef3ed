//! `docker save`: images as an archive that is an OCI layout and has Docker's `manifest.json` beside, as
//! Docker writes them since version 25.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::bundle::parse;
use super::content;
use super::document::{Manifest, media};
use super::reference::Reference;
use super::store::{Entry, Images};
use crate::lease::Lease;
use crate::{Error, Result};

/// Pieces under way: the transfer's bound on memory.
const PIECES: usize = 8;
/// What a tar is padded to.
const BLOCK: usize = 512;

/// What is to be in the archive.
struct Plan {
    /// Sizes by digest.
    blobs: BTreeMap<String, u64>,
    documents: Vec<(&'static str, Vec<u8>)>,
}

/// The archive of these images, in pieces. An error in the middle of it ends the stream with that error.
pub(crate) async fn save(images: &Images, names: &[String]) -> Result<ReceiverStream<Result<Bytes>>> {
    let lease = Lease::new(images.client()).await?;
    let plan = match plan(images, &lease, names).await {
        Ok(plan) => plan,
        Err(error) => {
            lease.end().await;
            return Err(error);
        }
    };
    let (sender, receiver) = mpsc::channel(PIECES);
    tokio::spawn(async move {
        if let Err(error) = write(&lease, plan, &sender).await {
            let _ = sender.send(Err(error)).await;
        }
        lease.end().await;
    });
    Ok(ReceiverStream::new(receiver))
}

async fn plan(images: &Images, lease: &Lease, names: &[String]) -> Result<Plan> {
    let mut chosen: Vec<(Entry, Vec<Reference>)> = Vec::new();
    for name in names {
        let (entry, reference) = images.pick(name).await?;
        let tag = reference.filter(|reference| reference.digest().is_none());
        match chosen.iter_mut().find(|(known, _)| known.id() == entry.id()) {
            Some((_, tags)) => tags.extend(tag),
            None => chosen.push((entry, tag.into_iter().collect())),
        }
    }
    let (mut blobs, mut listed, mut index) = (BTreeMap::new(), Vec::new(), Vec::new());
    for (entry, tags) in &chosen {
        let target = entry.manifest();
        let manifest: Manifest = parse("manifest", &content::read(&lease.client, &target.digest).await?)?;
        blobs.insert(target.digest.clone(), target.size.unsigned_abs());
        for blob in manifest.layers.iter().chain([&manifest.config]) {
            if !content::has(lease, &blob.digest).await? {
                return Err(Error::NoSuchImage(format!("{} is not complete", entry.id())));
            }
            blobs.insert(blob.digest.clone(), blob.size);
        }
        let names: Vec<String> = tags.iter().map(Reference::familiar).collect();
        let layers: Vec<String> = manifest.layers.iter().map(|layer| path_of(&layer.digest)).collect();
        listed
            .push(json!({ "Config": path_of(&manifest.config.digest), "RepoTags": names, "Layers": layers }));
        let mut described = json!({
            "mediaType": target.media_type, "digest": target.digest, "size": target.size,
        });
        for name in tags {
            described["annotations"] = json!({
                "io.containerd.image.name": name.full(),
                "org.opencontainers.image.ref.name": name.tag().unwrap_or_default(),
            });
            index.push(described.clone());
        }
        if tags.is_empty() {
            index.push(described);
        }
    }
    let index = json!({ "schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": index });
    let text = |value: Value| value.to_string().into_bytes();
    Ok(Plan {
        blobs,
        documents: vec![
            ("index.json", text(index)),
            ("manifest.json", text(Value::Array(listed))),
            ("oci-layout", text(json!({ "imageLayoutVersion": "1.0.0" }))),
        ],
    })
}

fn path_of(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

type Sender = mpsc::Sender<Result<Bytes>>;

/// Ends early, without an error, when nobody reads any more.
async fn write(lease: &Lease, plan: Plan, sender: &Sender) -> Result<()> {
    for (digest, size) in &plan.blobs {
        if sender.send(Ok(header(&path_of(digest), *size)?)).await.is_err() {
            return Ok(());
        }
        let mut parts = content::stream(&lease.client, digest).await?;
        let mut length = 0;
        while let Some(part) = parts.next().await {
            let part = part?;
            length += part.len() as u64;
            if sender.send(Ok(part)).await.is_err() {
                return Ok(());
            }
        }
        if length != *size {
            return Err(Error::InvalidArchive(format!("{digest} has {length} bytes instead of {size}")));
        }
        let _ = sender.send(Ok(padding(length))).await;
    }
    for (path, bytes) in plan.documents {
        let length = bytes.len() as u64;
        for part in [header(path, length)?, bytes.into(), padding(length)] {
            let _ = sender.send(Ok(part)).await;
        }
    }
    let _ = sender.send(Ok(Bytes::from_static(&[0; 2 * BLOCK]))).await;
    Ok(())
}

fn header(path: &str, size: u64) -> Result<Bytes> {
    let mut header = tar::Header::new_ustar();
    header.set_path(path).map_err(|error| Error::InvalidArchive(error.to_string()))?;
    header.set_size(size);
    header.set_mode(0o644);
    header.set_cksum();
    Ok(Bytes::copy_from_slice(header.as_bytes()))
}

fn padding(length: u64) -> Bytes {
    let over = length as usize % BLOCK;
    Bytes::from_static(&[0; BLOCK]).slice(..(BLOCK - over) % BLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_filled_up() {
        assert_eq!([0, 1, 511, 512, 513].map(|length| padding(length).len()), [0, 511, 1, 0, 511]);
        assert_eq!(header("blobs/sha256/00", 3).unwrap().len(), BLOCK);
    }
}
