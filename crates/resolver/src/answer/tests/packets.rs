use super::*;

/// Byte for byte what the engine sends (`golden/dns/bridge-raw.txt`), but for the TTL and a compressed
/// owner name.
#[test]
fn a_reply_looks_like_dockers() {
    let query = hex("1234010000010000000000000262310000010001");
    let (_, out) = run(&world(), &query, Transport::Udp);
    assert_eq!(out, hex("12348180000100010000000002623100000100 01c00c00010001000000020004 0a00011e"));
    let upper = hex("1234000000010000000000000242310000010001");
    let (_, out) = run(&world(), &upper, Transport::Udp);
    assert_eq!(out, hex("12348080000100010000000002423100000100 01c00c00010001000000020004 0a00011e"));
    let no_data = hex("12340100000100000000000002623100001c0001");
    let (_, out) = run(&world(), &no_data, Transport::Udp);
    assert_eq!(out, hex("12348180000100000000000002623100001c0001"));
}

#[test]
fn the_answer_keeps_the_askers_spelling() {
    let (_, out) = run(&world(), &packet("MyService.mynet.", RecordType::A, None), Transport::Udp);
    let reply = Message::from_vec(&out).unwrap();
    let asked = Name::from_ascii("MyService.mynet.").unwrap();
    assert!(reply.answers[0].name.eq_case(&asked));
    assert!(reply.queries[0].name.eq_case(&asked));
}

#[test]
fn edns_is_answered_with_edns() {
    let (_, out) = run(&world(), &packet("b1", RecordType::A, Some(1232)), Transport::Udp);
    let reply = Message::from_vec(&out).unwrap();
    assert_eq!(reply.answers.len(), 1);
    assert_eq!(reply.edns.unwrap().version(), 0);
    let (_, out) = run(&world(), &packet("b1", RecordType::A, None), Transport::Udp);
    assert!(Message::from_vec(&out).unwrap().edns.is_none());
}

#[test]
fn an_unknown_edns_version_is_told_ours() {
    let mut message = Message::from_vec(&packet("b1", RecordType::A, Some(1232))).unwrap();
    message.edns.as_mut().unwrap().set_version(1);
    let (verdict, out) = run(&world(), &message.to_vec().unwrap(), Transport::Udp);
    assert_eq!(verdict, Verdict::Local);
    let reply = Message::from_vec(&out).unwrap();
    // 16 is BADSIG to others.
    assert_eq!(u16::from(reply.metadata.response_code), u16::from(ResponseCode::BADVERS));
    assert!(reply.answers.is_empty());
}

pub(super) fn crowd(tasks: u32) -> View {
    let mut table = table("crowd");
    let ids: Vec<String> = (0..tasks).map(|number| format!("t{number}")).collect();
    for (number, id) in ids.iter().enumerate() {
        endpoint(&mut table, id, &format!("10.{}.{}.1/8", number / 256, number % 256), &[id.as_str()]);
    }
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    service(&mut table, "many", &[], None, &ids);
    View::of([Names::from_table(&table)])
}

#[test]
fn long_lists_are_cut_to_what_the_client_takes() {
    let view = crowd(1000);
    for (edns, transport, limit) in [
        (None, Transport::Udp, 512),
        (Some(100), Transport::Udp, 512),
        (Some(1232), Transport::Udp, 1232),
        (Some(4096), Transport::Udp, 4096),
        (None, Transport::Tcp, 65_535),
    ] {
        let (_, out) = run(&view, &packet("many", RecordType::A, edns), transport);
        let reply = Message::from_vec(&out).unwrap();
        assert!(out.len() <= limit && (reply.answers.len() == 1000 || out.len() > limit - 16), "{limit}");
        assert_eq!(reply.metadata.truncation, reply.answers.len() < 1000, "{limit}");
        assert_eq!(reply.edns.is_some(), edns.is_some());
    }
    let (_, out) = run(&view, &packet("many", RecordType::A, Some(65_535)), Transport::Udp);
    let reply = Message::from_vec(&out).unwrap();
    let distinct: BTreeSet<String> = reply.answers.iter().map(|record| record.data.to_string()).collect();
    assert_eq!(distinct.len(), 1000);
}

