//! Registries: what a name stands for there, and the content of it
//! (<https://github.com/opencontainers/distribution-spec>). Nothing that comes from one is believed: all
//! of it is checked against the digest it was asked by.

mod credentials;
mod trust;

use std::path::Path;
use std::time::Duration;

use futures::StreamExt;
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::{DigestError, OciDistributionError, OciErrorCode};
use oci_client::{Client, RegistryOperation};
use tokio::io::AsyncWriteExt;

pub use credentials::Credentials;
pub use trust::RegistryConfig;

use crate::image::document::{Descriptor, Index, Manifest, media};
use crate::image::reference::Reference;
use crate::image::{Platform, digest_of, parse};
use crate::{Error, Result};

const CONNECT_MAX: Duration = Duration::from_secs(10);
/// Without a byte from the registry.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// As Docker tries to get a layer whose transfer breaks.
const ATTEMPTS: u32 = 5;
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// Indexes may point to indexes, but hardly deeper than this.
const DEEPEST_INDEX: usize = 4;
/// Far more than any configuration takes; it is held in memory.
const CONFIG_MAX: u64 = 16 << 20;

const ACCEPTED: &[&str] =
    &[media::OCI_INDEX, media::DOCKER_INDEX, media::OCI_MANIFEST, media::DOCKER_MANIFEST];

/// A repository of a registry, as somebody may read it.
pub(crate) struct Repository<'a> {
    client: Client,
    /// What the user asked for.
    name: &'a Reference,
    image: oci_client::Reference,
    credentials: &'a Credentials,
}

/// A manifest or an index, and what it is.
#[derive(Debug, Clone)]
pub(crate) struct Document {
    pub(crate) bytes: Vec<u8>,
    pub(crate) digest: String,
    pub(crate) media_type: String,
}

/// What a registry says that a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Distribution {
    pub media_type: String,
    /// `sha256:…`
    pub digest: String,
    /// Of the document with this digest, in bytes.
    pub size: u64,
    /// `(architecture, operating system)`, as the registry lists them.
    pub platforms: Vec<(String, String)>,
}

impl<'a> Repository<'a> {
    /// Makes oneself known to the registry of `name`. One that need not prove who it is may be without
    /// TLS.
    pub(crate) async fn open(
        config: &RegistryConfig,
        name: &'a Reference,
        credentials: &'a Credentials,
    ) -> Result<Self> {
        let insecure = config.is_insecure(name.domain());
        let image = match (name.digest(), name.tag()) {
            (Some(digest), _) => oci_client::Reference::with_digest(
                name.domain().to_owned(),
                name.path().to_owned(),
                digest.to_owned(),
            ),
            (None, tag) => oci_client::Reference::with_tag(
                name.domain().to_owned(),
                name.path().to_owned(),
                tag.unwrap_or("latest").to_owned(),
            ),
        };
        let client = |protocol: ClientProtocol| {
            let roots = config.roots(name.domain())?;
            let settings = ClientConfig {
                protocol,
                accept_invalid_certificates: insecure,
                extra_root_certificates: roots
                    .into_iter()
                    .map(|data| Certificate { encoding: CertificateEncoding::Pem, data })
                    .collect(),
                connect_timeout: Some(CONNECT_MAX),
                read_timeout: Some(SILENCE_MAX),
                user_agent: concat!("shoal/", env!("CARGO_PKG_VERSION")),
                ..ClientConfig::default()
            };
            let client = Client::try_from(settings).map_err(|error| failed(name, error))?;
            Ok(Self { client, name, image: image.clone(), credentials })
        };
        let repository = client(ClientProtocol::Https)?;
        match repository.authenticate().await {
            Err(OciDistributionError::RequestError(error)) if insecure && error.is_connect() => {
                let repository = client(ClientProtocol::Http)?;
                repository.authenticate().await.map_err(|error| failed(name, error))?;
                Ok(repository)
            }
            other => other.map(|()| repository).map_err(|error| failed(name, error)),
        }
    }

    async fn authenticate(&self) -> Result<(), OciDistributionError> {
        self.client.auth(&self.image, &self.credentials.into(), RegistryOperation::Pull).await.map(drop)
    }

    /// Whether the registry takes the credentials. It need not have the repository.
    pub(crate) async fn check(&self) -> Result<()> {
        match self.client.list_tags(&self.image, &self.credentials.into(), Some(1), None).await {
            Err(OciDistributionError::UnauthorizedError { .. }) => {
                Err(Error::NoSuchManifest("unauthorized: incorrect username or password".to_owned()))
            }
            Err(error @ OciDistributionError::RequestError(_)) => Err(failed(self.name, error)),
            _ => Ok(()),
        }
    }

