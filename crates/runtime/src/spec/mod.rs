//! The OCI runtime specification of a container, with Docker's defaults.
//!
//! Pure, but for [`Kernel::probe`] and [`all_capabilities`], which ask the kernel what it has.
//!
//! Format: <https://github.com/opencontainers/runtime-spec/blob/v1.0.2/config.md>.

mod capabilities;
mod identity;
mod mounts;
mod process;
mod seccomp;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use shoal_model::{Mount, MountKind, Propagation, Resources, Ulimit};

pub(crate) use capabilities::all as all_capabilities;
pub(crate) use identity::{Identity, resolve as resolve_identity};
pub(crate) use process::{argv, directory, environment, hostname, merge as merge_environment, stop_signal};

use crate::{ContainerConfig, Error, Result};

/// What Docker hides from containers.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
/// What Docker lets them read only.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
/// The period in which CPU time is handed out, in microseconds (the kernel's and Docker's default).
const CPU_PERIOD: u64 = 100_000;

/// What the machine's kernel offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// Only cgroup2, as opposed to version 1 or both.
    pub(crate) unified: bool,
    /// Memory limits can include swap.
    pub(crate) swap_limit: bool,
}

impl Kernel {
    /// Asks the cgroup file systems.
    pub(crate) fn probe() -> Self {
        let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        let swap_limit = unified || Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists();
        Self { unified, swap_limit }
    }
}

/// All that is known when a container is made.
pub(crate) struct Input<'a> {
    pub(crate) config: &'a ContainerConfig,
    pub(crate) argv: &'a [String],
    /// Where the program is that starts this one and is the container's first process.
    pub(crate) init: Option<&'a Path>,
    pub(crate) env: &'a [String],
    pub(crate) directory: &'a str,
    pub(crate) hostname: &'a str,
    pub(crate) identity: &'a Identity,
    /// Path in the cgroup tree.
    pub(crate) cgroup: &'a str,
    /// Where the files to be mounted over `/etc/hosts` and the like are.
    pub(crate) dir: &'a Path,
    /// Where volumes are.
    pub(crate) data_dir: &'a Path,
    pub(crate) netns: PathBuf,
    pub(crate) kernel: Kernel,
    /// Rust's name of it.
    pub(crate) architecture: &'a str,
}

/// The specification, or why there is none for such a container.
pub(crate) fn build(input: &Input<'_>) -> Result<Value> {
    let spec = &input.config.spec;
    let capabilities = capabilities::effective(&spec.capability_add, &spec.capability_drop)?;
    let seccomp = seccomp::filter(input.architecture, &capabilities)
        .map_err(|error| Error::InvalidConfig(format!("system call filter: {error}")))?;
    let mut namespaces = vec![
        json!({ "type": "mount" }),
        json!({ "type": "uts" }),
        json!({ "type": "pid" }),
        json!({ "type": "ipc" }),
        json!({ "type": "network", "path": input.netns }),
    ];
    if input.kernel.unified {
        namespaces.push(json!({ "type": "cgroup" }));
    }
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": spec.tty,
            "user": user(input.identity),
            "args": first_process(input),
            "env": input.env,
            "cwd": input.directory,
            "capabilities": capability_sets(&capabilities, input.identity.uid == 0),
            "rlimits": rlimits(&spec.ulimits)?,
            "oomScoreAdj": 0,
        },
        "root": { "path": "rootfs", "readonly": spec.read_only },
        "hostname": input.hostname,
        "mounts": mounts::list(input)?,
        "linux": {
            "namespaces": namespaces,
            "cgroupsPath": input.cgroup,
            "resources": resources(&input.config.resources, input.kernel),
            "sysctl": sysctls(input)?,
            "seccomp": seccomp,
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
            "rootfsPropagation": root_propagation(&spec.mounts),
        },
    }))
}

/// How the container's root takes part in what its mounts share, as in Docker.
fn root_propagation(mounts: &[Mount]) -> Option<&'static str> {
    let any = |wanted: [Propagation; 2]| {
        mounts.iter().any(|mount| match &mount.kind {
            MountKind::Bind { propagation, .. } => wanted.contains(propagation),
            _ => false,
        })
    };
    match () {
        () if any([Propagation::Shared, Propagation::RShared]) => Some("shared"),
        () if any([Propagation::Slave, Propagation::RSlave]) => Some("rslave"),
        () => None,
    }
}

/// The container's program, or the init that starts it.
fn first_process<'a>(input: &'a Input<'_>) -> Vec<&'a str> {
    let init: &[&str] = if input.init.is_some() { &[mounts::INIT, "--"] } else { &[] };
    init.iter().copied().chain(input.argv.iter().map(String::as_str)).collect()
}

/// What an exec changes of its container's process.
pub(crate) struct ExecInput<'a> {
    pub(crate) argv: &'a [String],
    pub(crate) env: &'a [String],
    /// Empty is the container's.
    pub(crate) directory: &'a str,
    pub(crate) identity: Option<&'a Identity>,
    pub(crate) tty: bool,
    pub(crate) privileged: bool,
}

