//! The maps' keys and values, byte for byte as `bpf/*.h` and `bpf/*.bpf.c` declare them.
//!
//! Ports are in network byte order wherever a program reads them; addresses are sixteen bytes in network
//! byte order, IPv4 mapped into IPv6.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use shoal_model::{IpVersion, Protocol};

use crate::{Counted, DnsPorts, NETWORKS_MAX, PortKey, SandboxEntry, ServiceKey};

/// Version of everything pinned: names, keys, values, and what they mean. Pins of another version are
/// not adopted. A further map that programs of an earlier build do without is no other layout.
pub(crate) const LAYOUT: u32 = 2;

/// An address as the maps hold it. Four-byte alignment, as in C.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C, align(4))]
pub(crate) struct Address([u8; 16]);

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        Self(match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        })
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        Self::V6(Ipv6Addr::from(address.0)).to_canonical()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C)]
pub(crate) struct Target {
    address: Address,
    port: [u8; 2],
    zero: u16,
}

impl Target {
    /// A service's backend: the port stays what the client asked for.
    pub(crate) fn service(address: IpAddr) -> Self {
        Self { address: address.into(), port: [0; 2], zero: 0 }
    }

    pub(crate) fn port(address: SocketAddr) -> Self {
        Self { address: address.ip().into(), port: address.port().to_be_bytes(), zero: 0 }
    }

    pub(crate) fn address(&self) -> IpAddr {
        self.address.into()
    }

