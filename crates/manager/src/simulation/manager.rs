//! The manager under simulation: the real control loops, hub, frames and status write-back, with the
//! simulated store and network around them. What the shells do with tokio is done here with events.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use shoal_model::{GuestAnswer, GuestRequest, IdGenerator, NodeId};
use shoal_store::{Conflict, Event as StoreEvent, Expect, Fence, State, Write};

use super::session::Session;
use super::wish::Wish;
use super::world::{Event, World, note};
use crate::control;
use crate::dispatcher::hub::Hub;
use crate::dispatcher::{Report, Waiting, advance, gather};
use crate::draft::Draft;
use crate::leader::fenced;
use crate::plan::{Now, Observed, plan};

/// Reports are gathered so long before they are committed together.
const STATUS_BATCH: Duration = Duration::from_millis(10);

/// One life of a manager, all of it in memory.
pub(super) struct Manager {
    pub(super) life: u64,
    began: Duration,
    fence: Fence,
    pub(super) state: State,
    ids: IdGenerator,
    pub(super) hub: Hub,
    pub(super) sessions: BTreeMap<u64, Session>,
    /// The session whose view the hub's conclusions go to.
    pub(super) views: BTreeMap<NodeId, u64>,
    observed: Arc<Observed>,
    inbox: Vec<Report>,
    /// What nodes state of their plain containers, in the order in which it came.
    statements: VecDeque<Statement>,
    waiting: Waiting,
    flush_due: bool,
    /// When the hub and the plan are to be looked at next.
    hub_at: Option<Duration>,
    plan_at: Option<Duration>,
    /// A plan waits for its turn, or is being committed.
    planning: bool,
    /// Something changed since the plan under way was begun.
    plan_again: bool,
    jobs: Vec<Job>,
    /// The commit under way; commits of one process take turns.
    turn: Option<Job>,
}

#[derive(Debug)]
pub(super) enum ManagerEvent {
    Hub,
    Plan,
    Flush,
    Turn,
    Pump(u64),
    Silence(u64),
    Answer(Result<(u64, Vec<StoreEvent>), Conflict>),
}

/// What waits for its turn to be decided and committed.
enum Job {
    /// With what was observed when it was asked for.
    Plan(Arc<Observed>),
    Statuses,
    /// The next statement; once decided, it and its answers.
    Guests(Option<(Statement, Vec<GuestAnswer>)>),
    User(Wish),
}

/// Everything that a node's plain containers want.
pub(super) struct Statement {
    pub(super) node: NodeId,
    pub(super) session: u64,
    pub(super) generation: u64,
    pub(super) wanted: Vec<GuestRequest>,
}

/// A commit on its way to the store. It may outlive its manager.
pub(super) struct InFlight {
    life: u64,
    expect: Vec<Expect>,
    writes: Vec<Write>,
    /// Something holds it up until then.
    not_before: Duration,
}

/// What becomes of a commit whose manager dies.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fate {
    Lost,
    InTime,
    /// It arrives when another manager may lead.
    Late(Duration),
}

impl World {
    pub(super) fn start_manager(&mut self) {
        if self.manager.is_some() || !self.machines.first().is_none_or(|machine| machine.powered) {
            return;
        }
        self.terms += 1;
        let fence = self.store.campaign();
        let state = self.store.load();
        note!(self, "manager {} starts at revision {}", self.terms, state.revision());
        self.manager = Some(Manager {
            life: self.terms,
            began: self.now(),
            fence,
            state,
            ids: IdGenerator::from_seed(self.rng.random()),
            hub: Hub::default(),
            sessions: BTreeMap::new(),
            views: BTreeMap::new(),
            observed: Arc::default(),
            inbox: Vec::new(),
            statements: VecDeque::new(),
            waiting: Waiting::new(),
            flush_due: false,
            hub_at: None,
            plan_at: None,
            planning: false,
            plan_again: false,
            jobs: Vec::new(),
            turn: None,
        });
        self.facts.manager_disturbed = self.now();
        self.hub_soon();
        self.plan_soon();
    }

    /// The manager's process dies; the machine still says so to whoever is connected.
    pub(super) fn crash_manager(&mut self, fate: Fate) {
        let Some(manager) = self.manager.take() else { return };
        note!(self, "manager {} dies, its commit: {fate:?}", manager.life);
        self.facts.manager_disturbed = self.now();
        for (number, commit) in std::mem::take(&mut self.commits) {
            let not_before = match fate {
                Fate::Lost => continue,
                Fate::InTime => commit.not_before,
                Fate::Late(by) => self.now() + by,
            };
            self.commits.insert(number, InFlight { not_before, ..commit });
        }
    }

