//! The first thing a new user runs.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use shoal_e2e::{process, wait_until};

use crate::arrows::root;

/// It compiles what is not compiled, so it may take its time.
const PATIENCE: Duration = Duration::from_secs(900);

struct Quickstart {
    directory: tempfile::TempDir,
}

impl Quickstart {
    fn command(&self, arguments: &[&str], docker: bool) -> process::Output {
        let mut command = Command::new(root().join("quickstart"));
        command.args(arguments).current_dir("/").env("SHOAL_QUICKSTART", self.directory.path());
        let target = shoal_e2e::shoal();
        command.env("CARGO_TARGET_DIR", target.parent().and_then(Path::parent).unwrap());
        if !docker {
            command.env("SHOAL_QUICKSTART_CLIENT", "shoal");
        }
        process::run(command, b"", PATIENCE)
    }
}

impl Drop for Quickstart {
    fn drop(&mut self) {
        let _ = Command::new(root().join("quickstart"))
            .arg("--stop")
            .env("SHOAL_QUICKSTART", self.directory.path())
            .output();
    }
}

impl Quickstart {
    fn new() -> Self {
        Self { directory: tempfile::Builder::new().prefix("shoal-qs-").tempdir_in("/tmp").unwrap() }
    }

    fn path(&self) -> &str {
        self.directory.path().to_str().unwrap()
    }

    /// The name that its namespaces, on the network and in containerd, begin with.
    fn name(&self) -> String {
        self.directory.path().file_name().unwrap().to_str().unwrap().to_lowercase()
    }

    /// The walk-through ends well, has shown all this, and leaves its nodes running.
    fn shows(&self, arguments: &[&str], docker: bool, wanted: &[&str]) {
        let text = self.command(arguments, docker).ok();
        for shown in wanted {
            assert!(text.contains(shown), "{shown:?} is not shown in:\n{text}");
        }
        let running = process::processes(self.path(), 0);
        assert!(
            running.iter().any(|process| process.command.contains("shoal daemon")),
            "a node is left running: {running:?}"
        );
    }

    fn stops_without_a_trace(&self) {
        self.command(&["--stop"], true).ok();
        assert_eq!(process::processes(self.path(), 0).len(), 0, "nothing of it runs after --stop");
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.path()), "{mounts}");
        assert_eq!(self.namespaces(), Vec::<String>::new());
        assert!(!self.directory.path().exists(), "its directory is gone");
    }

    /// Names of its network namespaces.
    fn namespaces(&self) -> Vec<String> {
        let entries = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with(&self.name())).collect()
    }

    /// What a reboot leaves of it: files, but no process, namespace, mount or pinned program.
    fn reboot(&self) {
        let tag = std::fs::read_to_string(self.directory.path().join("node1/data/tag")).unwrap();
        process::kill_trees(&[self.path(), &format!("-namespace {}", self.name())]);
        wait_until(shoal_e2e::PATIENCE, "every process has ended", || {
            let left = process::processes(self.path(), 0);
            if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
        });
        shoal_e2e::unmount_below(self.directory.path());
        shoal_e2e::unpin(tag.trim());
        for name in self.namespaces() {
            assert!(Command::new("ip").args(["netns", "del", &name]).status().unwrap().success());
        }
        for gone in ["node1/run", "containerd-state"] {
            let _ = std::fs::remove_dir_all(self.directory.path().join(gone));
        }
    }
}

/// What the walk-through on one node shows.
const ONE_NODE: [&str; 7] = [
    "network create -d overlay mynet",
    "service create",
    "myservice",
    "Address: 10.0.1.",
    "--endpoint-mode dnsrr",
    "8000",
    "--stop",
];

#[test]
fn the_quickstart_keeps_its_word() {
    let quickstart = Quickstart::new();
    quickstart.shows(&[], true, &ONE_NODE);
    quickstart.stops_without_a_trace();
}

#[test]
fn the_quickstart_needs_no_docker_client_and_can_be_stopped_after_a_reboot() {
    let quickstart = Quickstart::new();
    quickstart.shows(&[], false, &ONE_NODE);
    quickstart.reboot();
    quickstart.stops_without_a_trace();
}

#[test]
fn the_quickstart_spreads_over_nodes_and_drains_one() {
    let quickstart = Quickstart::new();
    let shown = [
        "swarm join --token SWMTKN-1-",
        "node3",
        "Address: 10.0.1.",
        "http://192.0.2.12:8000",
        "node update --availability drain node3",
        "client on node2",
        "port 8000 of node3",
        " 0 failed",
    ];
    quickstart.shows(&["--nodes", "3"], true, &shown);
    quickstart.stops_without_a_trace();
}
