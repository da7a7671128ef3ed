//! The loops against a fake store and fake agents: whatever happens in whatever order, nothing is
//! handed out twice and everything settles where the declarations say.

mod by_node;
mod declared;
mod networks;
mod scheduling;
mod world;

use proptest::prelude::*;
use shoal_model::*;

pub(crate) use self::world::{World, port, spec};
use super::*;
use crate::control;

#[test]
fn a_service_gets_dockers_addresses_and_runs() {
    let mut world = World::new(1);
    world.settle();
    let net = world.network("mynet", None).unwrap();
    let mut declared = spec("web", 2, &[&net]);
    declared.endpoint.ports = vec![port(8000), port(0)];
    let web = world.service(declared).unwrap();
    let service = world.state.service(&web).unwrap().clone();
    let vips: Vec<_> = service.endpoint.virtual_ips.iter().map(|vip| vip.address.to_string()).collect();
    let (v6, v4): (Vec<_>, Vec<_>) = vips.iter().partition(|vip| vip.contains(':'));
    assert_eq!(v4, ["10.0.1.2/24", "10.0.0.3/24"]);
    assert!(v6.len() == 1 && v6[0].ends_with("::3/64"), "published ports are reached by IPv6, too: {v6:?}");
    assert_eq!(service.endpoint.ports[1].published, 30_000);
    let vnis: Vec<_> = ["ingress", "mynet"]
        .map(|name| world.state.network_named(name).unwrap().state.as_ref().unwrap().vni)
        .into();
    assert_eq!(vnis, [4096, 4097]);
    world.settle();
    let task = world.state.service_tasks(&web).next().unwrap().clone();
    assert_eq!(task.status.message, "scheduler assigned task to node");
    world.run(2);
    let serving = world.serving(&web);
    let slots: Vec<_> = serving.iter().map(|task| task.slot).collect();
    assert_eq!(slots, [1, 2]);
    assert_eq!(serving[0].attachments.len(), 2);
    assert_eq!(serving[0].attachments[1].network, world.state.ingress_network().unwrap().id);
}

#[test]
fn a_failed_task_is_replaced_after_the_delay_and_history_is_bounded() {
    let mut world = World::new(1);
    let web = world.service(spec("web", 1, &[])).unwrap();
    world.run(2);
    for _ in 0..8 {
        let failed = world.serving(&web)[0].clone();
        world.report(&failed, TaskState::Failed);
        world.settle();
        let next = world.state.service_tasks(&web).find(|task| task.desired == TaskState::Ready).cloned();
        assert_eq!(next.unwrap().slot, 1);
        world.run(4);
        assert!(world.serving(&web).is_empty(), "before the delay of five seconds");
        world.run(3);
        assert_eq!(world.serving(&web).len(), 1);
    }
    assert_eq!(world.state.service_tasks(&web).count(), 5);
}

#[test]
fn a_task_that_cannot_be_prepared_is_tried_again_once_per_delay() {
    let mut world = World::new(1);
    let web = world.service(spec("web", 1, &[])).unwrap();
    let mut attempts = std::collections::BTreeSet::new();
    for _ in 0..20 {
        let tasks: Vec<_> = world.state.service_tasks(&web).cloned().collect();
        for task in tasks.iter().filter(|task| !task.status.state.is_terminal()) {
            attempts.insert(task.id.clone());
            world.report(task, TaskState::Rejected);
        }
        world.run(1);
    }
    assert!((4..=6).contains(&attempts.len()), "{} attempts in twenty seconds", attempts.len());
}

#[test]
fn restart_policies_are_kept() {
    let mut world = World::new(1);
    let mut declared = spec("once", 1, &[]);
    declared.task.restart.condition = RestartCondition::OnFailure;
    let once = world.service(declared).unwrap();
    let mut declared = spec("twice", 1, &[]);
    declared.task.restart.max_attempts = 1;
    let twice = world.service(declared).unwrap();
    world.run(2);
    let done = world.serving(&once)[0].clone();
    world.report(&done, TaskState::Complete);
    for _ in 0..2 {
        let failed = world.serving(&twice)[0].clone();
        world.report(&failed, TaskState::Failed);
        world.run(8);
    }
    assert!(world.serving(&once).is_empty() && world.serving(&twice).is_empty());
    assert_eq!(world.state.service_tasks(&once).count(), 1);
    assert_eq!(world.state.service_tasks(&twice).count(), 2);
    // A changed declaration counts anew.
    world.change(&twice, |spec| spec.task.force_update += 1);
    world.run(3);
    assert_eq!(world.serving(&twice).len(), 1);
}

