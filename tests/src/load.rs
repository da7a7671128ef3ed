//! Steady traffic whose every failure is kept, for "nobody noticed" tests.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::Netns;

/// Runs one operation over and over in a namespace, at a fixed rate, until stopped.
pub struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    failures: Arc<Mutex<Vec<Failure>>>,
    workers: Vec<JoinHandle<()>>,
    started: Instant,
}

/// An operation that failed.
#[derive(Debug, Clone)]
pub struct Failure {
    pub began: Instant,
    pub text: String,
}

/// What a finished load saw.
#[derive(Debug)]
pub struct Report {
    pub done: u64,
    pub failures: Vec<Failure>,
    pub lasted: Duration,
}

impl Report {
    /// No failure, and at least this many operations a second really happened.
    #[track_caller]
    pub fn assert_clean(&self, per_second: u64) {
        let texts: Vec<&str> = self.failures.iter().map(|failure| failure.text.as_str()).collect();
        assert!(
            texts.is_empty(),
            "{} of {} failed: {:#?}",
            texts.len(),
            self.done,
            &texts[..texts.len().min(5)]
        );
        let rate = self.done as f64 / self.lasted.as_secs_f64();
        assert!(rate >= per_second as f64, "only {rate:.0} operations a second, wanted {per_second}");
    }

    /// No operation that began at this moment or later failed.
    #[track_caller]
    pub fn assert_clean_from(&self, moment: Instant) {
        let late: Vec<String> = self
            .failures
            .iter()
            .filter(|failure| failure.began >= moment)
            .map(|failure| format!("{:?} later: {}", failure.began - moment, failure.text))
            .collect();
        assert!(late.is_empty(), "{} of {} failed: {:#?}", late.len(), self.done, &late[..late.len().min(5)]);
    }
}

impl Load {
    /// `per_second` operations a second, spread over `workers` threads.
    pub fn start(
        netns: &Netns,
        workers: u32,
        per_second: u32,
        operation: impl Fn() -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (done, failures) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(Vec::new())));
        let operation = Arc::new(operation);
        let period = Duration::from_secs(1) * workers / per_second;
        let workers = (0..workers)
            .map(|number| {
                let (stop, done, failures, operation) =
                    (stop.clone(), done.clone(), failures.clone(), operation.clone());
                netns.spawn(move || {
                    let start = Instant::now() + period / workers * number;
                    let mut turn = 0;
                    while !stop.load(Ordering::Relaxed) {
                        // By the clock, so that a slow operation is followed by quicker ones.
                        std::thread::sleep((start + period * turn).saturating_duration_since(Instant::now()));
                        let began = Instant::now();
                        if let Err(text) = operation() {
                            let at = began.saturating_duration_since(start);
                            let text = format!("{text} (at {at:?}, after {:?})", began.elapsed());
                            failures.lock().unwrap().push(Failure { began, text });
                        }
                        done.fetch_add(1, Ordering::Relaxed);
                        turn += 1;
                    }
                })
            })
            .collect();
        Self { stop, done, failures, workers, started: Instant::now() }
    }

    /// Operations so far.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// No operation begins any more.
    pub fn halt(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    pub fn stop(self) -> Report {
        self.halt();
        for worker in self.workers {
            worker.join().unwrap();
        }
        let failures = std::mem::take(&mut *self.failures.lock().unwrap());
        Report { done: self.done.load(Ordering::Relaxed), failures, lasted: self.started.elapsed() }
    }
}
