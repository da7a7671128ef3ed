//! Names for what its user did not name.

use crate::IdGenerator;

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

/// A name of Docker's kind (`brave_herring`) that nobody has.
pub fn invent_name(ids: &mut IdGenerator, is_taken: impl Fn(&str) -> bool) -> String {
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn invented_names_never_run_out() {
        let mut ids = IdGenerator::from_seed(7);
        let mut names = BTreeSet::new();
        for _ in 0..3000 {
            let name = invent_name(&mut ids, |name| names.contains(name));
            assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'), "{name}");
            assert!(names.insert(name));
        }
    }
}
