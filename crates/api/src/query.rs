//! Parameters of paths and queries, read as leniently or strictly as Docker does.

use std::str::FromStr;

use axum::extract::{FromRequestParts, Path, Query};
use axum::http::request::Parts;

use crate::error::{ApiError, Result};
use crate::filters::Filters;

/// The last, variable part of a path.
pub(crate) struct Name(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self> {
        match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(name)) => Ok(Self(name)),
            Err(error) => Err(ApiError::bad_request(error.body_text())),
        }
    }
}

/// The parameters after the question mark; a name may come several times.
#[derive(Debug, Clone, Default)]
pub(crate) struct Params(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        match Query::<Vec<(String, String)>>::try_from_uri(&parts.uri) {
            Ok(Query(pairs)) => Ok(Self(pairs)),
            Err(error) => Err(ApiError::bad_request(error.body_text())),
        }
    }
}

impl Params {
    /// The first value given.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The first value given that is not empty.
    pub(crate) fn given(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|value| !value.is_empty())
    }

    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> + 'a {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Docker takes everything for true but these words.
    pub(crate) fn flag(&self, name: &str) -> bool {
        let value = self.get(name).unwrap_or_default().trim().to_ascii_lowercase();
        !matches!(value.as_str(), "" | "0" | "no" | "false" | "none")
    }

    /// A number, or nothing when it is not given.
    pub(crate) fn number<T: FromStr>(&self, name: &str) -> Result<Option<T>> {
        match self.given(name) {
            None => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|_| {
                ApiError::bad_request(format!("invalid value for {name}: {text:?} is not a number"))
            }),
        }
    }

    /// The `filters` parameter.
    pub(crate) fn filters(&self, known: &[&str]) -> Result<Filters> {
        Filters::parse(self.get("filters"), known)
    }

    /// Seconds since 1970 with an optional fraction, as `since` and `until` are sent; 0 is nothing.
    pub(crate) fn time(&self, name: &str) -> Result<Option<jiff::Timestamp>> {
        let Some(text) = self.given(name).filter(|text| *text != "0") else { return Ok(None) };
        parse_time(text).map(Some).ok_or_else(|| {
            ApiError::bad_request(format!("invalid value for \"{name}\": {text:?} is not a time"))
        })
    }
}

fn parse_time(text: &str) -> Option<jiff::Timestamp> {
    if let Ok(time) = text.parse() {
        return Some(time);
    }
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    if fraction.len() > 9 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanos = format!("{fraction:0<9}").parse().ok()?;
    jiff::Timestamp::new(seconds.parse().ok()?, nanos).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(query: &str) -> Params {
        let uri = format!("/x?{query}").parse().unwrap();
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(&uri).unwrap();
        Params(pairs)
    }

    #[test]
    fn flags_are_read_as_docker_reads_them() {
        for (text, expect) in [("a=1", true), ("a=true", true), ("a=x", true), ("a=0", false), ("a=", false)]
        {
            assert_eq!(params(text).flag("a"), expect, "{text}");
        }
        assert!(!params("b=1").flag("a"));
        assert!(!params("a=False").flag("a"));
    }

    #[test]
    fn repeated_values_are_all_there() {
        let params = params("changes=A&changes=B%20C&x=1");
        assert_eq!(params.all("changes").collect::<Vec<_>>(), ["A", "B C"]);
        assert_eq!(params.number::<u64>("x"), Ok(Some(1)));
        assert!(params.number::<u64>("changes").is_err());
    }

    #[test]
    fn times_are_seconds_or_rfc_3339() {
        let time = |text: &str| params(&format!("t={text}")).time("t");
        assert_eq!(time("0"), Ok(None));
        assert_eq!(time("1795421881"), Ok(Some("2026-11-23T08:18:01Z".parse().unwrap())));
        assert_eq!(time("1795421881.5"), Ok(Some("2026-11-23T08:18:01.5Z".parse().unwrap())));
        assert_eq!(time("2026-11-23T08:18:01Z"), Ok(Some("2026-11-23T08:18:01Z".parse().unwrap())));
        assert!(time("yesterday").is_err() && time("1.x").is_err() && time("99999999999999999").is_err());
    }
}
