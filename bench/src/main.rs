//! Measurements on real nodes. `bench/run` builds this, gives it a containerd, and starts it as root.
#![forbid(unsafe_code)]
// A measurement that cannot be taken is a panic that says which.
#![allow(clippy::unwrap_used)]

mod comparison;
mod converge;
mod dns;
mod median;
mod mesh;
mod meter;
mod namespace;
mod plan;
mod plot;
mod report;
mod samples;
mod services;
mod vip;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser};
use serde_json::Value;

#[derive(Debug, Parser)]
#[command(name = "bench/run", about = "Measure a cluster of real nodes on this machine")]
enum Command {
    /// From an event to its effect on every node
    Converge(ConvergeArgs),
    /// Published ports: through the mesh, through other proxies, and without any
    Mesh(MeshArgs),
    /// Virtual addresses: against the task's own, nftables DNAT and HAProxy
    Vip(VipArgs),
    /// Names: our resolver against dnsmasq, unbound, aardvark-dns and an echo
    Dns(DnsArgs),
    /// What one plan of the control loops costs in a cluster of 10,000 nodes; in memory, without nodes
    Plan,
    /// The echo of `dns`, in the namespace of a container
    #[command(hide = true)]
    DnsEcho { port: u16 },
    /// The server of `vip`, in a container
    #[command(hide = true)]
    PeerServe,
    /// The client of `vip`, in the namespace of a container
    #[command(hide = true)]
    PeerAsk {
        work: vip::peers::Work,
        /// A file with addresses and ports
        targets: PathBuf,
        #[arg(long)]
        milliseconds: u64,
    },
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

#[derive(Debug, Args)]
struct MeshArgs {
    /// Numbers of published ports to measure with; bytes and requests are measured with the first one
    #[arg(long, value_delimiter = ',', default_value = "1,100,5000")]
    ports: Vec<u16>,
    /// How often each way is measured
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Seconds that each measurement takes
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Write the figures to this file, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct VipArgs {
    /// Numbers of services to measure with; throughput is measured with the first one
    #[arg(long, value_delimiter = ',', default_value = "10,1000,10000")]
    services: Vec<u32>,
    /// So many of them are made by the API, the rest in the balancer's maps only
    #[arg(long, default_value_t = 1000)]
    real: u32,
    /// The task on another node than its clients
    #[arg(long)]
    across: bool,
    /// How often each way is measured
    #[arg(long, default_value_t = 12)]
    rounds: usize,
    /// Seconds that each measurement takes
    #[arg(long, default_value_t = 1)]
    seconds: u64,
    #[command(flatten)]
    files: Files,
}

#[derive(Debug, Args)]
struct DnsArgs {
    /// Numbers of names to measure with
    #[arg(long, value_delimiter = ',', default_value = "10,1000,100000")]
    names: Vec<u32>,
    /// Up to so many are services of the cluster
    #[arg(long, default_value_t = 1000)]
    real: u32,
    /// How often each server is measured
    #[arg(long, default_value_t = 12)]
    rounds: usize,
    /// Seconds that each measurement takes
    #[arg(long, default_value_t = 1)]
    seconds: u64,
    #[command(flatten)]
    files: Files,
}

/// Where figures go beside the terminal.
#[derive(Debug, Args)]
struct Files {
    /// Write the figures to this file, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Draw them into this file, as SVG
    #[arg(long)]
    plot: Option<PathBuf>,
}

fn main() {
    match Command::parse() {
        Command::Vip(args) => compare(&vip::measure(&args), &args.files),
        Command::Dns(args) => compare(&dns::measure(&args), &args.files),
        Command::DnsEcho { port } => dns::echo::serve(port),
        Command::PeerServe => vip::peers::serve(),
        Command::PeerAsk { work, targets, milliseconds } => {
            vip::peers::ask(work, &targets, Duration::from_millis(milliseconds));
        }
        Command::Mesh(args) => mesh(&args),
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
    write(args.json.as_deref(), &report.to_json());
}

fn mesh(args: &MeshArgs) {
    let report = mesh::measure(&args.ports, args.rounds, Duration::from_secs(args.seconds));
    println!("{report}");
    write(args.json.as_deref(), &report.to_json());
}

fn compare(comparison: &comparison::Comparison, files: &Files) {
    println!("{comparison}");
    write(files.json.as_deref(), &comparison.to_json());
    if let Some(path) = &files.plot {
        std::fs::write(path, plot::svg(comparison)).unwrap();
    }
}

fn write(path: Option<&Path>, report: &Value) {
    if let Some(path) = path {
        std::fs::write(path, format!("{report:#}\n")).unwrap();
    }
}
