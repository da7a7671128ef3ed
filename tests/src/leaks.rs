//! What a node may leave behind: nothing.

mod idle;

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::process::processes;
use crate::{Node, wait_until};

pub(crate) use idle::assert_idle;

/// Kernel identities of this node's pinned programs.
pub(crate) fn programs(tag: &str) -> Vec<u64> {
    if tag.is_empty() {
        return Vec::new();
    }
    let links = bpftool(&["link", "show"]);
    let pinned_here = |link: &&Value| {
        link["pinned"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|path| path.as_str().is_some_and(|p| p.contains(tag)))
    };
    links
        .as_array()
        .into_iter()
        .flatten()
        .filter(pinned_here)
        .filter_map(|link| link["prog_id"].as_u64())
        .collect()
}

fn bpftool(arguments: &[&str]) -> Value {
    let output = Command::new("bpftool").args(["-j", "-f"]).args(arguments).output();
    let output = output.expect("bpftool runs: apt-get install bpftool");
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

/// Every trace of a stopped node that left its cluster; an empty list is what is wanted.
fn traces(node: &Node, programs: &[u64]) -> Vec<String> {
    let directory = node.directory.path().display().to_string();
    let mut found = Vec::new();
    for process in processes(&directory, 0).into_iter().chain(processes("", node.netns.inode())) {
        // A containerd of the node's own is the test's, not the node's.
        if !process.command.starts_with("containerd ") {
            found.push(format!("process {} {}", process.pid, process.command));
        }
    }
    for process in processes(&format!("-namespace {}", node.containerd_namespace), 0) {
        found.push(format!("shim {} {}", process.pid, process.command));
    }
    found.extend(mounts(node).into_iter().map(|path| format!("mount {}", path.display())));
    found.extend(links(node));
    found.extend(rules(node));
    found.extend(pins(&node.tag()).into_iter().map(|path| format!("pin {}", path.display())));
    let loaded = bpftool(&["prog", "show"]);
    let loaded: Vec<u64> =
        loaded.as_array().into_iter().flatten().filter_map(|program| program["id"].as_u64()).collect();
    found.extend(programs.iter().filter(|id| loaded.contains(id)).map(|id| format!("eBPF program {id}")));
    found
}

/// Links of the node's namespace that the harness did not make.
fn links(node: &Node) -> Vec<String> {
    let text = node.netns.ip(&["-j", "link", "show"]);
    let links: Value = serde_json::from_str(&text).unwrap();
    let names = links.as_array().into_iter().flatten().filter_map(|link| link["ifname"].as_str());
    names.filter(|name| !matches!(*name, "lo" | "eth0")).map(|name| format!("link {name}")).collect()
}

/// Tables, routing rules and routes of the node's namespace that the harness did not make.
fn rules(node: &Node) -> Vec<String> {
    let mut found = Vec::new();
    let nft = node.netns.command("nft").args(["list", "tables"]).output().expect("nft runs");
    found.extend(String::from_utf8_lossy(&nft.stdout).lines().map(|table| format!("nft {table}")));
    let kernels = ["from all lookup local", "from all lookup main", "from all lookup default"];
    for line in node.netns.ip(&["rule", "show"]).lines() {
        if !kernels.iter().any(|known| line.trim_end().ends_with(known)) {
            found.push(format!("ip rule {line}"));
        }
    }
    for line in node.netns.ip(&["route", "show", "table", "all"]).lines() {
        if !line.contains("dev eth0") && !line.contains("dev lo") {
            found.push(format!("route {line}"));
        }
    }
    found
}

fn containerd_objects(node: &Node) -> Vec<String> {
    let mut found = Vec::new();
    for (what, arguments) in
        [("container", &["containers", "ls", "-q"][..]), ("task", &["tasks", "ls", "-q"])]
    {
        let listed = node.ctr(arguments);
        assert!(listed.code == 0, "{listed}");
        found.extend(listed.stdout.lines().map(|id| format!("containerd {what} {id}")));
    }
    let snapshots = node.ctr(&["snapshots", "ls"]).ok();
    let active = snapshots.lines().filter(|line| line.split_whitespace().last() == Some("Active"));
    found.extend(active.map(|line| format!("containerd snapshot {line}")));
    found
}

/// Things of the node in bpffs.
fn pins(tag: &str) -> Vec<PathBuf> {
    if tag.is_empty() {
        return Vec::new();
    }
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    let places = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let (_, place, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "bpf").then(|| PathBuf::from(place))
    });
    places
        .flat_map(|place| std::fs::read_dir(place).into_iter().flatten().flatten())
        .map(|entry| entry.path())
        .filter(|path| path.to_string_lossy().contains(tag))
        .collect()
}

/// Removes what a reboot would: pins do not survive it.
pub fn unpin(tag: &str) {
    for path in pins(tag) {
        let _ = std::fs::remove_dir_all(path);
    }
}

