//! Subnets, network numbers and addresses, and what they must keep clear of.

use std::collections::BTreeSet;

use super::*;
use crate::ControlError;
use crate::control::{create_network, remove_network};

/// What a test declares beyond a name.
fn declared(name: &str, change: impl FnOnce(&mut NetworkSpec)) -> NetworkSpec {
    let mut spec = NetworkSpec {
        name: name.into(),
        labels: Labels::new(),
        driver: NetworkDriver::Overlay,
        options: Labels::new(),
        internal: false,
        attachable: false,
        ingress: false,
        ipv6: false,
        pools: Vec::new(),
        config_from: None,
    };
    change(&mut spec);
    spec
}

fn create(
    world: &mut World,
    name: &str,
    change: impl FnOnce(&mut NetworkSpec),
) -> Result<NetworkId, ControlError> {
    let spec = declared(name, change);
    world.control(|draft, now, ids| create_network(draft, now, ids, spec))
}

fn refusal(world: &mut World, change: impl FnOnce(&mut NetworkSpec)) -> String {
    create(world, "refused", change).unwrap_err().message
}

fn with_option(world: &mut World, name: &str, key: &str, value: &str) -> Result<NetworkId, ControlError> {
    create(world, name, |spec| {
        spec.options.insert(key.to_owned(), value.to_owned());
    })
}

fn state(world: &World, id: &NetworkId) -> NetworkState {
    world.state.network(id).unwrap().state.clone().unwrap()
}

fn subnets(world: &World, id: &NetworkId) -> Vec<String> {
    state(world, id).pools.iter().map(|pool| pool.subnet.to_string()).collect()
}

/// As if the node had said so in its session.
fn set_routes(world: &mut World, node: usize, routes: &[&str]) {
    let id = world.state.nodes().nth(node).unwrap().id.clone();
    let session = world.observed.sessions.get_mut(&id).unwrap();
    let routes: BTreeSet<_> = routes.iter().map(|route| route.parse().unwrap()).collect();
    session.description = Arc::new(NodeDescription { routes, ..(*session.description).clone() });
}

const VNI: &str = "com.docker.network.driver.overlay.vxlanid_list";
const MTU: &str = "com.docker.network.driver.mtu";

#[test]
fn automatic_subnets_keep_clear_of_every_nodes_routes() {
    let mut world = World::new(2);
    set_routes(&mut world, 0, &["10.0.0.0/16"]);
    set_routes(&mut world, 1, &["10.1.0.0/24", "10.1.2.128/25"]);
    world.settle();
    let ingress = world.state.ingress_network().unwrap().id.clone();
    assert_eq!(subnets(&world, &ingress)[0], "10.1.1.0/24");
    let net = create(&mut world, "mynet", |_| {}).unwrap();
    assert_eq!(subnets(&world, &net), ["10.1.3.0/24"]);
}

#[test]
fn a_subnet_that_a_node_has_a_route_to_is_refused_and_the_route_named() {
    let mut world = World::new(2);
    set_routes(&mut world, 1, &["172.30.0.0/16"]);
    world.settle();
    let host = world.state.nodes().nth(1).unwrap().description.hostname.clone();
    for subnet in ["172.30.5.0/24", "172.16.0.0/12"] {
        let refused = world.network("refused", Some(subnet)).unwrap_err();
        assert_eq!(
            refused.message,
            format!("subnet {subnet} overlaps with route 172.30.0.0/16 of node {host}")
        );
    }
    let address = world.network("refused", Some("192.0.2.0/28")).unwrap_err();
    assert!(address.message.starts_with("subnet 192.0.2.0/28 overlaps with address 192.0.2.1 of node "));
    world.network("mynet", Some("172.31.0.0/16")).unwrap();
}

#[test]
fn a_node_whose_routes_clash_with_a_network_says_so_while_they_do() {
    let mut world = World::new(2);
    world.settle();
    world.network("mynet", Some("172.30.1.0/24")).unwrap();
    let message = |world: &World| world.state.nodes().nth(1).unwrap().status.message.clone();
    assert_eq!(message(&world), "");
    set_routes(&mut world, 1, &["172.30.0.0/16"]);
    world.settle();
    assert_eq!(message(&world), "route 172.30.0.0/16 overlaps with subnet 172.30.1.0/24 of network mynet");
    assert!(world.state.nodes().nth(1).unwrap().status.condition == NodeCondition::Ready);
    set_routes(&mut world, 1, &[]);
    world.settle();
    assert_eq!(message(&world), "");
}

#[test]
fn a_cluster_without_room_for_its_ingress_network_is_not_begun() {
    let mut world = World::new(1);
    let mut node = Node::clone(world.state.nodes().next().unwrap());
    node.description.routes = ["10.0.0.0/8".parse().unwrap()].into();
    world.put(Object::Node(node));
    let refused = world.control(|draft, _, ids| crate::cluster::give_ingress_subnet(draft, ids)).unwrap_err();
    assert!(refused.message.contains("--default-addr-pool"), "{}", refused.message);
}

