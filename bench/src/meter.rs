//! What the way of a connection costs the machine.

use std::time::{Duration, Instant};

use shoal_e2e::{Netns, process};

/// The time of every process in the namespaces that a connection passes, of the load generator, and that of the
/// whole kernel for packets, which is no process's. What else the machine does is not in it.
pub(crate) struct Meter {
    namespaces: Vec<u64>,
    /// Processors that are busy so while nothing is asked of them.
    idle: f64,
}

const IDLE: Duration = Duration::from_secs(5);

impl Meter {
    pub(crate) fn new<'a>(namespaces: impl IntoIterator<Item = &'a Netns>) -> Self {
        let mut meter = Self { namespaces: namespaces.into_iter().map(Netns::inode).collect(), idle: 0.0 };
        let (before, started) = (meter.read(), Instant::now());
        std::thread::sleep(IDLE);
        meter.idle = (meter.read().saturating_sub(before)).as_secs_f64() / started.elapsed().as_secs_f64();
        meter
    }

    /// Does something, and tells what it cost beyond what is spent while nothing is asked for.
    pub(crate) fn during<T>(&self, work: impl FnOnce() -> T) -> (T, Duration) {
        let (before, started) = (self.read(), Instant::now());
        let done = work();
        let (lasted, spent) = (started.elapsed(), self.read().saturating_sub(before));
        (done, spent.saturating_sub(lasted.mul_f64(self.idle)))
    }

    fn read(&self) -> Duration {
        let inside = self.namespaces.iter().flat_map(|namespace| process::processes("", *namespace));
        let processes: Duration = inside.map(|process| process::cpu_time(process.pid)).sum();
        let text = std::fs::read_to_string("/proc/stat").unwrap();
        processes + process::cpu_time_of_ended() + packets(&text).unwrap_or_else(|| panic!("{text}"))
    }
}

/// Hard and soft interrupts, of the line `cpu` of proc(5), in hundredths of a second.
fn packets(text: &str) -> Option<Duration> {
    let line = text.lines().next()?.strip_prefix("cpu ")?;
    let times: Vec<u64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
    Some(Duration::from_millis(10 * (times.get(5)? + times.get(6)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interrupts_are_told_from_the_rest() {
        let text = "cpu  1 2 4 1000 2000 8 16 32 0 0\ncpu0 1 2 4 1000 2000 8 16 32 0 0\n";
        assert_eq!(packets(text), Some(Duration::from_millis(240)));
        assert_eq!(packets("cpu0 1 2 4"), None);
    }
}
