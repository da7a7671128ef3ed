//! A look-up told step by step: the very code that answers, before a witness.

use std::net::IpAddr;

use hickory_proto::op::Message;
use hickory_proto::rr::RecordType;
use shoal_model::trace::{Found, Look, Lookup, LookupVerdict, Reply, ReplyRecord};

use crate::answer::{Transport, Verdict, answer_before};
use crate::forward::Pool;
use crate::names::{Entry, Names};
use crate::view::{View, Witness};
use crate::wire::name_bytes;

const RECURSION_DESIRED: u8 = 1;
const CLASS_IN: u16 = 1;

/// What a client that sees this is answered for a name, for each type it may ask for. Nobody else is
/// asked; what another server said before is told.
pub(crate) fn trace(view: &View, pool: &Pool, name: &str) -> Lookup {
    let name = name.trim_end_matches('.');
    let mut lookup = Lookup {
        link: view.links.get(&name.to_ascii_lowercase()).cloned(),
        looks: Vec::new(),
        verdict: LookupVerdict::NoName,
        answers: Vec::new(),
        upstreams: Vec::new(),
        versions: view.networks.iter().map(|slot| version(&slot.load())).collect(),
    };
    for (place, kind) in kinds(name).iter().enumerate() {
        let Some(packet) = question(name, *kind) else { break };
        let mut witness = Diary::default();
        let mut out = Vec::new();
        let verdict = answer_before(view, &packet, Transport::Udp, &mut rand::rng(), &mut witness, &mut out);
        let from_cache = verdict == Verdict::Forward && pool.recall(&packet, Transport::Udp, &mut out);
        if verdict == Verdict::Local || from_cache {
            lookup.answers.extend(read(*kind, &out, from_cache));
        }
        // Every type goes the same way.
        if place == 0 {
            lookup.looks = witness.looks;
            lookup.verdict = witness.verdict.unwrap_or(LookupVerdict::NoName);
        }
    }
    if lookup.verdict == LookupVerdict::Forwarded {
        lookup.upstreams = pool.outlook();
    }
    lookup
}

fn version(names: &Names) -> (shoal_model::NetworkId, shoal_model::TableVersion) {
    (names.network.clone(), names.version)
}

/// The types of record that a name of this form is asked for.
fn kinds(name: &str) -> &'static [RecordType] {
    if name.ends_with(".in-addr.arpa") || name.ends_with(".ip6.arpa") {
        &[RecordType::PTR]
    } else if name.starts_with('_') {
        &[RecordType::SRV]
    } else {
        &[RecordType::A, RecordType::AAAA]
    }
}

