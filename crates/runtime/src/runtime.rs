//! The runtime's face: one method per thing that can be asked of it.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use shoal_model::{ContainerId, LogEntry, LogSelector};
use tokio::io::AsyncRead;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::client::{Client, ask};
use crate::container::Containers;
use crate::image::{self, Images};
use crate::registry::{Credentials, Distribution, RegistryConfig, Repository};
use crate::{
    Container, ContainerConfig, ContainerInput, ContainerOutput, ContainerState, Error, Exec, ExecConfig,
    Exit, Image, ImageDeletion, ImportOptions, ProbeResult, PullEvent, Pulled, Result, log,
};

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
    pub registries: RegistryConfig,
}

/// Versions of what containers run on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versions {
    pub containerd: String,
    /// Empty when `runc` cannot be asked.
    pub runc: String,
}

/// Images and containers of one node. Cloning gives another handle on the same.
#[derive(Clone)]
pub struct Runtime {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    images: Images,
    pulling: image::Pulling,
    containers: Containers,
    registries: RegistryConfig,
    /// Where archives are laid out while they are loaded.
    scratch: PathBuf,
}

impl Runtime {
    /// Connects to containerd, which must be there and recent enough. Later calls survive its
    /// restarts: they wait up to 30 seconds for it.
    pub async fn connect(config: RuntimeConfig) -> Result<Runtime> {
        let client = Client::new(&config.socket, &config.namespace)?;
        let config = Arc::new(config);
        let scratch = config.data_dir.join("tmp");
        let containers = Containers::new(client.clone(), config.clone());
        let inner = Inner {
            images: Images::new(client.clone()),
            pulling: image::Pulling::default(),
            client,
            containers,
            registries: config.registries.clone(),
            scratch,
        };
        let runtime = Runtime { inner: Arc::new(inner) };
        let found = runtime.containerd_version().await?;
        if !is_supported(&found) {
            return Err(Error::UnsupportedVersion { found });
        }
        Ok(runtime)
    }

    /// Versions of containerd and runc.
    pub async fn version(&self) -> Result<Versions> {
        let asked = tokio::process::Command::new("runc").arg("--version").output().await;
        let text =
            asked.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        let runc = text.lines().find_map(|line| line.strip_prefix("runc version ")).unwrap_or_default();
        Ok(Versions { containerd: self.containerd_version().await?, runc: runc.trim().to_owned() })
    }

    async fn containerd_version(&self) -> Result<String> {
        let client = &self.inner.client;
        Ok(ask!(client, "asking for the version", version.version(()))?.version)
    }

    /// Loads all images of a `docker save` archive or an OCI layout, plain or gzip; returns what
    /// Docker says of each: its names, or its id when it has none.
    pub async fn load(&self, tar: impl AsyncRead + Send + Unpin) -> Result<Vec<String>> {
        image::load(&self.inner.images, &self.inner.scratch, tar).await
    }

    /// Images as one archive, which [`load`](Self::load) takes, in pieces. Must be called within a tokio
    /// runtime.
    pub async fn save(&self, names: &[String]) -> Result<impl Stream<Item = Result<Bytes>> + Send + use<>> {
        image::save(&self.inner.images, names).await
    }

    /// Makes an image of a tar of a file system; returns its id.
    pub async fn import(&self, tar: impl AsyncRead + Send + Unpin, options: ImportOptions) -> Result<String> {
        image::import(&self.inner.images, &self.inner.scratch, tar, &options).await
    }

    /// Brings an image in from its registry. `platform` is `OS/ARCHITECTURE`, or empty for this machine's.
    /// `watcher` hears what happens meanwhile, as far as it keeps up.
    pub async fn pull(
        &self,
        name: &str,
        credentials: &Credentials,
        platform: &str,
        watcher: Option<mpsc::Sender<PullEvent>>,
    ) -> Result<Pulled> {
        let Inner { images, pulling, registries, scratch, .. } = &*self.inner;
        let wish = image::Wish { name, credentials, platform };
        image::pull(images, pulling, registries, scratch, wish, watcher).await
    }

