//! Which address a node advertises, in Docker's words (`daemon/cluster/listen_addr.go`).

use std::net::{IpAddr, SocketAddr};

use shoal_manager::{Code, ControlError};
use shoal_protocol::DEFAULT_PORT;

/// An address of an interface of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Local {
    pub interface: String,
    pub address: IpAddr,
}

const BAD_ADVERTISE: &str = "advertise address must be a non-zero IP address or network interface \
                             (with optional port number)";
const BAD_LISTEN: &str = "listen address must be an IP address or network interface \
                          (with optional port number)";
const BAD_DATA_PATH: &str = "data path address must be a non-zero IP address or network interface \
                             (without a port number)";

/// The addresses of all interfaces that are up, loopback and our own bridges left out.
pub(crate) fn local() -> Result<Vec<Local>, ControlError> {
    use nix::net::if_::InterfaceFlags;
    let addresses = nix::ifaddrs::getifaddrs()
        .map_err(|error| ControlError::new(Code::Internal, format!("list interfaces: {error}")))?;
    let usable = addresses.filter(|address| {
        address.flags.contains(InterfaceFlags::IFF_UP)
            && !address.flags.contains(InterfaceFlags::IFF_LOOPBACK)
            && !address.interface_name.starts_with("shoal-")
            && !address.interface_name.starts_with("docker")
    });
    let local = usable.filter_map(|address| {
        let storage = address.address?;
        let v4 = storage.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        let ip = v4.or_else(|| storage.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))?;
        is_global(ip).then_some(Local { interface: address.interface_name, address: ip })
    });
    Ok(local.collect())
}

fn is_global(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_link_local() && !v4.is_multicast() && !v4.is_unspecified(),
        IpAddr::V6(v6) => !v6.is_unicast_link_local() && !v6.is_multicast() && !v6.is_unspecified(),
    }
}

/// Where the manager listens: every address and Docker's port, if nothing else is said.
pub(crate) fn listen(asked: &str, local: &[Local]) -> Result<SocketAddr, ControlError> {
    if asked.is_empty() {
        return Ok(SocketAddr::from(([0, 0, 0, 0], DEFAULT_PORT)));
    }
    let (address, port) = endpoint(asked, local)?.ok_or_else(|| invalid(BAD_LISTEN))?;
    Ok(SocketAddr::new(address, port.unwrap_or(DEFAULT_PORT)))
}

/// The address to advertise: what is asked for, else the one listened on, else the only one there is.
/// The port is the one listened on unless another is asked for.
pub(crate) fn advertise(
    asked: &str,
    listen: SocketAddr,
    local: &[Local],
) -> Result<SocketAddr, ControlError> {
    if !asked.is_empty() {
        let found = endpoint(asked, local)?.filter(|(address, _)| !address.is_unspecified());
        let (address, port) = found.ok_or_else(|| invalid(BAD_ADVERTISE))?;
        return Ok(SocketAddr::new(address, port.unwrap_or(listen.port())));
    }
    if !listen.ip().is_unspecified() {
        return Ok(listen);
    }
    Ok(SocketAddr::new(only(local)?, listen.port()))
}

/// The address a worker asks to be reached at, if it asks: the manager sees it otherwise.
pub(crate) fn worker(asked: &str, local: &[Local]) -> Result<Option<IpAddr>, ControlError> {
    if asked.is_empty() {
        return Ok(None);
    }
    let found = endpoint(asked, local)?.filter(|(address, _)| !address.is_unspecified());
    found.map(|(address, _)| Some(address)).ok_or_else(|| invalid(BAD_ADVERTISE))
}

/// A manager's address with Docker's port where none is given.
pub(crate) fn remote(text: &str) -> String {
    match text.parse::<IpAddr>() {
        Ok(address) => SocketAddr::new(address, DEFAULT_PORT).to_string(),
        Err(_) if text.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) => {
            text.to_owned()
        }
        Err(_) => format!("{text}:{DEFAULT_PORT}"),
    }
}

