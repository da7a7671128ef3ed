//! Route netlink inside one namespace: links, addresses, routes and rules. Forwarding and neighbour
//! entries are in `neighbour`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use futures::{Stream, StreamExt, TryStreamExt, stream};
use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;
use rtnetlink::MulticastGroup;
use tokio::sync::Mutex;

use crate::link::Link;
use crate::netns::Namespace;
use crate::{Error, Result};

/// Requests under way at once; their answers must fit into the socket's receive buffer.
const MAX_IN_FLIGHT: usize = 64;
/// Create it, or make it so.
pub(crate) const UPSERT: u16 = NLM_F_CREATE | NLM_F_REPLACE;
/// Create it; fail where it exists.
pub(crate) const CREATE: u16 = NLM_F_CREATE | NLM_F_EXCL;

/// A route netlink socket that lives in one namespace.
#[derive(Clone)]
pub(crate) struct Netlink {
    handle: rtnetlink::Handle,
    /// Held while a list is under way: the kernel serves one at a time per socket.
    listing: Arc<Mutex<()>>,
}

impl Netlink {
    pub(crate) async fn open(namespace: &Namespace) -> Result<Self> {
        let runtime = tokio::runtime::Handle::current();
        namespace
            .run(move || {
                let _context = runtime.enter();
                let (connection, handle, _) =
                    rtnetlink::new_connection().map_err(Error::io("open netlink"))?;
                // Ends with the last handle.
                runtime.spawn(connection);
                Ok(Self { handle, listing: Arc::default() })
            })
            .await
    }

    /// Sends a request and waits for the kernel's consent.
    pub(crate) async fn request(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
        action: impl FnOnce() -> String,
    ) -> Result<()> {
        match self.exchange(message, NLM_F_REQUEST | NLM_F_ACK | flags).await {
            Ok(_) => Ok(()),
            Err(error) => Err(Error::io(action())(error)),
        }
    }

    /// As [`request`](Self::request), content when the thing is not there (any more).
    pub(crate) async fn request_removal(
        &self,
        message: RouteNetlinkMessage,
        action: impl FnOnce() -> String,
    ) -> Result<()> {
        match self.request(message, 0, action).await {
            Err(error) if is_absent(&error) => Ok(()),
            result => result,
        }
    }

    /// Many requests, a bounded number of them under way at once.
    ///
    /// The requests are collected before the future is made: one that held the caller's iterator with
    /// its closures could not be proved `Send` (rust-lang/rust#102211).
    pub(crate) fn all<F>(requests: impl IntoIterator<Item = F>) -> impl Future<Output = Result<()>>
    where
        F: Future<Output = Result<()>>,
    {
        let requests: Vec<F> = requests.into_iter().collect();
        stream::iter(requests).buffer_unordered(MAX_IN_FLIGHT).try_collect()
    }

    /// Asks for everything of a kind.
    pub(crate) async fn dump(
        &self,
        message: RouteNetlinkMessage,
        what: &str,
    ) -> Result<Vec<RouteNetlinkMessage>> {
        let _turn = self.listing.lock().await;
        self.exchange(message, NLM_F_REQUEST | NLM_F_DUMP).await.map_err(Error::io(format!("list {what}")))
    }

