//! What this node's plain containers ask of the manager, what they get, and where they could go.
//!
//! Everything that is asked is stated anew with every change and in every session, so a manager that
//! was away, or is another one, misses nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use shoal_model::{ContainerId, GuestAnswer, GuestRequest, Network, PlaceAnswer};
use tokio::sync::watch;

/// An answer comes within this time, or no manager can be reached.
const ANSWER_BOUND: Duration = Duration::from_secs(5);

/// Everything that is asked for now.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Statement {
    /// Raised with every change.
    pub generation: u64,
    pub wanted: BTreeMap<ContainerId, GuestRequest>,
}

/// The manager's last word.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answers {
    /// Of the statement it answers.
    pub generation: u64,
    pub places: BTreeMap<ContainerId, Vec<PlaceAnswer>>,
}

#[derive(Default)]
pub(crate) struct Guests {
    statement: watch::Sender<Statement>,
    answers: watch::Sender<Answers>,
    catalogue: watch::Sender<Arc<Vec<Network>>>,
}

impl Guests {
    /// Asks, and waits for the answer: one for each place. `None` when no manager answers in time; it
    /// is then not asked for any more.
    pub(crate) async fn ask(&self, request: GuestRequest) -> Option<Vec<PlaceAnswer>> {
        self.ask_within(ANSWER_BOUND, request).await
    }

    async fn ask_within(&self, bound: Duration, request: GuestRequest) -> Option<Vec<PlaceAnswer>> {
        let id = request.id.clone();
        let mut answers = self.answers.subscribe();
        let generation = self.restate(request);
        let answered = answers.wait_for(|answers| answers.generation >= generation);
        let places = match tokio::time::timeout(bound, answered).await {
            Ok(Ok(answers)) => answers.places.get(&id).cloned(),
            Ok(Err(_)) | Err(_) => None,
        };
        if places.is_none() {
            self.withdraw(&id);
        }
        places
    }

    /// Asks without waiting; returns the generation whose answer will be the answer.
    pub(crate) fn restate(&self, request: GuestRequest) -> u64 {
        self.change(|wanted| drop(wanted.insert(request.id.clone(), request)))
    }

    /// A container wants nothing any more.
    pub(crate) fn withdraw(&self, id: &ContainerId) {
        if self.statement.borrow().wanted.contains_key(id) {
            self.change(|wanted| drop(wanted.remove(id)));
        }
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<ContainerId, GuestRequest>)) -> u64 {
        self.statement.send_modify(|statement| {
            statement.generation += 1;
            change(&mut statement.wanted);
        });
        self.statement.borrow().generation
    }

    pub(crate) fn statement(&self) -> watch::Receiver<Statement> {
        self.statement.subscribe()
    }

    pub(crate) fn answers(&self) -> watch::Receiver<Answers> {
        self.answers.subscribe()
    }

    pub(crate) fn take_answers(&self, generation: u64, answers: Vec<GuestAnswer>) {
        let places = answers.into_iter().map(|answer| (answer.id, answer.places)).collect();
        self.answers.send_replace(Answers { generation, places });
    }

    /// The networks that plain containers may join, as the manager listed them last.
    pub(crate) fn catalogue(&self) -> Arc<Vec<Network>> {
        self.catalogue.borrow().clone()
    }

    pub(crate) fn take_catalogue(&self, networks: Vec<Network>) {
        self.catalogue.send_replace(Arc::new(networks));
    }

    /// The node is in no cluster any more.
    pub(crate) fn clear(&self) {
        self.change(BTreeMap::clear);
        self.take_catalogue(Vec::new());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_model::{Refusal, RefusalReason};

    fn request(id: &str) -> GuestRequest {
        GuestRequest { id: ContainerId::new(id), name: id.to_owned(), places: Vec::new() }
    }

    fn refused(id: &str) -> GuestAnswer {
        let refusal = Refusal { reason: RefusalReason::NotFound, message: "network x not found".to_owned() };
        GuestAnswer { id: ContainerId::new(id), places: vec![PlaceAnswer::Refused(refusal)] }
    }

    #[tokio::test]
    async fn an_answer_to_an_older_statement_is_no_answer() {
        let guests = Arc::new(Guests::default());
        let asking = {
            let guests = guests.clone();
            tokio::spawn(async move { guests.ask(request("c")).await })
        };
        let mut statement = guests.statement();
        let generation = statement.wait_for(|s| !s.wanted.is_empty()).await.unwrap().generation;
        guests.take_answers(generation - 1, Vec::new());
        tokio::task::yield_now().await;
        assert!(!asking.is_finished());
        guests.take_answers(generation, vec![refused("c")]);
        assert_eq!(asking.await.unwrap(), Some(refused("c").places));
    }

    #[tokio::test]
    async fn without_a_manager_nothing_is_asked_for_in_the_end() {
        let guests = Guests::default();
        assert_eq!(guests.ask_within(Duration::from_millis(5), request("c")).await, None);
        assert!(guests.statement().borrow().wanted.is_empty());
    }
}
