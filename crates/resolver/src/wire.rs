//! DNS packets as they travel (RFC 1035 §4, RFC 6891 §6), as far as the resolver needs them.
//!
//! Queries are read in place and replies written in one pass without building a message, since this
//! is where the time of a local answer goes; forwarded packets are only walked, never decoded, so that
//! they stay as they are. hickory-proto judges all of it in the tests.

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

/// ID, flags and four counts.
pub(crate) const HEADER_BYTES: usize = 12;
/// Longest name on the wire (RFC 1035 §2.3.4).
const NAME_BYTES_MAX: usize = 255;
/// What every client takes without asking for more (RFC 1035 §2.3.4).
const UDP_BYTES_DEFAULT: usize = 512;
/// Largest UDP payload over IPv4.
const UDP_BYTES_MAX: usize = 65_507;
/// An OPT record without options.
const OPT_BYTES: usize = 11;
/// Largest query we take in over UDP; told to clients in OPT records.
pub(crate) const QUERY_BYTES_MAX: usize = 4096;

const FLAG_RESPONSE: u16 = 0x8000;
const FLAG_TRUNCATED: u16 = 0x0200;
const FLAG_RECURSION_DESIRED: u16 = 0x0100;
const FLAG_RECURSION_AVAILABLE: u16 = 0x0080;
const FLAG_CHECKING_DISABLED: u16 = 0x0010;
const OPCODE_MASK: u16 = 0x7800;
const RCODE_MASK: u16 = 0x000f;

const CLASS_IN: u16 = 1;
const CLASS_ANY: u16 = 255;
/// A compression pointer to the question's name, which always stands right behind the header.
const POINTER_TO_QUESTION: [u8; 2] = [0xc0, HEADER_BYTES as u8];

/// Why a packet is no query to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unfit {
    /// Not a query, or not readable: silence is all it gets, as from Docker.
    Malformed,
    /// Another kind of request than a query.
    NotImplemented,
}

/// A query, read in place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Query<'p> {
    packet: &'p [u8],
    flags: u16,
    /// Where the first question ends; further ones are not considered.
    question_end: usize,
    pub(crate) edns: Option<Edns>,
}

/// What a query's OPT record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Edns {
    pub(crate) payload_bytes: u16,
    pub(crate) version: u8,
    pub(crate) dnssec_ok: bool,
    pub(crate) has_options: bool,
}

impl<'p> Query<'p> {
    /// Reads a whole packet; every record must be where the counts say.
    pub(crate) fn parse(packet: &'p [u8]) -> Result<Self, Unfit> {
        let flags = u16_at(packet, 2).ok_or(Unfit::Malformed)?;
        if packet.len() < HEADER_BYTES || flags & FLAG_RESPONSE != 0 {
            return Err(Unfit::Malformed);
        }
        if flags & OPCODE_MASK != 0 {
            return Err(Unfit::NotImplemented);
        }
        let question_end = question_end(packet).ok_or(Unfit::Malformed)?;
        let mut edns = None;
        for record in Records::of(packet).ok_or(Unfit::Malformed)? {
            let record = record.ok_or(Unfit::Malformed)?;
            if record.kind == u16::from(RecordType::OPT) {
                edns = Some(Edns {
                    payload_bytes: record.class,
                    version: (record.ttl >> 16) as u8,
                    dnssec_ok: record.ttl & 0x8000 != 0,
                    has_options: record.data_bytes > 0,
                });
            }
        }
        Ok(Self { packet, flags, question_end, edns })
    }

