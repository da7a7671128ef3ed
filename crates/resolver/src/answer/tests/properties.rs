use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let view = world();
        let (verdict, out) = run(&view, &bytes, Transport::Udp);
        if verdict == Verdict::Local {
            prop_assert!(out.len() <= 65_507);
        }
        let _ = run(&View { internal: true, ..view }, &bytes, Transport::Tcp);
    }

    /// Mutated real queries reach deeper than noise; what we reply is a well-formed packet.
    #[test]
    fn damaged_queries_are_survived(
        name in "[a-z0-9_.-]{0,20}|rr|tasks\\.rr|_80\\._tcp\\.rr|20\\.1\\.0\\.10\\.in-addr\\.arpa",
        kind in any::<u16>(),
        edns in proptest::option::of(any::<u16>()),
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..4),
        cut in proptest::option::of(any::<proptest::sample::Index>()),
    ) {
        prop_assume!(Name::from_ascii(&name).is_ok());
        let mut bytes = packet(&name, RecordType::from(kind), edns);
        for (place, byte) in damage {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let (verdict, out) = run(&world(), &bytes, Transport::Udp);
        if verdict == Verdict::Local {
            let reply = Message::from_vec(&out);
            prop_assert!(reply.is_ok(), "{bytes:02x?} got {out:02x?}: {reply:?}");
            prop_assert_eq!(&out[..2], &bytes[..2]);
        }
    }

    /// No reply is larger than its asker takes, and what is no query gets none.
    #[test]
    fn replies_keep_to_their_limit(
        name in "many|tasks\\.many|_80\\._tcp\\.many|nosuch",
        kind in prop_oneof![Just(1u16), Just(33), Just(255), any::<u16>()],
        edns in proptest::option::of(any::<u16>()),
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..4),
        tcp in any::<bool>(),
    ) {
        let view = packets::crowd(300);
        let mut bytes = packet(&name, RecordType::from(kind), edns);
        for (place, byte) in damage {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        let transport = if tcp { Transport::Tcp } else { Transport::Udp };
        let (verdict, out) = run(&view, &bytes, transport);
        let query = Query::parse(&bytes);
        let most = match (&query, transport) {
            (_, Transport::Tcp) => 65_535,
            (Ok(query), Transport::Udp) => usize::from(query.edns.map_or(512, |edns| edns.payload_bytes)).max(512),
            (Err(_), Transport::Udp) => 512,
        };
        prop_assert!(out.len() <= most, "{} of {most} bytes", out.len());
        prop_assert_eq!(verdict == Verdict::Ignore, query.err() == Some(Unfit::Malformed));
        prop_assert!(verdict == Verdict::Local || out.is_empty());
        let mut refusal = Vec::new();
        if refuse(&bytes, ResponseCode::Refused, &mut refusal).is_some() {
            prop_assert!(refusal.len() <= 512 && Message::from_vec(&refusal).is_ok());
        }
    }

    /// Whatever is in the tables, look-ups agree with the rule written down naively.
    #[test]
    fn look_ups_follow_the_rule(
        tables in proptest::collection::vec(proptest::collection::vec("[a-c](\\.[a-c]){0,2}", 0..4), 1..4),
        asked in "[a-c](\\.[a-c]){0,4}",
    ) {
        let suffixes = ["a", "b.c", "c"];
        let mut networks = Vec::new();
        for (number, names) in tables.iter().enumerate() {
            let mut table = table(suffixes[number]);
            for (place, name) in names.iter().enumerate() {
                endpoint(&mut table, &format!("e{place}"), &format!("10.{number}.{place}.1/8"), &[name.as_str()]);
            }
            networks.push(Names::from_table(&table));
        }
        let expected = naive(&tables, &suffixes, &asked);
        let view = View::of(networks);
        match expected {
            Some(expected) => prop_assert_eq!(addresses(&view, &asked), expected),
            None => prop_assert!(forwards(&view, &asked, RecordType::A)),
        }
    }
}

/// Docker's look-up over lists of names.
fn naive(tables: &[Vec<String>], suffixes: &[&str], asked: &str) -> Option<BTreeSet<String>> {
    let holders = |number: usize, name: &str| -> BTreeSet<String> {
        let held = tables[number].iter().enumerate().filter(|(_, held)| *held == name);
        held.map(|(place, _)| format!("10.{number}.{place}.1")).collect()
    };
    let labels: Vec<&str> = asked.split('.').collect();
    for split in (1..=labels.len()).rev() {
        let (head, tail) = (labels[..split].join("."), labels[split..].join("."));
        for (number, suffix) in suffixes.iter().enumerate().take(tables.len()) {
            let found = holders(number, &head);
            if (tail.is_empty() || tail == *suffix) && !found.is_empty() {
                return Some(found);
            }
        }
    }
    None
}
