//! A task on each node, whatever becomes of the nodes.

use std::collections::BTreeSet;

use shoal_model::{
    Availability, Node, NodeId, Object, RestartCondition, ServiceId, ServiceMode, TaskState, UpdateState,
};

use crate::control;
use crate::plan::tests::{World, spec};

fn global(world: &mut World, change: impl FnOnce(&mut shoal_model::ServiceSpec)) -> ServiceId {
    let mut declared = spec("agent", 1, &[]);
    declared.mode = ServiceMode::Global;
    change(&mut declared);
    let id = world.service(declared).unwrap();
    world.run(2);
    id
}

fn nodes(world: &World) -> Vec<NodeId> {
    world.state.nodes().map(|node| node.id.clone()).collect()
}

/// The nodes on which the service runs; never two of its tasks on one.
fn on(world: &World, service: &ServiceId) -> BTreeSet<NodeId> {
    let serving = world.serving(service);
    let found: BTreeSet<NodeId> = serving.iter().filter_map(|task| task.node.clone()).collect();
    assert_eq!(found.len(), serving.len());
    assert!(serving.iter().all(|task| task.node == task.pinned));
    found
}

fn change_node(world: &mut World, id: &NodeId, change: impl FnOnce(&mut Node)) {
    let mut node = Node::clone(world.state.node(id).unwrap());
    change(&mut node);
    world.put(Object::Node(node));
    world.run(2);
}

fn available(world: &mut World, id: &NodeId, availability: Availability) {
    change_node(world, id, |node| node.spec.availability = availability);
}

#[test]
fn every_node_has_one_and_keeps_it_while_paused() {
    let mut world = World::new(3);
    let agent = global(&mut world, |_| {});
    let all: BTreeSet<NodeId> = nodes(&world).into_iter().collect();
    assert_eq!(on(&world, &agent), all);
    let name = world.serving(&agent)[0].name();
    assert!(all.iter().any(|node| name.starts_with(&format!("agent.{node}."))), "{name}");
    let [first, second, ..] = &nodes(&world)[..] else { panic!("three nodes") };
    available(&mut world, first, Availability::Pause);
    available(&mut world, second, Availability::Drain);
    assert_eq!(on(&world, &agent), all.iter().filter(|node| *node != second).cloned().collect());
    available(&mut world, second, Availability::Active);
    assert_eq!(on(&world, &agent), all);
}

#[test]
fn labels_and_constraints_decide_where() {
    let mut world = World::new(2);
    let agent = global(&mut world, |spec| spec.task.placement.constraints = vec!["node.labels.a==1".into()]);
    assert!(on(&world, &agent).is_empty());
    let node = nodes(&world).remove(0);
    change_node(&mut world, &node, |node| drop(node.spec.labels.insert("a".into(), "1".into())));
    assert_eq!(on(&world, &agent), [node.clone()].into());
    change_node(&mut world, &node, |node| drop(node.spec.labels.remove("a")));
    assert!(on(&world, &agent).is_empty());
    world.change(&agent, |spec| spec.task.placement.constraints.clear());
    world.run(2);
    assert_eq!(on(&world, &agent).len(), 2);
    world.change(&agent, |spec| spec.task.placement.constraints = vec!["node.role==nobody".into()]);
    world.run(2);
    assert!(on(&world, &agent).is_empty());
    assert_eq!(
        world.state.service_tasks(&agent).filter(|task| task.desired <= TaskState::Running).count(),
        0,
        "nothing waits for a node that is not wanted"
    );
}

#[test]
fn one_that_ended_by_itself_is_a_matter_of_its_restart_policy() {
    let mut world = World::new(1);
    let agent = global(&mut world, |spec| spec.task.restart.condition = RestartCondition::None);
    let task = world.serving(&agent).remove(0);
    world.report(&task, TaskState::Complete);
    world.run(20);
    assert!(on(&world, &agent).is_empty());
    let other = global(&mut world, |spec| spec.name = "other".into());
    let task = world.serving(&other).remove(0);
    world.report(&task, TaskState::Failed);
    world.run(20);
    assert_eq!(on(&world, &other).len(), 1);
}

#[test]
fn an_update_goes_from_node_to_node_and_leaves_out_those_that_may_have_none() {
    let mut world = World::new(3);
    let agent = global(&mut world, |_| {});
    let drained = nodes(&world).remove(0);
    available(&mut world, &drained, Availability::Drain);
    world.change(&agent, |spec| spec.task.force_update += 1);
    world.run(12);
    assert_eq!(on(&world, &agent).len(), 2);
    assert!(world.serving(&agent).iter().all(|task| task.spec.force_update == 1));
    let status = world.state.service(&agent).unwrap().update_status.clone().unwrap();
    assert_eq!((status.state, status.total), (UpdateState::Completed, 2));
    available(&mut world, &drained, Availability::Active);
    assert_eq!(on(&world, &agent).len(), 3);
}

#[test]
fn a_removed_nodes_task_is_forgotten_and_the_mode_is_for_life() {
    let mut world = World::new(2);
    let agent = global(&mut world, |_| {});
    let worker = world.state.nodes().find(|node| node.spec.role == shoal_model::NodeRole::Worker).cloned();
    let worker = worker.expect("the second node is a worker").id.clone();
    world.control(|draft, _, _| control::remove_node(draft, &worker, true)).unwrap();
    world.run(2);
    assert_eq!(on(&world, &agent).len(), 1);
    assert_eq!(world.state.service_tasks(&agent).count(), 1);
    let service = world.state.service(&agent).unwrap().clone();
    let mut spec = service.spec.clone();
    spec.mode = ServiceMode::Replicated { replicas: 1 };
    let version = service.meta.version;
    let refused = world.control(|draft, now, _| control::update_service(draft, now, &agent, version, spec));
    assert_eq!(refused.unwrap_err().to_string(), "service mode change is not allowed");
}
