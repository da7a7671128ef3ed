//! Updates that do not have the time they need, and updates that fail.

use std::time::Duration;

use shoal_model::{
    Availability, Node, Object, Place, Service, ServiceId, TaskState, UpdateConfig, UpdateFailureAction,
    UpdateOrder, UpdateState, UpdateStatus,
};

use crate::control;

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

/// A service of three tasks whose next declaration, `bad`, does not run.
fn declared(world: &mut World, config: UpdateConfig) -> ServiceId {
    let mut declared = spec("web", 3, &[]);
    declared.update = Some(config);
    declared.task.restart.delay = Duration::from_secs(1);
    let web = world.service(declared).unwrap();
    world.run(2);
    web
}

fn service(world: &World, id: &ServiceId) -> Service {
    Service::clone(world.state.service(id).unwrap())
}

fn status(world: &World, id: &ServiceId) -> UpdateStatus {
    service(world, id).update_status.expect("there is an update")
}

/// For a while, in which every task of the bad declaration fails once it runs.
fn run_failing(world: &mut World, seconds: u64) {
    for _ in 0..seconds * 10 {
        world.hear_from_nodes();
        world.settle();
        world.agents_step();
        let bad = |task: &&std::sync::Arc<shoal_model::Task>| {
            task.spec.container.image == "bad" && task.status.state == TaskState::Running
        };
        let failing: Vec<_> = world.state.tasks().filter(bad).cloned().collect();
        for task in failing {
            world.report(&task, TaskState::Failed);
        }
        world.pass(Duration::from_millis(100));
    }
    world.settle();
}

fn update_to_bad(world: &mut World, config: UpdateConfig) -> ServiceId {
    let web = declared(world, config);
    world.change(&web, |spec| spec.task.container.image = "bad".into());
    run_failing(world, 30);
    web
}

fn images(world: &World, web: &ServiceId) -> Vec<String> {
    world.serving(web).iter().map(|task| task.spec.container.image.clone()).collect()
}

#[test]
fn an_update_says_how_far_it_is_and_is_complete_after_its_time() {
    let mut world = World::new(1);
    let web = declared(&mut world, UpdateConfig::default());
    assert!(service(&world, &web).update_status.is_none(), "nothing was updated");
    world.change(&web, |spec| drop(spec.labels.insert("a".into(), "b".into())));
    world.run(2);
    assert!(service(&world, &web).update_status.is_none(), "nothing had to be updated");
    world.change(&web, |spec| spec.task.force_update += 1);
    world.run(2);
    let begun = status(&world, &web);
    assert_eq!((begun.state, &*begun.message, begun.total), (UpdateState::Updating, "update in progress", 3));
    assert!(world.serving(&web).iter().all(|task| task.spec.force_update == 1), "all are new, and watched");
    world.run(6);
    let done = status(&world, &web);
    assert_eq!((done.state, &*done.message), (UpdateState::Completed, "update completed"));
    assert_eq!(done.started, begun.started);
    assert!(done.completed.unwrap() >= done.started.checked_add(Duration::from_secs(5)).unwrap());
}

#[test]
fn a_failing_update_is_held_up_and_the_rest_serves_on() {
    let mut world = World::new(1);
    let web = update_to_bad(&mut world, UpdateConfig::default());
    let paused = status(&world, &web);
    assert_eq!(paused.state, UpdateState::Paused);
    let task = paused.message.strip_prefix("update paused due to failure or early termination of task ");
    assert!(task.is_some_and(|task| task.len() == 25), "{paused:?}");
    assert_eq!(images(&world, &web), ["busybox", "busybox"], "one was tried");
    // Another declaration takes over.
    world.change(&web, |spec| spec.task.container.image = "good".into());
    world.run(10);
    assert_eq!(images(&world, &web), ["good", "good", "good"]);
    assert_eq!(status(&world, &web).state, UpdateState::Completed);
}

