//! A working copy of the state, and how its changes become one commit.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use jiff::Timestamp;
use shoal_model::{Claim, Object, ObjectKey, ServiceSpec, claims};
use shoal_store::{Expect, State, Write};

/// A planner's copy of the state: later steps of a plan see what earlier ones changed.
pub struct Draft {
    base: State,
    state: State,
    touched: BTreeSet<ObjectKey>,
    now: Timestamp,
}

/// What is to become of one object.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    pub key: ObjectKey,
    /// As it was when the change was decided; `None`: it did not exist.
    pub old: Option<Object>,
    /// `None` removes it.
    pub new: Option<Object>,
}

/// Two objects of one commit claim the same thing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} is claimed twice in one commit")]
pub struct ClaimedTwice(pub Claim);

impl Draft {
    pub fn new(base: State, now: Timestamp) -> Self {
        Self { state: base.clone(), base, touched: BTreeSet::new(), now }
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    /// Puts an object; nothing happens when it says what the state says already.
    pub fn put(&mut self, mut object: Object) {
        let key = object.key();
        if let Some(mut present) = self.state.object(&key) {
            *present.meta_mut() = *object.meta_mut();
            if present == object {
                return;
            }
        }
        object.meta_mut().updated = self.now;
        self.state.put(object);
        self.touched.insert(key);
    }

    pub fn remove(&mut self, key: ObjectKey) {
        self.state.remove(&key);
        self.touched.insert(key);
    }

    /// Takes over changes that were decided on a draft of the same state.
    pub fn adopt(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change.new {
                Some(object) => self.state.put(object),
                None => self.state.remove(&change.key),
            }
            self.touched.insert(change.key);
        }
    }

    /// What differs from the state the draft began with.
    pub fn into_changes(self) -> Vec<Change> {
        let Self { base, state, touched, .. } = self;
        touched
            .into_iter()
            .map(|key| Change { old: base.object(&key), new: state.object(&key), key })
            .filter(|change| change.old != change.new)
            .collect()
    }
}

/// The commit that makes these changes: every object is expected as it was, every thing newly claimed
/// is expected unclaimed. So uniqueness holds whatever the planning code does.
///
/// Subnets that overlap without being equal are no matter of one key: a commit that claims a subnet
/// expects that no other was claimed after `state`. Likewise a network, a secret or a config that
/// goes expects no service that came after it.
pub fn commit_of(changes: &[Change], state: &State) -> Result<(Vec<Expect>, Vec<Write>), ClaimedTwice> {
    let mut expect = Vec::new();
    let mut writes = Vec::new();
    let mut held: BTreeMap<Claim, String> = BTreeMap::new();
    let mut wanted: BTreeMap<Claim, String> = BTreeMap::new();
    for change in changes {
        let path = change.key.path();
        expect.push(match &change.old {
            Some(old) => Expect::At(path.clone(), version(old)),
            None => Expect::Absent(path.clone()),
        });
        held.extend(change.old.iter().flat_map(claims).map(|claim| (claim, path.clone())));
        expect.extend(references(change, state));
        for claim in change.new.iter().flat_map(claims) {
            if let Some(_other) = wanted.insert(claim.clone(), path.clone()) {
                return Err(ClaimedTwice(claim));
            }
        }
        writes.push(match &change.new {
            Some(new) => Write::Put { key: path, value: State::encode(new) },
            None => Write::Delete { key: path },
        });
    }
    for claim in held.keys().filter(|claim| !wanted.contains_key(claim)) {
        writes.push(Write::Delete { key: claim.to_string() });
    }
    for (claim, owner) in wanted {
        // What one object of the commit gives up, another may take.
        let before = held.get(&claim);
        if before == Some(&owner) {
            continue;
        }
        if before.is_none() {
            if matches!(claim, Claim::Subnet(_)) {
                expect.push(Expect::NoneNewer(SUBNETS.to_owned(), state.revision()));
            }
            expect.push(Expect::Absent(claim.to_string()));
        }
        writes.push(Write::Put { key: claim.to_string(), value: Bytes::from(owner) });
    }
    Ok((expect, writes))
}

/// The prefix of all claims of subnets.
const SUBNETS: &str = "claim/subnet/";
/// The prefix of all services.
const SERVICES: &str = "object/service/";

/// What must be there, or must not have come, for a change to make sense.
fn references(change: &Change, state: &State) -> Vec<Expect> {
    match (&change.key, &change.old, &change.new) {
        (ObjectKey::Network(_) | ObjectKey::Deposit(_), Some(_), None) => {
            vec![Expect::NoneNewer(SERVICES.to_owned(), state.revision())]
        }
        (_, old, Some(Object::Service(service))) => {
            let before = match old {
                Some(Object::Service(before)) => named(&before.spec),
                _ => BTreeSet::new(),
            };
            let new = named(&service.spec).into_iter().filter(|key| !before.contains(key));
            new.map(|key| Expect::Exists(key.path())).collect()
        }
        _ => Vec::new(),
    }
}

/// What a declaration names and cannot do without.
fn named(spec: &ServiceSpec) -> BTreeSet<ObjectKey> {
    let networks = spec.task.networks.iter().map(|target| ObjectKey::Network(target.network.clone()));
    let deposits = spec.task.container.deposits();
    networks.chain(deposits.map(|reference| ObjectKey::Deposit(reference.deposit.clone()))).collect()
}

fn version(object: &Object) -> u64 {
    match object {
        Object::Cluster(cluster) => cluster.meta.version,
        Object::Node(node) => node.meta.version,
        Object::Network(network) => network.meta.version,
        Object::Service(service) => service.meta.version,
        Object::Task(task) => task.meta.version,
        Object::Guest(guest) => guest.meta.version,
        Object::Deposit(deposit) => deposit.meta.version,
    }
}
