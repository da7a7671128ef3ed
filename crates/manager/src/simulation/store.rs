//! The store of the simulated cluster: in memory, with the comparisons of the real one. It outlives
//! every manager.

use std::collections::BTreeMap;
use std::convert::Infallible;

use bytes::Bytes;
use shoal_store::{Conflict, Event, Expect, Fence, Record, Revisions, State, Write, first_unmet};

#[derive(Default)]
pub(super) struct Memory {
    records: BTreeMap<String, (u64, Bytes)>,
    revision: u64,
}

impl Revisions for Memory {
    type Error = Infallible;

    fn of(&self, key: &str) -> Result<Option<u64>, Infallible> {
        Ok(self.records.get(key).map(|(revision, _)| *revision))
    }

    fn any_newer(&self, prefix: &str, after: u64) -> Result<bool, Infallible> {
        Ok(self.below(prefix).any(|(_, (revision, _))| *revision > after))
    }
}

impl Memory {
    /// Compares, then writes; the revision and what watches see of it.
    pub(super) fn commit(
        &mut self,
        expect: &[Expect],
        writes: Vec<Write>,
    ) -> Result<(u64, Vec<Event>), Conflict> {
        let Ok(unmet) = first_unmet(self, expect);
        if let Some(expected) = unmet {
            return Err(Conflict { expected });
        }
        self.revision += 1;
        let revision = self.revision;
        let mut events = Vec::with_capacity(writes.len());
        for write in writes {
            events.push(match write {
                Write::Put { key, value } => {
                    self.records.insert(key.clone(), (revision, value.clone()));
                    Event::Put(Record { key, value, revision })
                }
                Write::Delete { key } => {
                    self.records.remove(&key);
                    Event::Delete { key }
                }
            });
        }
        Ok((revision, events))
    }

    /// Makes every older fence invalid.
    pub(super) fn campaign(&mut self) -> Fence {
        let key = "leader/manager".to_owned();
        self.revision += 1;
        self.records.insert(key.clone(), (self.revision, Bytes::new()));
        Fence { key, revision: self.revision }
    }

    /// What a manager that starts finds.
    pub(super) fn load(&self) -> State {
        let record = |(key, (revision, value)): (&String, &(u64, Bytes))| Record {
            key: key.clone(),
            value: value.clone(),
            revision: *revision,
        };
        let records: Vec<Record> = self.below(State::PREFIX).map(|(key, held)| record((key, held))).collect();
        State::load(self.revision, &records).expect("the store holds what was written")
    }

    /// The keys with this prefix and what they hold.
    pub(super) fn below<'a>(
        &'a self,
        prefix: &'a str,
    ) -> impl Iterator<Item = (&'a String, &'a (u64, Bytes))> {
        self.records.range(prefix.to_owned()..).take_while(move |(key, _)| key.starts_with(prefix))
    }
}
