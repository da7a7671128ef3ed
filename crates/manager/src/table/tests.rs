//! Tables of a cluster with nodes that are not well.

use shoal_model::{Object, TaskState};

use super::*;
use crate::plan::tests::{World, spec};

/// A service with so many tasks on each of three nodes.
fn world(per_node: u64) -> (World, NetworkId, ServiceId) {
    let mut world = World::new(3);
    let net = world.network("mynet", None).unwrap();
    let web = world.service(spec("web", 3 * per_node, &[&net])).unwrap();
    world.run(2);
    (world, net, web)
}

fn set(world: &mut World, node: &str, condition: NodeCondition) {
    let mut node = Node::clone(world.state.node(&node.into()).unwrap());
    node.status.condition = condition;
    world.put(Object::Node(node));
}

/// Of each node: tasks in the table, tasks with names, tasks that take connections.
fn seen(world: &World, net: &NetworkId, web: &ServiceId, node: &str) -> [usize; 3] {
    let table = derive(&world.state, net).unwrap();
    let there = table.endpoints.iter().filter(|(_, entry)| entry.node.as_str() == node);
    let backends = &table.services[web].backends;
    there.fold([0; 3], |[present, named, serving], (id, entry)| {
        let one = |yes: bool| usize::from(yes);
        [present + 1, named + one(!entry.names.is_empty()), serving + one(backends.contains(id))]
    })
}

#[test]
fn a_suspect_nodes_tasks_get_no_new_connections_but_stay_reachable() {
    let (mut world, net, web) = world(2);
    set(&mut world, "node-1", NodeCondition::Suspect);
    assert_eq!(seen(&world, &net, &web, "node-1"), [2, 0, 0]);
    assert_eq!(seen(&world, &net, &web, "node-2"), [2, 2, 2]);
    set(&mut world, "node-1", NodeCondition::Ready);
    assert_eq!(seen(&world, &net, &web, "node-1"), [2, 2, 2]);
}

#[test]
fn no_service_is_left_with_less_than_half_of_its_backends_on_suspicion() {
    let (mut world, net, web) = world(2);
    let first = world.state.nodes().find(|node| !node.id.as_str().starts_with("node-")).unwrap().id.clone();
    // One that has tasks on two of the nodes only loses half of them at most.
    let mut declared = spec("half", 2, &[&net]);
    declared.task.placement.constraints = vec![format!("node.id!={first}")];
    let half = world.service(declared).unwrap();
    world.run(2);
    for node in ["node-1", "node-2"] {
        set(&mut world, node, NodeCondition::Suspect);
    }
    for node in ["node-1", "node-2"] {
        assert_eq!(seen(&world, &net, &web, node)[2], 2, "four of six would be too many");
        assert_eq!(seen(&world, &net, &half, node)[2], 1);
    }
    set(&mut world, "node-2", NodeCondition::Ready);
    assert_eq!(seen(&world, &net, &web, "node-1")[2], 0, "two of six are not");
    assert_eq!(seen(&world, &net, &half, "node-1")[2], 0, "nor one of two");
}

#[test]
fn what_is_on_a_node_that_is_down_leaves_the_tables_and_keeps_its_addresses() {
    let (mut world, net, web) = world(1);
    let lost = world.state.node_tasks(&"node-1".into()).next().unwrap().clone();
    set(&mut world, "node-1", NodeCondition::Down);
    assert_eq!(seen(&world, &net, &web, "node-1"), [0, 0, 0]);
    assert!(!derive(&world.state, &net).unwrap().nodes.contains_key(&"node-1".into()));
    assert_eq!(lost.status.state, TaskState::Running);
    world.lost.insert("node-1".into());
    world.observed.sessions.remove(&"node-1".into());
    world.run(3);
    let held = lost.attachments[0].address;
    let others = world.state.tasks().filter(|task| task.id != lost.id);
    assert!(others.flat_map(|task| &task.attachments).all(|attachment| attachment.address != held));
    assert!(!world.state.task(&lost.id).unwrap().released);
    set(&mut world, "node-1", NodeCondition::Ready);
    assert_eq!(seen(&world, &net, &web, "node-1"), [1, 0, 0], "back, but replaced");
}

#[test]
fn only_what_a_table_shows_of_a_node_makes_it_anew() {
    let (mut world, net, _) = world(1);
    let other = world.network("other", None).unwrap();
    let revisions = |world: &World| [&net, &other].map(|id| world.state.network_revision(id));
    let before = revisions(&world);
    let mut node = Node::clone(world.state.node(&"node-1".into()).unwrap());
    node.description.engine_version = "newer".into();
    node.spec.labels.insert("zone".into(), "a".into());
    world.put(Object::Node(node));
    assert_eq!(revisions(&world), before);
    set(&mut world, "node-1", NodeCondition::Suspect);
    assert_eq!(revisions(&world), [world.state.revision(), before[1]], "and only where it has tasks");
}

#[test]
fn tables_know_since_when_an_endpoint_is_offered_withdrawn_and_gone() {
    let (mut world, net, web) = world(1);
    let task = world.state.node_tasks(&"node-1".into()).next().unwrap().clone();
    let (mut tables, id) = (Tables::default(), EndpointId::from(&task.id));
    tables.update(&world.state);
    let first = tables.get(&net).unwrap().version();
    let mut step = |world: &mut World, condition| {
        set(world, "node-1", condition);
        tables.update(&world.state);
        let version = tables.get(&net).unwrap().version();
        let since = [
            tables.offered_since(&net, &id),
            tables.withdrawn_since(&net, &id),
            tables.gone_since(&net, &id),
        ];
        (version, since)
    };
    let (_, since) = step(&mut world, NodeCondition::Ready);
    assert_eq!(since, [Some(first), None, None], "since before this term, for all it knows");
    let (suspect, since) = step(&mut world, NodeCondition::Suspect);
    assert_eq!(since, [None, Some(suspect), None]);
    let (down, since) = step(&mut world, NodeCondition::Down);
    assert_eq!(since, [None, Some(suspect), Some(down)]);
    let (ready, since) = step(&mut world, NodeCondition::Ready);
    assert_eq!(since, [Some(ready), None, None]);
    assert_eq!(world.serving(&web).len(), 3);
}
