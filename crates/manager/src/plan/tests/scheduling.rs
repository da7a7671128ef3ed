//! Where tasks go, and why they go nowhere.

use super::*;

fn change_node(world: &mut World, node: &str, change: impl FnOnce(&mut Node)) {
    let mut changed = Node::clone(world.state.node(&node.into()).unwrap());
    change(&mut changed);
    world.put(Object::Node(changed));
}

fn set(world: &mut World, node: &str, availability: Availability) {
    change_node(world, node, |node| node.spec.availability = availability);
}

/// Serving tasks by node.
fn spread(world: &World, service: &ServiceId) -> BTreeMap<String, usize> {
    let mut spread = BTreeMap::new();
    for task in world.serving(service) {
        *spread.entry(task.node.clone().unwrap().to_string()).or_default() += 1;
    }
    spread
}

fn stuck(world: &World, service: &ServiceId) -> String {
    let wanted = world.state.service_tasks(service).filter(|task| task.desired <= TaskState::Running);
    wanted.map(|task| task.status.error.clone()).find(|error| !error.is_empty()).unwrap_or_default()
}

fn constrained(name: &str, replicas: u64, constraint: &str) -> ServiceSpec {
    let mut declared = spec(name, replicas, &[]);
    declared.task.placement.constraints = vec![constraint.into()];
    declared
}

#[test]
fn tasks_spread_by_service_first_then_by_all_there_is() {
    let mut world = World::new(3);
    let first = world.service(constrained("first", 4, "node.hostname==node-1")).unwrap();
    world.run(2);
    assert_eq!(spread(&world, &first).len(), 1);
    let web = world.service(spec("web", 7, &[])).unwrap();
    world.run(2);
    let web = spread(&world, &web);
    assert_eq!(web.values().sum::<usize>(), 7);
    assert_eq!(web["node-1"], 2, "the seventh goes where less else is: {web:?}");
}

#[test]
fn preferences_spread_over_the_values_of_labels() {
    let mut world = World::new(5);
    let nodes: Vec<NodeId> = world.state.nodes().map(|node| node.id.clone()).collect();
    // One node in zone a, in rack 1; three in b, of which two in rack 1; one without a zone.
    for (node, zone, rack) in [(0, "a", "1"), (1, "b", "1"), (2, "b", "1"), (3, "b", "2")] {
        change_node(&mut world, nodes[node].as_str(), |node| {
            node.spec.labels.insert("zone".into(), zone.into());
            node.spec.labels.insert("rack".into(), rack.into());
        });
    }
    let mut declared = spec("web", 6, &[]);
    declared.task.placement.spread = vec!["node.labels.zone".into(), "node.labels.rack".into()];
    let web = world.service(declared.clone()).unwrap();
    world.run(2);
    let on = |world: &World, node: usize| spread(world, &web).get(nodes[node].as_str()).copied().unwrap_or(0);
    let zones = |world: &World| [on(world, 0), on(world, 1) + on(world, 2) + on(world, 3), on(world, 4)];
    assert_eq!(zones(&world), [2, 2, 2]);
    assert_eq!([on(&world, 1) + on(&world, 2), on(&world, 3)], [1, 1], "racks of zone b");
    world.change(&web, |spec| spec.mode = ServiceMode::Replicated { replicas: 12 });
    world.run(2);
    assert_eq!(zones(&world), [4, 4, 4]);
    assert_eq!([on(&world, 1), on(&world, 2), on(&world, 3)], [1, 1, 2]);
    declared.name = "other".into();
    declared.task.placement.spread = vec!["node.zone".into()];
    let refused = world.service(declared).unwrap_err().to_string();
    assert!(refused.contains("placement preference 'node.zone' is invalid"), "{refused}");
}

#[test]
fn what_is_on_its_way_out_does_not_count() {
    let mut world = World::new(2);
    let web = world.service(constrained("web", 2, "node.hostname==node-1")).unwrap();
    world.run(2);
    world.control(|draft, _, _| control::remove_service(draft, &web)).unwrap();
    world.service(constrained("busy", 1, "node.hostname!=node-1")).unwrap();
    world.settle();
    let next = world.service(spec("next", 1, &[])).unwrap();
    world.settle();
    assert_eq!(world.state.node_tasks(&"node-1".into()).count(), 3, "two that go, and the new one");
    assert_eq!(world.state.service_tasks(&next).next().unwrap().node, Some("node-1".into()));
}

