//! Just enough DNS (RFC 1035 §4) to ask and to answer, independent of the code under test.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

pub const A: u16 = 1;
pub const NS: u16 = 2;
pub const CNAME: u16 = 5;
pub const SOA: u16 = 6;
pub const PTR: u16 = 12;
pub const MX: u16 = 15;
pub const TXT: u16 = 16;
pub const AAAA: u16 = 28;
pub const SRV: u16 = 33;
pub const OPT: u16 = 41;
pub const SVCB: u16 = 64;
pub const HTTPS: u16 = 65;
pub const ANY: u16 = 255;

pub const NOERROR: u8 = 0;
pub const SERVFAIL: u8 = 2;
pub const NXDOMAIN: u8 = 3;
pub const REFUSED: u8 = 5;

/// Where a container asks.
pub const RESOLVER: &str = "127.0.0.11:53";
const TIMEOUT: Duration = Duration::from_secs(5);
/// Always the same: each socket asks one question.
const ID: u16 = 0x1234;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub rcode: u8,
    pub truncated: bool,
    pub records: Vec<Record>,
    /// What comes with the answers; without the OPT record.
    pub additional: Vec<Record>,
    /// The size in the server's OPT record, if it sent one (RFC 6891).
    pub edns: Option<u16>,
    /// Of the whole message.
    pub bytes: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub owner: String,
    pub kind: u16,
    pub ttl: u32,
    pub data: Data,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    Address(IpAddr),
    Name(String),
    Service {
        target: String,
        port: u16,
    },
    /// Of an OPT record.
    Size(u16),
    Other(Vec<u8>),
}

impl Answer {
    /// All addresses, sorted.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let mut found: Vec<IpAddr> = self
            .records
            .iter()
            .filter_map(|record| match record.data {
                Data::Address(address) => Some(address),
                _ => None,
            })
            .collect();
        found.sort();
        found
    }

    pub fn names(&self) -> Vec<&str> {
        self.records
            .iter()
            .filter_map(|record| match &record.data {
                Data::Name(name) => Some(name.as_str()),
                _ => None,
            })
            .collect()
    }
}

/// Asks the resolver of the namespace this thread is in.
pub fn ask(name: &str, kind: u16, transport: Transport) -> std::io::Result<Answer> {
    ask_at(RESOLVER, name, kind, transport)
}

/// The same as a client that says with EDNS how large a datagram it takes.
pub fn ask_for(name: &str, kind: u16, transport: Transport, bytes: u16) -> std::io::Result<Answer> {
    exchange(RESOLVER, &with_edns(query(ID, name, kind), bytes), transport)
}

/// Asks a server.
pub fn ask_at(server: &str, name: &str, kind: u16, transport: Transport) -> std::io::Result<Answer> {
    exchange(server, &query(ID, name, kind), transport)
}

fn exchange(server: &str, query: &[u8], transport: Transport) -> std::io::Result<Answer> {
    let reply = match transport {
        Transport::Udp => {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(TIMEOUT))?;
            // Unconnected on purpose: the reply must come from the address that was asked.
            socket.send_to(query, server)?;
            let mut buffer = [0; 1 << 16];
            let (length, from) = socket.recv_from(&mut buffer)?;
            if from.to_string() != server {
                return Err(std::io::Error::other(format!("reply came from {from}")));
            }
            buffer[..length].to_vec()
        }
        Transport::Tcp => {
            let mut stream = TcpStream::connect(server)?;
            stream.set_read_timeout(Some(TIMEOUT))?;
            stream.write_all(&(query.len() as u16).to_be_bytes())?;
            stream.write_all(query)?;
            let mut length = [0; 2];
            stream.read_exact(&mut length)?;
            let mut reply = vec![0; u16::from_be_bytes(length) as usize];
            stream.read_exact(&mut reply)?;
            reply
        }
    };
    parse(&reply).ok_or_else(|| std::io::Error::other(format!("malformed reply {}", hex::encode(&reply))))
}

