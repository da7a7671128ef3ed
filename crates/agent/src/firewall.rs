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
    /// Where other nodes' VXLAN frames come in.
    data_ports: BTreeSet<u16>,
    is_manager: bool,
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
#[derive(Clone)]
struct Need {
    what: &'static str,
    packet: Packet<'static>,
}

/// Looks at the rules of the network namespace this process is in.
pub(crate) async fn look(config: &AgentConfig) -> Result<Vec<Obstacle>, String> {
    // Without elements: ours may have tens of thousands.
    let ruleset = nft(&["--terse", "list", "ruleset"]).await?;
    // Only there once the node is in a cluster.
    let data_ports = nft(&["list", "set", "inet", OWN, "data_ports"]).await.unwrap_or_default();
    let routes = std::fs::read_to_string("/proc/self/net/route").unwrap_or_default();
    let surroundings = Surroundings {
        link: way_out(&routes).unwrap_or("eth0").to_owned(),
        data_ports: elements(&data_ports),
        is_manager: is_manager(&config.data_dir),
    };
    Ok(obstacles(&ruleset, &surroundings))
}

/// Warns of what a foreign firewall drops, once each time it begins to, until the node closes.
pub(crate) async fn watch(node: Arc<Node>) {
    let mut known: BTreeSet<Obstacle> = BTreeSet::new();
    let mut in_force = node.tables.in_force();
    let looking = async {
        loop {
            if in_force.wait_for(|tables| tables.values().any(|table| table.config.ingress)).await.is_err() {
                return;
            }
            match look(&node.config).await {
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

fn elements(set: &Value) -> BTreeSet<u16> {
    let objects = set["nftables"].as_array().into_iter().flatten();
    let elements = objects.filter_map(|object| object["set"]["elem"].as_array()).flatten();
    elements.filter_map(|element| element.as_u64()?.try_into().ok()).collect()
}

fn is_manager(data_dir: &Path) -> bool {
    data_dir.join("cluster.redb").exists()
}

/// What the chains of others drop that has to pass.
fn obstacles(ruleset: &Value, surroundings: &Surroundings) -> Vec<Obstacle> {
    let ruleset = Ruleset::parse(ruleset);
    let mut dropped: BTreeMap<Base, Vec<Need>> = BTreeMap::new();
    for need in needs(surroundings) {
        let named = |link: &'static str| if link.is_empty() { surroundings.link.as_str() } else { link };
        let to = if need.packet.hook == Hook::Input { "" } else { named(need.packet.to) };
        let packet = Packet { from: named(need.packet.from), to, ..need.packet.clone() };
        for base in ruleset.dropping(&packet, OWN) {
            dropped.entry(base).or_default().push(need.clone());
        }
    }
    dropped.into_iter().map(|(base, needs)| obstacle(&ruleset, base, &needs)).collect()
}

/// All that has to pass; a link without a name is the one to the outside.
fn needs(surroundings: &Surroundings) -> Vec<Need> {
    let forwarded = |what, from, to, state, translated| {
        [false, true].map(|v6| {
            let packet =
                Packet { hook: Hook::Forward, v6, from, to, protocol: "tcp", port: None, state, translated };
            Need { what, packet }
        })
    };
    let taken_in = |what, protocol, port, state| Need {
        what,
        packet: Packet {
            hook: Hook::Input,
            v6: false,
            from: "",
            to: "",
            protocol,
            port: Some(port),
            state,
            translated: false,
        },
    };
    let mut needs = Vec::new();
    let published = "connections to published ports";
    needs.extend(forwarded(published, "", INGRESS, "new", true));
    needs.extend(forwarded(published, "", TUNNEL, "new", true));
    needs.extend(forwarded(
        "connections from other nodes to tasks of this one",
        TUNNEL,
        INGRESS,
        "new",
        false,
    ));
    needs.extend(forwarded("replies of tasks", INGRESS, "", "established", true));
    needs.extend(forwarded("replies of tasks", TUNNEL, "", "established", true));
    needs.extend(forwarded("replies of tasks", INGRESS, TUNNEL, "established", false));
    needs.extend(forwarded("containers' connections to the outside", GATEWAY, "", "new", false));
    needs.extend(forwarded("containers' connections to the outside", INGRESS, "", "new", false));
    let none_known = surroundings.data_ports.is_empty().then_some(DATA_PORT);
    for port in surroundings.data_ports.iter().copied().chain(none_known) {
        needs.push(taken_in("other nodes' VXLAN frames", "udp", port, "untracked"));
    }
    if surroundings.is_manager {
        needs.push(taken_in("the nodes' sessions with this manager", "tcp", MANAGER_PORT, "new"));
    }
    needs
}

fn obstacle(ruleset: &Ruleset<'_>, base: Base, needs: &[Need]) -> Obstacle {
    let mut what: Vec<&str> = needs.iter().map(|need| need.what).collect();
    what.dedup();
    let Base { family, table, chain } = &base;
    // Docker leaves this one to others, and asks it first.
    let docker = ruleset.has(&base, |name| name == "DOCKER-USER") && chain == "FORWARD";
    let place = if docker { "DOCKER-USER" } else { chain };
    let insert = |rule: String| format!("insert rule {family} {table} {place} {rule} counter accept");
    let mut rules: Vec<String> = Vec::new();
    for Need { packet, .. } in needs {
        let wanted = match packet.port {
            None => vec![insert("iifname \"shoal-*\"".to_owned()), insert("oifname \"shoal-*\"".to_owned())],
            Some(port) => vec![insert(format!("{} dport {port}", packet.protocol))],
        };
        rules.extend(wanted.into_iter().filter(|rule| !rules.contains(rule)).collect::<Vec<_>>());
    }
    let keep = if docker {
        "; to keep the rule, have it put there whenever the machine starts"
    } else if ruleset.has(&base, |name| name.starts_with("ufw")) {
        "; to keep the rule, put the like of it into ufw's before.rules and before6.rules"
    } else if table == "firewalld" {
        "; to keep it so, give firewalld the links shoal-gw, shoal-ing and shoal-ingvx in its zone trusted, and the \
         ports in the zone of the nodes' network"
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
