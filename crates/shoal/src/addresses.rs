//! Which address a node advertises, in Docker's words (`daemon/cluster/listen_addr.go`).

use std::net::{IpAddr, SocketAddr};

use shoal_manager::{Code, ControlError};

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

/// The address to advertise: what is asked for, else the one listened on, else the only one there is.
pub(crate) fn advertise(asked: &str, listen: &str, local: &[Local]) -> Result<IpAddr, ControlError> {
    if !asked.is_empty() {
        let address = host(asked).and_then(|host| named(&host, local).transpose()).transpose()?;
        return address.filter(|address| !address.is_unspecified()).ok_or_else(|| invalid(BAD_ADVERTISE));
    }
    if !listen.is_empty() {
        let address = host(listen).and_then(|host| named(&host, local).transpose()).transpose()?;
        let address = address.ok_or_else(|| invalid(BAD_LISTEN))?;
        if !address.is_unspecified() {
            return Ok(address);
        }
    }
    only(local)
}

/// Where other nodes send VXLAN frames; by default the advertised address.
pub(crate) fn data_path(asked: &str, advertised: IpAddr, local: &[Local]) -> Result<IpAddr, ControlError> {
    let address = match asked {
        "" => Some(advertised),
        _ => named(asked, local)?.filter(|address| !address.is_unspecified()),
    };
    match address {
        Some(IpAddr::V6(address)) => Err(invalid(format!(
            "VXLAN frames are not sent over IPv6 yet ({address}): name an IPv4 address of this node with \
             --data-path-addr"
        ))),
        Some(address) => Ok(address),
        None => Err(invalid(BAD_DATA_PATH)),
    }
}

/// The part before an optional port.
fn host(text: &str) -> Option<String> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Some(address.ip().to_string());
    }
    if text.parse::<IpAddr>().is_ok() {
        return Some(text.to_owned());
    }
    match text.rsplit_once(':') {
        Some((host, port)) => port.parse::<u16>().ok().map(|_| host.to_owned()),
        None => Some(text.to_owned()),
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

    #[test]
    fn addresses_and_interfaces_with_and_without_port() {
        let here = local(&[("eth0", "10.1.0.5"), ("eth0", "fd00::5"), ("eth1", "fd00::6")]);
        for asked in ["10.1.0.5", "10.1.0.5:2377", "eth0", "eth0:2377"] {
            assert_eq!(advertise(asked, "0.0.0.0:2377", &here), Ok(ip("10.1.0.5")), "{asked}");
        }
        assert_eq!(advertise("eth1", "", &here), Ok(ip("fd00::6")));
        assert_eq!(advertise("[fd00::9]:2377", "", &here), Ok(ip("fd00::9")));
        for bad in ["0.0.0.0", "eth9", "eth0:x", "0.0.0.0:2377", "not an address"] {
            assert_eq!(advertise(bad, "", &here).unwrap_err().message, BAD_ADVERTISE, "{bad}");
        }
    }

    #[test]
    fn without_a_wish_the_address_must_be_clear() {
        let one = local(&[("eth0", "10.1.0.5"), ("eth0", "fd00::5")]);
        assert_eq!(advertise("", "0.0.0.0:2377", &one), Ok(ip("10.1.0.5")));
        assert_eq!(advertise("", "10.9.9.9:2377", &one), Ok(ip("10.9.9.9")));
        let two = local(&[("eth0", "10.1.0.5"), ("eth1", "10.2.0.5")]);
        assert_eq!(
            advertise("", "0.0.0.0:2377", &two).unwrap_err().message,
            "could not choose an IP address to advertise since this system has multiple addresses on \
             different interfaces (10.1.0.5 on eth0 and 10.2.0.5 on eth1)"
        );
        assert!(advertise("", "", &[]).unwrap_err().message.contains("could not find"));
        let twice = local(&[("eth0", "10.1.0.5"), ("eth0", "10.1.0.6")]);
        assert!(advertise("eth0", "", &twice).unwrap_err().message.contains("more than one IPv4 address"));
    }

    #[test]
    fn the_data_path_follows_the_advertised_address() {
        let here = local(&[("eth1", "10.2.0.5")]);
        assert_eq!(data_path("", ip("10.1.0.5"), &here), Ok(ip("10.1.0.5")));
        assert_eq!(data_path("eth1", ip("10.1.0.5"), &here), Ok(ip("10.2.0.5")));
        for (asked, advertised) in [("", "fd00::5"), ("fd00::9", "10.1.0.5")] {
            let refused = data_path(asked, ip(advertised), &here).unwrap_err();
            assert!(refused.message.contains("--data-path-addr"), "{}", refused.message);
        }
        assert_eq!(data_path("eth1", ip("fd00::5"), &here), Ok(ip("10.2.0.5")));
        assert_eq!(data_path("10.2.0.5:4789", ip("10.1.0.5"), &here).unwrap_err().message, BAD_DATA_PATH);
    }
}
