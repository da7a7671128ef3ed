//! The simulated network between manager and nodes. Within one link frames are ordered and reliable,
//! however late; a link that breaks loses what is on its way, a partition holds it up.

use std::collections::VecDeque;
use std::time::Duration;

use shoal_protocol::session::{ManagerMessage, NodeMessage};

use super::world::{Event, World, note};

pub(super) type LinkId = u64;

/// An end of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Manager,
    Node,
}

/// What travels.
#[derive(Debug)]
pub(super) enum Carried {
    Up(NodeMessage),
    Down(ManagerMessage),
    /// The node is no member of the cluster.
    Refused,
    /// The other end has closed; nothing comes after it.
    Closed,
}

/// One connection of a node with the manager.
pub(super) struct Link {
    pub(super) node: usize,
    pub(super) daemon_life: u64,
    pub(super) manager_life: u64,
    /// The manager's number of the session on it, once the node has said hello.
    pub(super) session: Option<u64>,
    /// Nothing gets through any more; the ends have yet to notice.
    broken: bool,
    open: [bool; 2],
    /// When the last frame towards each end arrives.
    arrival: [Duration; 2],
    stalled: [VecDeque<Carried>; 2],
}

impl End {
    fn other(self) -> Self {
        match self {
            Self::Manager => Self::Node,
            Self::Node => Self::Manager,
        }
    }
}

impl Link {
    pub(super) fn is_open(&self, end: End) -> bool {
        self.open[end as usize]
    }
}

/// A node that hears nothing gives its link up after this time: the keep-alive's pause and patience.
const KEEP_ALIVE_MS: (f64, f64) = (1_500.0, 3_000.0);
/// An end notices in this time that its link has broken.
const NOTICE_MS: (f64, f64) = (0.1, 50.0);

impl World {
    pub(super) fn connect(&mut self, node: usize, daemon_life: u64, manager_life: u64) -> LinkId {
        let id = self.number();
        let link = Link {
            node,
            daemon_life,
            manager_life,
            session: None,
            broken: false,
            open: [true; 2],
            arrival: [self.now(); 2],
            stalled: Default::default(),
        };
        self.links.insert(id, link);
        id
    }

    /// Sends towards `end`.
    pub(super) fn send(&mut self, id: LinkId, end: End, what: Carried) {
        let mut latency = self.weather.latency_ms;
        if self.chance(self.weather.late_frames) {
            latency = (latency.1, 500.0);
        }
        let arrival = self.now() + self.millis(latency);
        let Some(link) = self.links.get_mut(&id).filter(|link| !link.broken) else { return };
        let arrival = arrival.max(link.arrival[end as usize] + Duration::from_nanos(1));
        link.arrival[end as usize] = arrival;
        self.queue.at(arrival, Event::Arrive { link: id, end, what });
    }

    pub(super) fn arrive(&mut self, id: LinkId, end: End, what: Carried) {
        let Some(link) = self.links.get_mut(&id).filter(|link| !link.broken) else { return };
        let stalled = &mut link.stalled[end as usize];
        if self.cut.contains(&link.node) || !stalled.is_empty() {
            stalled.push_back(what);
            return;
        }
        self.deliver(id, end, what);
    }

    fn deliver(&mut self, id: LinkId, end: End, what: Carried) {
        if !self.links.get(&id).is_some_and(|link| link.is_open(end)) {
            return;
        }
        match what {
            Carried::Up(message) => self.manager_hears(id, message),
            Carried::Down(message) => self.daemon_hears(id, message),
            Carried::Refused => self.daemon_refused(id),
            Carried::Closed => self.close(id, end),
        }
    }

    pub(super) fn resume(&mut self, id: LinkId, end: End) {
        // What waited goes with the machine or the connection it waited in.
        let Some(link) = self.links.get_mut(&id).filter(|link| !link.broken) else { return };
        if self.cut.contains(&link.node) {
            return;
        }
        for what in std::mem::take(&mut link.stalled[end as usize]) {
            self.deliver(id, end, what);
        }
    }

