//! What a node is sent, whatever happens in the cluster.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use shoal_model::*;
use shoal_protocol::decode;

use super::super::hub::Hub;
use super::*;
use crate::control;
use crate::plan::tests::{World, spec};

const NODES: usize = 3;
const NETWORKS: usize = 3;

#[derive(Debug, Clone)]
enum Step {
    /// A service on one or two networks.
    Create {
        replicas: u64,
        networks: (usize, usize),
    },
    Scale {
        service: usize,
        replicas: u64,
    },
    Remove {
        service: usize,
    },
    Fail {
        task: usize,
    },
    Run,
    /// A node acknowledges what it has.
    Acknowledge {
        node: usize,
    },
    /// A node loses its session, and comes back with what it holds.
    Reconnect {
        node: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let network = 0..NETWORKS;
    prop_oneof![
        (0..4u64, (network.clone(), network))
            .prop_map(|(replicas, networks)| Step::Create { replicas, networks }),
        (any::<usize>(), 0..4u64).prop_map(|(service, replicas)| Step::Scale { service, replicas }),
        any::<usize>().prop_map(|service| Step::Remove { service }),
        any::<usize>().prop_map(|task| Step::Fail { task }),
        Just(Step::Run),
        (0..NODES).prop_map(|node| Step::Acknowledge { node }),
        (0..NODES).prop_map(|node| Step::Reconnect { node }),
    ]
}

/// A node at the other end of its session.
#[derive(Default)]
struct Listener {
    session: u64,
    sent: Sent,
    tables: BTreeMap<NetworkId, NetworkTable>,
}

struct Stage {
    world: World,
    networks: Vec<NetworkId>,
    hub: Hub,
    nodes: BTreeMap<NodeId, Listener>,
    sessions: u64,
    services: u64,
}

impl Stage {
    fn set() -> Self {
        let mut world = World::new(NODES);
        let names = (0..NETWORKS).map(|number| format!("net{number}"));
        let networks = names.map(|name| world.network(&name, None).unwrap()).collect();
        world.run(1);
        let nodes = world.state.nodes().map(|node| (node.id.clone(), Listener::default())).collect();
        let mut stage = Self { world, networks, hub: Hub::default(), nodes, sessions: 0, services: 0 };
        let ids: Vec<NodeId> = stage.nodes.keys().cloned().collect();
        ids.iter().for_each(|node| stage.connect(node));
        stage
    }

    fn connect(&mut self, node: &NodeId) {
        self.sessions += 1;
        let listener = self.nodes.get_mut(node).unwrap();
        let held: BTreeMap<_, _> =
            listener.tables.iter().map(|(network, table)| (network.clone(), table.version)).collect();
        listener.session = self.sessions;
        listener.sent = Sent::holding(held.clone());
        let now = self.world.now.monotonic;
        self.hub.open(node, self.sessions, NodeDescription::default(), held, now);
    }

    fn take(&mut self, step: &Step) {
        let services: Vec<ServiceId> = self.world.state.services().map(|it| it.id.clone()).collect();
        let service = |number: &usize| services.get(number % services.len().max(1)).cloned();
        match step {
            Step::Create { replicas, networks: (one, other) } => {
                self.services += 1;
                let on: BTreeSet<&NetworkId> = [&self.networks[*one], &self.networks[*other]].into();
                let on: Vec<&NetworkId> = on.into_iter().collect();
                let declared = spec(&format!("s{}", self.services), *replicas, &on);
                self.world.service(declared).unwrap();
            }
            Step::Scale { service: number, replicas } => {
                if let Some(id) = service(number) {
                    let mode = ServiceMode::Replicated { replicas: *replicas };
                    self.world.change(&id, |spec| spec.mode = mode);
                }
            }
            Step::Remove { service: number } => {
                if let Some(id) = service(number) {
                    self.world.control(|draft, _, _| control::remove_service(draft, &id)).unwrap();
                }
            }
            Step::Fail { task } => {
                let tasks: Vec<_> = self.world.state.tasks().cloned().collect();
                if let Some(task) = tasks.get(task % tasks.len().max(1)).filter(|task| task.node.is_some()) {
                    self.world.report(task, TaskState::Failed);
                }
            }
            Step::Run => {
                self.world.hear_from_nodes();
                self.world.settle();
                self.world.agents_step();
                self.world.pass(std::time::Duration::from_secs(1));
            }
            Step::Acknowledge { node } => {
                let (id, listener) = self.nodes.iter().nth(*node).unwrap();
                for (network, table) in &listener.tables {
                    self.hub.ack(id, listener.session, network.clone(), table.version);
                }
            }
            Step::Reconnect { node } => {
                let id = self.nodes.keys().nth(*node).unwrap().clone();
                self.connect(&id);
            }
        }
    }

    /// The networks a node has to do with: those of its tasks until they are let go of, and the ingress.
    fn subscribed(&self, node: &NodeId) -> BTreeSet<NetworkId> {
        let tasks = self.world.state.tasks().filter(|task| task.node.as_ref() == Some(node));
        let attachments = tasks.filter(|task| !task.released).flat_map(|task| &task.attachments);
        let ingress = self.world.state.ingress_network().map(|network| network.id.clone());
        attachments.map(|attachment| attachment.network.clone()).chain(ingress).collect()
    }

