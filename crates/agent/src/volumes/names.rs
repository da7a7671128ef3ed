//! What volumes may be called: Docker's rule, `[a-zA-Z0-9][a-zA-Z0-9_.-]+`.

use crate::{Error, Result};

pub(super) fn check(name: &str) -> Result<()> {
    if name.len() == 1 {
        return Err(Error::ShortVolumeName);
    }
    let begins = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if begins && name.chars().all(plain) { Ok(()) } else { Err(Error::InvalidVolumeName(name.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_leave_the_directory_is_no_name() {
        for good in ["v1", "stack_data", "a.b-c", &"0".repeat(64)] {
            check(good).unwrap();
        }
        for bad in ["", "..", ".hidden", "a/b", "a b", "-x", "ä1"] {
            assert!(matches!(check(bad), Err(Error::InvalidVolumeName(_))), "{bad}");
        }
        let short = check("a").unwrap_err().to_string();
        assert_eq!(short, "volume name is too short, names should be at least two alphanumeric characters");
    }
}
