//! More questions than anybody answers, and what is no question: every container is answered all the same.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

use shoal_e2e::dns::{A, REFUSED, RESOLVER, SERVFAIL, Transport, ask, query};
use shoal_e2e::load::Load;
use shoal_e2e::{Netns, Node, PATIENCE, wait_until};

/// A name server that hears and says nothing.
const SILENT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 55);

/// Questions in flight at once, and the sockets they are spread over.
const SOCKETS: u16 = 100;
const QUESTIONS: u16 = 100;
/// A client gives up after five seconds and tries again; a busy machine gets more.
const CLIENTS_PATIENCE: Duration = Duration::from_secs(10);
/// Whoever waits for a silent server waits longer; a busy machine takes some of it.
const LOCAL_MAX: Duration = Duration::from_millis(500);

/// `web` on a network with two clients.
fn stage() -> (Node, Netns, Netns, IpAddr) {
    let node = Node::cluster();
    node.network("mynet");
    node.create_service("web", 1, &["--network", "mynet"], &["idle"]);
    let clients = node.service("client", 2, &["--network", "mynet"], &["idle"]);
    let vip = node.vip("web").into();
    clients.iter().for_each(|client| node.resolves(&client.netns(), "web", vec![vip]));
    (node, clients[0].netns(), clients[1].netns(), vip)
}

/// A local name, asked for steadily; how long each answer took.
fn ask_steadily(from: &Netns, vip: IpAddr) -> (Load, Arc<Mutex<Vec<Duration>>>) {
    let took = Arc::new(Mutex::new(Vec::new()));
    let times = took.clone();
    let load = Load::start(from, 1, 500, move || {
        let began = Instant::now();
        let answer = ask("web", A, Transport::Udp).map_err(|error| error.to_string())?;
        times.lock().unwrap().push(began.elapsed());
        if answer.addresses() == [vip] { Ok(()) } else { Err(format!("{answer:?}")) }
    });
    (load, took)
}

/// Every answer came, and 99 of 100 soon.
#[track_caller]
fn were_answered(who: &str, (load, took): (Load, Arc<Mutex<Vec<Duration>>>)) {
    load.stop().assert_clean(100);
    let mut took = took.lock().unwrap().clone();
    took.sort();
    let of = |share: usize| took[(took.len() - 1) * share / 100];
    println!("{who}: {} local names, p50 {:?}, p99 {:?}, at most {:?}", took.len(), of(50), of(99), of(100));
    assert!(of(99) < LOCAL_MAX, "{who}: p99 {:?}", of(99));
}

/// The codes that a hundred questions of one socket come to.
fn ask_for_outside_names(number: u16, start: &Barrier) -> Vec<u8> {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect(RESOLVER).unwrap();
    start.wait();
    let began = Instant::now();
    for id in 0..QUESTIONS {
        socket.send(&query(id, &format!("n{number}-{id}.example"), A)).unwrap();
    }
    let mut codes = vec![None; QUESTIONS.into()];
    let mut reply = [0; 512];
    while codes.contains(&None) {
        let left = CLIENTS_PATIENCE.saturating_sub(began.elapsed());
        if left.is_zero() {
            break;
        }
        socket.set_read_timeout(Some(left)).unwrap();
        if socket.recv(&mut reply).is_ok() {
            let id = u16::from_be_bytes([reply[0], reply[1]]);
            codes[usize::from(id)] = Some(reply[3] & 0x0f);
        }
    }
    codes.into_iter().flatten().collect()
}

#[test]
fn with_a_silent_upstream_ten_thousand_questions_at_once_are_all_answered_and_hurt_nobody() {
    let (node, busy, other, vip) = stage();
    node.world.netns.ip(&["addr", "add", &format!("{SILENT}/32"), "dev", "lo"]);
    let _silent = node.world.netns.run(|| UdpSocket::bind((SILENT, 53)).unwrap());
    std::fs::write(node.path("resolv.conf"), format!("nameserver {SILENT}\n")).unwrap();
    wait_until(PATIENCE, "the silent server is the one that is asked", || {
        // Its silence is what tells it from the other one.
        let answer =
            busy.run(|| ask("early.example", A, Transport::Udp)).map_err(|error| error.to_string())?;
        if answer.rcode == SERVFAIL { Ok(()) } else { Err(format!("{answer:?}")) }
    });
    let steady = [("the same container", &busy), ("another one", &other)];
    let steady = steady.map(|(who, from)| (who, ask_steadily(from, vip)));
    let start = Arc::new(Barrier::new(SOCKETS.into()));
    let askers: Vec<_> = (0..SOCKETS)
        .map(|number| {
            let start = start.clone();
            busy.spawn(move || ask_for_outside_names(number, &start))
        })
        .collect();
    let codes: Vec<u8> = askers.into_iter().flat_map(|asker| asker.join().unwrap()).collect();
    let count = |code: u8| codes.iter().filter(|found| **found == code).count();
    let (failed, refused) = (count(SERVFAIL), count(REFUSED));
    println!("{} answered: {failed} with SERVFAIL, {refused} with REFUSED", codes.len());
    let dropped = busy.run(|| std::fs::read_to_string("/proc/thread-self/net/udp").unwrap());
    assert_eq!(failed + refused, usize::from(SOCKETS * QUESTIONS), "{dropped}");
    assert!(failed > 0 && refused > 0);
    for (who, load) in steady {
        were_answered(who, load);
    }
    node.finish();
}

