//! The JSON documents of the image formats: Docker's archive manifest, manifests, indexes and image
//! configurations (<https://github.com/opencontainers/image-spec/tree/v1.1.0>).

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use shoal_model::{Healthcheck, Labels};

use super::{History, ImageConfig};

pub(crate) mod media {
    pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    pub(crate) const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    pub(crate) const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
    pub(crate) const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    pub(crate) const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    pub(crate) const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
}

/// One image of a `docker save` archive.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ArchiveEntry {
    pub(super) config: String,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) repo_tags: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) layers: Vec<String>,
}

/// A pointer to content.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    pub(crate) media_type: String,
    pub(crate) size: u64,
    pub(crate) digest: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "nullable")]
    pub(crate) annotations: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<Platform>,
}

/// What an image is made for, in Go's words. Variants of an architecture are not told apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Platform {
    pub(crate) architecture: String,
    pub(crate) os: String,
}

impl Platform {
    pub(crate) fn of_this_machine() -> Self {
        Self { architecture: super::architecture().to_owned(), os: "linux".to_owned() }
    }
}

/// Several images under one name, one per platform; also the entry point of an OCI layout.
#[derive(Debug, Deserialize)]
pub(crate) struct Index {
    #[serde(default, deserialize_with = "nullable")]
    pub(crate) manifests: Vec<Descriptor>,
}

/// What one image consists of.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub(crate) schema_version: u32,
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) config: Descriptor,
    #[serde(default, deserialize_with = "nullable")]
    pub(crate) layers: Vec<Descriptor>,
}

/// The configuration, as far as it is used here.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Configuration {
    pub(super) created: Option<Timestamp>,
    pub(super) architecture: String,
    pub(super) os: String,
    pub(super) author: String,
    pub(super) comment: String,
    pub(super) docker_version: String,
    #[serde(deserialize_with = "nullable")]
    config: Runtime,
    #[serde(deserialize_with = "nullable")]
    pub(super) rootfs: RootFs,
    #[serde(deserialize_with = "nullable")]
    pub(super) history: Vec<History>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct RootFs {
    #[serde(deserialize_with = "nullable")]
    pub(super) diff_ids: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Runtime {
    #[serde(deserialize_with = "nullable")]
    env: Vec<String>,
    #[serde(deserialize_with = "words")]
    entrypoint: Vec<String>,
    #[serde(deserialize_with = "words")]
    cmd: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    working_dir: String,
    #[serde(deserialize_with = "nullable")]
    user: String,
    #[serde(deserialize_with = "nullable")]
    labels: Labels,
    #[serde(deserialize_with = "nullable")]
    exposed_ports: BTreeMap<String, Value>,
    #[serde(deserialize_with = "nullable")]
    volumes: BTreeMap<String, Value>,
    #[serde(deserialize_with = "nullable")]
    stop_signal: String,
    healthcheck: Option<Health>,
    #[serde(deserialize_with = "nullable")]
    on_build: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    shell: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Health {
    #[serde(deserialize_with = "nullable")]
    test: Vec<String>,
    /// Durations are nanoseconds.
    interval: u64,
    timeout: u64,
    start_period: u64,
    start_interval: u64,
    retries: u32,
}

impl Configuration {
    pub(super) fn runtime(&self) -> ImageConfig {
        let config = self.config.clone();
        ImageConfig {
            env: config.env,
            entrypoint: config.entrypoint,
            cmd: config.cmd,
            workdir: config.working_dir,
            user: config.user,
            labels: config.labels,
            exposed_ports: config.exposed_ports.into_keys().collect(),
            volumes: config.volumes.into_keys().collect(),
            stop_signal: config.stop_signal,
            healthcheck: config.healthcheck.map(|health| Healthcheck {
                test: health.test,
                interval: Duration::from_nanos(health.interval),
                timeout: Duration::from_nanos(health.timeout),
                start_period: Duration::from_nanos(health.start_period),
                start_interval: Duration::from_nanos(health.start_interval),
                retries: health.retries,
            }),
            on_build: config.on_build,
            shell: config.shell,
        }
    }
}

/// `null` and a missing value mean the same: nothing.
fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// Very old images have a single string where a list belongs.
fn words<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Words {
        Many(Vec<String>),
        One(String),
    }
    Ok(match Option::<Words>::deserialize(deserializer)? {
        Some(Words::Many(words)) => words,
        Some(Words::One(word)) => vec![word],
        None => Vec::new(),
    })
}
