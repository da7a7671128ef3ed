//! `shoal`: the daemon, the processes it supervises, and the client verbs, in one binary.
#![forbid(unsafe_code)]

mod addresses;
mod daemon;
mod membership;
mod options;
mod resolver;

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use shoal_model::NodeReport;

/// A clustering engine: service discovery and load balancing under Docker's API.
#[derive(Debug, Parser)]
#[command(name = "shoal", version, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    target: shoal_cli::Target,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a node
    Daemon(options::DaemonArgs),
    /// Serve names to this node's containers (started by the daemon)
    #[command(hide = true)]
    Resolver(resolver::ResolverArgs),
    /// Write a container's output to its log (started by containerd, or by the daemon with FIFOs)
    #[command(hide = true)]
    LogShim { container_dir: std::path::PathBuf, fifos: Option<std::path::PathBuf> },
    /// Check whether this machine can run a node
    Doctor(options::DoctorArgs),
    /// Remove everything of a stopped node from this machine
    Reset(options::ResetArgs),
    #[command(flatten)]
    Client(shoal_cli::Command),
}

fn main() -> ExitCode {
    // Before anything else: a log shim lives as long as its container and stays as small as it can.
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().as_deref() == Some(OsStr::new("log-shim"))
        && let (Some(dir), fifos, None) = (arguments.next(), arguments.next(), arguments.next())
    {
        shoal_runtime::log_shim::run(Path::new(&dir), fifos.as_ref().map(Path::new));
    }
    let matches = Cli::command().get_matches();
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    // A host from the environment or by default is meant for clients.
    let named = matches.value_source("host") == Some(ValueSource::CommandLine)
        || matches
            .subcommand()
            .is_some_and(|(_, verb)| verb.value_source("host") == Some(ValueSource::CommandLine));
    let host = named.then(|| cli.target.host.clone());
    match run(cli, host) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli, host: Option<String>) -> anyhow::Result<ExitCode> {
    match cli.verb {
        Verb::Daemon(arguments) => {
            daemon::run(arguments.resolve(host)?)?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Resolver(arguments) => {
            resolver::run(arguments)?;
            Ok(ExitCode::SUCCESS)
        }
        // Recognised above; only a wrong number of arguments comes here.
        Verb::LogShim { container_dir, fifos } => {
            shoal_runtime::log_shim::run(&container_dir, fifos.as_deref())
        }
        Verb::Doctor(arguments) => doctor(&arguments, host),
        Verb::Reset(arguments) => {
            let config = arguments.node.resolve(None)?.agent;
            runtime()?.block_on(shoal_agent::reset(&config))?;
            println!("{} and {} are clear", config.data_dir.display(), config.run_dir.display());
            Ok(ExitCode::SUCCESS)
        }
        Verb::Client(command) => {
            let ran = runtime()?.block_on(shoal_cli::run(&cli.target, command));
            ran.map_err(anyhow::Error::from)
        }
    }
}

fn doctor(arguments: &options::DoctorArgs, host: Option<String>) -> anyhow::Result<ExitCode> {
    let options = arguments.node.clone().resolve(host)?;
    let checks = runtime()?.block_on(async {
        let mut checks = shoal_agent::doctor::run(&options.agent).await;
        let report = ask_daemon(&options.socket).await;
        checks.push(shoal_agent::doctor::ports(report.as_ref()));
        checks.push(shoal_agent::doctor::tables(report));
        checks
    });
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&checks)?);
    } else {
        for check in &checks {
            println!("{:4} {:16} {}", if check.ok { "ok" } else { "FAIL" }, check.name, check.detail);
            if !check.ok {
                println!("     {:16} {}", "", check.remedy);
            }
        }
    }
    Ok(if checks.iter().all(|check| check.ok) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What the daemon behind this socket finds; `None` where none answers.
async fn ask_daemon(socket: &Path) -> Option<Result<NodeReport, String>> {
    let report = match shoal_cli::node_report(&format!("unix://{}", socket.display())).await {
        Err(shoal_cli::Error::Unreachable { .. }) => return None,
        Err(error) => Err(error.to_string()),
        Ok(report) => serde_json::from_value(report).map_err(|error| error.to_string()),
    };
    Some(report)
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}
