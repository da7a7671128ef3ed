//! Docker's refusals, word for word (golden `10-err*`, `12-err*`, `13-err*`).

use shoal_model::{
    AddressPool, EndpointMode, Labels, MTU_OPTION, NetworkDriver, NetworkSpec, PortConfig, Protocol,
    PublishMode, ServiceSpec,
};

use super::*;
use crate::plan::tests::{World, port, spec};

fn refusal(outcome: Result<impl std::fmt::Debug, ControlError>) -> (Code, String) {
    let error = outcome.unwrap_err();
    (error.code, error.message)
}

fn service_refusal(world: &mut World, change: impl FnOnce(&mut ServiceSpec)) -> (Code, String) {
    let mut declared = spec("s1", 1, &[]);
    change(&mut declared);
    refusal(world.service(declared))
}

#[test]
fn bad_services_are_refused_in_dockers_words() {
    let mut world = World::new(1);
    world.settle();
    let name = "name must be valid as a DNS name component";
    for bad in ["a.b", "-x", "x-", "a b", "ä"] {
        let refused = service_refusal(&mut world, |spec| spec.name = bad.into());
        assert_eq!(refused, (Code::InvalidArgument, name.into()), "{bad}");
    }
    let long = service_refusal(&mut world, |spec| spec.name = "a".repeat(64));
    assert_eq!(long.1, "name must be 63 characters or fewer");
    let constraint = service_refusal(&mut world, |spec| spec.task.placement.constraints = vec!["foo".into()]);
    assert_eq!(constraint, (Code::Internal, "constraint expected one operator from ==, !=".into()));
    let twice = service_refusal(&mut world, |spec| spec.endpoint.ports = vec![port(80), port(80)]);
    assert_eq!(twice.1, "EndpointSpec: duplicate published ports provided");
    let ingress = world.state.ingress_network().unwrap().id.clone();
    let explicit = refusal(world.service(spec("s1", 1, &[&ingress])));
    assert_eq!(explicit.1, "Service cannot be explicitly attached to the ingress network \"ingress\"");
}

#[test]
fn a_number_that_a_node_has_chosen_is_no_port_of_the_routing_mesh() {
    let mut world = World::new(1);
    let mut declared = spec("own", 1, &[]);
    declared.endpoint.ports = vec![PortConfig { mode: PublishMode::Host, ..port(0) }];
    let own = world.service(declared).unwrap();
    world.run(2);
    let mut task = shoal_model::Task::clone(&world.serving(&own)[0]);
    task.status.ports = vec![PortConfig { mode: PublishMode::Host, ..port(32_768) }];
    world.put(shoal_model::Object::Task(task));
    let (_, text) = service_refusal(&mut world, |spec| spec.endpoint.ports = vec![port(32_768)]);
    assert_eq!(
        text,
        format!("port '32768' is already in use by service 'own' ({own}) as a host-published port")
    );
    let both = PortConfig { mode: PublishMode::Host, ..port(32_768) };
    let mut beside = spec("beside", 1, &[]);
    beside.endpoint.ports = vec![both];
    world.service(beside).unwrap();
}

#[test]
fn a_service_without_a_name_is_given_one() {
    let mut world = World::new(1);
    world.settle();
    let ids: Vec<_> = (0..2).map(|_| world.service(spec("", 1, &[])).unwrap()).collect();
    let names: Vec<_> = ids.iter().map(|id| world.state.service(id).unwrap().spec.name.clone()).collect();
    assert!(names.iter().all(|name| !name.is_empty()) && names[0] != names[1], "{names:?}");
}

#[test]
fn names_and_ports_belong_to_one_service_until_it_is_removed() {
    let mut world = World::new(1);
    world.settle();
    let mut declared = spec("web", 1, &[]);
    declared.endpoint.ports = vec![port(8000)];
    let web = world.service(declared.clone()).unwrap();
    let taken = refusal(world.service(spec("web", 1, &[])));
    assert_eq!(
        taken,
        (Code::AlreadyExists, "name conflicts with an existing object: service web already exists".into())
    );
    assert_eq!(refusal(world.service(spec("WEB", 1, &[]))).0, Code::AlreadyExists);
    let clash = service_refusal(&mut world, |spec| spec.endpoint.ports = vec![port(8000)]);
    let text = format!("port '8000' is already in use by service 'web' ({web}) as an ingress port");
    assert_eq!(clash, (Code::InvalidArgument, text));
    world.run(2);
    world.control(|draft, _, _| remove_service(draft, &web)).unwrap();
    // The old tasks still run.
    world.service(declared).unwrap();
}

