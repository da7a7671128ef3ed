//! Ids of things that exist once per node and have no object of their own.

use std::path::Path;

use sha2::{Digest, Sha256};

/// An id that stays the same as long as the node keeps its data directory.
pub(crate) fn engine_id(data_dir: &Path) -> String {
    // The node's own random tag tells apart nodes that use the same path in turn.
    let tag = std::fs::read_to_string(data_dir.join("tag")).unwrap_or_default();
    hex::encode(Sha256::digest(format!("{}\n{}", data_dir.display(), tag.trim())))
}

/// 64 hexadecimal characters, as ids of Docker's local networks and endpoints.
pub(crate) fn derived_id(parts: &[&str]) -> String {
    hex::encode(Sha256::digest(parts.join("\n")))
}

/// Docker's spelling of an engine's id: twelve groups of four characters.
pub(crate) fn spelled(engine_id: &str) -> String {
    let text: Vec<char> = engine_id.to_uppercase().chars().take(48).collect();
    text.chunks(4).map(|group| group.iter().collect::<String>()).collect::<Vec<_>>().join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_dockers_shapes_and_stay() {
        let dir = tempfile::tempdir().unwrap();
        let id = engine_id(dir.path());
        assert_eq!(id, engine_id(dir.path()));
        assert_eq!(id.len(), 64);
        assert_eq!(spelled(&id).len(), 12 * 4 + 11);
        std::fs::write(dir.path().join("tag"), "0a1b2c3d\n").unwrap();
        assert_ne!(id, engine_id(dir.path()), "another node in the same place is another engine");
        assert_ne!(derived_id(&[&id, "host"]), derived_id(&[&id, "none"]));
    }
}