fn endpoint(text: &str, local: &[Local]) -> Result<Option<(IpAddr, Option<u16>)>, ControlError> {
    let Some((host, port)) = parts(text) else { return Ok(None) };
    Ok(named(&host, local)?.map(|address| (address, port)))
}

/// Where other nodes send VXLAN frames; by default the advertised address, `None` where the manager sees
/// it.
pub(crate) fn data_path(
    asked: &str,
    advertised: Option<IpAddr>,
    local: &[Local],
) -> Result<Option<IpAddr>, ControlError> {
    let address = match asked {
        "" => advertised,
        _ => {
            let named = named(asked, local)?.filter(|address| !address.is_unspecified());
            Some(named.ok_or_else(|| invalid(BAD_DATA_PATH))?)
        }
    };
    match address {
        Some(IpAddr::V6(address)) => Err(invalid(format!(
            "VXLAN frames are not sent over IPv6 yet ({address}): name an IPv4 address of this node with \
             --data-path-addr"
        ))),
        address => Ok(address),
    }
}

/// Host and port, where there is one.
fn parts(text: &str) -> Option<(String, Option<u16>)> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Some((address.ip().to_string(), Some(address.port())));
    }
    if text.parse::<IpAddr>().is_ok() {
        return Some((text.to_owned(), None));
    }
    match text.rsplit_once(':') {
        Some((host, port)) => port.parse().ok().map(|port| (host.to_owned(), Some(port))),
        None => Some((text.to_owned(), None)),
    }
}

/// An address, or the one of an interface: its IPv4 address if it has one. `None`: neither.
fn named(host: &str, local: &[Local]) -> Result<Option<IpAddr>, ControlError> {
    let of: Vec<IpAddr> =
        local.iter().filter(|entry| entry.interface == host).map(|entry| entry.address).collect();
    for (family, word) in [(true, "IPv4"), (false, "IPv6")] {
        let mut found = of.iter().filter(|address| address.is_ipv4() == family);
        match (found.next(), found.next()) {
            (Some(first), Some(second)) => {
                return Err(invalid(format!(
                    "interface {host} has more than one {word} address ({first} and {second})"
                )));
            }
            (Some(only), None) => return Ok(Some(*only)),
            (None, _) => {}
        }
    }
    Ok(host.parse().ok())
}

fn only(local: &[Local]) -> Result<IpAddr, ControlError> {
    for family in [true, false] {
        let mut found = local.iter().filter(|entry| entry.address.is_ipv4() == family);
        match (found.next(), found.next()) {
            (Some(a), Some(b)) if a.interface == b.interface => {
                return Err(invalid(format!(
                    "could not choose an IP address to advertise since this system has multiple addresses on \
                     interface {} ({} and {})",
                    a.interface, a.address, b.address
                )));
            }
            (Some(a), Some(b)) => {
                return Err(invalid(format!(
                    "could not choose an IP address to advertise since this system has multiple addresses on \
                     different interfaces ({} on {} and {} on {})",
                    a.address, a.interface, b.address, b.interface
                )));
            }
            (Some(only), None) => return Ok(only.address),
            (None, _) => {}
        }
    }
    Err(invalid("could not find the system's IP address"))
}

