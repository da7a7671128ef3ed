//! The node's network as a whole.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use shoal_model::{NetworkId, NetworkTable, NodeId, Protocol};
use tokio::sync::{Mutex, watch};

use crate::conntrack::{self, Flow, Look};
use crate::error::Failures;
use crate::follow::{self, Followed};
use crate::ingress::{self, Blueprint, Ingress};
use crate::link::Tunnel;
use crate::mtu::Size;
use crate::netlink::Netlink;
use crate::netns::{Directory, Namespace};
use crate::overlay::{self, Overlay, Remotes};
use crate::owner::{GATEWAY, INGRESS_TUNNEL, is_node_link, netns_name};
use crate::state::{Found, State, has_gateway};
use crate::tables::{Held, Tables};
use crate::{
    Error, FabricState, HostPorts, NetworkConfig, OwnNetwork, Ports, Result, Sandbox, membership, ports,
    sysctl,
};

/// The node's sandboxes, overlays and ingress. Clones are the same fabric.
#[derive(Clone)]
pub struct Fabric {
    pub(crate) inner: Arc<Inner>,
}

/// The MTU of a link of which nothing is known.
const ETHERNET: u32 = 1500;

pub(crate) struct Inner {
    pub(crate) tag: String,
    pub(crate) directory: Directory,
    /// The node's own namespace.
    pub(crate) namespace: Namespace,
    pub(crate) netlink: Netlink,
    pub(crate) state: Mutex<State>,
    /// Taken after `state` where both are needed.
    pub(crate) tables: Mutex<Tables>,
    addresses: Followed<BTreeSet<IpAddr>>,
    own_network: Followed<OwnNetwork>,
    mtus: Followed<BTreeMap<IpAddr, u32>>,
    /// Of the underlay, when its address was last there.
    last_mtu: AtomicU32,
}

impl Fabric {
    /// Takes over what the node has in the kernel; makes and changes nothing. The node's own namespace
    /// is the one the calling thread is in.
    pub async fn open(config: NetworkConfig) -> Result<Self> {
        let namespace = Namespace::current()?;
        let netlink = Netlink::open(&namespace).await?;
        let directory = Directory::new(&config.run_dir);
        let found = Found::scan(&directory, &namespace, &netlink, &config.tag).await?;
        let addresses = follow::addresses(&namespace, &netlink).await?;
        let own_network = follow::own_network(&namespace, &netlink).await?;
        let mtus = follow::mtus(&namespace, &netlink).await?;
        let mut state = State { sandboxes: found.sandboxes, ..State::default() };
        state.last_gateway_address = state.gateway_addresses().last().copied();
        let fabric = Self {
            inner: Arc::new(Inner {
                tables: Mutex::new(Tables::new(namespace.clone(), &config.tag)),
                tag: config.tag,
                directory,
                namespace,
                netlink,
                state: Mutex::new(state),
                addresses,
                own_network,
                mtus,
                last_mtu: AtomicU32::new(ETHERNET),
            }),
        };
        if let (Some(node), Some(underlay)) = (config.node, config.underlay) {
            fabric.set_node(node, underlay).await?;
        }
        Ok(fabric)
    }

    /// Says who this node is and where its tunnels end. Networks applied before are not moved.
    pub async fn set_node(&self, node: NodeId, underlay: IpAddr) -> Result<()> {
        let IpAddr::V4(underlay) = underlay else {
            return Err(Error::Unsupported { what: "the data path", address: underlay });
        };
        self.inner.state.lock().await.node = Some((node, underlay));
        Ok(())
    }

    /// Builds the network on this node, or what is missing of it, and adds the ways to the endpoints
    /// on other nodes. Removes nothing: what the table does not hold goes with
    /// [`prune_network`](Self::prune_network).
    pub async fn apply_network(&self, table: &NetworkTable) -> Result<()> {
        self.reconcile(table, false).await
    }

    /// What keeps the network from being built on this node, for as long as it is there; found out before.
    pub async fn obstacle(&self, table: &NetworkTable) -> Result<Option<Error>> {
        self.inner.local_obstacle(table).await
    }

    /// Removes every way that the table does not hold.
    pub async fn prune_network(&self, table: &NetworkTable) -> Result<()> {
        self.reconcile(table, true).await
    }

