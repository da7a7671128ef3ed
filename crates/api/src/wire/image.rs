//! Images.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::service::{Healthcheck, Map};

/// A line of `GET /images/json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Summary {
    pub(crate) containers: i64,
    pub(crate) created: i64,
    pub(crate) id: String,
    pub(crate) labels: Option<Map>,
    pub(crate) parent_id: String,
    pub(crate) repo_digests: Option<Vec<String>>,
    pub(crate) repo_tags: Option<Vec<String>>,
    pub(crate) shared_size: i64,
    pub(crate) size: u64,
    pub(crate) virtual_size: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Image {
    pub(crate) id: String,
    pub(crate) repo_tags: Vec<String>,
    pub(crate) repo_digests: Vec<String>,
    pub(crate) parent: String,
    pub(crate) comment: String,
    pub(crate) created: String,
    pub(crate) container: String,
    pub(crate) container_config: Config,
    pub(crate) docker_version: String,
    pub(crate) author: String,
    pub(crate) config: Config,
    pub(crate) architecture: String,
    pub(crate) os: String,
    pub(crate) size: u64,
    pub(crate) virtual_size: u64,
    pub(crate) graph_driver: GraphDriver,
    #[serde(rename = "RootFS")]
    pub(crate) root_fs: RootFs,
    pub(crate) metadata: Metadata,
}

/// What a registry says of an image.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Distribution {
    pub(crate) descriptor: Descriptor,
    pub(crate) platforms: Vec<Platform>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    pub(crate) media_type: String,
    pub(crate) digest: String,
    pub(crate) size: u64,
}

#[derive(Debug, Serialize)]
pub(crate) struct Platform {
    pub(crate) architecture: String,
    pub(crate) os: String,
}

/// The configuration of an image or a container.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Config {
    pub(crate) hostname: String,
    pub(crate) domainname: String,
    pub(crate) user: String,
    pub(crate) attach_stdin: bool,
    pub(crate) attach_stdout: bool,
    pub(crate) attach_stderr: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) exposed_ports: Option<BTreeMap<String, Empty>>,
    pub(crate) tty: bool,
    pub(crate) open_stdin: bool,
    pub(crate) stdin_once: bool,
    pub(crate) env: Option<Vec<String>>,
    pub(crate) cmd: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) healthcheck: Option<Healthcheck>,
    pub(crate) image: String,
    pub(crate) volumes: Option<BTreeMap<String, Empty>>,
    pub(crate) working_dir: String,
    pub(crate) entrypoint: Option<Vec<String>>,
    pub(crate) on_build: Option<Vec<String>>,
    pub(crate) labels: Option<Map>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stop_signal: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) shell: Option<Vec<String>>,
}

/// `{}`.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Empty {}

#[derive(Debug, Serialize)]
pub(crate) struct GraphDriver {
    #[serde(rename = "Data")]
    pub(crate) data: Option<Map>,
    #[serde(rename = "Name")]
    pub(crate) name: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct RootFs {
    pub(crate) r#type: &'static str,
    pub(crate) layers: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Metadata {
    #[serde(rename = "LastTagTime")]
    pub(crate) last_tag_time: &'static str,
}

/// A line of `GET /images/{name}/history`, the newest first.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct History {
    pub(crate) comment: String,
    pub(crate) created: i64,
    pub(crate) created_by: String,
    pub(crate) id: String,
    pub(crate) size: u64,
    pub(crate) tags: Option<Vec<String>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) enum Deletion {
    Untagged(String),
    Deleted(String),
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Pruned {
    pub(crate) images_deleted: Option<Vec<Deletion>>,
    pub(crate) space_reclaimed: u64,
}

/// What `docker login` sends.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
pub(crate) struct AuthConfig {
    pub(crate) username: String,
    pub(crate) password: String,
    pub(crate) serveraddress: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct LoggedIn {
    pub(crate) status: &'static str,
    pub(crate) identity_token: &'static str,
}

/// How much of something is done, in bytes.
#[derive(Debug, Default, Serialize)]
pub(crate) struct ProgressDetail {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) current: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) total: Option<u64>,
}

/// One JSON object of a progress stream.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Progress {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stream: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) status: Option<String>,
    #[serde(rename = "progressDetail", skip_serializing_if = "Option::is_none")]
    pub(crate) progress_detail: Option<ProgressDetail>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<String>,
    #[serde(rename = "errorDetail", skip_serializing_if = "Option::is_none")]
    pub(crate) error_detail: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}
