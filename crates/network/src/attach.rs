//! Making and removing sandboxes.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

use crate::error::Failures;
use crate::fabric::{Inner, remove_link};
use crate::gateway::{Gateway, choose_address};
use crate::netlink::Netlink;
use crate::netns::Namespace;
use crate::owner::{GATEWAY, Purpose};
use crate::sandbox::{self, Interface, Outside, Ports};
use crate::state::State;
use crate::{Error, Fabric, Result, Sandbox, SandboxAttachment, SandboxConfig, SandboxLink, sysctl};

impl Fabric {
    /// Makes a sandbox, or what is missing of it. The networks it is attached to must have been
    /// applied.
    pub async fn create_sandbox(&self, config: &SandboxConfig) -> Result<Sandbox> {
        let inner = &*self.inner;
        if !matches!(Purpose::of(&config.id), Purpose::Sandbox(_)) {
            return Err(Error::InvalidName(config.id.clone()));
        }
        let mut state = inner.state.lock().await;
        let (namespace, _) = inner.directory.ensure(&config.id).await?;
        let result = inner.furnish(&mut state, &namespace, config).await;
        if let Ok(sandbox) = &result {
            state.sandboxes.insert(config.id.clone(), sandbox.clone());
        }
        result
    }

    /// Removes a sandbox with its links; one that is not there is fine. What still runs inside keeps
    /// its namespace, without any link.
    pub async fn remove_sandbox(&self, id: &str) -> Result<()> {
        let inner = &*self.inner;
        let mut state = inner.state.lock().await;
        // Also finds what an earlier process made, or what was left half made.
        let found = inner.scan().await?.sandboxes.remove(id);
        let mut failures = Failures::default();
        for link in found.iter().flat_map(|sandbox| &sandbox.links) {
            failures.note(inner.remove_outer(link).await);
        }
        failures.note(inner.directory.remove(id));
        inner.directory.remove_if_empty();
        state.sandboxes.remove(id);
        failures.finish()
    }
}

impl Inner {
    async fn furnish(
        &self,
        state: &mut State,
        namespace: &Namespace,
        config: &SandboxConfig,
    ) -> Result<Sandbox> {
        let netlink = Netlink::open(namespace).await?;
        namespace.run(sandbox::prepare).await?;
        netlink.set_up(netlink.index("lo").await?, "lo").await?;
        let filtered = self.namespace.run(|| sysctl::is_on("bridge/bridge-nf-call-iptables")).await?;
        let mut links = Vec::new();
        for (position, attachment) in config.attachments.iter().enumerate() {
            let interface = self.interface(state, position, attachment, filtered)?;
            links.push(interface.ensure(&self.tag, &config.id, namespace, &netlink).await?);
        }
        let has_ingress = config.attachments.iter().any(|attachment| attachment.ingress);
        if config.egress && !has_ingress {
            links.push(self.ensure_gateway_link(state, namespace, &netlink, config, filtered).await?);
        }
        let sysctls = config.sysctls.clone();
        let set = move || sysctls.iter().try_for_each(|(key, value)| sysctl::set_key(key, value));
        namespace.run(set).await?;
        Ok(Sandbox { id: config.id.clone(), path: namespace.path().to_owned(), links })
    }