#[test]
fn a_draining_task_is_shut_down_and_replaced() {
    let mut world = World::new(1);
    let web = world.service(spec("web", 1, &[])).unwrap();
    world.run(2);
    let mut task = Task::clone(&world.serving(&web)[0]);
    task.status.draining = true;
    world.put(Object::Task(task.clone()));
    world.settle();
    assert_eq!(world.state.task(&task.id).unwrap().desired, TaskState::Shutdown);
    world.run(8);
    assert_eq!(world.serving(&web).len(), 1);
}

#[test]
fn an_exhausted_network_says_so_on_the_task_and_goes_on_when_something_frees() {
    let mut world = World::new(1);
    // Six hosts: the gateway, the virtual address, four tasks.
    let net = world.network("small", Some("10.9.0.0/29")).unwrap();
    let web = world.service(spec("web", 5, &[&net])).unwrap();
    world.run(3);
    assert_eq!(world.serving(&web).len(), 4);
    let stuck = world.state.service_tasks(&web).find(|task| task.status.state == TaskState::New).unwrap();
    assert_eq!(stuck.status.error, "no available address on network small (10.9.0.0/29)");
    world.change(&web, |spec| spec.mode = ServiceMode::Replicated { replicas: 4 });
    world.run(2);
    assert_eq!(world.serving(&web).len(), 4);
    let other = world.service(spec("other", 1, &[&net])).unwrap();
    world.settle();
    let error = &world.state.service(&other).unwrap().allocation_error;
    assert!(error.starts_with("could not find an available IP while allocating VIP"), "{error}");
    assert_eq!(world.state.service_tasks(&other).next().unwrap().status.error, *error);
    world.change(&web, |spec| spec.mode = ServiceMode::Replicated { replicas: 2 });
    world.run(4);
    assert_eq!((world.serving(&web).len(), world.serving(&other).len()), (2, 1));
}

#[test]
fn an_attempt_that_fails_on_one_of_two_networks_is_no_change() {
    let mut world = World::new(1);
    let roomy = world.network("roomy", None).unwrap();
    let small = world.network("small", Some("10.9.0.0/29")).unwrap();
    let web = world.service(spec("web", 5, &[&roomy, &small])).unwrap();
    world.run(3);
    let stuck = world.state.service_tasks(&web).find(|task| task.status.state == TaskState::New).unwrap();
    assert_eq!(stuck.status.error, "no available address on network small (10.9.0.0/29)");
    let last = |world: &World| world.state.network(&roomy).unwrap().state.as_ref().unwrap().last_address;
    let before = last(&world);
    let again = plan(&world.state, &world.observed, world.now, &mut world.ids);
    assert_eq!(again.changes, []);
    world.run(2);
    assert_eq!(last(&world), before);
}

#[test]
fn the_scheduler_explains_itself() {
    let mut world = World::new(2);
    let mut declared = spec("web", 1, &[]);
    declared.task.placement.constraints = vec!["node.hostname == node-1".into()];
    let web = world.service(declared).unwrap();
    world.run(2);
    assert_eq!(world.serving(&web)[0].node, Some("node-1".into()));
    let stuck =
        |world: &World, id: &ServiceId| world.state.service_tasks(id).next().unwrap().status.error.clone();
    let mut declared = spec("nowhere", 1, &[]);
    declared.task.placement.constraints = vec!["node.labels.zone==a".into()];
    let nowhere = world.service(declared).unwrap();
    let mut declared = spec("big", 1, &[]);
    declared.task.resources.reserve_memory = 1 << 40;
    let big = world.service(declared).unwrap();
    world.settle();
    assert_eq!(stuck(&world, &nowhere), "no suitable node (scheduling constraints not satisfied on 2 nodes)");
    assert_eq!(stuck(&world, &big), "no suitable node (insufficient resources on 2 nodes)");
    let mut node = Node::clone(world.state.node(&"node-1".into()).unwrap());
    node.spec.availability = Availability::Drain;
    world.put(Object::Node(node));
    world.run(2);
    assert!(world.serving(&web).is_empty());
    let tasks = world.state.service_tasks(&web);
    let error = tasks.map(|task| task.status.error.clone()).find(|error| !error.is_empty()).unwrap();
    assert_eq!(
        error,
        "no suitable node (1 node not available for new tasks; scheduling constraints not satisfied on 1 node)"
    );
}