    /// The document the name leads to.
    pub(crate) async fn document(&self) -> Result<Document> {
        self.read(&self.image).await
    }

    async fn read(&self, image: &oci_client::Reference) -> Result<Document> {
        let read = self.client.pull_manifest_raw(image, &self.credentials.into(), ACCEPTED).await;
        let (bytes, _) = read.map_err(|error| failed(self.name, error))?;
        let digest = digest_of(&bytes);
        if let Some(wanted) = image.digest().filter(|wanted| *wanted != digest) {
            return Err(Error::Registry(format!("what the registry has as {wanted} is {digest}")));
        }
        let media_type = media_type(&bytes)?;
        Ok(Document { bytes: bytes.to_vec(), digest, media_type })
    }

    /// The manifest for a platform: the document itself, or what it says is for that platform.
    pub(crate) async fn manifest(&self, mut document: Document, platform: &Platform) -> Result<Document> {
        for _ in 0..DEEPEST_INDEX {
            if !document.is_index() {
                return Ok(document);
            }
            let index: Index = parse("index", &document.bytes)?;
            let ours = index.manifests.iter().find(|entry| entry.platform.as_ref() == Some(platform));
            let entry = ours.ok_or_else(|| {
                let Platform { os, architecture } = platform;
                Error::NoSuchManifest(format!(
                    "no matching manifest for {os}/{architecture} in the manifest list entries"
                ))
            })?;
            document = self.read(&self.image.clone_with_digest(entry.digest.clone())).await?;
        }
        Err(Error::Registry("indexes point to indexes without end".to_owned()))
    }

    /// What the name stands for.
    pub(crate) async fn distribution(&self) -> Result<Distribution> {
        let document = self.document().await?;
        let platforms = if document.is_index() {
            let index: Index = parse("index", &document.bytes)?;
            index.manifests.into_iter().filter_map(|entry| entry.platform).collect()
        } else {
            let manifest: Manifest = parse("manifest", &document.bytes)?;
            vec![parse("image configuration", &self.config(&manifest.config).await?)?]
        };
        Ok(Distribution {
            size: document.bytes.len() as u64,
            media_type: document.media_type,
            digest: document.digest,
            platforms: platforms
                .into_iter()
                .map(|Platform { os, architecture }| (architecture, os))
                .collect(),
        })
    }

    /// An image's configuration.
    pub(crate) async fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        if descriptor.size > CONFIG_MAX {
            return Err(Error::Registry(format!("a configuration of {} bytes", descriptor.size)));
        }
        let mut stream = self.stream(descriptor).await?;
        let mut bytes = Vec::new();
        while let Some(part) = stream.next().await {
            bytes.extend_from_slice(&part.map_err(|error| Error::Registry(error.to_string()))?);
            within(descriptor, bytes.len() as u64)?;
        }
        let digest = digest_of(&bytes);
        if digest != descriptor.digest {
            return Err(Error::Registry(format!(
                "what the registry has as {} is {digest}",
                descriptor.digest
            )));
        }
        Ok(bytes)
    }

    /// Writes a layer to a file; `told` hears how many bytes there are so far. Transfers that break are
    /// begun again. The digest is checked when the file is put into the content store.
    pub(crate) async fn layer(&self, descriptor: &Descriptor, path: &Path, told: impl Fn(u64)) -> Result<()> {
        let mut attempt = 1;
        loop {
            match self.transfer(descriptor, path, &told).await {
                Err(Broken::Off(reason)) if attempt < ATTEMPTS => {
                    tracing::info!(layer = descriptor.digest, reason, attempt, "a layer's transfer broke");
                    tokio::time::sleep(RETRY_DELAY * attempt).await;
                    attempt += 1;
                }
                Err(Broken::Off(reason)) => return Err(Error::Registry(reason)),
                Err(Broken::For(error)) => return Err(error),
                Ok(()) => return Ok(()),
            }
        }
    }

    async fn transfer(&self, descriptor: &Descriptor, path: &Path, told: impl Fn(u64)) -> Result<(), Broken> {
        let mut stream = self.stream(descriptor).await?;
        let mut file = tokio::fs::File::create(path).await.map_err(Error::io(path))?;
        let mut length = 0;
        while let Some(part) = stream.next().await {
            let part = part.map_err(Broken::by)?;
            length += part.len() as u64;
            within(descriptor, length)?;
            file.write_all(&part).await.map_err(Error::io(path))?;
            told(length);
        }
        file.flush().await.map_err(Error::io(path))?;
        if length != descriptor.size {
            return Err(Broken::Off(format!("{} ended after {length} bytes", descriptor.digest)));
        }
        Ok(())
    }

    async fn stream(&self, descriptor: &Descriptor) -> Result<oci_client::client::SizedStream> {
        let stream = self.client.pull_blob_stream(&self.image, descriptor.digest.as_str()).await;
        stream.map_err(|error| failed(self.name, error))
    }
}

