//! The control plane under simulation: control loops, hub, frames and barrier as they are, with several
//! nodes, over a network and a store that exist in memory only. Time is virtual, chance comes from a
//! seed, and a seed always runs the same way. How to read and replay: `docs/simulation.md`.

mod connections;
mod daemon;
mod facts;
mod link;
mod machine;
mod manager;
mod plain;
mod queue;
mod runner;
mod script;
mod session;
mod settle;
mod store;
mod tables;
mod trace;
mod weather;
mod wish;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use rand::rngs::StdRng;

use trace::Trace;
use weather::Weather;
use world::World;

/// Lines of the trace that a failure shows.
const TAIL: usize = 120;

/// How a run went.
struct Run {
    violation: Option<String>,
    trace: Trace,
    /// How much time passed in it.
    simulated: std::time::Duration,
}

fn run(seed: u64, weather: fn(&mut StdRng) -> Weather, trace: Trace) -> Run {
    let mut world = World::new(seed, weather, trace);
    let outcome = catch_unwind(AssertUnwindSafe(|| world.run()));
    if outcome.is_err() {
        world.violate("the code under simulation panicked".into());
    }
    Run { simulated: world.now(), violation: world.violation, trace: world.trace }
}

/// Runs this many seeds, or as many as `SHOAL_SEEDS` says from `SHOAL_FIRST_SEED` on; with `SHOAL_SEED`
/// that one alone, and all of its trace.
fn explore(test: &str, seeds: u64, weather: fn(&mut StdRng) -> Weather) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(seed) = number("SHOAL_SEED") {
        let run = run(seed, weather, Trace::kept());
        run.trace.tail(usize::MAX).for_each(|line| println!("{line}"));
        println!("trace {:016x}, {:?} simulated", run.trace.hash(), run.simulated);
        assert_eq!(run.violation, None, "seed {seed}");
        return;
    }
    let first = number("SHOAL_FIRST_SEED").unwrap_or(0);
    for seed in first..first + number("SHOAL_SEEDS").unwrap_or(seeds) {
        let Some(violation) = run(seed, weather, Trace::default()).violation else { continue };
        let again = run(seed, weather, Trace::kept());
        again.trace.tail(TAIL).for_each(|line| println!("{line}"));
        panic!(
            "seed {seed}: {violation}\nreplay: SHOAL_SEED={seed} cargo test --release -p shoal-manager \
             simulation::{test} -- --nocapture"
        );
    }
}

#[test]
fn when_nothing_goes_wrong_no_connection_fails() {
    explore("when_nothing_goes_wrong_no_connection_fails", 400, Weather::calm);
}

#[test]
fn whatever_goes_wrong_the_cluster_keeps_its_promises() {
    explore("whatever_goes_wrong_the_cluster_keeps_its_promises", 800, Weather::stormy);
}

#[test]
fn a_seed_runs_the_same_way_twice() {
    for seed in 0..10 {
        let hash = |trace| run(seed, Weather::stormy, trace).trace.hash();
        assert_eq!(hash(Trace::default()), hash(Trace::kept()), "seed {seed}");
    }
}
