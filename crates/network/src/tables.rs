//! The node's own nftables: fixed rules, and sets whose elements are changed one by one.
//!
//! What the kernel holds is read once and then followed, so that a change costs one `nft` process and
//! no look at the whole rule set. When the kernel disagrees (somebody flushed our table), the rules
//! are put back and the change is planned anew from what is really there.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::Value;
use shoal_model::MacAddr;

use crate::netns::Namespace;
use crate::nft;
use crate::{Error, Result};

/// A set or map of `rules.nft` and `return_path.nft`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Set {
    DataPorts,
    Tunnels,
    Members,
    Zones,
    Marks,
    Homes,
    Returns,
    Ports16,
    Ports128,
    Ports1024,
    HostPorts,
    Refused,
}

impl Set {
    /// Family, kind and name.
    fn place(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::DataPorts => ("ip", "set", "data_ports"),
            Self::Tunnels => ("ip", "set", "tunnels"),
            Self::Members => ("ip", "set", "members"),
            Self::Zones => ("ip", "map", "zones"),
            Self::Marks => ("ip", "map", "marks"),
            Self::Homes => ("ip", "set", "homes"),
            Self::Returns => ("netdev", "map", "returns"),
            Self::Ports16 => ("ip", "map", "ports16"),
            Self::Ports128 => ("ip", "map", "ports128"),
            Self::Ports1024 => ("ip", "map", "ports1024"),
            Self::HostPorts => ("ip", "map", "host_ports"),
            Self::Refused => ("ip", "set", "refused"),
        }
    }
}

/// Elements by key; the values of sets are empty. Both are in nft's own words.
pub(crate) type Elements = BTreeMap<String, String>;

/// The elements of several sets.
pub(crate) type Held = BTreeMap<Set, Elements>;

/// One element to put (over another value, if need be) or to remove.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Edit {
    pub(crate) set: Set,
    pub(crate) key: String,
    /// `None` removes it.
    pub(crate) value: Option<String>,
}

/// What must be edited so that `held` becomes `wanted`; `stray` says which of the elements that
/// nobody wants are to go.
pub(crate) fn difference(
    set: Set,
    held: &Held,
    wanted: &Elements,
    stray: impl Fn(&str, &str) -> bool,
) -> Vec<Edit> {
    let empty = Elements::new();
    let held = held.get(&set).unwrap_or(&empty);
    let gone = held
        .iter()
        .filter(|(key, value)| !wanted.contains_key(*key) && stray(key, value))
        .map(|(key, _)| Edit { set, key: key.clone(), value: None });
    let new = wanted.iter().filter(|(key, value)| held.get(*key) != Some(value)).map(|(key, value)| Edit {
        set,
        key: key.clone(),
        value: Some(value.clone()),
    });
    gone.chain(new).collect()
}

/// The tables of one node.
pub(crate) struct Tables {
    namespace: Namespace,
    tag: String,
    /// The rules were put into force by this process.
    rules: bool,
    /// The way back was, too: for replies to this link address.
    return_path: Option<MacAddr>,
    /// What the kernel is known to hold.
    held: Held,
}

impl Tables {
    pub(crate) fn new(namespace: Namespace, tag: &str) -> Self {
        Self { namespace, tag: tag.to_owned(), rules: false, return_path: None, held: Held::new() }
    }

    /// Puts the rules into force, whatever was there of ours.
    pub(crate) async fn ensure(&mut self) -> Result<()> {
        if !self.rules {
            self.check_owner("ip").await?;
            let rules = include_str!("rules.nft").replace("TAG", &self.tag);
            nft::apply(&self.namespace, rules).await?;
            if let Some(nobody) = self.return_path {
                self.put_return_path(nobody).await?;
            }
            self.rules = true;
        }
        Ok(())
    }

