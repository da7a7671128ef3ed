//! Containers: what they are made from and how they live.

mod cgroup;
mod create;
mod files;
mod init;
mod lifecycle;
mod shims;
mod stdio;
mod sweep;
mod turn;

use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use shoal_model::{ContainerId, ContainerSpec, Labels, Resources};

use crate::RuntimeConfig;
use crate::client::Client;
use crate::spec::Kernel;
use files::Files;
pub(crate) use files::{LOCK, LOG, LOG_OPTIONS, OUTPUT, remove_dir};
pub use stdio::{ContainerInput, ContainerOutput};
use turn::Turns;

/// Everything a container is made from. It is kept with the container and returned with it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerConfig {
    pub id: ContainerId,
    /// Without Docker's leading slash.
    pub name: String,
    /// The image to use, by Docker's name rules; usually `spec.image`.
    pub image: String,
    pub spec: ContainerSpec,
    #[serde(default)]
    pub resources: Resources,
    #[serde(default)]
    pub labels: Labels,
    /// The network namespace to join; `None` is the one this process runs in.
    pub netns: Option<PathBuf>,
    /// Contents of the container's `/etc/resolv.conf`.
    pub resolv_conf: String,
    /// Contents of the container's `/etc/hosts`.
    pub hosts: String,
    /// `json-file` options: `max-size` (`10m`) and `max-file` (`3`).
    #[serde(default)]
    pub log_options: Labels,
    /// Files and directories of the node that appear in the container beside its mounts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub provided: Vec<Provided>,
    /// Kept for whoever made the container, and of no meaning here.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// Something of the node that a container may read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provided {
    pub source: PathBuf,
    /// Path inside the container.
    pub target: String,
}

/// A container as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Container {
    pub config: ContainerConfig,
    pub created: Timestamp,
    pub state: ContainerState,
    /// The program and its arguments, from image and configuration.
    pub argv: Vec<String>,
    /// The environment, from image and configuration.
    pub env: Vec<String>,
    /// `sha256:…` of the image it was made from.
    pub image_id: String,
    /// The signal that asks it to stop.
    pub stop_signal: i32,
    /// Where its log and bind-mounted files live.
    pub dir: PathBuf,
}

/// How far a container has come. One that has ended runs again only after
/// [`renew`](crate::Runtime::renew).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ContainerState {
    Created,
    Running { pid: u32, started: Timestamp },
    Exited { exit: Exit, started: Timestamp },
}

/// How a container ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The process's exit status; 128 + the signal that killed it; 255 when the machine went down
    /// under it.
    pub code: i32,
    pub at: Timestamp,
    /// The kernel killed one of its processes for want of memory.
    pub oom: bool,
}

/// What is kept with containerd's record of a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    config: ContainerConfig,
    argv: Vec<String>,
    env: Vec<String>,
    image_id: String,
    stop_signal: i32,
}

/// The containers of a containerd namespace.
#[derive(Clone)]
pub(crate) struct Containers {
    client: Client,
    config: Arc<RuntimeConfig>,
    kernel: Kernel,
    turns: Turns,
}

impl Containers {
    pub(crate) fn new(client: Client, config: Arc<RuntimeConfig>) -> Self {
        Self { client, config, kernel: Kernel::probe(), turns: Turns::default() }
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    fn files(&self, id: &ContainerId) -> Files {
        Files::new(&self.config.data_dir, id)
    }

    /// Where the FIFOs of a container's execs are.
    pub(crate) fn fifos(&self, id: &str) -> PathBuf {
        self.config.run_dir.join("exec").join(id)
    }

    /// The container's path in every cgroup hierarchy.
    fn cgroup(&self, id: &ContainerId) -> String {
        format!("/shoal/{}/{id}", self.config.namespace)
    }
}
