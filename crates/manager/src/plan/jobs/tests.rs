//! What a job does until it is done, and when it is executed anew.

use std::time::Duration;

use shoal_model::{
    Availability, Node, NodeId, Object, RestartCondition, ServiceId, ServiceMode, ServiceSpec, Task,
    TaskState, UpdateConfig,
};

use crate::control;
use crate::plan::tests::{World, spec};

fn job(world: &mut World, concurrent: u64, total: u64, change: impl FnOnce(&mut ServiceSpec)) -> ServiceId {
    let mut declared = spec("job", 1, &[]);
    declared.mode = ServiceMode::ReplicatedJob { concurrent, total };
    declared.task.restart.delay = Duration::from_secs(1);
    change(&mut declared);
    let id = world.service(declared).unwrap();
    world.run(2);
    id
}

/// Slots that are done, and that are worked on, in the present execution.
fn places(world: &World, id: &ServiceId) -> (Vec<u64>, Vec<u64>) {
    let iteration = world.state.service(id).unwrap().job.map(|job| job.iteration);
    let tasks = world.state.service_tasks(id).filter(|task| task.iteration == iteration);
    let wanted = tasks.filter(|task| task.desired <= TaskState::Running);
    let (done, working): (Vec<_>, Vec<_>) = wanted.partition(|task| task.is_done());
    let slots = |tasks: Vec<&std::sync::Arc<Task>>| {
        let mut slots: Vec<u64> = tasks.into_iter().map(|task| task.slot).collect();
        slots.sort_unstable();
        slots
    };
    (slots(done), slots(working))
}

/// What runs of it now ends.
fn end(world: &mut World, id: &ServiceId, state: TaskState) {
    for task in world.serving(id) {
        world.report(&task, state);
    }
    world.run(3);
}

#[test]
fn a_job_works_on_so_many_at_a_time_until_all_are_done() {
    let mut world = World::new(2);
    let id = job(&mut world, 2, 3, |_| {});
    assert_eq!(places(&world, &id), (vec![], vec![0, 1]));
    end(&mut world, &id, TaskState::Complete);
    assert_eq!(places(&world, &id), (vec![0, 1], vec![2]));
    end(&mut world, &id, TaskState::Complete);
    assert_eq!(places(&world, &id), (vec![0, 1, 2], vec![]));
    world.run(100);
    assert_eq!(places(&world, &id), (vec![0, 1, 2], vec![]), "it stays done");
    assert!(super::super::rest::moving(&world.state).is_empty(), "and is at rest");
}

#[test]
fn what_failed_is_tried_again_in_its_place_as_its_policy_says() {
    let mut world = World::new(2);
    let any = job(&mut world, 1, 1, |_| {});
    end(&mut world, &any, TaskState::Failed);
    assert_eq!(places(&world, &any), (vec![], vec![0]));
    assert_eq!(world.state.service_tasks(&any).count(), 2, "the failed one is its past");
    end(&mut world, &any, TaskState::Complete);
    assert_eq!(places(&world, &any), (vec![0], vec![]));

    let once = job(&mut world, 1, 2, |spec| {
        spec.name = "once".into();
        spec.task.restart.condition = RestartCondition::None;
    });
    end(&mut world, &once, TaskState::Failed);
    assert_eq!(places(&world, &once), (vec![], vec![1]), "the first place is given up, the next one begins");
    end(&mut world, &once, TaskState::Complete);
    world.run(30);
    assert_eq!(places(&world, &once), (vec![1], vec![]));
}

#[test]
fn a_lost_node_does_not_undo_what_is_done() {
    let mut world = World::new(3);
    let id = job(&mut world, 2, 2, |_| {});
    let [first, second] = &world.serving(&id)[..] else { panic!("two tasks") };
    let (first, second) = (first.clone(), second.clone());
    assert_ne!(first.node, second.node);
    world.report(&first, TaskState::Complete);
    for task in [&first, &second] {
        let mut node = Node::clone(world.state.node(task.node.as_ref().unwrap()).unwrap());
        node.spec.availability = Availability::Drain;
        world.put(Object::Node(node));
    }
    world.run(5);
    assert_eq!(places(&world, &id), (vec![0], vec![1]));
    assert_ne!(world.serving(&id)[0].node, second.node, "what was underway goes on elsewhere");
}

