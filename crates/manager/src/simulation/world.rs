//! The simulated cluster as a whole, and what can happen in it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use shoal_model::{ContainerId, NodeId, TaskId};
use shoal_store::State;

use super::facts::Facts;
use super::link::{Carried, End, Link, LinkId};
use super::machine::Machine;
use super::manager::{InFlight, Manager, ManagerEvent};
use super::plain::PlainEvent;
use super::queue::Queue;
use super::script::{Mend, Script};
use super::store::Memory;
use super::trace::Trace;
use super::weather::Weather;

/// Something that happens.
#[derive(Debug)]
pub(super) enum Event {
    /// A frame, or the end of the conversation, reaches one end of a link.
    Arrive {
        link: LinkId,
        end: End,
        what: Carried,
    },
    /// What a partition held up goes on.
    Resume {
        link: LinkId,
        end: End,
    },
    /// An end looks whether the other one is still there.
    Notice {
        link: LinkId,
        end: End,
    },
    /// A commit reaches the store.
    Commit(u64),
    /// Concerns one life of the manager only.
    Manager {
        life: u64,
        what: ManagerEvent,
    },
    /// Concerns one life of a daemon only.
    Daemon {
        node: usize,
        life: u64,
        what: DaemonEvent,
    },
    /// A container ends, whoever watches.
    ContainerEnds {
        node: usize,
        task: TaskId,
        instance: u64,
        code: i32,
    },
    PlainEnds {
        node: usize,
        id: ContainerId,
    },
    /// The next step of the script.
    Step,
    Mend(Mend),
    /// Clients connect, from everywhere to everything.
    Connections,
    /// Is everything as it is to be?
    Look,
}

/// What a daemon has planned for itself.
#[derive(Debug)]
pub(super) enum DaemonEvent {
    Connect,
    OpenBound(LinkId),
    Heartbeat(LinkId),
    /// Statuses travel together.
    Report,
    /// A look at the tables that are to change.
    Pass,
    /// The kernel goes over to what is being applied.
    Switch,
    Applied,
    Wake(TaskId),
    Plain(ContainerId, PlainEvent),
    Done(TaskId),
}

pub(super) struct World {
    pub(super) rng: StdRng,
    pub(super) queue: Queue,
    pub(super) trace: Trace,
    pub(super) weather: Weather,
    pub(super) store: Memory,
    /// What the store holds, as a state.
    pub(super) truth: State,
    pub(super) manager: Option<Manager>,
    /// How many managers there have been.
    pub(super) terms: u64,
    pub(super) commits: BTreeMap<u64, InFlight>,
    pub(super) machines: Vec<Machine>,
    /// How many nodes there have been.
    pub(super) enlisted: usize,
    pub(super) links: BTreeMap<LinkId, Link>,
    /// Nodes that manager frames do not reach, and that do not reach the manager.
    pub(super) cut: BTreeSet<usize>,
    /// Pairs of nodes, the lower number first, that do not reach each other.
    pub(super) walls: BTreeSet<(usize, usize)>,
    pub(super) script: Script,
    pub(super) facts: Facts,
    /// The first invariant that did not hold.
    pub(super) violation: Option<String>,
    /// For links, commits, containers and whatever else is told apart by a number.
    numbers: u64,
}

/// When the simulated wall clock begins.
const EPOCH: Timestamp = Timestamp::constant(1_767_225_600, 0);

/// One line of the trace.
macro_rules! note {
    ($world:expr, $($what:tt)*) => {{
        let now = $world.queue.now();
        $world.trace.line(now, format_args!($($what)*))
    }};
}
pub(super) use note;

impl World {
    pub(super) fn new(seed: u64, weather: impl FnOnce(&mut StdRng) -> Weather, trace: Trace) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let weather = weather(&mut rng);
        let mut world = Self {
            rng,
            queue: Queue::default(),
            trace,
            script: Script::default(),
            weather,
            store: Memory::default(),
            truth: State::default(),
            manager: None,
            terms: 0,
            commits: BTreeMap::new(),
            machines: Vec::new(),
            enlisted: 0,
            links: BTreeMap::new(),
            cut: BTreeSet::new(),
            walls: BTreeSet::new(),
            facts: Facts::default(),
            violation: None,
            numbers: 0,
        };
        note!(world, "seed {seed}: {:?}", world.weather);
        world.begin();
        world
    }

    /// Until an invariant is broken or the script is at its end.
    pub(super) fn run(&mut self) {
        while self.violation.is_none() && !self.script.is_over() {
            let Some(event) = self.queue.next() else {
                return self.violate("nothing happens any more".into());
            };
            self.take(event);
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Arrive { link, end, what } => self.arrive(link, end, what),
            Event::Resume { link, end } => self.resume(link, end),
            Event::Notice { link, end } => self.notice(link, end),
            Event::Commit(number) => self.commit_arrives(number),
            Event::Manager { life, what } => self.manager_acts(life, what),
            Event::Daemon { node, life, what } => self.daemon_acts(node, life, what),
            Event::ContainerEnds { node, task, instance, code } => {
                self.container_ends(node, &task, instance, code);
            }
            Event::PlainEnds { node, id } => self.plain_ends(node, &id),
            Event::Step => self.step(),
            Event::Mend(mend) => self.mend(mend),
            Event::Connections => self.connections(),
            Event::Look => self.look(),
        }
    }

    pub(super) fn now(&self) -> Duration {
        self.queue.now()
    }

    pub(super) fn wall(&self) -> Timestamp {
        EPOCH + self.now()
    }

    pub(super) fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    pub(super) fn chance(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.rng.random_bool(probability)
    }

    /// A time between these milliseconds.
    pub(super) fn millis(&mut self, (least, most): (f64, f64)) -> Duration {
        Duration::from_secs_f64(self.rng.random_range(least..=most) / 1000.0)
    }

    /// One of them, `None` if there are none.
    pub(super) fn pick<T>(&mut self, mut from: Vec<T>) -> Option<T> {
        if from.is_empty() {
            return None;
        }
        let index = self.rng.random_range(0..from.len());
        Some(from.swap_remove(index))
    }

    pub(super) fn machine(&self, id: &NodeId) -> Option<&Machine> {
        self.machines.iter().find(|machine| machine.id == *id)
    }

    pub(super) fn violate(&mut self, what: String) {
        note!(self, "VIOLATION {what}");
        self.violation.get_or_insert(what);
    }
}