/// Why a transfer did not come to its end.
enum Broken {
    /// Another attempt may be luckier.
    Off(String),
    For(Error),
}

impl Broken {
    fn by(error: std::io::Error) -> Self {
        // The same bytes would come again.
        match error.get_ref().is_some_and(|inner| inner.is::<DigestError>()) {
            true => Self::For(Error::Registry(error.to_string())),
            false => Self::Off(error.to_string()),
        }
    }
}

impl From<Error> for Broken {
    fn from(error: Error) -> Self {
        Self::For(error)
    }
}

impl Document {
    fn is_index(&self) -> bool {
        matches!(self.media_type.as_str(), media::OCI_INDEX | media::DOCKER_INDEX)
    }
}

/// More than was announced is not read.
fn within(descriptor: &Descriptor, length: u64) -> Result<()> {
    if length > descriptor.size {
        return Err(Error::Registry(format!(
            "{} is longer than {} bytes",
            descriptor.digest, descriptor.size
        )));
    }
    Ok(())
}

/// OCI documents need not say what they are.
fn media_type(bytes: &[u8]) -> Result<String> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Any {
        #[serde(default)]
        media_type: String,
        manifests: Option<serde_json::Value>,
    }
    let any: Any = parse("manifest", bytes)?;
    Ok(match (any.media_type.as_str(), any.manifests) {
        ("", Some(_)) => media::OCI_INDEX.to_owned(),
        ("", None) => media::OCI_MANIFEST.to_owned(),
        (known, _) if ACCEPTED.contains(&known) => any.media_type,
        (other, _) => return Err(Error::Registry(format!("unsupported manifest media type {other:?}"))),
    })
}

/// In the words of moby's `distribution/errors.go`.
fn failed(name: &Reference, error: OciDistributionError) -> Error {
    let denied = |reason: &str| {
        Error::NoSuchManifest(format!(
            "pull access denied for {}, repository does not exist or may require 'docker login': {reason}",
            name.familiar_repository()
        ))
    };
    match error {
        OciDistributionError::RegistryError { envelope, .. } => {
            let Some(first) = envelope.errors.first() else {
                return Error::Registry("the registry refused without a reason".to_owned());
            };
            match first.code {
                OciErrorCode::Denied => denied(&format!("denied: {}", first.message)),
                OciErrorCode::Unauthorized => denied(&format!("unauthorized: {}", first.message)),
                OciErrorCode::ManifestUnknown | OciErrorCode::NotFound => Error::NoSuchManifest(format!(
                    "manifest for {} not found: manifest unknown: {}",
                    name.familiar(),
                    first.message
                )),
                OciErrorCode::NameUnknown => Error::NoSuchManifest(format!(
                    "repository {} not found: name unknown: {}",
                    name.familiar_repository(),
                    first.message
                )),
                _ => Error::Registry(first.message.clone()),
            }
        }
        OciDistributionError::UnauthorizedError { .. } => denied("unauthorized: authentication required"),
        OciDistributionError::AuthenticationFailure(reason) => denied(&reason_of(&reason)),
        OciDistributionError::ServerError { code, url, message } => {
            Error::Registry(format!("{url} answers {code}: {}", message.trim()))
        }
        OciDistributionError::RequestError(error) => Error::Registry(chain(&error)),
        other => Error::Registry(other.to_string()),
    }
}

/// Token servers answer with the registry's envelope, or with `details`, or with anything.
fn reason_of(answer: &str) -> String {
    let value: serde_json::Value = serde_json::from_str(answer).unwrap_or_default();
    let known = value["errors"][0]["message"].as_str().or(value["details"].as_str());
    known.map_or_else(|| answer.trim().to_owned(), str::to_owned)
}

/// The error and what it came from: the outermost alone says hardly more than "request failed".
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let mut texts: Vec<String> = causes.map(ToString::to_string).collect();
    texts.dedup();
    texts.join(": ")
}

#[cfg(test)]
mod tests;
