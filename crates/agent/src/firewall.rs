//! Other programs' firewalls on this node: their rules are theirs, and honoured. What they drop that the cluster's
//! traffic needs is found, and told with the rule that helps. Rules of iptables' old kernel interface (`iptables-legacy`)
//! are not seen: nft does not list them.

mod rules;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use self::rules::{Base, Hook, Packet, Ruleset};
use crate::AgentConfig;
use crate::node::Node;
use crate::tables::InForce;

/// The name of our own tables.
const OWN: &str = "shoal";
/// The links between which the node forwards for the cluster.
const GATEWAY: &str = "shoal-gw";
const INGRESS: &str = "shoal-ing";
const TUNNEL: &str = "shoal-ingvx";
const DATA_PORT: u16 = 4789;
const MANAGER_PORT: u16 = 2377;
/// Between two looks of the daemon.
const PERIOD: Duration = Duration::from_secs(60);

/// What of this node concerns its firewall.
#[derive(Debug, Clone)]
struct Surroundings {
    /// The link to the outside.
    link: String,
    /// The node's own bridges that lead there, and whether over IPv6 too.
    bridges: BTreeMap<String, bool>,
    /// Where other nodes' VXLAN frames come in.
    data_ports: BTreeSet<u16>,
    is_manager: bool,
    for_cluster: bool,
}

/// A foreign chain that drops what the cluster needs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Obstacle {
    /// Which, and what it drops.
    pub detail: String,
    /// A command that makes it let that pass, for now.
    pub remedy: String,
}

/// A packet that has to pass, and what it stands for.
struct Need<'a> {
    what: &'static str,
    packet: Packet<'a>,
    /// The links that a rule lets pass which helps, in nft's words.
    links: &'a str,
}

/// Looks at the rules of the network namespace this process is in.
///
/// `for_cluster`: also for what a cluster needs, be the node in one or not yet.
pub(crate) async fn look(config: &AgentConfig, for_cluster: bool) -> Result<Vec<Obstacle>, String> {
    // Without elements: ours may have tens of thousands.
    let ruleset = nft(&["--terse", "list", "ruleset"]).await?;
    // Only there once the node has made something that needs them.
    let set = async |name| nft(&["list", "set", "inet", OWN, name]).await.unwrap_or_default();
    let data_ports = numbers(&set("data_ports").await);
    let (bridges, internal) = (names(&set("bridges").await), names(&set("internal").await));
    let with_v6 = std::fs::read_to_string("/proc/self/net/if_inet6").unwrap_or_default();
    let has_v6 = |link: &str| with_v6.lines().any(|line| line.split_whitespace().last() == Some(link));
    let routes = std::fs::read_to_string("/proc/self/net/route").unwrap_or_default();
    let surroundings = Surroundings {
        link: way_out(&routes).unwrap_or("eth0").to_owned(),
        bridges: bridges.difference(&internal).map(|link| (link.clone(), has_v6(link))).collect(),
        data_ports,
        is_manager: is_manager(&config.data_dir),
        for_cluster,
    };
    Ok(obstacles(&ruleset, &surroundings))
}

/// Warns of what a foreign firewall drops, once each time it begins to, until the node closes.
pub(crate) async fn watch(node: Arc<Node>) {
    let mut known: BTreeSet<Obstacle> = BTreeSet::new();
    let mut in_force = node.tables.in_force();
    let looking = async {
        loop {
            let forwards = |tables: &InForce| tables.values().any(|table| !table.config.internal);
            if in_force.wait_for(forwards).await.is_err() {
                return;
            }
            match look(&node.config, node.membership().is_some()).await {
                Ok(found) => {
                    let found: BTreeSet<Obstacle> = found.into_iter().collect();
                    for Obstacle { detail, remedy } in found.difference(&known) {
                        tracing::warn!(
                            detail,
                            remedy,
                            "another program's firewall drops what the cluster needs"
                        );
                    }
                    known = found;
                }
                Err(error) => tracing::debug!(error, "cannot look at foreign firewalls"),
            }
            tokio::time::sleep(PERIOD).await;
        }
    };
    node.closing.run_until_cancelled(looking).await;
}

async fn nft(arguments: &[&str]) -> Result<Value, String> {
    let mut command = tokio::process::Command::new("nft");
    let output = command.arg("--json").args(arguments).stdin(Stdio::null()).output().await;
    let output = output.map_err(|error| format!("nft: {error}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    serde_json::from_slice(&output.stdout).map_err(|error| format!("nft: {error}"))
}

/// The link of the default route, of the kernel's table of routes.
fn way_out(routes: &str) -> Option<&str> {
    let mut routes = routes.lines().skip(1).map(str::split_whitespace);
    routes.find_map(|mut fields| {
        let (link, destination) = (fields.next()?, fields.next()?);
        (destination == "00000000").then_some(link)
    })
}

fn elements(set: &Value) -> impl Iterator<Item = &Value> {
    let objects = set["nftables"].as_array().into_iter().flatten();
    objects.filter_map(|object| object["set"]["elem"].as_array()).flatten()
}

fn numbers(set: &Value) -> BTreeSet<u16> {
    elements(set).filter_map(|element| element.as_u64()?.try_into().ok()).collect()
}

fn names(set: &Value) -> BTreeSet<String> {
    elements(set).filter_map(|element| element.as_str().map(str::to_owned)).collect()
}

fn is_manager(data_dir: &Path) -> bool {
    data_dir.join("cluster.redb").exists()
}

/// What the chains of others drop that has to pass.
fn obstacles(ruleset: &Value, surroundings: &Surroundings) -> Vec<Obstacle> {
    let ruleset = Ruleset::parse(ruleset);
    let needs = needs(surroundings);
    let mut dropped: BTreeMap<Base, Vec<&Need<'_>>> = BTreeMap::new();
    for need in &needs {
        for base in ruleset.dropping(&need.packet, OWN) {
            dropped.entry(base).or_default().push(need);
        }
    }
    dropped.into_iter().map(|(base, needs)| obstacle(&ruleset, base, &needs)).collect()
}

/// A connection that the node forwards, or an answer to one.
fn forwarded<'a>(from: &'a str, to: &'a str, state: &'static str, translated: bool) -> Packet<'a> {
    Packet { hook: Hook::Forward, v6: false, from, to, protocol: "tcp", port: None, state, translated }
}

