//! A node: it turns what a manager assigns into running containers, and network tables into names,
//! virtual addresses and published ports.
//!
//! The agent never decides what should run. It owns what it makes: every namespace, container and
//! kernel entry belongs to one task or one table, is found again after a restart, and is removed
//! when nobody claims it. Without a manager everything keeps running on the tables held.
#![forbid(unsafe_code)]

mod config;
mod error;
mod health;
mod store;
mod task;
#[cfg(test)]
mod testing;
mod view;

use std::path::PathBuf;
use std::time::Duration;

use shoal_model::{ContainerId, NodeDescription};
use shoal_runtime::Runtime;

pub use config::{AgentConfig, Membership};
pub use error::{Error, Result};
pub use health::{Health, HealthStatus};
pub use view::{ContainerNetwork, ContainerView, DEFAULT_STOP_TIMEOUT, TableCounts, TableReport};

/// A running node. Cheap to clone; all clones are the same node.
#[derive(Clone)]
pub struct Agent {
    runtime: Runtime,
}

impl Agent {
    /// Opens the node's store, takes over what still runs, and resumes its membership.
    pub async fn start(_config: AgentConfig) -> Result<Self> {
        unimplemented!()
    }

    /// What the node says of itself.
    pub fn description(&self) -> NodeDescription {
        unimplemented!()
    }

    /// Makes the node a member of a cluster and opens its session.
    pub async fn join(&self, _membership: Membership) -> Result<()> {
        unimplemented!()
    }

    /// Stops and removes everything the cluster gave the node.
    pub async fn leave(&self) -> Result<()> {
        unimplemented!()
    }

    pub fn membership(&self) -> Option<Membership> {
        unimplemented!()
    }

    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Every container of this node, ended ones too.
    pub async fn containers(&self) -> Result<Vec<ContainerView>> {
        unimplemented!()
    }

    /// By id, name or unambiguous id prefix.
    pub async fn find_container(&self, _name: &str) -> Result<ContainerView> {
        unimplemented!()
    }

    /// Stops a container; one of a task is first taken out of service everywhere.
    pub async fn stop_container(&self, _id: &ContainerId, _timeout: Option<Duration>) -> Result<()> {
        unimplemented!()
    }

    /// Sends a signal, nothing else.
    pub async fn kill_container(&self, _id: &ContainerId, _signal: i32) -> Result<()> {
        unimplemented!()
    }

    /// Every network table held, against what kernel and resolver really hold.
    pub async fn tables(&self) -> Result<Vec<TableReport>> {
        unimplemented!()
    }

    /// Ends the agent; containers go on running. When none runs, all that the node has in the
    /// kernel goes too.
    pub async fn shutdown(&self) {
        unimplemented!()
    }
}

/// Removes everything of a node: containers, images, namespaces, kernel state, directories. Needs
/// no running daemon.
pub async fn reset(_config: &AgentConfig) -> Result<()> {
    unimplemented!()
}

/// Whether this machine can run a node.
pub mod doctor {
    use crate::AgentConfig;

    /// One thing looked at.
    #[derive(Debug, Clone, serde::Serialize)]
    pub struct Check {
        pub name: String,
        pub ok: bool,
        pub detail: String,
        /// What to do about it; empty when all is well.
        pub remedy: String,
    }

    /// Looks at everything a node needs.
    pub async fn run(_config: &AgentConfig) -> Vec<Check> {
        Vec::new()
    }
}
