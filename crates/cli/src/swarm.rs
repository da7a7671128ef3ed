//! `swarm init`.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::client::{Client, Result};

#[derive(Debug, Clone, Subcommand)]
pub enum SwarmCommand {
    /// Initialize a swarm
    Init(InitArgs),
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

pub(crate) async fn run(client: &Client, command: SwarmCommand) -> Result<ExitCode> {
    match command {
        SwarmCommand::Init(args) => init(client, args).await,
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
    if let Some(token) = worker_token(client).await {
        let address = client.get_json("/info").await?;
        let address = address.pointer("/Swarm/RemoteManagers/0/Addr").and_then(Value::as_str).unwrap_or("");
        println!("\nTo add a worker to this swarm, run the following command:\n");
        println!("    docker swarm join --token {token} {address}");
    }
    Ok(ExitCode::SUCCESS)
}

/// The token a worker joins with, when this daemon has any.
async fn worker_token(client: &Client) -> Option<String> {
    let swarm = client.get_json("/swarm").await.ok()?;
    let token = swarm.pointer("/JoinTokens/Worker")?.as_str()?;
    (!token.is_empty()).then(|| token.to_owned())
}
