//! hickory-proto is the judge: what it writes we read alike.

use hickory_proto::op::{Message, MessageType, OpCode, Query as Question};
use hickory_proto::rr::rdata::{A, SOA, TXT};
use hickory_proto::rr::{Name, RData, Record};
use proptest::prelude::*;

use super::*;

fn query(name: &str) -> Message {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.add_query(Question::query(Name::from_ascii(name).unwrap(), RecordType::A));
    message
}

fn response(name: &str) -> Message {
    let mut message = query(name);
    message.metadata.message_type = MessageType::Response;
    message
}

fn soa(ttl: u32, minimum: u32) -> Record {
    let zone = Name::from_ascii("example.test.").unwrap();
    Record::from_rdata(zone.clone(), ttl, RData::SOA(SOA::new(zone.clone(), zone, 1, 2, 3, 4, minimum)))
}

fn lifetime(message: &Message) -> Option<Lifetime> {
    let bytes = message.to_vec().unwrap();
    Response::parse(&bytes).unwrap().lifetime()
}

#[test]
fn a_positive_answer_lives_as_long_as_its_shortest_record() {
    let mut message = response("a.example.test.");
    let name = Name::from_ascii("a.example.test.").unwrap();
    for ttl in [300, 20, 60] {
        message.add_answer(Record::from_rdata(name.clone(), ttl, RData::A(A::new(192, 0, 2, 1))));
    }
    assert_eq!(lifetime(&message), Some(Lifetime { seconds: 20, negative: false }));
}

#[test]
fn a_negative_answer_lives_as_its_soa_says() {
    let mut message = response("a.example.test.");
    message.metadata.response_code = ResponseCode::NXDomain;
    assert_eq!(lifetime(&message), None, "without an SOA it may not be kept");
    message.add_authority(soa(900, 30));
    assert_eq!(lifetime(&message), Some(Lifetime { seconds: 30, negative: true }));
    let mut no_data = response("a.example.test.");
    no_data.add_authority(soa(10, 30));
    assert_eq!(lifetime(&no_data), Some(Lifetime { seconds: 10, negative: true }));
}

#[test]
fn aging_touches_every_ttl_and_nothing_else() {
    let mut message = response("A.example.test.");
    let name = Name::from_ascii("a.example.test.").unwrap();
    message.add_answer(Record::from_rdata(name.clone(), 300, RData::A(A::new(192, 0, 2, 1))));
    message.add_answer(Record::from_rdata(name, 20, RData::TXT(TXT::new(vec!["text".into()]))));
    message.set_edns(hickory_proto::op::Edns::new());
    let asked = query("a.EXAMPLE.test.").to_vec().unwrap();
    let question = Query::parse(&asked).unwrap().question();
    let mut bytes = message.to_vec().unwrap();
    readdress(&mut bytes, 99, question, 30);
    let aged = Message::from_vec(&bytes).unwrap();
    assert_eq!(aged.metadata.id, 99);
    assert!(aged.queries[0].name.eq_case(&Name::from_ascii("a.EXAMPLE.test.").unwrap()));
    let ttls: Vec<u32> = aged.answers.iter().map(|record| record.ttl).collect();
    assert_eq!(ttls, [270, 0]);
    assert_eq!(aged.edns, message.edns);
}

#[test]
fn an_answer_must_repeat_its_question() {
    let asked = query("up.example.test.").to_vec().unwrap();
    let question = Query::parse(&asked).unwrap().question();
    let answers = |message: &Message| {
        let bytes = message.to_vec().unwrap();
        Response::parse(&bytes).is_some_and(|response| response.answers(question))
    };
    assert!(answers(&response("UP.example.test.")));
    assert!(!answers(&response("uq.example.test.")));
    assert!(!answers(&query("up.example.test.")), "a query is no answer");
    let mut other_type = response("up.example.test.");
    other_type.queries[0].set_query_type(RecordType::AAAA);
    assert!(!answers(&other_type));
    let mut bare = Message::new(7, MessageType::Response, OpCode::Query);
    assert!(!answers(&bare), "a success without its question could be anybody's");
    bare.metadata.response_code = ResponseCode::Refused;
    assert!(answers(&bare), "some servers fail before they read the question");
}

