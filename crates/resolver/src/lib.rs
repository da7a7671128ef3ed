//! Names inside containers: what resolves, for whom, and to what.
//!
//! The resolver is a process of its own on every node. It listens inside each sandbox on 127.0.0.11,
//! UDP and TCP, answers names of the sandbox's networks from the last network tables it was fed, and
//! forwards everything else. It outlives the daemon that feeds it, and finds its state on disk after a
//! restart of its own.
//!
//! - [`Names`], [`View`] and [`answer`] are the pure core: tables in, packets out.
//! - [`resolv_conf`] reads the node's configuration and writes the container's.
//! - [`feed`] is how the daemon talks to the process; [`serve`] is the process.
#![forbid(unsafe_code)]

mod answer;
mod error;
pub mod feed;
mod forward;
mod names;
pub mod resolv_conf;
mod sandbox;
mod serve;
mod state;
mod tally;
mod trace;
mod view;
mod wire;

pub use answer::{Transport, Verdict, answer};
pub use error::Error;
pub use names::{Entry, Names};
pub use serve::{ResolverConfig, serve, socket_path};
pub use view::{NetworkSlot, View};

/// The address the resolver has inside every sandbox.
pub const LISTEN_ADDRESS: std::net::Ipv4Addr = std::net::Ipv4Addr::new(127, 0, 0, 11);

/// What this crate's operations end with.
pub type Result<T> = std::result::Result<T, Error>;
