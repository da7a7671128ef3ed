use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as Question};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::*;

fn query(name: &str) -> Message {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.add_query(Question::query(Name::from_ascii(name).unwrap(), RecordType::A));
    message
}

fn reply(name: &str, ttl: u32) -> Message {
    let mut message = query(name);
    message.metadata.message_type = MessageType::Response;
    let owner = Name::from_ascii(name).unwrap();
    message.add_answer(Record::from_rdata(owner, ttl, RData::A(A::new(192, 0, 2, 1))));
    message
}

struct Rig {
    cache: Cache,
    now: Instant,
}

impl Rig {
    fn new() -> Self {
        Self { cache: Cache::default(), now: Instant::now() }
    }

    fn keep(&mut self, query: &Message, reply: &Message) {
        let query = query.to_vec().unwrap();
        let key = key(&Query::parse(&query).unwrap()).unwrap();
        self.cache.put(key, &reply.to_vec().unwrap(), self.now);
    }

    fn recall(&mut self, query: &Message, limit: usize) -> Option<Message> {
        let query = query.to_vec().unwrap();
        let query = Query::parse(&query).unwrap();
        let mut out = Vec::new();
        let hit = key(&query).is_some_and(|key| self.cache.get(&key, &query, limit, self.now, &mut out));
        hit.then(|| Message::from_vec(&out).unwrap())
    }
}

#[test]
fn answers_age_and_end() {
    let mut rig = Rig::new();
    rig.keep(&query("a.test."), &reply("a.test.", 100));
    rig.now += Duration::from_secs(30);
    let mut other_spelling = query("A.test.");
    other_spelling.metadata.id = 99;
    let hit = rig.recall(&other_spelling, 512).unwrap();
    assert_eq!((hit.metadata.id, hit.answers[0].ttl), (99, 70));
    assert!(hit.queries[0].name.eq_case(&Name::from_ascii("A.test.").unwrap()));
    rig.now += Duration::from_secs(70);
    assert!(rig.recall(&query("a.test."), 512).is_none());
}

#[test]
fn errors_cut_and_short_lived_answers_are_not_kept() {
    let mut rig = Rig::new();
    let mut failed = reply("a.test.", 100);
    failed.metadata.response_code = ResponseCode::ServFail;
    let mut cut = reply("a.test.", 100);
    cut.metadata.truncation = true;
    for bad in [failed, cut, reply("a.test.", 0)] {
        rig.keep(&query("a.test."), &bad);
        assert!(rig.recall(&query("a.test."), 512).is_none());
    }
}

#[test]
fn what_changes_the_answer_keeps_answers_apart() {
    let mut rig = Rig::new();
    rig.keep(&query("a.test."), &reply("a.test.", 100));
    let mut recursive = query("a.test.");
    recursive.metadata.recursion_desired = true;
    let mut with_edns = query("a.test.");
    with_edns.set_edns(Edns::new());
    let mut other_type = query("a.test.");
    other_type.queries[0].set_query_type(RecordType::AAAA);
    for other in [recursive, with_edns, other_type, query("b.test.")] {
        assert!(rig.recall(&other, 512).is_none());
    }
    assert!(rig.recall(&query("a.test."), 20).is_none(), "too large for this client");
}

#[test]
fn memory_is_bounded_and_what_is_used_stays() {
    let mut rig = Rig::new();
    rig.keep(&query("used.test."), &reply("used.test.", 3000));
    for number in 0..60_000 {
        let name = format!("n{number}.test.");
        rig.keep(&query(&name), &reply(&name, 3000));
        if number % 1000 == 0 {
            assert!(rig.recall(&query("used.test."), 512).is_some(), "after {number}");
        }
    }
    assert!(rig.recall(&query("n0.test."), 512).is_none());
    let entries = rig.cache.young.len() + rig.cache.old.len();
    assert!(entries < 2 * GENERATION_BYTES / OVERHEAD_BYTES, "{entries}");
}
