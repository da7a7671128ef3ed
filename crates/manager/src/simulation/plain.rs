//! Plain containers of simulated nodes that are guests on the cluster's networks: what their daemons state
//! of them, and what becomes of the answers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use shoal_model::{
    Attachment, ContainerId, EndpointId, GuestAnswer, GuestRequest, Network, NetworkId, ObjectKey,
    PlaceAnswer, PlaceRequest, RefusalReason,
};
use shoal_protocol::encode;
use shoal_protocol::session::GuestStatement;

use super::machine::Machine;
use super::world::{DaemonEvent, Event, World, note};

/// An answer comes within this time, or the container is not started.
const ANSWER_BOUND: Duration = Duration::from_secs(5);
/// The same for the tables it needs.
const TABLES_BOUND: Duration = Duration::from_secs(15);
/// How long a container takes to end when it is told, and its sandbox to be removed.
const EXIT_MS: (f64, f64) = (0.0, 800.0);
const CLEAN_UP_MS: (f64, f64) = (1.0, 60.0);
/// So many there are at a time: with all tasks they fit into one network.
const PLAINS_MAX: usize = 3;

/// One plain container. It goes with its end.
pub(super) struct Plain {
    /// What its user asked for.
    place: PlaceRequest,
    pub(super) attachment: Option<Attachment>,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Until the answer to this statement.
    Asks(u64),
    /// Until its network is in force.
    Waits,
    Starts,
    Runs,
    /// It has been told to end.
    Ends,
    /// Its sandbox is being removed.
    Ended,
}

/// What a daemon has planned for one of them.
#[derive(Debug)]
pub(super) enum PlainEvent {
    AnswerBound,
    TablesBound,
    Started,
    Removed,
}

impl Plain {
    /// Something may answer on its address.
    pub(super) fn runs(&self) -> bool {
        matches!(self.stage, Stage::Runs | Stage::Ends)
    }

    pub(super) fn is_on(&self, network: &NetworkId) -> bool {
        self.attachment.as_ref().is_some_and(|held| held.network == *network)
    }

    /// It neither waits for anything nor is it on its way out.
    pub(super) fn is_settled(&self) -> bool {
        self.stage == Stage::Runs
    }

    fn request(&self, id: &ContainerId) -> GuestRequest {
        let place = PlaceRequest { held: self.attachment.clone(), ..self.place.clone() };
        GuestRequest { id: id.clone(), name: id.to_string(), places: vec![place] }
    }
}

impl Machine {
    /// What outlives its daemon: a new one goes on with what runs, and knows of nothing else.
    pub(super) fn keep_running_plains(&mut self) {
        self.plains.retain(|_, plain| plain.runs());
    }
}

impl World {
    /// A user starts one, or stops one.
    pub(super) fn use_plains(&mut self) {
        let node = self.rng.random_range(0..self.machines.len());
        let count: usize = self.machines.iter().map(|machine| machine.plains.len()).sum();
        if count < PLAINS_MAX && self.chance(0.6) {
            return self.run_plain(node);
        }
        let running = self.machines[node].plains.iter().filter(|(_, plain)| plain.stage == Stage::Runs);
        let running: Vec<_> = running.map(|(id, _)| id.clone()).collect();
        if let Some(id) = self.pick(running) {
            self.stop_plain(node, &id);
        }
    }

    /// `docker run --network`, at times with `--ip`.
    fn run_plain(&mut self, node: usize) {
        let networks = self.truth.networks().filter(|network| network.spec.attachable).cloned().collect();
        let Some(network) = self.pick::<Arc<Network>>(networks) else { return };
        let address = if self.chance(0.6) { self.tempting_address(&network) } else { None };
        let id = ContainerId::new(format!("plain{}", self.number()));
        let Some(daemon) = &mut self.machines[node].daemon else { return };
        daemon.statement += 1;
        let stage = Stage::Asks(daemon.statement);
        note!(self, "node {node}: {id} wants to be on {} at {address:?}", network.spec.name);
        let place = PlaceRequest { network: network.spec.name.clone(), address, ..PlaceRequest::default() };
        self.machines[node].plains.insert(id.clone(), Plain { place, attachment: None, stage });
        self.state_plains(node);
        self.daemon_later(node, ANSWER_BOUND, DaemonEvent::Plain(id, PlainEvent::AnswerBound));
    }

    /// One that was somebody's a moment ago and is not any more, but that some node still sends to: it may
    /// not be had. Any, if there is no such address.
    fn tempting_address(&mut self, network: &Network) -> Option<IpAddr> {
        let holders = self.holders();
        let own = ObjectKey::Network(network.id.clone()).path();
        let is_left = |address: &IpAddr| {
            holders.get(&(network.id.clone(), *address)).is_none_or(|holder| *holder == own)
        };
        let tables = self.machines.iter().filter_map(|machine| machine.kernel.get(&network.id));
        let known = tables.flat_map(|table| table.endpoints.values()).map(|entry| entry.address.addr());
        let left: BTreeSet<IpAddr> = known.filter(is_left).collect();
        let pools = network.state.iter().flat_map(|state| &state.pools);
        let subnets = pools.map(|pool| pool.subnet).filter(|subnet| subnet.addr().is_ipv4());
        let hosts: Vec<IpAddr> = subnets.flat_map(|subnet| subnet.hosts()).collect();
        self.pick(left.into_iter().collect()).or_else(|| self.pick(hosts))
    }

