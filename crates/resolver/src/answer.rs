//! From a query to what is to be done with it, without any I/O.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use rand::Rng;
use shoal_model::trace::LookupVerdict;

use crate::names::{Entry, Names, TASKS_TTL};
use crate::view::{View, Witness};
use crate::wire::{NameBuffer, Owner, Query, Reply, Unfit, name_bytes, not_implemented};

/// Largest message a TCP frame holds.
const TCP_BYTES_MAX: usize = 65_535;

/// How a query came in; decides how large its reply may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    Udp,
    Tcp,
}

/// What is to be done with a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The reply is written.
    Local,
    /// The name is not ours: another server is to be asked.
    Forward,
    /// Not a readable query; as with Docker it gets no reply.
    Ignore,
}

/// Answers a packet from the view's names, into `out`. Never fails and never panics, whatever the
/// bytes are. `random` shuffles the addresses.
///
/// A name that is ours is answered here for every record type and never asked elsewhere.
pub fn answer(
    view: &View,
    packet: &[u8],
    transport: Transport,
    random: &mut impl Rng,
    out: &mut Vec<u8>,
) -> Verdict {
    answer_before(view, packet, transport, random, &mut (), out)
}

/// The same, before a witness.
pub(crate) fn answer_before(
    view: &View,
    packet: &[u8],
    transport: Transport,
    random: &mut impl Rng,
    witness: &mut impl Witness,
    out: &mut Vec<u8>,
) -> Verdict {
    let query = match Query::parse(packet) {
        Ok(query) => query,
        Err(Unfit::Malformed) => return Verdict::Ignore,
        Err(Unfit::NotImplemented) => {
            not_implemented(packet, out);
            return Verdict::Local;
        }
    };
    let mut buffer = NameBuffer::new();
    let name = query.name(&mut buffer);
    let mut writer = Writer { query: &query, limit: limit(&query, transport), random, out };
    let local = name.and_then(|name| from_names(view, name, &mut writer, witness));
    match local {
        Some(()) => {
            witness.decided(LookupVerdict::Known);
            Verdict::Local
        }
        None if view.ndots_set && asks_single_label(&query, name) => {
            Reply::to(&query, limit(&query, transport), out).finish(ResponseCode::NoError);
            witness.decided(LookupVerdict::LeftToSearchDomains);
            Verdict::Local
        }
        None if view.internal => {
            Reply::to(&query, limit(&query, transport), out).finish(ResponseCode::ServFail);
            witness.decided(LookupVerdict::NoWayOut);
            Verdict::Local
        }
        None => {
            witness.decided(LookupVerdict::Forwarded);
            Verdict::Forward
        }
    }
}

/// A reply without records to a query that is to be forwarded but cannot be; `None` if it is no query.
pub(crate) fn refuse(packet: &[u8], code: ResponseCode, out: &mut Vec<u8>) -> Option<()> {
    let query = Query::parse(packet).ok()?;
    Reply::to(&query, limit(&query, Transport::Udp), out).finish(code);
    Some(())
}

/// Largest reply to a query.
pub(crate) fn limit(query: &Query<'_>, transport: Transport) -> usize {
    match transport {
        Transport::Udp => query.udp_limit(),
        Transport::Tcp => TCP_BYTES_MAX,
    }
}

/// The reply if the name is ours.
fn from_names<R: Rng>(
    view: &View,
    name: &str,
    writer: &mut Writer<'_, '_, R>,
    witness: &mut impl Witness,
) -> Option<()> {
    if let Some(address) = reverse_address(name) {
        let pointer = view.pointer(address, witness)?;
        writer.pointer(pointer.as_deref());
        return Some(());
    }
    view.find(name, witness, |_, entry| writer.entry(entry)).or_else(|| {
        let (port, holder) = split_service(name)?;
        view.find(holder, witness, |names, entry| writer.service(port, names, entry))
    })
}

/// Docker leaves these to the client's search domains once somebody has set `ndots`.
fn asks_single_label(query: &Query<'_>, name: Option<&str>) -> bool {
    matches!(query.kind(), RecordType::A | RecordType::AAAA)
        && name.is_some_and(|name| !name.is_empty() && !name.contains('.'))
}

/// Writes the one reply to an owned name.
struct Writer<'a, 'p, R> {
    query: &'a Query<'p>,
    limit: usize,
    random: &'a mut R,
    out: &'a mut Vec<u8>,
}

