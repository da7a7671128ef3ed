//! How the daemon tells the resolver what to serve: newline-delimited JSON over a unix socket, one
//! reply to each request, in order. A reply means *in force*: the next query is answered from it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use shoal_model::trace::Lookup;
use shoal_model::{NameCounts, NetworkId, TableVersion};

use crate::Names;

mod client;
mod server;

pub use client::Client;
pub(crate) use server::{End, Registry, serve_feed};

/// The version of the feed this build speaks.
pub const FEED_VERSION: u32 = 1;

/// One sandbox to serve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxView {
    pub id: String,
    /// Its network namespace; lo must be up in it.
    pub netns: PathBuf,
    /// In look-up order.
    pub networks: Vec<NetworkId>,
    /// Where names of the outside are asked; empty: the node's own servers.
    #[serde(default)]
    pub upstreams: Vec<IpAddr>,
    /// Someone chose `ndots` ([`crate::resolv_conf::ContainerFile::ndots_set`]).
    #[serde(default)]
    pub ndots_set: bool,
    /// Only on internal networks: nothing is forwarded.
    #[serde(default)]
    pub internal: bool,
    /// Names of its own for others' names (Docker's links), in lower case.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub links: BTreeMap<String, String>,
}

/// The ports at 127.0.0.11 inside a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsPorts {
    pub udp: u16,
    pub tcp: u16,
}

/// The process at the other end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub feed_version: u32,
    pub pid: u32,
    /// Of the program, as in `shoal --version`.
    pub version: String,
}

/// What the resolver serves right now, read back from the running process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub sandboxes: BTreeMap<String, SandboxState>,
    pub networks: BTreeMap<NetworkId, NetworkState>,
}

/// One served sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxState {
    pub view: SandboxView,
    pub ports: DnsPorts,
}

/// The names of one network, in short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkState {
    pub version: TableVersion,
    pub names: usize,
    /// [`Names::digest`]; `None` from a process that does not tell.
    #[serde(default)]
    pub digest: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    /// Always first.
    Hello {
        feed_version: u32,
    },
    SetSandbox(SandboxView),
    RemoveSandbox(String),
    SetNames(Names),
    RemoveNames(NetworkId),
    Prune {
        sandboxes: Vec<String>,
        networks: Vec<NetworkId>,
    },
    ReadBack,
    ReadNames(NetworkId),
    /// What became of questions so far.
    Counts,
    /// What a sandbox would be answered.
    Trace {
        sandbox: String,
        name: String,
    },
    /// Ends the process; the state stays for a successor.
    Retire,
    /// Ends the process for good.
    Stop,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reply {
    Hello(Hello),
    Ports(DnsPorts),
    Done,
    State(State),
    Names(Option<Names>),
    Counts(NameCounts),
    /// `None`: the sandbox is not served.
    Trace(Option<Lookup>),
    Error(String),
}
