//! How a service spreads its connections, and who may use its published ports: what its labels say of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::Labels;

/// `random` (if nothing is said), `source`, `local-first`, or the last two together.
const BALANCE_LABEL: &str = "shoal.balance";
/// `shoal.publish.bind`, `shoal.publish.clients` for all published ports, `shoal.publish.8080.bind` for one.
const PUBLISH_PREFIX: &str = "shoal.publish.";

/// How new connections are spread, beyond "to healthy tasks".
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balance {
    /// Equal sources get equal backends, as far as these stay the same.
    #[serde(default)]
    pub by_source: bool,
    /// Tasks of the node where the connection begins or comes in, others only when there are none.
    #[serde(default)]
    pub local_first: bool,
}

/// Where and from whom a published port takes connections; everywhere and from everybody if nothing is said.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Admission {
    /// Addresses of nodes, and links: who asks for another address, or comes in by another link, is not led on.
    #[serde(default)]
    pub bind: BTreeSet<Bind>,
    /// Networks of clients.
    #[serde(default)]
    pub clients: BTreeSet<IpNet>,
}

impl Admission {
    pub fn is_open(&self) -> bool {
        self.bind.is_empty() && self.clients.is_empty()
    }
}

/// One place at which a port is published.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bind {
    Address(IpAddr),
    Link(String),
}

/// What the labels of a service say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    #[serde(default)]
    pub balance: Balance,
    /// Of ports that none is named for.
    #[serde(default)]
    admission: Admission,
    /// By published port; of those that have one of their own.
    #[serde(default)]
    ports: BTreeMap<u16, PortAdmission>,
}

/// What is said of one port; `None`: what is said of all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct PortAdmission {
    bind: Option<BTreeSet<Bind>>,
    clients: Option<BTreeSet<IpNet>>,
}

/// A label of ours that says nothing we know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid label {label}={value}: {reason}")]
pub struct BadLabel {
    pub label: String,
    pub value: String,
    pub reason: &'static str,
}

impl Policy {
    pub fn of(labels: &Labels) -> Result<Self, BadLabel> {
        let mut policy = Self::default();
        for (label, value) in labels {
            let bad = |reason| BadLabel { label: label.clone(), value: value.clone(), reason };
            if label == BALANCE_LABEL {
                policy.balance = balance(value).map_err(bad)?;
            } else if let Some(what) = label.strip_prefix(PUBLISH_PREFIX) {
                policy.take(what, value).map_err(bad)?;
            }
        }
        Ok(policy)
    }

    fn take(&mut self, what: &str, value: &str) -> Result<(), &'static str> {
        let (port, what) = match what.split_once('.') {
            Some((port, what)) => (Some(port.parse().map_err(|_| "there is no such port")?), what),
            None => (None, what),
        };
        match (what, port) {
            ("bind", None) => self.admission.bind = parse(value, bind)?,
            ("clients", None) => self.admission.clients = parse(value, network)?,
            ("bind", Some(port)) => self.ports.entry(port).or_default().bind = Some(parse(value, bind)?),
            ("clients", Some(port)) => {
                self.ports.entry(port).or_default().clients = Some(parse(value, network)?);
            }
            _ => return Err("known are bind and clients"),
        }
        Ok(())
    }

    /// Of one published port.
    pub fn admission(&self, published: u16) -> Admission {
        let own = self.ports.get(&published);
        Admission {
            bind: own.and_then(|own| own.bind.as_ref()).unwrap_or(&self.admission.bind).clone(),
            clients: own.and_then(|own| own.clients.as_ref()).unwrap_or(&self.admission.clients).clone(),
        }
    }
}

fn balance(value: &str) -> Result<Balance, &'static str> {
    let mut balance = Balance::default();
    for word in value.split(',').map(str::trim) {
        match word {
            "random" if value.trim() == "random" => {}
            "source" => balance.by_source = true,
            "local-first" => balance.local_first = true,
            _ => return Err("known are random, source, local-first, and the last two with a comma between"),
        }
    }
    Ok(balance)
}

fn parse<T: Ord>(
    value: &str,
    one: impl Fn(&str) -> Result<T, &'static str>,
) -> Result<BTreeSet<T>, &'static str> {
    value.split(',').map(|word| one(word.trim())).collect()
}

/// An address, or the name of a link: as the kernel takes one (`dev_valid_name`), and no more than letters,
/// digits and a few signs, since it ends up in rules.
fn bind(word: &str) -> Result<Bind, &'static str> {
    if let Ok(address) = word.parse::<IpAddr>() {
        return Ok(Bind::Address(address));
    }
    let known = |c: char| c.is_ascii_alphanumeric() || "._-@".contains(c);
    let is_name = (1..=15).contains(&word.len()) && word.chars().all(known);
    // A number alone, or one with dots, is an address that went wrong.
    let is_name = is_name && word.contains(|c: char| c.is_ascii_alphabetic());
    if is_name { Ok(Bind::Link(word.to_owned())) } else { Err("neither an address nor the name of a link") }
}

fn network(word: &str) -> Result<IpNet, &'static str> {
    let net = word.parse::<IpNet>().or_else(|_| word.parse::<IpAddr>().map(IpNet::from));
    net.map(|net| net.trunc()).map_err(|_| "neither a network nor an address")
}