#[test]
fn a_node_on_which_a_service_keeps_failing_comes_last() {
    let mut world = World::new(2);
    let mut declared = spec("web", 1, &[]);
    declared.task.restart.delay = Duration::from_secs(1);
    let web = world.service(declared).unwrap();
    let mut on: BTreeMap<NodeId, usize> = BTreeMap::new();
    // It fails on this node only, which has nothing else to do: the other one is busy.
    world.service(constrained("busy", 3, "node.hostname!=node-1")).unwrap();
    for _ in 0..100 {
        for task in world.serving(&web) {
            let node = task.node.clone().unwrap();
            *on.entry(node.clone()).or_default() += 1;
            if node.as_str() == "node-1" {
                world.report(&task, TaskState::Failed);
            }
        }
        world.run(1);
        if spread(&world, &web).keys().any(|node| node != "node-1") {
            break;
        }
    }
    assert_eq!(on[&"node-1".into()], 5, "then the other one has it");
    assert!(world.state.service_tasks(&web).count() <= 5, "though not all of them are remembered");
    // A changed declaration may do better.
    world.change(&web, |spec| spec.task.force_update += 1);
    world.run(4);
    assert_eq!(spread(&world, &web).keys().collect::<Vec<_>>(), ["node-1"]);
}

#[test]
fn pending_tasks_go_on_when_a_node_comes_changes_its_labels_or_becomes_active() {
    let mut world = World::new(3);
    let labelled = world.service(constrained("labelled", 1, "node.labels.zone==a")).unwrap();
    let active = world.service(constrained("active", 1, "node.hostname==node-1")).unwrap();
    let present = world.service(constrained("present", 1, "node.hostname==node-2")).unwrap();
    set(&mut world, "node-1", Availability::Pause);
    world.lost.insert("node-2".into());
    world.run(16);
    for service in [&labelled, &active, &present] {
        let told = "no suitable node (2 nodes not available for new tasks; \
                    scheduling constraints not satisfied on 1 node)";
        assert_eq!(stuck(&world, service), told);
    }
    change_node(&mut world, "node-1", |node| drop(node.spec.labels.insert("zone".into(), "a".into())));
    set(&mut world, "node-1", Availability::Active);
    world.lost.clear();
    world.run(2);
    let first = |world: &World, service| spread(world, service).keys().next().cloned().unwrap_or_default();
    assert_eq!(first(&world, &labelled), "node-1");
    assert_eq!(first(&world, &active), "node-1");
    assert_eq!(first(&world, &present), "node-2");
}

#[test]
fn a_paused_node_keeps_its_tasks_and_a_drained_one_does_not() {
    let mut world = World::new(2);
    let web = world.service(spec("web", 2, &[])).unwrap();
    world.run(2);
    set(&mut world, "node-1", Availability::Pause);
    world.change(&web, |spec| spec.mode = ServiceMode::Replicated { replicas: 4 });
    world.run(2);
    assert_eq!(spread(&world, &web)["node-1"], 1);
    set(&mut world, "node-1", Availability::Drain);
    world.run(3);
    let spread_now = spread(&world, &web);
    assert_eq!((spread_now.get("node-1"), spread_now.values().sum()), (None, 4));
}

#[test]
fn a_task_leaves_a_node_that_does_not_fulfil_its_constraints_any_more() {
    let mut world = World::new(3);
    let label = |world: &mut World, node: &str, zone: &str| {
        change_node(world, node, |node| drop(node.spec.labels.insert("zone".into(), zone.into())));
    };
    label(&mut world, "node-1", "a");
    let web = world.service(constrained("web", 1, "node.labels.zone==a")).unwrap();
    world.run(2);
    label(&mut world, "node-2", "a");
    world.run(1);
    assert_eq!(spread(&world, &web).keys().collect::<Vec<_>>(), ["node-1"], "no rebalancing");
    label(&mut world, "node-1", "b");
    world.run(2);
    assert_eq!(spread(&world, &web).keys().collect::<Vec<_>>(), ["node-2"]);
    // A paused node is left alone, as SwarmKit's.
    set(&mut world, "node-2", Availability::Pause);
    label(&mut world, "node-2", "b");
    world.run(2);
    assert_eq!(spread(&world, &web).keys().collect::<Vec<_>>(), ["node-2"]);
}

#[test]
fn every_refusal_is_explained_in_dockers_words() {
    let mut world = World::new(3);
    let refused = |world: &mut World, name: &str, change: &dyn Fn(&mut ServiceSpec)| {
        let mut declared = spec(name, 4, &[]);
        change(&mut declared);
        let service = world.service(declared).unwrap();
        world.run(2);
        stuck(world, &service)
    };
    let max = refused(&mut world, "max", &|spec| spec.task.placement.max_replicas = 1);
    assert_eq!(max, "no suitable node (max replicas per node limit exceed)");
    let platform = refused(&mut world, "arm", &|spec| {
        spec.task.placement.platforms = vec![("arm64".into(), "linux".into())];
    });
    assert_eq!(platform, "no suitable node (unsupported platform on 3 nodes)");
    let big = refused(&mut world, "big", &|spec| spec.task.resources.reserve_nano_cpus = 1_000_000);
    assert_eq!(big, "no suitable node (insufficient resources on 3 nodes)");
}
