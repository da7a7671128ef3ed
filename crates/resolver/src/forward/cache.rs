//! Answers of other servers, kept while they say they are good.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;

use crate::wire::{Query, Response, readdress};

/// Longest time a positive answer is kept, in seconds.
const POSITIVE_MAX: u32 = 3600;
/// Longest time a negative answer is kept, in seconds: names that appear should be found soon.
const NEGATIVE_MAX: u32 = 60;
/// Memory for answers, in bytes, of each of the two generations.
const GENERATION_BYTES: usize = 2 << 20;
/// What an answer costs besides its bytes, roughly.
const OVERHEAD_BYTES: usize = 128;
/// Larger answers are not kept.
const ANSWER_BYTES_MAX: usize = 8 << 10;

/// RD, AD and CD.
const ANSWER_FLAGS: u16 = 0x0130;

/// A bounded cache in two generations: when the young one is full it becomes the old one, and what
/// was not asked for since is dropped with the next turn. Time comes from outside.
#[derive(Debug, Default)]
pub(super) struct Cache {
    young: HashMap<Box<[u8]>, Kept>,
    old: HashMap<Box<[u8]>, Kept>,
    young_bytes: usize,
}

#[derive(Debug)]
struct Kept {
    packet: Box<[u8]>,
    since: Instant,
    until: Instant,
}

/// What an answer is kept under: the question in lower case, and what else changes the answer. `None`
/// when the query carries EDNS options, which belong to this one client (cookies, client subnet).
pub(super) fn key(query: &Query<'_>) -> Option<Box<[u8]>> {
    let edns = match query.edns {
        None => 0u8,
        Some(edns) if edns.has_options || edns.version > 0 => return None,
        Some(edns) => 1 | u8::from(edns.dnssec_ok) << 1,
    };
    let mut key = Vec::with_capacity(query.question().len() + 3);
    let (name, kind_and_class) = query.question().split_last_chunk::<4>()?;
    key.extend(name.iter().map(u8::to_ascii_lowercase));
    key.extend_from_slice(kind_and_class);
    key.extend_from_slice(&(query.flags() & ANSWER_FLAGS).to_be_bytes());
    key.push(edns);
    Some(key.into())
}

impl Cache {
    /// Writes the kept answer into `out`, readdressed and aged, if there is a good one that fits.
    pub(super) fn get(
        &mut self,
        key: &[u8],
        query: &Query<'_>,
        limit: usize,
        now: Instant,
        out: &mut Vec<u8>,
    ) -> bool {
        if let Some((key, kept)) = self.old.remove_entry(key) {
            self.insert(key, kept);
        }
        let Some(kept) = self.young.get(key).filter(|kept| kept.until > now && kept.packet.len() <= limit)
        else {
            return false;
        };
        let age = now.duration_since(kept.since).as_secs().try_into().unwrap_or(u32::MAX);
        out.clear();
        out.extend_from_slice(&kept.packet);
        readdress(out, query.id(), query.question(), age);
        true
    }

    /// Keeps an answer if it may be kept: complete, and neither an error nor short-lived.
    pub(super) fn put(&mut self, key: Box<[u8]>, packet: &[u8], now: Instant) {
        let Some(response) = Response::parse(packet) else { return };
        let good = matches!(response.code(), ResponseCode::NoError | ResponseCode::NXDomain);
        if !good || response.is_truncated() || packet.len() > ANSWER_BYTES_MAX {
            return;
        }
        let Some(lifetime) = response.lifetime() else { return };
        let seconds = lifetime.seconds.min(if lifetime.negative { NEGATIVE_MAX } else { POSITIVE_MAX });
        if seconds > 0 {
            let until = now + Duration::from_secs(seconds.into());
            self.insert(key, Kept { packet: packet.into(), since: now, until });
        }
    }

    fn insert(&mut self, key: Box<[u8]>, kept: Kept) {
        let bytes = key.len() + kept.packet.len() + OVERHEAD_BYTES;
        if self.young_bytes + bytes > GENERATION_BYTES {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        // A replaced answer is counted twice: the generation turns a little earlier, no more.
        self.young_bytes += bytes;
        self.young.insert(key, kept);
    }
}

#[cfg(test)]
mod tests;
