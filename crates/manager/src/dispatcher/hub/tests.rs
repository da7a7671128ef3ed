//! A cluster of machines that hold tables and run containers as they were told last: cut off, slow, under
//! leaders that come and go. No address is ever held twice.

mod barriers;

use proptest::prelude::*;
use shoal_model::*;
use shoal_protocol::decode;

use super::*;
use crate::plan::plan;
use crate::plan::tests::{World, spec};

/// What really is on a node.
#[derive(Default)]
struct Machine {
    cut_off: bool,
    session: Option<u64>,
    /// What its last session told it.
    view: Option<Arc<NodeView>>,
    in_force: BTreeMap<NetworkId, Arc<Published>>,
    tasks: BTreeMap<TaskId, (Task, TaskState)>,
}

impl Machine {
    /// The containers it has, with the addresses they use.
    fn containers(&self) -> impl Iterator<Item = &Task> {
        let live = |state: TaskState| (TaskState::Preparing..=TaskState::Running).contains(&state);
        self.tasks.values().filter(move |(_, state)| live(*state)).map(|(task, _)| task)
    }

    fn is_on(&self, network: &NetworkId) -> bool {
        self.containers().any(|task| task.attachments.iter().any(|held| held.network == *network))
    }
}

struct Cluster {
    world: World,
    hub: Hub,
    machines: BTreeMap<NodeId, Machine>,
    sessions: u64,
    net: NetworkId,
    service: ServiceId,
    /// Addresses that were taken although a node that is down may still send to them.
    woken: BTreeSet<IpAddr>,
}

#[derive(Debug, Clone)]
enum Step {
    Scale(u64),
    Force,
    /// A container ends by itself; its node tells of it when it can.
    End {
        node: usize,
    },
    CutOff {
        node: usize,
    },
    Reconnect {
        node: usize,
    },
    /// A node takes in what it was told, acts on it, and says so.
    Sync {
        node: usize,
    },
    /// The manager draws conclusions, and plans.
    Conclude,
    /// The manager plans on what it concluded last.
    Plan,
    /// The leader is replaced.
    NewTerm,
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let node = || 0usize..3;
    prop_oneof![
        2 => (0u64..7).prop_map(Step::Scale),
        2 => Just(Step::Force),
        2 => node().prop_map(|node| Step::End { node }),
        2 => node().prop_map(|node| Step::CutOff { node }),
        2 => node().prop_map(|node| Step::Reconnect { node }),
        8 => node().prop_map(|node| Step::Sync { node }),
        6 => Just(Step::Conclude),
        3 => Just(Step::Plan),
        1 => Just(Step::NewTerm),
        3 => (1u64..20).prop_map(Step::Pass),
    ]
}

impl Cluster {
    fn new() -> Self {
        let mut world = World::new(3);
        world.settle();
        // Thirteen addresses beside the gateway.
        let net = world.network("small", Some("10.9.0.0/28")).unwrap();
        let service = world.service(spec("web", 4, &[&net])).unwrap();
        let machines = world.state.nodes().map(|node| (node.id.clone(), Machine::default())).collect();
        world.observed = Observed::default();
        let (hub, woken) = (Hub::default(), BTreeSet::new());
        Self { world, hub, machines, sessions: 0, net, service, woken }
    }

    fn take(&mut self, step: &Step) {
        let node = |node: usize| self.machines.keys().nth(node % self.machines.len()).cloned().unwrap();
        match *step {
            Step::Scale(replicas) => {
                self.world
                    .change(&self.service.clone(), |spec| spec.mode = ServiceMode::Replicated { replicas });
            }
            Step::Force => self.world.change(&self.service.clone(), |spec| spec.task.force_update += 1),
            Step::End { node: number } => {
                let machine = self.machines.get_mut(&node(number)).unwrap();
                if let Some((_, state)) =
                    machine.tasks.values_mut().find(|(_, state)| *state == TaskState::Running)
                {
                    *state = TaskState::Failed;
                }
            }
            Step::CutOff { node: number } => {
                let id = node(number);
                let machine = self.machines.get_mut(&id).unwrap();
                machine.cut_off = true;
                if let Some(session) = machine.session.take() {
                    self.hub.close(&id, session);
                }
            }
            Step::Reconnect { node: number } => self.machines.get_mut(&node(number)).unwrap().cut_off = false,
            Step::Sync { node: number } => self.sync(&node(number)),
            Step::Conclude => self.conclude(),
            Step::Plan => self.plan(),
            Step::NewTerm => {
                self.hub = Hub::default();
                self.world.observed = Observed::default();
                self.world.now.monotonic = Duration::ZERO;
                self.machines.values_mut().for_each(|machine| machine.session = None);
            }
            Step::Pass(seconds) => self.world.pass(Duration::from_secs(seconds)),
        }
        for (id, machine) in &self.machines {
            if let Some(session) = machine.session {
                self.hub.heard(id, session, self.world.now.monotonic);
            }
        }
        self.check();
    }

    fn conclude(&mut self) {
        let outcome = self.hub.update(&self.world.state, self.world.now.monotonic);
        for (node, view) in outcome.views {
            self.machines.get_mut(&node).unwrap().view = Some(view);
        }
        self.world.observed = outcome.observed;
        self.plan();
    }

    fn plan(&mut self) {
        for _ in 0..50 {
            let World { state, observed, now, ids, .. } = &mut self.world;
            let changes = plan(state, observed, *now, ids).changes;
            if changes.is_empty() {
                return;
            }
            let (resting, mut before) = (self.resting(), self.used());
            before.extend(resting.iter().map(|resting| resting.address));
            self.world.commit(&changes);
            let after = self.used();
            for resting in resting.into_iter().filter(|resting| after.contains(&resting.address)) {
                // What the same plan freed afterwards was not free yet.
                self.wake(resting, &(&before | &after));
            }
        }
        panic!("the plan never settles");
    }