/// The name under which an address is looked up in reverse.
pub fn reverse(address: impl Into<IpAddr>) -> String {
    match address.into() {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(v6) => {
            let nibbles = v6.octets().into_iter().rev().flat_map(|byte| [byte & 15, byte >> 4]);
            let labels: Vec<String> = nibbles.map(|nibble| format!("{nibble:x}")).collect();
            format!("{}.ip6.arpa", labels.join("."))
        }
    }
}

/// A question as it goes over the wire: RD set, one question.
pub fn query(id: u16, name: &str, kind: u16) -> Vec<u8> {
    let mut message = vec![0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0];
    message.splice(..0, id.to_be_bytes());
    for label in name.trim_end_matches('.').split('.') {
        message.push(label.len() as u8);
        message.extend_from_slice(label.as_bytes());
    }
    message.push(0);
    message.extend_from_slice(&kind.to_be_bytes());
    message.extend_from_slice(&1u16.to_be_bytes());
    message
}

/// Adds an OPT record without options (RFC 6891 §6.1.2).
fn with_edns(mut query: Vec<u8>, bytes: u16) -> Vec<u8> {
    query[11] = 1;
    query.extend_from_slice(&[0, 0, OPT as u8]);
    query.extend_from_slice(&bytes.to_be_bytes());
    query.extend_from_slice(&[0; 6]);
    query
}

fn parse(message: &[u8]) -> Option<Answer> {
    if message.len() < 12 || message[..2] != ID.to_be_bytes() || message[2] & 0x80 == 0 {
        return None;
    }
    let count = |at: usize| u16::from_be_bytes([message[at], message[at + 1]]).into();
    let (_, place) = name_at(message, 12)?;
    let (records, place) = records_at(message, place + 4, count(6))?;
    let (_, place) = records_at(message, place, count(8))?;
    let (mut additional, end) = records_at(message, place, count(10))?;
    let mut edns = None;
    additional.retain(|record| match record.data {
        Data::Size(bytes) => {
            edns = Some(bytes);
            false
        }
        _ => true,
    });
    let answer = Answer {
        rcode: message[3] & 0x0f,
        truncated: message[2] & 0x02 != 0,
        records,
        additional,
        edns,
        bytes: message.len(),
    };
    (end == message.len()).then_some(answer)
}

/// So many records from `place` on, and where they end.
fn records_at(message: &[u8], mut place: usize, count: usize) -> Option<(Vec<Record>, usize)> {
    let mut records = Vec::new();
    for _ in 0..count {
        let (owner, fixed) = name_at(message, place)?;
        let field = |at: usize| Some(u16::from_be_bytes([*message.get(at)?, *message.get(at + 1)?]));
        let (kind, length) = (field(fixed)?, field(fixed + 8)? as usize);
        let ttl = u32::from(field(fixed + 4)?) << 16 | u32::from(field(fixed + 6)?);
        let data = message.get(fixed + 10..fixed + 10 + length)?;
        let data = match kind {
            A => Data::Address(IpAddr::from(<[u8; 4]>::try_from(data).ok()?)),
            AAAA => Data::Address(IpAddr::from(<[u8; 16]>::try_from(data).ok()?)),
            PTR => Data::Name(name_at(message, fixed + 10)?.0),
            SRV => Data::Service { target: name_at(message, fixed + 16)?.0, port: field(fixed + 14)? },
            OPT => Data::Size(field(fixed + 2)?),
            _ => Data::Other(data.to_vec()),
        };
        records.push(Record { owner, kind, ttl, data });
        place = fixed + 10 + length;
    }
    Some((records, place))
}

/// The name at `place`, following compression pointers (RFC 1035 §4.1.4), and where it ends.
fn name_at(message: &[u8], mut place: usize) -> Option<(String, usize)> {
    let (mut labels, mut end) = (Vec::new(), None);
    for _ in 0..64 {
        let length = *message.get(place)? as usize;
        if length & 0xc0 == 0xc0 {
            end.get_or_insert(place + 2);
            place = (length & 0x3f) << 8 | *message.get(place + 1)? as usize;
        } else if length == 0 {
            return Some((labels.join("."), end.unwrap_or(place + 1)));
        } else {
            let label = message.get(place + 1..place + 1 + length)?;
            labels.push(String::from_utf8_lossy(label).into_owned());
            place += 1 + length;
        }
    }
    None
}