    /// The manager has nothing to do with a node that is no member.
    pub(super) fn refuse(&mut self, id: LinkId) {
        self.send(id, End::Node, Carried::Refused);
        self.close(id, End::Manager);
    }

    /// One end closes; the other one is told.
    pub(super) fn close(&mut self, id: LinkId, end: End) {
        let Some(link) = self.links.get_mut(&id).filter(|link| link.is_open(end)) else { return };
        link.open[end as usize] = false;
        let (node, over) = (link.node, !link.is_open(end.other()));
        note!(self, "link {id} of node {node}: {end:?} closes");
        if over {
            let session = self.links.remove(&id).and_then(|link| link.session);
            self.end_closed(id, end, node, session);
            return;
        }
        let session = self.links.get(&id).and_then(|link| link.session);
        self.send(id, end.other(), Carried::Closed);
        self.end_closed(id, end, node, session);
    }

    fn end_closed(&mut self, id: LinkId, end: End, node: usize, session: Option<u64>) {
        match (end, session) {
            (End::Manager, Some(session)) => self.session_ended(session),
            (End::Manager, None) => {}
            (End::Node, _) => self.daemon_lost_link(node, id),
        }
    }

    /// The link loses what is on its way; both ends will notice.
    pub(super) fn break_link(&mut self, id: LinkId) {
        let Some(link) = self.links.get_mut(&id).filter(|link| !link.broken) else { return };
        link.broken = true;
        let node = link.node;
        note!(self, "link {id} of node {node} breaks");
        for end in [End::Manager, End::Node] {
            let wait = self.millis(NOTICE_MS);
            self.queue.after(wait, Event::Notice { link: id, end });
        }
    }

    /// One machine is gone without a word.
    pub(super) fn silence_link(&mut self, id: LinkId, gone: End) {
        let Some(link) = self.links.get_mut(&id) else { return };
        link.broken = true;
        link.open[gone as usize] = false;
        if !link.is_open(gone.other()) {
            self.links.remove(&id);
        } else if gone == End::Manager {
            self.expect_keep_alive(id);
        }
        // A manager notices by itself that a node is silent.
    }

    pub(super) fn notice(&mut self, id: LinkId, end: End) {
        let Some(link) = self.links.get(&id) else { return };
        if link.broken || self.cut.contains(&link.node) {
            self.close(id, end);
        }
    }

    fn expect_keep_alive(&mut self, id: LinkId) {
        let wait = self.millis(KEEP_ALIVE_MS);
        self.queue.after(wait, Event::Notice { link: id, end: End::Node });
    }

    /// Manager and node do not reach each other any more.
    pub(super) fn cut_off(&mut self, node: usize) {
        if self.cut.insert(node) {
            note!(self, "node {node} is cut off from the manager");
            for id in self.links_of(node) {
                self.expect_keep_alive(id);
            }
        }
    }

    pub(super) fn reconnect(&mut self, node: usize) {
        if self.cut.remove(&node) {
            note!(self, "node {node} reaches the manager again");
            self.disturb(node, self.now());
            for id in self.links_of(node) {
                for end in [End::Manager, End::Node] {
                    let wait = self.millis(self.weather.latency_ms);
                    self.queue.after(wait, Event::Resume { link: id, end });
                }
            }
        }
    }

    /// It leads to the present manager.
    pub(super) fn is_sound(&self, id: LinkId) -> bool {
        let term = self.manager.as_ref().map(|manager| manager.life);
        self.links.get(&id).is_some_and(|link| !link.broken && Some(link.manager_life) == term)
    }

    pub(super) fn links_of(&self, node: usize) -> Vec<LinkId> {
        self.links.iter().filter(|(_, link)| link.node == node).map(|(id, _)| *id).collect()
    }

    pub(super) fn are_separated(&self, a: usize, b: usize) -> bool {
        self.walls.contains(&(a.min(b), a.max(b)))
    }
}
