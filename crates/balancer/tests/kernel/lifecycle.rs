//! Restart, upgrade, removal.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;

use aya::maps::MapData;
use shoal_balancer::{
    BACKENDS_MAX, Balancer, DnsPorts, Error, KernelState, LocalPort, NETWORKS_MAX, PortKey, SandboxEntry,
};
use shoal_model::{Backends, IpVersion, Protocol};

use crate::world::*;

#[test]
fn what_was_set_works_while_no_process_holds_anything_and_is_adopted() {
    let mut world = World::new(&["a", "b"]);
    world.serve("b");
    world.service(VIP, &[world.address("b")]);
    world.balancer().attach_answerer(&world.netns("net"), "h-a", VNI).unwrap();
    let to = SocketAddr::new(VIP, PORT);
    let socket = world.inside("a", || UdpSocket::bind("0.0.0.0:0")).unwrap();
    ask_udp(&socket, to).unwrap();
    let held = world.balancer().read_back().unwrap();

    drop(world.balancer.take());
    assert_eq!(world.inside("a", || ask_tcp(to)).unwrap(), ("b".to_owned(), to));
    assert_eq!(ask_udp(&socket, to).unwrap(), ("b".to_owned(), to));
    assert!(world.run("a", &format!("busybox ping -c 1 -W 1 {VIP}")).is_some());

    // The programs are exchanged under load, in the links that are there.
    let (link, program) = link_and_program(&world.config.pins, "shoal_connect4");
    std::thread::scope(|scope| {
        let load = scope
            .spawn(|| world.inside("a", || (0..500).filter_map(|_| ask_tcp(to).err()).collect::<Vec<_>>()));
        while !load.is_finished() {
            drop(Balancer::open(&world.config).unwrap());
        }
        assert!(load.join().unwrap().is_empty());
    });
    let (link_after, program_after) = link_and_program(&world.config.pins, "shoal_connect4");
    assert_eq!(link_after, link, "never detached");
    assert_ne!(program_after, program, "this build's program");
    world.balancer = Some(Balancer::open(&world.config).unwrap());
    assert_eq!(world.balancer().read_back().unwrap(), held);
    // What is changed now is changed for the programs that run.
    world.service(VIP, &[]);
    assert!(world.inside("a", || ask_tcp(to)).is_err());
}

