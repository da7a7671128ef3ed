//! What the store adds to a trace.

use shoal_model::trace::{Asker, Lookup, LookupVerdict, TracedNetwork};
use shoal_model::{ContainerId, NodeId};

use super::*;
use crate::plan::tests::{World, spec};

/// A trace of `name` by somebody on `network`, who was or was not answered by the cluster.
fn trace(name: &str, network: &NetworkId, verdict: LookupVerdict) -> Trace {
    let own = TracedNetwork {
        network: network.clone(),
        name: "mynet".to_owned(),
        addresses: Vec::new(),
        in_force: None,
        resolver: None,
        current: None,
    };
    let lookup = Lookup {
        link: None,
        looks: Vec::new(),
        verdict,
        answers: Vec::new(),
        upstreams: Vec::new(),
        versions: BTreeMap::new(),
    };
    Trace {
        name: name.to_owned(),
        port: None,
        asker: Asker {
            container: ContainerId::new("c"),
            name: "client".to_owned(),
            task: None,
            node: Some(NodeId::new("node-1")),
            hosts: Vec::new(),
        },
        networks: vec![own],
        lookup: Some(lookup),
        holders: Vec::new(),
        targets: Vec::new(),
        services: BTreeMap::new(),
        elsewhere: Vec::new(),
        differences: Vec::new(),
        from_manager: false,
    }
}

#[test]
fn every_task_of_a_service_is_told_with_what_keeps_it() {
    let mut world = World::new(2);
    let net = world.network("mynet", None).unwrap();
    let mut declared = spec("web", 2, &[&net]);
    declared.task.placement.constraints = vec!["node.labels.gpu==yes".to_owned()];
    let web = world.service(declared).unwrap();
    world.run(2);
    let mut told = trace("web", &net, LookupVerdict::Known);
    told.services.insert(web.clone(), TracedService::default());
    let version = TableVersion { epoch: 1, revision: 9 };
    explain(&world.state, &BTreeMap::from([(net, version)]), &mut told);
    assert!(told.from_manager);
    assert_eq!(told.networks[0].current, Some(version));
    let service = &told.services[&web];
    assert_eq!((service.name.as_str(), service.replicas, service.tasks.len()), ("web", Some(2), 2));
    for task in &service.tasks {
        assert_eq!((task.state, &task.node, task.serving), (TaskState::Pending, &None, false));
        assert!(task.error.contains("no suitable node"), "{task:?}");
    }
}

#[test]
fn a_name_that_is_not_known_is_looked_for_where_the_asker_is_not() {
    let mut world = World::new(1);
    let (mine, other) = (world.network("mynet", None).unwrap(), world.network("other", None).unwrap());
    world.service(spec("hidden", 1, &[&other])).unwrap();
    world.run(2);
    for name in ["hidden", "tasks.hidden.", "HIDDEN.other"] {
        let mut told = trace(name, &mine, LookupVerdict::Forwarded);
        explain(&world.state, &BTreeMap::new(), &mut told);
        let found: Vec<_> = told.elsewhere.iter().map(|found| (&*found.network_name, &*found.name)).collect();
        assert_eq!(found, [("other", "hidden")], "{name}");
    }
    let mut told = trace("hidden", &mine, LookupVerdict::Known);
    explain(&world.state, &BTreeMap::new(), &mut told);
    assert!(told.elsewhere.is_empty(), "what is known needs no other place");
}
