//! Client verbs: talk to a daemon's API, print what Docker's client would print.
//!
//! They exist for machines without the `docker` client; flags, output and exit codes are Docker's, so
//! that a script written for one runs with the other. Nothing in here knows how the daemon works.
#![forbid(unsafe_code)]

mod client;
mod exec;
mod image;
mod network;
mod node;
mod output;
mod service;
mod swarm;
mod trace;
mod verify;

use std::process::ExitCode;

use clap::{Args, Subcommand};

pub use client::{Client, Error, Result};
pub use verify::node_report;

/// Where the daemon listens and clients look unless told otherwise.
pub const DEFAULT_HOST: &str = "unix:///run/shoal/shoal.sock";

/// Which daemon to talk to; flatten this into the parser of the binary.
#[derive(Debug, Clone, Args)]
pub struct Target {
    /// Daemon socket to talk to
    #[arg(short = 'H', long = "host", env = "DOCKER_HOST", default_value = DEFAULT_HOST, global = true)]
    pub host: String,
}

/// Every client verb.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Make this node a cluster
    #[command(subcommand)]
    Swarm(swarm::SwarmCommand),
    /// Create and list networks
    #[command(subcommand)]
    Network(network::NetworkCommand),
    /// Create, watch, scale and remove services
    #[command(subcommand)]
    Service(service::ServiceCommand),
    /// Import and list images
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Run a command in a running container
    Exec(exec::ExecArgs),
    /// What this node holds and does
    #[command(subcommand)]
    Node(node::NodeCommand),
    /// Check that every node really holds what its network tables say
    Verify(verify::VerifyArgs),
    /// Tell why a name leads a container where it leads
    Trace(trace::TraceArgs),
}

/// Carries out one verb against the daemon at `target`. The exit code is the one Docker's client has;
/// an error is to be printed to stderr as it is.
pub async fn run(target: &Target, command: Command) -> Result<ExitCode> {
    let client = Client::connect(&target.host)?;
    match command {
        Command::Swarm(command) => swarm::run(&client, command).await,
        Command::Network(command) => network::run(&client, command).await,
        Command::Service(command) => service::run(&client, command).await,
        Command::Image(command) => image::run(&client, command).await,
        Command::Exec(args) => exec::run(&client, args).await,
        Command::Node(command) => node::run(&client, command).await,
        Command::Verify(args) => verify::run(&client, args).await,
        Command::Trace(args) => trace::run(&client, args).await,
    }
}
