//! What is in an archive: images ready to be put into the content store.

use super::archive::{Archive, Compression, Spooled, blocking};
use super::document::{ArchiveEntry, Configuration, Descriptor, Index, Manifest, Platform, media};
use super::reference::{Reference, is_digest};
use crate::{Error, Result};

/// Names of an image in an OCI layout's index: containerd's full one, and the standard's.
const NAME_ANNOTATIONS: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];
/// Indexes may point to indexes, but hardly deeper than this.
const DEEPEST_INDEX: usize = 4;

/// One image with all its content at hand.
pub(super) struct Bundle {
    pub(super) names: Vec<Reference>,
    pub(super) manifest: Vec<u8>,
    pub(super) manifest_type: String,
    pub(super) config: Vec<u8>,
    pub(super) config_descriptor: Descriptor,
    pub(super) configuration: Configuration,
    /// Without a file: the content store has it.
    pub(super) layers: Vec<(Descriptor, Option<Spooled>)>,
}

impl Bundle {
    /// An image in Docker's own format from its configuration and layer files.
    pub(super) async fn assemble(
        names: Vec<Reference>,
        config: Vec<u8>,
        files: Vec<Spooled>,
    ) -> Result<Self> {
        let configuration = parse::<Configuration>("image configuration", &config)?;
        if configuration.rootfs.diff_ids.len() != files.len() {
            return Err(Error::InvalidArchive(format!(
                "the configuration names {} layers, there are {}",
                configuration.rootfs.diff_ids.len(),
                files.len()
            )));
        }
        let layers =
            blocking(move || files.into_iter().map(describe_layer).collect::<Result<Vec<_>>>()).await?;
        let config_descriptor =
            descriptor(media::DOCKER_CONFIG, &super::digest_of(&config), config.len() as u64);
        let manifest = Manifest {
            schema_version: 2,
            media_type: media::DOCKER_MANIFEST.to_owned(),
            config: config_descriptor.clone(),
            layers: layers.iter().map(|(descriptor, _)| descriptor.clone()).collect(),
        };
        let manifest =
            serde_json::to_vec(&manifest).map_err(|error| Error::InvalidArchive(error.to_string()))?;
        let manifest_type = media::DOCKER_MANIFEST.to_owned();
        Ok(Self { names, manifest, manifest_type, config, config_descriptor, configuration, layers })
    }
}

/// Every image of an archive. An archive that has both forms (as newer Docker writes them) is read
/// by its Docker manifest, which alone has all the names.
pub(super) async fn images(archive: &Archive) -> Result<Vec<Bundle>> {
    if archive.file("manifest.json").is_some() {
        docker_images(archive).await
    } else if archive.file("index.json").is_some() {
        layout_images(archive).await
    } else {
        Err(Error::InvalidArchive("neither manifest.json nor index.json is in it".to_owned()))
    }
}

async fn docker_images(archive: &Archive) -> Result<Vec<Bundle>> {
    let entries: Vec<ArchiveEntry> = parse("manifest.json", &archive.document("manifest.json").await?)?;
    let mut bundles = Vec::new();
    for entry in entries {
        let names =
            entry.repo_tags.iter().map(|name| Reference::parse(name).map(Reference::with_default_tag));
        let names = names.collect::<Result<Vec<_>>>()?;
        let files =
            entry.layers.iter().map(|name| archive.require(name).cloned()).collect::<Result<Vec<_>>>()?;
        bundles.push(Bundle::assemble(names, archive.document(&entry.config).await?, files).await?);
    }
    Ok(bundles)
}

async fn layout_images(archive: &Archive) -> Result<Vec<Bundle>> {
    let index: Index = parse("index.json", &archive.document("index.json").await?)?;
    // Depth first, in the archive's order: (descriptor, names given further up, depth).
    let mut open: Vec<(Descriptor, Option<Reference>, usize)> =
        index.manifests.into_iter().rev().map(|descriptor| (descriptor, None, 0)).collect();
    let mut bundles: Vec<Bundle> = Vec::new();
    while let Some((descriptor, inherited, depth)) = open.pop() {
        let name = name_of(&descriptor).or(inherited);
        match descriptor.media_type.as_str() {
            media::OCI_INDEX | media::DOCKER_INDEX if depth < DEEPEST_INDEX => {
                let Some(bytes) = blob(archive, &descriptor).await? else { continue };
                let nested: Index = parse("index", &bytes)?;
                open.extend(nested.manifests.into_iter().rev().map(|inner| (inner, name.clone(), depth + 1)));
            }
            media::OCI_MANIFEST | media::DOCKER_MANIFEST if is_ours(&descriptor) => {
                if let Some(bundle) = layout_image(archive, &descriptor, name).await? {
                    add(&mut bundles, bundle);
                }
            }
            // Other platforms, attestations and whatever else is no image for this machine.
            _ => {}
        }
    }
    if bundles.is_empty() {
        return Err(Error::InvalidArchive("no image for this platform is in it".to_owned()));
    }
    Ok(bundles)
}

