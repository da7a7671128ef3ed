//! Networks that end at the node: bridges, and interfaces on the node's own (macvlan).

use shoal_model::{Driver, NetworkId, NetworkTable};

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
            Driver::Overlay | Driver::Configuration => return Ok(()),
            Driver::Unconfigured(_) => {
                let name = config.config_from.clone().unwrap_or_default();
                return Err(Error::Unconfigured(name));
            }
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

    pub(crate) async fn local_differences(&self, table: &NetworkTable) -> Result<Vec<String>> {
        let local = self.state.lock().await.locals.get(&table.network).cloned();
        match (local, &table.config.driver) {
            (Some(Local::Bridge(_)), Driver::Bridge(config)) => {
                let tables = self.tables.lock().await;
                Bridge::differences(self, &tables, table, config).await
            }
            (Some(Local::Macvlan(macvlan)), _) => macvlan.differences(&self.netlink).await,
            _ => Err(Error::NetworkNotApplied(table.network.clone())),
        }
    }

    /// Removes the link that a network of this node alone has of its own; `name` is that of the link.
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
