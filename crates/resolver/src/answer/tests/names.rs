use super::*;

// === names that resolve ===

#[test]
fn every_name_form_resolves() {
    let view = world();
    let tasks = ["10.0.1.18", "10.0.1.21"];
    let rr = ["10.0.1.19", "10.0.1.20", "10.0.1.22"];
    let rows: &[(&str, &[&str])] = &[
        ("myservice", &["10.0.1.2"]),
        ("web", &["10.0.1.2"]),
        ("tasks.myservice", &tasks),
        ("tasks.web", &tasks),
        ("rr", &rr),
        ("rralias", &rr),
        ("tasks.rr", &rr),
        ("tasks.rralias", &rr),
        ("rr.1.p8z2lv", &["10.0.1.20"]),
        ("642b81c7a477", &["10.0.1.20"]),
        ("h-1", &["10.0.1.20"]),
        ("b1", &["10.0.1.30"]),
        ("only1", &["10.0.1.30"]),
        ("966be968e2a1", &["10.0.1.30"]),
        ("shared", &["10.0.1.30", "10.0.1.31"]),
        ("b1.", &["10.0.1.30"]),
        ("B1", &["10.0.1.30"]),
        ("b3_mixed", &["10.0.1.30"]),
        ("B3_Mixed", &["10.0.1.30"]),
        ("TASKS.rr", &rr),
    ];
    for (name, expected) in rows {
        assert_eq!(addresses(&view, name), set(expected), "{name}");
        let qualified = format!("{}.MyNet.", name.trim_end_matches('.'));
        assert_eq!(addresses(&view, &qualified), set(expected), "{qualified}");
    }
}

#[test]
fn services_have_both_families_where_their_network_has() {
    let mut table = mynet();
    for (id, address) in [("t1", "fd00::12/64"), ("t2", "fd00::15/64"), ("r1", "fd00::14/64")] {
        table.endpoints.get_mut(&EndpointId::new(id)).unwrap().address_v6 = address.parse().ok();
    }
    table.services.get_mut(&ServiceId::new("id-of-myservice")).unwrap().vip_v6 = "fd00::2".parse().ok();
    let view = View::of([Names::from_table(&table)]);
    let rows: &[(&str, u32, &[&str])] = &[
        ("myservice", 10, &["fd00::2"]),
        ("web", 10, &["fd00::2"]),
        ("tasks.myservice", 2, &["fd00::12", "fd00::15"]),
        ("rr", 2, &["fd00::14"]),
        ("myservice.2.141zgt", 2, &["fd00::12"]),
    ];
    for (name, ttl, expected) in rows {
        let answers = ask(&view, name, RecordType::AAAA).answers;
        let mut seen: Vec<String> = answers.iter().map(|record| record.data.to_string()).collect();
        seen.sort();
        assert_eq!(seen, *expected, "{name}");
        assert!(answers.iter().all(|record| record.ttl == *ttl), "{name}");
    }
    assert_eq!(addresses(&view, "myservice"), set(&["10.0.1.2"]), "the other family is as it was");
}

#[test]
fn names_that_are_not_ours_are_forwarded() {
    let view = world();
    for name in [
        "nosuch",
        "tasks.nosuch",
        "tasks.b1",
        "rr.1",
        "b1.nosuchnet",
        "mynet",
        "966be968",
        "966be968e2a1ad66b2b2c1d1ad33fe1f7c0b9f5049f03cfe03b5ff02e46afd9",
        "up.example.test",
        "localhost",
        ".",
    ] {
        assert!(forwards(&view, name, RecordType::A), "{name}");
    }
    assert!(forwards(&view, "4.4.8.8.in-addr.arpa", RecordType::PTR));
}

#[test]
fn owned_names_have_no_data_for_other_types_and_never_leak() {
    let view = world();
    for kind in [
        RecordType::AAAA,
        RecordType::MX,
        RecordType::TXT,
        RecordType::SRV,
        RecordType::SOA,
        RecordType::NS,
        RecordType::CNAME,
        RecordType::HTTPS,
        RecordType::SVCB,
        RecordType::PTR,
        RecordType::Unknown(64_999),
    ] {
        for name in ["myservice", "rr", "tasks.rr", "b1", "b1.mynet", "idle-rr"] {
            let reply = ask(&view, name, kind);
            assert_eq!(reply.metadata.response_code, ResponseCode::NoError, "{name} {kind}");
            assert!(reply.answers.is_empty() && reply.authorities.is_empty(), "{name} {kind}");
        }
    }
    assert_eq!(ask(&view, "rr", RecordType::ANY).answers.len(), 3);
}