/// Where new connections go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backends<A: Ord> {
    pub members: BTreeSet<A>,
    /// See [`Balance::by_source`].
    pub by_source: bool,
}

impl<A: Ord> Default for Backends<A> {
    fn default() -> Self {
        Self { members: BTreeSet::new(), by_source: false }
    }
}

impl<A: Ord> FromIterator<A> for Backends<A> {
    /// Spread at random.
    fn from_iter<T: IntoIterator<Item = A>>(members: T) -> Self {
        Self { members: members.into_iter().collect(), by_source: false }
    }
}

impl<A: Ord, const N: usize> From<[A; N]> for Backends<A> {
    /// Spread at random.
    fn from(members: [A; N]) -> Self {
        members.into_iter().collect()
    }
}

/// Something at an address.
pub trait Addressed {
    fn ip(&self) -> IpAddr;
}

impl Addressed for IpAddr {
    fn ip(&self) -> IpAddr {
        *self
    }
}

impl Addressed for SocketAddr {
    fn ip(&self) -> IpAddr {
        SocketAddr::ip(self)
    }
}

/// Shares of sources: their hashes are taken modulo this number, so a share is good to a tenth of a percent.
pub const SHARES: usize = 1024;

/// Who serves each of the [`SHARES`] of sources; nobody without backends.
///
/// The one whose hash together with the share's number is the highest (rendezvous hashing, Thaler and
/// Ravishankar 1998): when one of them goes only its own shares move, and when it comes back they return. The
/// same on every node, whatever it was built for.
pub fn shares<A: Addressed>(backends: &[A]) -> Vec<&A> {
    let seeds: Vec<u64> = backends.iter().map(|backend| seed(backend.ip())).collect();
    let winner = |share: usize| {
        let score = |&at: &usize| seeds.get(at).map(|seed| mix(seed ^ mix(share as u64)));
        (0..backends.len()).max_by_key(score)
    };
    (0..SHARES).filter_map(|share| backends.get(winner(share)?)).collect()
}

fn seed(address: IpAddr) -> u64 {
    let octets = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    };
    octets.iter().fold(0, |hash, octet| mix(hash ^ u64::from(*octet)))
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood 2014).
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn backends(count: u8) -> Vec<IpAddr> {
        (0..count).map(|last| IpAddr::from([10, 0, 0, last])).collect()
    }

    #[test]
    fn labels_say_how_and_for_whom() {
        let policy = Policy::of(&labels(&[
            ("shoal.balance", "local-first, source"),
            ("shoal.publish.bind", "eth0,192.0.2.1"),
            ("shoal.publish.8081.clients", "10.0.0.7/8, 2001:db8::1"),
            ("com.example.other", "anything"),
        ]));
        let policy = policy.unwrap();
        assert_eq!(policy.balance, Balance { by_source: true, local_first: true });
        let bind =
            BTreeSet::from([Bind::Link("eth0".to_owned()), Bind::Address("192.0.2.1".parse().unwrap())]);
        assert_eq!(policy.admission(80), Admission { bind: bind.clone(), clients: BTreeSet::new() });
        let clients = ["10.0.0.0/8", "2001:db8::1/128"].map(|net| net.parse().unwrap()).into();
        assert_eq!(policy.admission(8081), Admission { bind, clients });
        assert!(Policy::of(&labels(&[("shoal.balance", "random")])).unwrap().admission(80).is_open());
    }

    #[test]
    fn what_says_nothing_known_is_refused_in_words() {
        for (label, value) in [
            ("shoal.balance", "fastest"),
            ("shoal.balance", "random,source"),
            ("shoal.balance", ""),
            ("shoal.publish.bind", "192.0.2"),
            ("shoal.publish.bind", "eth0 ; drop"),
            ("shoal.publish.bind", "a-name-that-is-too-long"),
            ("shoal.publish.clients", "10.0.0.0/33"),
            ("shoal.publish.clients", "somebody"),
            ("shoal.publish.99999.clients", "10.0.0.0/8"),
            ("shoal.publish.80.colour", "blue"),
            ("shoal.publish.colour", "blue"),
        ] {
            let error = Policy::of(&labels(&[(label, value)])).unwrap_err().to_string();
            assert!(error.starts_with(&format!("invalid label {label}={value}: ")), "{error}");
        }
    }

    #[test]
    fn only_the_shares_of_who_goes_move_and_all_shares_are_about_the_same() {
        for count in 1..=40u8 {
            let all = backends(count);
            let before = shares(&all);
            assert_eq!(before.len(), SHARES);
            for gone in &all {
                let fair = SHARES / usize::from(count);
                let own = before.iter().filter(|backend| **backend == gone).count();
                assert!(own * 2 > fair && own < fair * 2, "{count} backends: {own} of {fair}");
                let rest: Vec<IpAddr> = all.iter().filter(|backend| *backend != gone).copied().collect();
                for (before, after) in before.iter().zip(shares(&rest)) {
                    assert!(*before == gone || *before == after, "{count} backends without {gone}");
                }
            }
        }
        assert!(shares::<IpAddr>(&[]).is_empty());
    }
}