    /// Puts the way back through the ingress tunnel into force, for replies addressed to `nobody`.
    /// The tunnel's link must exist; when it is `fresh`, nothing of before counts.
    pub(crate) async fn ensure_return_path(&mut self, nobody: MacAddr, fresh: bool) -> Result<()> {
        if fresh || self.return_path.is_none() {
            self.put_return_path(nobody).await?;
            self.return_path = Some(nobody);
        }
        Ok(())
    }

    async fn put_return_path(&mut self, nobody: MacAddr) -> Result<()> {
        self.check_owner("netdev").await?;
        let rules =
            include_str!("return_path.nft").replace("TAG", &self.tag).replace("NOBODY", &nobody.to_string());
        self.held.remove(&Set::Returns);
        nft::apply(&self.namespace, rules).await
    }

    /// Brings the elements of some sets to what `plan` wants, given what is held; returns what was done.
    pub(crate) async fn edit(
        &mut self,
        sets: &[Set],
        plan: impl Fn(&Held) -> Vec<Edit>,
    ) -> Result<Vec<Edit>> {
        match self.try_edit(sets, &plan).await {
            // What we believed of the kernel is wrong.
            Err(error) if matches!(error, Error::Nft(_)) => {
                tracing::warn!(%error, "the node's nft tables were changed by somebody else; putting them back");
                self.forget();
                self.try_edit(sets, &plan).await
            }
            result => result,
        }
    }

    async fn try_edit(&mut self, sets: &[Set], plan: &impl Fn(&Held) -> Vec<Edit>) -> Result<Vec<Edit>> {
        for set in sets {
            if !self.held.contains_key(set) {
                let elements = self.read(*set).await?;
                self.held.insert(*set, elements);
            }
        }
        let edits = plan(&self.held);
        if edits.is_empty() {
            return Ok(edits);
        }
        self.ensure().await?;
        nft::apply(&self.namespace, script(&edits, &self.held)).await?;
        for edit in &edits {
            let elements = self.held.entry(edit.set).or_default();
            match &edit.value {
                Some(value) => elements.insert(edit.key.clone(), value.clone()),
                None => elements.remove(&edit.key),
            };
        }
        Ok(edits)
    }

    /// What the kernel really holds in a set; nothing where the table does not exist.
    pub(crate) async fn read(&self, set: Set) -> Result<Elements> {
        let (family, kind, name) = set.place();
        match nft::list(&self.namespace, vec![kind, family, "shoal", name]).await {
            Ok(listing) => {
                parse(&listing).ok_or_else(|| Error::Unexpected(format!("nft's listing of {name}")))
            }
            Err(error) if nft::is_missing(&error) => Ok(Elements::new()),
            Err(error) => Err(error),
        }
    }

    /// Knows nothing any more of what the kernel holds.
    pub(crate) fn forget(&mut self) {
        self.rules = false;
        self.held.clear();
    }

    /// Removes the tables.
    pub(crate) async fn remove(&mut self) -> Result<()> {
        self.forget();
        self.remove_table("ip").await?;
        self.remove_return_path().await
    }

    /// The inverse of [`ensure_return_path`](Self::ensure_return_path).
    pub(crate) async fn remove_return_path(&mut self) -> Result<()> {
        self.held.remove(&Set::Returns);
        self.return_path = None;
        self.remove_table("netdev").await
    }

    /// Another owner's table of the same name stays.
    async fn remove_table(&self, family: &str) -> Result<()> {
        if self.owner(family).await?.is_some_and(|owner| owner == self.tag) {
            nft::apply(&self.namespace, format!("delete table {family} shoal\n")).await?;
        }
        Ok(())
    }

    async fn check_owner(&self, family: &str) -> Result<()> {
        match self.owner(family).await? {
            Some(owner) if owner != self.tag => {
                Err(Error::Foreign { name: format!("nft table {family} shoal") })
            }
            _ => Ok(()),
        }
    }

