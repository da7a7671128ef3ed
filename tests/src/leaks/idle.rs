//! What services and networks may leave on a node that goes on: nothing, once they are removed.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{bpftool, containerd_objects, mounts, pins};
use crate::process::processes;
use crate::{Node, wait_until};

/// Links that belong to the node: the harness's own, and those of gateway, published ports and the default
/// network.
const NODE_LINKS: [&str; 6] = ["lo", "eth0", "shoal-gw", "shoal-ing", "shoal-ingvx", "shoal0"];
/// nftables sets that name the default network's bridge.
const BRIDGE_SETS: [&str; 3] = ["bridges", "masqueraded", "open"];
/// nftables sets that name nodes and tunnels of the cluster.
const NODE_SETS: [&str; 7] = ["data_ports", "homes", "marks", "members", "returns", "tunnels", "zones"];
/// eBPF maps in which each entry belongs to a sandbox, a service or a network. The others hold facts of
/// the node, or forget what is old by themselves.
const OWNED_MAPS: [&str; 6] = ["bridges", "live", "ports", "sandboxes", "services", "slots"];

/// After everything was removed by its user, on a node that is still a member of its cluster.
#[track_caller]
pub(crate) fn assert_idle(node: &Node) {
    wait_until(crate::PATIENCE / 4, "nothing of removed services and networks is left", || {
        let found = traces(node);
        if found.is_empty() { Ok(()) } else { Err(format!("{}\n{}", found.join("\n"), node.log_tail())) }
    });
}

fn traces(node: &Node) -> Vec<String> {
    let mut found = containerd_objects(node);
    // Unlike `--containerd-namespace` of the daemon.
    let shims = processes(&format!(" -namespace {}", node.containerd_namespace), 0);
    let helpers = node.helpers("log-shim").into_iter().map(|pid| format!("log shim {pid}"));
    found.extend(shims.into_iter().map(|shim| format!("shim {} {}", shim.pid, shim.command)).chain(helpers));
    let mounts = mounts(node).into_iter();
    found.extend(mounts.map(|path| format!("mount {}", path.display())));
    let json = |text: &str| serde_json::from_str::<Value>(text).unwrap_or_default();
    let links = json(&node.netns.ip(&["-j", "link", "show"]));
    let names = links.as_array().into_iter().flatten().filter_map(|link| link["ifname"].as_str());
    found.extend(names.filter(|name| !NODE_LINKS.contains(name)).map(|name| format!("link {name}")));
    found.extend(elements(node));
    found.extend(entries(&node.tag()));
    found.extend(files(node));
    found.extend(cgroups(&node.containerd_namespace).into_iter().map(|path| path.display().to_string()));
    found
}

/// Elements of nftables sets and maps, and tunnels beyond that of the ingress network.
fn elements(node: &Node) -> Vec<String> {
    let output = node.netns.command("nft").args(["-j", "list", "ruleset"]).output().expect("nft runs");
    let ruleset: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let objects = ruleset["nftables"].as_array().into_iter().flatten();
    let sets = objects.filter_map(|object| object.get("set").or_else(|| object.get("map")));
    sets.filter_map(|set| {
        let (name, count) = (set["name"].as_str()?, set["elem"].as_array().map_or(0, Vec::len));
        let most = match name {
            "tunnels" => 1,
            name if BRIDGE_SETS.contains(&name) => 1,
            name if NODE_SETS.contains(&name) => usize::MAX,
            _ => 0,
        };
        (count > most).then(|| format!("{count} elements in nft {name}"))
    })
    .collect()
}

/// Entries of eBPF maps.
fn entries(tag: &str) -> Vec<String> {
    let layouts = pins(tag).into_iter().flat_map(below);
    let maps = layouts.flat_map(|layout| OWNED_MAPS.map(|name| layout.join("maps").join(name)));
    maps.filter(|map| map.exists())
        .filter_map(|map| {
            let dump = bpftool(&["map", "dump", "pinned", map.to_str()?]);
            let count = dump.as_array().map_or(0, Vec::len);
            (count > 0).then(|| format!("{count} entries in eBPF map {}", map.display()))
        })
        .collect()
}

/// Directories of containers and execs, network namespaces, what the resolver keeps.
fn files(node: &Node) -> Vec<String> {
    let (data, run) = (node.data_dir(), node.run_dir());
    let owned = [data.join("containers"), run.join("exec"), run.join("netns"), run.join("sandboxes")];
    let mut found: Vec<PathBuf> = owned.into_iter().flat_map(below).collect();
    let names = below(data.join("resolver/names"));
    // Published ports have no names, but a table, and so has the default network, once it is there.
    let has_default = node.netns.ip(&["-br", "link"]).contains("shoal0");
    if names.len() > 1 + usize::from(has_default) {
        found.extend(names);
    }
    found.into_iter().map(|path| format!("file {}", path.display())).collect()
}

fn below(directory: impl AsRef<Path>) -> Vec<PathBuf> {
    std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// The containers' cgroups, in whatever hierarchies there are.
fn cgroups(namespace: &str) -> Vec<PathBuf> {
    let hierarchies = below("/sys/fs/cgroup").into_iter().chain([PathBuf::from("/sys/fs/cgroup")]);
    let groups = hierarchies.flat_map(|hierarchy| below(hierarchy.join("shoal").join(namespace)));
    groups.filter(|path| path.is_dir()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// While a service runs all of this is there, so the check looks in the right places.
    #[test]
    fn what_a_running_service_has_is_found() {
        let node = Node::cluster();
        assert_eq!(traces(&node), Vec::<String>::new(), "a node that never ran anything");
        node.network("mynet");
        node.service("web", 1, &["--network", "mynet", "--publish", "8000:80"], &["serve"]);
        wait_until(crate::PATIENCE, "every kind of trace is found", || {
            let found = traces(&node).join("\n");
            let kinds = [
                "containerd container",
                "containerd task",
                "containerd snapshot",
                "shim ",
                "log shim ",
                "mount ",
                "link ",
                "elements in nft ports16",
                "elements in nft tunnels",
                "maps/bridges",
                "maps/sandboxes",
                "maps/services",
                "maps/slots",
                "data/containers/",
                "run/netns/",
                "resolver/names/",
                "/sys/fs/cgroup/",
            ];
            match kinds.iter().find(|kind| !found.contains(**kind)) {
                None => Ok(()),
                Some(kind) => Err(format!("no {kind} in:\n{found}")),
            }
        });
        node.finish();
    }
}
