//! Our resolver inside a container, against other name servers with the same names in the same place.

pub(crate) mod echo;
mod load;
mod names;
mod servers;

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use shoal_e2e::dns::{A, Transport, ask_at};
use shoal_e2e::process::cpu_time;
use shoal_e2e::{Cluster, Container, Netns, NodeOptions, PATIENCE, wait_until};

use crate::comparison::{Comparison, Key, Measure, Target, shown, turns};
use crate::namespace::Program;
use crate::{DnsArgs, services};
use names::{Feed, numbered};
use servers::{Known, Server};

const NETWORK: &str = "benchnet";
/// Room for all services.
const SUBNET: &str = "10.77.0.0/16";
/// What design asks of answers over UDP, of an echo.
const OF_ECHO: f64 = 0.9;

const UDP: Measure = Measure::new("answers a second, UDP");
const TCP: Measure = Measure::new("answers a second, TCP");
const WAIT: [Measure; 2] = [Measure::new("µs to an answer, UDP"), Measure::new("µs to an answer, TCP")];
const COST: [Measure; 2] = [
    Measure { name: "µs of processor each, UDP", digits: 2 },
    Measure { name: "µs of processor each, TCP", digits: 2 },
];
const TRANSPORTS: [(Transport, [Measure; 3]); 2] =
    [(Transport::Udp, [UDP, WAIT[0], COST[0]]), (Transport::Tcp, [TCP, WAIT[1], COST[1]])];

struct Site {
    cluster: Cluster,
    client: Container,
    /// Services of the cluster.
    made: Vec<String>,
}

/// All servers in turn, `rounds` times, for each number of names.
pub(crate) fn measure(args: &DnsArgs) -> Comparison {
    let mut site = Site::start();
    let mut comparison = Comparison::begin("names", Server::Echo.name());
    comparison.notes.push(format!(
        "Up to {} names are services of the cluster, made by its API. More are fed to the node's resolver process \
         as its daemon feeds it, in place of the cluster's.",
        args.real
    ));
    for &count in &args.names {
        eprintln!("{count} names");
        if count <= args.real {
            let known = site.make(count);
            site.rounds(&known, args, &mut comparison);
        } else {
            let feed = Feed::open(site.cluster.manager(), NETWORK);
            let known = feed.replace(&numbered(count));
            site.rounds(&known, args, &mut comparison);
            feed.restore();
        }
    }
    comparison.end();
    comparison.targets = targets(&comparison);
    services::remove(site.cluster.manager(), &site.made);
    site.cluster.finish();
    comparison
}

impl Site {
    fn start() -> Self {
        // Nobody looks at the resolver meanwhile.
        let cluster = Cluster::start_with(1, &NodeOptions { verify_period: 0, ..NodeOptions::default() });
        cluster.docker(&["network", "create", "-d", "overlay", "--subnet", SUBNET, NETWORK]).ok();
        let client = cluster.service("client", 1, &["--network", NETWORK], &["idle"]).remove(0);
        Self { cluster, client, made: Vec::new() }
    }

    /// Has this many services at least; the names and addresses of the first.
    fn make(&mut self, count: u32) -> Vec<(String, Ipv4Addr)> {
        let wanted = numbered(count);
        let missing = wanted.get(self.made.len()..).unwrap_or_default().to_vec();
        services::create(self.cluster.manager(), NETWORK, &missing);
        self.made.extend(missing);
        let all = services::addresses(self.cluster.manager());
        let known: Vec<_> = all.into_iter().filter(|(name, _)| wanted.contains(name)).collect();
        assert_eq!(known.len(), wanted.len());
        known
    }

    fn path(&self, name: &str) -> PathBuf {
        self.cluster.manager().path(name)
    }