    /// Sends every node what is new to it, looking into each frame.
    fn send(&mut self) {
        let outcome = self.hub.update(&self.world.state, self.world.now.monotonic);
        for (node, view) in outcome.views {
            let subscribed = self.subscribed(&node);
            let listener = self.nodes.get_mut(&node).unwrap();
            for frame in listener.sent.frames(&view, &|_| None) {
                match frame.message.unwrap() {
                    Message::Table(payload) => {
                        let table: NetworkTable = decode(&payload).unwrap();
                        assert!(subscribed.contains(&table.network), "{node} got {}", table.network);
                        listener.tables.insert(table.network.clone(), table);
                    }
                    Message::TableDelta(payload) => {
                        let delta: TableDelta = decode(&payload).unwrap();
                        assert!(subscribed.contains(&delta.network), "{node} got {}", delta.network);
                        listener.tables.get_mut(&delta.network).unwrap().apply(&delta).unwrap();
                    }
                    Message::TableGone(network) => drop(listener.tables.remove(&NetworkId::new(network))),
                    _ => {}
                }
            }
        }
        for (node, listener) in &self.nodes {
            let held: BTreeSet<NetworkId> = listener.tables.keys().cloned().collect();
            assert_eq!(held, self.subscribed(node), "{node} holds what it is subscribed to");
            for (network, table) in &listener.tables {
                let mut derived = crate::table::derive(&self.world.state, network).unwrap();
                derived.version = table.version;
                assert_eq!(*table, derived, "{node} holds the table as it is");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_node_receives_the_tables_of_its_networks_and_no_others(
        steps in proptest::collection::vec(step(), 1..60)
    ) {
        let mut stage = Stage::set();
        stage.send();
        for step in &steps {
            stage.take(step);
            stage.send();
        }
    }
}

/// The values in a node's next frames: which, and whether they are there.
fn values(sent: &mut Sent, view: &NodeView) -> Vec<(String, Option<Bytes>)> {
    let frames = sent.frames(view, &|deposit| Some(Bytes::from(deposit.spec.name.clone())));
    let assignments = frames.into_iter().filter_map(|frame| match frame.message? {
        Message::Assignments(assignments) => Some(assignments.values),
        _ => None,
    });
    let told = |value: Value| (value.deposit_id, (!value.gone).then_some(value.value));
    assignments.flatten().map(told).collect()
}

#[test]
fn a_node_is_told_the_values_of_its_own_tasks_and_of_no_others() {
    let mut stage = Stage::set();
    let deposit = |name: &str| {
        let spec = DepositSpec {
            kind: DepositKind::Secret,
            name: name.into(),
            labels: Labels::new(),
            templated: false,
        };
        let meta = Meta::new("2026-01-01T00:00:00Z".parse().unwrap());
        Deposit { id: DepositId::new(name), meta, spec, value: Sealed::default() }
    };
    let world = &mut stage.world;
    for name in ["used", "unused"] {
        world.put(Object::Deposit(deposit(name)));
    }
    let mut declared = spec("web", 1, &[]);
    let file = DepositFile { name: "f".into(), uid: 0, gid: 0, mode: 0o444 };
    declared.task.container.secrets =
        vec![DepositReference { deposit: DepositId::new("used"), name: "used".into(), file }];
    let service = world.service(declared).unwrap();
    world.settle();
    let runs = world.state.service_tasks(&service).next().unwrap().clone();
    let outcome = stage.hub.update(&stage.world.state, stage.world.now.monotonic);
    let used = || ("used".to_owned(), Some(Bytes::from("used")));
    let mut sent = Sent::default();
    for (node, view) in outcome.views {
        if Some(&node) == runs.node.as_ref() {
            assert_eq!(values(&mut sent, &view), [used()]);
            assert_eq!(values(&mut sent, &view), [], "once is enough");
            assert_eq!(values(&mut Sent::default(), &view), [used()], "a new session begins anew");
        } else {
            assert_eq!(values(&mut Sent::default(), &view), [], "{node} has no such task");
        }
    }
    let gone = ObjectKey::Deposit(DepositId::new("used"));
    stage
        .world
        .control(|draft, _, _| {
            draft.remove(gone);
            Ok(())
        })
        .unwrap();
    let view = stage.hub.update(&stage.world.state, stage.world.now.monotonic).views.remove(0).1;
    assert_eq!(values(&mut sent, &view), [("used".to_owned(), None)], "its absence is told, too");
    let mut ended = Task::clone(&runs);
    ended.status.state = TaskState::Complete;
    stage.world.put(Object::Task(ended));
    let view = stage.hub.update(&stage.world.state, stage.world.now.monotonic).views.remove(0).1;
    assert_eq!(values(&mut Sent::default(), &view), [], "a task that has ended needs none");
}

/// Who sends it traffic is to hear of it before its tasks leave.
#[test]
fn a_node_is_told_that_it_is_drained_before_anything_else() {
    let mut stage = Stage::set();
    let node = stage.nodes.keys().next().unwrap().clone();
    let frames = |stage: &mut Stage, sent: &mut Sent| -> Vec<Message> {
        let outcome = stage.hub.update(&stage.world.state, stage.world.now.monotonic);
        let views = outcome.views.into_iter().filter(|(id, _)| *id == node);
        let frames = views.flat_map(|(_, view)| sent.frames(&view, &|_| None));
        frames.filter_map(|frame| frame.message).collect()
    };
    let mut sent = Sent::default();
    let told = frames(&mut stage, &mut sent);
    assert_eq!(
        told[0],
        Message::Standing(Standing { drained: false }),
        "at the beginning, whatever it believes"
    );
    let mut drained = Node::clone(stage.world.state.node(&node).unwrap());
    drained.spec.availability = Availability::Drain;
    stage.world.put(Object::Node(drained.clone()));
    assert_eq!(frames(&mut stage, &mut sent)[0], Message::Standing(Standing { drained: true }));
    drained.spec.labels.insert("disk".into(), "ssd".into());
    stage.world.put(Object::Node(drained));
    assert_eq!(frames(&mut stage, &mut sent), [], "once");
}