#[test]
fn another_class_of_an_owned_name_has_no_data() {
    let mut message = Message::new(1, MessageType::Query, OpCode::Query);
    let mut question = Question::query(Name::from_ascii("b1").unwrap(), RecordType::A);
    question.set_query_class(DNSClass::CH);
    message.add_query(question);
    let (verdict, out) = run(&world(), &message.to_vec().unwrap(), Transport::Udp);
    assert_eq!(verdict, Verdict::Local);
    assert!(Message::from_vec(&out).unwrap().answers.is_empty());
}

#[test]
fn services_without_tasks_keep_their_names() {
    let view = world();
    assert_eq!(addresses(&view, "idle"), set(&["10.0.1.3"]));
    for name in ["tasks.idle", "idle-rr", "tasks.idle-rr"] {
        assert_eq!(addresses(&view, name), set(&[]), "{name}");
    }
}

#[test]
fn ttls_say_how_long_an_answer_is_good() {
    let view = world();
    assert_eq!(ttls(&view, "myservice"), [10].into());
    for name in ["rr", "tasks.myservice", "b1", "rr.1.p8z2lv"] {
        assert_eq!(ttls(&view, name), [2].into(), "{name}");
    }
}

#[test]
fn several_holders_of_one_name_are_answered_together() {
    let mut table = mynet();
    service(&mut table, "b1", &["only1"], Some("10.0.1.4"), &[]);
    service(&mut table, "other", &["web"], Some("10.0.1.5"), &["t1"]);
    let view = View::of([Names::from_table(&table)]);
    assert_eq!(addresses(&view, "b1"), set(&["10.0.1.30", "10.0.1.4"]));
    assert_eq!(ttls(&view, "b1"), [2].into(), "the shortest life counts");
    assert_eq!(addresses(&view, "web"), set(&["10.0.1.2", "10.0.1.5"]));
    for name in ["tasks.web", "all.web"] {
        assert_eq!(addresses(&view, name), set(&["10.0.1.18", "10.0.1.21"]), "without repetition");
    }
    let mut table = mynet();
    service(&mut table, "other", &["rralias"], None, &["t1"]);
    let view = View::of([Names::from_table(&table)]);
    assert_eq!(addresses(&view, "all.rralias").len(), 4, "the tasks of both");
}

#[test]
fn a_link_leads_to_the_other_name_also_of_one_network() {
    let links = [("partner".to_owned(), "b1".to_owned()), ("b2".to_owned(), "b1".to_owned())];
    let view = View { links: std::sync::Arc::new(links.into()), ..world() };
    for name in ["partner", "PARTNER.mynet", "b2", "b2.mynet", "b1"] {
        assert_eq!(addresses(&view, name), set(&["10.0.1.30"]), "{name}");
    }
    assert!(forwards(&view, "partner.othernet", RecordType::A));
    assert!(forwards(&world(), "partner", RecordType::A));
}

#[test]
fn an_endpoint_out_of_service_has_no_names() {
    let withdrawn = [EndpointId::new("r1")].into();
    let view = View::of([Names::from_table(&mynet().without(&withdrawn))]);
    assert_eq!(addresses(&view, "rr"), set(&["10.0.1.19", "10.0.1.22"]));
    assert!(forwards(&view, "rr.1.p8z2lv", RecordType::A));
    let reply = ask(&view, "20.1.0.10.in-addr.arpa", RecordType::PTR);
    assert!(reply.answers.is_empty(), "its address is ours all the same");
}

// === several networks ===

fn two_networks() -> (Names, Names) {
    let mut front = table("front");
    endpoint(&mut front, "a", "10.1.0.2/24", &["both", "a.b"]);
    front.endpoints.get_mut(&EndpointId::new("a")).unwrap().address_v6 = None;
    let mut back = table("back.net");
    endpoint(&mut back, "b", "10.2.0.2/24", &["both", "onlyback", "a"]);
    back.endpoints.get_mut(&EndpointId::new("b")).unwrap().address_v6 = Some("fd00::2/64".parse().unwrap());
    (Names::from_table(&front), Names::from_table(&back))
}

#[test]
fn the_first_network_that_knows_a_name_answers_for_all_types() {
    let (front, back) = two_networks();
    let view = View::of([front.clone(), back.clone()]);
    assert_eq!(addresses(&view, "both"), set(&["10.1.0.2"]));
    assert!(ask(&view, "both", RecordType::AAAA).answers.is_empty());
    assert_eq!(ask(&view, "onlyback", RecordType::AAAA).answers.len(), 1);
    let turned = View::of([back, front]);
    assert_eq!(addresses(&turned, "both"), set(&["10.2.0.2"]));
    assert_eq!(ask(&turned, "both", RecordType::AAAA).answers.len(), 1);
}

