//! The manager's end of the simulated sessions.

use std::sync::Arc;
use std::time::Duration;

use shoal_model::{GuestAnswer, NetworkId, NodeDescription, NodeId, TableVersion, TaskId};
use shoal_protocol::session::manager_message::Message as Down;
use shoal_protocol::session::node_message::Message as Up;
use shoal_protocol::session::{GuestAnswers, Hello, ManagerMessage, NodeMessage, TableAck, Welcome};
use shoal_protocol::{decode, encode, negotiate};

use super::link::{Carried, End, LinkId};
use super::manager::{ManagerEvent, Statement};
use super::world::{World, note};
use crate::dispatcher::Report;
use crate::dispatcher::frames::Sent;
use crate::dispatcher::hub::NodeView;
use crate::plan::Patience;

/// One node's session.
pub(super) struct Session {
    pub(super) node: NodeId,
    pub(super) link: LinkId,
    sent: Sent,
    /// The newest view, sent or not; `None` until the hub knows of the session.
    pub(super) view: Option<Arc<NodeView>>,
    pump_due: bool,
    heard: Duration,
    silence: Duration,
}

impl World {
    /// A frame from a node.
    pub(super) fn manager_hears(&mut self, link: LinkId, message: NodeMessage) {
        let Some(held) = self.links.get(&link) else { return };
        let current = self.manager.as_ref().is_some_and(|manager| manager.life == held.manager_life);
        let Some(message) = message.message.filter(|_| current) else { return };
        match (held.session, message) {
            (None, Up::Hello(hello)) => self.greet(link, &hello),
            (None, _) => self.close(link, End::Manager),
            (Some(session), message) => self.session_hears(session, message),
        }
    }

    fn greet(&mut self, link: LinkId, hello: &Hello) {
        let (number, now, monotonic) = (self.number(), self.now(), self.monotonic());
        let Some(manager) = &mut self.manager else { return };
        let node = NodeId::new(&hello.node_id);
        let protocol = negotiate(hello.protocol_min, hello.protocol_max);
        if manager.state.node(&node).is_none() {
            return self.refuse(link);
        }
        if protocol.is_none() {
            return self.close(link, End::Manager);
        }
        let description: NodeDescription = decode(&hello.description).expect("a description");
        let held: std::collections::BTreeMap<NetworkId, TableVersion> =
            hello.held.iter().map(TableAck::parts).collect();
        let Patience { beat, down: silence, .. } = Patience::of(&manager.state);
        manager.hub.open(&node, number, description, held.clone(), monotonic);
        manager.views.insert(node.clone(), number);
        let session = Session {
            node: node.clone(),
            link,
            sent: Sent::holding(held),
            view: None,
            pump_due: false,
            heard: now,
            silence,
        };
        let superseded = manager.sessions.iter().find(|(_, session)| session.node == node);
        let superseded = superseded.map(|(_, session)| session.link);
        manager.sessions.insert(number, session);
        note!(self, "session {number} of {node} opens");
        if let Some(link) = self.links.get_mut(&link) {
            link.session = Some(number);
        }
        let heartbeat_period_ms = u64::try_from(beat.as_millis()).unwrap_or(u64::MAX);
        self.say(
            link,
            Down::Welcome(Welcome { protocol: protocol.unwrap_or_default(), heartbeat_period_ms }),
        );
        // The node opened another session.
        if let Some(old) = superseded {
            self.close(old, End::Manager);
        }
        self.manager_later(silence, ManagerEvent::Silence(number));
        self.hub_soon();
    }

    /// Answers a statement, unless its node has opened another session.
    pub(super) fn answer(&mut self, statement: &Statement, answers: &[GuestAnswer]) {
        let Some(manager) = &self.manager else { return };
        if manager.views.get(&statement.node) != Some(&statement.session) {
            return;
        }
        let Some(link) = manager.sessions.get(&statement.session).map(|session| session.link) else { return };
        let answers = answers.iter().map(encode).collect();
        self.say(link, Down::GuestAnswers(GuestAnswers { generation: statement.generation, answers }));
    }

    fn say(&mut self, link: LinkId, message: Down) {
        self.send(link, End::Node, Carried::Down(ManagerMessage { message: Some(message) }));
    }

    fn session_hears(&mut self, id: u64, message: Up) {
        let (now, monotonic) = (self.now(), self.monotonic());
        let Some(manager) = &mut self.manager else { return };
        let Some(session) = manager.sessions.get_mut(&id) else { return };
        session.heard = now;
        let node = session.node.clone();
        manager.hub.heard(&node, id, monotonic);
        let acknowledged = matches!(message, Up::Ack(_));
        match message {
            Up::Ack(ack) => {
                let (network, version) = ack.parts();
                note!(self, "{node} acknowledges {network} at {}", version.revision);
                manager.hub.ack(&node, id, network, version);
            }
            Up::Statuses(statuses) => {
                for report in statuses.reports {
                    let status = decode(&report.status).expect("a status");
                    self.take_report(Report {
                        node: node.clone(),
                        task: TaskId::new(&report.task_id),
                        status,
                    });
                }
            }
            Up::TableRequest(request) => {
                session.sent.forget_table(&NetworkId::new(&request.network_id));
                note!(self, "{node} asks for a snapshot of {}", request.network_id);
                self.pump_soon(id);
            }
            Up::Guests(statement) => {
                let wanted =
                    statement.wanted.iter().map(|wanted| decode(wanted).expect("a request")).collect();
                self.take_statement(Statement {
                    node,
                    session: id,
                    generation: statement.generation,
                    wanted,
                });
            }
            Up::Hello(_) => {
                let link = session.link;
                self.close(link, End::Manager);
            }
            _ => {}
        }
        if acknowledged { self.hub_soon() } else { self.heard_only() }
    }

    /// The session's end of its link has closed.
    pub(super) fn session_ended(&mut self, id: u64) {
        let Some(manager) = &mut self.manager else { return };
        let Some(session) = manager.sessions.remove(&id) else { return };
        let node = session.node;
        manager.hub.close(&node, id);
        if manager.views.get(&node) == Some(&id) {
            manager.views.remove(&node);
        }
        note!(self, "session {id} of {node} ends");
        self.hub_soon();
    }

    pub(super) fn listen(&mut self, id: u64) {
        let now = self.now();
        let Some(session) = self.manager.as_ref().and_then(|manager| manager.sessions.get(&id)) else {
            return;
        };
        let (until, link) = (session.heard + session.silence, session.link);
        if until <= now {
            note!(self, "session {id} is silent");
            self.close(link, End::Manager);
        } else {
            self.manager_later(until - now, ManagerEvent::Silence(id));
        }
    }

    pub(super) fn pump_soon(&mut self, id: u64) {
        let wait = self.millis((0.02, 2.0));
        let manager = self.manager.as_mut();
        let Some(session) = manager.and_then(|manager| manager.sessions.get_mut(&id)) else { return };
        if !std::mem::replace(&mut session.pump_due, true) {
            self.manager_later(wait, ManagerEvent::Pump(id));
        }
    }

    /// Sends what the node does not know yet.
    pub(super) fn pump(&mut self, id: u64) {
        let manager = self.manager.as_mut();
        let Some(session) = manager.and_then(|manager| manager.sessions.get_mut(&id)) else { return };
        session.pump_due = false;
        let Some(view) = session.view.clone() else { return };
        let (node, link) = (session.node.clone(), session.link);
        let frames = session.sent.frames(&view, &|_| None);
        for frame in frames {
            let Some(message) = frame.message else { continue };
            self.check_frame(&node, &message);
            self.say(link, message);
        }
    }
}
