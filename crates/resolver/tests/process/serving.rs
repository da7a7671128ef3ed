//! Answers inside sandboxes.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use hickory_proto::op::Message;
use hickory_proto::rr::RecordType;
use shoal_model::NetworkId;

use crate::world::{Network, PATIENCE, Sandbox, World, answers, mynet, query};

#[tokio::test]
async fn dig_is_answered_over_udp_and_tcp() {
    let (_world, client) = World::start(&[]).await;
    mynet().feed(&client).await;
    let sandbox = Sandbox::new(&client, "s1", &["mynet"]).await;
    for transport in ["", "+tcp"] {
        for (name, expected) in [
            ("web", &["10.0.1.2"][..]),
            ("WEB.mynet", &["10.0.1.2"]),
            ("tasks.web", &["10.0.1.4", "10.0.1.5"]),
            ("rr", &["10.0.1.4", "10.0.1.5"]),
            ("web.1.abc", &["10.0.1.4"]),
            ("ba9876543210", &["10.0.1.5"]),
            ("box.", &["10.0.1.9"]),
            ("-x 10.0.1.4", &["web.1.abc.mynet."]),
            ("-x 10.0.1.2", &["web.mynet."]),
        ] {
            assert_eq!(sandbox.short(&format!("{name} {transport}")), expected, "{name} {transport}");
        }
        let text = sandbox.dig(&format!("Web {transport}"));
        assert!(text.contains("flags: qr rd ra; QUERY: 1, ANSWER: 1, AUTHORITY: 0, ADDITIONAL: 1"), "{text}");
        assert!(text.contains("Web.\t\t\t10\tIN\tA\t10.0.1.2"), "{text}");
        assert!(text.contains("SERVER: 127.0.0.11#"), "{text}");
        let text = sandbox.dig(&format!("web AAAA {transport}"));
        assert!(text.contains("status: NOERROR") && text.contains("ANSWER: 0"), "{text}");
    }
}

#[tokio::test]
async fn each_sandbox_sees_its_own_networks_only() {
    let (_world, client) = World::start(&[]).await;
    Network::new("front").endpoint("a", "10.1.0.2", &["both", "front-only"]).feed(&client).await;
    Network::new("back").endpoint("b", "10.2.0.2", &["both", "back-only"]).feed(&client).await;
    let front = Sandbox::new(&client, "front", &["front"]).await;
    let mut back = Sandbox::new(&client, "back", &["back"]).await;
    assert_eq!(front.short("both"), ["10.1.0.2"]);
    assert_eq!(back.short("both"), ["10.2.0.2"]);
    // No server to ask: what is not ours fails.
    assert_eq!(front.status("back-only"), "SERVFAIL");
    assert_eq!(front.status("both.back"), "SERVFAIL");
    assert_eq!(back.status("-x 10.1.0.2"), "SERVFAIL");

    let ports = back.ports;
    back.change(&client, |view| view.networks = vec![NetworkId::new("front"), NetworkId::new("back")]).await;
    assert_eq!(back.ports, ports, "joining a network moves no socket");
    assert_eq!(back.short("both"), ["10.1.0.2"], "the first network answers");
    assert_eq!(back.short("both.back"), ["10.2.0.2"]);
    assert_eq!(back.short("back-only"), ["10.2.0.2"]);
}

#[tokio::test]
async fn a_change_is_in_force_when_the_feed_says_so() {
    let (_world, client) = World::start(&[]).await;
    let sandbox = Sandbox::new(&client, "s1", &["mynet"]).await;
    assert_eq!(sandbox.ask("box").0.answers.len(), 0, "nothing is known yet");
    for round in 0..50u8 {
        let address = format!("10.0.1.{round}");
        Network::new("mynet").endpoint("c1", &address, &["box"]).feed(&client).await;
        assert_eq!(answers(&sandbox.ask("box").0), [address]);
    }
    client.remove_names(&NetworkId::new("mynet")).await.unwrap();
    assert_eq!(sandbox.status("box"), "SERVFAIL");
    mynet().feed(&client).await;
    assert_eq!(sandbox.short("box"), ["10.0.1.9"], "the view still looks at the network");
}

fn thousand() -> Network {
    let mut network = Network::new("big");
    for number in 0..1000 {
        let (name, vip) = (format!("service-{number}"), format!("10.7.{}.{}", number / 250, number % 250));
        network = network.service(&name, Some(&vip), &[]);
    }
    network
}

fn expected_vip(reply: &Message) -> String {
    let number = usize::from(reply.metadata.id);
    format!("10.7.{}.{}", number / 250, number % 250)
}

