//! Join tokens, in Docker's form: `SWMTKN-1-<digest of the root certificate>-<secret>`, both as
//! base-36 numbers of a fixed length.
//!
//! The digest is what lets a machine that knows nothing but the token tell the cluster from anybody
//! who pretends to be it; the secret is what lets the cluster tell who may join.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

const PREFIX: &str = "SWMTKN-1-";
const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
/// Digits that hold 32 bytes.
const DIGEST_DIGITS: usize = 50;
/// Digits that hold 16 bytes.
const SECRET_DIGITS: usize = 25;

/// What a root certificate is recognised by: SHA-256 of its DER form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootDigest([u8; 32]);

/// The part of a token that only those know who may join.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Secret([u8; 16]);

/// A join token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JoinToken {
    pub digest: RootDigest,
    pub secret: Secret,
}

/// Docker's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid join token")]
pub struct InvalidToken;

impl RootDigest {
    pub fn of(root_der: &[u8]) -> Self {
        Self(Sha256::digest(root_der).into())
    }
}

impl fmt::Display for RootDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Secret {
    pub fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    pub fn bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digest = to_base36::<32, DIGEST_DIGITS>(self.digest.0);
        let secret = to_base36::<16, SECRET_DIGITS>(self.secret.0);
        write!(f, "{PREFIX}{digest}-{secret}")
    }
}

impl FromStr for JoinToken {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        let rest = text.strip_prefix(PREFIX).ok_or(InvalidToken)?;
        let (digest, secret) = rest.split_once('-').ok_or(InvalidToken)?;
        Ok(Self {
            digest: RootDigest(from_base36::<32, DIGEST_DIGITS>(digest)?),
            secret: Secret(from_base36::<16, SECRET_DIGITS>(secret)?),
        })
    }
}

/// A big-endian number in `PLACES` digits, which must be enough for it.
fn to_base36<const BYTES: usize, const PLACES: usize>(mut number: [u8; BYTES]) -> String {
    let mut digits = [b'0'; PLACES];
    for place in digits.iter_mut().rev() {
        let mut rest = 0u32;
        for byte in &mut number {
            let value = rest << 8 | u32::from(*byte);
            *byte = (value / 36) as u8;
            rest = value % 36;
        }
        *place = DIGITS[rest as usize];
    }
    digits.iter().map(|&digit| char::from(digit)).collect()
}

/// The inverse; refuses other lengths, other digits, and numbers that need more bytes.
fn from_base36<const BYTES: usize, const PLACES: usize>(text: &str) -> Result<[u8; BYTES], InvalidToken> {
    if text.len() != PLACES {
        return Err(InvalidToken);
    }
    let mut number = [0u8; BYTES];
    for digit in text.bytes() {
        let value = DIGITS.iter().position(|&known| known == digit).ok_or(InvalidToken)?;
        let mut carry = value as u32;
        for byte in number.iter_mut().rev() {
            let sum = u32::from(*byte) * 36 + carry;
            *byte = (sum & 0xff) as u8;
            carry = sum >> 8;
        }
        if carry != 0 {
            return Err(InvalidToken);
        }
    }
    Ok(number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token(digest: u8, secret: u8) -> JoinToken {
        JoinToken { digest: RootDigest([digest; 32]), secret: Secret([secret; 16]) }
    }

    #[test]
    fn tokens_have_dockers_shape() {
        let least = token(0, 0).to_string();
        assert_eq!(least, format!("SWMTKN-1-{}-{}", "0".repeat(50), "0".repeat(25)));
        let most = token(255, 255).to_string();
        assert_eq!(
            most,
            "SWMTKN-1-6dp5qcb22im238nr3wvp0ic7q99w035jmy2iw7i6n43d37jtof-f5lxx1zz5pnorynqglhzmsp33"
        );
        assert_eq!(most.parse(), Ok(token(255, 255)));
    }

    #[test]
    fn what_docker_gave_out_is_read() {
        let text = "SWMTKN-1-2cy8glcu6ftqtt30lm5eclfnvh9pmt932gzacblq1dyo6fw9om-diktil06vrdl5jtfxu6t6hu0k";
        assert_eq!(text.parse::<JoinToken>().unwrap().to_string(), text);
    }

    #[test]
    fn anything_else_is_refused() {
        let right = token(1, 2).to_string();
        let refused = [
            String::new(),
            "SWMTKN".to_owned(),
            "SWMTKN-1-".to_owned(),
            right.replacen("-1-", "-2-", 1),
            right.to_uppercase(),
            format!("{right}0"),
            format!(" {right}"),
            right[..right.len() - 1].to_owned(),
            // Numbers that need more than 32 and 16 bytes.
            format!("SWMTKN-1-{}-{}", "z".repeat(50), "0".repeat(25)),
            format!("SWMTKN-1-{}-{}", "0".repeat(50), "z".repeat(25)),
        ];
        for text in refused {
            assert_eq!(text.parse::<JoinToken>(), Err(InvalidToken), "{text:?}");
        }
    }

    #[test]
    fn a_secret_is_not_shown_by_accident() {
        assert!(!format!("{:?}", token(1, 7)).contains('7'));
    }

    proptest! {
        #[test]
        fn every_token_survives_its_text(digest: [u8; 32], secret: [u8; 16]) {
            let token = JoinToken { digest: RootDigest(digest), secret: Secret(secret) };
            prop_assert_eq!(token.to_string().parse(), Ok(token));
        }

        #[test]
        fn no_text_makes_parsing_panic(text in "\\PC{0,120}") {
            let _ = text.parse::<JoinToken>();
        }

        #[test]
        fn what_is_accepted_is_written_back_as_it_was(text in "SWMTKN-1-[0-9a-z]{50}-[0-9a-z]{25}") {
            if let Ok(token) = text.parse::<JoinToken>() {
                prop_assert_eq!(token.to_string(), text);
            }
        }
    }
}
