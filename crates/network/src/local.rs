//! Networks that end at the node: bridges, and interfaces on the node's own (macvlan).

use shoal_model::{Driver, MacvlanConfig, NetworkId, NetworkTable};

use crate::bridge::Bridge;
use crate::fabric::Inner;
use crate::macvlan::Macvlan;
use crate::state::State;
use crate::{Error, Result};

/// One of them as it stands.
#[derive(Debug, Clone)]
pub(crate) enum Local {
    Bridge(Bridge),
    Macvlan(Macvlan),
}

impl Inner {
    /// Makes the network on this node, or what is missing of it. Its containers' links are sandboxes'.
    pub(crate) async fn ensure_local(&self, state: &mut State, table: &NetworkTable) -> Result<()> {
        let config = &table.config;
        let local = match &config.driver {
            // Where it cannot be built, nobody is on it.
            Driver::Overlay | Driver::Configuration | Driver::Unconfigured(_) => return Ok(()),
            Driver::Bridge(bridge) => {
                let underlay = state.node.as_ref().map(|(_, underlay)| *underlay);
                let mtu = match (config.mtu, underlay) {
                    (Some(mtu), _) => mtu,
                    (None, underlay) => {
                        self.underlay_mtu(underlay.unwrap_or(std::net::Ipv4Addr::UNSPECIFIED)).await?
                    }
                };
                let mut tables = self.tables.lock().await;
                Local::Bridge(Bridge::ensure(self, &mut tables, table, bridge, mtu).await?)
            }
            Driver::Macvlan(macvlan) => {
                Local::Macvlan(Macvlan::ensure(self, &table.network, macvlan, config.mtu).await?)
            }
        };
        state.locals.insert(table.network.clone(), local);
        state.doubted.remove(&table.network);
        Ok(())
    }

    /// What keeps a network that ends at the node from being built here.
    pub(crate) async fn local_obstacle(&self, table: &NetworkTable) -> Result<Option<Error>> {
        Ok(match &table.config.driver {
            Driver::Unconfigured(_) => {
                Some(Error::Unconfigured(table.config.config_from.clone().unwrap_or_default()))
            }
            Driver::Macvlan(MacvlanConfig { parent: Some(parent), .. }) => {
                self.netlink.link(parent).await?.is_none().then(|| Error::NoParent(parent.clone()))
            }
            Driver::Bridge(config) => {
                let link = self.netlink.link(&config.link).await?;
                link.and_then(|link| Bridge::check(&self.tag, &table.network, &link).err())
            }
            _ => None,
        })
    }

    pub(crate) async fn local_differences(&self, table: &NetworkTable) -> Result<Vec<String>> {
        let local = self.state.lock().await.locals.get(&table.network).cloned();
        match (local, &table.config.driver) {
            (Some(Local::Bridge(_)), Driver::Bridge(config)) => {
                let tables = self.tables.lock().await;
                Bridge::differences(self, &tables, table, config).await
            }
            (Some(Local::Macvlan(macvlan)), Driver::Macvlan(_)) => macvlan.differences(&self.netlink).await,
            // Found out anew with each look.
            (_, Driver::Unconfigured(_)) => Ok(vec!["fabric: cannot be built on this node".to_owned()]),
            _ => Err(Error::NetworkNotApplied(table.network.clone())),
        }
    }

    /// Removes the link that a network has of its own which ends at the node; `name` is that of the link.
    pub(crate) async fn remove_local(
        &self,
        state: &mut State,
        network: &NetworkId,
        name: &str,
    ) -> Result<()> {
        state.locals.remove(network);
        let mut tables = self.tables.lock().await;
        Bridge::remove(&self.netlink, &mut tables, name).await
    }
}
