//! The daemon, its helpers and its containerd: starting, stopping, killing.

use std::fs::File;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use super::{Node, shoal};
use crate::registry::PLAIN_PORT;
use crate::{HEALTH_GRACE, HEALTH_PORT, METRICS_PORT, Netns, OUTSIDE, PATIENCE, process, wait_until};

impl Node {
    /// The flags every verb that works without a daemon needs as well.
    pub(super) fn node_flags(&self) -> Vec<String> {
        let path = |name: &str| self.path(name).display().to_string();
        let health = self.options.tells_health.then(|| {
            let seconds = HEALTH_GRACE.as_secs().to_string();
            [("--health-address", format!("0.0.0.0:{HEALTH_PORT}")), ("--health-grace", seconds)]
        });
        let flags = [
            ("--data-dir", self.data_dir().display().to_string()),
            ("--run-dir", path("run")),
            ("--node-name", self.options.name.clone()),
            ("--label", format!("name={}", self.options.name)),
            ("--resolv-conf", path("resolv.conf")),
            ("--containerd", self.containerd_socket().display().to_string()),
            ("--containerd-namespace", self.containerd_namespace.clone()),
            ("--verify-period", self.options.verify_period.to_string()),
            ("--insecure-registry", format!("{OUTSIDE}:{PLAIN_PORT}")),
            ("--registry-certificates", path("certs.d")),
            ("--metrics-addr", format!("127.0.0.1:{METRICS_PORT}")),
        ];
        let flags = flags.into_iter().chain(health.into_iter().flatten());
        flags.flat_map(|(flag, value)| [flag.to_owned(), value]).collect()
    }

    /// Starts the daemon and waits until it answers.
    pub fn start_daemon(&mut self) {
        assert!(self.daemon.is_none(), "the daemon runs already");
        let log = File::options().create(true).append(true).open(self.path("daemon.log")).unwrap();
        let daemon = self
            .netns
            .command(shoal().to_str().unwrap())
            .arg("daemon")
            .args(["-H", &self.host()])
            .args(self.node_flags())
            .env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| "info".to_owned()))
            .envs(self.clock())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.daemon = Some(daemon);
        wait_until(PATIENCE, "the daemon answers", || {
            if let Some(status) = self.daemon.as_mut().and_then(|daemon| daemon.try_wait().unwrap()) {
                panic!("the daemon ended with {status}:\n{}", self.log_tail());
            }
            self.ping().map_err(|error| format!("{error}\n{}", self.log_tail()))
        });
    }

    /// Variables under which a program reads a clock that is ahead, by way of libfaketime.
    fn clock(&self) -> Vec<(&'static str, String)> {
        const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";
        if self.options.clock_ahead.is_zero() {
            return Vec::new();
        }
        assert!(std::path::Path::new(LIBRARY).exists(), "package libfaketime is missing");
        vec![
            ("LD_PRELOAD", LIBRARY.to_owned()),
            ("FAKETIME", format!("+{}s", self.options.clock_ahead.as_secs())),
            // Timers, and the times of files, stay what they are.
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("NO_FAKE_STAT", "1".to_owned()),
        ]
    }

    fn ping(&self) -> Result<(), String> {
        let answer = self.http("GET", "/_ping", "").map_err(|error| error.to_string())?;
        if answer.starts_with("HTTP/1.1 200") { Ok(()) } else { Err(answer) }
    }

    pub fn daemon_runs(&self) -> bool {
        self.daemon.is_some()
    }

    pub fn daemon_pid(&self) -> u32 {
        self.daemon.as_ref().expect("the daemon runs").id()
    }

    /// SIGTERM, and the end of the process.
    pub fn stop_daemon(&mut self) {
        let mut daemon = self.daemon.take().expect("the daemon runs");
        process::signal(daemon.id(), Signal::SIGTERM);
        let code = process::wait(&mut daemon, PATIENCE);
        if code.is_none() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        assert_eq!(code, Some(0), "the daemon did not end cleanly on SIGTERM:\n{}", self.log_tail());
    }

    /// SIGKILL: no chance to tidy up.
    pub fn kill_daemon(&mut self) {
        let mut daemon = self.daemon.take().expect("the daemon runs");
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    /// Processes of this node of one kind (`resolver`, `log-shim`).
    pub fn helpers(&self, verb: &str) -> Vec<u32> {
        let directory = self.directory.path().display().to_string();
        let own = process::processes(&directory, 0);
        own.into_iter()
            .filter(|process| process.command.split(' ').nth(1) == Some(verb))
            .map(|process| process.pid)
            .collect()
    }

    pub fn start_containerd(&mut self) {
        assert!(self.options.own_containerd && self.containerd.is_none());
        let config = self.path("containerd.toml");
        let path = |name: &str| self.path(name).display().to_string();
        std::fs::write(
            &config,
            format!(
                "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
                 [grpc]\naddress = {:?}\n",
                path("containerd-root"),
                path("containerd-state"),
                path("containerd.sock"),
            ),
        )
        .unwrap();
        let log = File::options().create(true).append(true).open(self.path("containerd.log")).unwrap();
        let containerd = Command::new("containerd")
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("containerd can be started");
        self.containerd = Some(containerd);
        wait_until(PATIENCE, "containerd answers", || {
            let version = self.ctr(&["version"]);
            if version.code == 0 { Ok(()) } else { Err(version.to_string()) }
        });
    }

    pub fn kill_containerd(&mut self) {
        let mut containerd = self.containerd.take().expect("containerd is this node's own");
        containerd.kill().unwrap();
        containerd.wait().unwrap();
    }

    /// A partition: nothing reaches this node's link any more, and nothing leaves by it.
    pub fn cut(&self) {
        self.world.cut(self.number);
    }

    pub fn restore(&self) {
        self.world.restore(self.number);
    }

    /// Node loss: link, daemon, helpers and containers are gone at once.
    pub fn lose(&mut self) {
        self.cut();
        self.kill_daemon();
        if self.containerd.is_some() {
            self.kill_containerd();
        }
        self.kill_everything();
    }

    /// A lost node is switched on again. It finds the data directory and containerd's root; processes,
    /// namespaces, run directory, mounts and pinned programs are gone.
    pub fn boot(&mut self) {
        crate::leaks::unmount_below(self.directory.path());
        for name in ["run", "containerd-state", "shoal.sock", "containerd.sock"] {
            let path = self.path(name);
            let _ = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        }
        crate::leaks::unpin(&self.tag());
        self.world.disconnect(self.number);
        self.netns = Netns::new();
        self.world.connect(&self.netns, self.number);
        if self.options.own_containerd {
            self.start_containerd();
        }
        self.start_daemon();
    }

    pub fn reboot(&mut self) {
        assert!(self.options.own_containerd, "a reboot ends containerd too");
        self.lose();
        self.boot();
    }

    /// Ends every process of this node: helpers, shims and what runs in their containers.
    pub(crate) fn kill_everything(&self) {
        let directory = self.directory.path().display().to_string();
        process::kill_trees(&[&directory, &format!("-namespace {}", self.containerd_namespace)]);
    }
}