    pub(crate) fn socket_address(&self) -> SocketAddr {
        SocketAddr::new(self.address(), u16::from_be_bytes(self.port))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct RawService {
    vni: u32,
    address: Address,
}

impl From<ServiceKey> for RawService {
    fn from(key: ServiceKey) -> Self {
        Self { vni: key.vni, address: key.address.into() }
    }
}

impl From<RawService> for ServiceKey {
    fn from(raw: RawService) -> Self {
        Self { vni: raw.vni, address: raw.address.into() }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct RawPort {
    port: [u8; 2],
    protocol: u8,
    /// 4 or 6.
    version: u8,
}

impl From<PortKey> for RawPort {
    fn from(key: PortKey) -> Self {
        let version = match key.version {
            IpVersion::V4 => 4,
            IpVersion::V6 => 6,
        };
        Self { port: key.port.to_be_bytes(), protocol: key.protocol.number(), version }
    }
}

impl From<RawPort> for PortKey {
    fn from(raw: RawPort) -> Self {
        let protocol = if raw.protocol == Protocol::Udp.number() { Protocol::Udp } else { Protocol::Tcp };
        let version = if raw.version == 6 { IpVersion::V6 } else { IpVersion::V4 };
        Self { version, protocol, port: u16::from_be_bytes(raw.port) }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Set {
    pub(crate) number: u64,
    pub(crate) count: u32,
    /// [`BY_SOURCE`] and [`BOUND`].
    pub(crate) flags: u32,
}

pub(crate) const BY_SOURCE: u32 = 1;
pub(crate) const BOUND: u32 = 2;

impl Set {
    pub(crate) fn new(number: u64, count: u32, flags: u32) -> Self {
        Self { number, count, flags }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct BindingKey {
    pub(crate) port: RawPort,
    address: Address,
}

impl BindingKey {
    pub(crate) fn new(port: PortKey, address: IpAddr) -> Self {
        Self { port: port.into(), address: address.into() }
    }

    pub(crate) fn address(&self) -> IpAddr {
        self.address.into()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct SlotKey {
    pub(crate) set: u64,
    pub(crate) slot: u32,
    zero: u32,
}

impl SlotKey {
    pub(crate) fn new(set: u64, slot: u32) -> Self {
        Self { set, slot, zero: 0 }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct LiveKey {
    pub(crate) set: u64,
    target: Target,
    zero: u32,
}

impl LiveKey {
    pub(crate) fn new(set: u64, target: Target) -> Self {
        Self { set, target, zero: 0 }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct CountKey {
    service: RawService,
    backend: Address,
    what: u32,
}

/// What stands where no backend is concerned.
const NOBODY: Address = Address([0; 16]);

impl CountKey {
    pub(crate) fn new(service: ServiceKey, what: Counted) -> Self {
        let (what, backend) = match what {
            Counted::Connected(backend) => (1, backend.into()),
            Counted::Bypassing(backend) => (2, backend.into()),
            Counted::Rejected => (3, NOBODY),
            Counted::Pinged => (4, NOBODY),
        };
        Self { service: service.into(), backend, what }
    }

    /// `None`: something that another build counts.
    pub(crate) fn read(&self) -> Option<(ServiceKey, Counted)> {
        let what = match self.what {
            1 => Counted::Connected(self.backend.into()),
            2 => Counted::Bypassing(self.backend.into()),
            3 => Counted::Rejected,
            4 => Counted::Pinged,
            _ => return None,
        };
        Some((self.service.into(), what))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct LocalKey {
    pub(crate) cookie: u64,
    address: Address,
}

impl LocalKey {
    pub(crate) fn new(cookie: u64, address: IpAddr) -> Self {
        Self { cookie, address: address.into() }
    }

    pub(crate) fn address(&self) -> IpAddr {
        self.address.into()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct RawSandbox {
    count: u32,
    networks: [u32; NETWORKS_MAX],
    dns_udp: [u8; 2],
    dns_tcp: [u8; 2],
}

impl RawSandbox {
    /// `None` if there are more networks than the array holds.
    pub(crate) fn new(entry: &SandboxEntry) -> Option<Self> {
        let mut networks = [0; NETWORKS_MAX];
        networks.get_mut(..entry.networks.len())?.copy_from_slice(&entry.networks);
        let dns = entry.dns.unwrap_or(DnsPorts { udp: 0, tcp: 0 });
        Some(Self {
            count: u32::try_from(entry.networks.len()).ok()?,
            networks,
            dns_udp: dns.udp.to_be_bytes(),
            dns_tcp: dns.tcp.to_be_bytes(),
        })
    }

    pub(crate) fn entry(&self) -> SandboxEntry {
        let dns = DnsPorts { udp: u16::from_be_bytes(self.dns_udp), tcp: u16::from_be_bytes(self.dns_tcp) };
        SandboxEntry {
            networks: self.networks.iter().take(self.count as usize).copied().collect(),
            dns: (dns != DnsPorts { udp: 0, tcp: 0 }).then_some(dns),
        }
    }
}

macro_rules! plain {
    ($($type:ty),+) => {
        // SAFETY: `repr(C)`, made of integers and byte arrays only, and without padding (asserted here),
        // so every bit pattern is a value and every byte is initialised.
        $(#[allow(unsafe_code)]
        unsafe impl aya::Pod for $type {})+
    };
}
plain!(Target, RawService, RawPort, Set, BindingKey, SlotKey, LiveKey, CountKey, LocalKey, RawSandbox);

const _: () = {
    assert!(size_of::<Target>() == 16 + 4);
    assert!(size_of::<RawService>() == 4 + 16);
    assert!(size_of::<RawPort>() == 4);
    assert!(size_of::<Set>() == 16);
    assert!(size_of::<BindingKey>() == 4 + 16);
    assert!(size_of::<SlotKey>() == 16);
    assert!(size_of::<LiveKey>() == 8 + 20 + 4);
    assert!(size_of::<CountKey>() == 20 + 16 + 4);
    assert!(size_of::<LocalKey>() == 8 + 16);
    assert!(size_of::<RawSandbox>() == 4 + 4 * NETWORKS_MAX + 4);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        for text in ["10.0.1.2", "fd00::1"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(IpAddr::from(Address::from(address)), address);
            let key = ServiceKey { vni: 4097, address };
            assert_eq!(ServiceKey::from(RawService::from(key)), key);
            for what in
                [Counted::Connected(address), Counted::Bypassing(address), Counted::Rejected, Counted::Pinged]
            {
                assert_eq!(CountKey::new(key, what).read(), Some((key, what)));
            }
            let socket = SocketAddr::new(address, 8080);
            assert_eq!(Target::port(socket).socket_address(), socket);
        }
        let port = PortKey { version: IpVersion::V6, protocol: Protocol::Udp, port: 5353 };
        assert_eq!(PortKey::from(RawPort::from(port)), port);
        let sandbox =
            SandboxEntry { networks: vec![7, 4097], dns: Some(DnsPorts { udp: 40_001, tcp: 40_002 }) };
        assert_eq!(RawSandbox::new(&sandbox).unwrap().entry(), sandbox);
        let many = SandboxEntry { networks: vec![1; NETWORKS_MAX + 1], dns: None };
        assert!(RawSandbox::new(&many).is_none());
    }
}
