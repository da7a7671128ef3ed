//! Attaching the answerer: a clsact filter on the host side of a sandbox's veth.

use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use crate::netlink::{CREATE, EXCL, Netlink, put_attribute};
use crate::netns::{inside, system};
use crate::{Error, Result};

const NETLINK_ROUTE: isize = 0;
const RTM_NEWQDISC: u16 = 36;
const RTM_NEWTFILTER: u16 = 44;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_CLASSID: u16 = 3;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;

/// `<linux/pkt_sched.h>`: the queueing discipline that only holds filters, and its ingress side.
const CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const INGRESS: u32 = 0xffff_fff2;
/// Fixed, so that attaching again replaces the filter instead of adding one.
const PRIORITY: u32 = 50;
const HANDLE: u32 = 1;
const ETH_P_ALL: u16 = 3;

/// Lets `program` answer on `interface` for the VIPs of network `vni`.
///
/// A clsact filter and not a tcx link: those need Linux 6.6, and a filter dies with its interface, which
/// is what one wants.
pub(crate) fn attach(netns: &Path, interface: &str, vni: u32, program: impl AsFd + Sync) -> Result<()> {
    inside(netns, || {
        let missing = || Error::NoInterface { interface: interface.into(), netns: netns.into() };
        let index = nix::net::if_::if_nametoindex(interface).map_err(|_| missing())?;
        let netlink = Netlink::open(NETLINK_ROUTE).map_err(system("open a route socket"))?;
        let mut qdisc = traffic_message(index, CLSACT_HANDLE, CLSACT, 0);
        put_attribute(&mut qdisc, TCA_KIND, b"clsact\0");
        match netlink.change(RTM_NEWQDISC, CREATE | EXCL, &qdisc) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
            result => result.map_err(system("add a clsact queueing discipline"))?,
        }
        let filter = filter(index, vni, program.as_fd().as_raw_fd());
        netlink.change(RTM_NEWTFILTER, CREATE, &filter).map_err(system("add the answering filter"))
    })
}

fn filter(index: u32, vni: u32, program: i32) -> Vec<u8> {
    let mut options = Vec::new();
    put_attribute(&mut options, TCA_BPF_FD, &program.to_ne_bytes());
    put_attribute(&mut options, TCA_BPF_NAME, b"shoal_answer\0");
    put_attribute(&mut options, TCA_BPF_FLAGS, &TCA_BPF_FLAG_ACT_DIRECT.to_ne_bytes());
    put_attribute(&mut options, TCA_BPF_CLASSID, &vni.to_ne_bytes());
    let protocol = u32::from(ETH_P_ALL.to_be());
    let mut message = traffic_message(index, HANDLE, INGRESS, PRIORITY << 16 | protocol);
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
