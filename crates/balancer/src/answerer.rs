//! Attaching the answerer: clsact filters on the host side of a sandbox's veth.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use nix::net::if_::if_nametoindex;

use crate::load::Answering;
use crate::netlink::{CREATE, EXCL, Netlink, attribute, put_attribute};
use crate::netns::{inside, system};
use crate::sets::map;
use crate::{Error, Result};

const NETLINK_ROUTE: isize = 0;
const RTM_GETLINK: u16 = 18;
const RTM_NEWQDISC: u16 = 36;
const RTM_NEWTFILTER: u16 = 44;
const RTM_GETTFILTER: u16 = 46;
const IFLA_MASTER: u16 = 10;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_CLASSID: u16 = 3;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;

/// `<linux/pkt_sched.h>`: the queueing discipline that only holds filters, and its two sides.
const CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;
/// Fixed, so that attaching again replaces a filter instead of adding one.
const PRIORITY: u32 = 50;
const HANDLE: u32 = 1;
const ETH_P_ALL: u16 = 3;

/// Puts `answering` on `interface` for the VIPs of network `vni`.
///
/// Clsact filters and not tcx links: those need Linux 6.6, and filters die with their interface, which is
/// what one wants.
pub(crate) fn attach(netns: &Path, interface: &str, vni: u32, answering: &mut Answering) -> Result<()> {
    inside(netns, || {
        let missing = || Error::NoInterface { interface: interface.into(), netns: netns.into() };
        let index = if_nametoindex(interface).map_err(|_| missing())?;
        let netlink = Netlink::open(NETLINK_ROUTE).map_err(system("open a route socket"))?;
        if let Some(bridge) = master(&netlink, index).map_err(system("find an interface's bridge"))? {
            answering.bridges.insert(vni, bridge, 0).map_err(map("bridges"))?;
        }
        let mut qdisc = traffic_message(index, CLSACT_HANDLE, CLSACT, 0);
        put_attribute(&mut qdisc, TCA_KIND, b"clsact\0");
        match netlink.change(RTM_NEWQDISC, CREATE | EXCL, &qdisc) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
            result => result.map_err(system("add a clsact queueing discipline"))?,
        }
        for (parent, name, program) in
            [(INGRESS, "shoal_answer", &answering.answer), (EGRESS, "shoal_back", &answering.back)]
        {
            let filter = filter(index, parent, vni, name, program);
            netlink.change(RTM_NEWTFILTER, CREATE, &filter).map_err(system("add a filter"))?;
        }
        Ok(())
    })
}

/// Both filters that [`attach`] puts on `interface` are there; on an interface that is not, none is.
pub(crate) fn is_attached(netns: &Path, interface: &str) -> Result<bool> {
    inside(netns, || {
        let Ok(index) = if_nametoindex(interface) else { return Ok(false) };
        let netlink = Netlink::open(NETLINK_ROUTE).map_err(system("open a route socket"))?;
        for side in [INGRESS, EGRESS] {
            let mut found = false;
            let request = traffic_message(index, 0, side, 0);
            let listed = netlink.dump(RTM_GETTFILTER, &request, |message| found |= is_ours(message));
            listed.map_err(system("list filters"))?;
            if !found {
                return Ok(false);
            }
        }
        Ok(true)
    })
}

/// `struct tcmsg` of a filter with our handle and priority.
fn is_ours(message: &[u8]) -> bool {
    let word =
        |at: usize| message.get(at..).and_then(<[u8]>::first_chunk).map(|word| u32::from_ne_bytes(*word));
    word(8) == Some(HANDLE) && word(16).is_some_and(|info| info >> 16 == PRIORITY)
}

/// The bridge that the interface is a port of.
fn master(netlink: &Netlink, index: u32) -> io::Result<Option<u32>> {
    let mut request = vec![0; 4]; // `struct ifinfomsg`
    request.extend(index.to_ne_bytes());
    request.extend([0; 8]);
    let mut master = None;
    netlink.query(RTM_GETLINK, &request, |message| {
        let attributes = message.get(16..).unwrap_or_default();
        let value = attribute(attributes, IFLA_MASTER).and_then(|value| value.first_chunk());
        master = value.map(|value| u32::from_ne_bytes(*value));
    })?;
    Ok(master)
}

fn filter(index: u32, parent: u32, vni: u32, name: &str, program: impl AsFd) -> Vec<u8> {
    let mut options = Vec::new();
    put_attribute(&mut options, TCA_BPF_FD, &program.as_fd().as_raw_fd().to_ne_bytes());
    put_attribute(&mut options, TCA_BPF_NAME, format!("{name}\0").as_bytes());
    put_attribute(&mut options, TCA_BPF_FLAGS, &TCA_BPF_FLAG_ACT_DIRECT.to_ne_bytes());
    put_attribute(&mut options, TCA_BPF_CLASSID, &vni.to_ne_bytes());
    let protocol = u32::from(ETH_P_ALL.to_be());
    let mut message = traffic_message(index, HANDLE, parent, PRIORITY << 16 | protocol);
    put_attribute(&mut message, TCA_KIND, b"bpf\0");
    put_attribute(&mut message, TCA_OPTIONS, &options);
    message
}

/// `struct tcmsg`.
fn traffic_message(index: u32, handle: u32, parent: u32, info: u32) -> Vec<u8> {
    let mut message = vec![0; 4];
    for word in [index, handle, parent, info] {
        message.extend(word.to_ne_bytes());
    }
    message
}
