//! dnsperf, the same for every server.

use std::path::Path;
use std::time::Duration;

use shoal_e2e::dns::Transport;
use shoal_e2e::{Netns, PATIENCE, process};

use super::servers::{Known, Server};

/// Questions that wait for their answer, and the sockets or connections that they are put on.
const OUTSTANDING: &str = "64";
const SOCKETS: &str = "8";

/// Writes the questions: every name once, far from its neighbours.
pub(crate) fn write_questions(path: &Path, known: &Known) {
    /// A prime number: it comes by every name of however many.
    const STRIDE: usize = 7919;
    let order = (0..known.len()).map(|turn| &known[turn * STRIDE % known.len()].0);
    let text = order.fold(String::new(), |text, name| text + name + " A\n");
    std::fs::write(path, text).unwrap();
}

/// What one run has come to.
#[derive(Debug, PartialEq)]
pub(crate) struct Told {
    pub(crate) per_second: f64,
    pub(crate) answers: f64,
    pub(crate) latency: Duration,
    /// Lost, or not NOERROR.
    pub(crate) errors: u64,
}

pub(crate) fn run(
    netns: &Netns,
    server: Server,
    transport: Transport,
    questions: &Path,
    length: Duration,
) -> Told {
    let (address, port) = server.address();
    let mode = if transport == Transport::Udp { "udp" } else { "tcp" };
    let (address, port, seconds) = (address.to_string(), port.to_string(), length.as_secs().to_string());
    let mut dnsperf = netns.command("dnsperf");
    dnsperf.args(["-m", mode, "-s", &address, "-p", &port, "-q", OUTSTANDING, "-c", SOCKETS, "-l", &seconds]);
    dnsperf.arg("-d").arg(questions);
    let told = process::run(dnsperf, b"", length * 10 + PATIENCE).ok();
    parse(&told).unwrap_or_else(|| panic!("not what dnsperf prints: {told}"))
}

fn parse(text: &str) -> Option<Told> {
    let after = |label: &str| text.lines().find_map(|line| line.trim().strip_prefix(label)).map(str::trim);
    let number = |words: &str| words.split([' ', ',']).next()?.parse::<f64>().ok();
    let sent = number(after("Queries sent:")?)?;
    let good = after("Response codes:").and_then(|codes| codes.split("NOERROR ").nth(1)).and_then(number);
    Some(Told {
        answers: number(after("Queries completed:")?)?,
        per_second: number(after("Queries per second:")?)?,
        latency: Duration::from_secs_f64(number(after("Average Latency (s):")?)?),
        errors: (sent - good.unwrap_or(0.0)) as u64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_dnsperf_prints_is_read() {
        let text = "[Status] Testing complete (time limit)\n\nStatistics:\n\n  Queries sent:         69\n\
             \x20 Queries completed:    68 (98.55%)\n  Queries lost:         1 (1.45%)\n\n\
             \x20 Response codes:       NOERROR 66 (97.06%), NXDOMAIN 2 (2.94%)\n\
             \x20 Run time (s):         1.000031\n  Queries per second:   67.997\n\n\
             \x20 Average Latency (s):  0.000562 (min 0.000033, max 0.002)\n";
        let told = Told { per_second: 67.997, answers: 68.0, latency: Duration::from_micros(562), errors: 3 };
        assert_eq!(parse(text), Some(told));
        assert_eq!(parse("nothing of the kind"), None);
    }
}
