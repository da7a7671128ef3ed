//! `network create` and `network ls`.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use crate::client::{Client, Error, Result};
use crate::output::{short_id, table};

#[derive(Debug, Clone, Subcommand)]
pub enum NetworkCommand {
    /// Create a network
    Create(Box<CreateArgs>),
    /// List networks
    #[command(visible_alias = "list")]
    Ls(ListArgs),
}

#[derive(Debug, Clone, Args)]
pub struct CreateArgs {
    /// Name of the network
    name: String,
    /// Driver to manage the network
    #[arg(short, long, default_value = "bridge")]
    driver: String,
    /// Enable manual container attachment
    #[arg(long)]
    attachable: bool,
    /// Restrict external access to the network
    #[arg(long)]
    internal: bool,
    /// Create the swarm routing-mesh network
    #[arg(long)]
    ingress: bool,
    /// Control the network's scope: local or swarm
    #[arg(long, default_value = "", hide_default_value = true)]
    scope: String,
    /// Create a configuration only network
    #[arg(long)]
    config_only: bool,
    /// The network from which to copy the configuration
    #[arg(long, default_value = "", hide_default_value = true)]
    config_from: String,
    /// Enable IPv6 address assignment
    #[arg(long)]
    ipv6: bool,
    /// Subnet in CIDR format that represents a network segment
    #[arg(long)]
    subnet: Vec<String>,
    /// IPv4 or IPv6 gateway of the subnet at the same place
    #[arg(long)]
    gateway: Vec<String>,
    /// Allocate addresses from this part of the subnet at the same place
    #[arg(long)]
    ip_range: Vec<String>,
    /// Set metadata on the network
    #[arg(long)]
    label: Vec<String>,
    /// Set driver specific options
    #[arg(short, long = "opt")]
    options: Vec<String>,
}

#[derive(Debug, Clone, Args)]
pub struct ListArgs {
    /// Only display network IDs
    #[arg(short, long)]
    quiet: bool,
}

pub(crate) async fn run(client: &Client, command: NetworkCommand) -> Result<ExitCode> {
    match command {
        NetworkCommand::Create(args) => create(client, *args).await,
        NetworkCommand::Ls(args) => list(client, args).await,
    }
}

async fn create(client: &Client, args: CreateArgs) -> Result<ExitCode> {
    if args.gateway.len().max(args.ip_range.len()) > args.subnet.len() {
        return Err(Error::Usage("every ip-range or gateway must have a corresponding subnet".to_owned()));
    }
    let pools: Vec<Value> = args
        .subnet
        .iter()
        .enumerate()
        .map(|(place, subnet)| {
            let mut pool = Map::from_iter([("Subnet".to_owned(), json!(subnet))]);
            for (key, values) in [("Gateway", &args.gateway), ("IPRange", &args.ip_range)] {
                if let Some(value) = values.get(place) {
                    pool.insert(key.to_owned(), json!(value));
                }
            }
            Value::Object(pool)
        })
        .collect();
    let request = json!({
        "Name": args.name,
        "CheckDuplicate": true,
        "Driver": args.driver,
        "Scope": args.scope,
        "ConfigOnly": args.config_only,
        "ConfigFrom": { "Network": args.config_from },
        "EnableIPv6": args.ipv6,
        "IPAM": { "Driver": "default", "Options": {}, "Config": pools },
        "Internal": args.internal,
        "Attachable": args.attachable,
        "Ingress": args.ingress,
        "Options": pairs(&args.options),
        "Labels": pairs(&args.label),
    });
    let answer = client.post_json("/networks/create", &request).await?;
    println!("{}", answer.get("Id").and_then(Value::as_str).unwrap_or_default());
    Ok(ExitCode::SUCCESS)
}

async fn list(client: &Client, args: ListArgs) -> Result<ExitCode> {
    let mut networks = client.docker().list_networks(None).await?;
    networks.sort_by(|a, b| a.name.cmp(&b.name));
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let rows: Vec<Vec<String>> = networks
        .iter()
        .map(|n| vec![short_id(&text(&n.id)), text(&n.name), text(&n.driver), text(&n.scope)])
        .collect();
    if args.quiet {
        rows.iter().for_each(|row| println!("{}", row[0]));
    } else {
        print!("{}", table(&["NETWORK ID", "NAME", "DRIVER", "SCOPE"], &rows));
    }
    Ok(ExitCode::SUCCESS)
}

/// `key=value` words as a JSON object; a word without `=` has an empty value.
pub(crate) fn pairs(words: &[String]) -> Value {
    let pair = |word: &String| {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        (key.to_owned(), json!(value))
    };
    Value::Object(words.iter().map(pair).collect())
}
