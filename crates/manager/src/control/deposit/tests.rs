//! SwarmKit's rules for secrets and configs, word for word (golden `24-*`).

use shoal_model::{DepositFile, Service};

use super::*;
use crate::plan::tests::{World, spec};

struct Vault {
    world: World,
    key: ClusterKey,
    _dir: tempfile::TempDir,
}

impl Vault {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = ClusterKey::create(&dir.path().join("key")).unwrap();
        let mut world = World::new(2);
        world.settle();
        Self { world, key, _dir: dir }
    }

    fn put(&mut self, kind: DepositKind, name: &str, value: &[u8]) -> Result<DepositId, ControlError> {
        let Self { world, key, .. } = self;
        world.control(|draft, now, ids| create(draft, now, ids, spec_of(kind, name), value, key))
    }

    fn secret(&mut self, name: &str) -> DepositId {
        self.put(DepositKind::Secret, name, b"hush").unwrap()
    }

    fn refusal(&mut self, kind: DepositKind, name: &str, value: &[u8]) -> (Code, String) {
        let error = self.put(kind, name, value).unwrap_err();
        (error.code, error.message)
    }

    fn drop(&mut self, id: &DepositId) -> Result<(), ControlError> {
        self.world.control(|draft, _, _| remove(draft, DepositKind::Secret, id))
    }

    fn service(&mut self, references: Vec<DepositReference>) -> Result<shoal_model::ServiceId, ControlError> {
        let mut declared = spec("web", 1, &[]);
        declared.task.container.secrets = references;
        self.world.service(declared)
    }
}

fn spec_of(kind: DepositKind, name: &str) -> DepositSpec {
    DepositSpec { kind, name: name.into(), labels: Labels::new(), templated: false }
}

fn reference(id: &DepositId, name: &str, file: &str) -> DepositReference {
    let file = DepositFile { name: file.into(), uid: 0, gid: 0, mode: 0o444 };
    DepositReference { deposit: id.clone(), name: name.into(), file }
}

#[test]
fn names_and_sizes_are_swarmkits() {
    let mut vault = Vault::new();
    let invalid = "invalid name, only 64 [a-zA-Z0-9-_.] characters allowed, and the start and end character must be \
                   [a-zA-Z0-9]";
    for bad in ["-a", "a-", "a b", "a/b", ".a", &"a".repeat(65)] {
        let refused = vault.refusal(DepositKind::Config, bad, b"x");
        assert_eq!(refused, (Code::InvalidArgument, invalid.into()), "{bad}");
    }
    assert_eq!(vault.refusal(DepositKind::Config, "", b"x").1, "name must be provided");
    let secret = "secret data must be larger than 0 and less than 512000 bytes";
    let config = "config data must be larger than 0 and less than 1024000 bytes";
    assert_eq!(vault.refusal(DepositKind::Secret, "s", b"").1, secret);
    assert_eq!(vault.refusal(DepositKind::Secret, "s", &[1; 512_000]).1, secret);
    assert_eq!(vault.refusal(DepositKind::Config, "s", &[1; 1_024_000]).1, config);
    vault.put(DepositKind::Secret, "a_b.c-D9", &[1; 511_999]).unwrap();
    vault.put(DepositKind::Config, &"a".repeat(64), &[1; 1_023_999]).unwrap();
}

#[test]
fn a_name_is_one_secrets_and_may_be_a_configs_too() {
    let mut vault = Vault::new();
    vault.secret("sec1");
    let taken = vault.refusal(DepositKind::Secret, "sec1", b"x");
    assert_eq!(taken, (Code::AlreadyExists, "secret sec1 already exists".into()));
    assert_eq!(vault.refusal(DepositKind::Secret, "SEC1", b"x").0, Code::AlreadyExists);
    vault.put(DepositKind::Config, "sec1", b"x").unwrap();
}

#[test]
fn the_store_holds_no_value_that_can_be_read() {
    let mut vault = Vault::new();
    let id = vault.put(DepositKind::Secret, "sec1", b"correct horse").unwrap();
    let other = vault.secret("sec2");
    let held = Deposit::clone(vault.world.state.deposit(&id).unwrap());
    let stored = State::encode(&Object::Deposit(held.clone()));
    assert!(!String::from_utf8_lossy(&stored).contains("correct horse"));
    assert_eq!(open(&held, &vault.key).unwrap(), b"correct horse");
    let swapped = Deposit { id: other, ..held };
    assert!(open(&swapped, &vault.key).is_err(), "a value opens under its own id only");
}

#[test]
fn labels_are_all_that_changes() {
    let mut vault = Vault::new();
    let id = vault.secret("sec1");
    let version = vault.world.state.deposit(&id).unwrap().meta.version;
    let Vault { world, key, .. } = &mut vault;
    let mut change = |version, spec: DepositSpec, value: Option<&[u8]>| {
        world.control(|draft, _, _| update(draft, &id, version, spec, value, key))
    };
    let only = "only updates to Labels are allowed";
    let other = spec_of(DepositKind::Secret, "sec2");
    assert_eq!(change(version, other, None).unwrap_err().message, only);
    let same = spec_of(DepositKind::Secret, "sec1");
    assert_eq!(change(version, same.clone(), Some(b"new")).unwrap_err().message, only);
    assert_eq!(change(version + 1, same.clone(), None).unwrap_err().code, Code::OutOfSequence);
    let labelled = DepositSpec { labels: Labels::from([("a".into(), "b".into())]), ..same };
    change(version, labelled.clone(), Some(b"hush")).unwrap();
    assert_eq!(vault.world.state.deposit(&id).unwrap().spec, labelled);
}

