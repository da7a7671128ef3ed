//! Letting go of sockets to a dead backend at once (`NETLINK_SOCK_DIAG`, `SOCK_DESTROY`).

use std::io;
use std::net::IpAddr;
use std::path::Path;

use crate::netlink::{Netlink, put_attribute};
use crate::netns::{inside, system};
use crate::{Error, Result};

const NETLINK_SOCK_DIAG: isize = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const INET_DIAG_REQ_BYTECODE: u16 = 1;
const INET_DIAG_BC_D_COND: u8 = 8;
const TCP: u8 = 6;
const UDP: u8 = 17;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Every TCP state that has a peer, also one still connecting; not listening, closed or in TIME_WAIT.
/// Bits are `enum tcp_state` of `<net/tcp_states.h>`.
const TCP_STATES: u32 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;
/// A connected UDP socket counts as established. An unconnected one has no destination to die with.
const UDP_STATES: u32 = 1 << 1;

/// `struct inet_diag_sockid`: ports, addresses, interface, cookie.
const ID: usize = 48;
const ID_AT: usize = 4;
const DESTINATION_AT: usize = 4 + 16;

/// Destroys every TCP and connected UDP socket of that namespace whose peer is `destination`, and says
/// how many they were. Who waits in one of them sees `ECONNABORTED` at once.
///
/// Take the backend out of the maps first, or a new connection slips in between.
pub fn destroy_sockets(netns: &Path, destination: IpAddr) -> Result<usize> {
    inside(netns, || destroy_here(destination))
}

fn destroy_here(destination: IpAddr) -> Result<usize> {
    let netlink = Netlink::open(NETLINK_SOCK_DIAG).map_err(system("open a sock_diag socket"))?;
    let mut count = 0;
    for (protocol, states) in [(TCP, TCP_STATES), (UDP, UDP_STATES)] {
        // An IPv4 destination is also the peer of IPv6 sockets, as a mapped address.
        let families: &[u8] = if destination.is_ipv4() { &[AF_INET, AF_INET6] } else { &[AF_INET6] };
        for family in families {
            for id in find(&netlink, *family, protocol, states, destination)? {
                count += usize::from(destroy(&netlink, *family, protocol, &id)?);
            }
        }
    }
    Ok(count)
}

fn find(
    netlink: &Netlink,
    family: u8,
    protocol: u8,
    states: u32,
    destination: IpAddr,
) -> Result<Vec<[u8; ID]>> {
    let mut found = Vec::new();
    let mut body = request(family, protocol, states, &[0; ID]);
    put_attribute(&mut body, INET_DIAG_REQ_BYTECODE, &peer_is(destination));
    let each = |message: &[u8]| {
        let id: Option<&[u8; ID]> = message.get(ID_AT..).and_then(|rest| rest.first_chunk());
        // The kernel has filtered already; what is to be destroyed is looked at once more.
        found.extend(id.filter(|id| peer(family, id) == Some(destination)));
    };
    netlink.dump(SOCK_DIAG_BY_FAMILY, &body, each).map_err(system("list sockets"))?;
    Ok(found)
}

/// `false` if the socket was gone already.
fn destroy(netlink: &Netlink, family: u8, protocol: u8, id: &[u8; ID]) -> Result<bool> {
    match netlink.change(SOCK_DESTROY, 0, &request(family, protocol, u32::MAX, id)) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(source) if source.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            let action = "destroy a socket (the kernel lacks CONFIG_INET_DIAG_DESTROY)";
            Err(Error::System { action, source: io::Error::from_raw_os_error(libc::EOPNOTSUPP) })
        }
        Err(source) => Err(Error::System { action: "destroy a socket", source }),
    }
}

/// `struct inet_diag_req_v2`.
fn request(family: u8, protocol: u8, states: u32, id: &[u8; ID]) -> Vec<u8> {
    let mut body = vec![family, protocol, 0, 0];
    body.extend(states.to_ne_bytes());
    body.extend(id);
    body
}

/// Byte code with one condition: `struct inet_diag_bc_op`, then `struct inet_diag_hostcond`.
/// An `AF_INET` condition also matches the mapped peers of IPv6 sockets.
fn peer_is(destination: IpAddr) -> Vec<u8> {
    let (family, address) = match destination {
        IpAddr::V4(v4) => (AF_INET, v4.octets().to_vec()),
        IpAddr::V6(v6) => (AF_INET6, v6.octets().to_vec()),
    };
    let len = u8::try_from(4 + 8 + address.len()).unwrap_or(u8::MAX);
    let bits = u8::try_from(address.len() * 8).unwrap_or(u8::MAX);
    let any_port = (-1_i32).to_ne_bytes();
    let mut code = vec![INET_DIAG_BC_D_COND, len];
    code.extend((u16::from(len) + 4).to_ne_bytes()); // where to go if not: past the end, which rejects
    code.extend([family, bits, 0, 0]);
    code.extend(any_port);
    code.extend(address);
    code
}

fn peer(family: u8, id: &[u8; ID]) -> Option<IpAddr> {
    let bytes: [u8; 16] = *id.get(DESTINATION_AT..)?.first_chunk()?;
    Some(if family == AF_INET {
        IpAddr::from(*bytes.first_chunk::<4>()?)
    } else {
        IpAddr::from(bytes).to_canonical()
    })
}
