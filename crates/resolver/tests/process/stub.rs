//! A DNS server that behaves as a test wants it to.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::{A, SOA};
use hickory_proto::rr::{Name, RData, Record};

use crate::world::Netns;

/// How a stub answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Manner {
    /// `up.example.test` is this address, TTL 60; other names do not exist, with an SOA record.
    Knows([u8; 4]),
    /// The same, as one who has been told to keep nothing.
    KnowsNow([u8; 4]),
    /// The same, but slow.
    KnowsLate([u8; 4]),
    /// Names do not exist, without an SOA record.
    Denies,
    Fails(ResponseCode),
    Silent,
    /// Truncated over UDP, complete over TCP.
    Truncates([u8; 4]),
    /// Right, and so late.
    After(Duration, [u8; 4]),
    /// Before the right answer: wrong id, wrong question, wrong port, wrong address.
    Spoofed([u8; 4]),
}

/// A running stub; what it was asked is kept.
pub(crate) struct Stub {
    manner: Arc<Mutex<Manner>>,
    asked: Arc<Mutex<Vec<String>>>,
    origins: Origins,
    stop: Arc<AtomicBool>,
}

/// The id of each question over UDP, and the port it came from.
type Origins = Arc<Mutex<Vec<(u16, u16)>>>;

/// Who is not the server: on another port of its address, and on its port of another address.
type Liars = [UdpSocket; 2];

impl Stub {
    /// At port 53 of an address that lo of the namespace gets.
    pub(crate) fn start(node: &Netns, address: &str, manner: Manner) -> Self {
        node.add_address(address);
        let (manner, asked) = (Arc::new(Mutex::new(manner)), Arc::new(Mutex::new(Vec::new())));
        let stop = Arc::new(AtomicBool::new(false));
        let at: SocketAddr = (address.parse::<std::net::IpAddr>().unwrap(), 53).into();
        let lies = matches!(*manner.lock().unwrap(), Manner::Spoofed(_));
        let (udp, tcp, liars) = node.enter(move || {
            let udp = UdpSocket::bind(at).unwrap();
            let bind = |at: SocketAddr| UdpSocket::bind(at).unwrap();
            let liars = lies.then(|| [bind((at.ip(), 0).into()), bind(([127, 0, 0, 66], 53).into())]);
            (udp, TcpListener::bind(at).unwrap(), liars)
        });
        let stub = Self { manner, asked, origins: Origins::default(), stop };
        stub.spawn_udp(udp, liars);
        stub.spawn_tcp(tcp);
        stub
    }

    pub(crate) fn set(&self, manner: Manner) {
        *self.manner.lock().unwrap() = manner;
    }

