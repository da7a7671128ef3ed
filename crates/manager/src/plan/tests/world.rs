//! A cluster in memory: a store that compares as the real one does, a clock, and agents that take
//! their tasks from state to state.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use shoal_model::*;
use shoal_store::{Event, Expect, Record, Write};

use super::super::*;
use crate::cluster::begin;
use crate::table::{Tables, derive};
use crate::{ControlError, InitOptions, control};

/// A store in memory that compares as the real one does.
pub(crate) struct World {
    pub(crate) state: State,
    records: BTreeMap<String, (u64, bytes::Bytes)>,
    revision: u64,
    pub(crate) now: Now,
    pub(crate) ids: IdGenerator,
    pub(crate) observed: Observed,
    /// Nodes that nothing is heard of, and whose agents hear nothing.
    pub(crate) lost: BTreeSet<NodeId>,
    tables: Tables,
}

impl World {
    pub(crate) fn new(nodes: usize) -> Self {
        let now = Now { monotonic: Duration::ZERO, wall: "2026-01-01T00:00:00Z".parse().unwrap() };
        let mut world = Self {
            state: State::default(),
            records: BTreeMap::new(),
            revision: 0,
            now,
            ids: IdGenerator::from_seed(1),
            observed: Observed::default(),
            lost: BTreeSet::new(),
            tables: Tables::default(),
        };
        let options = InitOptions {
            node_name: "node-0".into(),
            listen: ([0, 0, 0, 0], 2377).into(),
            advertise: ([192, 0, 2, 1], 2377).into(),
            data_path_address: IpAddr::from([192, 0, 2, 1]),
            spec: ClusterSpec::default(),
            availability: Availability::Active,
            description: NodeDescription::default(),
        };
        world
            .control(|draft, now, ids| Ok(begin(draft, &options, Authority::default(), now.wall, ids)))
            .unwrap();
        for number in 1..nodes {
            let mut node = Node::clone(world.state.nodes().next().unwrap());
            node.id = NodeId::new(format!("node-{number}"));
            node.spec.role = NodeRole::Worker;
            node.description.hostname = format!("node-{number}");
            node.ingress = None;
            node.manager = None;
            world.put(Object::Node(node.clone()));
        }
        world.hear_from_nodes();
        world
    }

    /// Every node that is not lost is there, and has acknowledged everything.
    pub(crate) fn hear_from_nodes(&mut self) {
        for node in self.state.nodes().filter(|node| !self.lost.contains(&node.id)) {
            let view = SessionView {
                last_heard: self.now.monotonic,
                live: true,
                description: Arc::new(node.description.clone()),
            };
            self.observed.sessions.insert(node.id.clone(), view);
        }
        let ended = self.state.tasks().filter(|task| task.status.state.is_terminal() && !task.released);
        self.observed.held_by = ended.map(|task| (task.id.clone(), BTreeSet::new())).collect();
        let serving = self.state.tasks().filter(|task| task.is_serving());
        self.observed.in_service = serving.map(|task| task.id.clone()).collect();
    }

    pub(crate) fn control<T>(
        &mut self,
        decide: impl FnOnce(&mut Draft, Now, &mut IdGenerator) -> Result<T, ControlError>,
    ) -> Result<T, ControlError> {
        let mut draft = Draft::new(self.state.clone(), self.now.wall);
        let decided = decide(&mut draft, self.now, &mut self.ids)?;
        self.commit(&draft.into_changes());
        Ok(decided)
    }

    /// Commits as the leader does; a refusal is a fault in the planning code.
    pub(crate) fn commit(&mut self, changes: &[Change]) {
        if changes.is_empty() {
            return;
        }
        let (expect, writes) = commit_of(changes, &self.state).unwrap();
        for expected in expect {
            let at = |key: &str| self.records.get(key).map(|(revision, _)| *revision);
            let met = match &expected {
                Expect::Absent(key) => at(key).is_none(),
                Expect::At(key, revision) => at(key) == Some(*revision),
                Expect::Exists(key) => at(key).is_some(),
                Expect::NoneNewer(prefix, revision) => {
                    self.records.iter().all(|(key, (at, _))| !key.starts_with(prefix) || at <= revision)
                }
            };
            assert!(met, "{expected:?}");
        }
        self.revision += 1;
        let mut events = Vec::new();
        for write in writes {
            events.push(match write {
                Write::Put { key, value } => {
                    self.records.insert(key.clone(), (self.revision, value.clone()));
                    Event::Put(Record { key, value, revision: self.revision })
                }
                Write::Delete { key } => {
                    self.records.remove(&key);
                    Event::Delete { key }
                }
            });
        }
        self.state.apply(self.revision, &events).unwrap();
        self.tables.update(&self.state);
        self.check();
    }

