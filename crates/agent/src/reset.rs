//! `shoal reset`: a machine as if the node had never been there.

use std::path::Path;

use shoal_balancer::Balancer;
use shoal_runtime::Runtime;

use crate::node::{balancer_config, known_tag, lock_data_dir, runtime_config};
use crate::{AgentConfig, Error, Result, deposits, resolver};

/// What a node keeps in its data directory.
const DATA_ENTRIES: [&str; 8] =
    ["cluster.redb", "node.redb", "containers", "volumes", "resolver", "resolver.log", "tag", "lock"];
/// What a node keeps in its run directory.
const RUN_ENTRIES: [&str; 7] =
    ["netns", "exec", "deposits", "manager.sock", "resolver.lock", "resolver.sock", "shoal.sock"];

/// Removes everything of a node: containers, images, namespaces, kernel state, files. Needs no
/// running daemon, and refuses while one runs.
pub async fn reset(config: &AgentConfig) -> Result<()> {
    let lock = if config.data_dir.exists() { Some(lock_data_dir(config)?) } else { None };
    let runtime = Runtime::connect(runtime_config(config)).await?;
    runtime.purge().await?;
    deposits::free_all(&config.run_dir).await;
    resolver::stop_at(&config.resolver_socket()).await;
    if let Some(tag) = known_tag(&config.data_dir)? {
        shoal_network::reset(&config.run_dir, &tag).await?;
        Balancer::remove(&balancer_config(&tag))?;
    }
    remove_entries(&config.data_dir, &DATA_ENTRIES)?;
    remove_entries(&config.run_dir, &RUN_ENTRIES)?;
    drop(lock);
    Ok(())
}

/// Only what is ours: the directory may have been chosen carelessly.
fn remove_entries(dir: &Path, known: &[&str]) -> Result<()> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(Error::io("read", dir))?,
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !known.contains(&name.as_str()) && !name.starts_with("node.corrupt-") {
            continue;
        }
        let path = entry.path();
        let removed =
            if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        removed.map_err(Error::io("remove", &path))?;
    }
    // Stays when it holds something that is not ours.
    let _ = std::fs::remove_dir(dir);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_files_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["node.redb", "node.corrupt-17", "tag", "precious.txt"] {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        std::fs::create_dir(dir.path().join("containers")).unwrap();
        remove_entries(dir.path(), &DATA_ENTRIES).unwrap();
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().flatten().map(|e| e.file_name()).collect();
        assert_eq!(left, ["precious.txt"]);
        std::fs::remove_file(dir.path().join("precious.txt")).unwrap();
        remove_entries(dir.path(), &DATA_ENTRIES).unwrap();
        assert!(!dir.path().exists());
        remove_entries(dir.path(), &DATA_ENTRIES).unwrap();
    }
}