    pub(super) fn manager_acts(&mut self, life: u64, what: ManagerEvent) {
        let now = self.now();
        let Some(manager) = self.manager.as_mut().filter(|manager| manager.life == life) else { return };
        match what {
            ManagerEvent::Hub if manager.hub_at == Some(now) => {
                manager.hub_at = None;
                self.hub_concludes();
            }
            ManagerEvent::Plan if manager.plan_at == Some(now) => {
                manager.plan_at = None;
                self.want_plan();
            }
            ManagerEvent::Hub | ManagerEvent::Plan => {}
            ManagerEvent::Flush => {
                manager.flush_due = false;
                manager.jobs.push(Job::Statuses);
                self.turn_soon();
            }
            ManagerEvent::Turn => self.take_turn(),
            ManagerEvent::Pump(session) => self.pump(session),
            ManagerEvent::Silence(session) => self.listen(session),
            ManagerEvent::Answer(outcome) => self.answered(outcome),
        }
    }

    pub(super) fn manager_later(&mut self, wait: Duration, what: ManagerEvent) {
        if let Some(life) = self.manager.as_ref().map(|manager| manager.life) {
            self.queue.after(wait, Event::Manager { life, what });
        }
    }

    pub(super) fn hub_soon(&mut self) {
        let wait = self.millis((0.05, 3.0));
        self.hub_by(self.now() + wait);
    }

    fn hub_by(&mut self, time: Duration) {
        let Some(manager) = &mut self.manager else { return };
        if manager.hub_at.is_none_or(|at| time < at) {
            manager.hub_at = Some(time);
            self.queue.at(time, Event::Manager { life: manager.life, what: ManagerEvent::Hub });
        }
    }

    fn plan_soon(&mut self) {
        let wait = self.millis((0.05, 3.0));
        self.plan_by(self.now() + wait);
    }

    fn plan_by(&mut self, time: Duration) {
        let Some(manager) = &mut self.manager else { return };
        if manager.plan_at.is_none_or(|at| time < at) {
            manager.plan_at = Some(time);
            self.queue.at(time, Event::Manager { life: manager.life, what: ManagerEvent::Plan });
        }
    }

    pub(super) fn monotonic(&self) -> Duration {
        self.manager.as_ref().map_or(Duration::ZERO, |manager| self.now() - manager.began)
    }

    /// Draws the hub's conclusions and hands them out.
    fn hub_concludes(&mut self) {
        let monotonic = self.monotonic();
        let Some(manager) = &mut self.manager else { return };
        let outcome = manager.hub.update(&manager.state, monotonic);
        let (began, mut pumps) = (manager.began, Vec::new());
        for (node, view) in outcome.views {
            let session = manager.views.get(&node).copied();
            if let Some((id, session)) = session.and_then(|id| Some((id, manager.sessions.get_mut(&id)?))) {
                session.view = Some(view);
                pumps.push(id);
            }
        }
        let sessions = manager.sessions.values();
        let strangers = sessions.filter(|session| manager.state.node(&session.node).is_none());
        let strangers: Vec<_> = strangers.map(|session| session.link).collect();
        for session in pumps {
            self.pump_soon(session);
        }
        for link in strangers {
            self.refuse(link);
        }
        if let Some(deadline) = outcome.next_deadline {
            self.hub_by(began + deadline);
        }
        self.check_tables();
        self.show(outcome.observed);
    }

    /// Shows what was observed; planning is worth it when something follows from it.
    fn show(&mut self, next: Observed) {
        let Some(manager) = &mut self.manager else { return };
        let changed = next.differs_from(&manager.observed, &manager.state);
        manager.observed = Arc::new(next);
        if changed {
            self.plan_soon();
        }
    }

    /// That a node is still there changes nothing but what is known of it.
    pub(super) fn heard_only(&mut self) {
        let Some(manager) = &self.manager else { return };
        let sessions = manager.hub.seen().clone();
        self.show(Observed { sessions, ..Observed::clone(&manager.observed) });
    }

    fn want_plan(&mut self) {
        let Some(manager) = &mut self.manager else { return };
        if manager.planning {
            manager.plan_again = true;
            return;
        }
        manager.planning = true;
        manager.plan_again = false;
        manager.jobs.push(Job::Plan(manager.observed.clone()));
        self.turn_soon();
    }

    pub(super) fn ask(&mut self, wish: Wish) {
        let Some(manager) = &mut self.manager else { return };
        manager.jobs.push(Job::User(wish));
        self.turn_soon();
    }

    pub(super) fn take_report(&mut self, report: Report) {
        let Some(manager) = &mut self.manager else { return };
        manager.inbox.push(report);
        if !std::mem::replace(&mut manager.flush_due, true) {
            self.manager_later(STATUS_BATCH, ManagerEvent::Flush);
        }
    }

    pub(super) fn take_statement(&mut self, statement: Statement) {
        let Some(manager) = &mut self.manager else { return };
        manager.statements.push_back(statement);
        manager.jobs.push(Job::Guests(None));
        self.turn_soon();
    }