    /// `<name> <type> <transport>` of each question so far.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    pub(crate) fn origins(&self) -> Vec<(u16, u16)> {
        self.origins.lock().unwrap().clone()
    }

    fn spawn_udp(&self, socket: UdpSocket, liars: Option<Liars>) {
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let (manner, asked, stop) = (self.manner.clone(), self.asked.clone(), self.stop.clone());
        let origins = self.origins.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while !stop.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
                let query = note(&asked, &buffer[..length], "udp");
                origins.lock().unwrap().push((query.metadata.id, from.port()));
                let manner = *manner.lock().unwrap();
                if let Some(liars) = liars.as_ref().filter(|_| matches!(manner, Manner::Spoofed(_))) {
                    lie(&socket, liars, &query, from);
                }
                if let Some(mut reply) = reply(manner, &query) {
                    if let Manner::Truncates(_) = manner {
                        reply.metadata.truncation = true;
                        reply.answers.clear();
                    }
                    let (socket, bytes) = (socket.try_clone().unwrap(), reply.to_vec().unwrap());
                    let send = move || assert_eq!(socket.send_to(&bytes, from).unwrap(), bytes.len());
                    match manner {
                        Manner::After(time, _) => drop(std::thread::spawn(move || {
                            std::thread::sleep(time);
                            send();
                        })),
                        _ => send(),
                    }
                }
            }
        });
    }

    fn spawn_tcp(&self, listener: TcpListener) {
        listener.set_nonblocking(true).unwrap();
        let (manner, asked, stop) = (self.manner.clone(), self.asked.clone(), self.stop.clone());
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let Ok((mut stream, _)) = listener.accept() else {
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                };
                stream.set_nonblocking(false).unwrap();
                let mut length = [0; 2];
                if stream.read_exact(&mut length).is_err() {
                    continue;
                }
                let mut packet = vec![0; u16::from_be_bytes(length).into()];
                stream.read_exact(&mut packet).unwrap();
                let query = note(&asked, &packet, "tcp");
                let manner = *manner.lock().unwrap();
                if let Some(reply) = reply(manner, &query) {
                    let bytes = reply.to_vec().unwrap();
                    stream.write_all(&u16::try_from(bytes.len()).unwrap().to_be_bytes()).unwrap();
                    stream.write_all(&bytes).unwrap();
                }
            }
        });
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn note(asked: &Mutex<Vec<String>>, packet: &[u8], transport: &str) -> Message {
    let query = Message::from_vec(packet).unwrap();
    let question = &query.queries[0];
    let line = format!("{} {} {transport}", question.name.to_ascii().to_lowercase(), question.query_type);
    asked.lock().unwrap().push(line);
    query
}

fn reply(manner: Manner, query: &Message) -> Option<Message> {
    let mut reply = query.clone();
    reply.metadata.message_type = MessageType::Response;
    reply.metadata.recursion_available = true;
    let name = query.queries[0].name.clone();
    let known = name.to_ascii().eq_ignore_ascii_case("up.example.test.");
    let (address, ttl) = match manner {
        Manner::Silent => return None,
        Manner::Fails(code) => {
            reply.metadata.response_code = code;
            return Some(reply);
        }
        Manner::Denies => {
            reply.metadata.response_code = ResponseCode::NXDomain;
            return Some(reply);
        }
        Manner::KnowsNow(address) => (address, 0),
        Manner::KnowsLate(address) => {
            std::thread::sleep(Duration::from_millis(100));
            (address, 0)
        }
        Manner::Knows(address)
        | Manner::Truncates(address)
        | Manner::After(_, address)
        | Manner::Spoofed(address) => (address, 60),
    };
    if known {
        reply.add_answer(record(name, ttl, address));
    } else {
        reply.metadata.response_code = ResponseCode::NXDomain;
        let zone = Name::from_ascii("example.test.").unwrap();
        let soa = SOA::new(zone.clone(), zone.clone(), 1, 2, 3, 4, ttl);
        reply.add_authority(Record::from_rdata(zone, ttl, RData::SOA(soa)));
    }
    Some(reply)
}

fn record(name: Name, ttl: u32, address: [u8; 4]) -> Record {
    Record::from_rdata(name, ttl, RData::A(A(address.into())))
}

/// What someone who guesses would send.
fn lie(socket: &UdpSocket, liars: &Liars, query: &Message, to: SocketAddr) {
    let mut lie = query.clone();
    lie.metadata.message_type = MessageType::Response;
    lie.add_answer(record(query.queries[0].name.clone(), 60, [192, 0, 2, 66]));
    // The right id and question from a wrong port, and from a wrong address.
    for liar in liars {
        liar.send_to(&lie.to_vec().unwrap(), to).unwrap();
    }
    let mut wrong_id = lie.clone();
    wrong_id.metadata.id = wrong_id.metadata.id.wrapping_add(1);
    socket.send_to(&wrong_id.to_vec().unwrap(), to).unwrap();
    let mut wrong_question = lie;
    wrong_question.queries[0].set_name(Name::from_ascii("uq.example.test.").unwrap());
    socket.send_to(&wrong_question.to_vec().unwrap(), to).unwrap();
    socket.send_to(b"\x00\x01rubbish", to).unwrap();
}
