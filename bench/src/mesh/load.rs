//! One load after the other: what a client got done, and what it cost the machine.

use std::net::SocketAddr;
use std::time::Duration;

use shoal_e2e::{Netns, process};

use crate::meter::Meter;

/// What is done over and over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Work {
    /// A connection with one request of a small page on it.
    Connections,
    /// Small pages over connections that stay.
    Requests,
    /// Large files over connections that stay; counted in MiB.
    Bytes,
}

impl Work {
    pub(crate) const ALL: [Self; 3] = [Self::Connections, Self::Requests, Self::Bytes];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Requests => "requests",
            Self::Bytes => "MiB",
        }
    }
}

/// At a time.
const CONNECTIONS: &str = "32";
/// So that a connection that meets nobody is one of the errors.
const TIMEOUT: &str = "1s";

/// One run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) per_second: f64,
    /// Beyond what is spent while nothing is asked for.
    pub(crate) cpu_each: Duration,
    pub(crate) errors: u64,
}

/// `wrk`, the same for every way; with a thread for each processor, so that what is measured is the way rather
/// than how fast one thread can ask.
pub(crate) fn run(client: &Netns, to: SocketAddr, work: Work, length: Duration, meter: &Meter) -> Sample {
    let mut wrk = client.command("wrk");
    let threads = std::thread::available_parallelism().map_or(1, usize::from).to_string();
    let seconds = format!("{}s", length.as_secs());
    wrk.args([
        "--threads",
        &threads,
        "--connections",
        CONNECTIONS,
        "--duration",
        &seconds,
        "--timeout",
        TIMEOUT,
    ]);
    if work == Work::Connections {
        wrk.args(["--header", "Connection: close"]);
    }
    wrk.arg(format!("http://{to}/{}", if work == Work::Bytes { "large" } else { "small" }));
    let (told, spent) = meter.during(|| process::run(wrk, b"", length * 10).ok());
    let parsed = parse(&told).unwrap_or_else(|| panic!("not what wrk prints: {told}"));
    let done = if work == Work::Bytes { parsed.bytes / f64::from(1 << 20) } else { parsed.requests };
    Sample {
        per_second: done / parsed.seconds,
        cpu_each: spent.div_f64(done.max(1.0)),
        errors: parsed.errors,
    }
}

// === what wrk says ===

#[derive(Debug, PartialEq)]
struct Told {
    requests: f64,
    seconds: f64,
    bytes: f64,
    errors: u64,
}

fn parse(text: &str) -> Option<Told> {
    let line = text.lines().find(|line| line.contains(" requests in "))?;
    let mut words = line.split_whitespace();
    let requests = words.next()?.parse().ok()?;
    let seconds = words.nth(2)?.strip_suffix("s,")?.parse().ok()?;
    let bytes = with_unit(words.next()?)?;
    let numbers =
        |line: &str| -> u64 { line.split([' ', ',']).filter_map(|word| word.parse::<u64>().ok()).sum() };
    let is_error = |line: &&str| {
        let line = line.trim_start();
        line.starts_with("Socket errors:") || line.starts_with("Non-2xx")
    };
    Some(Told { requests, seconds, bytes, errors: text.lines().filter(is_error).map(numbers).sum() })
}

/// `1.50GB`, in powers of 1024.
fn with_unit(word: &str) -> Option<f64> {
    let number = word.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &word[number.len()..] {
        "B" => 0,
        "KB" => 10,
        "MB" => 20,
        "GB" => 30,
        "TB" => 40,
        _ => return None,
    };
    Some(number.parse::<f64>().ok()? * (1u64 << factor) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wrk_prints_is_read() {
        let text = "Running 2s test @ http://192.0.2.11:8000/small\n  1 threads and 32 connections\n\
             \x20 Thread Stats   Avg      Stdev     Max   +/- Stdev\n    Latency     3.67ms    1.01ms  12.80ms\n\
             \x20 16908 requests in 2.10s, 2.50KB read\n  Socket errors: connect 1, read 2, write 0, timeout 3\n\
             \x20 Non-2xx or 3xx responses: 10\nRequests/sec:   8052.10\nTransfer/sec:      1.19KB\n";
        let told = Told { requests: 16908.0, seconds: 2.10, bytes: 2560.0, errors: 16 };
        assert_eq!(parse(text), Some(told));
        assert_eq!(parse("nothing of the kind"), None);
        assert_eq!(with_unit("1.50GB"), Some(1.5 * 1073741824.0));
    }
}