/// SwarmKit's rules and texts, at creation, at an update and on the way back.
#[test]
fn a_port_that_another_service_has_is_refused_whoever_asks_for_it_and_how() {
    let mut world = World::new(2);
    let host = |number| PortConfig { mode: PublishMode::Host, ..port(number) };
    let udp = |port: PortConfig| PortConfig { protocol: Protocol::Udp, ..port };
    let publishing = |name: &str, ports: &[PortConfig]| {
        let mut declared = spec(name, 1, &[]);
        declared.endpoint.ports = ports.to_vec();
        declared
    };
    let mesh = world.service(publishing("mesh", &[port(8000)])).unwrap();
    let single = world.service(publishing("single", &[host(9000)])).unwrap();
    world.run(2);
    let as_ingress = format!("port '8000' is already in use by service 'mesh' ({mesh}) as an ingress port");
    let as_host =
        format!("port '9000' is already in use by service 'single' ({single}) as a host-published port");
    let other = world.service(publishing("other", &[])).unwrap();
    for (ports, text) in [
        (vec![port(8000)], &as_ingress),
        (vec![host(8000)], &as_ingress),
        (vec![port(7000), port(9000)], &as_host),
    ] {
        let refused = (Code::InvalidArgument, text.clone());
        assert_eq!(refusal(world.service(publishing("new", &ports))), refused, "created: {ports:?}");
        let version = world.state.service(&other).unwrap().meta.version;
        let update = publishing("other", &ports);
        let updated = world.control(|draft, now, _| update_service(draft, now, &other, version, update));
        assert_eq!(refusal(updated), refused, "updated: {ports:?}");
    }
    let twice = (Code::InvalidArgument, "EndpointSpec: duplicate published ports provided".to_owned());
    assert_eq!(refusal(world.service(publishing("new", &[port(7000), host(7000)]))), twice);
    // Other protocols are other ports, and of host ports the scheduler takes care.
    world.service(publishing("datagrams", &[udp(port(8000)), udp(host(9000))])).unwrap();
    world.service(publishing("elsewhere", &[host(9000)])).unwrap();

    world.change(&mesh, |spec| spec.endpoint.ports = vec![port(8001)]);
    world.service(publishing("heir", &[port(8000)])).unwrap();
    let version = world.state.service(&mesh).unwrap().meta.version;
    let (code, text) = refusal(world.control(|draft, now, _| rollback_service(draft, now, &mesh, version)));
    assert_eq!(code, Code::InvalidArgument);
    assert!(text.starts_with("port '8000' is already in use by service 'heir' ("), "{text}");
}

#[test]
fn updates_need_the_version_that_was_read_and_cannot_rename() {
    let mut world = World::new(1);
    let web = world.service(spec("web", 1, &[])).unwrap();
    let version = world.state.service(&web).unwrap().meta.version;
    let stale =
        world.control(|draft, now, _| update_service(draft, now, &web, version + 1, spec("web", 2, &[])));
    assert_eq!(refusal(stale), (Code::OutOfSequence, "update out of sequence".into()));
    let renamed =
        world.control(|draft, now, _| update_service(draft, now, &web, version, spec("other", 1, &[])));
    assert_eq!(refusal(renamed).1, "renaming services is not supported");
    let none = world.control(|draft, now, _| rollback_service(draft, now, &web, version));
    assert_eq!(
        refusal(none),
        (Code::FailedPrecondition, format!("service {web} does not have a previous spec"))
    );
    world.change(&web, |spec| spec.mode = shoal_model::ServiceMode::Replicated { replicas: 3 });
    let version = world.state.service(&web).unwrap().meta.version;
    world.control(|draft, now, _| rollback_service(draft, now, &web, version)).unwrap();
    assert_eq!(world.state.service(&web).unwrap().spec.mode.replicas(), Some(1));
}

