//! Commands with a deadline, and who is running.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How a command ended.
#[derive(Debug, Clone)]
pub struct Output {
    pub line: String,
    /// -1 when a signal ended it.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl Output {
    /// The command's standard output, if it succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(self.code == 0, "{self}");
        self.stdout
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "$ {}\nexit {} after {:?}\n{}{}", self.line, self.code, self.took, self.stdout, self.stderr)
    }
}

/// Runs a command to its end, feeding it `input`; panics when it takes longer than `patience`.
pub fn run(mut command: Command, input: &[u8], patience: Duration) -> Output {
    let line = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let started = Instant::now();
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{line}: {error}"));
    let (mut stdin, input) = (child.stdin.take().unwrap(), input.to_vec());
    // A command that does not read its input closes the pipe: that is no failure.
    let feeding = std::thread::spawn(move || drop(std::io::Write::write_all(&mut stdin, &input)));
    let collect = |mut pipe: Box<dyn Read + Send>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = pipe.read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let stdout = collect(Box::new(child.stdout.take().unwrap()));
    let stderr = collect(Box::new(child.stderr.take().unwrap()));
    let ended = wait(&mut child, patience);
    if ended.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let took = started.elapsed();
    feeding.join().unwrap();
    let output = Output {
        line,
        code: ended.unwrap_or(-1),
        stdout: stdout.join().unwrap(),
        stderr: stderr.join().unwrap(),
        took,
    };
    assert!(ended.is_some(), "did not end within {patience:?}: {output}");
    output
}

/// The exit code, or `None` when the process still runs after `patience`.
pub fn wait(child: &mut Child, patience: Duration) -> Option<i32> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status.code().unwrap_or(-1));
        }
        if start.elapsed() > patience {
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A running process as /proc shows it.
#[derive(Debug, Clone)]
pub struct Process {
    pub pid: u32,
    pub command: String,
    /// Inode of its network namespace; 0 when it just ended.
    pub netns: u64,
}

/// Every process whose command line contains `text` or that lives in network namespace `netns`.
pub fn processes(text: &str, netns: u64) -> Vec<Process> {
    use std::os::unix::fs::MetadataExt;
    let own = std::process::id();
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|&pid| pid != own)
        .filter_map(|pid| {
            let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let command = String::from_utf8_lossy(&bytes).replace('\0', " ").trim().to_owned();
            let inode = std::fs::metadata(format!("/proc/{pid}/ns/net")).map_or(0, |meta| meta.ino());
            let wanted = (!text.is_empty() && command.contains(text)) || (netns != 0 && inode == netns);
            wanted.then_some(Process { pid, command, netns: inode })
        })
        .collect()
}

/// Sends a signal to one process; one that is gone already is fine.
pub fn signal(pid: u32, signal: Signal) {
    let _ = kill(Pid::from_raw(pid as i32), signal);
}

/// Kills every process whose command line contains one of these texts, and all that descend from it.
pub fn kill_trees(marks: &[&str]) {
    let mut pids: Vec<u32> =
        marks.iter().flat_map(|mark| processes(mark, 0)).map(|process| process.pid).collect();
    let mut at = 0;
    while at < pids.len() {
        pids.extend(children(pids[at]));
        at += 1;
    }
    pids.iter().for_each(|&pid| signal(pid, Signal::SIGKILL));
}

fn children(pid: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// `R`, `S`, `T` and so on (proc(5)); `None` when there is no such process.
pub fn state(pid: u32) -> Option<char> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    text.rsplit_once(") ")?.1.chars().next()
}

/// Bytes of memory a process occupies.
pub fn memory(pid: u32) -> usize {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages: usize = text.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * 4096
}

/// Time a process has spent computing.
pub fn cpu_time(pid: u32) -> Duration {
    times(&pid.to_string(), 14)
}

/// Time that processes have spent which this one has started and seen ending.
pub fn cpu_time_of_ended() -> Duration {
    times("self", 16)
}

/// User and system time, from this field of all on (proc(5)), in hundredths of a second.
fn times(pid: &str, first: usize) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // After the name, which may hold anything, comes the third field.
    let fields = text.rsplit_once(") ").map_or("", |(_, fields)| fields).split(' ').skip(first - 3).take(2);
    Duration::from_millis(fields.filter_map(|ticks| ticks.parse::<u64>().ok()).sum::<u64>() * 10)
}