    /// What an image's registry says that the name stands for.
    pub async fn distribution(&self, name: &str, credentials: &Credentials) -> Result<Distribution> {
        let name = image::Reference::parse(name)?.with_default_tag();
        Repository::open(&self.inner.registries, &name, credentials).await?.distribution().await
    }

    /// Whether a registry (`HOST[:PORT]`; empty is Docker's own) takes these credentials.
    pub async fn log_in(&self, registry: &str, credentials: &Credentials) -> Result<()> {
        let registry = if registry.is_empty() { "docker.io" } else { registry };
        // Registries know permissions on repositories only: on this one, which need not exist.
        let name = image::Reference::parse(&format!("{registry}/shoal/login"))?.with_default_tag();
        Repository::open(&self.inner.registries, &name, credentials).await?.check().await
    }

    /// All images, the newest first.
    pub async fn images(&self) -> Result<Vec<Image>> {
        Ok(self.inner.images.list().await?.iter().map(image::Entry::image).collect())
    }

    /// An image by name, name and digest, id or unambiguous start of an id.
    pub async fn image(&self, name: &str) -> Result<Image> {
        Ok(self.inner.images.find(name).await?.image())
    }

    /// Gives an image one more name.
    pub async fn tag(&self, source: &str, target: &str) -> Result<()> {
        self.inner.images.tag(source, target).await
    }

    /// Removes a name, and the image with its last name; all of it when named by id. `force` does so
    /// also with several names, and when stopped containers use it.
    pub async fn remove_image(&self, name: &str, force: bool) -> Result<Vec<ImageDeletion>> {
        let user = |container: Container| image::User {
            container: container.config.id.short().to_owned(),
            image: container.image_id,
            running: matches!(container.state, ContainerState::Running { .. }),
        };
        let users: Vec<image::User> = self.inner.containers.list().await?.into_iter().map(user).collect();
        self.inner.images.remove(name, force, &users).await
    }

    /// Makes a container, not running yet. A failed attempt leaves nothing; what a killed one left
    /// is no hindrance to the next.
    pub async fn create(&self, config: &ContainerConfig) -> Result<()> {
        let image = self.inner.images.find(&config.image).await?;
        self.inner.containers.create(config, &image).await
    }

    /// Makes a created container's process ready, so that clients can attach before it starts.
    /// Starting does it by itself if need be.
    pub async fn make_ready(&self, id: &ContainerId) -> Result<()> {
        self.inner.containers.make_ready(id).await
    }

    /// Takes back [`make_ready`](Self::make_ready) of a container that is not to start after all.
    pub async fn unready(&self, id: &ContainerId) -> Result<()> {
        self.inner.containers.unready(id).await
    }

    /// Makes an ended container one that can be started again, with new contents of its hosts and
    /// resolv.conf files. Its file system and its log stay.
    pub async fn renew(&self, id: &ContainerId, hosts: String, resolv_conf: String) -> Result<()> {
        self.inner.containers.renew(id, hosts, resolv_conf).await
    }

    /// New contents of the hosts and resolv.conf files of a container, which may run.
    pub async fn rewrite_names(&self, id: &ContainerId, hosts: String, resolv_conf: String) -> Result<()> {
        self.inner.containers.rewrite_names(id, hosts, resolv_conf).await
    }

    /// What the container prints from now on; `None` when its output has ended, or has not begun.
    pub async fn output(&self, id: &ContainerId) -> Result<Option<ContainerOutput>> {
        self.inner.containers.output(id).await
    }

    /// Where to write the input of a container that was made ready with one.
    pub fn input(&self, id: &ContainerId) -> Result<ContainerInput> {
        self.inner.containers.input(id)
    }

