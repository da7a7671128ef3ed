//! From what a node was sent to what it is to know: the frames between. A session that is slow skips
//! what came in between.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use shoal_model::{Deposit, DepositId, Network, NetworkId, TableVersion, TaskId};
use shoal_protocol::encode;
use shoal_protocol::session::manager_message::Message;
use shoal_protocol::session::{Assignments, Catalogue, ManagerMessage, Standing, Value};

use super::hub::{AssignedTask, NodeView};

/// Tells the value of a deposit; `None`: it cannot be opened.
pub(crate) type Open<'a> = dyn Fn(&Deposit) -> Option<Bytes> + 'a;

/// What a session has sent.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    tables: BTreeMap<NetworkId, TableVersion>,
    /// `None` until the first, complete assignments went out.
    tasks: Option<BTreeMap<TaskId, Arc<AssignedTask>>>,
    /// The deposits whose values, or whose absence, the node knows.
    deposits: BTreeMap<DepositId, bool>,
    /// `None` until the first one went out.
    catalogue: Option<Arc<Vec<Arc<Network>>>>,
    /// `None` until it was told.
    drained: Option<bool>,
}

impl Sent {
    /// A node that holds these tables already.
    pub(crate) fn holding(tables: BTreeMap<NetworkId, TableVersion>) -> Self {
        Self { tables, ..Self::default() }
    }

    /// The node cannot use a delta: its next table is a snapshot.
    pub(crate) fn forget_table(&mut self, network: &NetworkId) {
        self.tables.remove(network);
    }

    /// How the node stands, for those who send it traffic are to know before anything is taken from it; then
    /// tables, then the assignments that need them, then the tables nothing needs any more.
    /// `open` tells a deposit's value.
    pub(crate) fn frames(&mut self, view: &NodeView, open: &Open<'_>) -> Vec<ManagerMessage> {
        let mut frames = Vec::new();
        frames.extend(self.standing_frame(view));
        self.table_frames(view, &mut frames);
        frames.extend(self.assignment_frame(view, open));
        frames.extend(self.catalogue_frame(view));
        let unneeded: Vec<NetworkId> =
            self.tables.keys().filter(|network| !view.tables.contains_key(*network)).cloned().collect();
        for network in unneeded {
            self.tables.remove(&network);
            frames.push(Message::TableGone(network.to_string()));
        }
        frames.into_iter().map(|message| ManagerMessage { message: Some(message) }).collect()
    }

    fn table_frames(&mut self, view: &NodeView, frames: &mut Vec<Message>) {
        for (network, published) in &view.tables {
            let held = self.tables.get(network).copied();
            if held == Some(published.version()) {
                continue;
            }
            match held.and_then(|held| published.deltas_from(held)) {
                Some(deltas) => frames.extend(deltas.into_iter().map(Message::TableDelta)),
                None => frames.push(Message::Table(published.snapshot())),
            }
            self.tables.insert(network.clone(), published.version());
        }
    }

    fn standing_frame(&mut self, view: &NodeView) -> Option<Message> {
        let told = self.drained.replace(view.drained) == Some(view.drained);
        (!told).then_some(Message::Standing(Standing { drained: view.drained }))
    }

    fn catalogue_frame(&mut self, view: &NodeView) -> Option<Message> {
        if self.catalogue.as_ref().is_some_and(|sent| Arc::ptr_eq(sent, &view.catalogue)) {
            return None;
        }
        self.catalogue = Some(view.catalogue.clone());
        let networks = view.catalogue.iter().map(|network| encode(&**network)).collect();
        Some(Message::Catalogue(Catalogue { networks }))
    }

    fn assignment_frame(&mut self, view: &NodeView, open: &Open<'_>) -> Option<Message> {
        let complete = self.tasks.is_none();
        let sent = self.tasks.get_or_insert_with(BTreeMap::new);
        let is_new =
            |id: &TaskId, task: &Arc<AssignedTask>| sent.get(id).is_none_or(|old| !Arc::ptr_eq(old, task));
        let put: Vec<_> = view
            .tasks
            .iter()
            .filter(|(id, task)| is_new(id, task))
            .map(|(_, task)| task.payload.clone())
            .collect();
        let remove: Vec<_> =
            sent.keys().filter(|id| !view.tasks.contains_key(*id)).map(TaskId::to_string).collect();
        sent.clone_from(&view.tasks);
        let values = self.new_values(view, open);
        if !complete && put.is_empty() && remove.is_empty() && values.is_empty() {
            return None;
        }
        Some(Message::Assignments(Assignments { complete, put, remove, values }))
    }

    /// What the node does not know yet. It forgets a value with the last task that names it.
    fn new_values(&mut self, view: &NodeView, open: &Open<'_>) -> Vec<Value> {
        self.deposits.retain(|id, _| view.deposits.contains_key(id));
        let mut values = Vec::new();
        for (id, deposit) in &view.deposits {
            if self.deposits.insert(id.clone(), deposit.is_some()) == Some(deposit.is_some()) {
                continue;
            }
            let value = deposit.as_ref().and_then(|deposit| open(deposit));
            values.push(Value {
                deposit_id: id.to_string(),
                templated: deposit.as_ref().is_some_and(|deposit| deposit.spec.templated),
                gone: value.is_none(),
                value: value.unwrap_or_default(),
            });
        }
        values
    }
}

#[cfg(test)]
mod tests;
