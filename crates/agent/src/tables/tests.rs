use super::*;
use crate::testing;

/// A task assigned while its network is being taken away must wait until it is there again.
#[test]
fn a_network_whose_removal_has_begun_is_not_counted_on() {
    let mut table = testing::table("n1", 3);
    let (network, endpoint) = (table.network.clone(), EndpointId::new("t1"));
    table.endpoints.insert(endpoint.clone(), testing::endpoint("node1", "10.0.1.5/24"));
    let tables = Tables::new(vec![table.clone()]);
    let ready = |tables: &Tables| tables.are_ready(&endpoint, std::iter::once(&network));
    assert!(!ready(&tables), "stored, but not in force");
    tables.publish(network.clone(), Some(Arc::new(table.clone())));
    assert!(ready(&tables));

    tables.remove(&network);
    assert!(!ready(&tables), "on its way out");
    let jobs = tables.take(&Failures::new(), Instant::now());
    assert!(jobs.iter().all(|job| job.wish.is_none()));
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

/// A node that had nothing on a network was not waited for when addresses of it were given to others.
#[test]
fn a_table_from_before_the_endpoint_is_not_enough() {
    let mut table = testing::table("n1", 3);
    let (network, endpoint) = (table.network.clone(), EndpointId::new("t1"));
    let tables = Tables::new(vec![table.clone()]);
    let ready = |tables: &Tables| tables.are_ready(&endpoint, std::iter::once(&network));
    tables.publish(network.clone(), Some(Arc::new(table.clone())));
    assert!(!ready(&tables), "an old table");
    table.endpoints.insert(endpoint.clone(), testing::endpoint("node1", "10.0.1.5/24"));
    tables.put(table.clone());
    assert!(!ready(&tables), "wanted, but not in force");
    tables.publish(network.clone(), Some(Arc::new(table)));
    assert!(ready(&tables));
}

/// Who waits looks whenever tables change, also while more of them come: neither stands in the other's way.
#[test]
fn who_waits_for_tables_holds_up_nobody_who_brings_them() {
    let table = testing::table("n1", 3);
    let (networks, endpoint) = ([table.network.clone()], EndpointId::new("t1"));
    let tables = Arc::new(Tables::new(vec![table.clone()]));
    let (brought, all_brought) = tokio::sync::oneshot::channel();
    let (ended, both_ended) = std::sync::mpsc::channel();
    let (bringer, told) = (tables.clone(), ended.clone());
    std::thread::spawn(move || {
        for _ in 0..50_000 {
            bringer.put(table.clone());
        }
        brought.send(()).unwrap();
        told.send(()).unwrap();
    });
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            tokio::select! {
                () = tables.ready(&endpoint, &networks) => panic!("the endpoint is in no table"),
                _ = all_brought => {}
            }
        });
        ended.send(()).unwrap();
    });
    for _ in 0..2 {
        both_ended.recv_timeout(Duration::from_secs(60)).expect("they wait for each other");
    }
}

#[test]
fn an_orphans_mark_lasts_until_the_tables_let_go_of_it() {
    let mut table = testing::table("n1", 3);
    let endpoint = EndpointId::new("t1");
    table.endpoints.insert(endpoint.clone(), testing::endpoint("node1", "10.0.1.5/24"));
    table.services.insert(shoal_model::ServiceId::new("s"), testing::service("web", None, &["t1"]));
    let tables = Tables::new(vec![table.clone()]);
    tables.mark(endpoint.clone(), Some(Mark { dead: true, orphan: true }));
    let jobs = tables.take(&Failures::new(), Instant::now());
    let served = &jobs[0].wish.as_ref().unwrap().served;
    assert!(served.services.values().all(|service| service.backends.is_empty()));
    assert!(jobs[0].dead.contains(&endpoint));
    tables.done(table.network.clone(), Outcome::InForce);
    table.endpoints.clear();
    tables.put(table);
    assert!(tables.take(&Failures::new(), Instant::now())[0].dead.is_empty());
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
        tables.take(&failures, at).into_iter().map(|job| job.network.to_string()).collect()
    };
    assert_eq!(taken(now), ["good"]);
    tables.put(testing::table("good", 2));
    assert!(taken(now).is_empty(), "one at a time for each network");
    tables.done("good".into(), Outcome::InForce);
    assert_eq!(taken(once.not_before), ["good", "bad"], "what failed comes when it is due, and last");
    assert_eq!(taken(again.not_before), ["worse"]);
}

#[test]
fn what_fails_never_takes_every_place() {
    let ids = |kind: &str, count: usize| -> BTreeSet<NetworkId> {
        (0..count).map(|number| NetworkId::new(format!("{kind}{number}"))).collect()
    };
    let now = Instant::now();
    let (failed, good) = (ids("failed", 2 * AT_ONCE), ids("good", 2 * AT_ONCE));
    let failures: Failures =
        failed.iter().map(|id| (id.clone(), Failure { not_before: now, pause: RETRY_FIRST })).collect();
    let at_work: BTreeSet<_> = next(&failed, &BTreeSet::new(), &failures, now).into_iter().collect();
    assert_eq!(at_work.len(), RETRIES_AT_ONCE);
    let dirty: BTreeSet<_> = failed.union(&good).cloned().collect();
    let more = next(&dirty, &at_work, &failures, now);
    assert_eq!(more.len(), AT_ONCE - RETRIES_AT_ONCE);
    assert!(more.iter().all(|network| good.contains(network)));
}

