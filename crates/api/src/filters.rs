//! The `filters` parameter: JSON in two forms, `{"label":{"a=b":true}}` and `{"label":["a=b"]}`.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use shoal_model::Labels;

use crate::error::{ApiError, Result};

/// What to keep of a list: every key must match, by any of its values.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Filters(BTreeMap<String, BTreeSet<String>>);

#[derive(Deserialize)]
#[serde(untagged)]
enum Values {
    List(Vec<String>),
    Map(BTreeMap<String, bool>),
}

impl Filters {
    /// Reads the parameter; a key that is not in `known` is refused in Docker's words.
    pub(crate) fn parse(text: Option<&str>, known: &[&str]) -> Result<Self> {
        let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(Self::default()) };
        let parsed: BTreeMap<String, Values> = serde_json::from_str(text)
            .map_err(|error| ApiError::bad_request(format!("invalid filters {text:?}: {error}")))?;
        let mut filters = BTreeMap::new();
        for (key, values) in parsed {
            if !known.contains(&key.as_str()) {
                return Err(ApiError::bad_request(format!("Invalid filter '{key}'")));
            }
            let values = match values {
                Values::List(values) => values.into_iter().collect(),
                Values::Map(values) => {
                    values.into_iter().filter(|(_, on)| *on).map(|(value, _)| value).collect()
                }
            };
            filters.insert(key, values);
        }
        Ok(Self(filters))
    }

    /// The values of a key, or nothing when it was not given.
    pub(crate) fn values(&self, key: &str) -> impl Iterator<Item = &str> {
        self.0.get(key).into_iter().flatten().map(String::as_str)
    }

    fn any(&self, key: &str, matches: impl FnMut(&str) -> bool) -> bool {
        self.0
            .get(key)
            .is_none_or(|values| values.is_empty() || values.iter().map(String::as_str).any(matches))
    }

    /// The value is one of those given.
    pub(crate) fn exact(&self, key: &str, value: &str) -> bool {
        self.any(key, |wanted| wanted == value)
    }

    /// The value begins with one of those given.
    pub(crate) fn prefix(&self, key: &str, value: &str) -> bool {
        self.any(key, |wanted| value.starts_with(wanted))
    }

    /// The value contains one of those given.
    pub(crate) fn contains(&self, key: &str, value: &str) -> bool {
        self.any(key, |wanted| value.contains(wanted))
    }

    /// One of the values is one of those given.
    pub(crate) fn any_of<'a>(&self, key: &str, values: impl Iterator<Item = &'a str> + Clone) -> bool {
        self.any(key, |wanted| values.clone().any(|value| value == wanted))
    }

    /// Every `name` or `name=value` is among the labels.
    pub(crate) fn labels(&self, key: &str, labels: &Labels) -> bool {
        self.values(key).all(|wanted| match wanted.split_once('=') {
            Some((name, value)) => labels.get(name).is_some_and(|found| found == value),
            None => labels.contains_key(wanted),
        })
    }

    /// `true`/`1` or `false`/`0`; anything else is refused in Docker's words.
    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>> {
        let mut flag = None;
        for value in self.values(key) {
            flag = Some(match value.to_ascii_lowercase().as_str() {
                "true" | "1" => true,
                "false" | "0" => false,
                _ => return Err(ApiError::bad_request(format!("Invalid filter '{key}=[{value}]'"))),
            });
        }
        Ok(flag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[&str] = &["name", "label", "dangling"];

    #[test]
    fn both_forms_mean_the_same() {
        let map = Filters::parse(Some(r#"{"name":{"a":true,"b":true,"c":false}}"#), KNOWN).unwrap();
        let list = Filters::parse(Some(r#"{"name":["b","a"]}"#), KNOWN).unwrap();
        assert_eq!(map, list);
        assert!(map.exact("name", "a") && !map.exact("name", "c"));
        assert!(map.prefix("name", "beta") && !map.prefix("name", "gamma"));
        assert!(map.exact("label", "whatever"), "a key that was not given keeps everything");
    }

    #[test]
    fn an_unknown_key_is_refused() {
        let error = Filters::parse(Some(r#"{"foo":["x"]}"#), KNOWN).unwrap_err();
        assert_eq!(error.message, "Invalid filter 'foo'");
        assert!(Filters::parse(Some("["), KNOWN).is_err());
        assert!(Filters::parse(Some("{\"name\":3}"), KNOWN).is_err());
        assert_eq!(Filters::parse(Some(""), KNOWN).unwrap(), Filters::default());
    }

    #[test]
    fn labels_must_all_match() {
        let labels = Labels::from([("a".into(), "b".into()), ("c".into(), String::new())]);
        let check = |text: &str| Filters::parse(Some(text), KNOWN).unwrap().labels("label", &labels);
        assert!(check(r#"{"label":["a=b","c"]}"#));
        assert!(!check(r#"{"label":["a=b","d"]}"#));
        assert!(!check(r#"{"label":["a=c"]}"#));
    }

    #[test]
    fn flags_are_read_as_docker_does() {
        let flag = |text: &str| Filters::parse(Some(text), KNOWN).unwrap().flag("dangling");
        assert_eq!(flag(r#"{"dangling":{"true":true}}"#), Ok(Some(true)));
        assert_eq!(flag(r#"{"dangling":["0"]}"#), Ok(Some(false)));
        assert_eq!(flag("{}"), Ok(None));
        assert!(flag(r#"{"dangling":["x"]}"#).is_err());
    }
}
