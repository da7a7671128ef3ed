//! Linux capabilities: Docker's default set and what users add to and drop from it.

use std::collections::BTreeSet;

use crate::{Error, Result};

/// What Docker grants unless told otherwise.
const DEFAULT: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// <linux/capability.h>, in its order: the index is the capability's number.
const ALL: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// Every capability that this process, and so its node, could give away.
pub(crate) fn all() -> BTreeSet<String> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    bounding(&status).unwrap_or_else(|| ALL.iter().map(|&name| name.to_owned()).collect())
}

/// The bounding set in a process's status: what the kernel lacks or a sandbox around the node has
/// dropped cannot be granted, and runc would fail over it.
fn bounding(status: &str) -> Option<BTreeSet<String>> {
    let bits = status.lines().find_map(|line| line.strip_prefix("CapBnd:"))?;
    let bits = u64::from_str_radix(bits.trim(), 16).ok()?;
    let granted = ALL.iter().enumerate().filter(|(number, _)| bits & (1 << number) != 0);
    Some(granted.map(|(_, &name)| name.to_owned()).collect())
}

/// The set that results from Docker's `--cap-add` and `--cap-drop`; `ALL` is understood in both.
pub(super) fn effective(add: &[String], drop: &[String]) -> Result<BTreeSet<String>> {
    let (add, drop) = (normalise(add)?, normalise(drop)?);
    let wants_all = |list: &[String]| list.iter().any(|name| name == "ALL");
    let mut set: BTreeSet<String> = match (wants_all(&add), wants_all(&drop)) {
        (true, _) => all(),
        (false, true) => BTreeSet::new(),
        (false, false) => DEFAULT.iter().map(|&name| name.to_owned()).collect(),
    };
    if !wants_all(&drop) {
        set.retain(|name| !drop.contains(name));
    }
    set.extend(add.into_iter().filter(|name| name != "ALL"));
    Ok(set)
}

/// `net_admin`, `NET_ADMIN` and `CAP_NET_ADMIN` are the same.
fn normalise(names: &[String]) -> Result<Vec<String>> {
    let one = |name: &String| {
        let upper = name.to_ascii_uppercase();
        if upper == "ALL" {
            return Ok(upper);
        }
        let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
        if ALL.contains(&full.as_str()) {
            Ok(full)
        } else {
            Err(Error::InvalidConfig(format!("invalid capability: {name:?}")))
        }
    };
    names.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(add: &[&str], drop: &[&str]) -> BTreeSet<String> {
        let owned = |list: &[&str]| list.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        effective(&owned(add), &owned(drop)).unwrap()
    }

    #[test]
    fn adding_and_dropping_follow_docker() {
        assert_eq!(set(&[], &[]).len(), 14);
        assert!(set(&["net_admin"], &[]).contains("CAP_NET_ADMIN"));
        assert!(!set(&[], &["CAP_CHOWN"]).contains("CAP_CHOWN"));
        assert_eq!(set(&["CHOWN"], &["ALL"]), BTreeSet::from(["CAP_CHOWN".to_owned()]));
        assert!(set(&["ALL"], &["MKNOD"]).is_superset(&set(&["CHOWN"], &["ALL"])));
        assert!(!set(&["ALL"], &["MKNOD"]).contains("CAP_MKNOD"));
        assert!(effective(&["NO_SUCH".to_owned()], &[]).is_err());
    }

    #[test]
    fn nothing_is_granted_that_the_node_lacks() {
        let bounding = bounding("Name:\tx\nCapBnd:\t0000000000000021\n").unwrap();
        assert_eq!(bounding, BTreeSet::from(["CAP_CHOWN".to_owned(), "CAP_KILL".to_owned()]));
    }
}
