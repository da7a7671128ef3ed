//! `network connect` and `disconnect`: a container's networks change, also while it runs.

use std::sync::Arc;

use shoal_model::{EndpointId, NetworkId};

use super::keeper::{Keeper, Phase};
use super::networks;
use super::record::{NetworkMode, Place, PlainRecord};
use crate::local::DEFAULT;
use crate::node::Node;
use crate::{Error, Result};

/// The place that a network's name or id means.
fn position(record: &PlainRecord, network: &str, local: Option<&NetworkId>) -> Option<usize> {
    let meant = |index: usize, place: &Place| {
        let attached = record.attachments.get(index).map(|attachment| attachment.network.as_str());
        place.network == network
            || attached == Some(network)
            || (local.is_some() && place.local.as_ref().map(|own| &own.id) == local)
    };
    record.spec.places.iter().enumerate().find(|(index, place)| meant(*index, place)).map(|(index, _)| index)
}

impl Keeper {
    /// Puts the container on one more network.
    pub(crate) async fn connect(&self, node: &Arc<Node>, mut place: Place) -> Result<()> {
        let _turn = self.turn().await;
        let shown = self.shown();
        let mut record = shown.record;
        match record.spec.network {
            NetworkMode::Host | NetworkMode::None | NetworkMode::Container => {
                return Err(Error::SharesNetwork);
            }
            NetworkMode::Bridge | NetworkMode::Named => {}
        }
        if place.network == DEFAULT {
            node.locals.default_network(node).await?;
        }
        networks::resolve(node, &mut place);
        let local = place.local.as_ref().map(|network| network.id.clone());
        if position(&record, &place.network, local.as_ref()).is_some() {
            return Err(Error::AlreadyAttached { container: record.name, network: place.network });
        }
        record.spec.places.push(place);
        if shown.phase != Phase::Running {
            return self.change(node, |shown| shown.record.spec.places = record.spec.places).await;
        }
        match networks::attach(node, &record).await {
            Ok(attachments) => record.attachments = attachments,
            Err(error) => {
                self.leave_last(node, local.as_ref());
                return Err(error);
            }
        }
        self.change(node, |shown| {
            shown.record.spec.places = record.spec.places;
            shown.record.attachments = record.attachments;
        })
        .await?;
        self.renew_surroundings(node).await?;
        if let Some((network, config)) = networks::joined(node, &self.shown().record).pop() {
            node.events.network("connect", &network, &config, Some(&self.id));
        }
        Ok(())
    }

    /// What was asked for in vain is asked for no more.
    fn leave_last(&self, node: &Node, local: Option<&NetworkId>) {
        let record = self.shown().record;
        match local {
            Some(network) => node.locals.detach(node, &EndpointId::new(self.id.as_str()), Some(network)),
            None if record.on_cluster().next().is_some() => {
                node.guests.restate(record.request());
            }
            None => node.guests.withdraw(&self.id),
        }
    }

    /// Takes the container off a network.
    pub(crate) async fn disconnect(&self, node: &Node, network: &str) -> Result<()> {
        let _turn = self.turn().await;
        let shown = self.shown();
        let record = &shown.record;
        let local = node.locals.find(network);
        let Some(at) = position(record, network, local.as_ref()) else {
            let (container, network) = (self.id.to_string(), network.to_owned());
            return Err(Error::NotAttachedTo { container, network });
        };
        self.change(node, |shown| {
            let place = shown.record.spec.places.remove(at);
            if at < shown.record.attachments.len() {
                shown.record.attachments.remove(at);
            }
            drop(place);
        })
        .await?;
        if shown.phase != Phase::Running {
            return Ok(());
        }
        let left = record.attachments.get(at).map(|attachment| attachment.network.clone());
        let joined = networks::joined(node, record);
        // First the ways in, then the interface.
        let own = record.spec.places[at].local.as_ref().map(|network| network.id.clone());
        self.leave_last(node, own.as_ref());
        self.renew_surroundings(node).await?;
        for (network, config) in joined.iter().filter(|(network, _)| Some(network) == left.as_ref()) {
            node.events.network("disconnect", network, config, Some(&self.id));
        }
        Ok(())
    }

    /// Interfaces, names and files of the running container, as its record now says.
    async fn renew_surroundings(&self, node: &Node) -> Result<()> {
        let record = self.shown().record;
        let (hosts, resolv_conf) = networks::surround(node, &record).await?;
        node.runtime.rewrite_names(&self.id, hosts, resolv_conf).await?;
        networks::lead_ports(node, &record).await
    }
}
