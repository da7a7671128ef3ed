//! A network on one of the node's interfaces: each sandbox has an interface with a link
//! address of its own there, and the switch outside sees them all.
//!
//! The node itself does not reach its own containers that way, and nothing of the node stands between
//! them and the network (`ip-link(8)`).

use netlink_packet_route::link::LinkAttribute;
use shoal_model::{MacAddr, MacvlanConfig, MacvlanMode, NetworkId};

use crate::fabric::Inner;
use crate::link;
use crate::netlink::Netlink;
use crate::netns::Namespace;
use crate::owner::{self, local_link, node_alias};
use crate::{Error, Result};

/// The network as it stands.
#[derive(Debug, Clone)]
pub(crate) struct Macvlan {
    pub(crate) parent: String,
    pub(crate) mode: MacvlanMode,
    /// The user's choice; `None`: the parent's.
    pub(crate) mtu: Option<u32>,
}

/// The parent of a network that leads nowhere: a bridge without any port. Docker's is a `dummy`, which
/// not every kernel has.
fn own_parent(network: &NetworkId) -> String {
    format!("dm-{}", network.as_str().chars().take(12).collect::<String>())
}

impl Macvlan {
    /// Finds the parent, or makes one that leads nowhere.
    pub(crate) async fn ensure(
        inner: &Inner,
        network: &NetworkId,
        config: &MacvlanConfig,
        mtu: Option<u32>,
    ) -> Result<Self> {
        let netlink = &inner.netlink;
        let parent = match &config.parent {
            Some(parent) => parent.clone(),
            None => own_parent(network),
        };
        match (netlink.link(&parent).await?, &config.parent) {
            (Some(link), Some(_)) if link.up => {}
            // Whose it is decides whether it is up: without it nobody reaches anybody.
            (Some(link), Some(_)) => netlink.set_up(link.index, &parent).await?,
            (None, Some(_)) => return Err(Error::NoParent(parent)),
            (found, None) => {
                let what = local_link(network);
                match found {
                    Some(link) => owner::check(&inner.tag, &parent, link.alias.as_deref())?,
                    None => {
                        let message = link::bridge(&parent, None, mtu.unwrap_or(1500));
                        netlink.add_link(message, &parent).await?;
                    }
                }
                let index = netlink.index(&parent).await?;
                let alias = LinkAttribute::IfAlias(node_alias(&inner.tag, &what));
                netlink.change_link(index, vec![alias], &parent).await?;
                let device = parent.clone();
                let quiet =
                    move || crate::sysctl::set_if_present(&format!("ipv6/conf/{device}/disable_ipv6"), "1");
                inner.namespace.run(quiet).await?;
                netlink.set_up(index, &parent).await?;
            }
        }
        Ok(Self { parent, mode: config.mode, mtu })
    }

    /// What the kernel really holds is not what [`ensure`](Self::ensure) makes, in words.
    pub(crate) async fn differences(&self, netlink: &Netlink) -> Result<Vec<String>> {
        let found = netlink.link(&self.parent).await?.is_some_and(|link| link.up);
        Ok(if found { Vec::new() } else { vec![format!("fabric: link {} is gone or down", self.parent)] })
    }

    /// Makes an interface of that name in a sandbox, in the place of whatever was there.
    pub(crate) async fn add_interface(
        &self,
        netlink: &Netlink,
        namespace: &Namespace,
        name: &str,
        mac: Option<MacAddr>,
        alias: String,
    ) -> Result<()> {
        let Some(parent) = netlink.link(&self.parent).await? else {
            return Err(Error::NoParent(self.parent.clone()));
        };
        let inside = Netlink::open(namespace).await?;
        inside.remove_link(name).await?;
        let mtu = self.mtu.unwrap_or(parent.mtu);
        let message = link::macvlan(name, mac, mtu, parent.index, self.mode, namespace);
        netlink.add_link(message, &format!("{name} on {}", self.parent)).await?;
        // Last: a link with its alias is complete.
        let index = inside.index(name).await?;
        inside.change_link(index, vec![LinkAttribute::IfAlias(alias)], name).await
    }
}
