//! Additional processes in running containers: exec and health probes.

mod probe;
mod streams;

use std::path::PathBuf;
use std::time::Duration;

use containerd_client::services::v1::{
    DeleteProcessRequest, ExecProcessRequest, KillRequest, ResizePtyRequest, StartRequest, WaitRequest,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use shoal_model::ContainerId;
use tokio::sync::watch;

pub use streams::{ExecInput, ExecOutput};

use crate::client::{Client, ask, optional};
use crate::container::{Containers, remove_dir};
use crate::rootfs::Root;
use crate::{ContainerState, Error, Result, spec};
use streams::Fifos;

/// What containerd calls the description of a process.
const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// An additional process to run in a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecConfig {
    pub argv: Vec<String>,
    /// Added to the container's own environment, `KEY=value`.
    pub env: Vec<String>,
    /// Empty is the container's working directory.
    pub dir: String,
    /// `user[:group]`; empty is the container's user.
    pub user: String,
    pub tty: bool,
    /// Give the process an input.
    pub stdin: bool,
    /// All capabilities.
    pub privileged: bool,
}

/// What a health probe found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeResult {
    /// The probe's exit code; -1 when it could not run or took too long.
    pub exit_code: i32,
    /// The first 4096 bytes it printed, or why it has no exit code.
    pub output: String,
    pub started: Timestamp,
    pub ended: Timestamp,
}

/// A running additional process. It goes on when this is dropped; its output is then discarded.
pub struct Exec {
    pub id: String,
    pub pid: u32,
    /// Shutting it down or dropping it is the end of the process's input.
    pub stdin: Option<ExecInput>,
    pub output: ExecOutput,
    handle: ExecHandle,
}

/// Waits for, resizes and signals an [`Exec`] whose streams may be elsewhere.
#[derive(Clone)]
pub struct ExecHandle {
    client: Client,
    container: String,
    exec: String,
    end: watch::Receiver<End>,
}

/// How far an exec has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Running,
    Exited(i32),
    /// The container went, and with it whoever could tell.
    Unknown,
}

impl Exec {
    /// Tells the terminal's size, in characters.
    pub async fn resize(&self, width: u32, height: u32) -> Result<()> {
        self.handle.resize(width, height).await
    }

    /// The exit code, as soon as there is one. May be called any number of times.
    pub async fn wait(&self) -> Result<i32> {
        self.handle.wait().await
    }

    /// A handle that is independent of input and output.
    pub fn handle(&self) -> ExecHandle {
        self.handle.clone()
    }
}

impl ExecHandle {
    /// See [`Exec::resize`].
    pub async fn resize(&self, width: u32, height: u32) -> Result<()> {
        let request = || ResizePtyRequest {
            container_id: self.container.clone(),
            exec_id: self.exec.clone(),
            width,
            height,
        };
        // One that has ended meanwhile has no terminal any more, which nobody minds.
        optional(ask!(self.client, "resizing a terminal", tasks.resize_pty(request()))).map(drop)
    }

    /// See [`Exec::wait`].
    pub async fn wait(&self) -> Result<i32> {
        let mut end = self.end.clone();
        let end = end.wait_for(|end| *end != End::Running).await.map_or(End::Unknown, |end| *end);
        match end {
            End::Exited(code) => Ok(code),
            End::Running | End::Unknown => Err(Error::NoSuchExec(self.exec.clone())),
        }
    }

    /// Sends a signal to the process; one that has ended does not mind.
    pub async fn kill(&self, signal: i32) -> Result<()> {
        let signal =
            u32::try_from(signal).map_err(|_| Error::InvalidConfig(format!("invalid signal: {signal}")))?;
        let request = || KillRequest {
            container_id: self.container.clone(),
            exec_id: self.exec.clone(),
            signal,
            all: false,
        };
        optional(ask!(self.client, "killing an exec", tasks.kill(request()))).map(drop)
    }

    async fn start(&self) -> Result<u32> {
        let request = || StartRequest { container_id: self.container.clone(), exec_id: self.exec.clone() };
        match ask!(self.client, "starting an exec", tasks.start(request())) {
            Ok(started) => Ok(started.pid),
            Err(error @ Error::Containerd { .. }) => Err(Error::Exec(error.into_message())),
            Err(error) => Err(error),
        }
    }

