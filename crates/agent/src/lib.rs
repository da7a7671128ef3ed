//! A node: it turns what a manager assigns into running containers, and network tables into names,
//! virtual addresses and published ports.
//!
//! The agent never decides what should run. It owns what it makes: every namespace, container and
//! kernel entry belongs to one task or one table, is found again after a restart, and is removed
//! when nobody claims it. Without a manager everything keeps running on the tables held.
//!
//! - [`task`] decides what is to be done for a task, `runner` does it, `prepare` and `sandbox` know
//!   how its container looks; `health` judges its probes.
//! - `deposits` keeps the secrets and configs of tasks, `template` fills in placeholders.
//! - `volumes` keeps directories that outlive containers.
//! - `plain` keeps the containers of no service, `guests` asks the manager for their networks, `local`
//!   keeps networks that are this node's alone.
//! - [`tables`] brings network tables into force in the right order.
//! - `standing` says whether the node is to be sent traffic from outside.
//! - `verify` looks at what kernel and resolver really hold, `drift` has what differs made anew.
//! - `trace` tells why a name leads where it leads.
//! - `measures` gathers what is counted.
//! - `firewall` finds what foreign firewalls drop, for [`doctor`] and the log.
//! - `published` keeps published ports from the node's other programs, or leaves them theirs.
//! - `enrol` makes a machine a node; `session` talks to the manager over a `link`, `resolver` to the
//!   node's resolver process, `store` to the disk.
#![forbid(unsafe_code)]

mod agent;
mod config;
mod connections;
mod deposits;
pub mod doctor;
mod drift;
mod enrol;
mod error;
mod events;
mod firewall;
mod guests;
mod health;
mod host_ports;
mod link;
mod local;
mod logs;
mod measures;
mod node;
mod plain;
mod prepare;
mod published;
mod reset;
mod resolver;
mod runner;
mod sandbox;
mod session;
mod standing;
mod store;
mod tables;
mod task;
mod tasks;
mod template;
#[cfg(test)]
mod testing;
mod trace;
mod verify;
mod view;
mod volumes;

pub use agent::Agent;
pub use config::{AgentConfig, Managers, Membership, RemoteManager};
pub use enrol::{Enrolment, EnrolmentError, enrol};
pub use error::{Error, Result};
pub use events::{EventKind, NodeEvent};
pub use health::{Health, HealthStatus};
pub use host_ports::Binding;
pub use local::{LocalNetwork, LocalSpec};
pub use measures::{Measures, ServiceCount, TableMeasure};
pub use plain::{NetworkMode, Place, PlainSpec, Restart, WaitFor};
pub use reset::reset;
pub use sandbox::Link;
pub use session::SessionState;
pub use shoal_balancer::Counted;
pub use standing::OutOfService;
pub use view::{ContainerNetwork, ContainerView, NodeEndpoint, NodeNetwork, PlainView};
pub use volumes::{Volume, VolumeView};

/// Locks a mutex whose holders never leave it half-changed, so a panic elsewhere does not matter.
pub(crate) fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
