//! Names and marks of ownership. A link's alias says whose it is and what for, so that everything a
//! former process knew can be read back from the kernel.

use std::path::Path;

use ipnet::IpNet;
use sha2::{Digest, Sha256};
use shoal_model::{MacAddr, NetworkId};

use crate::types::FarEnd;
use crate::{Error, Result, SandboxLink};

/// The gateway bridge.
pub(crate) const GATEWAY: &str = "shoal-gw";
/// The bridge of the published tasks on this node.
pub(crate) const INGRESS: &str = "shoal-ing";
/// The tunnel to the published tasks on other nodes.
pub(crate) const INGRESS_TUNNEL: &str = "shoal-ingvx";

/// The link is one of those in the node's own namespace that are ours by name.
pub(crate) fn is_node_link(name: &str) -> bool {
    [GATEWAY, INGRESS, INGRESS_TUNNEL].contains(&name)
}

/// The link belongs to some node of this machine.
pub(crate) fn is_some_nodes(alias: Option<&str>) -> bool {
    alias.is_some_and(|alias| alias.starts_with("shoal/"))
}

/// What the alias of a link of a network that ends at the node says beside the tag.
pub(crate) fn local_link(network: &NetworkId) -> String {
    format!("{LOCAL_PREFIX}{network}")
}

/// The inverse.
pub(crate) fn parse_local_link(what: &str) -> Option<NetworkId> {
    what.strip_prefix(LOCAL_PREFIX).map(NetworkId::new)
}

const LOCAL_PREFIX: &str = "local/";

/// The name of an overlay's namespace.
pub(crate) fn netns_name(network: &NetworkId) -> String {
    format!("{NETWORK_PREFIX}{network}")
}

const NETWORK_PREFIX: &str = "net-";

/// What the namespace of that name is for.
pub(crate) enum Purpose<'a> {
    Network(NetworkId),
    Sandbox(&'a str),
}

impl<'a> Purpose<'a> {
    pub(crate) fn of(name: &'a str) -> Self {
        match name.strip_prefix(NETWORK_PREFIX) {
            Some(network) => Self::Network(NetworkId::new(network)),
            None => Self::Sandbox(name),
        }
    }
}

/// The outer end of a sandbox's interface; at most 15 characters, as the kernel demands.
pub(crate) fn host_interface(sandbox: &str, position: usize) -> String {
    let digest = Sha256::digest(format!("{sandbox}/{position}"));
    let hash: String = digest.iter().take(5).map(|byte| format!("{byte:02x}")).collect();
    format!("{HOST_INTERFACE_PREFIX}{hash}")
}

const HOST_INTERFACE_PREFIX: &str = "shv";

/// The name could be one that [`host_interface`] gave.
pub(crate) fn is_host_interface(name: &str) -> bool {
    name.strip_prefix(HOST_INTERFACE_PREFIX)
        .is_some_and(|hash| hash.len() == 10 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// The link address of a bridge. A bridge without one of its own takes the lowest of its ports', and
/// the kernel drops all its neighbour entries, permanent ones too, whenever that changes.
pub(crate) fn bridge_mac(tag: &str, what: &str) -> MacAddr {
    let digest = Sha256::digest(node_alias(tag, what));
    MacAddr([0x02, 0x5d, digest[0], digest[1], digest[2], digest[3]])
}

/// The alias of a link of the node's own.
pub(crate) fn node_alias(tag: &str, what: &str) -> String {
    format!("shoal/{tag}//{what}")
}

/// The rest of a node link's alias, if the link is this node's.
pub(crate) fn parse_node_alias<'a>(tag: &str, alias: &'a str) -> Option<&'a str> {
    alias.strip_prefix("shoal/")?.strip_prefix(tag)?.strip_prefix("//")
}

/// The alias of the outer end of a sandbox's interface.
pub(crate) fn sandbox_alias(tag: &str, sandbox: &str, link: &SandboxLink) -> String {
    let network = link.network.as_ref().map_or("-", NetworkId::as_str);
    let address = |address: Option<IpNet>| address.map_or("-".to_owned(), |address| address.to_string());
    let (v4, v6) = (address(link.address), address(link.address_v6));
    format!("shoal/{tag}/{sandbox}/{}/{network}/{v4},{v6}", link.interface)
}

/// The inverse: the sandbox's id and the link.
pub(crate) fn parse_sandbox_alias(
    tag: &str,
    alias: &str,
    host_netns: &Path,
    host_interface: &str,
) -> Option<(String, SandboxLink)> {
    let rest = alias.strip_prefix("shoal/")?.strip_prefix(tag)?.strip_prefix('/')?;
    let mut parts = rest.splitn(4, '/');
    let (sandbox, interface, network, address) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    if sandbox.is_empty() {
        return None;
    }
    let (v4, v6) = address.split_once(',')?;
    let link = SandboxLink {
        network: (network != "-").then(|| NetworkId::new(network)),
        interface: interface.to_owned(),
        far_end: Some(FarEnd { netns: host_netns.to_owned(), interface: host_interface.to_owned() }),
        address: v4.parse().ok(),
        address_v6: v6.parse().ok(),
    };
    Some((sandbox.to_owned(), link))
}

/// Refuses a link that somebody else has made under our name.
pub(crate) fn check(tag: &str, name: &str, alias: Option<&str>) -> Result<()> {
    match alias {
        // Made by us, but we died before we could mark it.
        None => Ok(()),
        Some(alias) if parse_node_alias(tag, alias).is_some() => Ok(()),
        Some(_) => Err(Error::Foreign { name: format!("link {name}") }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_say_everything_about_a_link() {
        let link = SandboxLink {
            network: Some("n1".into()),
            interface: "eth0".to_owned(),
            far_end: Some(FarEnd { netns: "/run/x".into(), interface: host_interface("task", 0) }),
            address: "10.0.1.3/24".parse().ok(),
            address_v6: "fd00::3/64".parse().ok(),
        };
        let alias = sandbox_alias("0a0b0c0d", "task", &link);
        let outer = host_interface("task", 0);
        let parsed = parse_sandbox_alias("0a0b0c0d", &alias, Path::new("/run/x"), &outer);
        assert_eq!(parsed, Some(("task".to_owned(), link.clone())));
        assert_eq!(parse_sandbox_alias("ffffffff", &alias, Path::new("/"), "x"), None);
        assert_eq!(parse_node_alias("0a0b0c0d", &alias), None);

        let gateway = SandboxLink { network: None, address: None, address_v6: None, ..link };
        let alias = sandbox_alias("0a0b0c0d", "task", &gateway);
        let parsed = parse_sandbox_alias("0a0b0c0d", &alias, Path::new("/run/x"), &outer);
        assert_eq!(parsed, Some(("task".to_owned(), gateway)));
    }

    #[test]
    fn node_links_are_told_from_sandbox_links_and_from_others() {
        let alias = node_alias("0a0b0c0d", "gateway");
        assert_eq!(parse_node_alias("0a0b0c0d", &alias), Some("gateway"));
        assert_eq!(parse_sandbox_alias("0a0b0c0d", &alias, Path::new("/"), "x"), None);
        assert!(check("0a0b0c0d", GATEWAY, Some(&alias)).is_ok());
        assert!(check("ffffffff", GATEWAY, Some(&alias)).is_err());
        assert!(check("ffffffff", GATEWAY, Some("my bridge")).is_err());
    }

    #[test]
    fn outer_names_fit_the_kernel() {
        let name = host_interface(&"f".repeat(64), 12);
        assert!(name.len() <= 15, "{name}");
        assert_ne!(name, host_interface(&"f".repeat(64), 11));
    }
}