#[test]
fn the_number_of_a_removed_network_comes_back_last() {
    let mut world = World::new(1);
    world.settle();
    let first = create(&mut world, "a", |_| {}).unwrap();
    assert_eq!(state(&world, &first).vni, 4097);
    for expected in 4098..4102 {
        world.control(|draft, _, _| remove_network(draft, &first)).ok();
        let next = create(&mut world, "b", |_| {}).unwrap();
        assert_eq!(state(&world, &next).vni, expected);
        world.control(|draft, _, _| remove_network(draft, &next)).unwrap();
    }
    // Round the end the numbers in use are passed over.
    let mut cluster = Cluster::clone(world.state.cluster().unwrap());
    cluster.last_vni = Some((1 << 24) - 1);
    world.put(Object::Cluster(cluster));
    let next = create(&mut world, "c", |_| {}).unwrap();
    assert_eq!(state(&world, &next).vni, 4097, "4096 is the ingress network's");
}

#[test]
fn a_number_of_the_users_choice_is_his_if_it_is_one_and_free() {
    let mut world = World::new(1);
    world.settle();
    let chosen = with_option(&mut world, "mynet", VNI, "5000").unwrap();
    assert_eq!(state(&world, &chosen).vni, 5000);
    let taken = with_option(&mut world, "other", VNI, "5000").unwrap_err();
    assert_eq!(taken.message, "vxlan id 5000 is in use by network mynet");
    for bad in ["", "4095", "16777216", "5001,5002", "x"] {
        let refused = with_option(&mut world, "other", VNI, bad).unwrap_err();
        assert!(refused.message.starts_with("invalid vxlan id value"), "{}", refused.message);
    }
    let next = create(&mut world, "next", |_| {}).unwrap();
    assert_eq!(state(&world, &next).vni, 4097, "a choice does not move the others");
}

#[test]
fn sizes_that_no_link_can_have_are_refused() {
    let mut world = World::new(1);
    world.settle();
    for bad in ["", "x", "-1", "575", "65536"] {
        let refused = with_option(&mut world, "refused", MTU, bad).unwrap_err();
        assert!(refused.message.starts_with("invalid com.docker.network.driver.mtu"), "{}", refused.message);
    }
    let six = refusal(&mut world, |spec| {
        spec.ipv6 = true;
        spec.options.insert(MTU.to_owned(), "1279".to_owned());
    });
    assert!(six.contains("from 1280"), "{six}");
    let net = with_option(&mut world, "mynet", MTU, "1400").unwrap();
    assert_eq!(crate::table::derive(&world.state, &net).unwrap().config.mtu, Some(1400));
}

#[test]
fn reserved_addresses_are_never_given_out() {
    let mut world = World::new(1);
    world.settle();
    let reserve = |names: &[(&str, &str)]| {
        let reserved = names.iter().map(|(name, address)| ((*name).to_owned(), address.parse().unwrap()));
        AddressPool { reserved: reserved.collect(), ..AddressPool::new("10.9.0.0/29".parse().unwrap()) }
    };
    let outside = refusal(&mut world, |spec| spec.pools = vec![reserve(&[("router", "10.9.1.1")])]);
    assert_eq!(
        outside,
        "invalid auxiliary address router: parent subnet 10.9.0.0/29 doesn't contain this address"
    );
    let pool = reserve(&[("router", "10.9.0.1"), ("printer", "10.9.0.4")]);
    let net = create(&mut world, "mynet", |spec| spec.pools = vec![pool]).unwrap();
    assert_eq!(state(&world, &net).pools[0].gateway, "10.9.0.2".parse().ok());
    let web = world.service(spec("web", 2, &[&net])).unwrap();
    world.run(2);
    let service = world.state.service(&web).unwrap();
    let tasks = world.serving(&web);
    let mut held: Vec<_> = tasks.iter().map(|task| task.attachments[0].address.addr()).collect();
    held.push(service.endpoint.virtual_ips[0].address.addr());
    held.sort();
    let free: [std::net::IpAddr; 3] =
        ["10.9.0.3", "10.9.0.5", "10.9.0.6"].map(|address| address.parse().unwrap());
    assert_eq!(held, free);
}

#[test]
fn an_ipv6_network_gives_both_families_and_frees_them_late() {
    let mut world = World::new(1);
    world.settle();
    let net = create(&mut world, "six", |spec| spec.ipv6 = true).unwrap();
    let pools = state(&world, &net).pools;
    let generated = pools[1].subnet;
    assert!(generated.to_string().starts_with("fd") && generated.prefix_len() == 64, "{generated}");
    assert_ne!(pools[1].gateway, Some(generated.network()), "the subnet's own address is all routers'");
    let web = world.service(spec("web", 1, &[&net])).unwrap();
    world.run(2);
    let vips = &world.state.service(&web).unwrap().endpoint.virtual_ips;
    assert_eq!(vips.iter().filter(|vip| generated.contains(&vip.address.addr())).count(), 1);
    let table = crate::table::derive(&world.state, &net).unwrap();
    assert!(table.services[&web].vip_v6.is_some());
    let mut seen = BTreeSet::new();
    for round in 0..3 {
        let task = world.serving(&web)[0].clone();
        assert!(seen.insert(task.attachments[0].address_v6.unwrap()), "an address came back at once");
        world.report(&task, TaskState::Failed);
        world.run(10);
        assert_eq!(world.serving(&web).len(), 1, "round {round}");
    }
}
