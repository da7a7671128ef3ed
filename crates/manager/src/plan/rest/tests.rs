//! What is left out of a plan would not have changed it.

use proptest::prelude::*;
use shoal_model::{ServiceMode, TaskState};

use super::*;
use crate::plan::tests::{World, spec};

#[test]
fn what_runs_as_declared_is_at_rest_and_settled_until_something_changes() {
    let mut world = World::new(2);
    let web = world.service(spec("web", 3, &[])).unwrap();
    let settled = |world: &World| {
        let service = world.state.service(&web).unwrap();
        is_settled(&world.state, service, &unfit_nodes(&world.state))
    };
    assert!(!settled(&world), "it has no tasks yet");
    world.run(3);
    assert!(settled(&world) && moving(&world.state).is_empty());
    let task = world.serving(&web).remove(0);
    world.report(&task, TaskState::Failed);
    assert!(!settled(&world));
    assert_eq!(moving(&world.state), [task.id.clone()].into());
    world.run(20);
    assert!(settled(&world), "one of its past does not matter");
    world.change(&web, |spec| spec.task.force_update += 1);
    assert!(!settled(&world));
    world.run(20);
    assert!(settled(&world));
    world.change(&web, |spec| spec.mode = ServiceMode::Replicated { replicas: 2 });
    assert!(!settled(&world));
    let node = world.state.nodes().next().unwrap().id.clone();
    world.run(20);
    assert!(settled(&world));
    assert!(!is_settled(&world.state, world.state.service(&web).unwrap(), &[node].into()));
}

#[test]
fn a_job_is_settled_when_it_is_done() {
    let mut world = World::new(2);
    let mut declared = spec("job", 1, &[]);
    declared.mode = ServiceMode::ReplicatedJob { concurrent: 2, total: 2 };
    let job = world.service(declared).unwrap();
    let settled = |world: &World| {
        let service = world.state.service(&job).unwrap();
        is_settled(&world.state, service, &unfit_nodes(&world.state))
    };
    for _ in 0..2 {
        world.run(3);
        assert!(!settled(&world));
        for task in world.serving(&job) {
            world.report(&task, TaskState::Complete);
        }
        world.run(2);
        assert!(settled(&world) && moving(&world.state).is_empty());
        world.change(&job, |spec| spec.task.force_update += 1);
    }
}

proptest! {
    /// Whatever happened: a plan that takes nothing for settled changes the same.
    #[test]
    fn a_plan_that_looks_at_everything_is_the_same(
        failing in proptest::collection::vec((0..4_usize, any::<bool>()), 1..12),
        replicas in 1..5_u64,
        seconds in 0..8_u64,
    ) {
        let mut world = World::new(2);
        let web = world.service(spec("web", replicas, &[])).unwrap();
        let other = world.service(spec("other", 2, &[])).unwrap();
        let mut declared = spec("job", 1, &[]);
        declared.mode = ServiceMode::ReplicatedJob { concurrent: 1, total: replicas };
        let job = world.service(declared).unwrap();
        world.run(2);
        for (which, update) in failing {
            let serving = [world.serving(&web), world.serving(&other)].concat();
            if let Some(task) = serving.get(which) {
                world.report(&task.clone(), TaskState::Failed);
            }
            if update {
                world.change(&web, |spec| spec.task.force_update += 1);
            }
            for task in world.serving(&job) {
                world.report(&task, if update { TaskState::Failed } else { TaskState::Complete });
            }
            if which == 0 {
                world.change(&job, |spec| spec.task.force_update += 1);
            }
            let (quick, thorough) = world.both_plans();
            prop_assert_eq!(quick, thorough);
            world.settle();
            let (quick, thorough) = world.both_plans();
            prop_assert_eq!(quick, thorough);
            world.run(seconds);
        }
    }
}
