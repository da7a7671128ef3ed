//! Additional processes in containers: what was asked for, what runs, what ended.
//!
//! Docker's clients create an exec, start it on one connection and ask for its exit code on another.
//! All of that is remembered here and nowhere else: execs do not outlive the daemon's memory of them.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use shoal_model::{ContainerId, LogSource};
use shoal_runtime::{Exec, ExecConfig, ExecHandle, ExecInput, Runtime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::error::{ApiError, Result};
use crate::hijack::Duplex;
use crate::logs::Framing;
use crate::wire::container as wire;

/// Ended execs are forgotten after this time, as Docker does.
const KEEP_ENDED: Duration = Duration::from_secs(300);
/// Execs remembered at a time.
const EXECS_MAX: usize = 4096;
/// Docker's exit code for a process that could not be started.
const EXIT_NOT_STARTED: i32 = 126;

/// Every exec of this daemon's life that is not yet forgotten.
#[derive(Default)]
pub(crate) struct Execs {
    entries: Mutex<BTreeMap<String, Entry>>,
}

/// One exec as it was asked for.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) container: ContainerId,
    pub(crate) config: ExecConfig,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
    pub(crate) detach_keys: String,
}

struct Entry {
    request: Request,
    state: State,
}

enum State {
    Created(Instant),
    Starting,
    Running { pid: u32, handle: ExecHandle },
    Ended { pid: u32, code: i32, at: Instant },
}

impl Execs {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        // Every change is one assignment, so a panic elsewhere leaves nothing half done.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers an exec, and forgets those that are long over.
    pub(crate) fn create(&self, id: String, request: Request) -> Result<()> {
        let mut entries = self.lock();
        let now = Instant::now();
        entries.retain(|_, entry| match entry.state {
            State::Created(since) | State::Ended { at: since, .. } => now.duration_since(since) < KEEP_ENDED,
            State::Starting | State::Running { .. } => true,
        });
        if entries.len() >= EXECS_MAX {
            return Err(ApiError::unavailable(format!(
                "{EXECS_MAX} exec instances exist already; try again later"
            )));
        }
        entries.insert(id, Entry { request, state: State::Created(now) });
        Ok(())
    }

    /// Marks an exec as being started and returns what to start; each starts once.
    pub(crate) fn begin(&self, id: &str) -> Result<Request> {
        let mut entries = self.lock();
        let entry = entries.get_mut(id).ok_or_else(|| no_such(id))?;
        match entry.state {
            State::Created(_) => {
                entry.state = State::Starting;
                Ok(entry.request.clone())
            }
            State::Starting | State::Running { .. } => {
                Err(ApiError::conflict(format!("Error: Exec command {id} is already running")))
            }
            State::Ended { .. } => {
                Err(ApiError::conflict(format!("Error: Exec command {id} has already run")))
            }
        }
    }

    fn set(&self, id: &str, state: State) {
        if let Some(entry) = self.lock().get_mut(id) {
            entry.state = state;
        }
    }

    /// What `GET /exec/{id}/json` shows.
    pub(crate) fn inspect(&self, id: &str) -> Result<wire::Exec> {
        let entries = self.lock();
        let entry = entries.get(id).ok_or_else(|| no_such(id))?;
        let request = &entry.request;
        let (running, pid, exit_code) = match entry.state {
            State::Created(_) => (false, 0, None),
            State::Starting => (true, 0, None),
            State::Running { pid, .. } => (true, pid, None),
            State::Ended { pid, code, .. } => (false, pid, Some(code)),
        };
        let (entrypoint, arguments) = match request.config.argv.split_first() {
            Some((program, arguments)) => (program.clone(), arguments.to_vec()),
            None => (String::new(), Vec::new()),
        };
        Ok(wire::Exec {
            id: id.to_owned(),
            running,
            exit_code,
            process: wire::ProcessConfig {
                tty: request.config.tty,
                entrypoint,
                arguments,
                privileged: request.config.privileged,
                user: request.config.user.clone(),
            },
            stdin: request.config.stdin,
            stderr: request.stderr,
            stdout: request.stdout,
            can_remove: false,
            container: request.container.to_string(),
            detach_keys: request.detach_keys.clone(),
            pid,
        })
    }

    /// The handle of a running exec.
    pub(crate) fn running(&self, id: &str) -> Result<ExecHandle> {
        match &self.lock().get(id).ok_or_else(|| no_such(id))?.state {
            State::Running { handle, .. } => Ok(handle.clone()),
            _ => Err(ApiError::conflict(format!("exec {id} is not running"))),
        }
    }

    /// Ids of a container's execs that run, for `inspect`.
    pub(crate) fn of(&self, container: &ContainerId) -> Vec<String> {
        let entries = self.lock();
        let running = entries.iter().filter(|(_, entry)| {
            entry.request.container == *container
                && matches!(entry.state, State::Starting | State::Running { .. })
        });
        running.map(|(id, _)| id.clone()).collect()
    }

