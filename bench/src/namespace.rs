//! What measurements do in network namespaces, beside what tests do there.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use nix::sys::signal::Signal;
use shoal_e2e::{Netns, PATIENCE, process, wait_until};

/// Fewer than there are, so that tracked connections of a whole run fit into the kernel's table.
const CLIENT_PORTS: &str = "30000 45999";

/// The same everywhere: enough ports for those who connect over and over.
pub(crate) fn settle(netns: &Netns) {
    netns.run(|| {
        for (name, value) in [("ip_local_port_range", CLIENT_PORTS), ("tcp_tw_reuse", "1")] {
            std::fs::write(format!("/proc/sys/net/ipv4/{name}"), value).unwrap();
        }
    });
}

/// Runs a program to its end; what it printed.
#[track_caller]
pub(crate) fn run(netns: &Netns, program: &str, arguments: &[&str], input: &[u8]) -> String {
    let mut command = netns.command(program);
    command.args(arguments);
    process::run(command, input, PATIENCE).ok()
}

/// A program that runs in a namespace until dropped.
pub(crate) struct Program {
    started: Child,
    /// Where a program that goes into the background writes its number.
    pid_file: Option<PathBuf>,
}

impl Program {
    pub(crate) fn start(netns: &Netns, log: &Path, program: &str, arguments: &[&str]) -> Self {
        let log = std::fs::File::create(log).unwrap();
        let mut command = netns.command(program);
        command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        Self { started: command.spawn().unwrap(), pid_file: None }
    }

    /// The program goes into the background.
    pub(crate) fn with_pid_file(mut self, path: &Path) -> Self {
        self.pid_file = Some(path.to_owned());
        self
    }

    /// The process that does the work.
    pub(crate) fn pid(&self) -> u32 {
        self.in_background().unwrap_or_else(|| self.started.id())
    }

    fn in_background(&self) -> Option<u32> {
        let text = std::fs::read_to_string(self.pid_file.as_ref()?).ok()?;
        text.trim().parse().ok()
    }

    fn end_in_background(&self) {
        let Some(pid) = self.in_background() else { return };
        process::signal(pid, Signal::SIGTERM);
        wait_until(PATIENCE, "a program in the background ends", || match process::state(pid) {
            None | Some('Z') => Ok(()),
            Some(state) => Err(format!("process {pid} is {state}")),
        });
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        process::signal(self.started.id(), Signal::SIGTERM);
        if process::wait(&mut self.started, PATIENCE).is_none() {
            let _ = self.started.kill();
            let _ = self.started.wait();
        }
        self.end_in_background();
    }
}