    pub(super) fn stop_plain(&mut self, node: usize, id: &ContainerId) {
        let Some(plain) = self.machines[node].plains.get_mut(id) else { return };
        if plain.stage != Stage::Runs {
            return;
        }
        plain.stage = Stage::Ends;
        note!(self, "node {node}: {id} is told to end");
        let wait = self.millis(EXIT_MS);
        self.queue.after(wait, Event::PlainEnds { node, id: id.clone() });
    }

    pub(super) fn stop_all_plains(&mut self) {
        for node in 0..self.machines.len() {
            let ids: Vec<ContainerId> = self.machines[node].plains.keys().cloned().collect();
            ids.iter().for_each(|id| self.stop_plain(node, id));
        }
    }

    /// Everything that is wanted now; also the first thing in each session.
    pub(super) fn state_plains(&mut self, node: usize) {
        let machine = &self.machines[node];
        let Some(generation) = machine.daemon.as_ref().map(|daemon| daemon.statement) else { return };
        let wanted = machine.plains.iter().map(|(id, plain)| encode(&plain.request(id))).collect();
        self.tell_if_open(node, GuestStatement { generation, wanted });
    }

    /// It wants nothing any more.
    fn forget_plain(&mut self, node: usize, id: &ContainerId) {
        let machine = &mut self.machines[node];
        machine.plains.remove(id);
        if let Some(daemon) = &mut machine.daemon {
            daemon.statement += 1;
            note!(self, "node {node}: {id} is gone");
            self.state_plains(node);
        }
    }

    pub(super) fn plain_answers(&mut self, node: usize, generation: u64, answers: Vec<GuestAnswer>) {
        let answers: BTreeMap<ContainerId, Option<PlaceAnswer>> =
            answers.into_iter().map(|answer| (answer.id, answer.places.into_iter().next())).collect();
        let ids: Vec<ContainerId> = self.machines[node].plains.keys().cloned().collect();
        for id in ids {
            let answer = answers.get(&id).cloned().flatten();
            let Some(plain) = self.machines[node].plains.get_mut(&id) else { continue };
            match (plain.stage, answer) {
                (Stage::Asks(asked), _) if asked > generation => {}
                (Stage::Asks(_), Some(PlaceAnswer::Attached(attachment))) => {
                    plain.attachment = Some(attachment);
                    plain.stage = Stage::Waits;
                    let bound = DaemonEvent::Plain(id, PlainEvent::TablesBound);
                    self.daemon_later(node, TABLES_BOUND, bound);
                }
                (Stage::Asks(_), _) => self.forget_plain(node, &id),
                (Stage::Runs, Some(answer)) if is_eviction(plain, &answer) => {
                    note!(self, "node {node}: the address of {id} is another's now");
                    self.stop_plain(node, &id);
                }
                _ => {}
            }
        }
        self.wake_plains(node);
    }

    /// Starts what has its network.
    pub(super) fn wake_plains(&mut self, node: usize) {
        let machine = &mut self.machines[node];
        let Some(daemon) = &machine.daemon else { return };
        let waiting = machine.plains.iter_mut().filter(|(_, plain)| plain.stage == Stage::Waits);
        let mut begun = Vec::new();
        for (id, plain) in waiting {
            let network = plain.attachment.as_ref().map(|held| &held.network);
            let endpoint = EndpointId::new(id.as_str());
            if network.is_some_and(|network| daemon.is_ready(&machine.kernel, network, &endpoint)) {
                plain.stage = Stage::Starts;
                begun.push(id.clone());
            }
        }
        for id in begun {
            let wait = self.millis(self.weather.start_ms);
            self.daemon_later(node, wait, DaemonEvent::Plain(id, PlainEvent::Started));
        }
    }

    pub(super) fn plain_acts(&mut self, node: usize, id: &ContainerId, what: PlainEvent) {
        let Some(plain) = self.machines[node].plains.get_mut(id) else { return };
        match (plain.stage, what) {
            (Stage::Asks(_), PlainEvent::AnswerBound) | (Stage::Waits, PlainEvent::TablesBound) => {
                self.forget_plain(node, id);
            }
            (Stage::Starts, PlainEvent::Started) => {
                plain.stage = Stage::Runs;
                note!(self, "node {node}: {id} runs");
                self.check_addresses();
            }
            (Stage::Ended, PlainEvent::Removed) => self.forget_plain(node, id),
            _ => {}
        }
    }

    /// Whoever watches.
    pub(super) fn plain_ends(&mut self, node: usize, id: &ContainerId) {
        let Some(plain) = self.machines[node].plains.get_mut(id) else { return };
        plain.stage = Stage::Ended;
        let wait = self.millis(CLEAN_UP_MS);
        if self.machines[node].daemon.is_some() {
            self.daemon_later(node, wait, DaemonEvent::Plain(id.clone(), PlainEvent::Removed));
        } else {
            self.machines[node].plains.remove(id);
        }
    }
}

/// The manager says that it cannot have what it has.
fn is_eviction(plain: &Plain, answer: &PlaceAnswer) -> bool {
    match answer {
        PlaceAnswer::Attached(given) => plain
            .attachment
            .as_ref()
            .is_some_and(|held| given.address != held.address || given.mac != held.mac),
        PlaceAnswer::Refused(refusal) => refusal.reason != RefusalReason::Unavailable,
    }
}
