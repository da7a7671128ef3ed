//! Whose turn it is to make or clear away a container's process.
//!
//! containerd clears a process away in several steps, and a call that is given up in between leaves
//! the rest undone: a shim that serves nobody. Two calls at once fail on what the other has done. So
//! each step here is taken by one at a time, and to its end, whoever asked for it and went away.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use shoal_model::ContainerId;
use tokio::sync::{Mutex as Place, OwnedMutexGuard};

use super::Containers;
use crate::{Error, Result};

type Places = HashMap<ContainerId, Arc<Place<()>>>;

/// The containers whose processes are being made or cleared away.
#[derive(Clone, Default)]
pub(super) struct Turns(Arc<Mutex<Places>>);

impl Turns {
    /// Waits until nobody else has the turn of this container.
    pub(super) async fn take(&self, id: &ContainerId) -> Turn {
        let place = self.places().entry(id.clone()).or_default().clone();
        let held = place.lock_owned().await;
        Turn { turns: self.clone(), id: id.clone(), held: Some(held) }
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends when dropped.
pub(super) struct Turn {
    turns: Turns,
    id: ContainerId,
    held: Option<OwnedMutexGuard<()>>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut places = self.turns.places();
        drop(self.held.take());
        // Whoever waits holds the place too; nobody can begin to wait while the places are locked.
        if places.get(&self.id).is_some_and(|place| Arc::strong_count(place) == 1) {
            places.remove(&self.id);
        }
    }
}

impl Containers {
    /// Takes a container's turn and one step in it, which goes on when the caller is dropped.
    pub(super) async fn in_turn<S, F, T>(&self, id: &ContainerId, step: S) -> Result<T>
    where
        S: FnOnce(Self, ContainerId) -> F + Send + 'static,
        F: Future<Output = Result<T>> + Send,
        T: Send + 'static,
    {
        let (containers, id) = (self.clone(), id.clone());
        let taken = tokio::spawn(async move {
            let _turn = containers.turns.take(&id).await;
            step(containers.clone(), id).await
        });
        taken.await.map_err(|error| Error::Task(error.to_string()))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_at_a_time_and_nothing_kept() {
        let (turns, id) = (Turns::default(), ContainerId::new("a"));
        let first = turns.take(&id).await;
        let other = turns.take(&ContainerId::new("b")).await;
        let mut second = Box::pin(turns.take(&id));
        assert!(futures::poll!(&mut second).is_pending());
        drop(first);
        drop(second.await);
        drop(other);
        assert!(turns.places().is_empty());
    }
}