    fn turn_soon(&mut self) {
        let wait = self.millis((0.01, 0.5));
        self.manager_later(wait, ManagerEvent::Turn);
    }

    /// Decides on whatever waits and sends the commit on its way.
    fn take_turn(&mut self) {
        let (monotonic, wall) = (self.monotonic(), self.wall());
        let Some(manager) = self.manager.as_mut().filter(|manager| manager.turn.is_none()) else { return };
        if manager.jobs.is_empty() {
            return;
        }
        let mut job = manager.jobs.swap_remove(self.rng.random_range(0..manager.jobs.len()));
        let mut draft = Draft::new(manager.state.clone(), wall);
        let now = Now { monotonic, wall };
        let mut deadline = None;
        match &mut job {
            Job::Plan(seen) => {
                let planned = plan(draft.state(), seen, now, &mut manager.ids);
                deadline = planned.next_deadline.map(|at| manager.began + at);
                draft.adopt(planned.changes);
            }
            Job::Statuses => {
                for report in manager.inbox.drain(..) {
                    gather(&mut manager.waiting, report);
                }
                for ((node, task), status) in &manager.waiting {
                    advance(&mut draft, node, task, status);
                }
            }
            Job::Guests(decided) => {
                let Some(statement) = manager.statements.pop_front() else { return self.turn_soon() };
                // A newer session of the node says it all again.
                if manager.views.get(&statement.node) == Some(&statement.session) {
                    let Statement { node, wanted, .. } = &statement;
                    let answers = control::state_guests(&mut draft, now, &mut manager.ids, node, wanted);
                    *decided = Some((statement, answers));
                }
            }
            Job::User(wish) => {
                if let Err(refused) = wish.decide(&mut draft, now, &mut manager.ids) {
                    note!(self, "{wish:?} refused: {refused}");
                    return self.turn_soon();
                }
            }
        }
        if let Job::User(wish) = &job {
            note!(self, "user: {wish:?}");
        }
        let changes = draft.into_changes();
        if changes.is_empty() {
            return self.job_done(&job, false, deadline);
        }
        let (expect, writes) = match fenced(&changes, &manager.state, &manager.fence) {
            Ok(commit) => commit,
            Err(clash) => return self.violate(clash.to_string()),
        };
        let life = manager.life;
        manager.turn = Some(job);
        self.send_commit(life, expect, writes);
    }

    fn send_commit(&mut self, life: u64, expect: Vec<Expect>, writes: Vec<Write>) {
        let number = self.number();
        let not_before = self.now() + self.millis(self.weather.commit_ms);
        self.commits.insert(number, InFlight { life, expect, writes, not_before });
        self.queue.at(not_before, Event::Commit(number));
    }

    pub(super) fn commit_arrives(&mut self, number: u64) {
        let Some(commit) = self.commits.remove(&number) else { return };
        if commit.not_before > self.now() {
            let at = commit.not_before;
            self.commits.insert(number, commit);
            return self.queue.at(at, Event::Commit(number));
        }
        let outcome = self.store.commit(&commit.expect, commit.writes);
        match &outcome {
            Ok((revision, events)) => self.check_commit(*revision, events),
            Err(conflict) => note!(self, "commit of manager {} refused: {conflict}", commit.life),
        }
        let wait = self.millis((0.05, 1.0));
        let what = ManagerEvent::Answer(outcome);
        self.queue.after(wait, Event::Manager { life: commit.life, what });
    }

    fn answered(&mut self, outcome: Result<(u64, Vec<StoreEvent>), Conflict>) {
        let Some(manager) = &mut self.manager else { return };
        let Some(job) = manager.turn.take() else { return };
        match outcome {
            Ok((revision, events)) => {
                manager.state.apply(revision, &events).expect("what was written can be read");
                self.hub_soon();
                self.job_done(&job, true, None);
                self.want_plan();
            }
            // Nobody else writes while this manager leads.
            Err(conflict) => self.violate(format!("a commit of the only manager was refused: {conflict}")),
        }
    }

    fn job_done(&mut self, job: &Job, changed: bool, deadline: Option<Duration>) {
        let Some(manager) = &mut self.manager else { return };
        match job {
            Job::Plan(_) => {
                manager.planning = false;
                if changed || manager.plan_again {
                    self.want_plan();
                } else if let Some(deadline) = deadline {
                    self.plan_by(deadline);
                }
            }
            Job::Statuses => manager.waiting.clear(),
            Job::Guests(Some((statement, answers))) => self.answer(statement, answers),
            Job::User(Wish::Enlist { number }) if changed => self.join(*number),
            Job::Guests(None) | Job::User(_) => {}
        }
        self.turn_soon();
    }
}
