//! The keys by which a client at a terminal leaves a container without ending it.

use crate::error::{ApiError, Result};

/// Docker's default.
const DEFAULT: &[u8] = &[16, 17];

/// A sequence of keys, and how much of it was pressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Keys {
    sequence: Vec<u8>,
    pressed: usize,
}

impl Keys {
    /// Nothing detaches.
    pub(crate) fn none() -> Self {
        Self { sequence: Vec::new(), pressed: 0 }
    }

    /// `ctrl-p,ctrl-q`; empty is the default.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let mut sequence = Vec::new();
        for key in text.split(',').filter(|key| !key.is_empty()) {
            let byte = match (key.strip_prefix("ctrl-").map(str::as_bytes), key.as_bytes()) {
                (Some(&[letter @ b'a'..=b'z']), _) => letter - b'a' + 1,
                (Some(b"@"), _) => 0,
                (Some(b"["), _) => 27,
                (Some(b"\\"), _) => 28,
                (Some(b"]"), _) => 29,
                (Some(b"^"), _) => 30,
                (Some(b"_"), _) => 31,
                (None, &[byte]) => byte,
                _ => return Err(ApiError::bad_request(format!("Invalid detach keys ({text}) provided"))),
            };
            sequence.push(byte);
        }
        if sequence.is_empty() {
            sequence = DEFAULT.to_vec();
        }
        Ok(Self { sequence, pressed: 0 })
    }

    /// What of the input is for the container, and whether the client detaches. The beginning of the
    /// sequence is held back until the next key shows what it was.
    pub(crate) fn filter(&mut self, input: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(input.len());
        for &byte in input {
            if self.sequence.get(self.pressed) == Some(&byte) {
                self.pressed += 1;
                if self.pressed == self.sequence.len() {
                    return (passed, true);
                }
                continue;
            }
            passed.extend_from_slice(&self.sequence[..self.pressed]);
            self.pressed = usize::from(self.sequence.first() == Some(&byte));
            if self.pressed == 0 {
                passed.push(byte);
            }
        }
        (passed, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_detaches_and_everything_else_passes() {
        let mut keys = Keys::parse("").unwrap();
        assert_eq!(keys.filter(b"ls\x10"), (b"ls".to_vec(), false));
        assert_eq!(keys.filter(b"x"), (b"\x10x".to_vec(), false));
        assert_eq!(keys.filter(b"\x10\x10"), (b"\x10".to_vec(), false));
        assert_eq!(keys.filter(b"\x11rest"), (Vec::new(), true));
        let mut own = Keys::parse("ctrl-a,d").unwrap();
        assert_eq!(own.filter(b"\x01d"), (Vec::new(), true));
        assert_eq!(Keys::none().filter(b"\x10\x11"), (b"\x10\x11".to_vec(), false));
        assert!(Keys::parse("ctrl-1").is_err() && Keys::parse("ab").is_err());
    }
}