/// One image under several names is one image.
fn add(bundles: &mut Vec<Bundle>, bundle: Bundle) {
    match bundles.iter_mut().find(|known| known.manifest == bundle.manifest) {
        Some(known) => known.names.extend(bundle.names),
        None => bundles.push(bundle),
    }
}

/// `None` when the archive leaves the image out, as archives of one platform of an index do.
async fn layout_image(
    archive: &Archive,
    descriptor: &Descriptor,
    name: Option<Reference>,
) -> Result<Option<Bundle>> {
    let Some(bytes) = blob(archive, descriptor).await? else { return Ok(None) };
    let manifest: Manifest = parse("manifest", &bytes)?;
    let Some(config) = blob(archive, &manifest.config).await? else {
        return Err(Error::InvalidArchive(format!("{} is missing", manifest.config.digest)));
    };
    let configuration = parse::<Configuration>("image configuration", &config)?;
    if configuration.rootfs.diff_ids.len() != manifest.layers.len() {
        return Err(Error::InvalidArchive("configuration and manifest disagree about the layers".to_owned()));
    }
    let mut layers = Vec::new();
    for layer in manifest.layers {
        let file = archive.require(&blob_path(&layer.digest)?)?.clone();
        verify(&layer.digest, &file.digest)?;
        layers.push((layer, Some(file)));
    }
    Ok(Some(Bundle {
        names: name.into_iter().collect(),
        manifest: bytes,
        manifest_type: descriptor.media_type.clone(),
        config,
        config_descriptor: manifest.config,
        configuration,
        layers,
    }))
}

/// A bare tag (`latest`), which the standard allows, says nothing about the repository.
fn name_of(descriptor: &Descriptor) -> Option<Reference> {
    let text = NAME_ANNOTATIONS.iter().find_map(|key| descriptor.annotations.get(*key))?;
    let named = text.contains(['/', ':']);
    named.then(|| Reference::parse(text).ok())?.map(Reference::with_default_tag)
}

fn is_ours(descriptor: &Descriptor) -> bool {
    descriptor.platform.as_ref().is_none_or(|platform| *platform == Platform::of_this_machine())
}

async fn blob(archive: &Archive, descriptor: &Descriptor) -> Result<Option<Vec<u8>>> {
    let path = blob_path(&descriptor.digest)?;
    let Some(file) = archive.file(&path) else { return Ok(None) };
    verify(&descriptor.digest, &file.digest)?;
    archive.document(&path).await.map(Some)
}

fn blob_path(digest: &str) -> Result<String> {
    if !is_digest(digest) {
        return Err(Error::InvalidArchive(format!("{digest:?} is no SHA-256 digest")));
    }
    Ok(format!("blobs/{}", digest.replace(':', "/")))
}

fn verify(expected: &str, found: &str) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    Err(Error::InvalidArchive(format!("the content of {expected} is {found}")))
}

fn describe_layer(file: Spooled) -> Result<(Descriptor, Option<Spooled>)> {
    let media_type = match Compression::of_file(&file.path)? {
        Compression::None => media::DOCKER_LAYER,
        Compression::Gzip => media::DOCKER_LAYER_GZIP,
        Compression::Zstd => media::OCI_LAYER_ZSTD,
    };
    Ok((descriptor(media_type, &file.digest, file.size), Some(file)))
}

pub(super) fn descriptor(media_type: &str, digest: &str, size: u64) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        size,
        digest: digest.to_owned(),
        annotations: Default::default(),
        platform: None,
    }
}

pub(crate) fn parse<T: serde::de::DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| Error::InvalidArchive(format!("{what}: {error}")))
}