#[test]
fn dnsrr_services_have_no_virtual_address_but_may_publish() {
    let mut world = World::new(1);
    let net = world.network("mynet", None).unwrap();
    let mut declared = spec("rr", 1, &[&net]);
    declared.endpoint.mode = EndpointMode::Dnsrr;
    declared.endpoint.ports = vec![port(8000)];
    let rr = world.service(declared).unwrap();
    assert!(world.state.service(&rr).unwrap().endpoint.virtual_ips.is_empty());
    world.run(2);
    let ingress = world.state.ingress_network().unwrap().id.clone();
    let table = crate::table::derive(&world.state, &ingress).unwrap();
    assert_eq!((table.services[&rr].ports[0].published, table.services[&rr].backends.len()), (8000, 1));
}

#[test]
fn bad_networks_are_refused_with_the_clash_named() {
    let mut world = World::new(1);
    world.settle();
    let net = world.network("mynet", None).unwrap();
    assert_eq!(
        refusal(world.network("mynet", None)),
        (Code::AlreadyExists, "network with name mynet already exists".into())
    );
    assert_eq!(refusal(world.network("host", None)).1, "network with name host already exists");
    assert_eq!(refusal(world.network("", None)).1, "network with name  already exists");
    world.network("my.net", None).unwrap();
    let overlap = refusal(world.network("other", Some("10.0.0.0/16")));
    assert_eq!(overlap.0, Code::InvalidArgument);
    assert!(overlap.1.starts_with("subnet 10.0.0.0/16 overlaps with subnet 10.0."), "{}", overlap.1);
    let host_bits = refusal(world.network("other", Some("10.1.2.3/24")));
    assert_eq!(host_bits.1, "invalid network config:\ninvalid subnet 10.1.2.3/24: it should be 10.1.2.0/24");
    let web = world.service(spec("web", 1, &[&net])).unwrap();
    let in_use = world.control(|draft, _, _| remove_network(draft, &net));
    let text = format!("network {net} is in use by service {web}");
    assert_eq!(refusal(in_use), (Code::FailedPrecondition, text));
    let mut second = world.state.ingress_network().unwrap().spec.clone();
    second.name = "second".into();
    let ingress = world.state.ingress_network().unwrap().id.clone();
    let create = |world: &mut World, spec: NetworkSpec| {
        world.control(|draft, now, ids| create_network(draft, now, ids, spec))
    };
    let present = refusal(create(&mut world, second.clone()));
    assert_eq!(present, (Code::AlreadyExists, format!("ingress network ({ingress}) is already present")));
    second.attachable = true;
    let attachable = (Code::InvalidArgument, "ingress network cannot be attachable".to_owned());
    assert_eq!(refusal(create(&mut world, second)), attachable);
}

/// SwarmKit's rules and texts.
#[test]
fn the_ingress_network_goes_when_nothing_is_published_and_comes_back_as_wanted() {
    let mut world = World::new(2);
    world.run(1);
    let ingress = world.state.ingress_network().unwrap().id.clone();
    let port = PortConfig { target: 80, published: 8000, ..PortConfig::default() };
    let publishing = || {
        let mut wanted = spec("web", 0, &[]);
        wanted.endpoint.ports = vec![port.clone()];
        wanted
    };
    let web = world.service(publishing()).unwrap();
    world.run(1);
    let text = format!("ingress network cannot be removed because service {web} depends on it");
    let remove = |world: &mut World| world.control(|draft, _, _| remove_network(draft, &ingress));
    assert_eq!(refusal(remove(&mut world)), (Code::FailedPrecondition, text));

    world.control(|draft, _, _| remove_service(draft, &web)).unwrap();
    world.run(1);
    assert!(remove(&mut world).unwrap());
    world.run(1);
    assert!(world.state.nodes().all(|node| node.ingress.is_none()), "no node has a place on it");
    let needed = "service needs ingress network, but no ingress network is present".to_owned();
    assert_eq!(refusal(world.service(publishing())), (Code::FailedPrecondition, needed));
    world.service(spec("quiet", 1, &[])).unwrap();

    let pool = AddressPool {
        gateway: Some("172.29.0.9".parse().unwrap()),
        ..AddressPool::new("172.29.0.0/24".parse().unwrap())
    };
    let own = NetworkSpec {
        name: "mesh".into(),
        labels: Labels::new(),
        driver: NetworkDriver::Overlay,
        options: Labels::from([(MTU_OPTION.to_owned(), "1300".to_owned())]),
        internal: false,
        attachable: false,
        ingress: true,
        ipv6: false,
        pools: vec![pool],
        config_from: None,
    };
    let mesh = world.control(|draft, now, ids| create_network(draft, now, ids, own.clone())).unwrap();
    world.service(publishing()).unwrap();
    world.run(1);
    let table = crate::table::derive(&world.state, &mesh).unwrap();
    assert_eq!(table.config.mtu, Some(1300));
    assert!(
        table
            .nodes
            .values()
            .all(|node| { node.address.is_some_and(|address| address.to_string().starts_with("172.29.0.")) })
    );
    assert_eq!(table.nodes.len(), world.state.nodes().count());
}

