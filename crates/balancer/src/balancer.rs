//! The balancer's interface: what stands in the maps, changed so that no reader ever sees a half change.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use shoal_model::{Addressed, Backends, shares};

use crate::answerer;
use crate::layout::{BOUND, BY_SOURCE, BindingKey, CountKey, LocalKey, RawSandbox, Target};
use crate::load::{self, Answering, Maps};
use crate::pins::{self, PinnedMaps, Pins};
use crate::sets::{BACKENDS_MAX, absent_is_fine, found, map};
use crate::{
    BalancerConfig, Counted, Counts, Error, KernelState, LocalPort, NETWORKS_MAX, PortKey, Result,
    SandboxEntry, ServiceKey,
};

/// The connect-time balancer of one node.
///
/// All it knows is in the kernel, pinned: it may be dropped and opened again at any time, and what it
/// had set goes on balancing in between. Calls are short and never wait.
pub struct Balancer {
    root: PathBuf,
    pinned: PinnedMaps,
    answering: Mutex<Answering>,
    maps: Mutex<Maps>,
}

impl Balancer {
    /// Adopts what is pinned in this layout version and exchanges the programs for this build's; makes,
    /// attaches and pins what is missing. Mounts bpffs if needed.
    ///
    /// Needs `CAP_BPF`, `CAP_NET_ADMIN` and `CAP_SYS_ADMIN`, and Linux 6.1 or later.
    pub fn open(config: &BalancerConfig) -> Result<Self> {
        let pins = Pins::prepare(&config.pins)?;
        let mut maps = load::connect_programs(&pins)?;
        maps.sweep()?;
        let answering = Mutex::new(load::answering(&pins)?);
        let pinned = PinnedMaps::open(&pins)?;
        Ok(Self { root: config.pins.clone(), pinned, answering, maps: Mutex::new(maps) })
    }

    /// Removes what no VIP and no port leads to: left over where somebody else deleted from the maps.
    pub fn sweep(&self) -> Result<()> {
        self.maps().sweep()
    }

    /// What of programs and pins is not as [`open`](Self::open) left it, in words.
    pub fn differences(&self) -> Result<Vec<String>> {
        let pins = Pins::of(&self.root);
        let maps = self.pinned.missing(&pins).into_iter().map(|name| format!("map {name} is not pinned"));
        let links = load::missing_links(&pins)?.into_iter().map(|text| format!("program {text}"));
        Ok(maps.chain(links).collect())
    }

    /// Pins and attaches again what [`differences`](Self::differences) tells of; the maps keep what they
    /// hold.
    pub fn restore(&self) -> Result<()> {
        let pins = Pins::prepare(&self.root)?;
        let mut maps = self.maps();
        self.pinned.restore(&pins)?;
        load::discard_detached(&pins)?;
        *maps = load::connect_programs(&pins)?;
        Ok(())
    }

    /// Lets go of what builds with another layout version have pinned. To be called once everything has
    /// been set anew here: until then those still balance what they know.
    pub fn retire_other_layouts(&self) -> Result<()> {
        pins::retire_other_layouts(&self.root)
    }

    /// Unpins and so detaches everything of a node, whether a balancer is open or not. Idempotent.
    ///
    /// Answerers go with the interfaces that they are attached to.
    pub fn remove(config: &BalancerConfig) -> Result<()> {
        pins::remove_tree(&config.pins)
    }

    /// Says what the sockets of the namespace with this cookie may reach. Replaces what was said before.
    pub fn set_sandbox(&self, cookie: u64, entry: &SandboxEntry) -> Result<()> {
        let count = entry.networks.len();
        let raw = RawSandbox::new(entry).ok_or(Error::TooManyNetworks { count, max: NETWORKS_MAX })?;
        self.maps().sandboxes.insert(cookie, raw, 0).map_err(map("sandboxes"))
    }