    async fn exchange(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> std::io::Result<Vec<RouteNetlinkMessage>> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = flags;
        let mut answers = self.handle.clone().request(request).map_err(std::io::Error::other)?;
        let mut messages = Vec::new();
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::InnerMessage(message) => messages.push(message),
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                NetlinkPayload::Done(done) if done.code < 0 => {
                    return Err(std::io::Error::from_raw_os_error(-done.code));
                }
                _ => {}
            }
        }
        Ok(messages)
    }

    // === links ===

    pub(crate) async fn links(&self) -> Result<Vec<Link>> {
        let messages = self.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()), "links").await?;
        Ok(messages.iter().filter_map(Link::parse).collect())
    }

    pub(crate) async fn link(&self, name: &str) -> Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        match self.exchange(RouteNetlinkMessage::GetLink(message), NLM_F_REQUEST | NLM_F_ACK).await {
            Ok(messages) => Ok(messages.iter().find_map(Link::parse)),
            Err(error) if error.raw_os_error() == Some(Errno::ENODEV as i32) => Ok(None),
            Err(error) => Err(Error::io(format!("look up link {name}"))(error)),
        }
    }

    /// The link's index.
    pub(crate) async fn index(&self, name: &str) -> Result<u32> {
        match self.link(name).await? {
            Some(link) => Ok(link.index),
            None => Err(Error::io(format!("look up link {name}"))(Errno::ENODEV.into())),
        }
    }

    pub(crate) async fn add_link(&self, message: LinkMessage, name: &str) -> Result<()> {
        self.request(RouteNetlinkMessage::NewLink(message), CREATE, || format!("create link {name}")).await
    }

    /// Changes attributes of an existing link.
    pub(crate) async fn change_link(
        &self,
        index: u32,
        attributes: Vec<LinkAttribute>,
        name: &str,
    ) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = attributes;
        self.request(RouteNetlinkMessage::NewLink(message), 0, || format!("change link {name}")).await
    }

    pub(crate) async fn set_mtu(&self, index: u32, mtu: u32) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = vec![LinkAttribute::Mtu(mtu)];
        let message = RouteNetlinkMessage::SetLink(message);
        self.request(message, 0, || format!("set the MTU of link {index} to {mtu}")).await
    }

    pub(crate) async fn set_up(&self, index: u32, name: &str) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.request(RouteNetlinkMessage::SetLink(message), 0, || format!("set link {name} up")).await
    }

    /// Removes a link; one that is not there is fine.
    pub(crate) async fn remove_link(&self, name: &str) -> Result<()> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.request_removal(RouteNetlinkMessage::DelLink(message), || format!("remove link {name}")).await
    }

    // === addresses ===

    /// All addresses with the index of their link.
    pub(crate) async fn addresses(&self) -> Result<Vec<(u32, IpNet)>> {
        let messages =
            self.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()), "addresses").await?;
        Ok(messages.iter().filter_map(parse_address).collect())
    }

    /// Adds an address; with `prefix_route` the kernel adds a route to its subnet by itself.
    pub(crate) async fn add_address(&self, index: u32, address: IpNet, prefix_route: bool) -> Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = family(address.addr());
        message.header.prefix_len = address.prefix_len();
        message.header.scope = AddressScope::Universe;
        message.header.index = index;
        let mut flags = AddressFlags::empty();
        if !prefix_route {
            flags |= AddressFlags::Noprefixroute;
        }
        message.attributes =
            vec![AddressAttribute::Local(address.addr()), AddressAttribute::Address(address.addr())];
        match address {
            IpNet::V4(v4) if v4.prefix_len() < 31 => {
                message.attributes.push(AddressAttribute::Broadcast(v4.broadcast()));
            }
            IpNet::V4(_) => {}
            // Addresses are given out once in the whole cluster: no need to wait for a check.
            IpNet::V6(_) => flags |= AddressFlags::Nodad,
        }
        message.attributes.push(AddressAttribute::Flags(flags));
        self.request(RouteNetlinkMessage::NewAddress(message), UPSERT, || format!("add address {address}"))
            .await
    }

    pub(crate) async fn remove_address(&self, index: u32, address: IpNet) -> Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = family(address.addr());
        message.header.prefix_len = address.prefix_len();
        message.header.index = index;
        message.attributes = vec![AddressAttribute::Local(address.addr())];
        let message = RouteNetlinkMessage::DelAddress(message);
        self.request_removal(message, || format!("remove address {address}")).await
    }

    // === routes and rules ===

    /// All routes of one address family.
    pub(crate) async fn routes(&self, family: AddressFamily) -> Result<Vec<Route>> {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        let messages = self.dump(RouteNetlinkMessage::GetRoute(message), "routes").await?;
        Ok(messages.iter().filter_map(Route::parse).collect())
    }

    /// Adds a route; with `replace` in the place of another one to the same destination.
    pub(crate) async fn put_route(&self, route: &Route, replace: bool) -> Result<()> {
        let message = RouteNetlinkMessage::NewRoute(route.message());
        let flags = if replace { UPSERT } else { CREATE };
        self.request(message, flags, || format!("add a route to {}", route.destination)).await
    }

    pub(crate) async fn remove_route(&self, route: &Route) -> Result<()> {
        let message = RouteNetlinkMessage::DelRoute(route.message());
        self.request_removal(message, || format!("remove the route to {}", route.destination)).await
    }

    /// The rule is there.
    pub(crate) async fn has_rule(&self, rule: &Rule) -> Result<bool> {
        let mut message = RuleMessage::default();
        message.header.family = rule.family;
        let messages = self.dump(RouteNetlinkMessage::GetRule(message), "rules").await?;
        let wanted = rule.message();
        let is_it = |message: &RouteNetlinkMessage| match message {
            RouteNetlinkMessage::NewRule(found) => {
                wanted.attributes.iter().all(|attribute| found.attributes.contains(attribute))
            }
            _ => false,
        };
        Ok(messages.iter().any(is_it))
    }

    pub(crate) async fn put_rule(&self, rule: &Rule) -> Result<()> {
        let message = RouteNetlinkMessage::NewRule(rule.message());
        match self.request(message, CREATE, || format!("add rule {}", rule.priority)).await {
            Err(error) if error.errno() == Some(Errno::EEXIST) => Ok(()),
            result => result,
        }
    }

    /// Removes the rule as often as it is there.
    pub(crate) async fn remove_rule(&self, rule: &Rule) -> Result<()> {
        loop {
            let message = RouteNetlinkMessage::DelRule(rule.message());
            match self.request(message, 0, || format!("remove rule {}", rule.priority)).await {
                Ok(()) => {}
                Err(error) if is_absent(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Tells of every change of some kinds in a namespace, until dropped.
pub(crate) async fn watch(
    namespace: &Namespace,
    groups: &'static [MulticastGroup],
) -> Result<impl Stream<Item = ()> + Unpin + Send + use<>> {
    let runtime = tokio::runtime::Handle::current();
    namespace
        .run(move || {
            let _context = runtime.enter();
            let (connection, handle, messages) =
                rtnetlink::new_multicast_connection(groups).map_err(Error::io("watch the node's network"))?;
            runtime.spawn(connection);
            // The handle keeps the connection alive.
            Ok(messages.map(move |_| {
                let _ = &handle;
            }))
        })
        .await
}

fn is_absent(error: &Error) -> bool {
    matches!(error.errno(), Some(Errno::ENODEV | Errno::ENOENT | Errno::ESRCH | Errno::EADDRNOTAVAIL))
}

pub(crate) fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn parse_address(message: &RouteNetlinkMessage) -> Option<(u32, IpNet)> {
    let RouteNetlinkMessage::NewAddress(message) = message else { return None };
    let mut found = None;
    for attribute in &message.attributes {
        match attribute {
            // On a point-to-point link `Address` is the other end.
            AddressAttribute::Local(address) => found = Some(*address),
            AddressAttribute::Address(address) => found = found.or(Some(*address)),
            _ => {}
        }
    }
    Some((message.header.index, IpNet::new(found?, message.header.prefix_len).ok()?))
}

/// A unicast route.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Route {
    pub(crate) destination: IpNet,
    /// Zero where the route leads over several links.
    pub(crate) index: u32,
    pub(crate) gateway: Option<IpAddr>,
    /// The address that connections from the node itself get.
    pub(crate) source: Option<IpAddr>,
    pub(crate) table: u32,
}

impl Route {
    pub(crate) const MAIN: u32 = RouteHeader::RT_TABLE_MAIN as u32;

    /// Where it leads to, without the way there.
    pub(crate) fn subject(&self) -> (u32, IpNet) {
        (self.table, self.destination)
    }

    fn message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        let header = &mut message.header;
        header.address_family = family(self.destination.addr());
        header.destination_prefix_length = self.destination.prefix_len();
        header.table = u8::try_from(self.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
        header.protocol = RouteProtocol::Static;
        header.kind = RouteType::Unicast;
        header.scope = if self.gateway.is_some() { RouteScope::Universe } else { RouteScope::Link };
        if self.gateway.is_some() {
            header.flags = RouteFlags::Onlink;
        }
        message.attributes = vec![RouteAttribute::Table(self.table), RouteAttribute::Oif(self.index)];
        if self.destination.prefix_len() > 0 {
            let destination = route_address(self.destination.network());
            message.attributes.push(RouteAttribute::Destination(destination));
        }
        message
            .attributes
            .extend(self.gateway.map(|gateway| RouteAttribute::Gateway(route_address(gateway))));
        message
            .attributes
            .extend(self.source.map(|source| RouteAttribute::PrefSource(route_address(source))));
        message
    }

    fn parse(message: &RouteNetlinkMessage) -> Option<Self> {
        let RouteNetlinkMessage::NewRoute(message) = message else { return None };
        if message.header.kind != RouteType::Unicast {
            return None;
        }
        let mut destination = match message.header.address_family {
            AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            _ => return None,
        };
        let (mut index, mut gateway, mut source) = (0, None, None);
        let mut table = u32::from(message.header.table);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(address) => destination = parse_route_address(address)?,
                RouteAttribute::Oif(oif) => index = *oif,
                RouteAttribute::Gateway(address) => gateway = parse_route_address(address),
                RouteAttribute::PrefSource(address) => source = parse_route_address(address),
                RouteAttribute::Table(number) => table = *number,
                _ => {}
            }
        }
        let destination = IpNet::new(destination, message.header.destination_prefix_length).ok()?;
        Some(Self { destination, index, gateway, source, table })
    }
}

fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    }
}

fn parse_route_address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

/// "What comes in by this link with this mark is looked up in this table."
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    pub(crate) family: AddressFamily,
    pub(crate) priority: u32,
    pub(crate) interface: &'static str,
    pub(crate) mark: u32,
    pub(crate) mask: u32,
    pub(crate) table: u32,
}

impl Rule {
    fn message(&self) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = self.family;
        message.header.action = RuleAction::ToTable;
        message.attributes = vec![
            RuleAttribute::Priority(self.priority),
            RuleAttribute::Iifname(self.interface.to_owned()),
            RuleAttribute::FwMark(self.mark),
            RuleAttribute::FwMask(self.mask),
            RuleAttribute::Table(self.table),
        ];
        message
    }
}
