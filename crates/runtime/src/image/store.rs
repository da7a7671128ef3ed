//! Images by name and id: looking up, naming, removing, by Docker's rules.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use containerd_client::services::v1::snapshots::UsageRequest;
use containerd_client::services::v1::{
    CreateImageRequest, DeleteImageRequest, Image as Record, ListImagesRequest, UpdateImageRequest,
};
use containerd_client::types;

use super::bundle::{Bundle, parse};
use super::content::{SNAPSHOTTER, chain_ids, read, store};
use super::document::{Configuration, Manifest};
use super::reference::{Reference, is_hex, is_identifier};
use super::{Image, ImageDeletion};
use crate::client::{Client, ask, optional};
use crate::lease::Lease;
use crate::{Error, Result};

/// Images without a name are kept under their id, as every image needs some record to live.
const NAMELESS: &str = "sha256:";

/// The images of a containerd namespace.
pub(crate) struct Images {
    client: Client,
    /// What manifests say never changes, so it is read once: by the manifest's digest.
    known: Mutex<HashMap<String, Arc<Contents>>>,
    /// Serialises changes of names, each of which looks before it leaps.
    naming: tokio::sync::Mutex<()>,
}

/// What an image is, whatever it is called.
pub(crate) struct Contents {
    /// The image as Docker shows it, but for its names.
    image: Image,
    /// Snapshots of its layers, lowest first.
    pub(crate) chain: Vec<String>,
    manifest: types::Descriptor,
}

/// An image with all its names.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) contents: Arc<Contents>,
    names: BTreeSet<Reference>,
}

impl Entry {
    pub(crate) fn id(&self) -> &str {
        &self.contents.image.id
    }

    /// What containerd calls its record (also that of a nameless image).
    pub(crate) fn record_name(&self) -> String {
        self.names.first().map_or_else(|| self.id().to_owned(), Reference::full)
    }

    pub(super) fn manifest(&self) -> &types::Descriptor {
        &self.contents.manifest
    }

    pub(crate) fn image(&self) -> Image {
        let mut image = self.contents.image.clone();
        let (digests, tags): (Vec<&Reference>, Vec<&Reference>) =
            self.names.iter().partition(|name| name.digest().is_some());
        image.references = tags.iter().map(|name| name.familiar()).collect();
        image.references.sort();
        // What never was in a registry goes by the digest of its own manifest.
        let known: BTreeSet<String> = digests.iter().map(|name| name.repository()).collect();
        let own = tags.iter().filter(|name| !known.contains(&name.repository()));
        let own: BTreeSet<Reference> =
            own.map(|name| name.with_digest(&self.contents.manifest.digest)).collect();
        image.digests = digests.into_iter().chain(&own).map(Reference::familiar).collect();
        image.digests.sort();
        image
    }
}

impl Images {
    pub(crate) fn new(client: Client) -> Self {
        Self { client, known: Mutex::default(), naming: tokio::sync::Mutex::default() }
    }

