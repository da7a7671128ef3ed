//! The size of frames follows the link that the tunnels go over, also while containers run.
//!
//! What is too large for the underlay would be lost without a word, and what is much smaller costs
//! throughput: so the ends inside the sandboxes are changed, too.

use shoal_model::{NetworkId, TableConfig};

use crate::error::Failures;
use crate::fabric::Inner;
use crate::netlink::Netlink;
use crate::netns::Namespace;
use crate::state::State;
use crate::{Fabric, Result};

/// How large the frames of a network may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    /// The user's choice.
    configured: Option<u32>,
    ipv6: bool,
}

impl Size {
    pub(crate) fn of(config: &TableConfig) -> Self {
        let ipv6 = config.pools.iter().any(|pool| pool.subnet.addr().is_ipv6());
        Self { configured: config.mtu, ipv6 }
    }

    /// The MTU inside a tunnel over a link of that MTU: outer Ethernet, IPv4, UDP and VXLAN headers take
    /// 50 bytes (RFC 7348, section 4.3 asks that fragments never be needed). Below the least that IP can
    /// work with they are, though: the kernel takes a link's IPv6 addresses away if it is smaller.
    pub(crate) fn within(self, underlay: u32) -> u32 {
        const OVERHEAD: u32 = 50;
        let min = if self.ipv6 { 1280 } else { 576 };
        self.configured.unwrap_or_else(|| underlay.saturating_sub(OVERHEAD)).max(min)
    }
}

impl Fabric {
    /// Brings all links in line with the link that holds the node's data path address. To be called
    /// when [`mtu_changes`](Self::mtu_changes) says so.
    pub async fn follow_mtu(&self) -> Result<()> {
        let inner = &*self.inner;
        let mut state = inner.state.lock().await;
        let Some((_, underlay)) = state.node.clone() else { return Ok(()) };
        // An address that is away for a moment says nothing about the next one's link.
        let Some(underlay) = self.mtu_changes().borrow().get(&underlay.into()).copied() else {
            return Ok(());
        };
        let mut failures = Failures::default();
        let resized = state.overlays.iter().filter_map(|(network, overlay)| {
            let mtu = overlay.size.within(underlay);
            (mtu != overlay.mtu).then(|| (network.clone(), mtu))
        });
        for (network, mtu) in resized.collect::<Vec<_>>() {
            tracing::info!(%network, mtu, "the network follows the size of the underlay's frames");
            failures.note(inner.fit_overlay(&mut state, &network, mtu).await);
        }
        let ingress = state.ingress.as_ref().map(|ingress| (ingress.size.within(underlay), ingress.mtu));
        if let Some((mtu, held)) = ingress
            && mtu != held
        {
            failures.note(inner.fit_ingress(&mut state, mtu).await);
        }
        if state.gateway.as_ref().is_some_and(|gateway| gateway.mtu != underlay) {
            failures.note(inner.fit_gateway(&mut state, underlay).await);
        }
        failures.finish()
    }
}

impl Inner {
    /// Gives every link of an overlay this MTU.
    pub(crate) async fn fit_overlay(&self, state: &mut State, network: &NetworkId, mtu: u32) -> Result<()> {
        let Some(overlay) = state.overlays.get(network) else { return Ok(()) };
        fit_links(&overlay.netlink, None, mtu).await?;
        fit_sandboxes(state, Some(network), mtu).await?;
        if let Some(overlay) = state.overlays.get_mut(network) {
            overlay.mtu = mtu;
        }
        Ok(())
    }

    /// Gives the ingress bridge, its ports and the tunnel this MTU.
    pub(crate) async fn fit_ingress(&self, state: &mut State, mtu: u32) -> Result<()> {
        let Some(mut ingress) = state.ingress.clone() else { return Ok(()) };
        fit_links(&self.netlink, Some(ingress.bridge), mtu).await?;
        self.netlink.set_mtu(ingress.tunnel, mtu).await?;
        fit_sandboxes(state, Some(&ingress.network), mtu).await?;
        ingress.mtu = mtu;
        state.ingress = Some(ingress);
        Ok(())
    }

    /// Gives the gateway bridge and its ports this MTU.
    pub(crate) async fn fit_gateway(&self, state: &mut State, mtu: u32) -> Result<()> {
        let Some(mut gateway) = state.gateway.clone() else { return Ok(()) };
        fit_links(&self.netlink, Some(gateway.index), mtu).await?;
        fit_sandboxes(state, None, mtu).await?;
        gateway.mtu = mtu;
        state.gateway = Some(gateway);
        Ok(())
    }
}

/// The bridge with its ports, or without a bridge everything in the namespace.
async fn fit_links(netlink: &Netlink, bridge: Option<u32>, mtu: u32) -> Result<()> {
    let links = netlink.links().await?.into_iter().filter(|link| match bridge {
        Some(bridge) => link.index == bridge || link.controller == Some(bridge),
        None => link.name != "lo",
    });
    let unfit: Vec<u32> = links.filter(|link| link.mtu != mtu).map(|link| link.index).collect();
    Netlink::all(unfit.into_iter().map(|index| netlink.set_mtu(index, mtu))).await
}

/// The inner ends of all links to a network, or of the gateway links.
async fn fit_sandboxes(state: &State, network: Option<&NetworkId>, mtu: u32) -> Result<()> {
    let mut failures = Failures::default();
    for sandbox in state.sandboxes.values() {
        for link in sandbox.links.iter().filter(|link| link.network.as_ref() == network) {
            failures.note(fit_inner(&sandbox.path, &link.interface, mtu).await);
        }
    }
    failures.finish()
}

async fn fit_inner(path: &std::path::Path, interface: &str, mtu: u32) -> Result<()> {
    let netlink = Netlink::open(&Namespace::open(path)?).await?;
    match netlink.link(interface).await? {
        Some(link) if link.mtu != mtu => netlink.set_mtu(link.index, mtu).await,
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tunnel_takes_fifty_bytes() {
        let size = |configured, ipv6| Size { configured, ipv6 };
        assert_eq!(size(None, false).within(1500), 1450);
        assert_eq!(size(Some(1400), false).within(9000), 1400);
        assert_eq!(size(None, false).within(10), 576);
        assert_eq!(size(None, true).within(1300), 1280);
    }
}