#[test]
fn a_rolling_update_replaces_one_at_a_time() {
    let mut world = World::new(1);
    let net = world.network("mynet", None).unwrap();
    let web = world.service(spec("web", 3, &[&net])).unwrap();
    world.run(2);
    let before: BTreeSet<_> = world.serving(&web).iter().map(|task| task.id.clone()).collect();
    // Neither labels nor more replicas replace anything.
    world.change(&web, |spec| drop(spec.labels.insert("a".into(), "b".into())));
    world.run(2);
    assert_eq!(before, world.serving(&web).iter().map(|task| task.id.clone()).collect());
    world.change(&web, |spec| spec.task.container.env.push("A=1".into()));
    for _ in 0..60 {
        world.hear_from_nodes();
        world.settle();
        assert!(world.serving(&web).len() >= 2, "one at a time");
        world.agents_step();
        world.pass(Duration::from_millis(100));
    }
    world.run(2);
    let after = world.serving(&web);
    assert_eq!(after.len(), 3);
    assert!(after.iter().all(|task| !before.contains(&task.id) && task.spec.container.env == ["A=1"]));
}

fn condition(world: &World, node: &NodeId) -> (NodeCondition, String) {
    let status = &world.state.node(node).unwrap().status;
    (status.condition, status.message.clone())
}

#[test]
fn a_silent_node_is_suspect_after_three_beats_and_down_after_three_periods() {
    use NodeCondition::{Down, Ready, Suspect};
    let mut world = World::new(2);
    let lost = NodeId::from("node-1");
    let web = world.service(spec("web", 4, &[])).unwrap();
    world.run(2);
    assert_eq!(world.state.node_tasks(&lost).count(), 2);
    world.hear_from_nodes();
    world.lost.insert(lost.clone());
    let silent = |world: &mut World, millis| {
        world.pass(Duration::from_millis(millis));
        world.hear_from_nodes();
        world.settle()
    };
    // Its session may be gone for a moment: nothing follows from that.
    world.observed.sessions.get_mut(&lost).unwrap().live = false;
    let revision = world.state.revision();
    assert_eq!(silent(&mut world, 2_999), Some(world.now.monotonic + Duration::from_millis(1)));
    assert_eq!(world.state.revision(), revision, "a heartbeat that fails to come is no change");
    silent(&mut world, 1);
    let said = "silent for 3 s: its tasks get no new connections".to_owned();
    assert_eq!(condition(&world, &lost), (Suspect, said.clone()));
    assert!(world.state.tasks().all(|task| task.desired == TaskState::Running), "its tasks stay");
    silent(&mut world, 11_999);
    assert_eq!(condition(&world, &lost), (Suspect, said));
    silent(&mut world, 1);
    assert_eq!(condition(&world, &lost), (Down, "heartbeat failure".to_owned()));
    assert_eq!(world.state.node(&lost).unwrap().status.since, world.now.wall);
    for task in world.state.node_tasks(&lost) {
        assert_eq!((task.desired, task.status.state), (TaskState::Shutdown, TaskState::Running));
    }
    let wanted = |task: &&Arc<Task>| task.desired <= TaskState::Running;
    assert_eq!(world.state.service_tasks(&web).filter(wanted).count(), 4, "replaced at once");
    world.run(3);
    assert_eq!(world.serving(&web).len(), 4);
    assert!(world.state.node_tasks(&lost).all(|task| task.status.state == TaskState::Running));
    world.lost.clear();
    world.hear_from_nodes();
    world.settle();
    assert_eq!(condition(&world, &lost), (Ready, String::new()));
    world.run(3);
    assert!(world.state.node_tasks(&lost).all(|task| task.status.state == TaskState::Shutdown));
    assert_eq!(world.serving(&web).len(), 4);
    assert!(world.serving(&web).iter().all(|task| task.node.as_ref() != Some(&lost)), "no rebalancing");
}

