//! Volumes.

use serde::{Deserialize, Serialize};

use super::Unsupported;
use super::service::Map;

/// `POST /volumes/create`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Create {
    pub(crate) name: Option<String>,
    pub(crate) driver: Option<String>,
    pub(crate) driver_opts: Unsupported,
    pub(crate) labels: Option<Map>,
    pub(crate) cluster_volume_spec: Unsupported,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Volume {
    pub(crate) created_at: String,
    pub(crate) driver: &'static str,
    pub(crate) labels: Option<Map>,
    pub(crate) mountpoint: String,
    pub(crate) name: String,
    pub(crate) options: Option<Map>,
    pub(crate) scope: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) usage_data: Option<Usage>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Usage {
    /// Containers that mount it.
    pub(crate) ref_count: usize,
    /// Bytes.
    pub(crate) size: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct List {
    pub(crate) volumes: Vec<Volume>,
    pub(crate) warnings: Option<Vec<String>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Pruned {
    pub(crate) volumes_deleted: Option<Vec<String>>,
    pub(crate) space_reclaimed: u64,
}