    /// Plans until there is nothing more to do; the next deadline.
    pub(crate) fn settle(&mut self) -> Option<Duration> {
        for _ in 0..50 {
            let plan = plan(&self.state, &self.observed, self.now, &mut self.ids);
            if plan.changes.is_empty() {
                return plan.next_deadline;
            }
            self.commit(&plan.changes);
        }
        panic!("the plan never settles");
    }

    /// The changes of a plan, and of one that takes nothing to be at rest.
    pub(crate) fn both_plans(&self) -> (Vec<Change>, Vec<Change>) {
        let ids = || IdGenerator::from_seed(7);
        let quick = plan(&self.state, &self.observed, self.now, &mut ids());
        let all = self.state.tasks().map(|task| task.id.clone()).collect();
        let thorough = plan_for(&self.state, &self.observed, self.now, &mut ids(), all, |_| {});
        (quick.changes, thorough.changes)
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        self.now.monotonic += time;
        self.now.wall = self.now.wall.checked_add(time).unwrap();
    }

    /// What must hold after every single commit.
    fn check(&self) {
        let (mut addresses, mut wanted, mut ports) = (BTreeSet::new(), BTreeMap::new(), BTreeSet::new());
        let mut claim = |network: &NetworkId, address: IpAddr| {
            assert!(addresses.insert((network.clone(), address)), "{address} twice on {network}");
        };
        for task in self.state.tasks().filter(|task| !task.released) {
            task.attachments.iter().for_each(|held| claim(&held.network, held.address.addr()));
        }
        for service in self.state.all_services() {
            service.endpoint.virtual_ips.iter().for_each(|vip| claim(&vip.network, vip.address.addr()));
            let ingress = |port: &&PortConfig| port.mode == PublishMode::Ingress && !service.removing;
            for port in service.endpoint.ports.iter().filter(ingress) {
                assert!(ports.insert((port.protocol, port.published)), "port twice: {port:?}");
            }
        }
        let mut on_nodes = BTreeSet::new();
        for task in self.state.tasks().filter(|task| task.node.is_some() && !task.status.state.is_terminal())
        {
            for port in task.ports.iter().filter(|port| port.mode == PublishMode::Host) {
                let key = (task.node.clone(), port.protocol, port.published);
                assert!(port.published == 0 || on_nodes.insert(key), "port twice on a node: {port:?}");
            }
        }
        for guest in self.state.guests() {
            let places = guest.attachments.iter().chain(&guest.leaving);
            places.for_each(|held| claim(&held.network, held.address.addr()));
        }
        for node in self.state.nodes() {
            node.ingress.iter().for_each(|held| claim(&held.network, held.address.addr()));
        }
        for task in self.state.tasks().filter(|task| task.desired <= TaskState::Running) {
            let service = self.state.service(&task.service);
            let update = service.and_then(|service| service.spec.update.as_ref());
            let takes_over = update.is_some_and(|update| update.order == UpdateOrder::StartFirst);
            let slot: &mut usize = wanted.entry((task.service.clone(), task.place())).or_default();
            *slot += 1;
            assert!(*slot <= if takes_over { 2 } else { 1 }, "slot twice: {}", task.name());
        }
        let claims: BTreeSet<String> =
            self.objects().flat_map(|object| claims(&object)).map(|it| it.to_string()).collect();
        let held: BTreeSet<String> =
            self.records.keys().filter(|key| key.starts_with("claim/")).cloned().collect();
        assert_eq!(claims, held, "claims are what the objects claim");
        for network in self.state.networks() {
            let (kept, full) = (self.tables.get(&network.id), derive(&self.state, &network.id));
            let same = match (kept, &full) {
                (Some(kept), Some(full)) => kept.table.same_content(full),
                (kept, full) => kept.is_none() && full.is_none(),
            };
            assert!(same, "the table of {} is not what follows from the state", network.spec.name);
        }
    }

