//! What was fed last, on disk, so that a resolver that comes back needs nobody to tell it.
//!
//! The files describe namespaces of this boot; after a reboot none of them exists and the sandboxes
//! are dropped. Nothing is synced to the disk for that reason: a rename is enough against a crash of
//! the process.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use shoal_model::NetworkId;

use crate::feed::SandboxState;
use crate::names::Names;
use crate::{Error, Result};

const SANDBOXES: &str = "sandboxes.json";
const NAMES: &str = "names";

/// The state directory.
#[derive(Debug, Clone)]
pub(crate) struct StateDir {
    path: PathBuf,
}

impl StateDir {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let names = path.join(NAMES);
        std::fs::create_dir_all(&names).map_err(Error::path("create", &names))?;
        Ok(Self { path: path.to_owned() })
    }

    /// What is there. A file that cannot be read is logged and passed over: it will be fed again.
    pub(crate) fn load(&self) -> (BTreeMap<String, SandboxState>, Vec<Names>) {
        let sandboxes = read(&self.path.join(SANDBOXES)).unwrap_or_default();
        let names = std::fs::read_dir(self.path.join(NAMES))
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
            .filter_map(|path| read(&path))
            .collect();
        (sandboxes, names)
    }

    pub(crate) fn save_sandboxes(&self, sandboxes: &BTreeMap<String, SandboxState>) -> Result<()> {
        write(&self.path.join(SANDBOXES), sandboxes)
    }

    pub(crate) fn save_names(&self, names: &Names) -> Result<()> {
        write(&self.names_file(&names.network), names)
    }

    pub(crate) fn remove_names(&self, network: &NetworkId) -> Result<()> {
        remove(&self.names_file(network))
    }

    /// Leaves nothing behind.
    pub(crate) fn clear(&self) -> Result<()> {
        remove(&self.path.join(SANDBOXES))?;
        let names = self.path.join(NAMES);
        std::fs::remove_dir_all(&names).map_err(Error::path("remove", &names))?;
        // Only if it holds nothing else.
        let _ = std::fs::remove_dir(&self.path);
        Ok(())
    }

    fn names_file(&self, network: &NetworkId) -> PathBuf {
        self.path.join(NAMES).join(format!("{network}.json"))
    }
}

/// The id can be part of a file's name; every real one can.
pub(crate) fn is_storable(network: &NetworkId) -> bool {
    let id = network.as_str();
    (1..=128).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "kept state is not readable");
            return None;
        }
    };
    serde_json::from_slice(&text)
        .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "kept state is not usable"))
        .ok()
}

fn write<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let unfinished = path.with_extension("new");
    let text = serde_json::to_vec(value).map_err(io::Error::from).map_err(Error::path("encode", path))?;
    std::fs::write(&unfinished, text).map_err(Error::path("write", &unfinished))?;
    std::fs::rename(&unfinished, path).map_err(Error::path("replace", path))
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::path("remove", path)(error)),
        _ => Ok(()),
    }
}