    fn rounds(&self, known: &Known, args: &DnsArgs, comparison: &mut Comparison) {
        let (netns, questions) = (self.client.netns(), self.path("questions"));
        load::write_questions(&questions, known);
        let directory = self.path("servers");
        std::fs::create_dir_all(&directory).unwrap();
        let programs = Server::ALL.map(|server| server.start(&netns, &directory, known));
        for server in Server::ALL {
            answers(&netns, server, known);
        }
        let resolver = names::resolver(self.cluster.manager());
        for (transport, measures) in TRANSPORTS {
            let servers: Vec<Server> =
                Server::ALL.into_iter().filter(|server| server.speaks(transport)).collect();
            for (round, &server) in turns(args.rounds, &servers) {
                let process = programs[server as usize].as_ref().map_or(resolver, Program::pid);
                let before = cpu_time(process);
                let told =
                    load::run(&netns, server, transport, &questions, Duration::from_secs(args.seconds));
                let spent = (cpu_time(process) - before).as_secs_f64() * 1e6 / told.answers.max(1.0);
                eprintln!("round {round}, {} names, {}, {transport:?}: {told:?}", known.len(), server.name());
                let figures = [told.per_second, told.latency.as_secs_f64() * 1e6, spent];
                for (measure, figure) in measures.into_iter().zip(figures) {
                    let key = Key { size: known.len() as u32, measure, way: server.name() };
                    comparison.add(key, figure, told.errors);
                }
            }
        }
        drop(programs);
    }
}

/// Waits until a server tells the address of the first and of the last name, over all that it speaks. An echo
/// knows none, it tells the question.
fn answers(netns: &Netns, server: Server, known: &Known) {
    let (address, port) = server.address();
    let at = format!("{address}:{port}");
    for (transport, _) in TRANSPORTS.into_iter().filter(|(transport, _)| server.speaks(*transport)) {
        for (name, address) in known.first().into_iter().chain(known.last()) {
            let wanted = if server == Server::Echo { Vec::new() } else { vec![IpAddr::from(*address)] };
            wait_until(PATIENCE, &format!("{} knows {name}", server.name()), || {
                let (at, name) = (at.clone(), name.clone());
                match netns.run(move || ask_at(&at, &name, A, transport)) {
                    Ok(answer) if answer.addresses() == wanted => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            });
        }
    }
}

/// What was hoped for, and whether it came true.
fn targets(comparison: &Comparison) -> Vec<Target> {
    let sizes = comparison.each(|key| key.size);
    let ours = |size, measure| Key { size, measure, way: Server::Ours.name() };
    let of_echo = |size| comparison.ratio(ours(size, UDP), Server::Echo.name());
    let mut targets = Vec::new();
    for &size in &sizes {
        if let Some(ratio) = of_echo(size) {
            let told = format!("{size} names, UDP: {} of an echo, {OF_ECHO} wanted", shown(ratio, 3));
            targets.push(Target { told, met: ratio.value >= OF_ECHO });
        }
        for measure in [UDP, TCP] {
            let others = [Server::Dnsmasq, Server::Unbound, Server::Aardvark];
            for other in others.map(Server::name) {
                let Some(ratio) = comparison.ratio(ours(size, measure), other) else { continue };
                let told =
                    format!("{size} names, {}: {} of {other}'s, more wanted", measure.name, shown(ratio, 3));
                targets.push(Target { told, met: ratio.value > 1.0 });
            }
        }
    }
    if let [least, .., most] = sizes[..]
        && let (Some(few), Some(many)) = (of_echo(least), of_echo(most))
    {
        let told = format!("UDP, of an echo with {least} and with {most} names: intervals that overlap");
        targets.push(Target { told, met: few.overlaps(&many) });
    }
    targets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_told_of_what_was_measured() {
        let mut comparison = Comparison::begin("names", Server::Echo.name());
        for (size, figure) in [(10, 95.0), (100_000, 85.0)] {
            for (server, figure) in [(Server::Echo, 100.0), (Server::Ours, figure), (Server::Dnsmasq, 90.0)] {
                comparison.add(Key { size, measure: UDP, way: server.name() }, figure, 0);
            }
        }
        let met: Vec<bool> = targets(&comparison).into_iter().map(|target| target.met).collect();
        assert_eq!(met, [true, true, false, false, false], "{:?}", targets(&comparison));
    }
}
