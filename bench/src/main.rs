//! Measurements on real nodes. `bench/run` builds this, gives it a containerd, and starts it as root.
#![forbid(unsafe_code)]
// A measurement that cannot be taken is a panic that says which.
#![allow(clippy::unwrap_used)]

mod converge;
mod plan;
mod report;
mod samples;

use std::path::PathBuf;

use clap::{Args, Parser};

#[derive(Debug, Parser)]
#[command(name = "bench/run", about = "Measure a cluster of real nodes on this machine")]
enum Command {
    /// From an event to its effect on every node
    Converge(ConvergeArgs),
    /// What one plan of the control loops costs in a cluster of 10,000 nodes; in memory, without nodes
    Plan,
}

#[derive(Debug, Args)]
struct ConvergeArgs {
    /// Sizes of the clusters to measure
    #[arg(long, value_delimiter = ',', default_value = "3,10")]
    nodes: Vec<u8>,
    /// Tasks to kill and to start in each cluster
    #[arg(long, default_value_t = 50)]
    tasks: usize,
    /// Nodes to cut off in each cluster
    #[arg(long, default_value_t = 10)]
    cuts: usize,
    /// Write the figures to this file, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() {
    match Command::parse() {
        Command::Converge(args) => converge(&args),
        Command::Plan => plan::measure(),
    }
}

fn converge(args: &ConvergeArgs) {
    let mut report = report::Report::begin();
    for &nodes in &args.nodes {
        let rows = converge::measure(nodes, args.tasks, args.cuts);
        report.rows.extend(rows.into_iter().filter(|row| row.count() > 0));
    }
    report.end();
    println!("{report}");
    if let Some(path) = &args.json {
        std::fs::write(path, format!("{:#}\n", report.to_json())).unwrap();
    }
}
