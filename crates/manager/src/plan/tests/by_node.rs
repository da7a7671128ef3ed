//! Networks whose addresses depend on the node.

use super::*;
use crate::control::create_network;
use crate::table::derive;

fn lan(world: &mut World, change: impl FnOnce(&mut NetworkSpec)) -> NetworkId {
    let mut spec = NetworkSpec {
        name: "lan".into(),
        labels: Labels::new(),
        driver: NetworkDriver::Macvlan,
        options: Labels::new(),
        internal: false,
        attachable: true,
        ingress: false,
        ipv6: false,
        pools: Vec::new(),
        config_from: Some("part".into()),
    };
    change(&mut spec);
    world.control(|draft, now, ids| create_network(draft, now, ids, spec)).unwrap()
}

/// As if the node had said so in its session: a part of the subnet that is its own.
fn configure(world: &mut World, node: &str, range: &str) {
    let session = world.observed.sessions.get_mut(&NodeId::new(node)).unwrap();
    let pool = AddressPool {
        gateway: Some("10.5.0.1".parse().unwrap()),
        range: Some(range.parse().unwrap()),
        ..AddressPool::new("10.5.0.0/24".parse().unwrap())
    };
    let configurations = [("part".to_owned(), vec![pool])].into();
    session.description = Arc::new(NodeDescription { configurations, ..(*session.description).clone() });
}

fn given(world: &World) -> Vec<(String, String)> {
    let tasks = world.state.tasks().filter(|task| task.node.is_some());
    let mut given: Vec<_> = tasks
        .map(|task| (task.node.clone().unwrap().to_string(), task.attachments[0].address.to_string()))
        .collect();
    given.sort();
    given
}

#[test]
fn a_task_has_an_address_of_its_nodes_part_and_waits_where_there_is_none() {
    let mut world = World::new(3);
    let net = lan(&mut world, |_| {});
    configure(&mut world, "node-1", "10.5.0.8/31");
    world.settle();
    world.service(spec("web", 3, &[&net])).unwrap();
    world.settle();
    let pairs = |pairs: &[(&str, &str)]| -> Vec<_> {
        pairs.iter().map(|(node, address)| ((*node).to_owned(), (*address).to_owned())).collect()
    };
    assert_eq!(given(&world), pairs(&[("node-1", "10.5.0.8/24"), ("node-1", "10.5.0.9/24")]));
    let waiting = world.state.tasks().find(|task| task.node.is_none()).unwrap();
    let why = "no suitable node (network configuration missing on 2 nodes; no available address on 1 node)";
    assert_eq!(waiting.status.error, why);
    assert!(waiting.attachments.is_empty());

    configure(&mut world, "node-2", "10.5.0.0/30");
    world.settle();
    // The subnet's own address and the gateway's are nobody's.
    let all = [("node-1", "10.5.0.8/24"), ("node-1", "10.5.0.9/24"), ("node-2", "10.5.0.2/24")];
    assert_eq!(given(&world), pairs(&all));
    world.run(5);
    let table = derive(&world.state, &net).unwrap();
    assert_eq!(table.config.driver, Driver::Unconfigured(NodeDriver::Macvlan));
    assert_eq!(table.config.config_from.as_deref(), Some("part"));
    let entry = table.services.values().next().unwrap();
    assert_eq!((entry.vip, entry.backends.len()), (None, 3), "its name is its tasks'");
}

#[test]
fn a_part_that_two_nodes_have_gives_no_address_twice() {
    let mut world = World::new(2);
    let net = lan(&mut world, |_| {});
    for node in world.state.nodes().map(|node| node.id.to_string()).collect::<Vec<_>>() {
        configure(&mut world, &node, "10.5.0.0/28");
    }
    world.settle();
    world.service(spec("web", 13, &[&net])).unwrap();
    world.run(3);
    let mut addresses: Vec<_> = given(&world).into_iter().map(|(_, address)| address).collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 13, "14 hosts, of which one is the gateway");
}

