//! A container's directory: what is bind-mounted into it, its log, how it ended.

use std::fs::{DirBuilder, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use shoal_model::ContainerId;

use super::{ContainerConfig, Exit};
use crate::{Error, Result};

/// The newest log file; older ones are `json.log.1`, `json.log.2`, …
pub(crate) const LOG: &str = "json.log";
/// Held locked by the logger while it lives.
pub(crate) const LOCK: &str = "log.lock";
/// The socket on which the logger serves attached clients.
pub(crate) const OUTPUT: &str = "output.sock";
/// How the log is rotated: the container's `log_options`.
pub(crate) const LOG_OPTIONS: &str = "log.json";
/// When the container's process was started.
const STARTED: &str = "started";
/// How it ended; written before the task that knows it is deleted.
const EXIT: &str = "exit.json";
/// Where the root is mounted for a moment, in a mount namespace of its own.
const ROOT: &str = "rootfs";

/// The files of one container.
pub(crate) struct Files {
    pub(crate) dir: PathBuf,
}

impl Files {
    pub(crate) fn new(data_dir: &Path, id: &ContainerId) -> Self {
        Self { dir: parent(data_dir).join(id.as_str()) }
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.dir.join(ROOT)
    }

    /// Makes the directory and what a container needs of it.
    pub(super) fn create(&self, config: &ContainerConfig, hostname: &str) -> Result<()> {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700).create(self.root()).map_err(Error::io(self.root()))?;
        let options = serde_json::to_string(&config.log_options).unwrap_or_default();
        self.write("hostname", &format!("{hostname}\n"))?;
        self.write(LOG_OPTIONS, &options)?;
        self.write_names(&config.hosts, &config.resolv_conf)
    }

    /// What the container finds in `/etc/hosts` and `/etc/resolv.conf`.
    pub(super) fn write_names(&self, hosts: &str, resolv_conf: &str) -> Result<()> {
        self.write("hosts", hosts)?;
        self.write("resolv.conf", resolv_conf)
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.dir.join(name);
        std::fs::write(&path, text).map_err(Error::io(&path))?;
        // Users inside the container read these, whatever this process's umask is.
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).map_err(Error::io(&path))
    }

    pub(super) fn set_started(&self, at: Timestamp) -> Result<()> {
        self.replace(STARTED, at.to_string())
    }

    pub(super) fn started(&self) -> Option<Timestamp> {
        std::fs::read_to_string(self.dir.join(STARTED)).ok()?.trim().parse().ok()
    }

    /// Forgets the last run, so that the container can run again.
    pub(super) fn forget_run(&self) -> Result<()> {
        for name in [STARTED, EXIT] {
            let path = self.dir.join(name);
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(Error::io(&path)(error)),
                _ => {}
            }
        }
        Ok(())
    }

    pub(super) fn set_exit(&self, exit: &Exit) -> Result<()> {
        self.replace(EXIT, serde_json::to_string(exit).unwrap_or_default())
    }

    pub(super) fn exit(&self) -> Option<Exit> {
        serde_json::from_slice(&std::fs::read(self.dir.join(EXIT)).ok()?).ok()
    }

    /// All or nothing, also when the machine stops meanwhile.
    fn replace(&self, name: &str, text: String) -> Result<()> {
        let (path, new) = (self.dir.join(name), self.dir.join(format!("{name}.new")));
        let write = || {
            std::fs::write(&new, text)?;
            std::fs::File::open(&new)?.sync_all()?;
            std::fs::rename(&new, &path)
        };
        write().map_err(Error::io(&path))
    }

    /// Removes the directory; it may be gone already.
    pub(super) fn remove(&self) -> Result<()> {
        remove_dir(&self.dir)
    }
}

/// Where the containers' directories are.
pub(super) fn parent(data_dir: &Path) -> PathBuf {
    data_dir.join("containers")
}

/// Removes a directory with all it holds; none is fine.
pub(crate) fn remove_dir(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io(dir)(error)),
        _ => Ok(()),
    }
}
