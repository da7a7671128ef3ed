//! Names of plain containers.

use shoal_model::IdGenerator;

use crate::{Error, Result};

const QUALITIES: [&str; 32] = [
    "agile", "amber", "brave", "bright", "brisk", "calm", "clever", "coral", "deft", "eager", "early",
    "fair", "gentle", "glad", "golden", "keen", "kind", "lively", "lucid", "merry", "nimble", "noble",
    "patient", "proud", "quick", "quiet", "silver", "steady", "swift", "tidal", "vivid", "warm",
];
const FISHES: [&str; 32] = [
    "anchovy", "barbel", "bass", "bream", "carp", "char", "cod", "dace", "eel", "flounder", "garfish",
    "goby", "grayling", "gurnard", "haddock", "hake", "halibut", "herring", "lamprey", "ling", "mackerel",
    "minnow", "mullet", "perch", "pike", "plaice", "roach", "salmon", "sardine", "sole", "trout", "turbot",
];

/// A name that nobody has.
pub(super) fn invent(is_taken: impl Fn(&str) -> bool) -> String {
    let mut ids = IdGenerator::from_os();
    let mut suffix = String::new();
    loop {
        let [quality, fish, digits] = ids.bytes::<3>().map(usize::from);
        let name = format!("{}_{}{suffix}", QUALITIES[quality % 32], FISHES[fish % 32]);
        if !is_taken(&name) {
            return name;
        }
        suffix.push_str(&(digits % 10).to_string());
    }
}

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
    fn invented_names_are_free() {
        let taken = invent(|_| false);
        assert!(check(&taken).is_ok());
        let mut tries = std::cell::Cell::new(0);
        let name = invent(|_| tries.replace(tries.get() + 1) < 3);
        assert!(*tries.get_mut() >= 3 && check(&name).is_ok());
    }
}