#[test]
fn every_change_begins_another_execution() {
    let mut world = World::new(2);
    let id = job(&mut world, 2, 3, |_| {});
    end(&mut world, &id, TaskState::Complete);
    let iteration = |world: &World| world.state.service(&id).unwrap().job.unwrap().iteration;
    assert_eq!(iteration(&world), 0);
    let begun = world.state.service(&id).unwrap().job.unwrap().begun;
    let former = world.serving(&id);
    world.change(&id, |spec| spec.task.force_update += 1);
    world.settle();
    assert_eq!(iteration(&world), 1);
    assert!(world.state.service(&id).unwrap().job.unwrap().begun > begun);
    assert!(former.iter().all(|task| world.state.task(&task.id).unwrap().desired == TaskState::Remove));
    world.run(3);
    assert_eq!(places(&world, &id), (vec![], vec![0, 1]), "from the beginning");
    assert!(former.iter().all(|task| world.state.task(&task.id).is_none()), "what still ran is gone");
    let past = world.state.service_tasks(&id).filter(|task| task.iteration == Some(0));
    assert!(past.into_iter().all(|task| task.desired == TaskState::Shutdown), "what was done is its past");
    assert_eq!(world.state.service(&id).unwrap().update_status, None);

    let version = world.state.service(&id).unwrap().meta.version;
    world.control(|draft, now, _| control::rollback_service(draft, now, &id, version)).unwrap();
    world.run(3);
    assert_eq!(iteration(&world), 2, "as going back does");
    assert_eq!(world.state.service(&id).unwrap().update_status, None);
    assert_eq!(places(&world, &id), (vec![], vec![0, 1]));
}

#[test]
fn the_next_execution_waits_for_what_still_runs_in_its_place() {
    let mut world = World::new(1);
    let id = job(&mut world, 1, 1, |_| {});
    world.change(&id, |spec| spec.task.force_update += 1);
    world.settle();
    let desired = |world: &World| {
        let tasks = world.state.service_tasks(&id);
        tasks.into_iter().find(|task| task.iteration == Some(1)).map(|task| task.desired)
    };
    assert_eq!(desired(&world), Some(TaskState::Ready));
    world.run(2);
    assert_eq!(desired(&world), Some(TaskState::Running));
}

#[test]
fn a_global_job_runs_once_on_each_node_that_was_there() {
    let mut world = World::new(3);
    let paused: NodeId = world.state.nodes().last().unwrap().id.clone();
    let mut node = Node::clone(world.state.node(&paused).unwrap());
    node.spec.availability = Availability::Pause;
    world.put(Object::Node(node.clone()));
    let id = job(&mut world, 0, 0, |spec| spec.mode = ServiceMode::GlobalJob);
    assert_eq!(world.serving(&id).len(), 2);
    end(&mut world, &id, TaskState::Complete);
    node = Node::clone(world.state.node(&paused).unwrap());
    node.spec.availability = Availability::Active;
    world.put(Object::Node(node.clone()));
    world.run(2);
    let serving = world.serving(&id);
    assert_eq!(serving.iter().map(|task| task.node.clone()).collect::<Vec<_>>(), [Some(paused)]);
    end(&mut world, &id, TaskState::Complete);

    let mut late = node;
    late.id = "late".into();
    late.ingress = None;
    late.meta = shoal_model::Meta::new(world.now.wall);
    world.put(Object::Node(late));
    world.run(5);
    assert!(world.serving(&id).is_empty(), "the job began without it");
    world.change(&id, |spec| spec.task.force_update += 1);
    world.run(2);
    assert_eq!(world.serving(&id).len(), 4);
}

#[test]
fn a_job_has_no_update_config() {
    let mut world = World::new(1);
    let mut declared = spec("job", 1, &[]);
    declared.update = Some(UpdateConfig::default());
    declared.mode = ServiceMode::GlobalJob;
    let refused = world.service(declared.clone()).unwrap_err();
    assert_eq!(refused.message, "Jobs may not have an update config");
    declared.mode = ServiceMode::ReplicatedJob { concurrent: u64::MAX, total: 1 };
    assert_eq!(world.service(declared).unwrap_err().message, "Maximum concurrent jobs must not be negative");
}