    /// Starts the process; a failure is the end of the exec.
    pub(crate) async fn start(
        &self,
        id: &str,
        runtime: &Runtime,
        request: Request,
    ) -> shoal_runtime::Result<Exec> {
        let exec = match runtime.exec(&request.container, request.config).await {
            Ok(exec) => exec,
            Err(error) => {
                self.set(id, State::Ended { pid: 0, code: EXIT_NOT_STARTED, at: Instant::now() });
                return Err(error);
            }
        };
        self.set(id, State::Running { pid: exec.pid, handle: exec.handle() });
        Ok(exec)
    }

    /// Waits for the process and remembers how it ended.
    pub(crate) async fn finish(&self, id: &str, pid: u32, handle: &ExecHandle) {
        let code = match handle.wait().await {
            Ok(code) => code,
            Err(error) => {
                tracing::warn!(exec = id, %error, "the exit code of an exec is lost");
                EXIT_NOT_STARTED
            }
        };
        self.set(id, State::Ended { pid, code, at: Instant::now() });
    }

    /// Runs an exec on a hijacked connection until the process has ended.
    pub(crate) async fn attach(
        &self,
        id: &str,
        runtime: &Runtime,
        request: Request,
        connection: Box<dyn Duplex>,
    ) {
        let (mut input, mut output) = tokio::io::split(connection);
        let framing = Framing::of_tty(request.config.tty);
        let (stdout, stderr) = (request.stdout, request.stderr);
        let mut exec = match self.start(id, runtime, request).await {
            Ok(exec) => exec,
            Err(error) => {
                // The answer's head is out already: the reason goes where the user looks.
                let text = format!("{error}\r\n");
                let _ = output.write_all(&framing.frame(LogSource::Stderr, &[text.as_bytes()])).await;
                let _ = output.shutdown().await;
                return;
            }
        };
        let (pid, handle) = (exec.pid, exec.handle());
        let feeding =
            exec.stdin.take().map(|stdin| tokio::spawn(async move { feed(&mut input, stdin).await }));
        let mut client_gone = false;
        while let Some((source, bytes)) = exec.output.next().await {
            let wanted = match source {
                LogSource::Stdout => stdout,
                LogSource::Stderr => stderr,
            };
            if wanted && !client_gone {
                // The process goes on without its client; what it prints is read and thrown away.
                client_gone = output.write_all(&framing.frame(source, &[&bytes])).await.is_err();
            }
        }
        // First remembered, then closed: the client asks for the exit code once its stream ends.
        self.finish(id, pid, &handle).await;
        if let Some(feeding) = feeding {
            feeding.abort();
        }
        let _ = output.shutdown().await;
    }
}

/// Passes the client's input on; the end of it is the end of the process's input.
async fn feed(from: &mut (impl AsyncReadExt + Unpin), mut to: ExecInput) {
    if let Err(error) = tokio::io::copy(from, &mut to).await {
        tracing::debug!(%error, "input of an exec ended early");
    }
    let _ = to.shutdown().await;
}

fn no_such(id: &str) -> ApiError {
    ApiError::not_found(format!("No such exec instance: {id}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request {
            container: ContainerId::new("c"),
            config: ExecConfig { argv: vec!["cat".into(), "/x".into()], ..ExecConfig::default() },
            stdout: true,
            stderr: false,
            detach_keys: String::new(),
        }
    }

    #[test]
    fn an_exec_starts_once_and_is_remembered() {
        let execs = Execs::default();
        execs.create("e".into(), request()).unwrap();
        assert_eq!(execs.inspect("e").unwrap().exit_code, None);
        execs.begin("e").unwrap();
        assert_eq!(execs.begin("e").unwrap_err().message, "Error: Exec command e is already running");
        assert_eq!(execs.of(&ContainerId::new("c")), ["e"]);
        execs.set("e", State::Ended { pid: 7, code: 5, at: Instant::now() });
        assert_eq!(execs.begin("e").unwrap_err().message, "Error: Exec command e has already run");
        let shown = execs.inspect("e").unwrap();
        assert_eq!((shown.running, shown.exit_code, shown.pid), (false, Some(5), 7));
        assert_eq!(
            (shown.process.entrypoint.as_str(), shown.process.arguments),
            ("cat", vec!["/x".to_owned()])
        );
        assert!(execs.of(&ContainerId::new("c")).is_empty());
    }

    #[test]
    fn what_is_not_there_is_named() {
        assert_eq!(Execs::default().inspect("x").unwrap_err().message, "No such exec instance: x");
    }

    #[test]
    fn there_is_an_end_to_execs() {
        let execs = Execs::default();
        for n in 0..EXECS_MAX {
            execs.create(n.to_string(), request()).unwrap();
        }
        assert!(execs.create("one more".into(), request()).is_err());
    }
}