#[test]
fn what_is_set_is_read_back() {
    let world = World::new(&[]);
    let balancer = world.balancer();
    let mut expected = KernelState::default();
    let entry = SandboxEntry {
        networks: (1..=u32::try_from(NETWORKS_MAX).unwrap()).collect(),
        dns: Some(DnsPorts { udp: 40_000, tcp: 40_001 }),
    };
    balancer.set_sandbox(7, &entry).unwrap();
    expected.sandboxes.insert(7, entry);
    let addresses = |count: u8| (0..count).map(|n| IpAddr::from([10, 0, 9, n])).collect::<Backends<_>>();
    for count in [1, 0, 200, 3] {
        balancer.set_service(key(VIP), &addresses(count)).unwrap();
        expected.services = BTreeMap::from([(key(VIP), addresses(count))]);
        assert_eq!(balancer.read_back().unwrap(), expected);
    }
    let port = PortKey { version: IpVersion::V4, protocol: Protocol::Udp, port: 53 };
    let backends = Backends::from([SocketAddr::new(VIP, 5353), SocketAddr::new(VIP, 5354)]);
    let local = LocalPort { backends, bound: Some([VIP].into()) };
    balancer.set_port(port, &local).unwrap();
    expected.ports.insert(port, local);
    assert_eq!(balancer.read_back().unwrap(), expected);
    // By source: every backend has many slots.
    let by_source = Backends { by_source: true, ..addresses(3) };
    balancer.set_service(key(VIP), &by_source).unwrap();
    expected.services.insert(key(VIP), by_source);
    assert_eq!(balancer.read_back().unwrap(), expected);

    for _ in 0..2 {
        balancer.remove_sandbox(7).unwrap();
        balancer.remove_service(key(VIP)).unwrap();
        balancer.remove_port(port).unwrap();
    }
    assert_eq!(balancer.read_back().unwrap(), KernelState::default());
    for map in ["slots", "live", "bindings"] {
        assert_eq!(entries(&world.config.pins, map), 0, "{map} holds what nothing names");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let world = World::new(&[]);
    let balancer = world.balancer();
    let entry = SandboxEntry { networks: vec![1; NETWORKS_MAX + 1], dns: None };
    assert!(matches!(balancer.set_sandbox(7, &entry), Err(Error::TooManyNetworks { count: 17, max: 16 })));
    assert!(matches!(balancer.set_service(key(VIP), &[VIP6].into()), Err(Error::Family { .. })));
    let port = PortKey { version: IpVersion::V4, protocol: Protocol::Tcp, port: 80 };
    let mixed = Backends::from([SocketAddr::new(VIP, 80), SocketAddr::new(VIP6, 80)]);
    let mixed = LocalPort { backends: mixed, bound: None };
    assert!(matches!(balancer.set_port(port, &mixed), Err(Error::MixedFamilies(80))));
    let many = (0..=u32::try_from(BACKENDS_MAX).unwrap()).map(|n| IpAddr::from((10 << 24 | n).to_be_bytes()));
    assert!(matches!(balancer.set_service(key(VIP), &many.collect()), Err(Error::TooManyBackends { .. })));
    assert_eq!(balancer.read_back().unwrap(), KernelState::default());
}

#[test]
fn other_layouts_are_left_until_they_are_retired() {
    let world = World::new(&[]);
    let old = world.config.pins.join("0");
    std::fs::create_dir_all(old.join("links")).unwrap();
    let reopened = Balancer::open(&world.config).unwrap();
    assert!(old.exists());
    reopened.retire_other_layouts().unwrap();
    assert!(!old.exists());
    assert_eq!(reopened.read_back().unwrap(), KernelState::default());
    assert!(world.config.pins.join("2/links/shoal_connect4").exists());
}

#[test]
fn what_somebody_unpins_or_detaches_is_named_and_restored() {
    let world = World::new(&["a", "b"]);
    world.serve("b");
    world.service(VIP, &[world.address("b")]);
    let balancer = world.balancer();
    let held = balancer.read_back().unwrap();
    let to = SocketAddr::new(VIP, PORT);
    let none: [&str; 0] = [];
    assert_eq!(balancer.differences().unwrap(), none);
    let layout = world.config.pins.join("2");
    let damages: [(&str, &str); 5] = [
        ("links/shoal_connect4", "program shoal_connect4 is not pinned"),
        ("maps/services", "map services is not pinned"),
        ("links", "program shoal_peername6 is not pinned"),
        ("", "map bypass_from is not pinned"),
        ("detach", "program shoal_connect4 is detached"),
    ];
    for (what, named) in damages {
        let path = layout.join(what);
        match what {
            "detach" => drop(bpftool("link detach pinned", &layout.join("links/shoal_connect4"))),
            "links/shoal_connect4" | "maps/services" => std::fs::remove_file(path).unwrap(),
            _ => std::fs::remove_dir_all(path).unwrap(),
        }
        let found = balancer.differences().unwrap();
        assert!(found.iter().any(|text| text == named), "{what}: {found:?}");
        balancer.restore().unwrap();
        assert_eq!(balancer.differences().unwrap(), none, "after {what}");
        assert_eq!(balancer.read_back().unwrap(), held);
        assert_eq!(world.inside("a", || ask_tcp(to)).unwrap(), ("b".to_owned(), to), "after {what}");
    }
    // The next process finds all of it.
    assert_eq!(Balancer::open(&world.config).unwrap().read_back().unwrap(), held);
}

#[test]
fn removal_leaves_neither_program_nor_map_nor_pin() {
    let mut world = World::new(&["a", "b"]);
    world.serve("b");
    world.service(VIP, &[world.address("b")]);
    let maps = map_ids(&world.config.pins);
    assert_eq!(maps.len(), 17);
    assert_eq!(programs_over(&maps), 10, "eight hooks, and the answerer's two");
    drop(world.balancer.take());
    assert_eq!(programs_over(&maps), 8, "no interface uses the answerer");
    let to = SocketAddr::new(VIP, PORT);
    assert!(world.inside("a", || ask_tcp(to)).is_ok());

    Balancer::remove(&world.config).unwrap();
    Balancer::remove(&world.config).unwrap();
    assert!(!world.config.pins.exists());
    eventually("the programs are gone", || programs_over(&maps) == 0);
    eventually("the maps are gone", || {
        aya::maps::loaded_maps().flatten().all(|map| !maps.contains(&map.id()))
    });
    assert!(world.inside("a", || ask_tcp(to)).is_err(), "the VIP means nothing any more");
}

fn pinned_maps(pins: &Path) -> Vec<std::path::PathBuf> {
    let maps = pins.join("2/maps");
    std::fs::read_dir(maps).unwrap().map(|entry| entry.unwrap().path()).collect()
}

fn map_ids(pins: &Path) -> HashSet<u32> {
    let id = |path| MapData::from_pin(path).unwrap().info().unwrap().id();
    pinned_maps(pins).into_iter().map(id).collect()
}

fn programs_over(maps: &HashSet<u32>) -> usize {
    let uses = |ids: Option<Vec<u32>>| ids.is_some_and(|ids| ids.iter().any(|id| maps.contains(id)));
    // A program may go between being listed and being looked at.
    aya::programs::loaded_programs()
        .flatten()
        .filter(|program| uses(program.map_ids().ok().flatten()))
        .count()
}

/// What is pinned, as bpftool tells it.
fn bpftool(arguments: &str, path: &Path) -> String {
    let mut command = std::process::Command::new("bpftool");
    let output = command.arg("--json").args(arguments.split(' ')).arg(path).output().unwrap();
    assert!(output.status.success(), "{arguments} {path:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn link_and_program(pins: &Path, hook: &str) -> (u32, u32) {
    let text = bpftool("link show pinned", &pins.join("2/links").join(hook));
    let number = |name: &str| {
        let (_, rest) = text.split_once(&format!("\"{name}\":")).unwrap();
        rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
    };
    (number("id"), number("prog_id"))
}

fn entries(pins: &Path, map: &str) -> usize {
    bpftool("map dump pinned", &pins.join("2/maps").join(map)).matches("\"key\"").count()
}
