//! Who asks, as Docker's clients say it.

use std::fmt;

use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use oci_client::secrets::RegistryAuth;
use serde::Deserialize;

use crate::{Error, Result};

/// Clients pad or do not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What a registry is told of who asks.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Credentials {
    #[default]
    None,
    Password {
        user: String,
        password: String,
    },
    /// A bearer token somebody else got.
    Token(String),
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AuthConfig {
    username: String,
    password: String,
    /// `user:password` in base64, as client configurations have it.
    auth: String,
    identitytoken: String,
    registrytoken: String,
}

impl Credentials {
    /// From Docker's `X-Registry-Auth`: JSON in base64 for URLs. Empty means nobody.
    pub fn parse(header: &str) -> Result<Self> {
        let bad = |reason: &dyn fmt::Display| {
            Error::InvalidConfig(format!("invalid X-Registry-Auth header: {reason}"))
        };
        if header.is_empty() {
            return Ok(Self::None);
        }
        // What other programs make of it is often the other alphabet.
        let header = header.replace('+', "-").replace('/', "_");
        let text = BASE64.decode(header).map_err(|error| bad(&error))?;
        let config: AuthConfig = serde_json::from_slice(&text).map_err(|error| bad(&error))?;
        if !config.identitytoken.is_empty() {
            return Err(bad(&"identity tokens are not supported, log in with a password or access token"));
        }
        if !config.registrytoken.is_empty() {
            return Ok(Self::Token(config.registrytoken));
        }
        if !config.auth.is_empty() && config.username.is_empty() {
            let text = BASE64.decode(config.auth.replace('+', "-").replace('/', "_"));
            let text = String::from_utf8(text.map_err(|error| bad(&error))?).map_err(|error| bad(&error))?;
            let (user, password) = text.split_once(':').ok_or_else(|| bad(&"auth has no colon"))?;
            return Ok(Self::Password { user: user.to_owned(), password: password.to_owned() });
        }
        if config.username.is_empty() {
            return Ok(Self::None);
        }
        Ok(Self::Password { user: config.username, password: config.password })
    }
}

impl From<&Credentials> for RegistryAuth {
    fn from(credentials: &Credentials) -> Self {
        match credentials {
            Credentials::None => Self::Anonymous,
            Credentials::Password { user, password } => Self::Basic(user.clone(), password.clone()),
            Credentials::Token(token) => Self::Bearer(token.clone()),
        }
    }
}

/// Says who, not by what proof.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Password { user, .. } => {
                f.debug_struct("Password").field("user", user).finish_non_exhaustive()
            }
            Self::Token(_) => f.write_str("Token"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_as_clients_write_them() {
        let encode = |text: &str| BASE64.encode(text);
        let parse = |text: &str| Credentials::parse(&encode(text)).unwrap();
        let me = Credentials::Password { user: "me".to_owned(), password: "sec>?ret".to_owned() };
        assert_eq!(Credentials::parse("").unwrap(), Credentials::None);
        assert_eq!(parse("{}"), Credentials::None);
        let text = r#"{"username":"me","password":"sec>?ret","serveraddress":"x"}"#;
        assert_eq!(parse(text), me);
        let header = encode(text);
        assert_eq!(Credentials::parse(header.trim_end_matches('=')).unwrap(), me);
        assert_eq!(Credentials::parse(&header.replace('-', "+").replace('_', "/")).unwrap(), me);
        assert_eq!(parse(&format!(r#"{{"auth":"{}"}}"#, encode("me:sec>?ret"))), me);
        assert_eq!(parse(r#"{"registrytoken":"t"}"#), Credentials::Token("t".to_owned()));
        for bad in
            ["%%%", &encode("no json"), &encode(r#"{"identitytoken":"x"}"#), &encode(r#"{"auth":"eA"}"#)]
        {
            assert!(Credentials::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let secret = Credentials::Password { user: "me".to_owned(), password: "hidden".to_owned() };
        assert!(!format!("{secret:?} {:?}", Credentials::Token("hidden".to_owned())).contains("hidden"));
    }
}