    /// Forgets a namespace: its sockets are no longer translated. Idempotent.
    pub fn remove_sandbox(&self, cookie: u64) -> Result<()> {
        absent_is_fine(self.maps().sandboxes.remove(&cookie)).map_err(map("sandboxes"))?;
        self.forget_bridges()
    }

    /// Bridges of networks whose last sandbox is gone.
    fn forget_bridges(&self) -> Result<()> {
        let used: BTreeSet<u32> = {
            let maps = self.maps();
            let entries = maps.sandboxes.iter().map(|entry| entry.map(|(_, raw)| raw.entry().networks));
            let networks: Vec<Vec<u32>> = entries.collect::<Result<_, _>>().map_err(map("sandboxes"))?;
            networks.into_iter().flatten().collect()
        };
        let mut answering = lock(&self.answering);
        let known: Vec<u32> = answering.bridges.keys().collect::<Result<_, _>>().map_err(map("bridges"))?;
        for vni in known.into_iter().filter(|vni| !used.contains(vni)) {
            absent_is_fine(answering.bridges.remove(&vni)).map_err(map("bridges"))?;
        }
        Ok(())
    }

    /// Makes these the backends of a VIP, in one step. An empty set refuses connections at once.
    ///
    /// A UDP socket that was given a backend which is no longer one gets another with its next datagram;
    /// it keeps one that still is.
    ///
    /// Spread by source, a sandbox gets the same one whenever it asks.
    pub fn set_service(&self, key: ServiceKey, backends: &Backends<IpAddr>) -> Result<()> {
        let mut members = backends.members.iter();
        if let Some(&backend) = members.find(|backend| backend.is_ipv4() != key.address.is_ipv4()) {
            return Err(Error::Family { address: key.address, backend });
        }
        let (targets, flags) = slots(backends, Target::service)?;
        let mut maps = self.maps();
        let before = maps.backends(key)?.unwrap_or_default();
        let Maps { services, sets, .. } = &mut *maps;
        sets.replace(services, key.into(), &targets, flags)?;
        maps.forget_counts(key, before.difference(&backends.members))
    }

    /// Removes a VIP: who connects to it now meets the network itself. Idempotent.
    pub fn remove_service(&self, key: ServiceKey) -> Result<()> {
        let mut maps = self.maps();
        let before = maps.backends(key)?.unwrap_or_default();
        let Maps { services, sets, .. } = &mut *maps;
        sets.remove(services, key.into())?;
        maps.forget_counts(key, before.iter())?;
        [Counted::Rejected, Counted::Pinged].into_iter().try_for_each(|what| maps.forget_count(key, what))
    }

    /// How often what has happened to each VIP, all processors together.
    pub fn counts(&self) -> Result<Counts> {
        let maps = self.maps();
        let mut counts = Counts::new();
        for entry in maps.counts.iter() {
            let (key, numbers) = entry.map_err(map("counts"))?;
            if let Some(known) = key.read() {
                counts.insert(known, numbers.iter().sum());
            }
        }
        Ok(counts)
    }

    /// Leads the node's own clients of a published port to these backends; an empty set refuses.
    ///
    /// They reach it at every local address of the node of the key's version of IP, 127/8 or `::1` included.
    /// Backends are of one address family. An unconnected UDP socket cannot reach an IPv4 backend through
    /// `::1`, and no IPv4 socket an IPv6 backend.
    pub fn set_port(&self, key: PortKey, port: &LocalPort) -> Result<()> {
        let members = &port.backends.members;
        if members.iter().any(SocketAddr::is_ipv4) && members.iter().any(SocketAddr::is_ipv6) {
            return Err(Error::MixedFamilies(key.port));
        }
        let (targets, mut flags) = slots(&port.backends, Target::port)?;
        let mut maps = self.maps();
        if let Some(bound) = &port.bound {
            flags |= BOUND;
            for address in bound {
                let binding = BindingKey::new(key, *address);
                maps.bindings.insert(binding, 1, 0).map_err(map("bindings"))?;
            }
        }
        let Maps { ports, sets, .. } = &mut *maps;
        sets.replace(ports, key.into(), &targets, flags)?;
        let wanted = port.bound.clone().unwrap_or_default();
        maps.unbind(|binding| binding.port == key.into() && !wanted.contains(&binding.address()))
    }