    fn interface<'a>(
        &'a self,
        state: &'a State,
        position: usize,
        attachment: &'a SandboxAttachment,
        filtered: bool,
    ) -> Result<Interface<'a>> {
        let missing = || Error::NetworkNotApplied(attachment.network.clone());
        if attachment.ingress {
            let ingress = state.ingress.as_ref().ok_or_else(missing)?;
            let ports = if filtered { Ports::Filtered } else { Ports::Open };
            let gateways = [Some(ingress.gateway.into()), ingress.gateway_v6.map(IpAddr::V6)];
            // Everybody else of its IPv6 subnet is behind the gateway, too.
            let address_v6 = attachment.address_v6.filter(|_| ingress.gateway_v6.is_some());
            return Ok(Interface {
                network: Some(&attachment.network),
                position,
                mac: Some(attachment.mac),
                address: attachment.address,
                address_v6: address_v6.map(|address| IpNet::from(address.addr())),
                subnets: &[],
                default_via: gateways.into_iter().flatten().collect(),
                outside: self.outside(ingress.bridge, ingress.mtu, ports),
            });
        }
        let overlay = state.overlays.get(&attachment.network).ok_or_else(missing)?;
        let outside = Outside {
            namespace: &overlay.namespace,
            netlink: &overlay.netlink,
            bridge: overlay.bridge,
            mtu: overlay.mtu,
            ports: Ports::Open,
        };
        Ok(Interface {
            network: Some(&attachment.network),
            position,
            mac: Some(attachment.mac),
            address: attachment.address,
            address_v6: attachment.address_v6,
            subnets: &attachment.subnets,
            default_via: Vec::new(),
            outside,
        })
    }

    /// A bridge in the node's own namespace.
    fn outside(&self, bridge: u32, mtu: u32, ports: Ports) -> Outside<'_> {
        Outside { namespace: &self.namespace, netlink: &self.netlink, bridge, mtu, ports }
    }

    async fn ensure_gateway_link(
        &self,
        state: &mut State,
        namespace: &Namespace,
        inside: &Netlink,
        config: &SandboxConfig,
        filtered: bool,
    ) -> Result<SandboxLink> {
        let gateway = self.ensure_gateway(state, config).await?;
        let address = match state.gateway_address(&config.id) {
            Some(address) if gateway.subnet().contains(&address) => address,
            _ => choose_address(gateway.subnet(), &state.gateway_addresses(), state.last_gateway_address)?,
        };
        let prefix = gateway.address.prefix_len();
        let net = Ipv4Net::new(address, prefix).map_err(|error| Error::Unexpected(error.to_string()))?;
        let ports = if filtered { Ports::Filtered } else { Ports::Isolated };
        let interface = Interface {
            network: None,
            position: config.attachments.len(),
            mac: None,
            address: IpNet::V4(net),
            address_v6: gateway.v6_of(address),
            subnets: &[],
            default_via: gateway.addresses().map(|address| address.addr()).collect(),
            outside: self.outside(gateway.index, gateway.mtu, ports),
        };
        let link = interface.ensure(&self.tag, &config.id, namespace, inside).await?;
        state.last_gateway_address = Some(address);
        Ok(link)
    }

    /// Made with the first sandbox that needs it.
    async fn ensure_gateway(&self, state: &mut State, config: &SandboxConfig) -> Result<Gateway> {
        let present = self.netlink.link(GATEWAY).await?;
        if let (Some(gateway), Some(link)) = (&state.gateway, present)
            && link.index == gateway.index
            && link.up
        {
            return Ok(gateway.clone());
        }
        let underlay = state.node.as_ref().map_or(Ipv4Addr::UNSPECIFIED, |(_, underlay)| *underlay);
        let mtu = self.underlay_mtu(underlay).await?;
        let own = config.attachments.iter().filter_map(|attachment| match attachment.address {
            IpNet::V4(address) => Some(address.trunc()),
            IpNet::V6(_) => None,
        });
        let avoid: Vec<Ipv4Net> = own.collect();
        self.tables.lock().await.ensure().await?;
        let gateway = Gateway::ensure(&self.namespace, &self.netlink, &self.tag, mtu, &avoid).await?;
        state.gateway = Some(gateway.clone());
        Ok(gateway)
    }

    async fn remove_outer(&self, link: &SandboxLink) -> Result<()> {
        if link.host_netns == self.namespace.path() {
            self.netlink.remove_link(&link.host_interface).await
        } else {
            remove_link(&Namespace::open(&link.host_netns)?, &link.host_interface).await
        }
    }
}