#[test]
fn what_services_name_stays_as_long_as_they_do() {
    let mut vault = Vault::new();
    let id = vault.secret("sec1");
    let service = vault.service(vec![reference(&id, "sec1", "sec1")]).unwrap();
    let refused = vault.drop(&id).unwrap_err();
    assert_eq!(refused.code, Code::InvalidArgument);
    assert_eq!(refused.message, "secret 'sec1' is in use by the following service: web");
    vault.world.change(&service, |spec| spec.task.container.secrets.clear());
    vault.drop(&id).unwrap();
    assert_eq!(vault.drop(&id).unwrap_err().code, Code::NotFound);
    let back = vault.world.state.service(&service).unwrap().clone();
    let gone = vault.world.control(|draft, now, _| {
        crate::control::rollback_service(draft, now, &back.id, Service::clone(&back).meta.version)
    });
    assert_eq!(gone.unwrap_err().message, "secret not found: sec1");
}

#[test]
fn bad_references_are_refused_in_swarmkits_words() {
    let mut vault = Vault::new();
    let id = vault.secret("sec1");
    let config = vault.put(DepositKind::Config, "cfg1", b"x").unwrap();
    let none = DepositId::new("");
    let cases = [
        (vec![reference(&none, "sec1", "f")], "malformed secret reference"),
        (vec![reference(&id, "", "f")], "malformed secret reference"),
        (
            vec![reference(&id, "sec1", "")],
            "malformed file secret reference, invalid target file name provided",
        ),
        (
            vec![reference(&id, "sec1", "f"), reference(&id, "sec1", "f")],
            "secret references 'sec1' and 'sec1' have a conflicting target: 'f'",
        ),
        (vec![reference(&id, "other", "f")], "secret not found: other"),
        (
            vec![reference(&config, "cfg1", "f"), reference(&"x".into(), "y", "g")],
            "secrets not found: cfg1, y",
        ),
    ];
    for (references, expect) in cases {
        let refused = vault.service(references).unwrap_err();
        assert_eq!((refused.code, refused.message.as_str()), (Code::InvalidArgument, expect));
    }
    vault.service(vec![reference(&id, "sec1", "f"), reference(&id, "sec1", "g")]).unwrap();
}

#[test]
fn a_service_cannot_come_to_name_what_is_removed_meanwhile() {
    let mut vault = Vault::new();
    let id = vault.secret("sec1");
    let before = vault.world.state.clone();
    let mut draft = Draft::new(before.clone(), vault.world.now.wall);
    remove(&mut draft, DepositKind::Secret, &id).unwrap();
    let (expect, _) = crate::draft::commit_of(&draft.into_changes(), &before).unwrap();
    let service = shoal_store::Expect::NoneNewer("object/service/".into(), before.revision());
    assert!(expect.contains(&service), "{expect:?}");
    let mut draft = Draft::new(before.clone(), vault.world.now.wall);
    let mut declared = spec("web", 1, &[]);
    declared.task.container.secrets = vec![reference(&id, "sec1", "f")];
    crate::control::create_service(&mut draft, vault.world.now, &mut vault.world.ids, declared).unwrap();
    let (expect, _) = crate::draft::commit_of(&draft.into_changes(), &before).unwrap();
    let there = shoal_store::Expect::Exists(ObjectKey::Deposit(id).path());
    assert!(expect.contains(&there), "{expect:?}");
}

#[test]
fn credentials_live_as_long_as_their_service() {
    let mut vault = Vault::new();
    let web = vault.service(Vec::new()).unwrap();
    let entrust = |vault: &mut Vault, credentials: &str| {
        let Vault { world, key, .. } = vault;
        world.control(|draft, now, ids| entrust(draft, now, ids, &web, credentials, key)).unwrap();
        // Tasks that have started need no image any more.
        world.run(2);
        let kept: Vec<_> = world.state.deposits(DepositKind::Credentials).cloned().collect();
        let [kept] = kept.as_slice() else { panic!("{kept:?}") };
        assert_eq!(open(kept, key).unwrap(), credentials.as_bytes());
        assert_eq!(world.state.service(&web).unwrap().credentials.as_ref(), Some(&kept.id));
        kept.id.clone()
    };
    let first = entrust(&mut vault, "one");
    assert_eq!(entrust(&mut vault, "one"), first, "the same again changes nothing");
    let second = entrust(&mut vault, "two");
    assert_ne!(second, first);
    vault.world.change(&web, |spec| spec.mode = shoal_model::ServiceMode::Replicated { replicas: 3 });
    vault.world.settle();
    let held: Vec<_> = vault.world.state.tasks().filter_map(|task| task.credentials.clone()).collect();
    assert!(held.contains(&second), "a new task has them: {held:?}");
    vault.world.control(|draft, _, _| crate::control::remove_service(draft, &web)).unwrap();
    vault.world.run(5);
    assert_eq!(vault.world.state.deposits(DepositKind::Credentials).count(), 0);
}
