use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use shoal_balancer::ServiceKey;
use shoal_model::Backends;
use socket2::{Domain, Socket, Type};

use crate::world::*;

fn two() -> BTreeSet<String> {
    ["b", "c"].map(str::to_owned).into()
}

#[test]
fn connections_to_a_vip_reach_every_backend_and_show_the_vip() {
    let world = World::new(&["a", "b", "c"]);
    world.serve("b");
    world.serve("c");
    world.service(VIP, &[world.address("b"), world.address("c")]);
    world.service(VIP6, &[world.address6("b"), world.address6("c")]);
    world.inside("a", || {
        for vip in [VIP, mapped(VIP), VIP6] {
            let to = SocketAddr::new(vip, PORT);
            let names = both(|| {
                let (name, peer) = ask_tcp(to).unwrap();
                assert_eq!(peer, to, "getpeername");
                name
            });
            assert_eq!(names, two(), "{vip}");
        }
    });
}

#[test]
fn spread_by_source_a_sandbox_gets_the_same_backend_as_long_as_it_is_one() {
    let clients = ["a1", "a2", "a3", "a4", "a5", "a6", "a7", "a8"];
    let world = World::new(&[&clients[..], &["b", "c"]].concat());
    world.serve("b");
    world.serve("c");
    let set = |names: &[&str]| {
        let members = names.iter().map(|name| world.address(name)).collect();
        world.balancer().set_service(key(VIP), &Backends { members, by_source: true }).unwrap();
    };
    let led = || {
        clients.map(|client| {
            let ask = || ask_tcp(SocketAddr::new(VIP, PORT)).unwrap().0;
            let names: BTreeSet<String> = world.inside(client, || (0..10).map(|_| ask()).collect());
            assert_eq!(names.len(), 1, "{client}: {names:?}");
            names.into_iter().next().unwrap()
        })
    };
    set(&["b", "c"]);
    let before = led();
    assert_eq!(before.iter().cloned().collect::<BTreeSet<_>>(), two(), "not all of them the same");
    set(&["c"]);
    assert_eq!(led().into_iter().collect::<BTreeSet<_>>(), ["c".to_owned()].into());
    set(&["b", "c"]);
    assert_eq!(led(), before);
}

#[test]
fn a_backend_reaches_its_own_service() {
    let world = World::new(&["a"]);
    world.serve("a");
    world.service(VIP, &[world.address("a")]);
    let (name, _) = world.inside("a", || ask_tcp(SocketAddr::new(VIP, PORT)).unwrap());
    assert_eq!(name, "a");
}

#[test]
fn a_service_without_backends_refuses_at_once() {
    let world = World::new(&["a"]);
    world.service(VIP, &[]);
    world.service(VIP6, &[]);
    world.inside("a", || {
        for vip in [VIP, mapped(VIP), VIP6] {
            let to = SocketAddr::new(vip, PORT);
            assert_eq!(ask_tcp(to).unwrap_err().kind(), ErrorKind::ConnectionRefused, "{vip}");
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            let error = socket.connect(&to.into()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{vip}, non-blocking");
        }
    });
}

#[test]
fn only_members_reach_a_vip_and_equal_addresses_are_two_services() {
    let world = World::new(&["a", "b", "c", "stranger"]);
    world.serve("b");
    world.serve("c");
    world.service(VIP, &[world.address("b")]);
    let elsewhere = ServiceKey { vni: VNI + 1, address: VIP };
    world.balancer().set_service(elsewhere, &[world.address("c")].into()).unwrap();
    let ask = || ask_tcp(SocketAddr::new(VIP, PORT));
    let name = |networks: &[u32]| {
        world.join("a", networks);
        world.inside("a", ask).unwrap().0
    };
    assert_eq!(name(&[VNI]), "b");
    assert_eq!(name(&[VNI + 1]), "c");
    assert_eq!(name(&[VNI + 7, VNI + 1, VNI]), "c", "the first network that knows it");
    // Untouched: it goes out as it is, and nobody on the wire has that address.
    world.balancer().remove_sandbox(world.cookie("stranger")).unwrap();
    let error = world.inside("stranger", ask).unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::HostUnreachable | ErrorKind::TimedOut),
        "a stranger's connection: {error}"
    );
    world.balancer().remove_sandbox(world.cookie("stranger")).unwrap();
}

#[test]
fn other_destinations_are_left_alone() {
    let world = World::new(&["a", "b"]);
    world.serve("b");
    world.service(VIP, &[]);
    let direct = SocketAddr::new(world.address("b"), PORT);
    assert_eq!(world.inside("a", || ask_tcp(direct)).unwrap(), ("b".to_owned(), direct));
    let local = world.inside("b", || ask_tcp((Ipv6Addr::LOCALHOST, PORT).into())).unwrap();
    assert_eq!(local.0, "b");
}

#[test]
fn changing_backends_under_load_fails_no_connection() {
    let world = World::new(&["a", "b", "c"]);
    world.serve("b");
    world.serve("c");
    let (b, c) = (world.address("b"), world.address("c"));
    world.service(VIP, &[b]);
    let (stop, asked) = (AtomicBool::new(false), AtomicU32::new(0));
    let failures = std::thread::scope(|scope| {
        let load: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    world.inside("a", || {
                        let mut failures = Vec::new();
                        while !stop.load(Ordering::Relaxed) {
                            failures.extend(ask_tcp(SocketAddr::new(VIP, PORT)).err());
                            asked.fetch_add(1, Ordering::Relaxed);
                        }
                        failures
                    })
                })
            })
            .collect();
        let deadline = Instant::now() + Duration::from_secs(2);
        while Instant::now() < deadline || asked.load(Ordering::Relaxed) < 500 {
            for backends in [&[b][..], &[c], &[b, c]] {
                world.service(VIP, backends);
            }
        }
        stop.store(true, Ordering::Relaxed);
        load.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(failures.is_empty(), "of {} connections: {failures:?}", asked.into_inner());
}