    fn objects(&self) -> impl Iterator<Item = Object> + '_ {
        self.records.keys().filter_map(|key| self.state.object(&ObjectKey::parse(key)?))
    }

    /// Every agent that is not lost takes each of its tasks one step further.
    pub(crate) fn agents_step(&mut self) {
        let reached = |task: &&Arc<Task>| task.node.as_ref().is_none_or(|node| !self.lost.contains(node));
        let tasks: Vec<_> = self.state.tasks().filter(reached).cloned().collect();
        for task in tasks {
            let next = next_state(&task);
            if next != task.status.state {
                self.report(&task, next);
            }
        }
    }

    pub(crate) fn put(&mut self, object: Object) {
        let mut draft = Draft::new(self.state.clone(), self.now.wall);
        draft.put(object);
        self.commit(&draft.into_changes());
    }

    pub(crate) fn report(&mut self, task: &Task, state: TaskState) {
        let mut task = Task::clone(self.state.task(&task.id).unwrap());
        task.observe(&TaskStatus::new(state, self.now.wall, "step"));
        self.put(Object::Task(task.clone()));
    }

    /// Lets everything happen for a while of simulated time.
    pub(crate) fn run(&mut self, seconds: u64) {
        for _ in 0..seconds {
            for _ in 0..6 {
                self.hear_from_nodes();
                self.settle();
                self.agents_step();
            }
            self.pass(Duration::from_secs(1));
        }
        self.settle();
    }

    pub(crate) fn network(&mut self, name: &str, subnet: Option<&str>) -> Result<NetworkId, ControlError> {
        let pool = |subnet: &str| AddressPool::new(subnet.parse().unwrap());
        let spec = NetworkSpec {
            name: name.into(),
            labels: Labels::new(),
            driver: NetworkDriver::Overlay,
            options: Labels::new(),
            internal: false,
            attachable: false,
            ingress: false,
            ipv6: false,
            pools: subnet.map(pool).into_iter().collect(),
            config_from: None,
        };
        self.control(|draft, now, ids| control::create_network(draft, now, ids, spec))
    }

    pub(crate) fn service(&mut self, spec: ServiceSpec) -> Result<ServiceId, ControlError> {
        self.control(|draft, now, ids| control::create_service(draft, now, ids, spec))
            .map(|created| created.id)
    }

    pub(crate) fn change(&mut self, id: &ServiceId, change: impl FnOnce(&mut ServiceSpec)) {
        let service = self.state.service(id).unwrap().clone();
        let mut spec = service.spec.clone();
        change(&mut spec);
        let version = service.meta.version;
        self.control(|draft, now, _| control::update_service(draft, now, id, version, spec)).unwrap();
    }

    pub(crate) fn serving(&self, service: &ServiceId) -> Vec<Arc<Task>> {
        let mut tasks: Vec<_> =
            self.state.service_tasks(service).filter(|task| task.is_serving()).cloned().collect();
        tasks.sort_by_key(|task| task.slot);
        tasks
    }
}

fn next_state(task: &Task) -> TaskState {
    use TaskState::*;
    match task.status.state {
        state if state.is_terminal() || task.node.is_none() => state,
        _ if task.desired > Running => Shutdown,
        Assigned => Accepted,
        Accepted => Preparing,
        Preparing => Ready,
        Ready if task.desired == Running => Starting,
        Starting => Running,
        state => state,
    }
}

pub(crate) fn spec(name: &str, replicas: u64, networks: &[&NetworkId]) -> ServiceSpec {
    let target = |network: &&NetworkId| NetworkTarget { network: NetworkId::clone(network), aliases: vec![] };
    ServiceSpec {
        name: name.into(),
        labels: Labels::new(),
        task: TaskSpec {
            container: ContainerSpec { image: "busybox".into(), ..Default::default() },
            resources: Resources::default(),
            restart: RestartPolicy::default(),
            placement: Placement::default(),
            networks: networks.iter().map(target).collect(),
            force_update: 0,
            log_options: Labels::new(),
        },
        mode: ServiceMode::Replicated { replicas },
        update: None,
        rollback: None,
        endpoint: EndpointSpec::default(),
    }
}

pub(crate) fn port(published: u16) -> PortConfig {
    PortConfig { target: 80, published, ..Default::default() }
}
