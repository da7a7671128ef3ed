//! The node's own nftables: fixed rules, and sets whose elements are changed one by one.
//!
//! What the kernel holds is read once and then followed, so that a change costs one `nft` process and
//! no look at the whole rule set. When the kernel disagrees (somebody flushed our table), the rules
//! are put back and the change is planned anew from what is really there.

use std::collections::BTreeMap;
use std::fmt::Write;

use shoal_model::MacAddr;

use crate::netns::Namespace;
use crate::{Error, Result};
use crate::{nft, nftables};

/// The family of the table that holds all but the way back: both versions of IP.
const INET: &str = "inet";

/// A set or map of `rules.nft` and `return_path.nft`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Set {
    DataPorts,
    Tunnels,
    Members,
    Zones,
    Marks,
    Homes,
    Homes6,
    Returns,
    Ports16,
    Ports128,
    Ports1024,
    Ports16V6,
    Ports128V6,
    Ports1024V6,
    HostPorts,
    HostPortsV6,
    HostBound,
    HostBoundAddresses,
    HostBoundAddressesV6,
    Refused,
    BySource,
    BySourceV6,
    Bound,
    BoundAddresses,
    BoundAddressesV6,
    BoundLinks,
    Restricted,
    Clients,
    ClientsV6,
    Bridges,
    Masqueraded,
    Internal,
    Open,
}