    /// The first question as it stands in the packet: name, type, class.
    pub(crate) fn question(&self) -> &'p [u8] {
        &self.packet[HEADER_BYTES..self.question_end]
    }

    pub(crate) fn id(&self) -> u16 {
        u16_at(self.packet, 0).unwrap_or_default()
    }

    pub(crate) fn kind(&self) -> RecordType {
        RecordType::from(u16_at(self.packet, self.question_end - 4).unwrap_or_default())
    }

    /// The question is about the Internet, or about any class.
    pub(crate) fn is_internet(&self) -> bool {
        matches!(u16_at(self.packet, self.question_end - 2), Some(CLASS_IN | CLASS_ANY))
    }

    /// RD, CD, AD: what changes the answer a server gives.
    pub(crate) fn flags(&self) -> u16 {
        self.flags
    }

    /// The name in lower case with dots, without a trailing one. `None` when it cannot be written so
    /// (a label with a dot in it, bytes that are no UTF-8): none of our names looks like that.
    pub(crate) fn name<'b>(&self, buffer: &'b mut NameBuffer) -> Option<&'b str> {
        let mut rest = self.question();
        let mut length = 0;
        while let Some((&label, tail)) = rest.split_first().filter(|(label, _)| **label > 0) {
            let (text, tail) = tail.split_at_checked(usize::from(label))?;
            if text.contains(&b'.') {
                return None;
            }
            if length > 0 {
                buffer.0[length] = b'.';
                length += 1;
            }
            let place = buffer.0.get_mut(length..length + text.len())?;
            place.copy_from_slice(text);
            place.make_ascii_lowercase();
            length += text.len();
            rest = tail;
        }
        std::str::from_utf8(&buffer.0[..length]).ok()
    }

    /// Largest reply this query may get over UDP.
    pub(crate) fn udp_limit(&self) -> usize {
        let asked = self.edns.map_or(0, |edns| usize::from(edns.payload_bytes));
        asked.clamp(UDP_BYTES_DEFAULT, UDP_BYTES_MAX)
    }
}

/// Room for one name in text.
pub(crate) struct NameBuffer([u8; NAME_BYTES_MAX]);

impl NameBuffer {
    pub(crate) fn new() -> Self {
        Self([0; NAME_BYTES_MAX])
    }
}

/// The name of a record being written.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Owner<'n> {
    /// The question's, in the asker's own spelling.
    Question,
    Name(&'n [u8]),
}

/// A reply being written: answers first, then additional records, then [`Reply::finish`].
pub(crate) struct Reply<'o> {
    out: &'o mut Vec<u8>,
    limit: usize,
    edns: Option<Edns>,
    answers: u16,
    additionals: u16,
    truncated: bool,
}

impl<'o> Reply<'o> {
    /// Begins a reply of at most `limit` bytes.
    pub(crate) fn to(query: &Query<'_>, limit: usize, out: &'o mut Vec<u8>) -> Self {
        out.clear();
        out.extend_from_slice(&query.packet[..2]);
        let copied = query.flags & (FLAG_RECURSION_DESIRED | FLAG_CHECKING_DISABLED);
        out.extend_from_slice(&(FLAG_RESPONSE | FLAG_RECURSION_AVAILABLE | copied).to_be_bytes());
        out.extend_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
        out.extend_from_slice(query.question());
        let reserved = if query.edns.is_some() { OPT_BYTES } else { 0 };
        Self { out, limit: limit - reserved, edns: query.edns, answers: 0, additionals: 0, truncated: false }
    }

    /// Adds an answer; `false` when it and all after it do not fit, which the reply then says.
    pub(crate) fn answer(&mut self, owner: Owner<'_>, kind: RecordType, ttl: u32, data: &[u8]) -> bool {
        self.truncated |= !self.record(owner, kind, ttl, data);
        self.answers += u16::from(!self.truncated);
        !self.truncated
    }

    /// Adds something useful if there is room.
    pub(crate) fn additional(&mut self, owner: Owner<'_>, kind: RecordType, ttl: u32, data: &[u8]) {
        if !self.truncated && self.record(owner, kind, ttl, data) {
            self.additionals += 1;
        }
    }

    fn record(&mut self, owner: Owner<'_>, kind: RecordType, ttl: u32, data: &[u8]) -> bool {
        let owner = match owner {
            Owner::Question => &POINTER_TO_QUESTION[..],
            Owner::Name(name) => name,
        };
        let Ok(data_bytes) = u16::try_from(data.len()) else { return false };
        if self.out.len() + owner.len() + 10 + data.len() > self.limit {
            return false;
        }
        self.out.extend_from_slice(owner);
        self.out.extend_from_slice(&u16::from(kind).to_be_bytes());
        self.out.extend_from_slice(&CLASS_IN.to_be_bytes());
        self.out.extend_from_slice(&ttl.to_be_bytes());
        self.out.extend_from_slice(&data_bytes.to_be_bytes());
        self.out.extend_from_slice(data);
        true
    }

