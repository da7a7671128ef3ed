//! Secrets and configs.

use serde::{Deserialize, Serialize};

use super::service::Map;
use super::{Unsupported, Version};

/// What clients declare, of secrets and configs alike.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct SpecIn {
    pub(crate) name: Option<String>,
    pub(crate) labels: Option<Map>,
    /// In base64.
    pub(crate) data: Option<String>,
    /// Of a secret: where its value is to come from instead.
    pub(crate) driver: Unsupported,
    pub(crate) templating: Option<Driver>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Driver {
    pub(crate) name: String,
    #[serde(skip_serializing)]
    pub(crate) options: Unsupported,
}

/// What is shown.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Deposit {
    #[serde(rename = "ID")]
    pub(crate) id: String,
    pub(crate) version: Version,
    pub(crate) created_at: String,
    pub(crate) updated_at: String,
    pub(crate) spec: Spec,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Spec {
    pub(crate) name: String,
    pub(crate) labels: Map,
    /// Of a config only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) data: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) templating: Option<Driver>,
}

/// A secret as a container finds it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct SecretReference {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) file: Option<File>,
    #[serde(rename = "SecretID")]
    pub(crate) id: String,
    #[serde(rename = "SecretName")]
    pub(crate) name: String,
}

/// A config as a container finds it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct ConfigReference {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) file: Option<File>,
    /// Not as a file, but for the runtime itself: credential specs.
    #[serde(skip_serializing)]
    pub(crate) runtime: Option<serde_json::Value>,
    #[serde(rename = "ConfigID")]
    pub(crate) id: String,
    #[serde(rename = "ConfigName")]
    pub(crate) name: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct File {
    #[serde(rename = "Name")]
    pub(crate) name: String,
    /// Numbers, as text.
    #[serde(rename = "UID")]
    pub(crate) uid: String,
    #[serde(rename = "GID")]
    pub(crate) gid: String,
    #[serde(rename = "Mode")]
    pub(crate) mode: u32,
}