#[test]
fn a_network_is_settled_while_nothing_is_done_about_it() {
    let table = testing::table("n1", 3);
    let network = table.network.clone();
    let tables = Tables::new(vec![table.clone()]);
    assert!(tables.settled(&network).is_none(), "stored, but not in force");
    tables.take(&Failures::new(), Instant::now());
    let in_force = Arc::new(table.clone());
    tables.publish(network.clone(), Some(in_force.clone()));
    assert!(tables.settled(&network).is_none(), "still being worked on");
    tables.done(network.clone(), Outcome::InForce);
    assert!(Arc::ptr_eq(&tables.settled(&network).unwrap(), &in_force));
    tables.put(table);
    assert!(tables.settled(&network).is_none(), "about to be looked at");
}

#[tokio::test]
async fn a_renewed_network_is_looked_at_from_the_kernel_up() {
    let table = testing::table("n1", 3);
    let network = table.network.clone();
    let tables = Tables::new(vec![table]);
    tables.take(&Failures::new(), Instant::now());
    tables.done(network.clone(), Outcome::InForce);
    let networks = BTreeSet::from([network.clone()]);
    let worked = async {
        tables.wake.notified().await;
        let jobs = tables.take(&Failures::new(), Instant::now());
        assert!(jobs[0].doubted);
        tables.done(network.clone(), Outcome::InForce);
    };
    tokio::join!(tables.renew(&networks), worked);
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
    tables.done(network.clone(), Outcome::Failed);
    assert!(!tables.is_clear(), "its removal has failed");
    assert!(tables.settled(&network).is_none());
    tables.take(&Failures::new(), Instant::now());
    tables.done(network, Outcome::Gone);
    assert!(tables.is_clear());
}

/// Links and ports of the routing mesh have one place: the next network's must not be made before the last
/// one's are gone, or the removal takes them along.
#[test]
fn the_next_ingress_network_waits_until_nothing_is_left_of_the_last() {
    let carrier = |name: &str| {
        let mut table = testing::table(name, 1);
        table.config.ingress = true;
        table
    };
    let tables = Tables::new(vec![carrier("old"), testing::table("n1", 1)]);
    let taken = || -> Vec<String> {
        let jobs = tables.take(&Failures::new(), Instant::now());
        jobs.into_iter().map(|job| job.network.to_string()).collect()
    };
    assert_eq!(taken(), ["n1", "old"]);
    tables.done("old".into(), Outcome::InForce);
    tables.put(carrier("new"));
    tables.remove(&"old".into());
    assert_eq!(taken(), ["old"]);
    assert!(taken().is_empty());
    tables.done("old".into(), Outcome::Failed);
    assert_eq!(taken(), ["old"], "tried again");
    tables.done("old".into(), Outcome::Gone);
    assert_eq!(taken(), ["new"]);
    tables.done("new".into(), Outcome::InForce);
    tables.put(carrier("new"));
    assert_eq!(taken(), ["new"], "its own changes do not wait");
}

/// Brings every table into force at once, but for one network, on which the resolver hangs.
struct Hanging(NetworkId);

impl work::Force for Hanging {
    async fn on_this_node(&self, table: Arc<NetworkTable>) -> (Arc<NetworkTable>, Option<String>) {
        (table, None)
    }

    fn sweep(&self, _: &BTreeMap<NetworkId, Arc<NetworkTable>>) -> BTreeMap<NetworkId, plan::Held> {
        BTreeMap::new()
    }

    async fn perform(&self, job: &Job, held: &mut plan::Held) -> Result<()> {
        if job.network == self.0 {
            std::future::pending::<()>().await;
        }
        held.table = job.wish.as_ref().map(|wish| NetworkTable::clone(&wish.served));
        Ok(())
    }
}

#[tokio::test]
async fn a_network_that_hangs_keeps_no_other_waiting() {
    let tables = Tables::new(vec![testing::table("hangs", 1), testing::table("n1", 1)]);
    let closing = tokio_util::sync::CancellationToken::new();
    let follows = async {
        let mut in_force = tables.in_force();
        for revision in 1..=100 {
            tables.put(testing::table("n1", revision));
            let is_there = |tables: &InForce| {
                tables.get(&"n1".into()).is_some_and(|table| table.version.revision == revision)
            };
            in_force.wait_for(is_there).await.unwrap();
        }
        assert!(tables.settled(&"hangs".into()).is_none());
        closing.cancel();
    };
    let hanging = Hanging("hangs".into());
    let run = tables.run(&hanging, closing.clone());
    tokio::time::timeout(Duration::from_secs(20), async { tokio::join!(run, follows) }).await.unwrap();
}