    async fn reconcile(&self, table: &NetworkTable, prune: bool) -> Result<()> {
        let inner = &*self.inner;
        let mut state = inner.state.lock().await;
        if !table.config.is_overlay() {
            return inner.ensure_local(&mut state, table).await;
        }
        let (node, underlay) = state.node.clone().ok_or(Error::NoNode)?;
        let mtu = Size::of(&table.config).within(inner.underlay_mtu(underlay).await?);
        let mut tables = inner.tables.lock().await;
        membership::apply(&mut tables, table, &node, prune).await?;
        if table.config.ingress {
            let wanted = Blueprint::of(table, &node, underlay, mtu, sysctl::has_ipv6())?;
            let ingress =
                Ingress::ensure(&inner.namespace, &inner.netlink, &mut tables, &inner.tag, &wanted).await?;
            ingress.apply(&inner.netlink, &mut tables, &wanted, prune).await?;
            drop(tables);
            let doubted = state.doubted.remove(&table.network);
            if state.ingress.replace(ingress).is_none_or(|former| former.mtu != mtu) || doubted {
                inner.fit_ingress(&mut state, mtu).await?;
            }
        } else {
            drop(tables);
            let overlay = inner.ensure_overlay(&state, table, underlay, mtu).await?;
            overlay.apply(&Remotes::of(table, &node), prune).await?;
            let former = state.overlays.insert(table.network.clone(), overlay);
            let doubted = state.doubted.remove(&table.network);
            if former.is_none_or(|former| former.mtu != mtu) || doubted {
                inner.fit_overlay(&mut state, &table.network, mtu).await?;
            }
        }
        Ok(())
    }

    /// Removes the network from this node; one that is not there is fine.
    pub async fn remove_network(&self, network: &NetworkId) -> Result<()> {
        let inner = &*self.inner;
        let mut state = inner.state.lock().await;
        let found = inner.scan().await?;
        let mut failures = Failures::default();
        if found.ingress.as_ref() == Some(network) {
            state.ingress = None;
            failures.note(ingress::remove(&inner.netlink, &mut *inner.tables.lock().await).await);
        }
        if let Some(link) = found.locals.get(network) {
            failures.note(inner.remove_local(&mut state, network, link).await);
        }
        state.locals.remove(network);
        state.overlays.remove(network);
        state.doubted.remove(network);
        if let Some(Some(namespace)) = found.overlays.get(network) {
            failures.note(Overlay::remove_links(namespace).await);
        }
        failures.note(inner.directory.remove(&netns_name(network)));
        inner.directory.remove_if_empty();
        failures.note(inner.retain_tunnels().await);
        failures.finish()
    }

    /// The sandboxes that exist, by id.
    pub async fn sandboxes(&self) -> Result<Vec<String>> {
        Ok(self.inner.scan().await?.sandboxes.into_keys().collect())
    }

    /// Publishes exactly these ports of the routing mesh. Connections that are under way are left
    /// alone; those that a backend which is gone never answered start anew with their next packet, and
    /// so do all UDP flows to it.
    pub async fn apply_ports(&self, ports: &Ports) -> Result<()> {
        let wanted = ports::elements(ports, self.inner.number().await);
        let mut tables = self.inner.tables.lock().await;
        let edits = tables.edit(&ports::SETS, |held| ports::plan(&wanted, held)).await?;
        drop(tables);
        let backends = |port| ports.get(&port).map(|port| port.backends.members.clone()).unwrap_or_default();
        self.redirect(&ports::changed(&edits), backends).await
    }

    /// Publishes exactly these ports of single containers on this node (`mode=host`).
    pub async fn host_ports(&self, ports: &HostPorts) -> Result<()> {
        let wanted = ports::host_elements(ports);
        let plan = |held: &Held| ports::plan(&wanted, held);
        let edits = self.inner.tables.lock().await.edit(&ports::HOST_SETS, plan).await?;
        let backends = |port| ports.get(&port).map(|port| port.backends.clone()).unwrap_or_default();
        self.redirect(&ports::changed(&edits), backends).await
    }

    /// Forgets the tracked flows to these ports of this node that lead anywhere but to a current
    /// backend: they would go on to do so, and new ones with them that happen to have the same client
    /// port. A TCP connection that was answered is not among them.
    async fn redirect(
        &self,
        changed: &BTreeSet<(Protocol, u16)>,
        backends: impl Fn((Protocol, u16)) -> BTreeSet<SocketAddr>,
    ) -> Result<()> {
        if changed.is_empty() {
            return Ok(());
        }
        let numbered = |&port: &(Protocol, u16)| ((conntrack::number(port.0), port.1), backends(port));
        let current: BTreeMap<(u8, u16), BTreeSet<SocketAddr>> = changed.iter().map(numbered).collect();
        let local = self.local_addresses().await?;
        let doomed = move |flow: &Flow| {
            let port = (flow.original.protocol, flow.original.destination_port);
            let Some(backends) = current.get(&port) else { return false };
            (flow.original.protocol == conntrack::UDP || !flow.answered)
                && local.contains(&flow.original.destination)
                && !backends.contains(&SocketAddr::new(flow.reply.source, flow.reply.source_port))
        };
        let look = match changed.iter().any(|(protocol, _)| *protocol == Protocol::Udp) {
            true => Look::All,
            false => Look::Unanswered,
        };
        conntrack::delete(&self.inner.namespace, look, doomed).await.map(drop)
    }