    /// The tag that a table of our name carries.
    async fn owner(&self, family: &str) -> Result<Option<String>> {
        match nft::outline(&self.namespace, family).await {
            Ok(text) => {
                let comment = text.lines().find_map(|line| line.trim().strip_prefix("comment \""));
                Ok(Some(comment.and_then(|rest| rest.strip_suffix('"')).unwrap_or_default().to_owned()))
            }
            Err(error) if nft::is_missing(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn script(edits: &[Edit], held: &Held) -> String {
    let mut script = String::new();
    for edit in edits {
        let (family, _, name) = edit.set.place();
        let key = &edit.key;
        let exists = held.get(&edit.set).is_some_and(|elements| elements.contains_key(key));
        // An element's value cannot be changed in place; both halves take effect at once.
        if exists {
            let _ = writeln!(script, "delete element {family} shoal {name} {{ {key} }}");
        }
        match edit.value.as_deref() {
            Some("") => {
                let _ = writeln!(script, "add element {family} shoal {name} {{ {key} }}");
            }
            Some(value) => {
                let _ = writeln!(script, "add element {family} shoal {name} {{ {key} : {value} }}");
            }
            None => {}
        }
    }
    script
}

/// The elements in the listing of one set or map.
fn parse(listing: &Value) -> Option<Elements> {
    let objects = listing.get("nftables")?.as_array()?;
    let set = objects.iter().find_map(|object| object.get("set").or_else(|| object.get("map")))?;
    let is_map = set.get("map").is_some();
    let Some(elements) = set.get("elem") else { return Some(Elements::new()) };
    elements
        .as_array()?
        .iter()
        .map(|element| {
            if is_map {
                let [key, value] = element.as_array()?.as_slice() else { return None };
                Some((words(key)?, words(value)?))
            } else {
                Some((words(element)?, String::new()))
            }
        })
        .collect()
}

fn words(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Object(object) => {
            let parts: Option<Vec<String>> = object.get("concat")?.as_array()?.iter().map(words).collect();
            Some(parts?.join(" . "))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elements(of: &[(&str, &str)]) -> Elements {
        of.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn only_what_differs_is_edited() {
        let held = Held::from([(Set::Ports16, elements(&[("a", "1"), ("b", "2"), ("c", "3")]))]);
        let edits =
            difference(Set::Ports16, &held, &elements(&[("b", "2"), ("c", "4"), ("d", "5")]), |_, _| true);
        assert_eq!(
            script(&edits, &held),
            "delete element ip shoal ports16 { a }\n\
             delete element ip shoal ports16 { c }\nadd element ip shoal ports16 { c : 4 }\n\
             add element ip shoal ports16 { d : 5 }\n"
        );
        assert_eq!(difference(Set::Ports16, &held, &held[&Set::Ports16], |_, _| true), []);
    }

    #[test]
    fn strays_of_others_are_left() {
        let held = Held::from([(Set::Members, elements(&[("x . 1", ""), ("x . 2", "")]))]);
        let edits = difference(Set::Members, &held, &Elements::new(), |key, _| key.ends_with(". 2"));
        assert_eq!(script(&edits, &held), "delete element ip shoal members { x . 2 }\n");
    }

    #[test]
    fn listings_are_read_as_they_are_written() {
        let listing = serde_json::json!({"nftables": [{"metainfo": {}}, {"map": {"map": "ipv4_addr . inet_service",
            "elem": [[{"concat": ["tcp", 8000, 3]}, {"concat": ["10.0.0.5", 80]}]]}}]});
        assert_eq!(parse(&listing), Some(elements(&[("tcp . 8000 . 3", "10.0.0.5 . 80")])));
        let listing = serde_json::json!({"nftables": [{"set": {"elem": [4789]}}]});
        assert_eq!(parse(&listing), Some(elements(&[("4789", "")])));
        assert_eq!(parse(&serde_json::json!({"nftables": [{"set": {}}]})), Some(Elements::new()));
    }
}
