//! Images as Docker's users see them.

mod archive;
mod bundle;
mod content;
pub(crate) mod document;
mod import;
mod pull;
pub(crate) mod reference;
mod save;
mod store;

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use shoal_model::{Healthcheck, Labels};
use tokio::io::AsyncRead;

pub(crate) use bundle::parse;
pub(crate) use content::{SNAPSHOTTER, digest_of, remove_snapshot};
pub(crate) use document::Platform;
pub use pull::{LayerStep, PullEvent, Pulled};
pub(crate) use pull::{Pulling, Wish, pull};
pub(crate) use reference::Reference;
pub(crate) use save::save;
pub(crate) use store::{Entry, Images, User};

use crate::Result;
use archive::{Archive, spool, temporary};
use bundle::Bundle;

/// An image on this node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Image {
    /// `sha256:…` of the image's configuration, Docker's image id.
    pub id: String,
    /// Familiar names with their tags, `busybox:latest`, sorted.
    pub references: Vec<String>,
    /// Familiar names with the manifest's digest, `busybox@sha256:…`, sorted.
    pub digests: Vec<String>,
    pub created: Option<Timestamp>,
    /// Bytes that the unpacked layers take.
    pub size: u64,
    pub architecture: String,
    pub os: String,
    pub author: String,
    pub comment: String,
    /// Version of the engine that built it; often empty.
    pub docker_version: String,
    pub config: ImageConfig,
    /// Digests of the uncompressed layers, lowest first.
    pub layers: Vec<String>,
    /// Oldest first.
    pub history: Vec<History>,
}

/// How containers of an image run unless told otherwise.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    pub env: Vec<String>,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub workdir: String,
    pub user: String,
    pub labels: Labels,
    /// `80/tcp`.
    pub exposed_ports: Vec<String>,
    pub volumes: Vec<String>,
    pub stop_signal: String,
    pub healthcheck: Option<Healthcheck>,
    pub on_build: Vec<String>,
    pub shell: Vec<String>,
}

/// One step of an image's making.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    pub created: Option<Timestamp>,
    pub created_by: String,
    pub author: String,
    pub comment: String,
    pub empty_layer: bool,
    /// Bytes of the layer this step made.
    pub size: u64,
}

/// What `docker import` says beside the file system itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImportOptions {
    /// The name to give to the new image.
    pub reference: Option<String>,
    /// The image's comment; empty is Docker's `Imported from -`.
    pub message: String,
    /// Dockerfile instructions applied to the configuration.
    pub changes: Vec<String>,
}

/// One effect of removing an image, in Docker's words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageDeletion {
    Untagged(String),
    Deleted(String),
}

/// Loads every image of an archive; returns what Docker prints of each: its names, else its id.
pub(crate) async fn load(
    images: &Images,
    scratch: &Path,
    tar: impl AsyncRead + Send + Unpin,
) -> Result<Vec<String>> {
    let archive = Archive::read(tar, scratch).await?;
    let mut loaded = Vec::new();
    for bundle in bundle::images(&archive).await? {
        let id = images.add(&bundle).await?;
        loaded.extend(bundle.names.iter().map(Reference::familiar));
        if bundle.names.is_empty() {
            loaded.push(id);
        }
    }
    Ok(loaded)
}

/// Makes an image of a file system; returns its id.
pub(crate) async fn import(
    images: &Images,
    scratch: &Path,
    tar: impl AsyncRead + Send + Unpin,
    options: &ImportOptions,
) -> Result<String> {
    let name =
        options.reference.as_deref().map(Reference::parse).transpose()?.map(Reference::with_default_tag);
    let dir = {
        let scratch: PathBuf = scratch.to_owned();
        archive::blocking(move || temporary(&scratch)).await?
    };
    let layer = spool(tar, dir.path()).await?;
    let config = import::configuration(options, &layer, Timestamp::now()).await?;
    images.add(&Bundle::assemble(name.into_iter().collect(), config, vec![layer]).await?).await
}

/// This machine in the words of image platforms (Go's).
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}
