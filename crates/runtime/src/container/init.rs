//! The program that is the first process of containers that want one (`--init`).

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// It fits any image: it needs nothing of one.
const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/docker-init"));

/// Puts the program where containers can have it mounted; one of another version stays with the
/// containers that run it.
pub(super) fn install(run_dir: &Path) -> Result<PathBuf> {
    let path = run_dir.join("docker-init");
    if std::fs::read(&path).is_ok_and(|present| present == PROGRAM) {
        return Ok(path);
    }
    std::fs::create_dir_all(run_dir).map_err(Error::io(run_dir))?;
    let new = tempfile::NamedTempFile::new_in(run_dir).map_err(Error::io(run_dir))?;
    std::fs::write(new.path(), PROGRAM).map_err(Error::io(&path))?;
    std::fs::set_permissions(new.path(), Permissions::from_mode(0o755)).map_err(Error::io(&path))?;
    new.persist(&path).map_err(|error| Error::io(&path)(error.error))?;
    Ok(path)
}