    fn used(&self) -> BTreeSet<IpAddr> {
        self.world.state.tasks().flat_map(|task| addresses(task)).collect()
    }

    fn resting(&self) -> Vec<Resting> {
        self.world.state.network(&self.net).unwrap().state.as_ref().unwrap().resting.clone()
    }

    /// A resting address was taken: nothing else was free, and nobody could be asked.
    fn wake(&mut self, woken: Resting, used: &BTreeSet<IpAddr>) {
        let down = |node: &NodeId| self.world.state.node(node).unwrap().is_down();
        assert!(woken.holders.iter().all(down), "{woken:?}");
        let rests: BTreeSet<IpAddr> = self.resting().iter().map(|resting| resting.address).collect();
        let vip = self.world.state.service(&self.service).unwrap().endpoint.virtual_ips[0].address.addr();
        let taken = |host: u8| {
            let address = IpAddr::from([10, 9, 0, host]);
            address == vip || used.contains(&address) || rests.contains(&address)
        };
        assert!((2..=14).all(taken), "{} was taken before a free address", woken.address);
        self.woken.insert(woken.address);
    }

    fn sync(&mut self, id: &NodeId) {
        if self.machines[id].cut_off {
            return;
        }
        if self.machines[id].session.is_none() {
            self.open(id);
        }
        let machine = self.machines.get_mut(id).unwrap();
        let (session, view) = (machine.session.unwrap(), machine.view.clone().unwrap());
        machine.in_force.clone_from(&view.tables);
        for (network, table) in &view.tables {
            self.hub.ack(id, session, network.clone(), table.version());
        }
        machine.tasks.retain(|id, _| view.tasks.contains_key(id));
        for assigned in view.tasks.values() {
            let told: Task = decode(&assigned.payload).unwrap();
            let (task, state) =
                machine.tasks.entry(told.id.clone()).or_insert((told.clone(), told.status.state));
            task.desired = told.desired;
            *state = next(task.desired, *state);
        }
        let states: Vec<_> = machine.tasks.values().map(|(task, state)| (task.id.clone(), *state)).collect();
        for (task, state) in states {
            if let Some(task) = self.world.state.task(&task).cloned().filter(|task| task.status.state < state)
            {
                self.world.report(&task, state);
            }
        }
    }

    /// The node opens a session, and has said no more than hello.
    fn open(&mut self, id: &NodeId) {
        self.sessions += 1;
        let machine = self.machines.get_mut(id).unwrap();
        machine.session = Some(self.sessions);
        let held = machine.in_force.iter().map(|(id, table)| (id.clone(), table.version())).collect();
        let now = self.world.now.monotonic;
        self.hub.open(id, self.sessions, NodeDescription::default(), held, now);
        self.conclude();
    }

    fn check(&self) {
        let mut used = BTreeMap::new();
        for machine in self.machines.values() {
            for task in machine.containers() {
                for address in addresses(task) {
                    let other = used.insert(address, &task.id);
                    assert_eq!(other, None, "{address} is used twice");
                }
            }
        }
        // Nobody sends to what is somebody else's by now, but a node nobody can ask.
        let mut held = BTreeMap::new();
        for task in self.world.state.tasks().filter(|task| !task.released) {
            held.extend(addresses(task).map(|address| (address, EndpointId::from(&task.id))));
        }
        for (id, machine) in self.machines.iter().filter(|(_, machine)| machine.is_on(&self.net)) {
            let Some(table) = machine.in_force.get(&self.net) else { continue };
            for (endpoint, entry) in &table.table.endpoints {
                let address = entry.address.addr();
                let holder = held.get(&address).filter(|holder| *holder != endpoint);
                assert!(holder.is_none() || self.woken.contains(&address), "{id} sends to {address} still");
            }
        }
    }
}

fn addresses(task: &Task) -> impl Iterator<Item = IpAddr> + '_ {
    let held = if task.released { &[] } else { task.attachments.as_slice() };
    held.iter().map(|attachment| attachment.address.addr())
}

fn next(desired: TaskState, state: TaskState) -> TaskState {
    use TaskState::*;
    match state {
        state if state.is_terminal() => state,
        _ if desired > Running => Shutdown,
        Assigned => Accepted,
        Accepted => Preparing,
        Preparing => Ready,
        Ready if desired == Running => Starting,
        Starting => Running,
        state => state,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn no_address_is_ever_held_twice(steps in proptest::collection::vec(step(), 1..120)) {
        let mut cluster = Cluster::new();
        for step in &steps {
            cluster.take(step);
        }
        // In the end everybody is back, and nothing is left of it.
        for node in 0..3 {
            cluster.take(&Step::Reconnect { node });
        }
        for _ in 0..120 {
            cluster.take(&Step::Conclude);
            (0..3).for_each(|node| cluster.take(&Step::Sync { node }));
            cluster.take(&Step::Pass(2));
        }
        let service = cluster.world.state.service(&cluster.service).unwrap();
        let serving = cluster.world.serving(&cluster.service);
        prop_assert_eq!(Some(serving.len() as u64), service.spec.mode.replicas());
        // An update whose new tasks failed has stopped, with what was there before.
        let paused = service.update_status.as_ref().is_some_and(|status| status.state == UpdateState::Paused);
        prop_assert!(paused || serving.iter().all(|task| task.spec == service.spec.task));
        let network = cluster.world.state.network(&cluster.net).unwrap();
        prop_assert_eq!(network.state.as_ref().unwrap().resting.len(), 0);
        prop_assert!(cluster.world.state.tasks().all(|task| task.released || !task.status.state.is_terminal()));
    }
}