#[test]
fn a_new_term_gives_every_node_the_whole_grace_and_makes_none_well() {
    use NodeCondition::{Down, Ready, Suspect};
    let mut world = World::new(4);
    world.run(1);
    let [suspect, down, away] = ["node-1", "node-2", "node-3"].map(NodeId::from);
    for (id, condition) in [(&suspect, Suspect), (&down, Down)] {
        let mut node = Node::clone(world.state.node(id).unwrap());
        node.status.condition = condition;
        world.put(Object::Node(node));
    }
    let new_term = |world: &mut World| {
        world.observed = Observed::default();
        world.now.monotonic = Duration::ZERO;
        world.settle()
    };
    new_term(&mut world);
    world.pass(Duration::from_millis(14_999));
    world.settle();
    let conditions = |world: &World| [&suspect, &down, &away].map(|id| condition(world, id).0);
    assert_eq!(conditions(&world), [Suspect, Down, Ready]);
    world.pass(Duration::from_millis(1));
    world.settle();
    assert_eq!(conditions(&world), [Down, Down, Down]);
    assert_eq!(condition(&world, &away).1, "heartbeat failure for node in \"unknown\" state");
    new_term(&mut world);
    world.hear_from_nodes();
    world.settle();
    assert_eq!(conditions(&world), [Ready, Ready, Ready]);
}

#[test]
fn tasks_of_a_node_that_is_down_for_a_day_or_removed_are_given_up() {
    let mut world = World::new(3);
    let net = world.network("mynet", None).unwrap();
    let web = world.service(spec("web", 3, &[&net])).unwrap();
    world.run(2);
    let (lost, removed) = (NodeId::from("node-1"), NodeId::from("node-2"));
    let task_of = |world: &World, node| {
        let task = world.state.node_tasks(node).find(|task| task.service == web).unwrap().clone();
        (task.status.state, task.status.error.clone(), task.released)
    };
    world.lost = BTreeSet::from([lost.clone(), removed.clone()]);
    world.pass(Duration::from_secs(15));
    world.hear_from_nodes();
    let task = world.state.node_tasks(&removed).next().unwrap().id.clone();
    world.settle();
    world.control(|draft, _, _| control::remove_node(draft, &removed, false)).unwrap();
    world.settle();
    let given_up = world.state.task(&task).unwrap().status.clone();
    assert_eq!(given_up.state, TaskState::Orphaned);
    assert_eq!(given_up.error, "its node is no longer a member of the cluster");

    assert_eq!(task_of(&world, &lost).0, TaskState::Running);
    // The leader changes meanwhile; the day is one of the wall clock.
    world.now.monotonic = Duration::ZERO;
    world.hear_from_nodes();
    world.observed.sessions.remove(&lost);
    world.now.wall = world.now.wall.checked_add(Duration::from_secs(24 * 3600 - 1)).unwrap();
    assert_eq!(world.settle(), Some(Duration::from_secs(1)));
    assert_eq!(task_of(&world, &lost).0, TaskState::Running);
    world.pass(Duration::from_secs(1));
    world.hear_from_nodes();
    world.settle();
    world.hear_from_nodes();
    world.settle();
    assert_eq!(
        task_of(&world, &lost),
        (TaskState::Orphaned, "its node has been down for too long".into(), true)
    );
}

/// Of the services the steps are about, the one that is a job.
const JOB: u8 = 3;

#[derive(Debug, Clone)]
enum Step {
    Declare { service: u8, replicas: u64, published: bool },
    Remove { service: u8 },
    Force { service: u8 },
    End { task: usize, failed: bool },
    Drain { task: usize },
    Lose { node: usize },
    Return,
    Agents,
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0u8..4, 0u64..5, any::<bool>()).prop_map(|(service, replicas, published)| Step::Declare {
            service,
            replicas,
            published
        }),
        (0u8..4).prop_map(|service| Step::Remove { service }),
        (0u8..4).prop_map(|service| Step::Force { service }),
        (any::<usize>(), any::<bool>()).prop_map(|(task, failed)| Step::End { task, failed }),
        any::<usize>().prop_map(|task| Step::Drain { task }),
        any::<usize>().prop_map(|node| Step::Lose { node }),
        Just(Step::Return),
        Just(Step::Agents),
        Just(Step::Agents),
        (1u64..16).prop_map(Step::Pass),
    ]
}

