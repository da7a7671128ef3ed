//! The secrets and configs of this node's tasks, and what it shows registries for them.
//!
//! Their values are kept in memory, as long as a task here names them, and for each container in a tmpfs of its
//! own, from before its start until its end. They are never written to a disk: a daemon that starts anew is told
//! them again by its manager, and containers that run meanwhile have theirs.

mod files;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use bytes::Bytes;
use shoal_model::{ContainerSpec, DepositId, DepositReference, Task};
use shoal_runtime::registry::Credentials;
use tokio::sync::watch;

pub(crate) use files::{free, free_all, is_there, provide, prune};

use crate::{Result, lock};

/// What the manager tells of a deposit.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Known {
        bytes: Bytes,
        /// It has placeholders.
        templated: bool,
    },
    /// It was removed.
    Gone,
}

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if *self == Self::Gone { "Gone" } else { "Known(…)" })
    }
}

/// By deposit.
pub(crate) type Values = BTreeMap<DepositId, Value>;

/// The values that the node holds.
#[derive(Default)]
pub(crate) struct Deposits {
    held: Mutex<Values>,
    changed: watch::Sender<()>,
}

impl Deposits {
    /// Takes over what the manager tells; with `complete` in place of everything before.
    pub(crate) fn take(&self, complete: bool, told: Values) {
        let mut held = lock(&self.held);
        if complete {
            held.clear();
        }
        held.extend(told);
        drop(held);
        self.changed.send_replace(());
    }

    /// Forgets what no task names any more.
    pub(crate) fn retain(&self, named: &BTreeSet<DepositId>) {
        lock(&self.held).retain(|id, _| named.contains(id));
    }

    pub(crate) fn clear(&self) {
        lock(&self.held).clear();
    }

    /// It is known of everything that a task names what it says, or that it is no more.
    pub(crate) fn are_known(&self, task: &Task) -> bool {
        let held = lock(&self.held);
        task.deposits().all(|deposit| held.contains_key(deposit))
    }

    /// What the registry of a task's image is shown.
    pub(crate) fn credentials(&self, task: &Task) -> Result<Credentials> {
        let held = lock(&self.held);
        match task.credentials.as_ref().and_then(|deposit| held.get(deposit)) {
            Some(Value::Known { bytes, .. }) => Ok(Credentials::parse(&String::from_utf8_lossy(bytes))?),
            Some(Value::Gone) | None => Ok(Credentials::None),
        }
    }

    /// What is known of all that a container names.
    fn of(&self, container: &ContainerSpec) -> Values {
        let held = lock(&self.held);
        let known = |reference: &DepositReference| {
            Some((reference.deposit.clone(), held.get(&reference.deposit)?.clone()))
        };
        container.deposits().filter_map(known).collect()
    }

    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}