    /// Where the ports of the routing mesh really lead in the kernel.
    pub async fn read_ports(&self) -> Result<BTreeMap<(Protocol, u16), BTreeSet<SocketAddr>>> {
        let tables = self.inner.tables.lock().await;
        Ok(ports::parse(&tables.read(ports::SETS.to_vec()).await?))
    }

    /// Deletes the connection tracking entries of flows to a backend that will not answer any more:
    /// what comes next of them is refused, or led to another one, which does not know them either.
    pub async fn forget_flows(&self, backend: IpAddr) -> Result<()> {
        let doomed = move |flow: &Flow| flow.reply.source == backend;
        conntrack::delete(&self.inner.namespace, Look::All, doomed).await.map(drop)
    }

    /// What the node's own namespace has addresses in and routes to, the default route aside; and those of these
    /// subnets that the cluster's own bridges have.
    pub async fn occupied(&self) -> Result<(Vec<IpNet>, Vec<IpNet>)> {
        let netlink = &self.inner.netlink;
        let links = netlink.links().await?;
        let ours: BTreeSet<u32> =
            links.iter().filter(|link| is_node_link(&link.name)).map(|link| link.index).collect();
        let addresses = netlink.addresses().await?;
        let own = addresses.iter().filter(|(index, _)| ours.contains(index));
        let own = own.map(|(_, address)| address.trunc()).collect();
        let mut all: Vec<IpNet> = addresses.iter().map(|(_, address)| address.trunc()).collect();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let routes = netlink.routes(family).await?.into_iter().map(|route| route.destination);
            all.extend(routes.filter(|destination| destination.prefix_len() > 0));
        }
        Ok((all, own))
    }

    /// The addresses of the node's own namespace, loopback aside.
    pub async fn local_addresses(&self) -> Result<BTreeSet<IpAddr>> {
        follow::read_addresses(self.inner.netlink.clone()).await
    }

    /// Always holds the addresses of the node's own namespace, loopback aside.
    pub fn address_changes(&self) -> watch::Receiver<BTreeSet<IpAddr>> {
        self.inner.addresses.changes()
    }

    /// Always holds the node's own routes and addresses.
    pub fn own_network(&self) -> watch::Receiver<OwnNetwork> {
        self.inner.own_network.changes()
    }

    /// Changes when [`follow_mtu`](Self::follow_mtu) may have something to do.
    pub fn mtu_changes(&self) -> watch::Receiver<BTreeMap<IpAddr, u32>> {
        self.inner.mtus.changes()
    }

    /// What the kernel holds of a network.
    pub async fn read_back(&self, network: &NetworkId) -> Result<FabricState> {
        let mut read = self.read_ways(network).await?;
        let sandboxes = self.inner.scan().await?.sandboxes;
        let links = sandboxes.values().flat_map(|sandbox| &sandbox.links);
        let links = links.filter(|link| link.network.as_ref() == Some(network));
        read.local = links.filter_map(|link| link.address).map(|address| address.addr()).collect();
        Ok(read)
    }

    /// As [`read_back`](Self::read_back), without a look for sandboxes, which takes the whole node.
    pub async fn read_ways(&self, network: &NetworkId) -> Result<FabricState> {
        let inner = &*self.inner;
        let (overlay, ingress) = {
            let state = inner.state.lock().await;
            if state.locals.contains_key(network) {
                return Ok(FabricState::default());
            }
            let ingress = state.ingress.clone().filter(|ingress| ingress.network == *network);
            (state.overlays.get(network).cloned(), ingress)
        };
        match (overlay, ingress) {
            (Some(overlay), _) => overlay.read_back().await,
            (None, Some(ingress)) => ingress.read_back(&inner.netlink).await,
            (None, None) => Err(Error::NetworkNotApplied(network.clone())),
        }
    }

    /// Removes everything of this node that nobody claims: sandboxes and networks not named here, and
    /// what is left of half-made ones.
    pub async fn prune(
        &self,
        keep_sandboxes: &HashSet<String>,
        keep_networks: &HashSet<NetworkId>,
    ) -> Result<()> {
        let inner = &*self.inner;
        let found = inner.scan().await?;
        let mut failures = Failures::default();
        for (namespace, link) in &found.unfinished {
            failures.note(remove_link(namespace, link).await);
        }
        for id in found.sandboxes.keys().filter(|id| !keep_sandboxes.contains(*id)) {
            failures.note(self.remove_sandbox(id).await);
        }
        for network in found.overlays.keys().chain(&found.ingress).chain(found.locals.keys()) {
            if !keep_networks.contains(network) {
                failures.note(self.remove_network(network).await);
            }
        }
        failures.finish()
    }

    /// Removes what the node as a whole has in the kernel: bridges, tunnels, tables and rules. Does
    /// nothing while a sandbox is there.
    pub async fn clear_node(&self) -> Result<()> {
        let inner = &*self.inner;
        let found = inner.scan().await?;
        if !found.sandboxes.is_empty() {
            tracing::debug!(sandboxes = found.sandboxes.len(), "node-wide network parts stay");
            return Ok(());
        }
        let mut failures = Failures::default();
        failures.note(self.prune(&HashSet::new(), &HashSet::new()).await);
        let mut state = inner.state.lock().await;
        if failures.note(has_gateway(&inner.netlink, &inner.tag).await) == Some(true) {
            failures.note(inner.netlink.remove_link(GATEWAY).await);
        }
        state.gateway = None;
        failures.note(inner.tables.lock().await.remove().await);
        inner.directory.remove_if_empty();
        failures.finish()
    }

    /// A sandbox as it stands; `None` where there is none of that id.
    pub async fn sandbox(&self, id: &str) -> Result<Option<Sandbox>> {
        Ok(self.inner.scan().await?.sandboxes.remove(id))
    }
}

