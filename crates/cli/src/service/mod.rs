//! The `service` verbs.

mod list;
mod progress;
mod publish;
mod spec;

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::client::{Client, Error, Result, escape};
use crate::output::indent;

#[derive(Debug, Clone, Subcommand)]
pub enum ServiceCommand {
    /// Create a new service
    Create(Box<spec::CreateArgs>),
    /// List services
    #[command(visible_alias = "list")]
    Ls(list::ListArgs),
    /// List the tasks of one or more services
    Ps(list::PsArgs),
    /// Display detailed information on one or more services
    Inspect(NamesArgs),
    /// Scale one or multiple replicated services
    Scale(ScaleArgs),
    /// Remove one or more services
    #[command(visible_alias = "remove")]
    Rm(NamesArgs),
}

#[derive(Debug, Clone, Args)]
pub struct NamesArgs {
    /// Services, by name or id
    #[arg(required = true)]
    services: Vec<String>,
}

#[derive(Debug, Clone, Args)]
pub struct ScaleArgs {
    /// Exit immediately instead of waiting for the service to converge
    #[arg(short, long)]
    detach: bool,
    /// SERVICE=REPLICAS
    #[arg(required = true)]
    scales: Vec<String>,
}

pub(crate) async fn run(client: &Client, command: ServiceCommand) -> Result<ExitCode> {
    match command {
        ServiceCommand::Create(args) => create(client, *args).await,
        ServiceCommand::Ls(args) => list::services(client, args).await,
        ServiceCommand::Ps(args) => list::tasks(client, args).await,
        ServiceCommand::Inspect(args) => inspect(client, args).await,
        ServiceCommand::Scale(args) => scale(client, args).await,
        ServiceCommand::Rm(args) => remove(client, args).await,
    }
}

async fn create(client: &Client, args: spec::CreateArgs) -> Result<ExitCode> {
    let mut spec = args.spec()?;
    name_networks_by_id(client, &mut spec).await?;
    let answer = client.post_json("/services/create", &spec).await?;
    for warning in answer["Warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        eprintln!("{warning}");
    }
    let id = answer["ID"].as_str().unwrap_or_default().to_owned();
    println!("{id}");
    if args.detach {
        return Ok(ExitCode::SUCCESS);
    }
    progress::wait(client, &id, args.quiet).await
}

/// As Docker's client does: a mistyped network is told before anything is created.
async fn name_networks_by_id(client: &Client, spec: &mut Value) -> Result<()> {
    let networks = spec.pointer_mut("/TaskTemplate/Networks").and_then(Value::as_array_mut);
    for network in networks.into_iter().flatten() {
        let name = network["Target"].as_str().unwrap_or_default().to_owned();
        let found = client.get_json(&format!("/networks/{}?scope=swarm", escape(&name))).await?;
        network["Target"] = found["Id"].clone();
    }
    Ok(())
}

async fn inspect(client: &Client, args: NamesArgs) -> Result<ExitCode> {
    let (mut found, mut failed) = (Vec::new(), false);
    for name in &args.services {
        match client.get(&format!("/services/{}?insertDefaults=true", escape(name))).await {
            Ok(body) => found.push(String::from_utf8_lossy(&body).into_owned()),
            Err(error) if error.is_not_found() => {
                eprintln!("Error: no such service: {name}");
                failed = true;
            }
            Err(error) => return Err(error),
        }
    }
    println!("{}", indent(&format!("[{}]", found.join(",")), 0));
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn scale(client: &Client, args: ScaleArgs) -> Result<ExitCode> {
    let mut scaled = Vec::new();
    for word in &args.scales {
        let (name, replicas) = word
            .split_once('=')
            .filter(|(name, replicas)| !name.is_empty() && !replicas.is_empty())
            .ok_or_else(|| Error::Usage(format!("invalid scale specifier '{word}': use SERVICE=REPLICAS")))?;
        let replicas: u64 = replicas.parse().map_err(|_| {
            Error::Usage(format!("{name}: invalid replicas value {replicas}: not a whole number"))
        })?;
        // As docker says it: which of the services it was about, then why.
        let about = |error: Error| match error {
            Error::Daemon { .. } => Error::Usage(format!("{name}: {error}")),
            other => other,
        };
        let service = client.get_json(&format!("/services/{}", escape(name))).await.map_err(about)?;
        let mut spec = service["Spec"].clone();
        let replicated = ["/Mode/Replicated/Replicas", "/Mode/ReplicatedJob/TotalCompletions"];
        let scaled_by = replicated.into_iter().find(|path| spec.pointer(path).is_some());
        let Some(number) = scaled_by.and_then(|path| spec.pointer_mut(path)) else {
            return Err(Error::Usage(format!(
                "{name}: scale can only be used with replicated or replicated-job mode"
            )));
        };
        *number = json!(replicas);
        let id = service["ID"].as_str().unwrap_or(name).to_owned();
        let version = &service["Version"]["Index"];
        let path = format!("/services/{}/update?version={version}", escape(&id));
        client.post_json(&path, &spec).await.map_err(about)?;
        println!("{name} scaled to {replicas}");
        scaled.push(id);
    }
    let mut worst = ExitCode::SUCCESS;
    for id in scaled.iter().filter(|_| !args.detach) {
        let code = progress::wait(client, id, false).await?;
        if code != ExitCode::SUCCESS {
            worst = code;
        }
    }
    Ok(worst)
}

async fn remove(client: &Client, args: NamesArgs) -> Result<ExitCode> {
    let mut failed = false;
    for name in &args.services {
        match client.docker().delete_service(&escape(name)).await.map_err(Error::from) {
            Ok(()) => println!("{name}"),
            Err(error @ Error::Daemon { .. }) => {
                eprintln!("{error}");
                failed = true;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
