//! Connect-time balancing: a VIP becomes a task's address once, at `connect` or `sendmsg`.
//!
//! Eight eBPF programs at the root of cgroup2 (`bpf/connect.bpf.c`) translate the destination of sockets
//! whose network namespace they know by its cookie, and translate it back in `recvmsg` and `getpeername`.
//! A tc program (`bpf/answer.bpf.c`) answers ARP, neighbour solicitation and ping for VIPs. User space
//! only fills the maps ([`Balancer`]); what is set keeps working while no process of ours lives.
//!
//! Invariant: a namespace that no [`SandboxEntry`] or [`Balancer::set_node`] names is never touched.

#![deny(unsafe_code)] // allowed in `sys` (system calls) and `layout` (plain data in maps), nowhere else

mod answerer;
mod balancer;
mod destroy;
mod entry;
mod error;
mod layout;
mod load;
mod netlink;
mod netns;
mod pins;
mod sets;
mod sys;

pub use balancer::Balancer;
pub use destroy::destroy_sockets;
pub use entry::{
    BalancerConfig, Counted, Counts, DnsPorts, KernelState, LocalPort, NETWORKS_MAX, PortKey, SandboxEntry,
    ServiceKey,
};
pub use error::{Error, Result};
pub use netns::{netns_cookie, own_netns_cookie};
pub use sets::BACKENDS_MAX;