/// Bytes that are no question, some of them nearly one. No two runs are alike, and each can be had again.
struct Rubbish(u64);

impl Rubbish {
    fn next(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn datagram(&mut self) -> Vec<u8> {
        let mut bytes = match self.next() % 4 {
            0 => (0..self.next() % 600).map(|_| self.next() as u8).collect(),
            1 => query(self.next() as u16, "web", self.next() as u16),
            2 => query(self.next() as u16, "tasks.web.mynet", A),
            _ => query(self.next() as u16, "_80._tcp.web", 33),
        };
        for _ in 0..self.next() % 4 {
            let (place, byte) = (self.next() as usize, self.next() as u8);
            let length = bytes.len().max(1);
            if let Some(found) = bytes.get_mut(place % length) {
                *found = byte;
            }
        }
        if self.next().is_multiple_of(4) {
            let length = self.next() as usize % (bytes.len() + 1);
            bytes.truncate(length);
        }
        bytes
    }
}

/// Datagrams, as fast as they are taken.
fn throw_datagrams(seed: u64, count: usize) {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect(RESOLVER).unwrap();
    let mut rubbish = Rubbish(seed);
    for number in 0..count {
        // A full buffer is the thrower's own trouble.
        let _ = socket.send(&rubbish.datagram());
        // What has room in front of the resolver is for all of its container: this waits until it is empty again.
        if number % 1000 == 0 {
            ask("web", A, Transport::Udp).unwrap_or_else(|error| panic!("after {number}: {error}"));
        }
    }
}

/// Connections with frames that lie about their length, end early or hold no question.
fn throw_frames(seed: u64, count: usize) {
    let mut rubbish = Rubbish(seed);
    for _ in 0..count {
        let Ok(mut stream) = TcpStream::connect(RESOLVER) else { continue };
        for _ in 0..rubbish.next() % 8 {
            let frame = rubbish.datagram();
            let lie = rubbish.next() % 3;
            let length = if lie == 0 { rubbish.next() as u16 } else { frame.len() as u16 };
            if stream.write_all(&[&length.to_be_bytes()[..], &frame].concat()).is_err() {
                break;
            }
        }
    }
}

/// A client that needs ten seconds for its question, a byte at a time.
fn ask_slowly(stop: Instant) -> Vec<u8> {
    let question = query(7, "web", A);
    let frame = [&(question.len() as u16).to_be_bytes()[..], &question].concat();
    let mut stream = TcpStream::connect(RESOLVER).unwrap();
    let pause = stop.saturating_duration_since(Instant::now()) / frame.len() as u32;
    for byte in frame {
        if stream.write_all(&[byte]).is_err() {
            break;
        }
        std::thread::sleep(pause);
    }
    let mut reply = Vec::new();
    let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
    let _ = stream.read_to_end(&mut reply);
    reply
}

#[test]
fn what_is_no_question_disturbs_nobody() {
    let (node, hostile, other, vip) = stage();
    let resolver = node.helpers("resolver");
    let steady = [("the same container", &hostile), ("another one", &other)];
    let steady = steady.map(|(who, from)| (who, ask_steadily(from, vip)));
    let idle: Vec<TcpStream> =
        hostile.run(|| (0..200).map(|_| TcpStream::connect(RESOLVER).unwrap()).collect());
    let stop = Instant::now() + Duration::from_secs(4);
    let slow = hostile.spawn(move || ask_slowly(stop));
    let seed = u64::from(std::process::id());
    let throwers: Vec<_> = (0..2)
        .flat_map(|number| {
            let seed = seed << 8 | number;
            [
                hostile.spawn(move || throw_datagrams(seed, 50_000)),
                hostile.spawn(move || throw_frames(seed, 1_000)),
            ]
        })
        .collect();
    // Over TCP too there is room beside those who only hold it.
    let to: SocketAddr = RESOLVER.parse().unwrap();
    for from in [&hostile, &other] {
        let answer =
            from.run(|| ask("web", A, Transport::Tcp)).unwrap_or_else(|error| panic!("{to}: {error}"));
        assert_eq!(answer.addresses(), [vip]);
    }
    throwers.into_iter().for_each(|thrower| thrower.join().unwrap());
    let reply = slow.join().unwrap();
    assert!(
        reply.get(2..4) == Some(&7u16.to_be_bytes()[..]),
        "slow, but a question: {reply:?} (seed {seed})"
    );
    for (who, load) in steady {
        were_answered(who, load);
    }
    drop(idle);
    for from in [&hostile, &other] {
        for transport in [Transport::Udp, Transport::Tcp] {
            assert_eq!(from.run(move || ask("web", A, transport)).unwrap().addresses(), [vip]);
        }
    }
    assert_eq!(node.helpers("resolver"), resolver, "the same process throughout (seed {seed})");
    node.finish();
}
