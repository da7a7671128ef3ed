//! Docker's answers where we answer as Docker does, our own where we differ on purpose.

use std::collections::{BTreeMap, BTreeSet};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as Question};
use hickory_proto::rr::{DNSClass, Name, RData};
use rand::SeedableRng;
use rand::rngs::StdRng;
use shoal_model::{
    EndpointEntry, EndpointId, MacAddr, NetworkId, NetworkTable, NodeId, ServiceEntry, ServiceId,
    TableConfig, TableVersion,
};

use super::*;

mod names;
mod packets;
mod properties;

// === a small world ===

fn table(name: &str) -> NetworkTable {
    NetworkTable {
        network: NetworkId::new(format!("id-of-{name}")),
        version: TableVersion { epoch: 1, revision: 1 },
        config: TableConfig {
            name: name.to_owned(),
            vni: 4097,
            pools: Vec::new(),
            internal: false,
            ingress: false,
            mtu: None,
            data_path_port: 4789,
            driver: Default::default(),
            config_from: None,
            shown: Default::default(),
        },
        services: BTreeMap::new(),
        endpoints: BTreeMap::new(),
        nodes: BTreeMap::new(),
    }
}

fn endpoint(table: &mut NetworkTable, id: &str, address: &str, names: &[&str]) {
    let entry = EndpointEntry {
        node: NodeId::new("node"),
        address: address.parse().unwrap(),
        address_v6: None,
        mac: MacAddr([2, 0, 0, 0, 0, 1]),
        names: names.iter().map(|name| (*name).to_owned()).collect(),
    };
    table.endpoints.insert(EndpointId::new(id), entry);
}

fn service(table: &mut NetworkTable, name: &str, aliases: &[&str], vip: Option<&str>, backends: &[&str]) {
    let entry = ServiceEntry {
        name: name.to_owned(),
        aliases: aliases.iter().map(|alias| (*alias).to_owned()).collect(),
        vip: vip.map(|vip| vip.parse().unwrap()),
        vip_v6: None,
        ports: Vec::new(),
        backends: backends.iter().map(|id| EndpointId::new(*id)).collect(),
        others: Default::default(),
        policy: Default::default(),
    };
    table.services.insert(ServiceId::new(format!("id-of-{name}")), entry);
}

/// The networks of `golden/dns`: `mynet` with a VIP service and a dnsrr one, plain container `b1`.
fn mynet() -> NetworkTable {
    let mut table = table("mynet");
    endpoint(&mut table, "t1", "10.0.1.18/24", &["myservice.2.141zgt", "5a08ed112e50"]);
    endpoint(&mut table, "t2", "10.0.1.21/24", &["myservice.1.or6pqj", "7ee0d610bbaa"]);
    service(&mut table, "myservice", &["web"], Some("10.0.1.2"), &["t1", "t2"]);
    endpoint(&mut table, "r1", "10.0.1.20/24", &["rr.1.p8z2lv", "642b81c7a477", "h-1"]);
    endpoint(&mut table, "r2", "10.0.1.22/24", &["rr.2.mvx5z3", "cdfce679554a", "h-2"]);
    endpoint(&mut table, "r3", "10.0.1.19/24", &["rr.3.18end3", "e557826268f1", "h-3"]);
    service(&mut table, "rr", &["rralias"], None, &["r1", "r2", "r3"]);
    service(&mut table, "idle", &[], Some("10.0.1.3"), &[]);
    service(&mut table, "idle-rr", &[], None, &[]);
    endpoint(&mut table, "b1", "10.0.1.30/24", &["b1", "shared", "only1", "966be968e2a1", "B3_Mixed"]);
    endpoint(&mut table, "b2", "10.0.1.31/24", &["b2", "shared", "79b7212764d9"]);
    table
}

fn world() -> View {
    View::of([Names::from_table(&mynet())])
}

// === asking ===

fn packet(name: &str, kind: RecordType, edns: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let name = Name::from_ascii(name).unwrap();
    message.add_query(Question::query(name, kind));
    if let Some(bytes) = edns {
        let mut edns = Edns::new();
        edns.set_max_payload(bytes);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

fn run(view: &View, packet: &[u8], transport: Transport) -> (Verdict, Vec<u8>) {
    let mut out = Vec::new();
    let verdict = answer(view, packet, transport, &mut StdRng::seed_from_u64(7), &mut out);
    (verdict, out)
}

/// The reply to a question that must be answered here.
fn ask(view: &View, name: &str, kind: RecordType) -> Message {
    let (verdict, out) = run(view, &packet(name, kind, None), Transport::Udp);
    assert_eq!(verdict, Verdict::Local, "{name} {kind}");
    let reply = Message::from_vec(&out).unwrap();
    assert_eq!(reply.metadata.id, 0x1234);
    assert!(reply.metadata.recursion_available && reply.metadata.recursion_desired);
    assert!(!reply.metadata.authoritative);
    reply
}

fn addresses(view: &View, name: &str) -> BTreeSet<String> {
    let reply = ask(view, name, RecordType::A);
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError, "{name}");
    reply.answers.iter().map(|record| record.data.to_string()).collect()
}

fn ttls(view: &View, name: &str) -> BTreeSet<u32> {
    ask(view, name, RecordType::A).answers.iter().map(|record| record.ttl).collect()
}

fn set(items: &[&str]) -> BTreeSet<String> {
    items.iter().map(|item| (*item).to_owned()).collect()
}

fn forwards(view: &View, name: &str, kind: RecordType) -> bool {
    run(view, &packet(name, kind, None), Transport::Udp).0 == Verdict::Forward
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b' ').collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}
