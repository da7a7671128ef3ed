//! The node's own addresses, followed as they come and go.

use std::collections::BTreeSet;
use std::net::IpAddr;

use futures::StreamExt;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::Result;
use crate::netlink::{Netlink, watch_addresses};
use crate::netns::Namespace;

/// Follows the addresses until dropped.
pub(crate) struct Addresses {
    netlink: Netlink,
    current: watch::Receiver<BTreeSet<IpAddr>>,
    follower: JoinHandle<()>,
}

impl Addresses {
    pub(crate) async fn watch(namespace: &Namespace, netlink: &Netlink) -> Result<Self> {
        // Watching before reading, so that no change falls in between.
        let mut changes = watch_addresses(namespace).await?;
        let (sender, current) = watch::channel(read(netlink).await?);
        let reader = netlink.clone();
        let follower = tokio::spawn(async move {
            while changes.next().await.is_some() {
                match read(&reader).await {
                    Ok(addresses) => {
                        sender.send_if_modified(|held| {
                            let changed = *held != addresses;
                            *held = addresses;
                            changed
                        });
                    }
                    Err(error) => tracing::warn!(%error, "cannot read the node's addresses"),
                }
            }
        });
        Ok(Self { netlink: netlink.clone(), current, follower })
    }

    pub(crate) async fn read(&self) -> Result<BTreeSet<IpAddr>> {
        read(&self.netlink).await
    }

    pub(crate) fn changes(&self) -> watch::Receiver<BTreeSet<IpAddr>> {
        self.current.clone()
    }
}

impl Drop for Addresses {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

async fn read(netlink: &Netlink) -> Result<BTreeSet<IpAddr>> {
    let addresses = netlink.addresses().await?.into_iter().map(|(_, address)| address.addr());
    Ok(addresses.filter(|address| !address.is_loopback()).collect())
}