impl<R: Rng> Writer<'_, '_, R> {
    /// The reply to begin with, unless the query already failed.
    fn begin(&mut self) -> Option<Reply<'_>> {
        let reply = Reply::to(self.query, self.limit, self.out);
        if self.query.edns.is_some_and(|edns| edns.version > 0) {
            reply.finish(ResponseCode::BADVERS);
            return None;
        }
        Some(reply)
    }

    /// Addresses in random order; no data for every type the name has none of.
    fn entry(&mut self, entry: &Entry) {
        let kind = if self.query.is_internet() { self.query.kind() } else { RecordType::ZERO };
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        if matches!(kind, RecordType::A | RecordType::ANY) {
            v4 = shuffled(&entry.v4, self.random);
        }
        if matches!(kind, RecordType::AAAA | RecordType::ANY) {
            v6 = shuffled(&entry.v6, self.random);
        }
        let Some(mut reply) = self.begin() else { return };
        let fits = v4.iter().all(|ip| reply.answer(Owner::Question, RecordType::A, entry.ttl, &ip.octets()));
        if fits {
            // Stops by itself at the first one that does not fit.
            v6.iter().all(|ip| reply.answer(Owner::Question, RecordType::AAAA, entry.ttl, &ip.octets()));
        }
        reply.finish(ResponseCode::NoError);
    }

    fn pointer(&mut self, name: Option<&str>) {
        let asked =
            self.query.is_internet() && matches!(self.query.kind(), RecordType::PTR | RecordType::ANY);
        let Some(mut reply) = self.begin() else { return };
        if let Some(name) = name.filter(|_| asked).and_then(name_bytes) {
            reply.answer(Owner::Question, RecordType::PTR, TASKS_TTL, &name);
        }
        reply.finish(ResponseCode::NoError);
    }

    /// `_8080._tcp.<name>`: one SRV record for each holder's primary name, and its address. The port is
    /// the asker's word for it, tables hold none; a service known only by a word has no data.
    fn service(&mut self, port: Option<u16>, names: &Names, entry: &Entry) {
        let asked =
            self.query.is_internet() && matches!(self.query.kind(), RecordType::SRV | RecordType::ANY);
        let mut holders: Vec<IpAddr> = Vec::new();
        if asked && port.is_some() {
            let v4 = entry.v4.iter().copied().map(IpAddr::V4);
            holders.extend(v4.chain(entry.v6.iter().copied().map(IpAddr::V6)));
        }
        let holders = shuffled(&holders, self.random);
        let Some(mut reply) = self.begin() else { return };
        let mut targets: Vec<(Vec<u8>, IpAddr)> = Vec::new();
        for address in holders {
            let Some(target) = names.pointer(address).flatten().and_then(name_bytes) else { continue };
            if targets.iter().all(|(known, _)| *known != target) {
                // Priority and weight 0: all alike.
                let mut data = vec![0, 0, 0, 0];
                data.extend_from_slice(&port.unwrap_or_default().to_be_bytes());
                data.extend_from_slice(&target);
                if !reply.answer(Owner::Question, RecordType::SRV, entry.ttl, &data) {
                    break;
                }
            }
            targets.push((target, address));
        }
        for (target, address) in &targets {
            match address {
                IpAddr::V4(ip) => {
                    reply.additional(Owner::Name(target), RecordType::A, entry.ttl, &ip.octets());
                }
                IpAddr::V6(ip) => {
                    reply.additional(Owner::Name(target), RecordType::AAAA, entry.ttl, &ip.octets());
                }
            }
        }
        reply.finish(ResponseCode::NoError);
    }
}

/// Splits `_<service>._<tcp|udp>.<name>` (RFC 2782) into the service, if it is a port number, and the
/// name.
fn split_service(name: &str) -> Option<(Option<u16>, &str)> {
    let (service, rest) = name.strip_prefix('_')?.split_once('.')?;
    let holder = rest.strip_prefix("_tcp.").or_else(|| rest.strip_prefix("_udp."))?;
    Some((service.parse().ok(), holder))
}

/// The address of a complete `in-addr.arpa` or `ip6.arpa` name (RFC 1035 §3.5, RFC 3596 §2.5).
fn reverse_address(name: &str) -> Option<IpAddr> {
    if let Some(octets) = name.strip_suffix(".in-addr.arpa") {
        let mut bytes = [0; 4];
        let mut parts = octets.split('.');
        for place in bytes.iter_mut().rev() {
            let part = parts.next()?;
            // `str::parse` would also take "+1" and "01".
            *place = part.parse().ok().filter(|byte: &u8| byte.to_string() == part)?;
        }
        return parts.next().is_none().then(|| Ipv4Addr::from(bytes).into());
    }
    let nibbles = name.strip_suffix(".ip6.arpa")?;
    let mut bits: u128 = 0;
    let mut parts = nibbles.split('.');
    for place in 0..32 {
        let part = parts.next().filter(|part| part.len() == 1)?;
        bits |= u128::from(u8::from_str_radix(part, 16).ok()?) << (4 * place);
    }
    parts.next().is_none().then(|| Ipv6Addr::from(bits).into())
}

/// A copy in random order (Fisher-Yates), so that clients that take the first address spread.
fn shuffled<T: Copy>(list: &[T], random: &mut impl Rng) -> Vec<T> {
    let mut list = list.to_vec();
    for place in (1..list.len()).rev() {
        list.swap(place, random.random_range(0..=place));
    }
    list
}

#[cfg(test)]
mod tests;
