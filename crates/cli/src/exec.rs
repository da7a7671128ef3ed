//! `exec`.

use std::process::ExitCode;

use bollard::container::LogOutput;
use bollard::exec::{CreateExecOptions, StartExecOptions, StartExecResults};
use clap::Args;
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::io::{AsyncWriteExt, stderr, stdin, stdout};

use crate::client::{Client, Error, Result, escape};

#[derive(Debug, Clone, Args)]
pub struct ExecArgs {
    /// Detached mode: run command in the background
    #[arg(short, long)]
    detach: bool,
    /// Set environment variables
    #[arg(short, long)]
    env: Vec<String>,
    /// Keep STDIN open even if not attached
    #[arg(short, long)]
    interactive: bool,
    /// Allocate a pseudo-TTY
    #[arg(short, long)]
    tty: bool,
    /// Username or UID (format: "<name|uid>[:<group|gid>]")
    #[arg(short, long)]
    user: Option<String>,
    /// Working directory inside the container
    #[arg(short, long)]
    workdir: Option<String>,
    /// Give extended privileges to the command
    #[arg(long)]
    privileged: bool,
    /// Container, or SERVICE.SLOT of a running task
    container: String,
    /// Command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

pub(crate) async fn run(client: &Client, args: ExecArgs) -> Result<ExitCode> {
    let container = resolve(client, &args.container).await?;
    let options = CreateExecOptions {
        attach_stdin: Some(args.interactive && !args.detach),
        attach_stdout: Some(!args.detach),
        attach_stderr: Some(!args.detach),
        tty: Some(args.tty),
        env: Some(args.env),
        cmd: Some(args.command),
        privileged: Some(args.privileged),
        user: args.user,
        working_dir: args.workdir,
        detach_keys: None,
    };
    let exec = client.docker().create_exec(&container, options).await?;
    let start = StartExecOptions { detach: args.detach, tty: args.tty, output_capacity: None };
    if let StartExecResults::Attached { mut output, mut input } =
        client.docker().start_exec(&exec.id, Some(start)).await?
    {
        // Ends with the process: nothing waits for a terminal that nobody types at.
        let feeding = args.interactive.then(|| {
            tokio::spawn(async move {
                if tokio::io::copy(&mut stdin(), &mut input).await.is_ok() {
                    let _ = input.shutdown().await;
                }
            })
        });
        while let Some(chunk) = output.next().await {
            print_chunk(chunk?).await?;
        }
        if let Some(task) = feeding {
            task.abort();
        }
        let status = client.docker().inspect_exec(&exec.id).await?;
        return Ok(ExitCode::from(status.exit_code.unwrap_or(0).clamp(0, 255) as u8));
    }
    Ok(ExitCode::SUCCESS)
}

async fn print_chunk(chunk: LogOutput) -> Result<()> {
    let failed = |source| Error::Io { what: "standard output".to_owned(), source };
    match chunk {
        LogOutput::StdErr { message } => {
            stderr().write_all(&message).await.map_err(failed)?;
            stderr().flush().await.map_err(failed)
        }
        LogOutput::StdOut { message } | LogOutput::Console { message } => {
            stdout().write_all(&message).await.map_err(failed)?;
            stdout().flush().await.map_err(failed)
        }
        LogOutput::StdIn { .. } => Ok(()),
    }
}

/// A container as the daemon knows it, or the container of the running task `SERVICE.SLOT`.
async fn resolve(client: &Client, name: &str) -> Result<String> {
    match client.get_json(&format!("/containers/{}/json", escape(name))).await {
        Ok(container) => Ok(container["Id"].as_str().unwrap_or(name).to_owned()),
        Err(error) if !error.is_not_found() => Err(error),
        Err(error) => {
            let Some((service, slot)) = name.rsplit_once('.') else { return Err(error) };
            let Ok(slot) = slot.parse::<u64>() else { return Err(error) };
            running_task(client, service, slot).await?.ok_or(error)
        }
    }
}

async fn running_task(client: &Client, service: &str, slot: u64) -> Result<Option<String>> {
    let filters = json!({ "service": { service: true }, "desired-state": { "running": true } });
    let tasks = client.get_json(&format!("/tasks?filters={}", escape(&filters.to_string()))).await;
    let tasks = match tasks {
        Ok(tasks) => tasks,
        Err(Error::Daemon { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let container = tasks.as_array().into_iter().flatten().find_map(|task| {
        (task["Slot"] == slot && task["Status"]["State"] == "running")
            .then(|| task.pointer("/Status/ContainerStatus/ContainerID").and_then(Value::as_str))
            .flatten()
    });
    Ok(container.map(str::to_owned))
}