    /// Tells the size of a running container's terminal, in characters.
    pub async fn resize(&self, id: &ContainerId, width: u32, height: u32) -> Result<()> {
        self.inner.containers.resize(id, width, height).await
    }

    /// To be called for a running container that a former process started: its logger may be gone.
    pub async fn keep_logged(&self, container: &Container) -> Result<()> {
        let config = &container.config;
        self.inner.containers.keep_logged(&config.id, &config.spec).await
    }

    /// Starts a created container; returns its first process's id on the node. Fails with
    /// [`Error::Start`] and runc's words when the program cannot be run.
    pub async fn start(&self, id: &ContainerId) -> Result<u32> {
        self.inner.containers.start(id).await
    }

    /// Sends a signal to a running container's first process.
    pub async fn kill(&self, id: &ContainerId, signal: i32) -> Result<()> {
        self.inner.containers.kill(id, signal).await
    }

    /// Waits until a started container has ended; at once when it has already. Outlasts any restart
    /// of containerd.
    pub async fn wait(&self, id: &ContainerId) -> Result<Exit> {
        self.inner.containers.wait(id).await
    }

    /// Removes a container, running or not, with its file system, log and directory; one that is not
    /// there is fine.
    pub async fn remove(&self, id: &ContainerId) -> Result<()> {
        self.inner.containers.remove(id).await
    }

    pub async fn containers(&self) -> Result<Vec<Container>> {
        self.inner.containers.list().await
    }

    pub async fn container(&self, id: &ContainerId) -> Result<Container> {
        self.inner.containers.container(id).await
    }

    /// Starts an additional process in a running container. Fails with [`Error::Exec`] and runc's
    /// words when the program cannot be run.
    pub async fn exec(&self, id: &ContainerId, config: ExecConfig) -> Result<Exec> {
        self.inner.containers.exec(id, &config).await
    }

    /// Runs a program in a container to see whether the container is well. That the program cannot
    /// be run is a result, that there is no running container an error.
    pub async fn probe(&self, id: &ContainerId, argv: Vec<String>, timeout: Duration) -> Result<ProbeResult> {
        self.inner.containers.probe(id, argv, timeout).await
    }

    /// The lines of a container's log that `selector` wants, oldest first, rotated files included.
    /// With `follow` the stream ends when the container's logger has ended. Must be called within a
    /// tokio runtime.
    pub fn logs(
        &self,
        id: &ContainerId,
        selector: LogSelector,
    ) -> impl Stream<Item = Result<LogEntry>> + Send + Unpin + 'static + use<> {
        ReceiverStream::new(log::read(self.inner.containers.dir(id), id.to_string(), selector))
    }

    /// Process ids of a running container on the node.
    pub async fn processes(&self, id: &ContainerId) -> Result<Vec<u32>> {
        self.inner.containers.processes(id).await
    }

    /// Removes all containers and images of this node, and the containerd namespace.
    pub async fn purge(&self) -> Result<()> {
        self.inner.containers.purge(&self.inner.scratch).await
    }

    /// Removes containers, snapshots, directories and temporary files that nobody claims.
    pub async fn prune(&self, keep: &HashSet<ContainerId>) -> Result<()> {
        self.inner.containers.prune(keep, &self.inner.scratch).await
    }
}

/// 1.6 is the first version with the snapshot clean-up and task behaviour relied on here.
fn is_supported(version: &str) -> bool {
    let mut numbers = version.trim_start_matches('v').split(['.', '~', '-', '+']).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= (1, 6),
        // A build without a version number is somebody's own.
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::is_supported;

    #[test]
    fn versions_are_compared_by_number() {
        for version in ["1.6.20~ds1", "v1.7.0", "2.0.1", "1.10.0", "unknown"] {
            assert!(is_supported(version), "{version}");
        }
        for version in ["1.5.18", "1.4.3~ds1", "v0.9"] {
            assert!(!is_supported(version), "{version}");
        }
    }
}
