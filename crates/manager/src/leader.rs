//! The leader: follows the store, plans, and commits what was planned.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use jiff::Timestamp;
use shoal_model::IdGenerator;
use shoal_store::{CommitError, Error as StoreError, Expect, Fence, State, Store, Watched, Write};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::draft::{Change, ClaimedTwice, Draft, commit_of};
use crate::plan::{Now, Observed, plan};
use crate::{Code, ControlError, Error};

/// How often a commit that found the store changed is decided anew.
const ATTEMPTS_MAX: usize = 20;
/// After a failed commit the state is given so long to catch up.
const CATCH_UP: Duration = Duration::from_millis(100);
/// After a failure of the store the leader tries again.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// What every part of a manager works with.
pub(crate) struct Shared {
    pub(crate) store: Arc<dyn Store>,
    fence: Fence,
    state: watch::Sender<Arc<State>>,
    pub(crate) revision: watch::Sender<u64>,
    /// Commits of this process take turns, so that they do not run into each other; against other
    /// processes the store compares.
    turn: tokio::sync::Mutex<()>,
    ids: Mutex<IdGenerator>,
    term_began: Instant,
    pub(crate) stop: CancellationToken,
}

impl Shared {
    pub(crate) fn new(store: Arc<dyn Store>, fence: Fence, state: State) -> Arc<Self> {
        let revision = watch::Sender::new(state.revision());
        Arc::new(Self {
            store,
            fence,
            state: watch::Sender::new(Arc::new(state)),
            revision,
            turn: tokio::sync::Mutex::new(()),
            ids: Mutex::new(IdGenerator::from_os()),
            term_began: Instant::now(),
            stop: CancellationToken::new(),
        })
    }

    pub(crate) fn state(&self) -> Arc<State> {
        self.state.borrow().clone()
    }

    pub(crate) fn states(&self) -> watch::Receiver<Arc<State>> {
        self.state.subscribe()
    }

    /// Since the term began.
    pub(crate) fn monotonic(&self) -> Duration {
        self.term_began.elapsed()
    }

    fn now(&self) -> Now {
        Now { monotonic: self.monotonic(), wall: Timestamp::now() }
    }

    /// Returns when the term is so old; never without a deadline.
    pub(crate) async fn sleep_until(&self, deadline: Option<Duration>) {
        match deadline {
            Some(deadline) => tokio::time::sleep_until((self.term_began + deadline).into()).await,
            None => std::future::pending().await,
        }
    }

    fn publish(&self, state: State) {
        let revision = state.revision();
        self.state.send_replace(Arc::new(state));
        self.revision.send_replace(revision);
    }

    /// Decides on the newest state and commits, again until nothing came in between. When this
    /// returns, [`state`](Self::state) shows what was committed.
    pub(crate) async fn transact<T, E: From<Error>>(
        &self,
        mut decide: impl FnMut(&mut Draft, Now, &mut IdGenerator) -> Result<T, E>,
    ) -> Result<T, E> {
        let turn = self.turn.lock().await;
        for _ in 0..ATTEMPTS_MAX {
            let (state, now) = (self.state(), self.now());
            let mut draft = Draft::new(State::clone(&state), now.wall);
            let decided = {
                let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
                decide(&mut draft, now, &mut ids)?
            };
            let changes = draft.into_changes();
            if changes.is_empty() {
                return Ok(decided);
            }
            let (expect, writes) = fenced(&changes, &state, &self.fence)
                .map_err(|clash| Error::Refused(ControlError::new(Code::Internal, clash.to_string())))?;
            match self.store.commit(expect, writes).await {
                Ok(revision) => {
                    self.reach(revision).await.map_err(E::from)?;
                    return Ok(decided);
                }
                Err(CommitError::Conflict(conflict)) => {
                    if conflict.expected == self.fence.expect() {
                        return Err(E::from(not_leading()));
                    }
                    tracing::debug!(%conflict, "deciding anew");
                    let newer = self.reach(state.revision() + 1);
                    // The conflict may be with what the state shows already.
                    let _ = tokio::time::timeout(CATCH_UP, newer).await;
                }
                Err(CommitError::Store(error)) => return Err(E::from(Error::Store(error))),
            }
        }
        drop(turn);
        let busy = "the cluster's state changes too fast, try again";
        Err(E::from(Error::Refused(ControlError::new(Code::Unavailable, busy))))
    }

    /// Waits until the state shows this revision.
    async fn reach(&self, revision: u64) -> Result<(), Error> {
        let mut states = self.states();
        tokio::select! {
            reached = states.wait_for(|state| state.revision() >= revision) => {
                reached.map(drop).map_err(|_| Error::Store(StoreError::Closed))
            }
            () = self.stop.cancelled() => Err(Error::Store(StoreError::Closed)),
        }
    }
}

/// The commit that makes these changes while nobody else leads.
pub(crate) fn fenced(
    changes: &[Change],
    state: &State,
    fence: &Fence,
) -> Result<(Vec<Expect>, Vec<Write>), ClaimedTwice> {
    let (mut expect, writes) = commit_of(changes, state)?;
    expect.push(fence.expect());
    Ok((expect, writes))
}

fn not_leading() -> Error {
    Error::Refused(ControlError::new(Code::Unavailable, "another manager leads the cluster"))
}

/// Everything the store holds.
pub(crate) async fn load(store: &dyn Store) -> Result<State, Error> {
    let (revision, records) = store.list(State::PREFIX).await?;
    Ok(State::load(revision, &records)?)
}

/// Keeps the state up to date with the store.
pub(crate) async fn follow(shared: Arc<Shared>) {
    loop {
        let mut state = State::clone(&shared.state());
        let mut watch = shared.store.watch("", state.revision());
        while let Some(step) = tokio::select! {
            step = watch.next() => step,
            () = shared.stop.cancelled() => return,
        } {
            match step {
                Watched::Changes { revision, events } => {
                    if let Err(error) = state.apply(revision, &events) {
                        tracing::error!(%error, revision, "a change was not understood");
                    }
                    shared.publish(state.clone());
                }
                Watched::Gap => break,
            }
        }
        match load(&*shared.store).await {
            Ok(state) => shared.publish(state),
            Err(Error::Store(StoreError::Closed)) => return,
            Err(error) => {
                tracing::error!(%error, "cannot read the store");
                tokio::time::sleep(RETRY_DELAY).await;
            }
        }
    }
}

/// Plans and commits until the manager stops.
pub(crate) async fn lead(shared: Arc<Shared>, mut observed: watch::Receiver<Arc<Observed>>) {
    let mut states = shared.states();
    loop {
        states.mark_unchanged();
        let seen = observed.borrow_and_update().clone();
        let planned = shared
            .transact(|draft, now, ids| {
                let planned = plan(draft.state(), &seen, now, ids);
                let more = !planned.changes.is_empty();
                draft.adopt(planned.changes);
                Ok::<_, Error>((more, planned.next_deadline))
            })
            .await;
        let deadline = match planned {
            // What was committed may lead to more.
            Ok((true, _)) => continue,
            Ok((false, deadline)) => deadline,
            Err(_) if shared.stop.is_cancelled() => return,
            Err(error) => {
                tracing::error!(%error, "a plan was not carried out");
                Some(shared.monotonic() + RETRY_DELAY)
            }
        };
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return },
            changed = observed.changed() => if changed.is_err() { return },
            () = shared.sleep_until(deadline) => {}
            () = shared.stop.cancelled() => return,
        }
    }
}
