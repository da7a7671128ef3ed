//! Names of the outside.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;

use crate::stub::{Manner, Stub};
use crate::world::{Sandbox, World, answers, mynet, query, until};

const FIRST: &str = "10.99.0.2";
const SECOND: &str = "10.99.0.3";
const ONE: [u8; 4] = [203, 0, 113, 1];
const TWO: [u8; 4] = [203, 0, 113, 2];

#[tokio::test]
async fn outside_names_get_the_servers_own_answer() {
    let (world, client) = World::start(&[FIRST]).await;
    let stub = Stub::start(&world.node, FIRST, Manner::Knows(ONE));
    let sandbox = Sandbox::new(&client, "s1", &[]).await;
    assert_eq!(sandbox.short("up.example.test"), ["203.0.113.1"]);
    assert_eq!(sandbox.short("UP.example.test +tcp"), ["203.0.113.1"]);
    let denied = sandbox.dig("nosuch.example.test");
    assert!(denied.contains("status: NXDOMAIN") && denied.contains("AUTHORITY: 1"), "{denied}");
    assert_eq!(sandbox.status("nosuch.example.test TXT +tcp"), "NXDOMAIN");
    let asked = ["up.example.test. A udp", "up.example.test. A tcp", "nosuch.example.test. A udp"];
    assert_eq!(stub.asked()[..3], asked, "each over the transport it came by");
}

#[tokio::test]
async fn owned_names_never_leak() {
    let (world, client) = World::start(&[FIRST]).await;
    let stub = Stub::start(&world.node, FIRST, Manner::Knows(ONE));
    mynet().feed(&client).await;
    let mut sandbox = Sandbox::new(&client, "s1", &["mynet"]).await;
    for kind in ["A", "AAAA", "MX", "TXT", "SRV", "HTTPS", "ANY", "SOA", "NS", "TYPE65000"] {
        for name in ["web", "tasks.web", "box.mynet", "_http._tcp.web"] {
            // dig would ask for ANY over TCP.
            assert_eq!(sandbox.status(&format!("{name} {kind} +notcp")), "NOERROR", "{name} {kind}");
        }
    }
    assert_eq!(sandbox.status("web CH TXT"), "NOERROR");
    sandbox.change(&client, |view| view.ndots_set = true).await;
    assert_eq!(sandbox.status("single"), "NOERROR", "left to the client's search domains");
    sandbox.change(&client, |view| view.internal = true).await;
    assert_eq!(sandbox.status("up.example.test"), "SERVFAIL", "no way out of an internal network");
    assert_eq!(stub.asked(), [""; 0]);
}

#[tokio::test]
async fn a_dead_first_server_costs_one_short_wait() {
    let (world, client) = World::start(&[FIRST, SECOND]).await;
    let first = Stub::start(&world.node, FIRST, Manner::Silent);
    let second = Stub::start(&world.node, SECOND, Manner::KnowsNow(TWO));
    let sandbox = Sandbox::new(&client, "s1", &[]).await;
    let (reply, took) = sandbox.ask("up.example.test.");
    assert_eq!(answers(&reply), ["203.0.113.2"]);
    assert!(took < Duration::from_millis(2500), "{took:?}");
    for _ in 0..20 {
        let (reply, took) = sandbox.ask("up.example.test.");
        assert_eq!(answers(&reply), ["203.0.113.2"]);
        assert!(took < Duration::from_millis(900), "{took:?}");
    }
    // Also when it is slower than the other one.
    first.set(Manner::KnowsLate(ONE));
    until("the first server is preferred again", async || {
        answers(&sandbox.ask("up.example.test.").0) == ["203.0.113.1"]
    })
    .await;
    let before = second.asked().len();
    assert_eq!(answers(&sandbox.ask("up.example.test.").0), ["203.0.113.1"]);
    assert_eq!(second.asked().len(), before);
}

#[tokio::test]
async fn a_server_that_is_not_there_costs_nothing() {
    let (world, client) = World::start(&[FIRST, SECOND]).await;
    world.node.add_address(FIRST);
    let _second = Stub::start(&world.node, SECOND, Manner::KnowsNow(TWO));
    let sandbox = Sandbox::new(&client, "s1", &[]).await;
    for _ in 0..3 {
        let (reply, took) = sandbox.ask("up.example.test.");
        assert_eq!(answers(&reply), ["203.0.113.2"]);
        assert!(took < Duration::from_millis(900), "port unreachable is heard at once: {took:?}");
        let start = Instant::now();
        assert_eq!(sandbox.short("up.example.test +tcp"), ["203.0.113.2"]);
        assert!(start.elapsed() < Duration::from_millis(900));
    }
}

