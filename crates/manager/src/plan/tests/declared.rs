//! Whatever is declared: it comes about, or each task that does not run says why.

use proptest::prelude::*;

use super::*;

/// A declaration that is valid, sensible or not.
#[derive(Debug, Clone)]
struct Declared {
    count: u64,
    constraint: Option<&'static str>,
    memory: u64,
    max_replicas: u64,
    platform: Option<(&'static str, &'static str)>,
    port: Option<(PublishMode, u16)>,
    condition: RestartCondition,
    order: UpdateOrder,
}

fn declared() -> impl Strategy<Value = Declared> {
    let constraint = prop_oneof![
        3 => Just(None),
        1 => Just(Some("node.role==manager")),
        1 => Just(Some("node.role!=manager")),
        1 => Just(Some("node.id==nosuch")),
        1 => Just(Some("node.colour==red")),
    ];
    let port = prop_oneof![
        3 => Just(None),
        1 => Just(Some((PublishMode::Host, 8080))),
        1 => Just(Some((PublishMode::Ingress, 0))),
    ];
    let platform = prop_oneof![4 => Just(None), 1 => Just(Some(("sparc", "plan9")))];
    let memory = prop_oneof![4 => Just(0), 1 => Just(4 << 20)];
    let condition = prop_oneof![
        Just(RestartCondition::Any),
        Just(RestartCondition::OnFailure),
        Just(RestartCondition::None)
    ];
    let order = prop_oneof![Just(UpdateOrder::StopFirst), Just(UpdateOrder::StartFirst)];
    let fields = (0..5_u64, constraint, memory, 0..2_u64, platform, port, condition, order);
    fields.prop_map(|(count, constraint, memory, max_replicas, platform, port, condition, order)| Declared {
        count,
        constraint,
        memory,
        max_replicas,
        platform,
        port,
        condition,
        order,
    })
}

fn mode(kind: u8, count: u64) -> ServiceMode {
    match kind {
        0 => ServiceMode::Replicated { replicas: count },
        1 => ServiceMode::Global,
        2 => ServiceMode::ReplicatedJob { concurrent: 2, total: count },
        _ => ServiceMode::GlobalJob,
    }
}

impl Declared {
    fn apply(&self, kind: u8, net: &NetworkId, spec: &mut ServiceSpec) {
        spec.mode = mode(kind, self.count);
        let placement = &mut spec.task.placement;
        placement.constraints = self.constraint.map(str::to_owned).into_iter().collect();
        placement.max_replicas = self.max_replicas;
        placement.platforms = self.platform.map(|(a, b)| (a.to_owned(), b.to_owned())).into_iter().collect();
        spec.task.resources.reserve_memory = self.memory;
        spec.task.restart.condition = self.condition;
        spec.task.networks = vec![NetworkTarget { network: net.clone(), aliases: Vec::new() }];
        let port = |(mode, published)| PortConfig { mode, ..port(published) };
        spec.endpoint.ports = self.port.map(port).into_iter().collect();
        if !spec.mode.is_job() {
            spec.update = Some(UpdateConfig { order: self.order, ..UpdateConfig::default() });
        }
    }
}

/// Everything that runs of a job now has done its work, again and again.
fn work(world: &mut World) {
    for _ in 0..4 {
        world.run(12);
        let working = world.state.tasks().filter(|task| task.iteration.is_some() && task.is_serving());
        for task in working.cloned().collect::<Vec<_>>() {
            world.report(&task, TaskState::Complete);
        }
    }
    world.run(12);
}

fn unsettled(world: &World, id: &ServiceId) -> Option<String> {
    let service = world.state.service(id).unwrap();
    let live: Vec<_> =
        world.state.service_tasks(id).filter(|task| task.desired <= TaskState::Running).collect();
    let silent = |task: &&&Arc<Task>| !task.is_serving() && !task.is_done() && task.status.error.is_empty();
    if let Some(task) = live.iter().find(silent) {
        return Some(format!("{} is {} and says nothing", task.name(), task.status.state));
    }
    let wanted = service.spec.mode.replicas()?;
    ((live.len() as u64) < wanted).then(|| format!("{} tasks of {wanted}", live.len()))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_declared_comes_about_or_says_why_not(
        kind in 0..4_u8,
        first in declared(),
        second in declared(),
        other in declared(),
    ) {
        let mut world = World::new(3);
        let net = world.network("mynet", None).unwrap();
        let mut begun = spec("one", 1, &[&net]);
        first.apply(kind, &net, &mut begun);
        let one = world.service(begun).unwrap();
        let mut beside = spec("two", 1, &[&net]);
        other.apply(0, &net, &mut beside);
        let two = world.service(beside).unwrap();
        work(&mut world);
        prop_assert_eq!(unsettled(&world, &one), None);
        world.change(&one, |spec| second.apply(kind, &net, spec));
        work(&mut world);
        prop_assert_eq!(unsettled(&world, &one), None);
        prop_assert_eq!(unsettled(&world, &two), None);
    }
}
