//! Updates that do not have the time they need.

use shoal_model::{Availability, Node, Object, ServiceId, TaskState, UpdateConfig, UpdateOrder};

use crate::plan::tests::{World, spec};

/// A service that starts the new task first, in the middle of an update.
fn updating(world: &mut World) -> ServiceId {
    let mut declared = spec("web", 1, &[]);
    declared.update = Some(UpdateConfig { order: UpdateOrder::StartFirst, ..UpdateConfig::default() });
    let web = world.service(declared).unwrap();
    world.run(2);
    world.change(&web, |spec| spec.task.force_update += 1);
    world.settle();
    web
}

#[test]
fn an_update_that_another_one_overtakes_leaves_no_tasks_behind() {
    let mut world = World::new(1);
    let web = updating(&mut world);
    let wanted = |world: &World| {
        world.state.service_tasks(&web).filter(|task| task.desired <= TaskState::Running).count()
    };
    for _ in 0..5 {
        assert_eq!(wanted(&world), 2, "the one that serves and the one that is to replace it");
        world.change(&web, |spec| spec.task.force_update += 1);
        world.settle();
    }
    world.run(3);
    assert_eq!((wanted(&world), world.serving(&web).len()), (1, 1));
    assert_eq!(world.serving(&web)[0].spec.force_update, 6);
}

#[test]
fn a_slot_that_loses_its_old_and_its_new_task_at_once_gets_another() {
    let mut world = World::new(1);
    let web = updating(&mut world);
    let available = |world: &mut World, availability| {
        let mut node = Node::clone(world.state.nodes().next().unwrap());
        node.spec.availability = availability;
        world.put(Object::Node(node));
    };
    available(&mut world, Availability::Drain);
    world.run(3);
    assert!(world.serving(&web).is_empty());
    available(&mut world, Availability::Active);
    world.run(3);
    assert_eq!(world.serving(&web).len(), 1);
}
