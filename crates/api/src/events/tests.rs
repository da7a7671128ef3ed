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
            config_from: None,
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

fn task(state: TaskState, container: bool, exit_code: i32) -> Object {
    let mut status = shoal_model::TaskStatus::new(state, Timestamp::UNIX_EPOCH, "");
    status.container = container.then(|| shoal_model::ContainerStatus { id: "c1".into(), pid: 7, exit_code });
    Object::Task(Task {
        id: "t1".into(),
        meta: Meta::new(Timestamp::UNIX_EPOCH),
        service: "s1".into(),
        service_name: "web".to_owned(),
        service_labels: Default::default(),
        slot: 1,
        pinned: None,
        spec: shoal_model::TaskSpec {
            container: shoal_model::ContainerSpec { image: "busybox".to_owned(), ..Default::default() },
            resources: Default::default(),
            restart: Default::default(),
            placement: Default::default(),
            networks: Vec::new(),
            force_update: 0,
            log_options: Labels::new(),
        },
        ports: Vec::new(),
        node: Some("n1".into()),
        desired: TaskState::Running,
        status,
        attachments: Vec::new(),
        running_since: None,
        released: false,
        credentials: None,
        start_after: None,
        failures: Vec::new(),
        iteration: None,
    })
}

#[test]
fn a_container_s_life_is_told_whatever_is_missed_between() {
    let picture = |object: Option<Object>| {
        let mut state = State::default();
        object.into_iter().for_each(|object| state.put(object));
        state
    };
    let life = [
        (picture(None), vec![]),
        (picture(Some(task(TaskState::Preparing, false, 0))), vec![]),
        (picture(Some(task(TaskState::Starting, false, 0))), vec![]),
        (picture(Some(task(TaskState::Running, true, 0))), vec!["create", "start"]),
        (picture(Some(task(TaskState::Failed, true, 5))), vec!["die"]),
        (picture(None), vec!["destroy"]),
        (picture(Some(task(TaskState::Running, true, 0))), vec!["create", "start"]),
        (picture(None), vec!["die", "destroy"]),
    ];
    for pair in life.windows(2) {
        let told = differences(&pair[0].0, &pair[1].0, Some(&"n1".into()), Timestamp::UNIX_EPOCH);
        assert_eq!(told.iter().map(|event| event.action.as_str()).collect::<Vec<_>>(), pair[1].1);
        for event in &told {
            assert_eq!((event.kind, event.actor.id.as_str(), event.scope), ("container", "c1", "local"));
        }
        if pair[1].1 == ["die"] {
            assert_eq!(told[0].actor.attributes["exitCode"], "5");
        }
    }
    let elsewhere = differences(&life[0].0, &life[3].0, Some(&"n2".into()), Timestamp::UNIX_EPOCH);
    assert!(elsewhere.is_empty(), "containers of other nodes are their own to tell of");
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