#[test]
fn a_global_service_is_where_the_configuration_is_and_is_updated_there() {
    let mut world = World::new(3);
    let net = lan(&mut world, |_| {});
    for node in ["node-1", "node-2"] {
        configure(&mut world, node, "10.5.0.0/28");
    }
    world.settle();
    let mut declared = spec("web", 1, &[&net]);
    declared.mode = ServiceMode::Global;
    let service = world.service(declared).unwrap();
    world.run(3);
    let nodes = |world: &World| given(world).into_iter().map(|(node, _)| node).collect::<Vec<_>>();
    assert_eq!(nodes(&world), ["node-1", "node-2"]);
    world.change(&service, |spec| spec.task.container.env.push("new=1".into()));
    world.run(20);
    let serving = world.serving(&service);
    assert_eq!(serving.len(), 2);
    assert!(
        serving.iter().all(|task| task.spec.container.env == ["new=1"]),
        "the third node holds nothing up"
    );
    // A node that says nothing of it any more keeps the task it has.
    let session = world.observed.sessions.get_mut(&NodeId::new("node-1")).unwrap();
    session.description = Arc::new(NodeDescription::default());
    world.settle();
    assert_eq!(world.serving(&service).len(), 2);
}

#[test]
fn an_address_that_may_be_answered_is_given_to_nobody() {
    let mut world = World::new(2);
    let net = lan(&mut world, |_| {});
    for node in world.state.nodes().map(|node| node.id.to_string()).collect::<Vec<_>>() {
        configure(&mut world, &node, "10.5.0.8/32");
    }
    world.settle();
    let away = NodeId::new("node-1");
    world.lost.insert(away.clone());
    world.run(20);
    assert!(world.state.node(&away).unwrap().is_down());
    let mut network = Network::clone(world.state.network(&net).unwrap());
    let address = "10.5.0.8".parse().unwrap();
    let resting = Resting { address, since: TableVersion::default(), holders: [away].into() };
    network.state.as_mut().unwrap().resting.push(resting);
    world.put(Object::Network(network));
    world.service(spec("web", 1, &[&net])).unwrap();
    world.run(2);
    assert!(given(&world).is_empty(), "whoever is cut off may still answer there");
    let waiting = world.state.tasks().next().unwrap();
    assert!(waiting.status.error.contains("no available address on 1 node"), "{}", waiting.status.error);
}

#[test]
fn two_networks_do_not_share_addresses_on_one_link() {
    let mut world = World::new(1);
    lan(&mut world, |_| {});
    let mut refused = |change: &dyn Fn(&mut NetworkSpec)| {
        let mut spec = NetworkSpec {
            name: "other".into(),
            ..world.state.networks().find(|network| network.spec.name == "lan").unwrap().spec.clone()
        };
        change(&mut spec);
        world.control(|draft, now, ids| create_network(draft, now, ids, spec)).unwrap_err().message
    };
    assert_eq!(refused(&|_| {}), "configuration network \"part\" is what network lan is made from");
    let on_eth0 = |spec: &mut NetworkSpec| {
        spec.config_from = None;
        spec.pools = vec![AddressPool::new("10.6.0.0/24".parse().unwrap())];
        spec.options.insert("parent".into(), "eth0".into());
    };
    let mut world = World::new(1);
    lan(&mut world, on_eth0);
    let spec = world.state.networks().find(|network| network.spec.name == "lan").unwrap().spec.clone();
    let other = NetworkSpec { name: "other".into(), ..spec };
    let refused = world.control(|draft, now, ids| create_network(draft, now, ids, other)).unwrap_err();
    assert_eq!(refused.message, "network lan has the same addresses on the same interface");
}

#[test]
fn a_network_that_is_there_already_may_be_where_the_nodes_are() {
    let mut world = World::new(2);
    let pool = AddressPool::new("192.0.2.0/24".parse().unwrap());
    let net = lan(&mut world, |spec| {
        spec.config_from = None;
        spec.pools = vec![pool.clone()];
        spec.options.insert("parent".into(), "eth0".into());
    });
    let second = lan(&mut world, |spec| {
        spec.name = "second".into();
        spec.config_from = None;
        spec.pools = vec![pool];
        spec.options.insert("parent".into(), "eth0.7".into());
    });
    assert_ne!(net, second);
    world.service(spec("web", 2, &[&net])).unwrap();
    world.run(3);
    assert_eq!(given(&world).len(), 2);
    let table = derive(&world.state, &net).unwrap();
    let Driver::Macvlan(config) = table.config.driver else { panic!() };
    assert_eq!(config.parent.as_deref(), Some("eth0"));
    assert!(world.state.nodes().all(|node| node.status.message.is_empty()), "that is no clash");
}
