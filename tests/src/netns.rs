//! Network namespaces without names: they live as long as somebody holds them.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::thread::JoinHandle;

use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace, held open.
#[derive(Clone)]
pub struct Netns(Arc<File>);

impl Netns {
    /// A new, empty one; only its loopback is up.
    pub fn new() -> Self {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            Self(Arc::new(File::open("/proc/thread-self/ns/net").unwrap()))
        });
        let netns = made.join().unwrap();
        netns.ip(&["link", "set", "lo", "up"]);
        netns
    }

    /// The one a process lives in.
    pub fn of_process(pid: u32) -> Self {
        let path = format!("/proc/{pid}/ns/net");
        Self(Arc::new(File::open(&path).unwrap_or_else(|error| panic!("{path}: {error}"))))
    }

    /// Usable by other processes while this value lives.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()))
    }

    /// What the kernel knows it by.
    pub fn inode(&self) -> u64 {
        self.0.metadata().unwrap().ino()
    }

    /// A command that will run inside.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// Runs `ip` inside; anything but success is the harness's own failure.
    pub fn ip(&self, arguments: &[&str]) -> String {
        let output = self.command("ip").args(arguments).output().unwrap();
        assert!(
            output.status.success(),
            "ip {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Starts a thread whose sockets belong to this namespace.
    pub fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let held = self.clone();
        std::thread::spawn(move || {
            setns(held.0.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
    }

    /// Does something inside, and waits for it.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        match self.spawn(work).join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

impl Default for Netns {
    fn default() -> Self {
        Self::new()
    }
}