/// The process of an exec: the container's own (`container` is its specification), changed where
/// the exec says so.
pub(crate) fn exec_process(container: &Value, exec: &ExecInput<'_>) -> Value {
    let mut process = container["process"].clone();
    process["args"] = json!(exec.argv);
    process["env"] = json!(exec.env);
    process["terminal"] = json!(exec.tty);
    if !exec.directory.is_empty() {
        process["cwd"] = json!(exec.directory);
    }
    if let Some(identity) = exec.identity {
        process["user"] = user(identity);
    }
    let uid = process["user"]["uid"].as_u64().unwrap_or_default();
    let capabilities = if exec.privileged {
        all_capabilities()
    } else {
        let bounding = container["process"]["capabilities"]["bounding"].as_array();
        bounding.into_iter().flatten().filter_map(|name| name.as_str().map(str::to_owned)).collect()
    };
    process["capabilities"] = capability_sets(&capabilities, uid == 0);
    process
}

fn user(identity: &Identity) -> Value {
    json!({ "uid": identity.uid, "gid": identity.gid, "additionalGids": identity.groups })
}

/// Users other than root hold none until a file or exec gives them some, as after execve(2).
/// Nothing is inheritable (CVE-2022-24769).
fn capability_sets(set: &BTreeSet<String>, root: bool) -> Value {
    if root {
        json!({ "bounding": set, "effective": set, "permitted": set })
    } else {
        json!({ "bounding": set })
    }
}

fn rlimits(ulimits: &[Ulimit]) -> Result<Vec<Value>> {
    const NAMES: [&str; 16] = [
        "as",
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ];
    let one = |limit: &Ulimit| {
        let name = limit.name.to_ascii_lowercase();
        if !NAMES.contains(&name.as_str()) {
            return Err(Error::InvalidConfig(format!("invalid ulimit type: {}", limit.name)));
        }
        // -1 is unlimited, which is the kernel's largest number.
        let number = |value: i64| u64::try_from(value).unwrap_or(u64::MAX);
        let (soft, hard) = (number(limit.soft), number(limit.hard));
        if soft > hard {
            return Err(Error::InvalidConfig(format!(
                "ulimit soft limit must be less than or equal to hard limit: {} > {}",
                limit.soft, limit.hard
            )));
        }
        Ok(json!({ "type": format!("RLIMIT_{}", name.to_ascii_uppercase()), "soft": soft, "hard": hard }))
    };
    ulimits.iter().map(one).collect()
}

fn resources(wanted: &Resources, kernel: Kernel) -> Value {
    let mut resources = json!({ "devices": devices() });
    if wanted.limit_memory > 0 {
        resources["memory"] = json!({ "limit": wanted.limit_memory });
        if kernel.swap_limit {
            // Memory and swap together; Docker allows as much swap as memory.
            resources["memory"]["swap"] = json!(wanted.limit_memory.saturating_mul(2).min(i64::MAX as u64));
        }
    }
    if wanted.limit_nano_cpus > 0 {
        let quota = wanted.limit_nano_cpus.saturating_mul(CPU_PERIOD) / 1_000_000_000;
        // The kernel takes no quota below a millisecond.
        resources["cpu"] = json!({ "period": CPU_PERIOD, "quota": quota.max(1000) });
    }
    if wanted.limit_pids > 0 {
        resources["pids"] = json!({ "limit": wanted.limit_pids });
    }
    resources
}

/// Nothing but the harmless devices; runc makes the nodes themselves.
fn devices() -> Value {
    let allow = |major: u32, minor: Option<u32>| json!({ "allow": true, "type": "c", "major": major, "minor": minor, "access": "rwm" });
    let any_node = |kind: &str| json!({ "allow": true, "type": kind, "access": "m" });
    json!([
        { "allow": false, "access": "rwm" },
        any_node("c"),
        any_node("b"),
        allow(1, Some(3)), // null
        allow(1, Some(5)), // zero
        allow(1, Some(7)), // full
        allow(1, Some(8)), // random
        allow(1, Some(9)), // urandom
        allow(5, Some(0)), // tty
        allow(5, Some(1)), // console
        allow(5, Some(2)), // ptmx
        allow(136, None),  // pts
    ])
}

/// Docker's defaults for a network namespace of the container's own, then the user's.
fn sysctls(input: &Input<'_>) -> Result<Value> {
    let on_host = |name: &&String| input.config.netns.is_none() && name.starts_with("net.");
    if let Some(name) = input.config.spec.sysctls.keys().find(on_host) {
        let text = format!("sysctl {name:?} is not allowed on the host network: it would be the node's");
        return Err(Error::InvalidConfig(text));
    }
    let mut sysctls = serde_json::Map::new();
    if input.config.netns.is_some() {
        sysctls.insert("net.ipv4.ip_unprivileged_port_start".to_owned(), json!("0"));
        sysctls.insert("net.ipv4.ping_group_range".to_owned(), json!("0 2147483647"));
    }
    sysctls.extend(input.config.spec.sysctls.iter().map(|(name, value)| (name.clone(), json!(value))));
    Ok(Value::Object(sysctls))
}

#[cfg(test)]
mod tests;