    /// Stops leading clients of this port anywhere. Idempotent.
    pub fn remove_port(&self, key: PortKey) -> Result<()> {
        let mut maps = self.maps();
        let Maps { ports, sets, .. } = &mut *maps;
        sets.remove(ports, key.into())?;
        maps.unbind(|binding| binding.port == key.into())
    }

    /// Names the node's own namespace and the addresses at which its published ports are reached from
    /// inside it; 127/8 and `::1` always are.
    pub fn set_node(&self, cookie: u64, local_addresses: &BTreeSet<IpAddr>) -> Result<()> {
        let mut maps = self.maps();
        for address in local_addresses {
            maps.locals.insert(LocalKey::new(cookie, *address), 1, 0).map_err(map("locals"))?;
        }
        maps.node.set(0, cookie, 0).map_err(map("node"))?;
        let keys: Vec<LocalKey> = maps.locals.keys().collect::<Result<_, _>>().map_err(map("locals"))?;
        for key in keys {
            if key.cookie != cookie || !local_addresses.contains(&key.address()) {
                absent_is_fine(maps.locals.remove(&key)).map_err(map("locals"))?;
            }
        }
        Ok(())
    }

    /// Answers ARP, neighbour solicitation and ping for the VIPs of network `vni` on `interface`, the
    /// host side of a sandbox's veth in the namespace at `netns`; and leads IPv4 packets that reach a VIP
    /// without having passed `connect` to a backend, if the interface is a bridge's port.
    ///
    /// Attaching again replaces. It dies with the interface and outlives the daemon.
    pub fn attach_answerer(&self, netns: &Path, interface: &str, vni: u32) -> Result<()> {
        answerer::attach(netns, interface, vni, &mut lock(&self.answering))
    }

    /// Whether what [`attach_answerer`](Self::attach_answerer) attached is there.
    pub fn has_answerer(&self, netns: &Path, interface: &str) -> Result<bool> {
        answerer::is_attached(netns, interface)
    }

    /// How many flows to VIPs bypassed `connect` (raw sockets, nested namespaces) since the maps exist.
    pub fn bypassed_flows(&self) -> Result<u64> {
        lock(&self.answering).bypass_count.get(&0, 0).map_err(map("bypass_count"))
    }

    /// What the kernel really holds.
    pub fn read_back(&self) -> Result<KernelState> {
        let maps = self.maps();
        let mut state = KernelState::default();
        for entry in maps.sandboxes.iter() {
            let (cookie, raw) = entry.map_err(map("sandboxes"))?;
            state.sandboxes.insert(cookie, raw.entry());
        }
        for entry in maps.services.iter() {
            let (key, set) = entry.map_err(map("services"))?;
            let backends = maps.sets.backends_of(&set, Target::address)?;
            state.services.insert(key.into(), backends);
        }
        for entry in maps.ports.iter() {
            let (key, set) = entry.map_err(map("ports"))?;
            let backends = maps.sets.backends_of(&set, Target::socket_address)?;
            let bound = (set.flags & BOUND != 0).then(BTreeSet::new);
            state.ports.insert(key.into(), LocalPort { backends, bound });
        }
        for binding in maps.bindings.keys() {
            let binding = binding.map_err(map("bindings"))?;
            let port = state.ports.get_mut(&binding.port.into());
            if let Some(bound) = port.and_then(|port| port.bound.as_mut()) {
                bound.insert(binding.address());
            }
        }
        Ok(state)
    }

