//! The Docker Engine API (1.41) over a unix socket: HTTP ⇄ the model. Translation only.
//!
//! Handlers read a request into the model's words, ask the manager or the agent, and put the answer
//! into Docker's JSON. Nothing is decided here but what is refused because this engine cannot honour
//! it. Wire types live in this crate and nowhere else.
//!
//! Beside Docker's paths there are a few of our own under `/shoal/`.
#![forbid(unsafe_code)]

mod attach;
mod body;
mod convert;
mod detach;
mod engine;
mod error;
mod events;
mod exec;
mod filters;
mod health;
mod hijack;
mod logs;
mod metrics;
mod port;
mod query;
mod routes;
mod server;
mod version;
mod wire;

#[cfg(test)]
mod tests;

pub use engine::{Engine, InitRequest, JoinRequest, LocalState, Swarm};
pub use health::serve_health;
pub use metrics::serve_metrics;
pub use server::{router, serve};
pub use version::{API_VERSION, MIN_API_VERSION};