/// A query as the C library sends it; `None` when it is no name.
fn question(name: &str, kind: RecordType) -> Option<Vec<u8>> {
    let mut packet = vec![0, 0, RECURSION_DESIRED, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    packet.extend(name_bytes(name)?);
    packet.extend(u16::from(kind).to_be_bytes());
    packet.extend(CLASS_IN.to_be_bytes());
    Some(packet)
}

fn read(kind: RecordType, packet: &[u8], from_cache: bool) -> Option<Reply> {
    let message = Message::from_vec(packet).ok()?;
    let records = message.answers.iter().map(|record| ReplyRecord {
        kind: record.record_type().to_string(),
        data: record.data.to_string(),
        ttl: record.ttl,
    });
    let code = code(u16::from(message.metadata.response_code));
    Some(Reply { kind: kind.to_string(), code, records: records.collect(), from_cache })
}

/// The names by which administrators know the codes (RFC 1035 §4.1.1).
fn code(code: u16) -> String {
    match code {
        0 => "NOERROR".to_owned(),
        1 => "FORMERR".to_owned(),
        2 => "SERVFAIL".to_owned(),
        3 => "NXDOMAIN".to_owned(),
        4 => "NOTIMP".to_owned(),
        5 => "REFUSED".to_owned(),
        other => other.to_string(),
    }
}

/// Writes everything down.
#[derive(Default)]
struct Diary {
    looks: Vec<Look>,
    verdict: Option<LookupVerdict>,
}

impl Witness for Diary {
    fn looked(&mut self, names: &Names, asked: &str, by_network: bool, found: Option<&Entry>) {
        let found = found.map(|entry| Found { v4: entry.v4.clone(), v6: entry.v6.clone(), pointer: None });
        let network = names.network.clone();
        self.looks.push(Look { network, asked: asked.to_owned(), by_network, found });
    }

    fn looked_for_address(&mut self, names: &Names, address: IpAddr, found: Option<Option<&str>>) {
        let found = found.map(|name| Found { pointer: name.map(str::to_owned), ..Found::default() });
        let look =
            Look { network: names.network.clone(), asked: address.to_string(), by_network: false, found };
        self.looks.push(look);
    }

    fn decided(&mut self, verdict: LookupVerdict) {
        self.verdict = Some(verdict);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use shoal_model::{NetworkId, TableVersion};

    /// Networks `one`, which knows `web` and `db`, and `two`, which knows `db` and nothing behind it.
    fn view() -> View {
        let names = |id: &str, entries: &[(&str, &[&str])]| {
            let mut names = Names::unknown(NetworkId::new(id));
            names.version = TableVersion { epoch: 1, revision: 7 };
            names.set_suffix(id);
            for (name, addresses) in entries {
                let addresses: Vec<IpAddr> =
                    addresses.iter().map(|address| address.parse().unwrap()).collect();
                names.add(name, &addresses, 2);
            }
            names
        };
        let one = names("one", &[("web", &["10.0.1.2"]), ("db", &["10.0.1.3", "fd00::3"])]);
        View::of([one, names("two", &[("db", &["10.0.2.2"]), ("idle", &[])])])
    }

    fn run(view: &View, name: &str) -> Lookup {
        trace(view, &Pool::new(&["192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap()]), name)
    }

    /// Network, what was asked there, and whether it was known.
    fn looks(lookup: &Lookup) -> Vec<(&str, &str, bool)> {
        let looks = lookup.looks.iter();
        looks.map(|look| (look.network.as_str(), look.asked.as_str(), look.found.is_some())).collect()
    }

    #[test]
    fn every_look_is_told_until_a_network_knows_the_name() {
        let lookup = run(&view(), "DB.");
        assert_eq!(looks(&lookup), [("one", "db", true)]);
        assert_eq!(lookup.verdict, LookupVerdict::Known);
        assert_eq!(lookup.looks[0].found.as_ref().unwrap().v4, [Ipv4Addr::new(10, 0, 1, 3)]);
        let answers: Vec<_> =
            lookup.answers.iter().map(|answer| (&*answer.kind, &*answer.records[0].data)).collect();
        assert_eq!(answers, [("A", "10.0.1.3"), ("AAAA", "fd00::3")]);
        assert_eq!((lookup.answers[0].records[0].ttl, lookup.upstreams.len()), (2, 0));
        assert_eq!(lookup.versions[&NetworkId::new("two")].revision, 7);

        let lookup = run(&view(), "db.two");
        assert_eq!(looks(&lookup), [("one", "db.two", false), ("two", "db.two", false), ("two", "db", true)]);
        assert!(lookup.looks[2].by_network);
        let idle = run(&view(), "idle");
        assert_eq!((idle.verdict, idle.answers[0].records.len()), (LookupVerdict::Known, 0));
    }

    #[test]
    fn what_is_not_known_is_left_to_others_in_their_order_or_to_nobody() {
        let lookup = run(&view(), "nobody");
        assert_eq!(looks(&lookup), [("one", "nobody", false), ("two", "nobody", false)]);
        assert_eq!(lookup.verdict, LookupVerdict::Forwarded);
        assert!(lookup.answers.is_empty(), "nobody was asked");
        let servers: Vec<String> = lookup.upstreams.iter().map(|one| one.server.to_string()).collect();
        assert_eq!(servers, ["192.0.2.1", "192.0.2.2"]);

        let internal = run(&View { internal: true, ..view() }, "nobody");
        assert_eq!((internal.verdict, &*internal.answers[0].code), (LookupVerdict::NoWayOut, "SERVFAIL"));
        let ndots = run(&View { ndots_set: true, ..view() }, "nobody");
        assert_eq!((ndots.verdict, &*ndots.answers[0].code), (LookupVerdict::LeftToSearchDomains, "NOERROR"));
        assert_eq!(run(&view(), "a..b").verdict, LookupVerdict::NoName);
    }

    #[test]
    fn reverse_names_and_services_are_asked_for_what_they_have() {
        let lookup = run(&view(), "9.9.0.10.in-addr.arpa");
        assert_eq!(looks(&lookup), [("one", "10.0.9.9", false), ("two", "10.0.9.9", false)]);
        let lookup = run(&view(), "_80._tcp.web");
        assert_eq!(lookup.answers[0].kind, "SRV");
        assert_eq!(looks(&lookup).last(), Some(&("one", "web", true)));
    }
}
