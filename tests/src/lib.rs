//! Worlds for end-to-end tests.
//!
//! A [`World`] is a network namespace without a way out that plays "everything outside": a DNS server,
//! a web server, clients. A [`Node`] is a daemon in a namespace of its own, one veth away from its
//! world's bridge, with its own directories and containerd namespace. A [`Cluster`] is several nodes of
//! one world, whose links can be cut. Nothing is shared between tests, nothing of the machine is
//! touched, and [`Node::finish`] and [`Cluster::finish`] prove that nothing is left.
//!
//! Clients inside containers are mostly threads of the test that enter a task's network namespace:
//! the kernel then treats their sockets exactly as the task's own.
#![forbid(unsafe_code)]
// A failed step of a test is a panic that names it.
#![allow(clippy::unwrap_used)]

mod cluster;
pub mod dns;
pub mod image;
mod leaks;
pub mod load;
mod netns;
mod node;
pub mod process;
pub mod registry;
pub mod stream;
mod token;
pub mod web;
mod world;

use std::time::{Duration, Instant};

pub use cluster::Cluster;
pub use leaks::{unmount_below, unpin};
pub use netns::Netns;
pub use node::{Container, Node, NodeOptions, program, shoal};
pub use world::{
    CLIENT, CLIENT_V6, DNS_SERVER, GATEWAY, GATEWAY_V6, NODE, OUTSIDE, OUTSIDE_NAME, World, node_address,
    node_address_v6,
};

/// Long enough for anything that works on a busy machine; a wait that needs it has failed anyway.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Where nodes say whether they are in service, if they are to, and how long they say so before they stop.
pub const HEALTH_PORT: u16 = 2378;
/// Where a node tells its numbers, on its loopback address.
pub const METRICS_PORT: u16 = 9323;
pub const HEALTH_GRACE: Duration = Duration::from_secs(3);

/// Polls until `look` finds something, or panics with `what` and the last sighting.
pub fn wait_until<T>(patience: Duration, what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match look() {
            Ok(found) => return found,
            Err(seen) if start.elapsed() > patience => {
                panic!("not within {patience:?}: {what}\nlast seen: {seen}")
            }
            Err(_) => std::thread::sleep(Duration::from_millis(25)),
        }
    }
}
