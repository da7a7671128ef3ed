//! Settings of the network stack. All functions act on the namespace the calling thread is in.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Writes one setting of the `net.` family, given as below `/proc/sys/net`. Settings that hold the
/// value already are left alone.
pub(crate) fn set(name: &str, value: &str) -> Result<()> {
    write(&Path::new("/proc/sys/net").join(name), value)
}

/// As [`set`], for settings that only exist while a kernel module is there.
pub(crate) fn set_if_present(name: &str, value: &str) -> Result<()> {
    match set(name, value) {
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// The machine speaks IPv6.
pub(crate) fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6/conf").is_dir()
}

/// Lets packets of IPv6 through from link to link. A link of a host that forwards takes no router's word any
/// more unless told to (`accept_ra`, `ip-sysctl.rst`), and the host would lose its default route by and by.
pub(crate) fn forward_ipv6() -> Result<()> {
    if is_on("ipv6/conf/all/forwarding")? {
        return Ok(());
    }
    let links = fs::read_dir("/proc/sys/net/ipv6/conf").map_err(Error::io("list the settings of links"))?;
    for link in links.flatten() {
        let accept = link.path().join("accept_ra");
        if fs::read_to_string(&accept).is_ok_and(|value| value.trim() == "1") {
            write(&accept, "2")?;
        }
    }
    set("ipv6/conf/all/forwarding", "1")
}

/// Whether a switch of the `net.` family is there and on.
pub(crate) fn is_on(name: &str) -> Result<bool> {
    let path = Path::new("/proc/sys/net").join(name);
    match fs::read_to_string(&path) {
        Ok(value) => Ok(value.trim() != "0"),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io(format!("read {}", path.display()))(error)),
    }
}

/// Which of these settings are there and hold another value, in words.
pub(crate) fn differences(wanted: &[(&str, &str)]) -> Result<Vec<String>> {
    let mut differences = Vec::new();
    for (name, value) in wanted {
        let path = Path::new("/proc/sys/net").join(name);
        match fs::read_to_string(&path) {
            Ok(found) if found.trim() != *value => {
                differences.push(format!("sysctl: net/{name} is {}, not {value}", found.trim()));
            }
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io(format!("read {}", path.display()))(error)),
        }
    }
    Ok(differences)
}

/// Writes a setting as a user names it: `net.ipv4.ip_forward`, or with slashes where an interface's
/// name has dots in it.
pub(crate) fn set_key(key: &str, value: &str) -> Result<()> {
    write(&path(key)?, value)
}

fn write(path: &Path, value: &str) -> Result<()> {
    let action = || format!("set {} to {value:?}", path.display());
    let current = fs::read_to_string(path).map_err(Error::io(action()))?;
    if current.split_whitespace().eq(value.split_whitespace()) {
        return Ok(());
    }
    fs::write(path, value).map_err(Error::io(action()))
}

/// `sysctl`'s rule: the first separator decides; with dots as separators a slash stands for a dot.
fn path(key: &str) -> Result<PathBuf> {
    let separator = key.find(['.', '/']).map(|at| key.as_bytes()[at]);
    let swapped: String = if separator == Some(b'.') {
        key.chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect()
    } else {
        key.to_owned()
    };
    let parts: Vec<&str> = swapped.split('/').collect();
    let plain = parts.len() > 1 && parts.iter().all(|part| !part.is_empty() && *part != ".." && *part != ".");
    if !plain || parts[0] != "net" {
        return Err(Error::InvalidSysctl(key.to_owned()));
    }
    Ok(Path::new("/proc/sys").join(swapped))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stay_below_net() {
        let of = |key| path(key).map(|path| path.display().to_string()).ok();
        assert_eq!(of("net.ipv4.ip_forward").as_deref(), Some("/proc/sys/net/ipv4/ip_forward"));
        assert_eq!(of("net/ipv4/ip_forward").as_deref(), Some("/proc/sys/net/ipv4/ip_forward"));
        assert_eq!(
            of("net.ipv4.conf.eth0/7.arp_ignore").as_deref(),
            Some("/proc/sys/net/ipv4/conf/eth0.7/arp_ignore")
        );
        for bad in ["", "net", "net.", "kernel.hostname", "net/../kernel/hostname", "net.//.kernel", "net..x"]
        {
            assert_eq!(of(bad), None, "{bad}");
        }
    }
}
