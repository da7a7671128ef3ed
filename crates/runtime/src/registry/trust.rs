//! Which registries need not prove who they are, and by whose word the others do.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;

use crate::{Error, Result};

/// What a node is told of registries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegistryConfig {
    /// Registries (`host` or `host:port`) and networks (`10.0.0.0/8`) whose certificates are not checked,
    /// and which may be without TLS; those of the loopback network always are.
    pub insecure: Vec<String>,
    /// Directories laid out as Docker's `certs.d`: in `HOST:PORT/`, what ends in `.crt` is a root that this
    /// registry's certificate may be of.
    pub certificates: Vec<PathBuf>,
}

impl RegistryConfig {
    pub(super) fn is_insecure(&self, registry: &str) -> bool {
        let host = host(registry);
        let address: Option<IpAddr> = host.parse().ok();
        if host == "localhost" || address.is_some_and(|address| address.is_loopback()) {
            return true;
        }
        self.insecure.iter().any(|entry| match (entry.parse::<IpNet>(), address) {
            (Ok(network), Some(address)) => network.contains(&address),
            (Ok(_), None) => false,
            (Err(_), _) => entry == registry || entry == host,
        })
    }

    /// Certificates, PEM, beside those the machine trusts.
    pub(super) fn roots(&self, registry: &str) -> Result<Vec<Vec<u8>>> {
        let mut roots = Vec::new();
        for directory in &self.certificates {
            roots.extend(read(&directory.join(registry))?);
        }
        Ok(roots)
    }
}

/// Without the port.
fn host(registry: &str) -> &str {
    match registry.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => registry,
    }
    .trim_matches(['[', ']'])
}

fn read(directory: &Path) -> Result<Vec<Vec<u8>>> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(Error::io(directory))?,
    };
    let mut roots = Vec::new();
    for entry in entries {
        let path = entry.map_err(Error::io(directory))?.path();
        if path.extension().is_some_and(|extension| extension == "crt") {
            roots.push(std::fs::read(&path).map_err(Error::io(&path))?);
        }
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_and_what_is_named_may_be_insecure() {
        let config = RegistryConfig {
            insecure: ["10.0.0.0/8", "reg.example:5000", "plain.example"].map(str::to_owned).to_vec(),
            ..RegistryConfig::default()
        };
        for yes in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:80",
            "127.9.9.9",
            "[::1]:5000",
            "10.1.2.3:5000",
            "10.1.2.3",
            "reg.example:5000",
            "plain.example",
            "plain.example:5000",
        ] {
            assert!(config.is_insecure(yes), "{yes}");
        }
        for no in ["docker.io", "192.0.2.1:5000", "reg.example", "reg.example:5001", "localhost.example"] {
            assert!(!config.is_insecure(no), "{no}");
        }
        assert!(!RegistryConfig::default().is_insecure("10.1.2.3:5000"));
    }

    #[test]
    fn a_registrys_roots_are_those_in_its_own_directory() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("reg.example:5000");
        std::fs::create_dir(&own).unwrap();
        std::fs::write(own.join("ca.crt"), "ROOT").unwrap();
        std::fs::write(own.join("client.key"), "KEY").unwrap();
        let missing = dir.path().join("missing");
        let config =
            RegistryConfig { certificates: vec![missing, dir.path().to_owned()], ..Default::default() };
        assert_eq!(config.roots("reg.example:5000").unwrap(), [b"ROOT"]);
        assert_eq!(config.roots("other.example").unwrap(), Vec::<Vec<u8>>::new());
    }
}
