//! What networks are made of, and what users may say of it (Docker's driver options).

use serde::{Deserialize, Serialize};

use crate::{Labels, NetworkId};

/// Docker's options of its bridge driver that mean the same here.
pub const BRIDGE_NAME: &str = "com.docker.network.bridge.name";
pub const ICC: &str = "com.docker.network.bridge.enable_icc";
pub const MASQUERADE: &str = "com.docker.network.bridge.enable_ip_masquerade";
pub const DEFAULT_BRIDGE: &str = "com.docker.network.bridge.default_bridge";
pub const HOST_BINDING: &str = "com.docker.network.bridge.host_binding_ipv4";
/// Docker's option for the size of packets on a network, whatever its driver.
pub const MTU_OPTION: &str = "com.docker.network.driver.mtu";
/// Docker's option of its macvlan driver for the node's interface.
pub const PARENT_OPTION: &str = "parent";
const MODE: &str = "macvlan_mode";

/// What a network is made of on a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Driver {
    /// Tunnels between the nodes.
    #[default]
    Overlay,
    Bridge(BridgeConfig),
    Macvlan(MacvlanConfig),
    /// What the node's own configuration says, which this network names.
    Unconfigured(NodeDriver),
    /// Nothing: it is no network, but the configuration that others are made from (Docker's
    /// `--config-only`).
    Configuration,
}

/// Drivers whose networks end at the node: containers on others are reached, if at all, by a network that is
/// there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeDriver {
    Bridge,
    Macvlan,
}

/// A bridge on the node, which is the containers' gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BridgeConfig {
    /// The bridge's name on the node.
    pub link: String,
    /// Its containers reach each other.
    pub open: bool,
    /// What leaves the node carries the node's own address.
    pub masquerade: bool,
}

/// Interfaces with link addresses of their own, on one of the node's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MacvlanConfig {
    /// The node's interface; `None`: the network leads nowhere.
    pub parent: Option<String>,
    pub mode: MacvlanMode,
}

/// Whom the interfaces on one parent reach (`ip-link(8)`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MacvlanMode {
    /// Each other, too.
    #[default]
    Bridge,
    /// Not each other.
    Private,
    /// Each other by the switch outside, if it sends frames back.
    Vepa,
    /// There is one interface only, and it has the parent to itself.
    Passthru,
}

impl MacvlanMode {
    pub const ALL: [Self; 4] = [Self::Bridge, Self::Private, Self::Vepa, Self::Passthru];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Private => "private",
            Self::Vepa => "vepa",
            Self::Passthru => "passthru",
        }
    }
}

impl Driver {
    /// Docker's word for it; a configuration has none, which Docker calls `null`.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Overlay => "overlay",
            Self::Bridge(_) => NodeDriver::Bridge.as_str(),
            Self::Macvlan(_) => NodeDriver::Macvlan.as_str(),
            Self::Unconfigured(kind) => kind.as_str(),
            Self::Configuration => "null",
        }
    }

    /// It leads nowhere beyond the node, though nobody said so.
    pub fn is_internal(&self) -> bool {
        matches!(self, Self::Macvlan(MacvlanConfig { parent: None, .. }))
    }
}

impl NodeDriver {
    /// What a user's options make of it, or what is wrong with them.
    pub fn configure(self, id: &NetworkId, options: &Labels, internal: bool) -> Result<Driver, String> {
        let known: &[&str] = match self {
            Self::Bridge => &[BRIDGE_NAME, ICC, MASQUERADE, DEFAULT_BRIDGE, HOST_BINDING, MTU_OPTION],
            Self::Macvlan => &[PARENT_OPTION, MODE, MTU_OPTION],
        };
        if let Some(other) = options.keys().find(|key| !known.contains(&key.as_str())) {
            return Err(format!("option {other} of such a network is not supported"));
        }
        mtu(options)?;
        match self {
            Self::Bridge => bridge(id, options).map(Driver::Bridge),
            Self::Macvlan => macvlan(options, internal).map(Driver::Macvlan),
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Macvlan => "macvlan",
        }
    }
}

/// The size of packets, bytes, that a user asks for.
pub fn mtu(options: &Labels) -> Result<Option<u32>, String> {
    let Some(text) = options.get(MTU_OPTION) else { return Ok(None) };
    let mtu = text.parse().ok().filter(|mtu| (68..=65535).contains(mtu));
    mtu.map(Some).ok_or_else(|| format!("invalid MTU value {text:?}"))
}

fn bridge(id: &NetworkId, options: &Labels) -> Result<BridgeConfig, String> {
    let flag = |key: &str| match options.get(key).map(String::as_str) {
        None => Ok(true),
        Some(text) => match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "t" => Ok(true),
            "false" | "0" | "f" => Ok(false),
            _ => Err(format!("invalid value {text:?} of option {key}")),
        },
    };
    let link = match options.get(BRIDGE_NAME) {
        Some(name) if is_link_name(name) => name.clone(),
        Some(name) => return Err(format!("invalid bridge name {name:?}")),
        None => format!("br-{}", id.as_str().chars().take(12).collect::<String>()),
    };
    Ok(BridgeConfig { link, open: flag(ICC)?, masquerade: flag(MASQUERADE)? })
}

/// What the kernel takes (`dev_valid_name`), and nft reads as a name.
fn is_link_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() < 16
        && name.chars().all(|c| c.is_ascii_graphic() && !"/:\"".contains(c))
        && !matches!(name, "." | "..")
}

fn macvlan(options: &Labels, internal: bool) -> Result<MacvlanConfig, String> {
    let mode = match options.get(MODE).map(String::as_str) {
        None | Some("") => MacvlanMode::Bridge,
        Some(text) => MacvlanMode::ALL
            .into_iter()
            .find(|mode| mode.as_str() == text)
            .ok_or_else(|| format!("unknown macvlan mode: '{text}'"))?,
    };
    let parent = options.get(PARENT_OPTION).filter(|parent| !parent.is_empty() && !internal).cloned();
    Ok(MacvlanConfig { parent, mode })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configured(driver: NodeDriver, options: &[(&str, &str)]) -> Result<Driver, String> {
        let options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        driver.configure(&NetworkId::new("0123456789abcdef"), &options, false)
    }

    #[test]
    fn options_are_dockers() {
        let Ok(Driver::Bridge(config)) =
            configured(NodeDriver::Bridge, &[(BRIDGE_NAME, "mine"), (ICC, "false")])
        else {
            panic!()
        };
        assert_eq!((config.link.as_str(), config.open, config.masquerade), ("mine", false, true));
        let Ok(Driver::Bridge(config)) = configured(NodeDriver::Bridge, &[]) else { panic!() };
        assert_eq!(config.link, "br-0123456789ab");
        let alone = configured(NodeDriver::Macvlan, &[(MODE, "private")]).unwrap();
        assert!(alone.is_internal(), "without a parent it leads nowhere");
        let tied = configured(NodeDriver::Macvlan, &[(PARENT_OPTION, "eth0.7")]).unwrap();
        assert!(!tied.is_internal());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (driver, option) in [
            (NodeDriver::Bridge, (BRIDGE_NAME, "a name that is far too long")),
            (NodeDriver::Bridge, (BRIDGE_NAME, "..")),
            (NodeDriver::Bridge, (ICC, "perhaps")),
            (NodeDriver::Bridge, (PARENT_OPTION, "eth0")),
            (NodeDriver::Macvlan, (MODE, "odd")),
            (NodeDriver::Macvlan, (MTU_OPTION, "12")),
        ] {
            assert!(configured(driver, &[option]).is_err(), "{option:?}");
        }
    }
}
