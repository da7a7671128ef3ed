//! Which server to ask first: a memory of who answered.

use std::time::{Duration, Instant};

/// A server that did not answer is left alone this long before it is tried again…
const RETRY_MIN: Duration = Duration::from_secs(2);
/// …and twice as long each time it stays silent, up to this.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// What is remembered of the servers of one list, over one transport. Time comes from outside.
#[derive(Debug)]
pub(super) struct Health {
    servers: Vec<Option<Failure>>,
}

#[derive(Debug, Clone, Copy)]
struct Failure {
    pause: Duration,
    retry_at: Instant,
}

/// How to ask one question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    /// All servers: those that answer as configured, then the others, the most rested one first.
    pub(super) order: Vec<usize>,
    /// A failed server to be asked as well, to see whether it is back.
    pub(super) probe: Option<usize>,
}

impl Health {
    pub(super) fn new(servers: usize) -> Self {
        Self { servers: vec![None; servers] }
    }

    /// The plan for a question asked now. A probe is planned once per pause.
    pub(super) fn plan(&mut self, now: Instant) -> Plan {
        let (mut order, failed) = self.standing();
        let due = failed.first().filter(|(retry_at, _)| !order.is_empty() && *retry_at <= now);
        let probe = due.map(|(_, server)| *server);
        if let Some(failure) = probe.and_then(|server| self.servers[server].as_mut()) {
            // Should it stay silent; an answer forgets it all.
            failure.pause = (failure.pause * 2).min(RETRY_MAX);
            failure.retry_at = now + failure.pause;
        }
        order.extend(failed.into_iter().map(|(_, server)| server));
        Plan { order, probe }
    }

    /// Servers that answer, as configured; and the others with the time they are tried again, the most
    /// rested one first.
    fn standing(&self) -> (Vec<usize>, Vec<(Instant, usize)>) {
        let (mut answering, mut failed) = (Vec::new(), Vec::new());
        for (server, failure) in self.servers.iter().enumerate() {
            match failure {
                None => answering.push(server),
                Some(failure) => failed.push((failure.retry_at, server)),
            }
        }
        failed.sort_unstable();
        (answering, failed)
    }

    /// All servers in the order in which they would be asked, and when those that failed are tried again.
    pub(super) fn outlook(&self) -> Vec<(usize, Option<Instant>)> {
        let (answering, failed) = self.standing();
        let answering = answering.into_iter().map(|server| (server, None));
        answering.chain(failed.into_iter().map(|(retry_at, server)| (server, Some(retry_at)))).collect()
    }

    pub(super) fn answered(&mut self, server: usize) {
        self.servers[server] = None;
    }

    pub(super) fn failed(&mut self, server: usize, now: Instant) {
        let pause = match self.servers[server] {
            // Many questions may have waited for the same silence: it counts once.
            Some(failure) if failure.retry_at > now => return,
            Some(failure) => (failure.pause * 2).min(RETRY_MAX),
            None => RETRY_MIN,
        };
        self.servers[server] = Some(Failure { pause, retry_at: now + pause });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silent_servers_go_to_the_back_and_are_probed_after_a_pause() {
        let start = Instant::now();
        let mut health = Health::new(3);
        assert_eq!(health.plan(start), Plan { order: vec![0, 1, 2], probe: None });
        health.failed(0, start);
        assert_eq!(health.plan(start), Plan { order: vec![1, 2, 0], probe: None });
        assert_eq!(health.outlook(), [(1, None), (2, None), (0, Some(start + RETRY_MIN))]);
        let later = start + RETRY_MIN;
        assert_eq!(health.plan(later), Plan { order: vec![1, 2, 0], probe: Some(0) });
        health.failed(0, later + Duration::from_secs(1));
        assert_eq!(health.plan(later + RETRY_MIN).probe, None, "one probe per pause, and pauses grow");
        assert_eq!(health.plan(later + RETRY_MIN * 2).probe, Some(0));
        health.answered(0);
        assert_eq!(health.plan(later), Plan { order: vec![0, 1, 2], probe: None });
    }

    #[test]
    fn pauses_grow_to_a_bound() {
        let mut now = Instant::now();
        let mut health = Health::new(2);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            health.failed(0, now);
            let pause = health.servers[0].unwrap().pause;
            pauses.push(pause);
            now += pause;
        }
        assert_eq!(pauses[..3], [RETRY_MIN, RETRY_MIN * 2, RETRY_MIN * 4]);
        assert_eq!(pauses[7], RETRY_MAX);
    }

    #[test]
    fn with_no_server_left_all_are_still_asked() {
        let now = Instant::now();
        let mut health = Health::new(2);
        health.failed(0, now);
        health.failed(1, now + Duration::from_millis(1));
        assert_eq!(health.plan(now + RETRY_MAX).order, [0, 1]);
    }
}