#[tokio::test]
async fn failing_and_refusing_servers_are_passed_over() {
    let (world, client) = World::start(&[FIRST, SECOND]).await;
    let first = Stub::start(&world.node, FIRST, Manner::Fails(ResponseCode::ServFail));
    let second = Stub::start(&world.node, SECOND, Manner::KnowsNow(TWO));
    let sandbox = Sandbox::new(&client, "s1", &[]).await;
    for code in [ResponseCode::ServFail, ResponseCode::Refused] {
        first.set(Manner::Fails(code));
        assert_eq!(sandbox.short("up.example.test"), ["203.0.113.2"], "{code}");
        assert_eq!(sandbox.short("up.example.test +tcp"), ["203.0.113.2"], "{code}");
    }
    second.set(Manner::Fails(ResponseCode::Refused));
    assert_eq!(sandbox.status("up.example.test"), "SERVFAIL", "nobody had an answer");
    second.set(Manner::Fails(ResponseCode::NotImp));
    assert_eq!(sandbox.status("up.example.test"), "NOTIMP", "any other code is an answer");
}

#[tokio::test]
async fn silence_ends_in_servfail_before_the_client_gives_up() {
    let (world, client) = World::start(&[FIRST]).await;
    let _stub = Stub::start(&world.node, FIRST, Manner::Silent);
    let sandbox = Sandbox::new(&client, "s1", &[]).await;
    let (reply, took) = sandbox.ask("up.example.test.");
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    assert!(took < Duration::from_millis(4800), "{took:?}");
    assert_eq!(sandbox.status("up.example.test +tcp"), "SERVFAIL");
}

#[tokio::test]
async fn truncation_is_relayed_and_not_kept() {
    let (world, client) = World::start(&[FIRST]).await;
    let stub = Stub::start(&world.node, FIRST, Manner::Truncates(ONE));
    let sandbox = Sandbox::new(&client, "s1", &[]).await;
    for _ in 0..2 {
        let text = sandbox.dig("up.example.test +ignore");
        assert!(text.contains("flags: qr tc rd ra") && text.contains("ANSWER: 0"), "{text}");
    }
    assert_eq!(stub.asked().len(), 2);
    assert_eq!(sandbox.short("up.example.test +tcp"), ["203.0.113.1"]);
}

#[tokio::test]
async fn forged_answers_are_ignored() {
    let (world, client) = World::start(&[FIRST]).await;
    let _stub = Stub::start(&world.node, FIRST, Manner::Spoofed(ONE));
    let sandbox = Sandbox::new(&client, "s1", &[]).await;
    for number in 0..20 {
        let name = if number % 2 == 0 { "up.example.test" } else { "UP.Example.test" };
        assert_eq!(sandbox.short(name), ["203.0.113.1"]);
    }
}

/// Answers that come when another server has answered, or when the client was told that nobody has.
#[tokio::test]
async fn late_answers_are_ignored() {
    let (world, client) = World::start(&[FIRST, SECOND]).await;
    let first = Stub::start(&world.node, FIRST, Manner::After(Duration::from_millis(1500), ONE));
    let second = Stub::start(&world.node, SECOND, Manner::KnowsNow(TWO));
    let sandbox = Sandbox::new(&client, "s1", &[]).await;
    let socket = sandbox.udp();
    socket.send(&query("up.example.test.", RecordType::A, 7)).unwrap();
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer).unwrap();
    assert_eq!(answers(&Message::from_vec(&buffer[..length]).unwrap()), ["203.0.113.2"]);
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    assert!(socket.recv(&mut buffer).is_err(), "one question, one answer");
    assert_eq!(answers(&sandbox.ask("up.example.test.").0), ["203.0.113.2"], "nor is it kept");

    first.set(Manner::Silent);
    second.set(Manner::After(Duration::from_millis(4500), ONE));
    let (reply, took) = sandbox.ask("up.example.test.");
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    // The late answers come while this one is waited for, and are for others.
    second.set(Manner::KnowsNow(TWO));
    std::thread::sleep(Duration::from_secs(5).saturating_sub(took));
    assert_eq!(answers(&sandbox.ask("up.example.test.").0), ["203.0.113.2"]);
}

#[tokio::test]
async fn nobody_can_guess_under_which_id_and_from_which_port_is_asked() {
    const QUESTIONS: usize = 640;
    let (world, client) = World::start(&[FIRST]).await;
    let stub = Stub::start(&world.node, FIRST, Manner::Denies);
    let sandbox = Sandbox::new(&client, "s1", &[]).await;
    let socket = sandbox.udp();
    for number in 0..QUESTIONS {
        let name = format!("n{number}.example.test.");
        socket.send(&query(&name, RecordType::A, number as u16)).unwrap();
        socket.recv(&mut [0; 512]).unwrap();
    }
    let origins = stub.origins();
    let ids: BTreeSet<u16> = origins.iter().map(|(id, _)| *id).collect();
    let ports: BTreeSet<u16> = origins.iter().map(|(_, port)| *port).collect();
    // By chance three or so meet.
    assert!(ids.len() > QUESTIONS - 20, "{} ids", ids.len());
    for bit in 0..16 {
        let set = origins.iter().filter(|(id, _)| id & (1 << bit) != 0).count();
        assert!((QUESTIONS / 3..QUESTIONS * 2 / 3).contains(&set), "bit {bit} is set in {set}");
    }
    let (least, most) = (ports.first().unwrap(), ports.last().unwrap());
    assert!(ports.len() >= QUESTIONS / 64 && most - least > 5000, "{ports:?}");
    for port in ports {
        let used = origins.iter().filter(|(_, own)| *own == port).count();
        assert!(used <= 64, "{used} questions from port {port}");
    }
}

