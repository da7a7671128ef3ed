//! The manager: takes declarations in, plans what follows from them, and tells every node what to run
//! and how its networks look.
//!
//! `control` validates what users declare; [`plan`] is the pure control loops; `leader` commits what
//! they decide; [`ports`] knows which are not accepted everywhere; [`table`] derives the network tables; `dispatcher` serves the nodes' sessions; `ca` makes
//! machines nodes.
#![forbid(unsafe_code)]

mod barrier;
mod ca;
mod cluster;
mod control;
mod dispatcher;
mod draft;
mod error;
mod leader;
mod logs;
mod manager;
pub mod plan;
pub mod ports;
#[cfg(test)]
mod simulation;
pub mod table;
mod trace;
mod verify;

pub use ca::{CaError, JoinTokens};
pub use control::{Created, Rotate};
pub use error::{Code, ControlError, Error};
pub use manager::{InitOptions, Manager, ManagerConfig};
pub use shoal_store::State;