    /// The node's own namespace and addresses, as [`set_node`](Self::set_node) named them: what the kernel
    /// really holds.
    pub fn read_node(&self) -> Result<(u64, BTreeSet<IpAddr>)> {
        let maps = self.maps();
        let cookie = maps.node.get(&0, 0).map_err(map("node"))?;
        let keys: Vec<LocalKey> = maps.locals.keys().collect::<Result<_, _>>().map_err(map("locals"))?;
        let own = keys.iter().filter(|key| key.cookie == cookie).map(LocalKey::address);
        Ok((cookie, own.collect()))
    }

    fn maps(&self) -> MutexGuard<'_, Maps> {
        lock(&self.maps)
    }
}

/// A panic in the middle of a change leaves at most slots that nothing names; the next change is whole
/// again.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The slots that spread connections like that, and what the set has to say of it.
fn slots<A: Addressed + Copy + Ord>(
    backends: &Backends<A>,
    target: fn(A) -> Target,
) -> Result<(Vec<Target>, u32)> {
    let members: Vec<A> = backends.members.iter().copied().collect();
    if members.len() > BACKENDS_MAX {
        return Err(Error::TooManyBackends { count: members.len(), max: BACKENDS_MAX });
    }
    Ok(match backends.by_source {
        true => (shares(&members).into_iter().copied().map(target).collect(), BY_SOURCE),
        false => (members.into_iter().map(target).collect(), 0),
    })
}

impl Maps {
    /// Where a VIP leads now; `None` when it is none.
    fn backends(&self, key: ServiceKey) -> Result<Option<BTreeSet<IpAddr>>> {
        let set = found(self.services.get(&key.into(), 0)).map_err(map("services"))?;
        let targets = set.map(|set| self.sets.slots_of(&set)).transpose()?;
        Ok(targets.map(|targets| targets.iter().map(Target::address).collect()))
    }

    fn forget_counts<'a>(
        &mut self,
        key: ServiceKey,
        mut backends: impl Iterator<Item = &'a IpAddr>,
    ) -> Result<()> {
        backends.try_for_each(|backend| {
            self.forget_count(key, Counted::Connected(*backend))?;
            self.forget_count(key, Counted::Bypassing(*backend))
        })
    }

    fn forget_count(&mut self, key: ServiceKey, what: Counted) -> Result<()> {
        absent_is_fine(self.counts.remove(&CountKey::new(key, what))).map_err(map("counts"))
    }

    /// Counts of VIPs and backends that are none any more: a program that had just chosen one wrote after it
    /// was forgotten.
    fn sweep_counts(&mut self) -> Result<()> {
        let keys: Vec<CountKey> = self.counts.keys().collect::<Result<_, _>>().map_err(map("counts"))?;
        let mut members = BTreeMap::new();
        for (service, what) in keys.iter().filter_map(CountKey::read) {
            let backends = match members.entry(service) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(unknown) => unknown.insert(self.backends(service)?),
            };
            let is_known = backends.as_ref().is_some_and(|backends| match what {
                Counted::Connected(backend) | Counted::Bypassing(backend) => backends.contains(&backend),
                Counted::Rejected | Counted::Pinged => true,
            });
            if !is_known {
                self.forget_count(service, what)?;
            }
        }
        Ok(())
    }

    fn unbind(&mut self, stray: impl Fn(&BindingKey) -> bool) -> Result<()> {
        let keys: Vec<BindingKey> =
            self.bindings.keys().collect::<Result<_, _>>().map_err(map("bindings"))?;
        for key in keys.iter().filter(|key| stray(key)) {
            absent_is_fine(self.bindings.remove(key)).map_err(map("bindings"))?;
        }
        Ok(())
    }

    fn sweep(&mut self) -> Result<()> {
        let services = self.services.iter().map(|entry| entry.map(|(_, set)| set.number));
        let ports = self.ports.iter().map(|entry| entry.map(|(_, set)| set.number));
        let named = services.chain(ports).collect::<Result<_, _>>().map_err(map("entries"))?;
        self.sets.sweep(&named)?;
        self.sweep_counts()
    }
}
