//! A node of its own for each test: containerd namespace, directories, image; all gone at the end.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use futures::StreamExt;
use sha2::{Digest, Sha256};
use shoal_model::{ContainerId, ContainerSpec, IdGenerator, Labels, LogEntry, LogSelector, Resources};
use shoal_runtime::{ContainerConfig, Exit, Runtime, RuntimeConfig};
use tempfile::TempDir;

/// The containerd to test against.
pub(crate) fn socket() -> PathBuf {
    std::env::var_os("SHOAL_E2E_CONTAINERD")
        .map_or_else(|| PathBuf::from("/run/containerd/containerd.sock"), PathBuf::from)
}

pub(crate) struct World {
    pub(crate) runtime: Runtime,
    pub(crate) config: RuntimeConfig,
    pub(crate) dir: TempDir,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::at(&socket()).await
    }

    pub(crate) async fn at(socket: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = RuntimeConfig {
            socket: socket.to_owned(),
            namespace: format!("shoal-test-{:08x}", rand::random::<u32>()),
            data_dir: dir.path().join("data"),
            run_dir: dir.path().join("run"),
            executable: logger(),
            registries: Default::default(),
        };
        let runtime = Runtime::connect(config.clone()).await.unwrap();
        Self { runtime, config, dir }
    }

    /// With the busybox image in it.
    pub(crate) async fn with_image() -> Self {
        let world = Self::new().await;
        world.load_busybox().await;
        world
    }

    pub(crate) async fn load_busybox(&self) {
        let archive = docker_archive(&["busybox:latest"], &busybox_layer(), r#""Cmd":["sh"]"#);
        assert_eq!(self.runtime.load(&archive[..]).await.unwrap(), ["busybox:latest"]);
    }

    /// What another process of the same node would see.
    pub(crate) async fn reconnect(&self) -> Runtime {
        Runtime::connect(self.config.clone()).await.unwrap()
    }

    pub(crate) async fn create(&self, spec: ContainerSpec) -> ContainerId {
        self.create_with(spec, |_| {}).await
    }

    pub(crate) async fn create_with(
        &self,
        spec: ContainerSpec,
        change: impl FnOnce(&mut ContainerConfig),
    ) -> ContainerId {
        let mut config = container(spec);
        change(&mut config);
        self.runtime.create(&config).await.unwrap();
        config.id
    }

    pub(crate) async fn start(&self, spec: ContainerSpec) -> ContainerId {
        let id = self.create(spec).await;
        self.runtime.start(&id).await.unwrap();
        id
    }

    /// Runs a container to its end.
    pub(crate) async fn run_spec(&self, spec: ContainerSpec) -> (Exit, String) {
        let id = self.start(spec).await;
        let exit = self.runtime.wait(&id).await.unwrap();
        let output = text(&self.log(&id).await);
        self.runtime.remove(&id).await.unwrap();
        (exit, output)
    }

    /// The whole log, to the logger's end.
    pub(crate) async fn log(&self, id: &ContainerId) -> Vec<LogEntry> {
        let selector = LogSelector { follow: true, ..LogSelector::default() };
        let entries = self.runtime.logs(id, selector).map(|entry| entry.unwrap()).collect::<Vec<_>>();
        tokio::time::timeout(Duration::from_secs(20), entries).await.expect("the log has an end")
    }

    /// What containerd's own client sees in our namespace.
    pub(crate) fn ctr(&self, what: &[&str]) -> Vec<String> {
        let output = Command::new("ctr")
            .args(["--address", &self.config.socket.to_string_lossy(), "--namespace", &self.config.namespace])
            .args(what)
            .output()
            .unwrap();
        assert!(output.status.success(), "ctr {what:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
    }

    /// Command lines of the shims that serve our namespace.
    pub(crate) fn shims(&self) -> Vec<String> {
        let ours = format!("-namespace {} ", self.config.namespace);
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let commands = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
        let commands = commands.map(|command| String::from_utf8_lossy(&command).replace('\0', " "));
        commands.filter(|command| command.contains(&ours)).collect()
    }

    pub(crate) fn left_overs(&self) -> Vec<String> {
        let lists: [&[&str]; 6] = [
            &["containers", "ls", "-q"],
            &["tasks", "ls", "-q"],
            &["images", "ls", "-q"],
            &["content", "ls", "-q"],
            &["leases", "ls", "-q"],
            &["snapshots", "ls"],
        ];
        let all = lists.iter().flat_map(|list| self.ctr(list));
        all.filter(|line| !line.starts_with("KEY")).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let config = self.config.clone();
        let purge = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { Runtime::connect(config).await?.purge().await })
        };
        let purged = std::thread::spawn(purge).join().unwrap();
        if !std::thread::panicking() {
            purged.unwrap();
            for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
                let cgroup = hierarchy.path().join("shoal").join(&self.config.namespace);
                assert!(!cgroup.exists(), "{} stays", cgroup.display());
            }
        }
    }
}

/// The example is built beside the tests: `<profile>/deps/test` and `<profile>/examples/log_shim`.
fn logger() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let logger = test.parent().unwrap().parent().unwrap().join("examples/log_shim");
    assert!(logger.exists(), "{} is built by `cargo test` and `cargo nextest run`", logger.display());
    logger
}

