use shoal_model::{Meta, Network, NetworkDriver, NetworkId, NetworkSpec, Object};

use super::*;

fn network(id: &str, version: u64) -> Object {
    let mut meta = Meta::new(Timestamp::UNIX_EPOCH);
    meta.version = version;
    Object::Network(Network {
        id: NetworkId::new(id),
        meta,
        spec: NetworkSpec {
            name: format!("net-{id}"),
            labels: Labels::new(),
            driver: NetworkDriver::Overlay,
            options: Labels::new(),
            internal: false,
            attachable: false,
            ingress: false,
            ipv6: false,
            pools: Vec::new(),
        },
        state: None,
    })
}

fn actions(before: &State, after: &State) -> Vec<(String, String)> {
    let told = differences(before, after, None, Timestamp::UNIX_EPOCH);
    told.into_iter().map(|event| (event.action, event.actor.id)).collect()
}

#[test]
fn what_appears_and_goes_is_told_once() {
    let empty = State::default();
    let mut one = empty.clone();
    one.put(network("a", 1));
    assert_eq!(actions(&empty, &one), [("create".to_owned(), "a".to_owned())]);
    assert_eq!(actions(&one, &one), []);
    assert_eq!(actions(&one, &empty), [("remove".to_owned(), "a".to_owned())]);
}

#[test]
fn a_listener_gets_what_was_kept_and_what_comes() {
    let log = EventLog::default();
    let event = |id: &str| swarm("network", "create", id, Labels::new(), Timestamp::UNIX_EPOCH);
    for n in 0..KEPT + 3 {
        log.publish(event(&n.to_string()));
    }
    let (kept, mut coming) = log.listen();
    assert_eq!((kept.len(), kept[0].actor.id.as_str()), (KEPT, "3"));
    log.publish(event("next"));
    assert_eq!(coming.try_recv().unwrap().actor.id, "next");
    assert!(coming.try_recv().is_err());
}

#[test]
fn filters_select_by_type_and_object() {
    let attributes = Labels::from([("name".to_owned(), "web".to_owned())]);
    let event = swarm("service", "create", "s1", attributes, Timestamp::UNIX_EPOCH);
    let check = |text: &str| wanted(&Filters::parse(Some(text), FILTERS).unwrap(), &event);
    assert!(check("{}"));
    assert!(check(r#"{"type":["service"],"event":["create"],"scope":["swarm"]}"#));
    assert!(check(r#"{"service":["web"]}"#) && check(r#"{"service":["s1"]}"#));
    assert!(!check(r#"{"service":["other"]}"#) && !check(r#"{"container":["web"]}"#));
    assert!(!check(r#"{"type":["network"]}"#));
}