    /// Every image once, with all its names; the newest first, as Docker lists them.
    pub(crate) async fn list(&self) -> Result<Vec<Entry>> {
        let records =
            ask!(self.client, "listing images", images.list(ListImagesRequest { filters: Vec::new() }))?
                .images;
        let mut entries: BTreeMap<String, Entry> = BTreeMap::new();
        for record in records {
            let Some(target) = record.target else { continue };
            // An image that is being removed loses its content a moment before or after its name.
            let Some(contents) = optional(self.contents(&target).await)? else { continue };
            let entry = entries
                .entry(contents.image.id.clone())
                .or_insert_with(|| Entry { contents, names: BTreeSet::new() });
            if !record.name.starts_with(NAMELESS) {
                entry.names.extend(Reference::parse(&record.name).ok());
            }
        }
        let mut entries: Vec<Entry> = entries.into_values().collect();
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.contents.image.created));
        Ok(entries)
    }

    async fn contents(&self, target: &types::Descriptor) -> Result<Arc<Contents>> {
        let lock = || self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(known) = lock().get(&target.digest) {
            return Ok(known.clone());
        }
        let manifest: Manifest = parse("manifest", &read(&self.client, &target.digest).await?)?;
        let config: Configuration =
            parse("image configuration", &read(&self.client, &manifest.config.digest).await?)?;
        let chain = chain_ids(&config.rootfs.diff_ids);
        let mut sizes = Vec::with_capacity(chain.len());
        for snapshot in &chain {
            sizes.push(self.size(snapshot).await?);
        }
        let image = describe(&manifest, config, &sizes);
        let contents = Arc::new(Contents { image, chain, manifest: target.clone() });
        lock().insert(target.digest.clone(), contents.clone());
        Ok(contents)
    }

    /// Bytes a layer takes on disk.
    async fn size(&self, snapshot: &str) -> Result<u64> {
        let request = || UsageRequest { snapshotter: SNAPSHOTTER.to_owned(), key: snapshot.to_owned() };
        let usage = ask!(self.client, format!("measuring {snapshot}"), snapshots.usage(request()))?;
        Ok(u64::try_from(usage.size).unwrap_or_default())
    }

    /// Finds an image by name, digest, id or the start of an id.
    pub(crate) async fn find(&self, name: &str) -> Result<Entry> {
        self.pick(name).await.map(|(entry, _)| entry)
    }

    /// The same, with the name it was found by, if it was one.
    pub(super) async fn pick(&self, name: &str) -> Result<(Entry, Option<Reference>)> {
        pick(self.list().await?, name)
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// Whether all of these names stand for the image with this manifest.
    pub(super) async fn have(&self, names: &[Reference], manifest: &str) -> Result<bool> {
        let entries = self.list().await?;
        let entry = entries.iter().find(|entry| entry.contents.manifest.digest == manifest);
        Ok(entry.is_some_and(|entry| names.iter().all(|name| entry.names.contains(name))))
    }

    /// Stores an image and gives it its names; returns its id.
    pub(super) async fn add(&self, bundle: &Bundle) -> Result<String> {
        let lease = Lease::new(&self.client).await?;
        let result = self.keep(&lease, bundle).await;
        lease.end().await;
        result.map(|()| bundle.config_descriptor.digest.clone())
    }

    /// The same under the caller's lease.
    pub(super) async fn keep(&self, lease: &Lease, bundle: &Bundle) -> Result<()> {
        let target = store(lease, bundle).await?;
        self.name(bundle, &target).await
    }

    async fn name(&self, bundle: &Bundle, target: &types::Descriptor) -> Result<()> {
        let _one_at_a_time = self.naming.lock().await;
        for name in &bundle.names {
            self.point(name, target).await?;
        }
        let id = &bundle.config_descriptor.digest;
        let known = self.list().await?;
        if !known.iter().any(|entry| entry.id() == id) {
            self.set(id, target).await?;
        }
        Ok(())
    }

    /// Makes one more name for an image. A name that another image had is taken from it.
    pub(crate) async fn tag(&self, source: &str, target: &str) -> Result<()> {
        let target = Reference::parse(target)?.with_default_tag();
        if target.digest().is_some() {
            return Err(Error::InvalidReference(
                "refusing to create a tag with a digest reference".to_owned(),
            ));
        }
        let _one_at_a_time = self.naming.lock().await;
        let entry = self.find(source).await?;
        self.point(&target, &entry.contents.manifest).await
    }

    /// Callers hold `naming`.
    async fn point(&self, name: &Reference, target: &types::Descriptor) -> Result<()> {
        let entries = self.list().await?;
        let before = entries.iter().find(|entry| entry.names.contains(name));
        match before {
            Some(entry) if entry.contents.manifest.digest == target.digest => return Ok(()),
            // The image that loses its last name stays, as Docker's `<none>`.
            Some(entry) if entry.names.len() == 1 => self.set(entry.id(), &entry.contents.manifest).await?,
            _ => {}
        }
        self.set(&name.full(), target).await?;
        // With a name, the record that stood in for one is not needed any more.
        let nameless = entries
            .iter()
            .find(|entry| entry.contents.manifest.digest == target.digest && entry.names.is_empty());
        match nameless {
            Some(entry) => self.unset(entry.id(), false).await,
            None => Ok(()),
        }
    }

    async fn set(&self, name: &str, target: &types::Descriptor) -> Result<()> {
        let record = || Record { name: name.to_owned(), target: Some(target.clone()), ..Record::default() };
        let created = ask!(
            self.client,
            format!("naming image {name}"),
            images.create(CreateImageRequest { image: Some(record()), source_date_epoch: None })
        );
        match created {
            Err(error) if error.is_already_exists() => ask!(
                self.client,
                format!("naming image {name}"),
                images.update(UpdateImageRequest {
                    image: Some(record()),
                    update_mask: Some(prost_types::FieldMask { paths: vec!["target".to_owned()] }),
                    source_date_epoch: None,
                })
            )
            .map(drop),
            other => other.map(drop),
        }
    }

    /// `sync` waits until what only this name kept alive is gone.
    pub(crate) async fn unset(&self, name: &str, sync: bool) -> Result<()> {
        let request = || DeleteImageRequest { name: name.to_owned(), sync, target: None };
        optional(ask!(self.client, format!("removing image {name}"), images.delete(request()))).map(drop)
    }

    /// Docker's `image rm`. `users` are containers: short id, image id, whether it runs.
    pub(crate) async fn remove(&self, name: &str, force: bool, users: &[User]) -> Result<Vec<ImageDeletion>> {
        let _one_at_a_time = self.naming.lock().await;
        let entries = self.list().await?;
        let (entry, reference) = pick(entries.clone(), name)?;
        let plan = removal(&entry, reference.as_ref(), force, users)?;
        let mut deletions = Vec::new();
        for (place, name) in plan.untag.iter().enumerate() {
            let last = place + 1 == plan.untag.len();
            if last && plan.keep_nameless {
                self.set(entry.id(), &entry.contents.manifest).await?;
            }
            self.unset(&name.full(), last && !plan.keep_nameless).await?;
            deletions.push(ImageDeletion::Untagged(name.familiar()));
        }
        if plan.delete {
            self.unset(entry.id(), true).await?;
            deletions.extend(deleted(&entry, &entries));
        }
        Ok(deletions)
    }
}

