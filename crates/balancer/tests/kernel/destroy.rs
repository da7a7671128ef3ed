//! Sockets to a dead backend.

use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use shoal_balancer::destroy_sockets;
use socket2::{Domain, Socket, Type};

use crate::world::*;

fn connected(world: &World, to: SocketAddr) -> TcpStream {
    let mut stream = world.inside("a", || TcpStream::connect(to)).unwrap();
    stream.read_exact(&mut [0]).unwrap(); // the greeting
    stream
}

#[test]
fn a_reader_wakes_at_once_and_other_connections_live() {
    let world = World::new(&["a", "b", "c"]);
    world.serve("b");
    world.serve("c");
    world.service(VIP, &[world.address("b")]);
    let mut through_vip = connected(&world, SocketAddr::new(VIP, PORT));
    let mut through_mapped = connected(&world, SocketAddr::new(mapped(VIP), PORT));
    let other = connected(&world, SocketAddr::new(world.address("c"), PORT));
    world.service(VIP, &[]);
    std::thread::scope(|scope| {
        let readers = [&mut through_vip, &mut through_mapped].map(|stream| {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let fd = stream.as_raw_fd();
            let thread = scope.spawn(move || (stream.read(&mut [0; 8]), Instant::now()));
            (fd, thread)
        });
        let begun = Instant::now();
        assert_eq!(destroy_sockets(&world.netns("a"), world.address("b")).unwrap(), 2);
        for (_, thread) in readers {
            let (result, at) = thread.join().unwrap();
            assert_eq!(result.unwrap_err().kind(), ErrorKind::ConnectionAborted);
            assert!(at.duration_since(begun) < Duration::from_secs(1));
        }
    });
    assert!(other.take_error().unwrap().is_none());
    assert_eq!(destroy_sockets(&world.netns("a"), world.address("c")).unwrap(), 1);
    assert_eq!(destroy_sockets(&world.netns("a"), world.address("c")).unwrap(), 0, "nothing is left");
}

#[test]
fn connecting_and_udp_sockets_are_let_go_and_listeners_are_not() {
    let world = World::new(&["a", "b"]);
    // A neighbour entry and no host: the first SYN is never answered.
    world.ip("a", "neigh add 10.0.9.99 lladdr 02:42:00:00:00:99 dev eth0 nud permanent");
    world.ip("a", "neigh add fd00:9::99 lladdr 02:42:00:00:00:99 dev eth0 nud permanent");
    for gone in ["10.0.9.99", "fd00:9::99"] {
        let to = SocketAddr::new(gone.parse().unwrap(), PORT);
        let (connecting, connected_udp, unconnected_udp, _listener) = world.inside("a", || {
            let connecting = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
            connecting.set_nonblocking(true).unwrap();
            connecting.connect(&to.into()).unwrap_err();
            let udp = UdpSocket::bind("[::]:0").unwrap();
            udp.connect(to).unwrap_or_else(|error| panic!("{to}: {error}"));
            (connecting, udp, UdpSocket::bind("[::]:0").unwrap(), TcpListener::bind("[::]:0").unwrap())
        });
        assert_eq!(destroy_sockets(&world.netns("a"), to.ip()).unwrap(), 2, "{gone}");
        let error = connecting.take_error().unwrap().unwrap();
        assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
        assert!(connected_udp.peer_addr().is_err(), "disconnected");
        assert!(unconnected_udp.local_addr().is_ok());
    }
}

#[test]
fn a_namespace_that_is_gone_is_an_error_with_its_path() {
    let missing = std::path::Path::new("/run/netns/there-is-none-such");
    let error = destroy_sockets(missing, VIP).unwrap_err();
    assert!(error.to_string().contains("there-is-none-such"), "{error}");
}
