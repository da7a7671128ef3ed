//! Sets of backends in the maps. See `bpf/services.h` for what a reader relies on.

use std::collections::{BTreeSet, HashSet};

use aya::Pod;
use aya::maps::{Array, HashMap, MapData, MapError};

use shoal_model::{Addressed, Backends, shares};

use crate::layout::{BY_SOURCE, LiveKey, Set, SlotKey, Target};
use crate::{Error, Result};

/// Most backends of one VIP or port.
pub const BACKENDS_MAX: usize = 4096;

/// Slots and live entries of all sets, and the numbers given out.
pub(crate) struct Sets {
    pub(crate) slots: HashMap<MapData, SlotKey, Target>,
    pub(crate) live: HashMap<MapData, LiveKey, u8>,
    pub(crate) numbers: Array<MapData, u64>,
}

/// The map that says which set an entry, a VIP or a port, has.
pub(crate) type Entries<K> = HashMap<MapData, K, Set>;

impl Sets {
    /// Makes `targets` the slots of `key`: a reader sees the old ones or the new ones.
    pub(crate) fn replace<K: Pod>(
        &mut self,
        entries: &mut Entries<K>,
        key: K,
        targets: &[Target],
        flags: u32,
    ) -> Result<()> {
        let old = found(entries.get(&key, 0)).map_err(map("entries"))?;
        let Some(new) = self.write(old.as_ref(), targets, flags)? else { return Ok(()) };
        if let Err(source) = entries.insert(key, new, 0) {
            self.delete(&new)?;
            return Err(map("entries")(source));
        }
        old.map_or(Ok(()), |old| self.delete(&old))
    }

    pub(crate) fn remove<K: Pod>(&mut self, entries: &mut Entries<K>, key: K) -> Result<()> {
        let old = found(entries.get(&key, 0)).map_err(map("entries"))?;
        absent_is_fine(entries.remove(&key)).map_err(map("entries"))?;
        old.map_or(Ok(()), |old| self.delete(&old))
    }

    /// The backends of a set, in the order of its slots. A missing slot is left out.
    pub(crate) fn slots_of(&self, set: &Set) -> Result<Vec<Target>> {
        let slots = (0..set.count).map(|slot| found(self.slots.get(&SlotKey::new(set.number, slot), 0)));
        slots.filter_map(Result::transpose).collect::<Result<_, _>>().map_err(map("slots"))
    }

    /// The backends of a set, without those that a remembering socket would not find. One whose shares are
    /// not those that its backends should have is not told to be spread by source.
    pub(crate) fn backends_of<A: Addressed + Copy + Ord>(
        &self,
        set: &Set,
        address: fn(&Target) -> A,
    ) -> Result<Backends<A>> {
        let slots = self.slots_of(set)?;
        let mut members = BTreeSet::new();
        for target in slots.iter().collect::<HashSet<_>>() {
            if self.all_live(set.number, std::slice::from_ref(target))? {
                members.insert(address(target));
            }
        }
        let ordered: Vec<A> = members.iter().copied().collect();
        let by_source =
            set.flags & BY_SOURCE != 0 && shares(&ordered).into_iter().copied().eq(slots.iter().map(address));
        Ok(Backends { members, by_source })
    }

    /// Writes a new set, or nothing (`None`) if the old one is whole and just the same.
    fn write(&mut self, old: Option<&Set>, targets: &[Target], flags: u32) -> Result<Option<Set>> {
        if let Some(old) = old
            && (old.count as usize, old.flags) == (targets.len(), flags)
            && self.slots_of(old)? == targets
            && self.all_live(old.number, targets)?
        {
            return Ok(None);
        }
        let number = self.next_number()?;
        let new = Set::new(number, u32::try_from(targets.len()).unwrap_or(u32::MAX), flags);
        if let Err(error) = self.fill(number, targets) {
            self.delete(&new)?;
            return Err(error);
        }
        Ok(Some(new))
    }

    fn fill(&mut self, number: u64, targets: &[Target]) -> Result<()> {
        for (slot, target) in (0..).zip(targets) {
            self.slots.insert(SlotKey::new(number, slot), *target, 0).map_err(map("slots"))?;
        }
        for target in targets.iter().collect::<HashSet<_>>() {
            self.live.insert(LiveKey::new(number, *target), 1, 0).map_err(map("live"))?;
        }
        Ok(())
    }

    fn all_live(&self, number: u64, targets: &[Target]) -> Result<bool> {
        for target in targets {
            if found(self.live.get(&LiveKey::new(number, *target), 0)).map_err(map("live"))?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Deletes a set that nothing names any more: all its slots first, then what is live in it, so that
    /// a reader which finds its remembered backend gone cannot pick a new one out of the old set.
    fn delete(&mut self, set: &Set) -> Result<()> {
        let targets = self.slots_of(set)?;
        for slot in 0..set.count {
            absent_is_fine(self.slots.remove(&SlotKey::new(set.number, slot))).map_err(map("slots"))?;
        }
        for target in targets {
            absent_is_fine(self.live.remove(&LiveKey::new(set.number, target))).map_err(map("live"))?;
        }
        Ok(())
    }

    /// Never the same twice while the maps exist, also across restarts.
    fn next_number(&mut self) -> Result<u64> {
        let next = self.numbers.get(&0, 0).map_err(map("numbers"))?.wrapping_add(1);
        self.numbers.set(0, next, 0).map_err(map("numbers"))?;
        Ok(next)
    }

    /// Removes what a predecessor left half done: slots and live entries of sets that are not `named`.
    pub(crate) fn sweep(&mut self, named: &HashSet<u64>) -> Result<()> {
        let slots: Vec<SlotKey> = self.slots.keys().collect::<Result<_, _>>().map_err(map("slots"))?;
        for key in slots.iter().filter(|key| !named.contains(&key.set)) {
            absent_is_fine(self.slots.remove(key)).map_err(map("slots"))?;
        }
        let live: Vec<LiveKey> = self.live.keys().collect::<Result<_, _>>().map_err(map("live"))?;
        for key in live.iter().filter(|key| !named.contains(&key.set)) {
            absent_is_fine(self.live.remove(key)).map_err(map("live"))?;
        }
        Ok(())
    }
}

pub(crate) fn found<T>(result: Result<T, MapError>) -> Result<Option<T>, MapError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(MapError::SyscallError(call)) if call.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

pub(crate) fn absent_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    found(result).map(drop)
}

pub(crate) fn map(name: &'static str) -> impl Fn(MapError) -> Error {
    move |source| Error::Map { name, source }
}