impl World {
    fn take(&mut self, step: &Step, net: &NetworkId) {
        let named = |world: &Self, service: u8| world.state.service_named(&format!("s{service}")).cloned();
        match *step {
            Step::Declare { service, replicas, published } => match named(self, service) {
                Some(held) => self.change(&held.id, |spec| match &mut spec.mode {
                    ServiceMode::ReplicatedJob { total, .. } => *total = replicas,
                    mode => *mode = ServiceMode::Replicated { replicas },
                }),
                None => {
                    let mut declared = spec(&format!("s{service}"), replicas, &[net]);
                    if service == JOB {
                        declared.mode = ServiceMode::ReplicatedJob { concurrent: 2, total: replicas };
                    }
                    declared.endpoint.ports.extend(published.then(|| port(8000 + u16::from(service))));
                    self.service(declared).unwrap();
                }
            },
            Step::Remove { service } => {
                if let Some(held) = named(self, service) {
                    self.control(|draft, _, _| control::remove_service(draft, &held.id)).unwrap();
                }
            }
            Step::Force { service } => {
                if let Some(held) = named(self, service) {
                    self.change(&held.id, |spec| spec.task.force_update += 1);
                }
            }
            Step::End { task, failed } => {
                let running: Vec<_> = self
                    .state
                    .tasks()
                    .filter(|task| task.status.state == TaskState::Running)
                    .cloned()
                    .collect();
                if let Some(task) = running.get(task % running.len().max(1)) {
                    self.report(task, if failed { TaskState::Failed } else { TaskState::Complete });
                }
            }
            Step::Drain { task } => {
                let running: Vec<_> = self.state.tasks().filter(|task| task.is_serving()).cloned().collect();
                if let Some(task) = running.get(task % running.len().max(1)) {
                    let mut task = Task::clone(task);
                    task.status.draining = true;
                    self.put(Object::Task(task));
                }
            }
            Step::Lose { node } => {
                let node = self.state.nodes().nth(node % self.state.nodes().count()).unwrap().id.clone();
                self.lost.insert(node.clone());
                self.observed.sessions.get_mut(&node).unwrap().live = false;
            }
            Step::Return => self.lost.clear(),
            Step::Agents => self.agents_step(),
            Step::Pass(seconds) => self.pass(Duration::from_secs(seconds)),
        }
        self.hear_from_nodes();
        self.settle();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// `World::check` holds after every commit, and in the end everything is as declared.
    #[test]
    fn every_service_converges(steps in proptest::collection::vec(step(), 1..40)) {
        let mut world = World::new(3);
        let net = world.network("mynet", None).unwrap();
        for step in &steps {
            world.take(step, &net);
        }
        world.lost.clear();
        world.run(80);
        // Two at a time, of four at most.
        for _ in 0..2 {
            for task in world.state.tasks().filter(|task| task.iteration.is_some()).cloned().collect::<Vec<_>>() {
                if task.is_serving() {
                    world.report(&task, TaskState::Complete);
                }
            }
            world.run(8);
        }
        for service in world.state.all_services() {
            prop_assert!(!service.removing, "{} is not gone", service.spec.name);
            if let ServiceMode::ReplicatedJob { total, .. } = service.spec.mode {
                let iteration = service.job.map(|job| job.iteration);
                let tasks = world.state.service_tasks(&service.id);
                let done = tasks.filter(|task| task.is_done() && task.iteration == iteration).count();
                prop_assert_eq!(done as u64, total);
                continue;
            }
            let serving = world.serving(&service.id);
            prop_assert_eq!(Some(serving.len() as u64), service.spec.mode.replicas());
            prop_assert!(serving.iter().all(|task| task.spec == service.spec.task));
        }
        let services: Vec<_> = world.state.services().map(|service| service.id.clone()).collect();
        for id in services {
            world.control(|draft, _, _| control::remove_service(draft, &id)).unwrap();
        }
        world.run(3);
        prop_assert_eq!(world.state.tasks().count(), 0);
        prop_assert!(world.control(|draft, _, _| control::remove_network(draft, &net)).unwrap());
    }
}
