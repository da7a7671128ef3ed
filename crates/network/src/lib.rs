//! Sandboxes, overlay networks and the routing mesh of one node.
//!
//! Everything lives in two kinds of places: network namespaces bind-mounted under the node's run
//! directory, and the node's own network namespace (the one this process was started in), where each
//! link carries the node's tag. All operations are idempotent, so what a former process left behind
//! is taken over by asking for it again.
#![forbid(unsafe_code)]

mod attach;
mod bridge;
mod conntrack;
mod error;
mod fabric;
mod follow;
mod gateway;
mod ingress;
mod link;
mod local;
mod macvlan;
mod membership;
mod mtu;
mod neighbour;
mod netlink;
mod netns;
mod nfnetlink;
mod nft;
mod nftables;
mod overlay;
mod owner;
mod ports;
mod sandbox;
mod state;
mod sysctl;
mod tables;
mod verify;

mod types;

pub use error::{Error, Result};
pub use fabric::{Fabric, reset};
pub use types::{
    FabricState, FarEnd, HostPort, HostPorts, NetworkConfig, OwnNetwork, Ports, PublishedPort, Remote,
    Sandbox, SandboxAttachment, SandboxConfig, SandboxLink,
};