/// A container that uses an image.
pub(crate) struct User {
    pub(crate) container: String,
    pub(crate) image: String,
    pub(crate) running: bool,
}

/// What removing an image comes to.
struct Removal {
    untag: Vec<Reference>,
    /// The content goes too.
    delete: bool,
    /// It lost its last name, but a container needs it.
    keep_nameless: bool,
}

/// Decides as moby's `imageDelete` does. `reference` is what the image was named by, unless by id.
fn removal(entry: &Entry, reference: Option<&Reference>, force: bool, users: &[User]) -> Result<Removal> {
    let short = |id: &str| id.trim_start_matches(NAMELESS).chars().take(12).collect::<String>();
    let id = short(entry.id());
    let mut using = users.iter().filter(|user| user.image == entry.id());
    if let Some(reference) = reference {
        let untag = with_digests(entry, reference);
        let last = entry.names.iter().all(|name| untag.contains(name));
        if last
            && !force
            && let Some(user) = using.next()
        {
            return Err(Error::ImageInUse(format!(
                "conflict: unable to remove repository reference \"{}\" (must force) - container {} is using its referenced image {id}",
                reference.familiar(),
                user.container
            )));
        }
        let needed = using.next().is_some() || users.iter().any(|user| user.image == entry.id());
        return Ok(Removal { untag, delete: last && !needed, keep_nameless: last && needed });
    }
    let refuse = |remedy: &str, reason: String| {
        Err(Error::ImageInUse(format!("conflict: unable to delete {id} ({remedy}) - {reason}")))
    };
    if !is_single(entry) && !force {
        return refuse("must be forced", "image is referenced in multiple repositories".to_owned());
    }
    for user in using {
        if user.running {
            return refuse(
                "cannot be forced",
                format!("image is being used by running container {}", user.container),
            );
        }
        if !force {
            return refuse(
                "must be forced",
                format!("image is being used by stopped container {}", user.container),
            );
        }
    }
    Ok(Removal { untag: entry.names.iter().cloned().collect(), delete: true, keep_nameless: false })
}

