use super::*;
use crate::testing;

/// A task assigned while its network is being taken away must wait until it is there again.
#[test]
fn a_network_whose_removal_has_begun_is_not_counted_on() {
    let table = testing::table("n1", 3);
    let network = table.network.clone();
    let tables = Tables::new(vec![table.clone()]);
    let ready = |tables: &Tables| tables.are_ready(std::iter::once(&network));
    assert!(!ready(&tables), "stored, but not in force");
    tables.publish(network.clone(), Some(Arc::new(table.clone())));
    assert!(ready(&tables));

    tables.remove(&network);
    assert!(!ready(&tables), "on its way out");
    let (wishes, _) = tables.take(&Failures::new(), Instant::now());
    assert!(wishes.iter().all(|(_, wish)| wish.is_none()));
    tables.put(table.clone());
    assert!(!ready(&tables), "wanted again, but its removal has begun");

    let mut changes = tables.in_force();
    changes.mark_unchanged();
    tables.publish(network.clone(), Some(Arc::new(table.clone())));
    assert!(ready(&tables) && changes.has_changed().unwrap());

    // Taken away and wanted again before anything was done about it: nothing changes in force,
    // but who has seen it leave is woken.
    tables.remove(&network);
    changes.mark_unchanged();
    tables.put(table);
    assert!(ready(&tables) && changes.has_changed().unwrap());
}

#[test]
fn an_orphans_mark_lasts_until_the_tables_let_go_of_it() {
    let mut table = testing::table("n1", 3);
    let endpoint = EndpointId::new("t1");
    table.endpoints.insert(endpoint.clone(), testing::endpoint("node1", "10.0.1.5/24"));
    table.services.insert(shoal_model::ServiceId::new("s"), testing::service("web", None, &["t1"]));
    let tables = Tables::new(vec![table.clone()]);
    tables.mark(endpoint.clone(), Some(Mark { dead: true, orphan: true }));
    let (wishes, dead) = tables.take(&Failures::new(), Instant::now());
    let served = &wishes[0].1.as_ref().unwrap().served;
    assert!(served.services.values().all(|service| service.backends.is_empty()));
    assert!(dead.contains(&endpoint));
    table.endpoints.clear();
    tables.put(table);
    assert!(tables.take(&Failures::new(), Instant::now()).1.is_empty());
    assert!(lock(&tables.wishes).marks.is_empty());
}

#[test]
fn a_network_that_fails_keeps_no_other_waiting() {
    let tables = Tables::new(["bad", "good", "worse"].map(|id| testing::table(id, 1)).into());
    let now = Instant::now();
    let once = Failure::after(None, now);
    let again = Failure::after(Some(once), now);
    assert!(again.not_before > once.not_before);
    let failures = Failures::from([(NetworkId::new("bad"), once), (NetworkId::new("worse"), again)]);
    let taken = |at| -> Vec<String> {
        tables.take(&failures, at).0.into_iter().map(|(network, _)| network.to_string()).collect()
    };
    assert_eq!(taken(now), ["good"]);
    assert!(taken(now).is_empty());
    tables.put(testing::table("good", 2));
    assert_eq!(taken(again.not_before), ["good", "bad"], "one of the failed, after all others");
    assert_eq!(taken(again.not_before), ["worse"]);
}

#[test]
fn nothing_is_cleared_before_its_removal_is_done() {
    let table = testing::table("n1", 3);
    let network = table.network.clone();
    let tables = Tables::new(vec![table]);
    tables.clear();
    assert!(!tables.is_clear(), "its removal is to begin");
    tables.take(&Failures::new(), Instant::now());
    assert!(!tables.is_clear(), "its removal has begun");
    tables.done(network.clone(), false);
    assert!(!tables.is_clear(), "its removal has failed");
    tables.take(&Failures::new(), Instant::now());
    tables.done(network, true);
    assert!(tables.is_clear());
}