impl Inner {
    /// The node's among those that publish ports.
    pub(crate) async fn number(&self) -> u32 {
        self.state.lock().await.ingress.as_ref().map_or(0, |ingress| ingress.number)
    }

    pub(crate) async fn scan(&self) -> Result<Found> {
        Found::scan(&self.directory, &self.namespace, &self.netlink, &self.tag).await
    }

    async fn ensure_overlay(
        &self,
        state: &State,
        table: &NetworkTable,
        underlay: Ipv4Addr,
        mtu: u32,
    ) -> Result<Overlay> {
        let (namespace, fresh) = self.directory.ensure(&netns_name(&table.network)).await?;
        let known =
            state.overlays.get(&table.network).filter(|_| !fresh).map(|overlay| overlay.netlink.clone());
        let wanted = overlay::Blueprint {
            tag: &self.tag,
            network: table.network.as_str(),
            tunnel: Tunnel { vni: table.config.vni, local: underlay, port: table.config.data_path_port },
            mtu,
            size: Size::of(&table.config),
        };
        Overlay::ensure(namespace, known, &self.netlink, &wanted).await
    }

    /// Of the link that carries the node's data path address, or did when there was one: while the address is
    /// away, whoever asks must hear what [`Fabric::follow_mtu`] goes by.
    pub(crate) async fn underlay_mtu(&self, underlay: Ipv4Addr) -> Result<u32> {
        let addresses = self.netlink.addresses().await?;
        let holder = addresses.iter().find(|(_, address)| address.addr() == IpAddr::V4(underlay));
        if let Some((index, _)) = holder {
            let links = self.netlink.links().await?;
            if let Some(link) = links.iter().find(|link| link.index == *index) {
                self.last_mtu.store(link.mtu, Ordering::Relaxed);
            }
        }
        Ok(self.last_mtu.load(Ordering::Relaxed))
    }

    /// Takes tunnels that exist no more out of the tables.
    async fn retain_tunnels(&self) -> Result<()> {
        let mut tunnels: Vec<Tunnel> = Vec::new();
        if let Some(link) = self.netlink.link(INGRESS_TUNNEL).await? {
            tunnels.extend(link.tunnel);
        }
        for namespace in self.scan().await?.overlays.values().flatten() {
            let links = Netlink::open(namespace).await?.links().await?;
            tunnels.extend(links.iter().filter_map(|link| link.tunnel));
        }
        membership::retain(&mut *self.tables.lock().await, &tunnels).await
    }
}

pub(crate) async fn remove_link(namespace: &Namespace, name: &str) -> Result<()> {
    Netlink::open(namespace).await?.remove_link(name).await
}

/// Removes everything of a node; no daemon needs to be alive. To be called in the node's own
/// namespace, or else what is there stays.
pub async fn reset(run_dir: &Path, tag: &str) -> Result<()> {
    let config =
        NetworkConfig { run_dir: run_dir.to_owned(), tag: tag.to_owned(), node: None, underlay: None };
    let fabric = Fabric::open(config).await?;
    let mut failures = Failures::default();
    failures.note(fabric.prune(&HashSet::new(), &HashSet::new()).await);
    failures.note(fabric.clear_node().await);
    failures.finish()
}
