//! What must hold for a commit, whatever keeps the records.

use crate::Expect;

/// The revisions of stored records.
pub trait Revisions {
    type Error;

    /// At which the key was last written; `None` when it does not exist.
    fn of(&self, key: &str) -> Result<Option<u64>, Self::Error>;

    /// Some key with this prefix was written after this revision.
    fn any_newer(&self, prefix: &str, after: u64) -> Result<bool, Self::Error>;
}

/// The first expectation that does not hold.
pub fn first_unmet<R: Revisions>(records: &R, expect: &[Expect]) -> Result<Option<Expect>, R::Error> {
    for expected in expect {
        let met = match expected {
            Expect::Absent(key) => records.of(key)?.is_none(),
            Expect::At(key, at) => records.of(key)? == Some(*at),
            Expect::Exists(key) => records.of(key)?.is_some(),
            Expect::NoneNewer(prefix, after) => !records.any_newer(prefix, *after)?,
        };
        if !met {
            return Ok(Some(expected.clone()));
        }
    }
    Ok(None)
}