#[test]
fn a_failing_update_is_rolled_back() {
    let mut world = World::new(1);
    let config = UpdateConfig { failure_action: UpdateFailureAction::Rollback, ..UpdateConfig::default() };
    let web = update_to_bad(&mut world, config);
    let status = status(&world, &web);
    assert_eq!((status.state, &*status.message), (UpdateState::RollbackCompleted, "rollback completed"));
    assert_eq!(images(&world, &web), ["busybox", "busybox", "busybox"]);
    let service = service(&world, &web);
    assert_eq!(service.spec.task.container.image, "busybox");
    assert!(service.previous.is_none(), "there is no way back to what failed");
}

/// A plan that names what is gone could never be stored, and would hold up every other.
#[test]
fn a_failing_update_pauses_when_what_it_would_go_back_to_is_gone() {
    let mut world = World::new(1);
    let old = world.network("old", None).unwrap();
    let config = UpdateConfig { failure_action: UpdateFailureAction::Rollback, ..UpdateConfig::default() };
    let web = declared(&mut world, config);
    let join = |spec: &mut shoal_model::ServiceSpec| {
        let target = shoal_model::NetworkTarget { network: old.clone(), aliases: Vec::new() };
        spec.task.networks = vec![target];
    };
    world.change(&web, join);
    world.run(20);
    world.change(&web, |spec| {
        spec.task.networks.clear();
        spec.task.container.image = "bad".into();
    });
    let key = shoal_model::ObjectKey::Network(old.clone());
    let network = world.state.object(&key);
    world.commit(&[crate::plan::Change { key, old: network, new: None }]);
    run_failing(&mut world, 30);
    let status = status(&world, &web);
    assert_eq!(status.state, UpdateState::Paused, "{status:?}");
    assert!(status.message.contains(&format!("no way back, since network {old} was removed")), "{status:?}");
    assert!(service(&world, &web).spec.task.networks.is_empty());
}

#[test]
fn a_failing_update_goes_on_when_that_is_wanted() {
    let mut world = World::new(1);
    let config = UpdateConfig { failure_action: UpdateFailureAction::Continue, ..UpdateConfig::default() };
    let web = update_to_bad(&mut world, config);
    let status = status(&world, &web);
    assert_eq!(status.state, UpdateState::Completed);
    assert_eq!(status.failed.into_iter().collect::<Vec<_>>(), [1, 2, 3].map(Place::Slot));
    assert_eq!(images(&world, &web), [""; 0]);
}

#[test]
fn some_failures_are_borne() {
    let mut world = World::new(1);
    let web = update_to_bad(&mut world, UpdateConfig { max_failure_ratio: 0.4, ..UpdateConfig::default() });
    let status = status(&world, &web);
    assert_eq!((status.state, status.failed.len()), (UpdateState::Paused, 2), "two of three are too many");
    assert_eq!(images(&world, &web), ["busybox"]);
}

#[test]
fn a_task_that_fails_after_it_was_watched_holds_nothing_up() {
    let mut world = World::new(1);
    let config = UpdateConfig { delay: Duration::from_secs(20), ..UpdateConfig::default() };
    let web = declared(&mut world, config);
    world.change(&web, |spec| spec.task.force_update += 1);
    world.run(8);
    let updated = world.serving(&web).into_iter().find(|task| task.spec.force_update == 1).unwrap();
    world.report(&updated, TaskState::Failed);
    world.run(80);
    assert_eq!(status(&world, &web).state, UpdateState::Completed);
    assert!(world.serving(&web).iter().all(|task| task.spec.force_update == 1));
}

#[test]
fn a_rollback_that_fails_is_held_up() {
    let mut world = World::new(1);
    let web = declared(&mut world, UpdateConfig::default());
    world.change(&web, |spec| spec.task.container.image = "bad".into());
    world.run(10);
    world.change(&web, |spec| spec.task.container.image = "good".into());
    world.run(10);
    let version = service(&world, &web).meta.version;
    world.control(|draft, now, _| control::rollback_service(draft, now, &web, version)).unwrap();
    assert_eq!(status(&world, &web).message, "manually requested rollback");
    run_failing(&mut world, 10);
    let status = status(&world, &web);
    assert_eq!(status.state, UpdateState::RollbackPaused, "{status:?}");
    assert!(status.message.starts_with("rollback paused due to failure or early termination of task "));
}
