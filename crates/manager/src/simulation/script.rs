//! What users do and what goes wrong, step by step; then everything is mended and must come right.

use std::time::Duration;

use rand::Rng;
use shoal_model::{Availability, NodeSpec, Service};

use super::link::End;
use super::machine::ContainerState;
use super::manager::Fate;
use super::weather::Fault;
use super::wish::{Wish, node_id};
use super::world::{Event, World, note};

/// How far a run is.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) enum Script {
    #[default]
    Running,
    /// Everything is mended and must come right by then.
    Settling {
        until: Duration,
    },
    /// Everything is being removed and must be gone by then.
    Removing {
        until: Duration,
    },
    Over,
}

/// The end of a fault.
#[derive(Debug)]
pub(super) enum Mend {
    CutOff(usize),
    Wall(usize, usize),
    Daemon(usize),
    Power(usize),
    Slow(usize),
}

/// In this time after the last fault everything is as declared.
const SETTLE_BOUND: Duration = Duration::from_secs(150);
/// The same for the removal of everything.
const REMOVE_BOUND: Duration = Duration::from_secs(60);
const LOOK_PAUSE: Duration = Duration::from_secs(1);
const CONNECTIONS_MS: (f64, f64) = (20.0, 400.0);

impl Script {
    pub(super) fn is_over(&self) -> bool {
        *self == Self::Over
    }
}

impl World {
    pub(super) fn step(&mut self) {
        if self.now() >= self.weather.length {
            return self.mend_all();
        }
        let wait = self.millis(self.weather.step_ms);
        self.queue.after(wait, Event::Step);
        let fault = self.chance(self.weather.fault_share);
        let fault = if fault { self.pick(self.weather.faults.clone()) } else { None };
        match fault {
            Some(fault) => self.go_wrong(fault),
            None if self.chance(0.25) => self.use_plains(),
            None => {
                let wish = Wish::random(&mut self.rng, self.enlisted, self.machines.len());
                self.enlisted += usize::from(matches!(wish, Wish::Enlist { .. }));
                self.ask(wish);
            }
        }
    }

    fn go_wrong(&mut self, fault: Fault) {
        let node = self.rng.random_range(0..self.machines.len());
        let bound = if self.chance(0.3) { (5_000.0, 40_000.0) } else { (50.0, 5_000.0) };
        let wait = self.millis(bound);
        note!(self, "fault {fault:?} of node {node}, for {wait:?}");
        match fault {
            Fault::BreakLink => {
                for link in self.links_of(node) {
                    self.break_link(link);
                }
            }
            // The manager's own node talks to it over a socket.
            Fault::CutOff if node == 0 => {}
            Fault::CutOff => {
                self.cut_off(node);
                if self.chance(0.7) {
                    // A link that is down separates a node from all others.
                    (0..self.machines.len()).filter(|other| *other != node).for_each(|other| {
                        self.walls.insert((node.min(other), node.max(other)));
                    });
                }
                self.queue.after(wait, Event::Mend(Mend::CutOff(node)));
            }
            Fault::Wall => {
                let other = self.rng.random_range(0..self.machines.len());
                if other != node {
                    self.walls.insert((node.min(other), node.max(other)));
                    self.queue.after(wait, Event::Mend(Mend::Wall(node.min(other), node.max(other))));
                }
            }
            Fault::CrashDaemon => self.crash(node, wait),
            Fault::CrashManager => self.crash(0, wait),
            Fault::LoseNode => {
                if node == 0 {
                    self.kill_manager();
                }
                self.power_off(node);
                self.queue.after(wait, Event::Mend(Mend::Power(node)));
            }
            Fault::Slow => {
                self.machines[node].slow = true;
                self.queue.after(wait, Event::Mend(Mend::Slow(node)));
            }
            Fault::Die => self.hurt(node, false),
            Fault::Unhealthy => self.hurt(node, true),
        }
    }

    /// A daemon dies; on the first node that is the manager, too.
    fn crash(&mut self, node: usize, wait: Duration) {
        if node == 0 {
            self.kill_manager();
        }
        self.crash_daemon(node);
        self.queue.after(wait, Event::Mend(Mend::Daemon(node)));
    }

    fn kill_manager(&mut self) {
        let late = self.millis((0.0, 15_000.0));
        let fates = [Fate::Lost, Fate::InTime, Fate::Late(late)];
        let fate = fates[self.rng.random_range(0..fates.len())];
        self.crash_manager(fate);
        let links: Vec<_> = self.links.keys().copied().collect();
        let powered = self.machines[0].powered;
        for link in links {
            if powered {
                self.close(link, End::Manager);
            } else {
                self.silence_link(link, End::Manager);
            }
        }
    }