fn invalid(message: impl Into<String>) -> ControlError {
    ControlError::new(Code::InvalidArgument, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(entries: &[(&str, &str)]) -> Vec<Local> {
        let local = |&(interface, address): &(&str, &str)| Local {
            interface: interface.to_owned(),
            address: address.parse().unwrap(),
        };
        entries.iter().map(local).collect()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn any() -> SocketAddr {
        listen("", &[]).unwrap()
    }

    #[test]
    fn addresses_and_interfaces_with_and_without_port() {
        let here = local(&[("eth0", "10.1.0.5"), ("eth0", "fd00::5"), ("eth1", "fd00::6")]);
        for (asked, port) in [("10.1.0.5", 2377), ("10.1.0.5:99", 99), ("eth0", 2377), ("eth0:98", 98)] {
            assert_eq!(advertise(asked, any(), &here), Ok(SocketAddr::new(ip("10.1.0.5"), port)), "{asked}");
            assert_eq!(worker(asked, &here), Ok(Some(ip("10.1.0.5"))), "{asked}");
        }
        assert_eq!(advertise("eth1", any(), &here).unwrap().ip(), ip("fd00::6"));
        assert_eq!(advertise("[fd00::9]:2377", any(), &here).unwrap().ip(), ip("fd00::9"));
        for bad in ["0.0.0.0", "eth9", "eth0:x", "0.0.0.0:2377", "not an address"] {
            assert_eq!(advertise(bad, any(), &here).unwrap_err().message, BAD_ADVERTISE, "{bad}");
            assert_eq!(worker(bad, &here).unwrap_err().message, BAD_ADVERTISE, "{bad}");
        }
        assert_eq!(worker("", &here), Ok(None));
    }

    #[test]
    fn the_listening_port_is_advertised() {
        let here = local(&[("eth0", "10.1.0.5")]);
        assert_eq!(listen("", &here), Ok("0.0.0.0:2377".parse().unwrap()));
        assert_eq!(listen("eth0:99", &here), Ok("10.1.0.5:99".parse().unwrap()));
        assert_eq!(listen("eth7", &here).unwrap_err().message, BAD_LISTEN);
        let elsewhere = listen("0.0.0.0:99", &here).unwrap();
        assert_eq!(advertise("", elsewhere, &here), Ok("10.1.0.5:99".parse().unwrap()));
        assert_eq!(advertise("eth0", elsewhere, &here), Ok("10.1.0.5:99".parse().unwrap()));
    }

    #[test]
    fn without_a_wish_the_address_must_be_clear() {
        let one = local(&[("eth0", "10.1.0.5"), ("eth0", "fd00::5")]);
        assert_eq!(advertise("", any(), &one).unwrap().ip(), ip("10.1.0.5"));
        assert_eq!(advertise("", "10.9.9.9:2377".parse().unwrap(), &one).unwrap().ip(), ip("10.9.9.9"));
        let two = local(&[("eth0", "10.1.0.5"), ("eth1", "10.2.0.5")]);
        assert_eq!(
            advertise("", any(), &two).unwrap_err().message,
            "could not choose an IP address to advertise since this system has multiple addresses on \
             different interfaces (10.1.0.5 on eth0 and 10.2.0.5 on eth1)"
        );
        assert!(advertise("", any(), &[]).unwrap_err().message.contains("could not find"));
        let twice = local(&[("eth0", "10.1.0.5"), ("eth0", "10.1.0.6")]);
        assert!(advertise("eth0", any(), &twice).unwrap_err().message.contains("more than one IPv4 address"));
    }

    #[test]
    fn the_data_path_follows_the_advertised_address() {
        let here = local(&[("eth1", "10.2.0.5")]);
        assert_eq!(data_path("", None, &here), Ok(None));
        assert_eq!(data_path("", Some(ip("10.1.0.5")), &here), Ok(Some(ip("10.1.0.5"))));
        assert_eq!(data_path("eth1", Some(ip("10.1.0.5")), &here), Ok(Some(ip("10.2.0.5"))));
        for (asked, advertised) in [("", "fd00::5"), ("fd00::9", "10.1.0.5")] {
            let refused = data_path(asked, Some(ip(advertised)), &here).unwrap_err();
            assert!(refused.message.contains("--data-path-addr"), "{}", refused.message);
        }
        assert_eq!(data_path("eth1", Some(ip("fd00::5")), &here), Ok(Some(ip("10.2.0.5"))));
        assert_eq!(data_path("10.2.0.5:4789", None, &here).unwrap_err().message, BAD_DATA_PATH);
    }

    #[test]
    fn managers_are_found_at_dockers_port() {
        for (asked, found) in [
            ("10.1.0.5", "10.1.0.5:2377"),
            ("10.1.0.5:99", "10.1.0.5:99"),
            ("fd00::5", "[fd00::5]:2377"),
            ("[fd00::5]:99", "[fd00::5]:99"),
            ("manager.example", "manager.example:2377"),
            ("manager.example:99", "manager.example:99"),
        ] {
            assert_eq!(remote(asked), found);
        }
    }
}
