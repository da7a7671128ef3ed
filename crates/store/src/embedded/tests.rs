use futures::StreamExt;

use super::*;
use crate::{Event, Watched};

fn put(key: &str, value: &str) -> Write {
    Write::Put { key: key.into(), value: Bytes::copy_from_slice(value.as_bytes()) }
}

async fn store() -> (tempfile::TempDir, Embedded) {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(&dir.path().join("cluster.redb")).await.unwrap();
    (dir, store)
}

fn conflict(outcome: Result<u64, CommitError>) -> Expect {
    match outcome {
        Err(CommitError::Conflict(conflict)) => conflict.expected,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_commit_happens_only_when_everything_expected_holds() {
    let (_dir, store) = store().await;
    let absent = Expect::Absent("a".into());
    let first = store.commit(vec![absent.clone()], vec![put("a", "1")]).await.unwrap();
    assert_eq!(conflict(store.commit(vec![absent.clone()], vec![put("a", "2")]).await), absent);
    let stale = Expect::At("a".into(), first + 1);
    let refused = store.commit(vec![Expect::Exists("a".into()), stale.clone()], vec![put("b", "x")]).await;
    assert_eq!(conflict(refused), stale);
    let second = store.commit(vec![Expect::At("a".into(), first)], vec![put("a", "2")]).await.unwrap();
    assert!(second > first);
    let (revision, records) = store.list("").await.unwrap();
    assert_eq!(revision, second);
    assert_eq!(records, [Record { key: "a".into(), value: "2".into(), revision: second }]);
    let newer = Expect::NoneNewer("a".into(), first);
    assert_eq!(conflict(store.commit(vec![newer.clone()], vec![]).await), newer);
    store.commit(vec![Expect::NoneNewer("a".into(), second)], vec![put("c", "")]).await.unwrap();
}

#[tokio::test]
async fn reopening_finds_every_commit_and_goes_on_counting() {
    let (dir, store) = store().await;
    let path = dir.path().join("cluster.redb");
    let mut last = 0;
    for number in 0..20 {
        last = store.commit(vec![], vec![put(&format!("k/{number:02}"), "v")]).await.unwrap();
    }
    assert!(matches!(Embedded::open(&path).await, Err(Error::InUse { .. })));
    store.close().await.unwrap();
    assert!(matches!(store.list("").await, Err(Error::Closed)));
    let store = Embedded::open(&path).await.unwrap();
    let (revision, records) = store.list("k/").await.unwrap();
    assert_eq!((revision, records.len()), (last, 20));
    assert_eq!(store.commit(vec![], vec![put("k/20", "v")]).await.unwrap(), last + 1);
}

/// What was acknowledged is on disk: a copy of the file taken while the store is open, as after a
/// crash, holds it.
#[tokio::test]
async fn an_acknowledged_commit_survives_a_crash() {
    let (dir, store) = store().await;
    for number in 0..10 {
        store.commit(vec![], vec![put(&format!("k/{number}"), "v")]).await.unwrap();
        let copy = dir.path().join(format!("crash-{number}.redb"));
        std::fs::copy(dir.path().join("cluster.redb"), &copy).unwrap();
        let crashed = Embedded::open(&copy).await.unwrap();
        let (revision, records) = crashed.list("k/").await.unwrap();
        assert_eq!((revision, records.len()), (number + 1, number as usize + 1));
        crashed.close().await.unwrap();
    }
}

#[tokio::test]
async fn commits_sent_together_are_compared_in_turn() {
    let (_dir, store) = store().await;
    let claims = (0..50).map(|_| store.commit(vec![Expect::Absent("one".into())], vec![put("one", "")]));
    let outcomes = futures::future::join_all(claims).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
}

#[tokio::test]
async fn a_watch_sees_every_later_commit_on_its_prefix() {
    let (_dir, store) = store().await;
    let first = store.commit(vec![], vec![put("a/1", "x")]).await.unwrap();
    let mut watch = store.watch("a/", first);
    store.commit(vec![], vec![put("b/1", "x")]).await.unwrap();
    let second = store.commit(vec![], vec![put("a/2", "y"), put("b/2", "y")]).await.unwrap();
    let third = store.commit(vec![], vec![Write::Delete { key: "a/1".into() }]).await.unwrap();
    let record = Record { key: "a/2".into(), value: "y".into(), revision: second };
    let expected = [
        Watched::Changes { revision: second, events: vec![Event::Put(record)] },
        Watched::Changes { revision: third, events: vec![Event::Delete { key: "a/1".into() }] },
    ];
    for step in expected {
        assert_eq!(watch.next().await.unwrap(), step);
    }
    store.close().await.unwrap();
    assert_eq!(watch.next().await, None);
}

#[tokio::test]
async fn a_watch_from_before_the_history_says_so() {
    let (dir, store) = store().await;
    store.commit(vec![], vec![put("a", "")]).await.unwrap();
    store.commit(vec![], vec![put("a", "")]).await.unwrap();
    store.close().await.unwrap();
    let store = Embedded::open(&dir.path().join("cluster.redb")).await.unwrap();
    let mut watch = store.watch("", 1);
    assert_eq!(watch.next().await, Some(Watched::Gap));
    assert_eq!(watch.next().await, None);
}

#[tokio::test]
async fn a_newer_leader_fences_the_older_one_out() {
    let (_dir, store) = store().await;
    let old = store.campaign("manager", Duration::from_secs(1)).await.unwrap();
    store.commit(vec![old.expect()], vec![put("a", "")]).await.unwrap();
    let new = store.campaign("manager", Duration::from_secs(1)).await.unwrap();
    assert_eq!(conflict(store.commit(vec![old.expect()], vec![put("a", "")]).await), old.expect());
    store.commit(vec![new.expect()], vec![put("a", "")]).await.unwrap();
}

#[tokio::test]
async fn what_a_newer_build_wrote_is_refused() {
    let (dir, store) = store().await;
    store.close().await.unwrap();
    let path = dir.path().join("cluster.redb");
    let database = Database::create(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(META).unwrap().insert("schema", SCHEMA + 1).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let Err(error) = Embedded::open(&path).await else { panic!("opened") };
    assert!(error.to_string().contains("has schema 2, this build reads up to 1"), "{error}");
}