#[test]
fn twenty_nine_addresses_and_the_first_of_each_order_fit_a_plain_datagram() {
    let view = crowd(29);
    assert!(!ask(&view, "many", RecordType::A).metadata.truncation);
}

#[test]
fn every_task_comes_first_some_time() {
    let view = world();
    let mut random = StdRng::seed_from_u64(1);
    let mut orders = BTreeMap::<String, u32>::new();
    let mut out = Vec::new();
    for _ in 0..600 {
        answer(&view, &packet("rr", RecordType::A, None), Transport::Udp, &mut random, &mut out);
        let reply = Message::from_vec(&out).unwrap();
        let order: Vec<String> = reply.answers.iter().map(|record| record.data.to_string()).collect();
        *orders.entry(order.join(" ")).or_default() += 1;
    }
    assert_eq!(orders.len(), 6, "all orders of three");
    assert!(orders.values().all(|count| (60..150).contains(count)), "{orders:?}");
}

#[test]
fn inside_an_internal_network_the_outside_fails_at_once() {
    let view = View { internal: true, ..world() };
    let reply = ask(&view, "up.example.test", RecordType::A);
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(addresses(&view, "b1"), set(&["10.0.1.30"]));
}

#[test]
fn chosen_ndots_keeps_unknown_single_labels_here() {
    let view = View { ndots_set: true, ..world() };
    for kind in [RecordType::A, RecordType::AAAA] {
        let reply = ask(&view, "nosuch", kind);
        assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
        assert!(reply.answers.is_empty());
    }
    assert!(forwards(&view, "nosuch", RecordType::MX));
    assert!(forwards(&view, "nosuch.example.test", RecordType::A));
    assert!(forwards(&view, ".", RecordType::A));
    assert_eq!(addresses(&view, "b1"), set(&["10.0.1.30"]));
}

#[test]
fn other_requests_are_not_implemented() {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Status);
    message.metadata.recursion_desired = true;
    let (verdict, out) = run(&world(), &message.to_vec().unwrap(), Transport::Udp);
    assert_eq!(verdict, Verdict::Local);
    assert_eq!(out, hex("1234 9104 0000 0000 0000 0000"));
}

#[test]
fn unreadable_packets_get_no_reply() {
    let good = packet("b1", RecordType::A, Some(1232));
    let mut response = good.clone();
    response[2] |= 0x80;
    let mut no_question = good.clone();
    no_question[5] = 0;
    let mut too_many_records = good.clone();
    too_many_records[11] = 9;
    let pointer_as_name = hex("1234010000010000000000 00c00c00010001");
    for bad in [&good[..11], &good[..15], &response, &no_question, &too_many_records, &pointer_as_name, &[]] {
        assert_eq!(run(&world(), bad, Transport::Udp).0, Verdict::Ignore, "{bad:02x?}");
    }
}

#[test]
fn only_the_first_question_counts() {
    let mut message = Message::from_vec(&packet("b1", RecordType::A, None)).unwrap();
    message.add_query(Question::query(Name::from_ascii("b2").unwrap(), RecordType::A));
    let (verdict, out) = run(&world(), &message.to_vec().unwrap(), Transport::Udp);
    assert_eq!(verdict, Verdict::Local);
    let reply = Message::from_vec(&out).unwrap();
    assert_eq!((reply.queries.len(), reply.answers.len()), (1, 1));
}

#[test]
fn a_dot_inside_a_label_is_not_a_separator() {
    // One label "b1.mynet".
    let query = hex("1234010000010000000000000862312e6d796e65740000010001");
    assert_eq!(run(&world(), &query, Transport::Udp).0, Verdict::Forward);
}

#[test]
fn ten_thousand_names_are_all_found() {
    let view = crowd(10_000);
    for number in (0..10_000).step_by(97) {
        let expected = format!("10.{}.{}.1", number / 256, number % 256);
        assert_eq!(addresses(&view, &format!("T{number}")), [expected].into());
    }
}
