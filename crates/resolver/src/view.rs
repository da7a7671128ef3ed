//! What one sandbox sees: its networks in order, and how names resolve over them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use shoal_model::trace::LookupVerdict;

use crate::names::{Entry, Names};

/// The current names of one network, shared by every view that includes it, so that an update takes
/// one swap however many sandboxes look at it.
pub type NetworkSlot = Arc<ArcSwap<Names>>;

/// Told of every place that a look-up looks at, and of what it comes to. Answering has one that is told
/// nothing, which costs nothing.
pub(crate) trait Witness {
    /// `by_network`: the name ended with that of the network.
    fn looked(&mut self, names: &Names, asked: &str, by_network: bool, found: Option<&Entry>);

    /// `found` as of [`Names::pointer`].
    fn looked_for_address(&mut self, names: &Names, address: IpAddr, found: Option<Option<&str>>);

    fn decided(&mut self, verdict: LookupVerdict);
}

/// Nobody looks on.
impl Witness for () {
    fn looked(&mut self, _: &Names, _: &str, _: bool, _: Option<&Entry>) {}

    fn looked_for_address(&mut self, _: &Names, _: IpAddr, _: Option<Option<&str>>) {}

    fn decided(&mut self, _: LookupVerdict) {}
}

/// One sandbox's way of seeing names.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// In look-up order: the first network that knows a name answers for every record type.
    pub networks: Vec<NetworkSlot>,
    /// No way out: names of the outside get SERVFAIL.
    pub internal: bool,
    /// `ndots` was chosen by a user: unknown single labels are not forwarded, since the client will
    /// come back with its search domains.
    pub ndots_set: bool,
    /// Names of the sandbox's own for others' names (Docker's links), in lower case: they go before all others.
    pub links: Arc<BTreeMap<String, String>>,
}

impl View {
    /// A view of names that never change.
    pub fn of(networks: impl IntoIterator<Item = Names>) -> Self {
        let networks = networks.into_iter().map(|names| Arc::new(ArcSwap::from_pointee(names))).collect();
        Self { networks, ..Self::default() }
    }

    /// Finds a lower-cased name without trailing dot, as Docker's sandboxes do: as it stands on every network; then
    /// as `<name>.<network>`, split at the last dot, the one before it, and so on. A name that is a link is the
    /// name it leads to.
    pub(crate) fn find<T>(
        &self,
        name: &str,
        witness: &mut impl Witness,
        found: impl FnOnce(&Names, &Entry) -> T,
    ) -> Option<T> {
        let meant = |name| self.links.get(name).map_or(name, String::as_str);
        let whole = meant(name);
        for network in &self.networks {
            let names = network.load();
            let entry = names.get(whole);
            witness.looked(&names, whole, false, entry);
            if let Some(entry) = entry {
                return Some(found(&names, entry));
            }
        }
        for (dot, _) in name.rmatch_indices('.') {
            let (head, suffix) = (meant(&name[..dot]), &name[dot + 1..]);
            for network in &self.networks {
                let names = network.load();
                if names.suffix() != suffix {
                    continue;
                }
                let entry = names.get(head);
                witness.looked(&names, head, true, entry);
                if let Some(entry) = entry {
                    return Some(found(&names, entry));
                }
            }
        }
        None
    }

    /// The primary name of an address, network name included; `Some(None)` when the address is ours
    /// but nameless.
    pub(crate) fn pointer(&self, address: IpAddr, witness: &mut impl Witness) -> Option<Option<String>> {
        self.networks.iter().find_map(|network| {
            let names = network.load();
            let found = names.pointer(address);
            witness.looked_for_address(&names, address, found);
            found.map(|name| name.map(str::to_owned))
        })
    }
}
