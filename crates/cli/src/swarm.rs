//! `swarm init`, `join`, `join-token`.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::client::{Client, Error, Result};

#[derive(Debug, Clone, Subcommand)]
pub enum SwarmCommand {
    /// Initialize a swarm
    Init(InitArgs),
    /// Join a swarm as a node
    Join(JoinArgs),
    /// Show how a node joins this swarm
    JoinToken(JoinTokenArgs),
}

#[derive(Debug, Clone, Args)]
pub struct InitArgs {
    /// Advertised address (format: "<ip|interface>[:port]")
    #[arg(long, default_value = "")]
    advertise_addr: String,
    /// Listen address (format: "<ip|interface>[:port]")
    #[arg(long, default_value = "0.0.0.0:2377")]
    listen_addr: String,
    /// Address or interface to use for data path traffic
    #[arg(long, default_value = "")]
    data_path_addr: String,
    /// Port number to use for data path traffic (1024 - 49151); 0 is the default, 4789
    #[arg(long, default_value_t = 0)]
    data_path_port: u32,
    /// Default address pool in CIDR format
    #[arg(long)]
    default_addr_pool: Vec<String>,
    /// Default address pool subnet mask length
    #[arg(long, default_value_t = 24)]
    default_addr_pool_mask_length: u32,
    /// Availability of the node ("active", "pause", "drain")
    #[arg(long, default_value = "active")]
    availability: String,
}

#[derive(Debug, Clone, Args)]
pub struct JoinArgs {
    /// Token for entry into the swarm
    #[arg(long)]
    token: String,
    /// Advertised address (format: "<ip|interface>[:port]")
    #[arg(long, default_value = "")]
    advertise_addr: String,
    /// Listen address (format: "<ip|interface>[:port]")
    #[arg(long, default_value = "0.0.0.0:2377")]
    listen_addr: String,
    /// Address or interface to use for data path traffic
    #[arg(long, default_value = "")]
    data_path_addr: String,
    /// Availability of the node ("active", "pause", "drain")
    #[arg(long, default_value = "active")]
    availability: String,
    /// A manager of the swarm (format: "HOST:PORT")
    manager: String,
}

#[derive(Debug, Clone, Args)]
pub struct JoinTokenArgs {
    /// Only display token
    #[arg(short, long)]
    quiet: bool,
    /// What the node joins as
    #[arg(value_parser = ["worker", "manager"])]
    role: String,
}

pub(crate) async fn run(client: &Client, command: SwarmCommand) -> Result<ExitCode> {
    match command {
        SwarmCommand::Init(args) => init(client, args).await,
        SwarmCommand::Join(args) => join(client, args).await,
        SwarmCommand::JoinToken(args) => join_token(client, args).await,
    }
}

async fn init(client: &Client, args: InitArgs) -> Result<ExitCode> {
    let request = json!({
        "ListenAddr": args.listen_addr,
        "AdvertiseAddr": args.advertise_addr,
        "DataPathAddr": args.data_path_addr,
        "DataPathPort": args.data_path_port,
        "DefaultAddrPool": args.default_addr_pool,
        "SubnetSize": args.default_addr_pool_mask_length,
        "Availability": args.availability,
        "ForceNewCluster": false,
        "Spec": { "Labels": null, "Orchestration": {}, "Raft": {}, "Dispatcher": {}, "CAConfig": {},
                  "TaskDefaults": {}, "EncryptionConfig": { "AutoLockManagers": false } },
    });
    let node = client.post_json("/swarm/init", &request).await?;
    let node = node.as_str().unwrap_or_default();
    println!("Swarm initialized: current node ({node}) is now a manager.");
    if let Ok(token) = token(client, "worker").await {
        println!();
        tell_how_to_join(client, "worker", &token).await?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn join(client: &Client, args: JoinArgs) -> Result<ExitCode> {
    let request = json!({
        "ListenAddr": args.listen_addr,
        "AdvertiseAddr": args.advertise_addr,
        "DataPathAddr": args.data_path_addr,
        "RemoteAddrs": [args.manager],
        "JoinToken": args.token,
        "Availability": args.availability,
    });
    client.post_json("/swarm/join", &request).await?;
    let info = client.get_json("/info").await?;
    let manages = info.pointer("/Swarm/ControlAvailable").and_then(Value::as_bool).unwrap_or(false);
    println!("This node joined a swarm as a {}.", if manages { "manager" } else { "worker" });
    Ok(ExitCode::SUCCESS)
}

async fn join_token(client: &Client, args: JoinTokenArgs) -> Result<ExitCode> {
    let token = token(client, &args.role).await?;
    if args.quiet {
        println!("{token}");
    } else {
        tell_how_to_join(client, &args.role, &token).await?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The token with which a node joins in this role.
async fn token(client: &Client, role: &str) -> Result<String> {
    let field = if role == "manager" { "/JoinTokens/Manager" } else { "/JoinTokens/Worker" };
    let swarm = client.get_json("/swarm").await?;
    let token = swarm.pointer(field).and_then(Value::as_str).unwrap_or_default();
    if token.is_empty() {
        Err(Error::UnexpectedAnswer("no join token".to_owned()))
    } else {
        Ok(token.to_owned())
    }
}

async fn tell_how_to_join(client: &Client, role: &str, token: &str) -> Result<()> {
    let info = client.get_json("/info").await?;
    let address = info.pointer("/Swarm/RemoteManagers/0/Addr").and_then(Value::as_str).unwrap_or_default();
    println!("To add a {role} to this swarm, run the following command:\n");
    println!("    docker swarm join --token {token} {address}\n");
    Ok(())
}