fn mounts_below(directory: &Path) -> Vec<PathBuf> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    // Field 5 of a line is the mount point (proc(5)).
    let places = text.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    places.filter(|place| place.starts_with(directory)).collect()
}

/// Mounts below the node's directory that the harness did not make.
fn mounts(node: &Node) -> Vec<PathBuf> {
    let mut mounts = mounts_below(node.directory.path());
    mounts.retain(|place| *place != node.disk());
    mounts
}

/// Takes away what a reboot would: mounts do not survive it either.
pub fn unmount_below(directory: &Path) {
    for place in mounts_below(directory).into_iter().rev() {
        let _ = nix::mount::umount2(&place, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// After everything was removed by its user and the daemon stopped. The kernel takes namespaces and
/// what hangs on them down in the background, so this polls.
pub(crate) fn assert_clean(node: &Node, programs: &[u64]) {
    wait_until(crate::PATIENCE / 4, "nothing of the node is left", || {
        let found = [traces(node, programs), containerd_objects(node)].concat();
        if found.is_empty() { Ok(()) } else { Err(format!("{}\n{}", found.join("\n"), node.log_tail())) }
    });
}

/// After `shoal reset`: not even an image or the containerd namespace.
pub(crate) fn assert_reset(node: &Node) {
    wait_until(crate::PATIENCE / 4, "nothing of the node is left after reset", || {
        let mut found = traces(node, &[]);
        let namespaces = node.ctr(&["namespaces", "ls", "-q"]).ok();
        let own = namespaces.lines().filter(|name| *name == node.containerd_namespace);
        found.extend(own.map(|name| format!("containerd namespace {name}")));
        if found.is_empty() { Ok(()) } else { Err(found.join("\n")) }
    });
}

/// Takes down a node whose test failed, without trusting anything of ours.
pub(crate) fn remove_by_force(node: &Node) {
    node.kill_everything();
    unpin(&node.tag());
    unmount_below(node.directory.path());
    for (list, remove) in [
        (&["tasks", "ls", "-q"][..], &["tasks", "delete", "--force"][..]),
        (&["containers", "ls", "-q"], &["containers", "delete"]),
        (&["images", "ls", "-q"], &["images", "remove"]),
    ] {
        let listed = node.ctr(list);
        let names: Vec<&str> = listed.stdout.lines().collect();
        if !names.is_empty() {
            node.ctr(&[remove, &names[..]].concat());
        }
    }
    remove_snapshots(node);
    node.ctr(&["content", "prune", "references"]);
    node.ctr(&["namespaces", "remove", &node.containerd_namespace]);
}

/// Children first: a parent cannot go before them.
fn remove_snapshots(node: &Node) {
    loop {
        let listed = node.ctr(&["snapshots", "ls"]).stdout;
        let names: Vec<&str> =
            listed.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
        let removed = names.iter().filter(|name| node.ctr(&["snapshots", "rm", name]).code == 0).count();
        if removed == 0 {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;
    use std::sync::Arc;

    use nix::mount::{MsFlags, mount};

    use super::*;
    use crate::NodeOptions;

    /// A check that finds nothing proves nothing until it was seen to find something.
    #[test]
    fn every_kind_of_trace_is_found() {
        let node = Node::bare(Arc::default(), 1, NodeOptions::default());
        assert_eq!(traces(&node, &[]), Vec::<String>::new(), "a node that never ran");

        node.netns.ip(&["link", "add", "left", "type", "bridge"]);
        node.netns.ip(&["rule", "add", "fwmark", "7", "lookup", "77"]);
        node.netns.ip(&["route", "add", "10.9.9.0/24", "via", "192.0.2.1", "table", "77"]);
        node.netns.ip(&["link", "set", "left", "up"]);
        node.netns.ip(&["addr", "add", "10.8.8.1/24", "dev", "left"]);
        assert!(node.netns.command("nft").args(["add", "table", "ip", "left"]).status().unwrap().success());
        let place = node.path("left");
        std::fs::create_dir(&place).unwrap();
        mount(Some(&place), &place, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        let mut inside = node.netns.command("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
        let mut named = Command::new("tail")
            .arg("-f")
            .arg(node.path("resolv.conf"))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        wait_until(crate::PATIENCE, "every plant is found", || {
            let found = traces(&node, &[]).join("\n");
            let plants = [
                "link left",
                "ip rule",
                "route 10.8.8.0/24",
                "nft table ip left",
                "mount /tmp",
                "sleep 60",
                "tail -f",
            ];
            match plants.iter().find(|plant| !found.contains(**plant)) {
                None => Ok(()),
                Some(plant) => Err(format!("{plant} is not in:\n{found}")),
            }
        });
        for child in [&mut inside, &mut named] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}