/// All that has to pass.
fn needs(surroundings: &Surroundings) -> Vec<Need<'_>> {
    let out = surroundings.link.as_str();
    let mut needs = Vec::new();
    for v6 in [false, true] {
        let mut need = |links, what, packet| {
            needs.push(Need { what, links, packet: Packet { v6, ..packet } });
        };
        let ours = "shoal-*";
        if surroundings.for_cluster {
            need(ours, PUBLISHED, forwarded(out, INGRESS, "new", true));
            need(ours, PUBLISHED, forwarded(out, TUNNEL, "new", true));
            let between = "connections from other nodes to tasks of this one";
            need(ours, between, forwarded(TUNNEL, INGRESS, "new", false));
            need(ours, REPLIES, forwarded(INGRESS, out, "established", true));
            need(ours, REPLIES, forwarded(TUNNEL, out, "established", true));
            need(ours, REPLIES, forwarded(INGRESS, TUNNEL, "established", false));
            need(ours, OUTGOING, forwarded(INGRESS, out, "new", false));
        }
        for (bridge, _) in surroundings.bridges.iter().filter(|(_, has_v6)| **has_v6 || !v6) {
            need(bridge, PUBLISHED, forwarded(out, bridge, "new", true));
            need(bridge, REPLIES, forwarded(bridge, out, "established", true));
            need(bridge, OUTGOING, forwarded(bridge, out, "new", false));
        }
        // Containers on no bridge have the gateway link, in a cluster or not.
        need(ours, OUTGOING, forwarded(GATEWAY, out, "new", false));
    }
    if surroundings.for_cluster {
        needs.extend(taken_in(surroundings));
    }
    needs
}

const PUBLISHED: &str = "connections to published ports";
const REPLIES: &str = "replies of tasks";
const OUTGOING: &str = "containers' connections to the outside";

/// What comes to the node itself.
fn taken_in(surroundings: &Surroundings) -> Vec<Need<'_>> {
    let need = |what, protocol, port, state| {
        let packet = Packet {
            hook: Hook::Input,
            protocol,
            port: Some(port),
            ..forwarded(&surroundings.link, "", state, false)
        };
        Need { what, packet, links: "" }
    };
    let none_known = surroundings.data_ports.is_empty().then_some(DATA_PORT);
    let ports = surroundings.data_ports.iter().copied().chain(none_known);
    let mut needs: Vec<_> =
        ports.map(|port| need("other nodes' VXLAN frames", "udp", port, "untracked")).collect();
    if surroundings.is_manager {
        needs.push(need("the nodes' sessions with this manager", "tcp", MANAGER_PORT, "new"));
    }
    needs
}

fn obstacle(ruleset: &Ruleset<'_>, base: Base, needs: &[&Need<'_>]) -> Obstacle {
    let mut what: Vec<&str> = Vec::new();
    needs.iter().for_each(|need| {
        if !what.contains(&need.what) {
            what.push(need.what)
        }
    });
    let Base { family, table, chain } = &base;
    // Docker leaves this one to others, and asks it first.
    let docker = ruleset.has(&base, |name| name == "DOCKER-USER") && chain == "FORWARD";
    let place = if docker { "DOCKER-USER" } else { chain };
    let insert = |rule: String| format!("insert rule {family} {table} {place} {rule} counter accept");
    let mut rules: Vec<String> = Vec::new();
    for Need { packet, links, .. } in needs {
        let wanted = match packet.port {
            None => ["iifname", "oifname"].map(|key| insert(format!("{key} \"{links}\""))).into(),
            Some(port) => vec![insert(format!("{} dport {port}", packet.protocol))],
        };
        rules.extend(wanted.into_iter().filter(|rule| !rules.contains(rule)).collect::<Vec<_>>());
    }
    let keep = if docker {
        "; to keep the rule, have it put there whenever the machine starts"
    } else if ruleset.has(&base, |name| name.starts_with("ufw")) {
        "; to keep the rule, put the like of it into ufw's before.rules and before6.rules"
    } else if table == "firewalld" {
        "; to keep it so, give firewalld the links shoal-gw, shoal-ing and shoal-ingvx and the bridges in its zone \
         trusted, and the ports in the zone of the nodes' network"
    } else {
        "; to keep the rule, put it into that firewall's configuration"
    };
    Obstacle {
        detail: format!("chain {chain} of table {family} {table} drops {}{keep}", what.join(", ")),
        remedy: format!("nft '{}'", rules.join("; ")),
    }
}

#[cfg(test)]
mod tests;
