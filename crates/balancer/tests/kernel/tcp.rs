use std::collections::BTreeSet;
use std::io::{ErrorKind, Read};
use std::net::{Ipv6Addr, SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt::TcpFastOpenConnect};
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

/// Data with the first packet, as far as both ends allow it: `MSG_FASTOPEN` of `send(2)`.
#[test]
fn fast_open_is_balanced_too() {
    const MSG_FASTOPEN: i32 = 0x2000_0000;
    let world = World::new(&["a", "b", "c"]);
    world.serve("b");
    world.serve("c");
    world.service(VIP, &[world.address("b"), world.address("c")]);
    world.service(VIP6, &[world.address6("b"), world.address6("c")]);
    world.inside("a", || {
        for vip in [VIP, mapped(VIP), VIP6] {
            let to = SocketAddr::new(vip, PORT);
            let names = both(|| {
                let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
                // No more than the server reads: a connection it has reset shows no peer.
                assert_eq!(socket.send_to_with_flags(b"w", &to.into(), MSG_FASTOPEN).unwrap(), 1, "{vip}");
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
                let mut name = [0; 16];
                let length = (&socket).read(&mut name).unwrap();
                // Not before: with a cookie the connection is only under way when the data is taken.
                assert_eq!(socket.peer_addr().unwrap().as_socket(), Some(to));
                String::from_utf8_lossy(&name[..length]).into_owned()
            });
            assert_eq!(names, two(), "{vip}");
        }
    });
}

/// The same with `connect`, which is put off until there is data (`TCP_FASTOPEN_CONNECT`, `tcp(7)`).
#[test]
fn a_connect_that_is_put_off_is_balanced_too() {
    let world = World::new(&["a", "b", "c"]);
    world.serve("b");
    world.serve("c");
    world.service(VIP, &[world.address("b"), world.address("c")]);
    world.inside("a", || {
        let to = SocketAddr::new(VIP, PORT);
        let names = both(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            setsockopt(&socket, TcpFastOpenConnect, &true).unwrap();
            socket.connect(&to.into()).unwrap();
            assert_eq!(socket.send(b"w").unwrap(), 1);
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut name = [0; 16];
            let length = (&socket).read(&mut name).unwrap();
            assert_eq!(socket.peer_addr().unwrap().as_socket(), Some(to));
            String::from_utf8_lossy(&name[..length]).into_owned()
        });
        assert_eq!(names, two());
    });
}

#[test]
fn connections_over_several_paths_are_balanced() {
    const IPPROTO_MPTCP: i32 = 262;
    let world = World::new(&["a", "b", "c"]);
    world.serve("b");
    world.serve("c");
    world.service(VIP, &[world.address("b"), world.address("c")]);
    world.inside("a", || {
        let to = SocketAddr::new(VIP, PORT);
        let socket = || Socket::new(Domain::IPV4, Type::STREAM, Some(IPPROTO_MPTCP.into()));
        let names = both(|| {
            let socket = socket().unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.connect(&to.into()).unwrap();
            let mut name = [0; 16];
            let length = (&socket).read(&mut name).unwrap();
            String::from_utf8_lossy(&name[..length]).into_owned()
        });
        assert_eq!(names, two());
    });
}

/// From the moment the change is made no new connection goes there; one that is open stays.
#[test]
fn a_removed_backend_gets_no_new_connection_from_that_moment() {
    let world = World::new(&["a", "b", "c"]);
    world.serve("b");
    world.serve("c");
    let to = SocketAddr::new(VIP, PORT);
    let (b, c) = (world.address("b"), world.address("c"));
    world.service(VIP, &[b]);
    let mut kept = world.inside("a", || TcpStream::connect(to)).unwrap();
    let (stop, seen) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    let changes = std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                world.inside("a", || {
                    while !stop.load(Ordering::Relaxed) {
                        let began = Instant::now();
                        let (name, _) = ask_tcp(to).unwrap();
                        seen.lock().unwrap().push((began..Instant::now(), name));
                    }
                })
            });
        }
        let mut changes = Vec::new();
        for turn in 0..60 {
            let (gone, left) = if turn % 2 == 0 { ("b", c) } else { ("c", b) };
            world.service(VIP, &[left]);
            let removed = Instant::now();
            let before = seen.lock().unwrap().len();
            eventually("there is traffic", || seen.lock().unwrap().len() > before + 20);
            let until = Instant::now();
            world.service(VIP, &[b, c]);
            changes.push((gone, removed, until));
        }
        stop.store(true, Ordering::Relaxed);
        changes
    });
    let seen = seen.into_inner().unwrap();
    for (gone, removed, until) in changes {
        let meanwhile = seen.iter().filter(|(time, _)| time.start >= removed && time.end <= until);
        let names: BTreeSet<&str> = meanwhile.map(|(_, name)| name.as_str()).collect();
        assert!(!names.is_empty() && !names.contains(gone), "after {gone} was removed: {names:?}");
    }
    kept.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut name = [0; 1];
    kept.read_exact(&mut name).unwrap();
    assert_eq!(&name, b"b");
    kept.set_nonblocking(true).unwrap();
    assert_eq!(kept.read(&mut name).unwrap_err().kind(), ErrorKind::WouldBlock, "it is open all the same");
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