    /// Completes the packet, with an OPT record for a client that sent one.
    pub(crate) fn finish(self, code: ResponseCode) {
        if self.edns.is_some() {
            self.out.push(0);
            self.out.extend_from_slice(&u16::from(RecordType::OPT).to_be_bytes());
            self.out.extend_from_slice(&(QUERY_BYTES_MAX as u16).to_be_bytes());
            self.out.extend_from_slice(&[code.high(), 0, 0, 0, 0, 0]);
        }
        if self.truncated {
            self.out[2] |= (FLAG_TRUNCATED >> 8) as u8;
        }
        self.out[3] |= code.low();
        self.out[6..8].copy_from_slice(&self.answers.to_be_bytes());
        let additionals = self.additionals + u16::from(self.edns.is_some());
        self.out[10..12].copy_from_slice(&additionals.to_be_bytes());
    }
}

/// The reply to a request that is no query: its header and the code, as the engine's DNS library does.
pub(crate) fn not_implemented(packet: &[u8], out: &mut Vec<u8>) {
    out.clear();
    let flags = u16_at(packet, 2).unwrap_or_default() & (OPCODE_MASK | FLAG_RECURSION_DESIRED);
    let flags = flags | FLAG_RESPONSE | u16::from(ResponseCode::NotImp.low());
    out.extend_from_slice(packet.get(..2).unwrap_or_default());
    out.extend_from_slice(&flags.to_be_bytes());
    out.extend_from_slice(&[0; 8]);
}

/// A name as labels, for use in record data; `None` when it is no valid name.
pub(crate) fn name_bytes(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() + 2);
    for label in text.split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length))?;
        bytes.push(length);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    (bytes.len() <= NAME_BYTES_MAX).then_some(bytes)
}

/// An answer from another server, as far as it must be understood to be passed on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Response<'p> {
    packet: &'p [u8],
    flags: u16,
}

impl<'p> Response<'p> {
    pub(crate) fn parse(packet: &'p [u8]) -> Option<Self> {
        let flags = u16_at(packet, 2)?;
        let is_response = packet.len() >= HEADER_BYTES && flags & FLAG_RESPONSE != 0;
        is_response.then_some(Self { packet, flags })
    }

    pub(crate) fn id(&self) -> u16 {
        u16_at(self.packet, 0).unwrap_or_default()
    }

    pub(crate) fn is_truncated(&self) -> bool {
        self.flags & FLAG_TRUNCATED != 0
    }

    pub(crate) fn code(&self) -> ResponseCode {
        ResponseCode::from_low((self.flags & RCODE_MASK) as u8)
    }

    /// It repeats this very question, in whatever case; or it is an error of a server that did not
    /// even read the question.
    pub(crate) fn answers(&self, question: &[u8]) -> bool {
        match u16_at(self.packet, 4) {
            Some(0) => self.code() != ResponseCode::NoError && self.code() != ResponseCode::NXDomain,
            Some(1) => self
                .packet
                .get(HEADER_BYTES..HEADER_BYTES + question.len())
                .is_some_and(|own| same_question(own, question)),
            _ => false,
        }
    }

    /// How long the answer may be kept, in seconds (RFC 2308): a positive one as its shortest-lived
    /// record, a negative one as its SOA record says. `None` when it may not be kept.
    pub(crate) fn lifetime(&self) -> Option<Lifetime> {
        let negative = u16_at(self.packet, 6) == Some(0) || self.code() == ResponseCode::NXDomain;
        let mut seconds: Option<u32> = None;
        let mut has_soa = false;
        for record in Records::of(self.packet)? {
            let record = record?;
            if record.kind == u16::from(RecordType::OPT) {
                continue;
            }
            let mut ttl = record.ttl;
            if record.kind == u16::from(RecordType::SOA) {
                has_soa = true;
                if negative {
                    // MINIMUM is the last of the record's fields (RFC 1035 §3.3.13).
                    let end = record.data_at + record.data_bytes;
                    ttl = ttl.min(u32_at(self.packet, end.checked_sub(4)?)?);
                }
            }
            seconds = Some(seconds.map_or(ttl, |least| least.min(ttl)));
        }
        (!negative || has_soa).then_some(Lifetime { seconds: seconds?, negative })
    }
}