pub(crate) fn container(spec: ContainerSpec) -> ContainerConfig {
    ContainerConfig {
        id: IdGenerator::from_os().container_id(),
        name: "test".to_owned(),
        image: "busybox".to_owned(),
        spec,
        resources: Resources::default(),
        labels: Labels::from([("who".to_owned(), "test".to_owned())]),
        netns: None,
        resolv_conf: "nameserver 127.0.0.11\noptions ndots:0\n".to_owned(),
        hosts: "127.0.0.1 localhost\n".to_owned(),
        log_options: Labels::new(),
        provided: Vec::new(),
        note: String::new(),
    }
}

pub(crate) fn words(text: &[&str]) -> Vec<String> {
    text.iter().map(|&word| word.to_owned()).collect()
}

pub(crate) fn shell(script: &str) -> ContainerSpec {
    ContainerSpec { args: words(&["sh", "-c", script]), ..ContainerSpec::default() }
}

pub(crate) fn text(entries: &[LogEntry]) -> String {
    String::from_utf8(entries.iter().flat_map(|entry| entry.line.clone()).collect()).unwrap()
}

/// Polls until a condition holds.
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "{what} does not happen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) fn sha(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn add(builder: &mut tar::Builder<Vec<u8>>, name: &str, mode: u32, data: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_size(data.len() as u64);
    header.set_mode(mode);
    builder.append_data(&mut header, name, data).unwrap();
}

/// Debian's static busybox with its applets, and some accounts.
pub(crate) fn busybox_layer() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    add(
        &mut builder,
        "bin/busybox",
        0o755,
        &std::fs::read("/bin/busybox").expect("busybox-static is installed"),
    );
    let applets = Command::new("/bin/busybox").arg("--list").output().unwrap();
    for applet in String::from_utf8(applets.stdout).unwrap().lines().filter(|&name| name != "busybox") {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        builder.append_link(&mut header, format!("bin/{applet}"), "busybox").unwrap();
    }
    add(&mut builder, "etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\nwww:x:33:34:web:/srv:/bin/sh\n");
    add(&mut builder, "etc/group", 0o644, b"root:x:0:\nwheel:x:10:root\nweb:x:34:\nextra:x:50:www\n");
    builder.into_inner().unwrap()
}

pub(crate) fn image_config(layer: &[u8], config: &str) -> String {
    format!(
        r#"{{"architecture":"amd64","os":"linux","created":"2026-11-23T08:22:44.34036982Z","config":{{{config}}},
        "rootfs":{{"type":"layers","diff_ids":["sha256:{}"]}},
        "history":[{{"created":"2026-11-23T08:22:44Z","created_by":"test","comment":"made"}}]}}"#,
        sha(layer)
    )
}

/// An archive as `docker save` of 20.10 writes it.
pub(crate) fn docker_archive(names: &[&str], layer: &[u8], config: &str) -> Vec<u8> {
    let config = image_config(layer, config);
    let name = format!("{}.json", sha(config.as_bytes()));
    let tags: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
    let manifest =
        format!(r#"[{{"Config":"{name}","RepoTags":[{}],"Layers":["1/layer.tar"]}}]"#, tags.join(","));
    let mut builder = tar::Builder::new(Vec::new());
    add(&mut builder, "1/layer.tar", 0o644, layer);
    add(&mut builder, &name, 0o644, config.as_bytes());
    add(&mut builder, "manifest.json", 0o644, manifest.as_bytes());
    builder.into_inner().unwrap()
}

/// An OCI layout with a gzip layer; returns the archive and the manifest's digest.
pub(crate) fn oci_layout(name: &str, layer: &[u8], config: &str) -> (Vec<u8>, String) {
    let (config, layer) = (image_config(layer, config), gzip(layer));
    let blob = |media: &str, bytes: &[u8], more: &str| {
        format!(r#"{{"mediaType":"{media}","size":{},"digest":"sha256:{}"{more}}}"#, bytes.len(), sha(bytes))
    };
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{},"layers":[{}]}}"#,
        blob("application/vnd.oci.image.config.v1+json", config.as_bytes(), ""),
        blob("application/vnd.oci.image.layer.v1.tar+gzip", &layer, "")
    );
    let named = format!(r#","annotations":{{"io.containerd.image.name":"{name}"}}"#);
    let media = "application/vnd.oci.image.manifest.v1+json";
    let index =
        format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, blob(media, manifest.as_bytes(), &named));
    let files: BTreeMap<String, Vec<u8>> = [config.into_bytes(), layer, manifest.clone().into_bytes()]
        .into_iter()
        .map(|bytes| (format!("blobs/sha256/{}", sha(&bytes)), bytes))
        .collect();
    let mut builder = tar::Builder::new(Vec::new());
    add(&mut builder, "oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#);
    add(&mut builder, "index.json", 0o644, index.as_bytes());
    for (name, bytes) in files {
        add(&mut builder, &name, 0o644, &bytes);
    }
    (builder.into_inner().unwrap(), format!("sha256:{}", sha(manifest.as_bytes())))
}
