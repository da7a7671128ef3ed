//! What is counted of virtual addresses, and how long.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use shoal_balancer::{Balancer, Counted};

use crate::world::*;

fn count(world: &World, vip: IpAddr, what: Counted) -> u64 {
    world.balancer().counts().unwrap().get(&(key(vip), what)).copied().unwrap_or_default()
}

#[test]
fn each_backend_has_the_number_of_its_new_connections() {
    let world = World::new(&["a", "b", "c"]);
    world.serve("b");
    world.serve("c");
    for (vip, b, c) in
        [(VIP, world.address("b"), world.address("c")), (VIP6, world.address6("b"), world.address6("c"))]
    {
        world.service(vip, &[b, c]);
        let to = SocketAddr::new(vip, PORT);
        let names: Vec<String> = world.inside("a", || (0..50).map(|_| ask_tcp(to).unwrap().0).collect());
        let of = |name: &str| names.iter().filter(|own| *own == name).count() as u64;
        assert_eq!(count(&world, vip, Counted::Connected(b)), of("b"));
        assert_eq!(count(&world, vip, Counted::Connected(c)), of("c"));
        assert!(of("b") > 0 && of("c") > 0, "{names:?}");
    }
    assert_eq!(world.inside("a", || ask_tcp(SocketAddr::new(world.address("b"), PORT))).unwrap().0, "b");
    assert_eq!(world.balancer().counts().unwrap().len(), 4, "other addresses are not counted");
}

#[test]
fn a_datagram_socket_counts_once_for_each_backend_it_is_given() {
    let world = World::new(&["a", "b", "c"]);
    world.serve("b");
    world.serve("c");
    let (b, c, to) = (world.address("b"), world.address("c"), SocketAddr::new(VIP, PORT));
    world.service(VIP, &[b]);
    let socket = world.inside("a", || UdpSocket::bind("0.0.0.0:0").unwrap());
    for _ in 0..20 {
        assert_eq!(ask_udp(&socket, to).unwrap().0, "b");
    }
    assert_eq!(count(&world, VIP, Counted::Connected(b)), 1);
    world.service(VIP, &[c]);
    for _ in 0..20 {
        assert_eq!(ask_udp(&socket, to).unwrap().0, "c");
    }
    assert_eq!(count(&world, VIP, Counted::Connected(c)), 1);
    let connected = world.inside("a", || UdpSocket::bind("0.0.0.0:0").unwrap());
    connected.connect(to).unwrap();
    assert_eq!(count(&world, VIP, Counted::Connected(c)), 2);
}

#[test]
fn refusals_and_pings_are_counted_for_the_address() {
    let world = World::new(&["a", "b"]);
    world.balancer().attach_answerer(&world.netns("net"), "h-a", VNI).unwrap();
    for vip in [VIP, VIP6] {
        world.service(vip, &[]);
        let to = SocketAddr::new(vip, PORT);
        for _ in 0..3 {
            assert!(world.inside("a", || ask_tcp(to)).is_err());
        }
        assert_eq!(count(&world, vip, Counted::Rejected), 3);
        let family = if vip.is_ipv6() { "-6" } else { "-4" };
        world.run("a", &format!("busybox ping {family} -c 2 -W 1 {vip}")).unwrap();
        assert_eq!(count(&world, vip, Counted::Pinged), 2);
    }
}

#[test]
fn counts_outlive_the_daemon_and_go_with_what_they_count() {
    let mut world = World::new(&["a", "b", "c"]);
    world.serve("b");
    let (b, c, to) = (world.address("b"), world.address("c"), SocketAddr::new(VIP, PORT));
    world.service(VIP, &[b]);
    assert_eq!(world.inside("a", || ask_tcp(to)).unwrap().0, "b");
    world.balancer = None;
    assert_eq!(
        world.inside("a", || ask_tcp(to)).unwrap().0,
        "b",
        "nobody is there, and balances all the same"
    );
    world.balancer = Some(Balancer::open(&world.config).unwrap());
    assert_eq!(count(&world, VIP, Counted::Connected(b)), 2);
    world.service(VIP, &[b, c]);
    assert_eq!(count(&world, VIP, Counted::Connected(b)), 2, "still a backend");
    world.service(VIP, &[c]);
    assert_eq!(count(&world, VIP, Counted::Connected(b)), 0, "no backend any more");
    world.service(VIP, &[]);
    assert!(world.inside("a", || ask_tcp(to)).is_err());
    world.balancer().remove_service(key(VIP)).unwrap();
    assert!(world.balancer().counts().unwrap().is_empty());
}
