//! The documents keep up with the code.

use std::path::Path;

use crate::arrows::{crates, root};

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn the_map_names_every_crate() {
    let map = read("ARCHITECTURE.md");
    for name in crates().keys() {
        let room = name.strip_prefix("shoal-").unwrap_or(name);
        assert!(map.contains(&format!("`crates/{room}`")), "ARCHITECTURE.md does not mention crates/{room}");
    }
}

#[test]
fn links_between_documents_lead_somewhere() {
    for document in [
        "README.md",
        "ARCHITECTURE.md",
        "CHANGELOG.md",
        "docs/nomenclature.md",
        "docs/compatibility.md",
        "docs/publishing.md",
        "docs/external-load-balancer.md",
        "docs/decisions/README.md",
    ] {
        let text = read(document);
        let folder = Path::new(document).parent().unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
            if target.is_empty() || target.contains("://") {
                continue;
            }
            assert!(
                root().join(folder).join(target).exists(),
                "{document} links to {target}, which is not there"
            );
        }
    }
}

#[test]
fn the_read_mes_commands_exist() {
    let text = read("README.md");
    for script in ["./quickstart", "./check"] {
        assert!(text.contains(script), "README.md does not show {script}");
        let path = root().join(script);
        let mode = std::os::unix::fs::PermissionsExt::mode(&path.metadata().unwrap().permissions());
        assert!(mode & 0o111 != 0, "{script} is not executable");
    }
}

/// The text of the licence that Cargo.toml names is there.
#[test]
fn the_licence_is_included() {
    assert!(
        read("LICENSE").contains("Apache License") && read("Cargo.toml").contains("license = \"Apache-2.0\"")
    );
}
