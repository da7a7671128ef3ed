//! `docker pull`: an image of a registry becomes one of this node.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use futures::{StreamExt, TryStreamExt};
use tokio::sync::mpsc;

use super::archive::{self, Spooled};
use super::bundle::{Bundle, parse};
use super::content;
use super::document::{Configuration, Descriptor, Manifest, Platform};
use super::reference::Reference;
use super::store::Images;
use crate::lease::Lease;
use crate::registry::{Credentials, RegistryConfig, Repository};
use crate::{Error, Result};

/// Layers of one image under way at the same time, Docker's default.
const CONCURRENT: usize = 3;

/// What a pull has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// The image's id.
    pub id: String,
    /// What the name stands for in the registry: of an index, if there are several platforms.
    pub digest: String,
    /// The name stood for it before.
    pub up_to_date: bool,
}

/// What happens meanwhile, for people to watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PullEvent {
    /// The registry knows the name; an error after this is one of the transfer.
    Found,
    Layer {
        /// The layer's digest, without `sha256:`.
        id: String,
        step: LayerStep,
    },
}

/// How far a layer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LayerStep {
    Exists,
    Waiting,
    /// In bytes.
    Transferring {
        current: u64,
        total: u64,
    },
    Transferred,
    Unpacked,
}

/// Who watches; nobody is waited for.
pub(crate) type Watcher = Option<mpsc::Sender<PullEvent>>;

/// The names that are being pulled: several who want one image get it once.
#[derive(Default)]
pub(crate) struct Pulling(Mutex<HashMap<Reference, Weak<tokio::sync::Mutex<()>>>>);

impl Pulling {
    fn turn(&self, name: &Reference) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = turns.get(name).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::default();
        turns.insert(name.clone(), Arc::downgrade(&turn));
        turn
    }
}

/// What is asked for.
pub(crate) struct Wish<'a> {
    pub(crate) name: &'a str,
    pub(crate) credentials: &'a Credentials,
    /// `linux/arm64`; empty is this machine's.
    pub(crate) platform: &'a str,
}

/// Brings an image in, with the name it was asked by, and that of the digest it has in the registry.
pub(crate) async fn pull(
    images: &Images,
    pulling: &Pulling,
    registries: &RegistryConfig,
    scratch: &Path,
    wish: Wish<'_>,
    watcher: Watcher,
) -> Result<Pulled> {
    let name = Reference::parse(wish.name)?.with_default_tag();
    let platform = platform(wish.platform)?;
    let turn = pulling.turn(&name);
    let _one_at_a_time = turn.lock().await;
    let repository = Repository::open(registries, &name, wish.credentials).await?;
    let found = repository.document().await?;
    let digest = found.digest.clone();
    let manifest = repository.manifest(found, &platform).await?;
    let tell = |event| drop(watcher.as_ref().map(|watcher| watcher.try_send(event)));
    tell(PullEvent::Found);
    // With a digest, the tag says nothing.
    let by_digest = name.with_digest(&digest);
    let names = match name.digest() {
        Some(_) => vec![by_digest],
        None => vec![name.clone(), by_digest],
    };
    let id = parse::<Manifest>("manifest", &manifest.bytes)?.config.digest;
    if images.have(&names, &manifest.digest).await? {
        return Ok(Pulled { id, digest, up_to_date: true });
    }
    let lease = Lease::new(images.client()).await?;
    let stored = async {
        let directory = archive::temporary(scratch)?;
        let bundle = fetch(&repository, &lease, names, manifest, directory.path(), &tell).await?;
        images.keep(&lease, &bundle).await?;
        for (layer, _) in &bundle.layers {
            tell(PullEvent::Layer { id: hex_of(layer), step: LayerStep::Unpacked });
        }
        Ok(Pulled { id, digest, up_to_date: false })
    };
    let result = stored.await;
    lease.end().await;
    result
}

/// Everything of the image that the content store does not have.
async fn fetch(
    repository: &Repository<'_>,
    lease: &Lease,
    names: Vec<Reference>,
    manifest: crate::registry::Document,
    directory: &Path,
    tell: &(impl Fn(PullEvent) + Sync),
) -> Result<Bundle> {
    let document: Manifest = parse("manifest", &manifest.bytes)?;
    let config = repository.config(&document.config).await?;
    let configuration: Configuration = parse("image configuration", &config)?;
    if configuration.rootfs.diff_ids.len() != document.layers.len() {
        return Err(Error::Registry("configuration and manifest disagree about the layers".to_owned()));
    }
    for layer in &document.layers {
        tell(PullEvent::Layer { id: hex_of(layer), step: LayerStep::Waiting });
    }
    let layers = futures::stream::iter(document.layers.into_iter().enumerate().map(|(number, layer)| {
        let path = directory.join(number.to_string());
        async move {
            let file = fetch_layer(repository, lease, &layer, &path, tell).await?;
            Ok::<_, Error>((layer, file))
        }
    }));
    Ok(Bundle {
        names,
        manifest: manifest.bytes,
        manifest_type: manifest.media_type,
        config,
        config_descriptor: document.config,
        configuration,
        layers: layers.buffered(CONCURRENT).try_collect().await?,
    })
}

async fn fetch_layer(
    repository: &Repository<'_>,
    lease: &Lease,
    layer: &Descriptor,
    path: &Path,
    tell: &(impl Fn(PullEvent) + Sync),
) -> Result<Option<Spooled>> {
    let step = |step| tell(PullEvent::Layer { id: hex_of(layer), step });
    if content::has(lease, &layer.digest).await? {
        step(LayerStep::Exists);
        return Ok(None);
    }
    let total = layer.size;
    repository.layer(layer, path, |current| step(LayerStep::Transferring { current, total })).await?;
    step(LayerStep::Transferred);
    Ok(Some(Spooled { path: path.to_owned(), size: layer.size, digest: layer.digest.clone() }))
}

fn hex_of(layer: &Descriptor) -> String {
    layer.digest.trim_start_matches("sha256:").to_owned()
}

/// `OS/ARCHITECTURE[/VARIANT]`.
fn platform(text: &str) -> Result<Platform> {
    if text.is_empty() {
        return Ok(Platform::of_this_machine());
    }
    let mut parts = text.split('/');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(os), Some(architecture), _, None) if !os.is_empty() && !architecture.is_empty() => {
            Ok(Platform { os: os.to_owned(), architecture: architecture.to_owned() })
        }
        _ => Err(Error::InvalidConfig(format!("{text:?} is an invalid platform: it is OS/ARCHITECTURE"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_read_as_docker_writes_them() {
        let is = |os: &str, architecture: &str| Platform {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
        };
        assert_eq!(platform("").unwrap(), Platform::of_this_machine());
        assert_eq!(platform("linux/arm64").unwrap(), is("linux", "arm64"));
        assert_eq!(platform("linux/arm/v7").unwrap(), is("linux", "arm"));
        for bad in ["linux", "/arm64", "linux/", "a/b/c/d"] {
            assert!(platform(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn one_name_is_pulled_once_at_a_time_and_forgotten() {
        let (pulling, one, other) =
            (Pulling::default(), Reference::parse("a").unwrap(), Reference::parse("b").unwrap());
        let turn = pulling.turn(&one);
        assert!(Arc::ptr_eq(&turn, &pulling.turn(&one)));
        assert!(!Arc::ptr_eq(&turn, &pulling.turn(&other)));
        drop(turn);
        drop(pulling.turn(&other));
        assert_eq!(pulling.0.lock().unwrap().len(), 1, "what nobody waits for goes with the next turn");
    }
}