/// A name, and when it is the last tag of its repository, the digests known there too.
fn with_digests(entry: &Entry, reference: &Reference) -> Vec<Reference> {
    let digest = reference.digest();
    // A tag beside a digest says nothing.
    let reference = digest.map_or_else(|| reference.clone(), |digest| reference.with_digest(digest));
    let mut of_repository = entry.names.iter().filter(|name| name.repository() == reference.repository());
    let mut untag = vec![reference.clone()];
    if digest.is_none() && of_repository.clone().all(|name| name.digest().is_some() || *name == reference) {
        untag.extend(of_repository.by_ref().filter(|name| name.digest().is_some()).cloned());
    }
    untag
}

/// One name, beside digests of the same repository (moby's `isSingleReference`).
fn is_single(entry: &Entry) -> bool {
    let tags = entry.names.iter().filter(|name| name.digest().is_none()).count();
    let repositories: BTreeSet<String> = entry.names.iter().map(Reference::repository).collect();
    tags <= 1 && repositories.len() <= 1
}

/// The image and those of its layers that no other image has, topmost first.
fn deleted(entry: &Entry, all: &[Entry]) -> Vec<ImageDeletion> {
    let others = all.iter().filter(|other| other.id() != entry.id());
    let shared: BTreeSet<&String> = others.flat_map(|other| &other.contents.chain).collect();
    let layers = entry.contents.chain.iter().rev().filter(|layer| !shared.contains(layer));
    std::iter::once(entry.id().to_owned()).chain(layers.cloned()).map(ImageDeletion::Deleted).collect()
}

/// Docker's order of look-up: full id, name, start of an id.
fn pick(entries: Vec<Entry>, name: &str) -> Result<(Entry, Option<Reference>)> {
    let bare = name.strip_prefix(NAMELESS).unwrap_or(name);
    let reference = Reference::parse(name).map(Reference::with_default_tag);
    if !is_identifier(bare)
        && let Ok(reference) = &reference
        && let Some(entry) = entries.iter().find(|entry| is_named(entry, reference))
    {
        return Ok((entry.clone(), Some(reference.clone())));
    }
    if is_hex(bare) {
        let start = format!("{NAMELESS}{bare}");
        let mut matching = entries.iter().filter(|entry| entry.id().starts_with(&start));
        if let (Some(entry), None) = (matching.next(), matching.next()) {
            return Ok((entry.clone(), None));
        }
    }
    Err(Error::NoSuchImage(reference.map_or_else(|_| name.to_owned(), |reference| reference.familiar())))
}

fn is_named(entry: &Entry, wanted: &Reference) -> bool {
    match wanted.digest() {
        None => entry.names.contains(wanted),
        Some(digest) => {
            let of_repository = || entry.names.iter().filter(|name| name.repository() == wanted.repository());
            of_repository().any(|name| name.digest() == Some(digest))
                || (entry.contents.manifest.digest == digest && of_repository().next().is_some())
        }
    }
}

fn describe(manifest: &Manifest, config: Configuration, sizes: &[u64]) -> Image {
    let runtime = config.runtime();
    let mut layers = sizes.iter();
    let mut history = config.history;
    for step in history.iter_mut().filter(|step| !step.empty_layer) {
        step.size = layers.next().copied().unwrap_or_default();
    }
    Image {
        id: manifest.config.digest.clone(),
        references: Vec::new(),
        digests: Vec::new(),
        created: config.created,
        size: sizes.iter().sum(),
        architecture: config.architecture,
        os: config.os,
        author: config.author,
        comment: config.comment.clone(),
        docker_version: config.docker_version,
        config: runtime,
        layers: config.rootfs.diff_ids,
        history,
    }
}