/// A name server that knows a few addresses and denies everything else.
#[derive(Debug, Clone)]
pub struct Stub {
    pub names: Vec<(String, Ipv4Addr)>,
}

impl Stub {
    /// The reply to a query and the name it asked for; `None` for what is not a query.
    pub fn reply(&self, query: &[u8]) -> Option<(String, Vec<u8>)> {
        const TTL_SECONDS: u32 = 60;
        if query.len() < 12 || query[2] & 0x80 != 0 {
            return None;
        }
        let (name, end) = name_at(query, 12)?;
        let kind = u16::from_be_bytes([*query.get(end)?, *query.get(end + 1)?]);
        let known = self.names.iter().find(|(known, _)| known.eq_ignore_ascii_case(&name));
        let address = known.filter(|_| kind == A).map(|(_, address)| address);
        let rcode = if known.is_some() { NOERROR } else { NXDOMAIN };
        // QR and RD; RA and the code; one question; the answers; nothing else, not even EDNS.
        let mut reply =
            vec![query[0], query[1], 0x81, 0x80 | rcode, 0, 1, 0, address.is_some() as u8, 0, 0, 0, 0];
        reply.extend_from_slice(query.get(12..end + 4)?);
        if let Some(address) = address {
            reply.extend_from_slice(&[0xc0, 12, 0, A as u8, 0, 1]);
            reply.extend_from_slice(&TTL_SECONDS.to_be_bytes());
            reply.extend_from_slice(&[0, 4]);
            reply.extend_from_slice(&address.octets());
        }
        Some((name, reply))
    }

    /// Answers on UDP until the process ends, telling `seen` of every name asked.
    pub fn serve_udp(&self, socket: &UdpSocket, seen: impl Fn(String)) {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            if let Some((name, reply)) = self.reply(&buffer[..length]) {
                seen(name);
                let _ = socket.send_to(&reply, from);
            }
        }
    }

    /// Answers one TCP client until it is done.
    pub fn serve_tcp(&self, mut stream: TcpStream, seen: impl Fn(String)) -> std::io::Result<()> {
        loop {
            let mut length = [0; 2];
            stream.read_exact(&mut length)?;
            let mut query = vec![0; u16::from_be_bytes(length) as usize];
            stream.read_exact(&mut query)?;
            let Some((name, reply)) = self.reply(&query) else { return Ok(()) };
            seen(name);
            stream.write_all(&(reply.len() as u16).to_be_bytes())?;
            stream.write_all(&reply)?;
        }
    }
}

/// `NAME=ADDRESS`, as the stub's command line has it.
pub fn parse_entry(text: &str) -> Option<(String, Ipv4Addr)> {
    let (name, address) = text.split_once('=')?;
    Some((name.to_owned(), address.parse().ok()?))
}

/// The socket a stub listens on.
pub fn bind(address: SocketAddr) -> std::io::Result<(UdpSocket, std::net::TcpListener)> {
    Ok((UdpSocket::bind(address)?, std::net::TcpListener::bind(address)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stub_answers_what_the_client_understands() {
        let stub = Stub { names: vec![("a.example".to_owned(), Ipv4Addr::new(192, 0, 2, 7))] };
        let (name, reply) = stub.reply(&query(ID, "A.example", A)).unwrap();
        assert_eq!(name, "A.example");
        let answer = parse(&reply).unwrap();
        assert_eq!((answer.rcode, answer.addresses()), (NOERROR, vec!["192.0.2.7".parse().unwrap()]));
        let (_, reply) = stub.reply(&query(ID, "a.example", AAAA)).unwrap();
        let answer = parse(&reply).unwrap();
        assert_eq!((answer.rcode, answer.records.len(), answer.edns), (NOERROR, 0, None));
        let (_, reply) = stub.reply(&with_edns(query(ID, "b.example", A), 1232)).unwrap();
        assert_eq!(parse(&reply).unwrap().rcode, NXDOMAIN);
    }
}