#[test]
fn look_ups_take_id_then_name_then_prefix() {
    let mut world = World::new(1);
    let a = world.service(spec("web", 1, &[])).unwrap();
    let look = |world: &World, term: &str| {
        find("service", term, world.state.services(), |it| it.id.as_str(), |it| &it.spec.name)
    };
    assert_eq!(look(&world, a.as_str()).unwrap().id, a);
    assert_eq!(look(&world, "web").unwrap().id, a);
    assert_eq!(look(&world, a.short()).unwrap().id, a);
    assert_eq!(refusal(look(&world, "nosuch")), (Code::NotFound, "service nosuch not found".into()));
    assert_eq!(refusal(look(&world, "")).0, Code::NotFound);
    let twins: Vec<_> =
        (0..40).map(|number| world.service(spec(&format!("n{number}"), 0, &[])).unwrap()).collect();
    let first = |id: &ServiceId| id.as_str()[..1].to_owned();
    let shared = twins.iter().find(|id| twins.iter().filter(|other| first(other) == first(id)).count() > 1);
    let prefix = first(shared.unwrap());
    if world.state.service_named(&prefix).is_none() {
        let (code, text) = refusal(look(&world, &prefix));
        assert_eq!(code, Code::InvalidArgument);
        assert!(text.starts_with(&format!("service {prefix} is ambiguous (")), "{text}");
    }
}

/// Golden `25-err-node-*`.
#[test]
fn node_verbs_are_refused_in_dockers_words() {
    let mut world = World::new(3);
    world.run(1);
    let manager = world.state.nodes().find(|node| node.spec.role == NodeRole::Manager).unwrap().clone();
    let worker = NodeId::from("node-1");
    let precondition = |text: String| (Code::FailedPrecondition, text);
    let rm =
        |world: &mut World, id: &NodeId, force| world.control(|draft, _, _| remove_node(draft, id, force));
    let is_manager = format!(
        "node {} is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal",
        manager.id
    );
    assert_eq!(refusal(rm(&mut world, &manager.id, true)), precondition(is_manager));
    let is_up = precondition("node node-1 is not down and can't be removed".into());
    assert_eq!(refusal(rm(&mut world, &worker, false)), is_up);
    assert_eq!(
        refusal(rm(&mut world, &"nosuch".into(), true)),
        (Code::NotFound, "node nosuch not found".into())
    );
    let change = |world: &mut World, id: &NodeId, role| {
        let node = world.state.node(id).unwrap().clone();
        let spec = NodeSpec { role, ..node.spec.clone() };
        world.control(|draft, _, _| update_node(draft, id, node.meta.version, spec))
    };
    let demoted = change(&mut world, &manager.id, NodeRole::Worker);
    assert_eq!(refusal(demoted), precondition("attempting to demote the last manager of the swarm".into()));
    let (code, text) = refusal(change(&mut world, &worker, NodeRole::Manager));
    assert_eq!(code, Code::Unimplemented);
    assert!(text.contains("--store etcd://") && text.contains("Leave the node a worker"), "{text}");

    // A suspect node is shown as ready, and is.
    world.lost.insert(worker.clone());
    world.run(4);
    assert_eq!(refusal(rm(&mut world, &worker, false)), is_up);
    world.run(12);
    rm(&mut world, &worker, false).unwrap();
    rm(&mut world, &"node-2".into(), true).unwrap();
    assert_eq!(world.state.nodes().count(), 1);
}
