//! Names of plain containers.

use crate::{Error, Result};

/// Docker's rule, in its words.
pub(super) fn check(name: &str) -> Result<()> {
    let mut letters = name.chars();
    let first = letters.next().is_some_and(|c| c.is_ascii_alphanumeric());
    let rest = letters.all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
    if first && rest && name.len() > 1 { Ok(()) } else { Err(Error::InvalidName(name.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dockers() {
        for good in ["c1", "my_box.2-x", "9a"] {
            assert!(check(good).is_ok(), "{good}");
        }
        for bad in ["", "a", "bad name", "-x1", "ä1", "a/b"] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn invented_names_are_good_ones() {
        let mut ids = shoal_model::IdGenerator::from_seed(1);
        for _ in 0..100 {
            let name = shoal_model::invent_name(&mut ids, |_| false);
            assert!(check(&name).is_ok(), "{name}");
        }
    }
}