/// See [`Response::lifetime`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lifetime {
    pub(crate) seconds: u32,
    pub(crate) negative: bool,
}

/// Gives a kept or relayed answer the asker's id and spelling, and takes `age` seconds off every TTL.
pub(crate) fn readdress(packet: &mut [u8], id: u16, question: &[u8], age: u32) {
    if let Some(place) = packet.get_mut(..2) {
        place.copy_from_slice(&id.to_be_bytes());
    }
    if u16_at(packet, 4) == Some(1)
        && let Some(place) = packet.get_mut(HEADER_BYTES..HEADER_BYTES + question.len())
    {
        place.copy_from_slice(question);
    }
    if age == 0 {
        return;
    }
    let ttls: Vec<(usize, u32)> = Records::of(packet)
        .into_iter()
        .flatten()
        .map_while(|record| record)
        .filter(|record| record.kind != u16::from(RecordType::OPT))
        .map(|record| (record.data_at - 6, record.ttl.saturating_sub(age)))
        .collect();
    for (place, ttl) in ttls {
        packet[place..place + 4].copy_from_slice(&ttl.to_be_bytes());
    }
}

fn same_question(a: &[u8], b: &[u8]) -> bool {
    // Type and class are compared exactly; in names, length bytes are below any letter.
    let (Some((a_name, a_rest)), Some((b_name, b_rest))) =
        (a.split_last_chunk::<4>(), b.split_last_chunk::<4>())
    else {
        return false;
    };
    a_rest == b_rest && a_name.eq_ignore_ascii_case(b_name)
}

/// Where the first question ends. Its name may not be compressed: there is nothing to point at.
fn question_end(packet: &[u8]) -> Option<usize> {
    if u16_at(packet, 4)? == 0 {
        return None;
    }
    let mut at = HEADER_BYTES;
    loop {
        let label = usize::from(*packet.get(at)?);
        at += 1 + label;
        match label {
            0 => break,
            1..=63 if at - HEADER_BYTES < NAME_BYTES_MAX => {}
            _ => return None,
        }
    }
    (at + 4 <= packet.len()).then_some(at + 4)
}

/// The fixed fields of one record, and where its data is.
#[derive(Debug, Clone, Copy)]
struct RecordHead {
    kind: u16,
    class: u16,
    ttl: u32,
    data_at: usize,
    data_bytes: usize,
}

/// Walks over all records behind the questions; an item is `None` when the packet ends too early.
struct Records<'p> {
    packet: &'p [u8],
    at: usize,
    left: usize,
}

impl<'p> Records<'p> {
    fn of(packet: &'p [u8]) -> Option<Self> {
        let mut at = HEADER_BYTES;
        for _ in 0..u16_at(packet, 4)? {
            at = name_end(packet, at)? + 4;
        }
        let left =
            [6, 8, 10].iter().map(|&place| u16_at(packet, place).map(usize::from)).sum::<Option<usize>>()?;
        (at <= packet.len()).then_some(Self { packet, at, left })
    }

    fn head(&self) -> Option<RecordHead> {
        let at = name_end(self.packet, self.at)?;
        let data_bytes = usize::from(u16_at(self.packet, at + 8)?);
        let head = RecordHead {
            kind: u16_at(self.packet, at)?,
            class: u16_at(self.packet, at + 2)?,
            ttl: u32_at(self.packet, at + 4)?,
            data_at: at + 10,
            data_bytes,
        };
        (head.data_at + data_bytes <= self.packet.len()).then_some(head)
    }
}

impl Iterator for Records<'_> {
    type Item = Option<RecordHead>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let head = self.head();
        match head {
            Some(head) => self.at = head.data_at + head.data_bytes,
            None => self.left = 0,
        }
        Some(head)
    }
}

/// Where a possibly compressed name ends in the packet.
fn name_end(packet: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let label = *packet.get(at)?;
        match label {
            0 => return Some(at + 1),
            1..=63 => at += 1 + usize::from(label),
            0xc0.. => return Some(at + 2),
            _ => return None,
        }
    }
}

fn u16_at(packet: &[u8], at: usize) -> Option<u16> {
    packet.get(at..at + 2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
}

fn u32_at(packet: &[u8], at: usize) -> Option<u32> {
    packet.get(at..at + 4).map(|bytes| u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

#[cfg(test)]
mod tests;
