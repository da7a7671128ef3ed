//! What measurements do in network namespaces, beside what tests do there.

use std::path::Path;
use std::process::{Child, Stdio};

use nix::sys::signal::Signal;
use shoal_e2e::{Netns, PATIENCE, process};

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
pub(crate) struct Program(Child);

impl Program {
    pub(crate) fn start(netns: &Netns, log: &Path, program: &str, arguments: &[&str]) -> Self {
        let log = std::fs::File::create(log).unwrap();
        let mut command = netns.command(program);
        command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        Self(command.spawn().unwrap())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        process::signal(self.0.id(), Signal::SIGTERM);
        if process::wait(&mut self.0, PATIENCE).is_none() {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}