    /// Waits for the process, however long containerd is away meanwhile.
    async fn exit(&self) -> End {
        let request = || WaitRequest { container_id: self.container.clone(), exec_id: self.exec.clone() };
        let waited = self.client.retry("waiting for an exec", Duration::MAX, || {
            let (mut service, request) = (self.client.tasks(), self.client.request(request()));
            async move { service.wait(request).await }
        });
        match waited.await {
            Ok(waited) => End::Exited(i32::try_from(waited.exit_status).unwrap_or(-1)),
            Err(_) => End::Unknown,
        }
    }

    async fn delete(&self) {
        let request =
            || DeleteProcessRequest { container_id: self.container.clone(), exec_id: self.exec.clone() };
        if let Err(error) = optional(ask!(self.client, "removing an exec", tasks.delete_process(request()))) {
            tracing::debug!(%error, exec = self.exec, "an exec stays until its container goes");
        }
    }
}

impl Containers {
    /// Starts an additional process in a running container.
    pub(crate) async fn exec(&self, id: &ContainerId, config: &ExecConfig) -> Result<Exec> {
        let container = self.container(id).await?;
        let ContainerState::Running { pid, .. } = container.state else {
            return Err(Error::NotRunning(id.to_string()));
        };
        if config.argv.first().is_none_or(String::is_empty) {
            return Err(Error::InvalidConfig("No exec command specified".to_owned()));
        }
        let identity = match config.user.as_str() {
            "" => None,
            user => {
                let accounts = Root::Process(pid).accounts().await?;
                let groups = &container.config.spec.groups;
                Some(spec::resolve_identity(&accounts.passwd, &accounts.group, user, groups)?)
            }
        };
        let mut env = container.env;
        if config.tty && !env.iter().any(|entry| entry.starts_with("TERM=")) {
            env.push("TERM=xterm".to_owned());
        }
        spec::merge_environment(&mut env, &config.env);
        let process = spec::exec_process(
            &self.specification(id).await?,
            &spec::ExecInput {
                argv: &config.argv,
                env: &env,
                directory: &config.dir,
                identity: identity.as_ref(),
                tty: config.tty,
                privileged: config.privileged,
            },
        );
        let exec = format!("{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>());
        let dir = self.fifos(id.as_str()).join(&exec[..16]);
        let started = self.run(id, &exec, process.to_string().into_bytes(), config, dir.clone()).await;
        if started.is_err() {
            remove_dir(&dir).ok();
        }
        started
    }

    async fn run(
        &self,
        id: &ContainerId,
        exec: &str,
        process: Vec<u8>,
        config: &ExecConfig,
        dir: PathBuf,
    ) -> Result<Exec> {
        let fifos = Fifos::create(&dir, config)?;
        let (ended, end) = watch::channel(End::Running);
        let client = self.client().clone();
        let handle = ExecHandle { client, container: id.to_string(), exec: exec.to_owned(), end };
        let request = || ExecProcessRequest {
            container_id: id.to_string(),
            exec_id: exec.to_owned(),
            stdin: fifos.stdin.path(),
            stdout: fifos.stdout.path(),
            stderr: fifos.stderr.path(),
            terminal: config.tty,
            spec: Some(prost_types::Any { type_url: PROCESS_TYPE.to_owned(), value: process.clone() }),
        };
        match ask!(handle.client, "creating an exec", tasks.exec(request())) {
            Err(error) if error.is_already_exists() => {}
            Err(error) if error.is_not_found() => return Err(Error::NotRunning(id.to_string())),
            Err(error @ Error::Containerd { .. }) => return Err(Error::Exec(error.into_message())),
            Err(error) => return Err(error),
            Ok(_) => {}
        }
        let pid = match handle.start().await {
            Ok(pid) => pid,
            Err(error) => {
                handle.delete().await;
                return Err(error);
            }
        };
        // Only now has the shim opened its ends: reading earlier would see an end that is none.
        let (stdin, output, pumps) = fifos.stream(&handle);
        let waiter = handle.clone();
        tokio::spawn(async move {
            let end = waiter.exit().await;
            ended.send_replace(end);
            for pump in pumps {
                pump.await.ok();
            }
            waiter.delete().await;
            remove_dir(&dir).ok();
        });
        Ok(Exec { id: exec.to_owned(), pid, stdin, output, handle })
    }
}