proptest! {
    #[test]
    fn names_are_read_as_hickory_writes_them(name in "[a-zA-Z0-9_]{1,63}(\\.[a-zA-Z0-9_]{1,20}){0,5}", kind in any::<u16>()) {
        let mut message = query(&name);
        message.queries[0].set_query_type(RecordType::from(kind));
        let bytes = message.to_vec().unwrap();
        let query = Query::parse(&bytes).unwrap();
        let mut buffer = NameBuffer::new();
        let lower = name.to_ascii_lowercase();
        prop_assert_eq!(query.name(&mut buffer), Some(&lower[..]));
        prop_assert_eq!(query.kind(), RecordType::from(kind));
        prop_assert!(query.is_internet());
    }

    #[test]
    fn names_are_written_as_hickory_reads_them(name in "[a-z0-9_-]{1,63}(\\.[a-z0-9_-]{1,20}){0,5}") {
        let bytes = name_bytes(&name).unwrap();
        let mut expected = Vec::new();
        for label in name.split('.') {
            expected.push(label.len() as u8);
            expected.extend(label.bytes());
        }
        expected.push(0);
        prop_assert_eq!(bytes, expected);
    }

    /// What a server sends with some of it wrong: it is passed on with the asker's id and spelling and nothing else
    /// changed, or not at all, and no walk over it leaves it.
    #[test]
    fn damaged_answers_are_survived(
        asked in "[a-z]{1,20}(\\.[a-z]{1,20}){0,3}",
        ttls in proptest::collection::vec(any::<u32>(), 0..6),
        negative in any::<bool>(),
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..6),
        cut in proptest::option::of(any::<proptest::sample::Index>()),
        age in any::<u32>(),
    ) {
        let mut message = response(&asked);
        let name = Name::from_ascii(&asked).unwrap();
        for ttl in ttls {
            message.add_answer(Record::from_rdata(name.clone(), ttl, RData::A(A::new(192, 0, 2, 1))));
        }
        if negative {
            message.add_authority(soa(30, 30));
        }
        let mut bytes = message.to_vec().unwrap();
        for (place, byte) in damage {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let upper = query(&asked.to_ascii_uppercase()).to_vec().unwrap();
        let question = Query::parse(&upper).unwrap().question();
        let Some(response) = Response::parse(&bytes) else { return Ok(()) };
        let _ = response.lifetime();
        if response.answers(question) {
            let mut passed_on = bytes.clone();
            readdress(&mut passed_on, 99, question, 0);
            prop_assert_eq!(passed_on.len(), bytes.len());
            prop_assert_eq!(&passed_on[..2], &99u16.to_be_bytes());
            let behind = HEADER_BYTES + question.len();
            if u16_at(&bytes, 4) == Some(1) {
                prop_assert_eq!(&passed_on[HEADER_BYTES..behind], question);
                prop_assert_eq!(&passed_on[behind..], &bytes[behind..]);
            }
        }
        readdress(&mut bytes, 99, question, age);
    }

    #[test]
    fn foreign_answers_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..400), age in any::<u32>()) {
        let mut bytes = bytes;
        if let Some(response) = Response::parse(&bytes) {
            let _ = (response.answers(&[1, b'a', 0, 0, 1, 0, 1]), response.lifetime(), response.code());
        }
        readdress(&mut bytes, 1, &[1, b'a', 0, 0, 1, 0, 1], age);
    }
}

#[test]
fn impossible_names_are_not_written() {
    let too_long = ["a"; 130].join(".");
    for bad in ["", "a..b", ".", &"x".repeat(64), &too_long] {
        assert_eq!(name_bytes(bad), None, "{bad:?}");
    }
}
