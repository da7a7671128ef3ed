//! Resolver configuration files: the node's, which says where to forward, and the container's, which
//! points at us (`resolv.conf(5)`; Docker's `libnetwork/internal/resolvconf`).

use std::net::IpAddr;
use std::path::Path;

use shoal_model::DnsConfig;

use crate::LISTEN_ADDRESS;

/// Where systemd-resolved lists the real servers behind its own stub.
pub const SYSTEMD_RESOLVED_FILE: &str = "/run/systemd/resolve/resolv.conf";
/// The file whose only server may be systemd-resolved's stub.
pub const DEFAULT_FILE: &str = "/etc/resolv.conf";

/// A parsed `resolv.conf`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResolvConf {
    /// In order; ones that are no plain address (`fe80::1%eth0`) are left out.
    pub nameservers: Vec<IpAddr>,
    /// Of the last `search` or `domain` line.
    pub search: Vec<String>,
    /// Of all `options` lines.
    pub options: Vec<String>,
    /// Directives we do not know, kept as they are.
    pub others: Vec<String>,
}

/// What a container gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerFile {
    /// The text of its `/etc/resolv.conf`.
    pub text: String,
    /// For [`crate::feed::SandboxView::upstreams`]: the servers its user chose, empty for the node's.
    pub upstreams: Vec<IpAddr>,
    /// For [`crate::feed::SandboxView::ndots_set`].
    pub ndots_set: bool,
}

impl ResolvConf {
    /// Reads the text of a `resolv.conf`. Nothing in it is an error: what cannot be used is passed over.
    pub fn parse(text: &str) -> Self {
        let mut file = Self::default();
        for line in text.lines() {
            let line = line.trim();
            let mut words = line.split_ascii_whitespace().take_while(|word| !word.starts_with(['#', ';']));
            let Some(directive) = words.next() else { continue };
            match directive {
                "nameserver" => {
                    file.nameservers.extend(words.next().and_then(|word| word.parse::<IpAddr>().ok()))
                }
                "search" | "domain" => file.search = words.map(str::to_owned).collect(),
                "options" => file.options.extend(words.map(str::to_owned)),
                _ => file.others.push(line.to_owned()),
            }
        }
        file
    }

    /// The servers to forward to: never ourselves.
    pub fn upstreams(&self) -> Vec<IpAddr> {
        self.nameservers.iter().copied().filter(|server| *server != IpAddr::V4(LISTEN_ADDRESS)).collect()
    }

    /// The only server is systemd-resolved's stub, which forwards to the servers of another file.
    pub fn is_systemd_stub(&self) -> bool {
        matches!(&self.nameservers[..], [IpAddr::V4(only)] if only.octets() == [127, 0, 0, 53])
    }
}

/// Writes a container's file: one server, ourselves; search domains and options the user's if there
/// are any, the node's otherwise, never mixed; `ndots:0` unless somebody chose another.
pub fn container_file(node: &ResolvConf, node_path: &Path, user: &DnsConfig) -> ContainerFile {
    let search = if user.search.is_empty() { &node.search } else { &user.search };
    let search: Vec<&str> = search.iter().map(String::as_str).filter(|domain| *domain != ".").collect();
    let (chosen, source) =
        if user.options.is_empty() { (&node.options, "host") } else { (&user.options, "override") };
    let mut options: Vec<&str> = chosen.iter().map(String::as_str).filter(|word| !bad_ndots(word)).collect();
    let ndots_set = options.iter().any(|word| word.starts_with("ndots:"));
    if !ndots_set {
        options.push("ndots:0");
    }

    let mut text = format!("nameserver {LISTEN_ADDRESS}\n");
    if !search.is_empty() {
        text += &format!("search {}\n", search.join(" "));
    }
    text += &format!("options {}\n", options.join(" "));
    for line in &node.others {
        text += &format!("{line}\n");
    }
    text += &trailer(node, node_path, user, if ndots_set { source } else { "internal" });
    let upstreams = user.nameservers.iter().copied().filter(|server| *server != IpAddr::V4(LISTEN_ADDRESS));
    ContainerFile { text, upstreams: upstreams.collect(), ndots_set }
}

/// The file of a container in the node's own network namespace, where no resolver of ours listens: the
/// node's as it is, but for what the user chose.
pub fn host_file(node_text: &str, user: &DnsConfig) -> String {
    if *user == DnsConfig::default() {
        return node_text.to_owned();
    }
    let node = ResolvConf::parse(node_text);
    let nameservers = if user.nameservers.is_empty() { &node.nameservers } else { &user.nameservers };
    let search = if user.search.is_empty() { &node.search } else { &user.search };
    let options = if user.options.is_empty() { &node.options } else { &user.options };
    let mut text: String = nameservers.iter().map(|server| format!("nameserver {server}\n")).collect();
    for (directive, words) in [("search", search), ("options", options)] {
        let words: Vec<&str> = words.iter().map(String::as_str).filter(|word| *word != ".").collect();
        if !words.is_empty() {
            text += &format!("{directive} {}\n", words.join(" "));
        }
    }
    node.others.iter().for_each(|line| text += &format!("{line}\n"));
    text
}

/// The servers of containers that have no others, as Docker's: they are asked over the default network.
const PUBLIC: [IpAddr; 2] =
    [IpAddr::V4(std::net::Ipv4Addr::new(8, 8, 8, 8)), IpAddr::V4(std::net::Ipv4Addr::new(8, 8, 4, 4))];

/// The file of a container on the default network, where no resolver of ours listens either: the node's, but
/// for servers that only the node itself reaches, and for what the user chose.
pub fn default_file(node_text: &str, user: &DnsConfig) -> String {
    let mut user = user.clone();
    if user.nameservers.is_empty() {
        let reached = |server: &IpAddr| server.is_ipv4() && !server.is_loopback() && !server.is_unspecified();
        user.nameservers = ResolvConf::parse(node_text).nameservers.into_iter().filter(reached).collect();
    }
    if user.nameservers.is_empty() {
        user.nameservers = PUBLIC.to_vec();
    }
    host_file(node_text, &user)
}

/// Docker's closing remarks: where outside names are asked, and what was overridden.
fn trailer(node: &ResolvConf, node_path: &Path, user: &DnsConfig, ndots_from: &str) -> String {
    let mut text = format!("\n# Based on host file: '{}' (internal resolver)\n", node_path.display());
    let servers: Vec<String> = if user.nameservers.is_empty() {
        node.upstreams().iter().map(|server| format!("host({server})")).collect()
    } else {
        user.nameservers.iter().map(ToString::to_string).collect()
    };
    if servers.is_empty() {
        text += "# NO EXTERNAL NAMESERVERS DEFINED\n";
    } else {
        text += &format!("# ExtServers: [{}]\n", servers.join(" "));
    }
    let overrides: Vec<&str> = [
        (!user.nameservers.is_empty(), "nameservers"),
        (!user.search.is_empty(), "search"),
        (!user.options.is_empty(), "options"),
    ]
    .into_iter()
    .filter_map(|(given, what)| given.then_some(what))
    .collect();
    text += &format!("# Overrides: [{}]\n# Option ndots from: {ndots_from}\n", overrides.join(" "));
    text
}

fn bad_ndots(option: &str) -> bool {
    option.strip_prefix("ndots:").is_some_and(|dots| dots.parse::<u32>().is_err())
}

#[cfg(test)]
mod tests;
