//! [`shoal_runtime::Image`] → images as Docker's clients read them.

use shoal_model::Labels;
use shoal_runtime::registry::Distribution;
use shoal_runtime::{Image, ImageConfig, ImageDeletion};

use super::service_out::healthcheck;
use super::{some, time};
use crate::wire::ZERO_TIME;
use crate::wire::image as wire;

/// containerd's name for what Docker calls the storage driver.
pub(crate) const STORAGE_DRIVER: &str = "overlayfs";

pub(crate) fn summary(image: &Image) -> wire::Summary {
    wire::Summary {
        containers: -1,
        created: image.created.map_or(0, |time| time.as_second()),
        id: image.id.clone(),
        labels: some(image.config.labels.clone()),
        parent_id: String::new(),
        repo_digests: some(image.digests.clone()),
        repo_tags: Some(image.references.clone())
            .filter(|names| !names.is_empty() || !image.digests.is_empty()),
        shared_size: -1,
        size: image.size,
        virtual_size: image.size,
    }
}

pub(crate) fn image(image: &Image) -> wire::Image {
    wire::Image {
        id: image.id.clone(),
        repo_tags: image.references.clone(),
        repo_digests: image.digests.clone(),
        parent: String::new(),
        comment: image.comment.clone(),
        created: image.created.map_or_else(|| ZERO_TIME.to_owned(), time),
        container: String::new(),
        container_config: wire::Config::default(),
        docker_version: image.docker_version.clone(),
        author: image.author.clone(),
        config: config(&image.config),
        architecture: image.architecture.clone(),
        os: image.os.clone(),
        size: image.size,
        virtual_size: image.size,
        graph_driver: wire::GraphDriver { data: None, name: STORAGE_DRIVER },
        root_fs: wire::RootFs { r#type: "layers", layers: image.layers.clone() },
        metadata: wire::Metadata { last_tag_time: ZERO_TIME },
    }
}

fn config(config: &ImageConfig) -> wire::Config {
    let set = |names: &[String]| {
        (!names.is_empty()).then(|| names.iter().map(|name| (name.clone(), wire::Empty {})).collect())
    };
    wire::Config {
        user: config.user.clone(),
        exposed_ports: set(&config.exposed_ports),
        env: some(config.env.clone()),
        cmd: some(config.cmd.clone()),
        healthcheck: config.healthcheck.as_ref().map(healthcheck),
        volumes: set(&config.volumes),
        working_dir: config.workdir.clone(),
        entrypoint: some(config.entrypoint.clone()),
        on_build: some(config.on_build.clone()),
        labels: some(config.labels.clone()),
        stop_signal: some(config.stop_signal.clone()),
        shell: some(config.shell.clone()),
        ..wire::Config::default()
    }
}

pub(crate) fn distribution(found: Distribution) -> wire::Distribution {
    let Distribution { media_type, digest, size, platforms } = found;
    wire::Distribution {
        descriptor: wire::Descriptor { media_type, digest, size },
        platforms: platforms
            .into_iter()
            .map(|(architecture, os)| wire::Platform { architecture, os })
            .collect(),
    }
}

/// An image of this node where a registry's is asked for. It has no digest that other nodes could find it
/// by: clients take an empty one for none.
pub(crate) fn own_distribution(image: &Image) -> wire::Distribution {
    wire::Distribution {
        descriptor: wire::Descriptor {
            media_type: "application/vnd.docker.distribution.manifest.v2+json".to_owned(),
            digest: String::new(),
            size: 0,
        },
        platforms: vec![wire::Platform { architecture: image.architecture.clone(), os: image.os.clone() }],
    }
}

/// The steps of an image's making, the newest first; only the newest is an image itself.
pub(crate) fn history(image: &Image) -> Vec<wire::History> {
    let mut steps: Vec<_> = image
        .history
        .iter()
        .rev()
        .map(|step| wire::History {
            comment: step.comment.clone(),
            created: step.created.map_or(0, |time| time.as_second()),
            created_by: step.created_by.clone(),
            id: "<missing>".to_owned(),
            size: step.size,
            tags: None,
        })
        .collect();
    if let Some(newest) = steps.first_mut() {
        newest.id.clone_from(&image.id);
        newest.tags = some(image.references.clone());
    }
    steps
}

pub(crate) fn deletion(deletion: ImageDeletion) -> wire::Deletion {
    match deletion {
        ImageDeletion::Untagged(name) => wire::Deletion::Untagged(name),
        ImageDeletion::Deleted(id) => wire::Deletion::Deleted(id),
    }
}

/// What `docker images --filter label=…` looks at.
pub(crate) fn labels(image: &Image) -> &Labels {
    &image.config.labels
}