#[tokio::test]
async fn a_thousand_names_over_udp() {
    let (_world, client) = World::start(&[]).await;
    thousand().feed(&client).await;
    let sandbox = Sandbox::new(&client, "s1", &["big"]).await;
    let socket = sandbox.udp();
    let mut seen = HashSet::new();
    // Few enough at a time for the socket buffers.
    for batch in (0..1000u16).collect::<Vec<_>>().chunks(50) {
        for id in batch {
            socket.send(&query(&format!("Service-{id}"), RecordType::A, *id)).unwrap();
        }
        for _ in batch {
            let mut buffer = [0; 512];
            let length = socket.recv(&mut buffer).unwrap();
            let reply = Message::from_vec(&buffer[..length]).unwrap();
            assert_eq!(answers(&reply), [expected_vip(&reply)]);
            seen.insert(reply.metadata.id);
        }
    }
    assert_eq!(seen.len(), 1000);
}

fn tcp(sandbox: &Sandbox) -> TcpStream {
    let to: SocketAddr = ([127, 0, 0, 11], sandbox.ports.tcp).into();
    let stream = sandbox.netns.enter(move || TcpStream::connect(to).unwrap());
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn frame(packet: &[u8]) -> Vec<u8> {
    [&u16::try_from(packet.len()).unwrap().to_be_bytes()[..], packet].concat()
}

fn read_reply(stream: &mut TcpStream) -> Message {
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut packet = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut packet).unwrap();
    Message::from_vec(&packet).unwrap()
}

#[tokio::test]
async fn a_thousand_names_over_one_tcp_connection() {
    let (_world, client) = World::start(&[]).await;
    thousand().feed(&client).await;
    let sandbox = Sandbox::new(&client, "s1", &["big"]).await;
    let mut stream = tcp(&sandbox);
    let mut writer = stream.try_clone().unwrap();
    let asking = std::thread::spawn(move || {
        for id in 0..1000u16 {
            writer.write_all(&frame(&query(&format!("service-{id}"), RecordType::A, id))).unwrap();
        }
    });
    for _ in 0..1000 {
        let reply = read_reply(&mut stream);
        assert_eq!(answers(&reply), [expected_vip(&reply)]);
    }
    asking.join().unwrap();
}

#[tokio::test]
async fn a_list_too_long_for_a_datagram_comes_over_tcp() {
    let (_world, client) = World::start(&[]).await;
    let ids: Vec<String> = (0..200).map(|number| format!("t{number}")).collect();
    let mut network = Network::new("big");
    for (number, id) in ids.iter().enumerate() {
        network = network.endpoint(id, &format!("10.9.0.{number}"), &[id.as_str()]);
    }
    let backends: Vec<&str> = ids.iter().map(String::as_str).collect();
    network.service("many", None, &backends).feed(&client).await;
    let sandbox = Sandbox::new(&client, "s1", &["big"]).await;

    let cut = sandbox.dig("many +ignore +noedns");
    assert!(cut.contains("flags: qr tc rd ra") && cut.contains("ANSWER: 30,"), "{cut}");
    assert!(sandbox.dig("many +ignore +bufsize=1232").contains("flags: qr tc rd ra"));
    let whole = sandbox.dig("many +bufsize=4096");
    assert!(whole.contains("ANSWER: 200,") && whole.contains("(UDP)"), "{whole}");
    let whole = sandbox.dig("many +tcp");
    assert!(whole.contains("ANSWER: 200,") && whole.contains("(TCP)"), "{whole}");
}

#[tokio::test]
async fn rubbish_disturbs_nobody() {
    let (mut world, client) = World::start(&[]).await;
    mynet().feed(&client).await;
    let sandbox = Sandbox::new(&client, "s1", &["mynet"]).await;
    let socket = sandbox.udp();
    let good = query("web", RecordType::A, 1);
    for length in 0..good.len() {
        socket.send(&good[..length]).unwrap();
    }
    socket.send(&vec![0xff; 60_000]).unwrap();
    let mut silent = tcp(&sandbox);
    silent.write_all(&[0xff, 0xff, 1, 2, 3]).unwrap();
    let mut rude = tcp(&sandbox);
    rude.write_all(&frame(&[0xff; 40])).unwrap();
    rude.write_all(&frame(&good)).unwrap();
    assert_eq!(answers(&read_reply(&mut rude)), ["10.0.1.2"], "the connection is still of use");
    assert_eq!(sandbox.short("web"), ["10.0.1.2"]);
    assert!(world.resolver().try_wait().unwrap().is_none(), "the process lives");
}

#[tokio::test]
async fn a_stalled_connection_is_closed_and_holds_up_nobody() {
    let (_world, client) = World::start(&[]).await;
    mynet().feed(&client).await;
    let sandbox = Sandbox::new(&client, "s1", &["mynet"]).await;
    let mut stalled = tcp(&sandbox);
    stalled.write_all(&[0, 40, 1]).unwrap();
    let start = Instant::now();
    assert_eq!(sandbox.short("web +tcp"), ["10.0.1.2"]);
    assert!(start.elapsed() < Duration::from_secs(9), "not for as long as a connection may idle");
    assert_eq!(stalled.read(&mut [0; 1]).unwrap(), 0, "closed after its idle time");
}