    /// Some container of the node dies, or becomes unhealthy.
    fn hurt(&mut self, node: usize, unhealthy: bool) {
        let containers = self.machines[node].containers.iter();
        let running = containers.filter(|(_, container)| container.state == ContainerState::Running);
        let running: Vec<_> = running.map(|(task, container)| (task.clone(), container.instance)).collect();
        let Some((task, instance)) = self.pick(running) else { return };
        if unhealthy {
            if let Some(container) = self.machines[node].containers.get_mut(&task) {
                container.unhealthy = true;
            }
            self.wake_soon(node, &task);
        } else {
            self.container_ends(node, &task, instance, 1);
        }
    }

    pub(super) fn mend(&mut self, mend: Mend) {
        match mend {
            Mend::CutOff(node) => {
                self.reconnect(node);
                self.walls.retain(|(a, b)| *a != node && *b != node);
            }
            Mend::Wall(a, b) => drop(self.walls.remove(&(a, b))),
            Mend::Daemon(node) => {
                self.start_daemon(node);
                self.start_manager_of(node);
            }
            Mend::Power(node) => {
                self.power_on(node);
                self.start_manager_of(node);
            }
            Mend::Slow(node) => {
                self.machines[node].slow = false;
                self.disturb(node, self.now());
            }
        }
    }

    fn start_manager_of(&mut self, node: usize) {
        if node == 0 {
            self.start_manager();
        }
    }

    fn mend_all(&mut self) {
        note!(self, "everything is mended");
        for node in 0..self.machines.len() {
            self.reconnect(node);
            self.power_on(node);
            self.start_daemon(node);
            self.machines[node].slow = false;
            self.disturb(node, self.now());
        }
        self.start_manager();
        self.walls.clear();
        (self.weather.late_frames, self.weather.failing_tables) = (0.0, 0.0);
        (self.weather.failing_starts, self.weather.misfits) = (0.0, 0.0);
        self.script = Script::Settling { until: self.now() + SETTLE_BOUND };
        self.queue.after(LOOK_PAUSE, Event::Look);
        for number in 0..self.enlisted {
            self.ask(Wish::Availability { node: number, to: Availability::Active });
        }
    }

    /// Is everything as it is to be?
    pub(super) fn look(&mut self) {
        self.queue.after(LOOK_PAUSE, Event::Look);
        // Enlisted, but the machine was never told: its user removes it, and has it join again.
        let ghosts = (0..self.enlisted).filter(|number| {
            let id = node_id(*number);
            self.truth.node(&id).is_some() && self.machine(&id).is_none()
        });
        for node in ghosts.collect::<Vec<_>>() {
            self.ask(Wish::RemoveNode { node, force: true });
        }
        // What stopped an update is over: its user goes on with it.
        let services = self.truth.services().enumerate();
        let paused = services.filter(|(_, service)| is_paused(service)).map(|(index, _)| index as u64);
        for service in paused.collect::<Vec<_>>() {
            self.ask(Wish::Update { service });
        }
        match self.script {
            Script::Settling { until } => match self.unsettled() {
                None => {
                    note!(self, "everything is as declared");
                    self.script = Script::Removing { until: self.now() + REMOVE_BOUND };
                    self.ask(Wish::RemoveServices);
                    self.stop_all_plains();
                }
                Some(what) if self.now() >= until => self.violate(format!("not settled: {what}")),
                Some(_) => {}
            },
            Script::Removing { until } => {
                self.ask(Wish::RemoveNetworks);
                match self.left_over() {
                    None => self.script = Script::Over,
                    Some(what) if self.now() >= until => self.violate(format!("not gone: {what}")),
                    Some(_) => {}
                }
            }
            Script::Running | Script::Over => {}
        }
    }

    /// The cluster at its beginning.
    pub(super) fn begin(&mut self) {
        self.found();
        self.start_manager();
        for node in 0..self.machines.len() {
            self.start_daemon(node);
        }
        self.queue.after(Duration::ZERO, Event::Step);
        self.connections_later();
    }

    pub(super) fn connections_later(&mut self) {
        let wait = self.millis(CONNECTIONS_MS);
        self.queue.after(wait, Event::Connections);
    }
}

fn is_paused(service: &Service) -> bool {
    service.update_status.as_ref().is_some_and(|update| update.state.is_paused())
}

/// A node that takes tasks, or not.
pub(super) fn with_availability(spec: &NodeSpec, availability: Availability) -> NodeSpec {
    NodeSpec { availability, ..spec.clone() }
}
