use jiff::Timestamp;
use shoal_model::{EndpointSpec, Meta, NetworkTarget, ServiceEndpoint, ServiceMode, ServiceSpec, TaskSpec};

use super::*;

fn service(id: &str, name: &str, network: &str) -> Service {
    Service {
        id: id.into(),
        meta: Meta::new(Timestamp::UNIX_EPOCH),
        spec: ServiceSpec {
            name: name.into(),
            labels: Default::default(),
            task: TaskSpec {
                container: Default::default(),
                resources: Default::default(),
                restart: Default::default(),
                placement: Default::default(),
                networks: vec![NetworkTarget { network: network.into(), aliases: vec![] }],
                force_update: 0,
                log_options: Default::default(),
            },
            mode: ServiceMode::Replicated { replicas: 1 },
            update: None,
            rollback: None,
            endpoint: EndpointSpec::default(),
        },
        previous: None,
        endpoint: ServiceEndpoint::default(),
        removing: false,
        allocation_error: String::new(),
        update_status: None,
        job: None,
        credentials: None,
    }
}

fn stored(service: &Service, revision: u64) -> Event {
    let object = Object::Service(service.clone());
    Event::Put(Record { key: object.key().path(), value: State::encode(&object), revision })
}

#[test]
fn indexes_follow_every_change_and_copies_keep_what_they_saw() {
    let mut state = State::default();
    let mut web = service("s1", "Web", "n1");
    state.apply(4, &[stored(&web, 4)]).unwrap();
    let before = state.clone();
    assert_eq!(state.service_named("web").map(|found| found.meta.version), Some(4));
    assert_eq!((state.network_revision(&"n1".into()), state.network_revision(&"n2".into())), (4, 0));

    web.spec.task.networks[0].network = "n2".into();
    state.apply(5, &[stored(&web, 5)]).unwrap();
    assert_eq!(state.network_services(&"n1".into()).count(), 0);
    assert_eq!(state.network_services(&"n2".into()).count(), 1);
    assert_eq!((state.network_revision(&"n1".into()), state.network_revision(&"n2".into())), (5, 5));

    web.removing = true;
    state.apply(6, &[stored(&web, 6)]).unwrap();
    assert_eq!((state.services().count(), state.all_services().count()), (0, 1));
    assert!(state.service_named("web").is_none());
    // The name is free: another service takes it, and keeps it when the old one goes.
    state.apply(7, &[stored(&service("s2", "web", "n1"), 7)]).unwrap();
    state.apply(8, &[Event::Delete { key: "object/service/s1".into() }]).unwrap();
    assert_eq!(state.service_named("WEB").map(|found| found.id.clone()), Some("s2".into()));

    assert_eq!((before.revision(), before.services().count()), (4, 1));
    assert_eq!(before.network_services(&"n1".into()).count(), 1);
}

#[test]
fn an_unreadable_record_is_named() {
    let record = Record { key: "object/service/s1".into(), value: "{".into(), revision: 1 };
    let Err(error) = State::load(1, &[record]) else { panic!("loaded") };
    assert_eq!(error.to_string(), "unreadable record object/service/s1");
}