#[test]
fn a_network_suffix_restricts_to_that_network() {
    let (front, back) = two_networks();
    let view = View::of([front, back]);
    assert_eq!(addresses(&view, "both.front"), set(&["10.1.0.2"]));
    assert_eq!(addresses(&view, "both.back.net"), set(&["10.2.0.2"]), "network names may contain dots");
    assert_eq!(addresses(&view, "a.b.front"), set(&["10.1.0.2"]), "and so may names");
    assert!(forwards(&view, "onlyback.front", RecordType::A));
    assert!(forwards(&view, "both.net", RecordType::A));
}

#[test]
fn names_are_scoped_to_the_askers_networks() {
    let (front, back) = two_networks();
    let view = View::of([front]);
    assert!(forwards(&view, "onlyback", RecordType::A));
    assert!(forwards(&view, "both.back.net", RecordType::A));
    assert!(forwards(&view, "2.0.2.10.in-addr.arpa", RecordType::PTR));
    assert_eq!(addresses(&View::of([back]), "onlyback"), set(&["10.2.0.2"]));
}

#[test]
fn the_ingress_network_has_no_names() {
    let mut table = mynet();
    table.config.ingress = true;
    let view = View::of([Names::from_table(&table)]);
    assert!(forwards(&view, "myservice", RecordType::A));
    assert!(forwards(&view, "b1.mynet", RecordType::A));
    assert!(forwards(&view, "30.1.0.10.in-addr.arpa", RecordType::PTR));
}

// === PTR and SRV ===

#[test]
fn addresses_lead_back_to_the_primary_name() {
    let mut table = mynet();
    table.endpoints.get_mut(&EndpointId::new("b1")).unwrap().address_v6 =
        Some("fd00::1e/64".parse().unwrap());
    let view = View::of([Names::from_table(&table)]);
    let v6 = "e.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.D.f.ip6.arpa";
    for (name, expected) in [
        ("30.1.0.10.in-addr.arpa", "b1.mynet."),
        ("20.1.0.10.IN-ADDR.arpa", "rr.1.p8z2lv.mynet."),
        ("2.1.0.10.in-addr.arpa", "myservice.mynet."),
        (v6, "b1.mynet."),
    ] {
        let reply = ask(&view, name, RecordType::PTR);
        let answers: Vec<String> = reply.answers.iter().map(|record| record.data.to_string()).collect();
        assert_eq!(answers, [expected], "{name}");
        assert!(ask(&view, name, RecordType::A).answers.is_empty(), "{name}");
    }
}

#[test]
fn malformed_reverse_names_are_forwarded() {
    for name in [
        "in-addr.arpa",
        "1.0.10.in-addr.arpa",
        "030.1.0.10.in-addr.arpa",
        "256.1.0.10.in-addr.arpa",
        "1.30.1.0.10.in-addr.arpa",
        "1.0.ip6.arpa",
    ] {
        assert!(forwards(&world(), name, RecordType::PTR), "{name}");
    }
}

#[test]
fn srv_names_with_a_port_lead_to_every_holder() {
    let view = world();
    let reply = ask(&view, "_8080._tcp.rr", RecordType::SRV);
    let targets: BTreeSet<String> = reply
        .answers
        .iter()
        .map(|record| match &record.data {
            RData::SRV(srv) => format!("{}:{}", srv.target, srv.port),
            other => panic!("{other}"),
        })
        .collect();
    let expected = ["rr.1.p8z2lv.mynet.:8080", "rr.2.mvx5z3.mynet.:8080", "rr.3.18end3.mynet.:8080"];
    assert_eq!(targets, set(&expected));
    assert_eq!(reply.additionals.len(), 3, "with their addresses");
    let vip = ask(&view, "_53._udp.myservice.mynet", RecordType::SRV);
    assert_eq!(vip.answers.len(), 1);
    assert_eq!(vip.additionals[0].data.to_string(), "10.0.1.2");
}

#[test]
fn srv_names_without_a_port_number_have_no_data() {
    let view = world();
    for name in ["_http._tcp.b1", "_99999._tcp.b1", "_80._tcp.idle-rr"] {
        assert!(ask(&view, name, RecordType::SRV).answers.is_empty(), "{name}");
    }
    assert!(ask(&view, "_80._tcp.b1", RecordType::A).answers.is_empty());
    assert!(forwards(&view, "_80._tcp.nosuch", RecordType::SRV));
    assert!(forwards(&view, "_80._sctp.b1", RecordType::SRV));
}