impl Set {
    /// Family, kind and name.
    pub(crate) fn place(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::DataPorts => (INET, "set", "data_ports"),
            Self::Tunnels => (INET, "set", "tunnels"),
            Self::Members => (INET, "set", "members"),
            Self::Zones => (INET, "map", "zones"),
            Self::Marks => (INET, "map", "marks"),
            Self::Homes => (INET, "set", "homes"),
            Self::Homes6 => (INET, "set", "homes6"),
            Self::Returns => ("netdev", "map", "returns"),
            Self::Ports16 => (INET, "map", "ports16"),
            Self::Ports128 => (INET, "map", "ports128"),
            Self::Ports1024 => (INET, "map", "ports1024"),
            Self::Ports16V6 => (INET, "map", "ports16_6"),
            Self::Ports128V6 => (INET, "map", "ports128_6"),
            Self::Ports1024V6 => (INET, "map", "ports1024_6"),
            Self::HostPorts => (INET, "map", "host_ports"),
            Self::HostPortsV6 => (INET, "map", "host_ports6"),
            Self::HostBound => (INET, "set", "host_bound"),
            Self::HostBoundAddresses => (INET, "set", "host_bound_addresses"),
            Self::HostBoundAddressesV6 => (INET, "set", "host_bound_addresses6"),
            Self::Refused => (INET, "set", "refused"),
            Self::BySource => (INET, "map", "by_source"),
            Self::BySourceV6 => (INET, "map", "by_source6"),
            Self::Bound => (INET, "set", "bound"),
            Self::BoundAddresses => (INET, "set", "bound_addresses"),
            Self::BoundAddressesV6 => (INET, "set", "bound_addresses6"),
            Self::BoundLinks => (INET, "set", "bound_links"),
            Self::Restricted => (INET, "set", "restricted"),
            Self::Clients => (INET, "set", "clients"),
            Self::ClientsV6 => (INET, "set", "clients6"),
            Self::Bridges => (INET, "set", "bridges"),
            Self::Masqueraded => (INET, "set", "masqueraded"),
            Self::Internal => (INET, "set", "internal"),
            Self::Open => (INET, "set", "open"),
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

impl Edit {
    /// The difference that it would do away with.
    fn describe(&self, held: &Held) -> String {
        let (_, _, name) = self.set.place();
        let key = &self.key;
        let found = held.get(&self.set).and_then(|elements| elements.get(key));
        match (&self.value, found) {
            (None, _) => format!("nft: {name} holds {key}, which nobody wants"),
            (Some(_), None) => format!("nft: {name} lacks {key}"),
            (Some(wanted), Some(found)) => format!("nft: {name} leads {key} to {found}, not {wanted}"),
        }
    }
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
    /// The rules were put into force by this process, and looked like this.
    rules: Option<u64>,
    /// The way back was, too.
    return_path: Option<u64>,
    /// What the kernel is known to hold.
    held: Held,
}

impl Tables {
    pub(crate) fn new(namespace: Namespace, tag: &str) -> Self {
        Self { namespace, tag: tag.to_owned(), rules: None, return_path: None, held: Held::new() }
    }

    /// Puts the rules into force, whatever was there of ours.
    pub(crate) async fn ensure(&mut self) -> Result<()> {
        if self.rules.is_none() {
            self.check_owner(INET).await?;
            let rules = include_str!("rules.nft").replace("TAG", &self.tag);
            nft::apply(&self.namespace, rules).await?;
            self.rules = Some(self.fingerprint(INET).await?);
        }
        Ok(())
    }

    async fn fingerprint(&self, family: &'static str) -> Result<u64> {
        let read = nftables::fingerprint(&self.namespace, family).await?;
        read.ok_or_else(|| Error::Unexpected(format!("no nft table {family} shoal right after it was made")))
    }

    /// Puts the way back through the ingress tunnel into force, for replies addressed to `nobody`.
    /// The tunnel's link must exist; when it is `fresh`, nothing of before counts.
    pub(crate) async fn ensure_return_path(&mut self, nobody: MacAddr, fresh: bool) -> Result<()> {
        if fresh || self.return_path.is_none() {
            self.put_return_path(nobody).await?;
        }
        Ok(())
    }

    async fn put_return_path(&mut self, nobody: MacAddr) -> Result<()> {
        self.check_owner("netdev").await?;
        let rules =
            include_str!("return_path.nft").replace("TAG", &self.tag).replace("NOBODY", &nobody.to_string());
        self.held.remove(&Set::Returns);
        nft::apply(&self.namespace, rules).await?;
        self.return_path = Some(self.fingerprint("netdev").await?);
        Ok(())
    }

    /// The rules really say something else than what was put into force, in words.
    pub(crate) async fn rule_difference(&self) -> Result<Option<String>> {
        match self.rules {
            Some(put) => self.changed(INET, put).await,
            None => Ok(None),
        }
    }

    /// As [`rule_difference`](Self::rule_difference), for the way back that the ingress needs.
    pub(crate) async fn return_path_difference(&self) -> Result<Option<String>> {
        match self.return_path {
            Some(put) => self.changed("netdev", put).await,
            None => Ok(Some("nft: the way back to other nodes is not in force".to_owned())),
        }
    }

    async fn changed(&self, family: &'static str, put: u64) -> Result<Option<String>> {
        Ok(match nftables::fingerprint(&self.namespace, family).await? {
            None => Some(format!("nft: table {family} shoal is gone")),
            Some(found) if found != put => {
                Some(format!("nft: the rules of table {family} shoal were changed"))
            }
            Some(_) => None,
        })
    }

    /// What sets really hold is not what `plan` wants of them, in words.
    pub(crate) async fn element_differences(
        &self,
        sets: &[Set],
        plan: impl Fn(&Held) -> Vec<Edit>,
    ) -> Result<Vec<String>> {
        let held = nftables::elements(&self.namespace, sets.to_vec()).await?;
        Ok(plan(&held).iter().map(|edit| edit.describe(&held)).collect())
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
        let unknown: Vec<Set> = sets.iter().filter(|set| !self.held.contains_key(set)).copied().collect();
        if !unknown.is_empty() {
            self.held.extend(self.read(unknown).await?);
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

    /// What the kernel really holds in some sets; nothing where the table does not exist.
    pub(crate) async fn read(&self, sets: Vec<Set>) -> Result<Held> {
        nftables::elements(&self.namespace, sets).await
    }

    /// Knows nothing any more of what the kernel holds. The way back is put again with the ingress,
    /// since its tunnel may be gone as well.
    fn forget(&mut self) {
        self.rules = None;
        self.return_path = None;
        self.held.clear();
    }

    /// Reads all elements again before the next change; with `ingress` the way back is put again.
    pub(crate) fn distrust(&mut self, ingress: bool) {
        self.held.clear();
        if ingress {
            self.return_path = None;
        }
    }

    /// Puts the rules into force again.
    pub(crate) async fn renew_rules(&mut self) -> Result<()> {
        self.rules = None;
        self.ensure().await
    }

    /// Removes the tables.
    pub(crate) async fn remove(&mut self) -> Result<()> {
        self.forget();
        self.remove_table(INET).await?;
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
            "delete element inet shoal ports16 { a }\n\
             delete element inet shoal ports16 { c }\nadd element inet shoal ports16 { c : 4 }\n\
             add element inet shoal ports16 { d : 5 }\n"
        );
        assert_eq!(difference(Set::Ports16, &held, &held[&Set::Ports16], |_, _| true), []);
    }

    #[test]
    fn strays_of_others_are_left() {
        let held = Held::from([(Set::Members, elements(&[("x . 1", ""), ("x . 2", "")]))]);
        let edits = difference(Set::Members, &held, &Elements::new(), |key, _| key.ends_with(". 2"));
        assert_eq!(script(&edits, &held), "delete element inet shoal members { x . 2 }\n");
    }
}
