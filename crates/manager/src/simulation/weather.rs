//! What a run is like: how big the cluster is, how fast everything, and what may go wrong. Drawn from
//! the seed, a random part of all faults each time: a run with everything at once hides as much as it
//! shows.

use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;

/// Least and most milliseconds.
pub(super) type Millis = (f64, f64);

#[derive(Debug, Clone)]
pub(super) struct Weather {
    /// Nothing goes wrong: users only do what users do.
    pub(super) calm: bool,
    pub(super) nodes: usize,
    /// How long users and faults go on.
    pub(super) length: Duration,
    pub(super) step_ms: Millis,
    pub(super) latency_ms: Millis,
    pub(super) commit_ms: Millis,
    pub(super) apply_ms: Millis,
    pub(super) prepare_ms: Millis,
    pub(super) start_ms: Millis,
    pub(super) healthy_ms: Millis,
    /// Probability of a frame that is late.
    pub(super) late_frames: f64,
    /// Probability of a table that is not brought into force at the first try.
    pub(super) failing_tables: f64,
    /// Probability of a delta that finds the table gone which it is for.
    pub(super) misfits: f64,
    /// Probability of a task that is not prepared, or not started.
    pub(super) failing_starts: f64,
    /// What may go wrong.
    pub(super) faults: Vec<Fault>,
    /// Share of the steps in which something goes wrong.
    pub(super) fault_share: f64,
}

/// Something that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    BreakLink,
    CutOff,
    Wall,
    CrashDaemon,
    LoseNode,
    CrashManager,
    Slow,
    Die,
    Unhealthy,
}

const FAULTS: [Fault; 9] = [
    Fault::BreakLink,
    Fault::CutOff,
    Fault::Wall,
    Fault::CrashDaemon,
    Fault::LoseNode,
    Fault::CrashManager,
    Fault::Slow,
    Fault::Die,
    Fault::Unhealthy,
];

impl Weather {
    pub(super) fn calm(rng: &mut StdRng) -> Self {
        let one_of = |rng: &mut StdRng, choices: &[Millis]| choices[rng.random_range(0..choices.len())];
        Self {
            calm: true,
            nodes: rng.random_range(1..=4),
            length: Duration::from_secs(rng.random_range(5..=25)),
            step_ms: one_of(rng, &[(5.0, 300.0), (50.0, 1_500.0), (500.0, 4_000.0)]),
            latency_ms: one_of(rng, &[(0.05, 0.5), (0.1, 5.0), (1.0, 60.0)]),
            commit_ms: one_of(rng, &[(0.1, 1.0), (0.5, 20.0)]),
            apply_ms: one_of(rng, &[(0.5, 5.0), (1.0, 60.0), (20.0, 300.0)]),
            prepare_ms: one_of(rng, &[(5.0, 50.0), (50.0, 1_500.0)]),
            start_ms: one_of(rng, &[(5.0, 40.0), (20.0, 500.0)]),
            healthy_ms: one_of(rng, &[(0.0, 0.0), (0.0, 1_000.0)]),
            late_frames: 0.0,
            failing_tables: 0.0,
            misfits: 0.0,
            failing_starts: 0.0,
            faults: Vec::new(),
            fault_share: 0.0,
        }
    }

    pub(super) fn stormy(rng: &mut StdRng) -> Self {
        let calm = Self::calm(rng);
        let mut sometimes = |most: f64| {
            if rng.random_bool(0.4) { rng.random_range(0.0..most) } else { 0.0 }
        };
        let late_frames = sometimes(0.1);
        let failing_tables = sometimes(0.2);
        let failing_starts = sometimes(0.3);
        let misfits = sometimes(0.2);
        let faults = FAULTS.into_iter().filter(|_| rng.random_bool(0.4)).collect();
        let length = Duration::from_secs(rng.random_range(5..=40));
        let fault_share = rng.random_range(0.1..0.7);
        Self {
            calm: false,
            length,
            late_frames,
            failing_tables,
            misfits,
            failing_starts,
            faults,
            fault_share,
            ..calm
        }
    }
}
