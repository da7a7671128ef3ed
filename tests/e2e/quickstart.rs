//! The first thing a new user runs.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use shoal_e2e::process;

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

fn shows_the_walk_through_and_cleans_up(docker: bool) {
    let quickstart =
        Quickstart { directory: tempfile::Builder::new().prefix("shoal-qs-").tempdir_in("/tmp").unwrap() };
    let text = quickstart.command(&[], docker).ok();
    for shown in [
        "network create -d overlay mynet",
        "service create",
        "myservice",
        "Address: 10.0.1.",
        "--endpoint-mode dnsrr",
        "8000",
        "--stop",
    ] {
        assert!(text.contains(shown), "{shown:?} is not shown in:\n{text}");
    }
    let directory = quickstart.directory.path().to_str().unwrap().to_owned();
    let running = process::processes(&directory, 0);
    assert!(
        running.iter().any(|process| process.command.contains("shoal daemon")),
        "the node is left running: {running:?}"
    );
    quickstart.command(&["--stop"], docker).ok();
    assert_eq!(process::processes(&directory, 0).len(), 0, "nothing of it runs after --stop");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&directory), "{mounts}");
}

#[test]
fn the_quickstart_keeps_its_word() {
    shows_the_walk_through_and_cleans_up(true);
}

#[test]
fn the_quickstart_needs_no_docker_client() {
    shows_the_walk_through_and_cleans_up(false);
}
