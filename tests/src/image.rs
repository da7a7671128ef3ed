//! Image archives made from the machine's static busybox, in every format the engine reads.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// `serve`: a web server on port 80 whose `/cgi-bin/who` names the task and who asked.
const SERVE: &str = "#!/bin/sh\n\
    trap 'kill $pid; exit 0' TERM\n\
    httpd -f -p ${PORT:-80} -h /www &\n\
    pid=$!\n\
    wait $pid\n";
/// `idle`: nothing, until told to stop.
const IDLE: &str = "#!/bin/sh\ntrap 'exit 0' TERM\nsleep 86400 &\nwait $!\n";
const WHO: &str =
    "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n'\necho \"$(hostname) $REMOTE_ADDR\"\n";

/// The static busybox of this machine.
pub fn busybox() -> PathBuf {
    let found = ["/bin/busybox", "/usr/bin/busybox"].iter().map(PathBuf::from).find(|path| path.exists());
    found.expect("no busybox on this machine: apt-get install busybox-static")
}

/// A root file system as a tar archive, for `docker import`.
pub fn root_file_system() -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for directory in ["bin", "etc", "tmp", "var", "www", "www/cgi-bin", "root", "dev", "proc", "sys"] {
        let mut header =
            header(tar::EntryType::Directory, 0, if directory == "tmp" { 0o1777 } else { 0o755 });
        archive.append_data(&mut header, format!("{directory}/"), std::io::empty()).unwrap();
    }
    let mut file = |path: &str, content: &[u8], mode: u32| {
        let mut header = header(tar::EntryType::Regular, content.len() as u64, mode);
        archive.append_data(&mut header, path, content).unwrap();
    };
    let busybox = busybox();
    file("bin/busybox", &std::fs::read(&busybox).unwrap(), 0o755);
    file("bin/serve", SERVE.as_bytes(), 0o755);
    file("bin/idle", IDLE.as_bytes(), 0o755);
    file("www/cgi-bin/who", WHO.as_bytes(), 0o755);
    file("www/index.html", b"busybox\n", 0o644);
    file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n", 0o644);
    file("etc/group", b"root:x:0:\nnogroup:x:65534:\n", 0o644);
    for applet in applets(&busybox) {
        let mut header = header(tar::EntryType::Symlink, 0, 0o777);
        archive.append_link(&mut header, format!("bin/{applet}"), "busybox").unwrap();
    }
    archive.into_inner().unwrap()
}

fn applets(busybox: &Path) -> Vec<String> {
    let listed = Command::new(busybox).arg("--list").output().unwrap();
    let text = String::from_utf8(listed.stdout).unwrap();
    text.lines().filter(|applet| *applet != "busybox").map(str::to_owned).collect()
}

fn header(kind: tar::EntryType, size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header
}

/// An archive as `docker save` wrote it before OCI: `manifest.json`, a configuration, layers.
pub fn docker_archive(reference: &str) -> Vec<u8> {
    let layer = root_file_system();
    let config = config(&digest(&layer)).to_string();
    let config_name = format!("{}.json", hex::encode(Sha256::digest(config.as_bytes())));
    let manifest =
        json!([{ "Config": config_name, "RepoTags": [reference], "Layers": ["0/layer.tar"] }]).to_string();
    pack(&[
        ("0/layer.tar", &layer),
        (&config_name, config.as_bytes()),
        ("manifest.json", manifest.as_bytes()),
    ])
}

/// An OCI image layout (image-spec §image-layout) with one gzipped layer.
pub fn oci_layout(reference: &str) -> Vec<u8> {
    let layer = root_file_system();
    let config = config(&digest(&layer)).to_string();
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&layer).unwrap();
    let layer = gzip.finish().unwrap();
    let descriptor = |kind: &str, blob: &[u8]| json!({ "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest(blob), "size": blob.len() });
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("config.v1+json", config.as_bytes()),
        "layers": [descriptor("layer.v1.tar+gzip", &layer)],
    })
    .to_string();
    let mut entry = descriptor("manifest.v1+json", manifest.as_bytes());
    let tag = reference.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    entry["annotations"] =
        json!({ "io.containerd.image.name": reference, "org.opencontainers.image.ref.name": tag });
    let index = json!({ "schemaVersion": 2, "manifests": [entry] }).to_string();
    let blob = |content: &[u8]| format!("blobs/sha256/{}", hex::encode(Sha256::digest(content)));
    pack(&[
        ("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#),
        ("index.json", index.as_bytes()),
        (&blob(manifest.as_bytes()), manifest.as_bytes()),
        (&blob(config.as_bytes()), config.as_bytes()),
        (&blob(&layer), &layer),
    ])
}

/// An image as registries keep it: one gzipped layer.
#[derive(Debug, Clone)]
pub struct RegistryImage {
    pub config: Vec<u8>,
    pub layer: Vec<u8>,
    pub architecture: String,
}

impl RegistryImage {
    /// With this text in `/version`.
    pub fn new(architecture: &str, version: &str) -> Self {
        let mut root = tar::Builder::new(Vec::new());
        root.get_mut().extend(root_file_system());
        let whole = root.get_ref().len() - 1024;
        root.get_mut().truncate(whole);
        let mut file = header(tar::EntryType::Regular, version.len() as u64, 0o644);
        root.append_data(&mut file, "version", version.as_bytes()).unwrap();
        let root = root.into_inner().unwrap();
        let mut config = config(&digest(&root));
        config["architecture"] = architecture.into();
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&root).unwrap();
        let layer = gzip.finish().unwrap();
        Self { config: config.to_string().into_bytes(), layer, architecture: architecture.to_owned() }
    }

    pub fn manifest(&self) -> Vec<u8> {
        let descriptor = |kind: &str, blob: &[u8]| json!({ "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest(blob), "size": blob.len() });
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("config.v1+json", &self.config),
            "layers": [descriptor("layer.v1.tar+gzip", &self.layer)],
        });
        manifest.to_string().into_bytes()
    }
}

fn config(diff_id: &str) -> Value {
    json!({
        "architecture": "amd64",
        "os": "linux",
        "created": "2026-01-01T00:00:00Z",
        "config": { "Env": ["PATH=/bin", "FROM_IMAGE=yes"], "Cmd": ["idle"], "WorkingDir": "/root" },
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
        "history": [{ "created": "2026-01-01T00:00:00Z", "created_by": "busybox" }],
    })
}

/// `sha256:…` of some bytes.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn pack(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = header(tar::EntryType::Regular, content.len() as u64, 0o644);
        archive.append_data(&mut header, path, *content).unwrap();
    }
    archive.into_inner().unwrap()
}