#[tokio::test]
async fn answers_are_kept_while_they_are_good() {
    let (world, client) = World::start(&[FIRST]).await;
    let stub = Stub::start(&world.node, FIRST, Manner::Knows(ONE));
    let (a, b) = (Sandbox::new(&client, "a", &[]).await, Sandbox::new(&client, "b", &[]).await);
    for sandbox in [&a, &b, &a] {
        for name in ["up.example.test.", "nosuch.example.test."] {
            let (reply, _) = sandbox.ask(name);
            assert_eq!(reply.queries[0].name.to_ascii(), name);
        }
    }
    let asked = ["up.example.test. A udp", "nosuch.example.test. A udp"];
    assert_eq!(stub.asked(), asked, "one question each, also the negative one");
    stub.set(Manner::Denies);
    for _ in 0..2 {
        assert_eq!(a.ask("other.example.test.").0.metadata.response_code, ResponseCode::NXDomain);
    }
    assert_eq!(stub.asked().len(), 4, "without an SOA record nothing says how long");
}

#[tokio::test]
async fn a_sandbox_may_have_servers_of_its_own() {
    let (world, client) = World::start(&[FIRST]).await;
    let first = Stub::start(&world.node, FIRST, Manner::Knows(ONE));
    let _second = Stub::start(&world.node, SECOND, Manner::Knows(TWO));
    let nodes = Sandbox::new(&client, "a", &[]).await;
    let mut own = Sandbox::new(&client, "b", &[]).await;
    own.change(&client, |view| view.upstreams = vec![SECOND.parse().unwrap()]).await;
    assert_eq!(own.short("up.example.test"), ["203.0.113.2"]);
    assert_eq!(first.asked(), [""; 0]);
    assert_eq!(nodes.short("up.example.test"), ["203.0.113.1"], "caches are apart, too");
}

#[tokio::test]
async fn servers_may_be_at_ipv6_addresses() {
    let (world, client) = World::start(&["::1"]).await;
    let _stub = Stub::start(&world.node, "::1", Manner::KnowsNow(ONE));
    let sandbox = Sandbox::new(&client, "s1", &[]).await;
    assert_eq!(sandbox.short("up.example.test"), ["203.0.113.1"]);
    assert_eq!(sandbox.short("up.example.test +tcp"), ["203.0.113.1"]);
}

#[tokio::test]
async fn a_changed_configuration_is_followed() {
    let (world, client) = World::start(&["127.0.0.11"]).await;
    let _first = Stub::start(&world.node, FIRST, Manner::Knows(ONE));
    let _second = Stub::start(&world.node, SECOND, Manner::Knows(TWO));
    let sandbox = Sandbox::new(&client, "s1", &[]).await;
    assert_eq!(sandbox.status("up.example.test"), "SERVFAIL", "never ourselves");
    for (server, expected) in [(FIRST, "203.0.113.1"), (SECOND, "203.0.113.2")] {
        world.set_servers(&[server]);
        until("the new server is asked", async || sandbox.short("up.example.test") == [expected]).await;
    }
}

#[tokio::test]
async fn a_flood_is_bounded_and_local_names_stay_fast() {
    let (world, client) = World::start(&[FIRST]).await;
    let _stub = Stub::start(&world.node, FIRST, Manner::Silent);
    mynet().feed(&client).await;
    let sandbox = Sandbox::new(&client, "s1", &["mynet"]).await;
    let other = Sandbox::new(&client, "s2", &["mynet"]).await;
    let flood = sandbox.udp();
    // A socket's own buffer holds but a few hundred replies.
    setsockopt(&flood, RcvBufForce, &(8 << 20)).unwrap();
    let replies = flood.try_clone().unwrap();
    let start = Instant::now();
    let reading = std::thread::spawn(move || {
        let (mut refused, mut failed) = (0, 0);
        while refused + failed < 1500 {
            let mut buffer = [0; 512];
            let length = replies.recv(&mut buffer).expect("every question gets a reply");
            match Message::from_vec(&buffer[..length]).unwrap().metadata.response_code {
                ResponseCode::Refused => refused += 1,
                ResponseCode::ServFail => failed += 1,
                other => panic!("{other}"),
            }
        }
        (failed, refused)
    });
    for id in 0..1500u16 {
        flood.send(&query(&format!("n{id}.example.test"), RecordType::A, id)).unwrap();
        if id % 50 == 0 {
            // The resolver's own buffer is empty again once it answers this.
            assert!(sandbox.ask("web").1 < Duration::from_secs(1));
        }
    }
    assert_eq!(answers(&sandbox.ask("web").0), ["10.0.1.2"]);
    assert_eq!(answers(&other.ask("web").0), ["10.0.1.2"]);
    assert_eq!(reading.join().unwrap(), (1024, 476));
    assert!(start.elapsed() < Duration::from_secs(12), "{:?}", start.elapsed());
}
