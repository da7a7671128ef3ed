//! The runtime's face: one method per thing that can be asked of it.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use futures::Stream;
use shoal_model::{ContainerId, LogEntry, LogSelector};
use tokio::io::AsyncRead;

use crate::*;

/// Where containerd is and where this node's files live.
#[derive(Debug, Clone)]
pub struct RuntimeConfig {
    /// containerd's gRPC socket.
    pub socket: PathBuf,
    /// The containerd namespace that is this node's alone.
    pub namespace: String,
    /// `containers/<id>/` with log, hosts, resolv.conf and hostname live under it.
    pub data_dir: PathBuf,
    /// FIFOs of running execs live under it.
    pub run_dir: PathBuf,
    /// The program whose `log-shim DIR` verb writes container output.
    pub executable: PathBuf,
}

/// Versions of what containers run on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versions {
    pub containerd: String,
    /// Empty when `runc` cannot be asked.
    pub runc: String,
}

/// Images and containers of one node.
#[derive(Clone)]
pub struct Runtime {}

#[allow(unused_variables)]
impl Runtime {
    pub async fn connect(config: RuntimeConfig) -> Result<Runtime> {
        unimplemented!()
    }
    pub async fn version(&self) -> Result<Versions> {
        unimplemented!()
    }
    pub async fn load(&self, tar: impl AsyncRead + Send + Unpin) -> Result<Vec<String>> {
        unimplemented!()
    }
    pub async fn import(&self, tar: impl AsyncRead + Send + Unpin, options: ImportOptions) -> Result<String> {
        unimplemented!()
    }
    pub async fn images(&self) -> Result<Vec<Image>> {
        unimplemented!()
    }
    pub async fn image(&self, name: &str) -> Result<Image> {
        unimplemented!()
    }
    pub async fn tag(&self, source: &str, target: &str) -> Result<()> {
        unimplemented!()
    }
    pub async fn remove_image(&self, name: &str, force: bool) -> Result<Vec<ImageDeletion>> {
        unimplemented!()
    }
    pub async fn create(&self, config: &ContainerConfig) -> Result<()> {
        unimplemented!()
    }
    pub async fn start(&self, id: &ContainerId) -> Result<u32> {
        unimplemented!()
    }
    pub async fn kill(&self, id: &ContainerId, signal: i32) -> Result<()> {
        unimplemented!()
    }
    pub async fn wait(&self, id: &ContainerId) -> Result<Exit> {
        unimplemented!()
    }
    pub async fn remove(&self, id: &ContainerId) -> Result<()> {
        unimplemented!()
    }
    pub async fn containers(&self) -> Result<Vec<Container>> {
        unimplemented!()
    }
    pub async fn container(&self, id: &ContainerId) -> Result<Container> {
        unimplemented!()
    }
    pub async fn exec(&self, id: &ContainerId, config: ExecConfig) -> Result<Exec> {
        unimplemented!()
    }
    pub async fn probe(&self, id: &ContainerId, argv: Vec<String>, timeout: Duration) -> Result<ProbeResult> {
        unimplemented!()
    }
    pub fn logs(
        &self,
        id: &ContainerId,
        selector: LogSelector,
    ) -> impl Stream<Item = Result<LogEntry>> + Send + Unpin + 'static + use<> {
        futures::stream::empty()
    }
    pub async fn processes(&self, id: &ContainerId) -> Result<Vec<u32>> {
        unimplemented!()
    }
    pub async fn purge(&self) -> Result<()> {
        unimplemented!()
    }
    pub async fn prune(&self, keep: &HashSet<ContainerId>) -> Result<()> {
        unimplemented!()
    }
}
