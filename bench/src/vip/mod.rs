//! A virtual address against the task's own, and against others' ways to lead to it.

pub(crate) mod peers;
mod ways;

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use shoal_e2e::{Cluster, Container, NodeOptions, PATIENCE, process, wait_until};

use crate::comparison::{Comparison, Key, Measure, Target, turns};
use crate::namespace::settle;
use crate::{VipArgs, services};
use peers::Work;
use ways::{SERVICES_MAX, SUBNET, Services, Way};

const NETWORK: &str = "benchnet";
/// What design asks of a virtual address, of the direct way.
const THROUGHPUT: f64 = 0.98;
const CONNECTIONS: f64 = 0.95;

const MIB: Measure = Measure::new("MiB a second");
const RATE: Measure = Measure::new("connections a second");
const CONNECT: [Measure; 2] =
    [Measure { name: "µs to connect, p50", digits: 1 }, Measure::new("µs to connect, p99")];
const ANSWER: [Measure; 2] =
    [Measure { name: "µs to the first byte, p50", digits: 1 }, Measure::new("µs to the first byte, p99")];

/// One task and those who connect to it, each a container of its own.
struct Site {
    cluster: Cluster,
    task: Container,
    client: Container,
    /// Its namespace translates, and so keeps track of every connection.
    translating: Container,
    proxy: Container,
    /// Of the first service, which has the task, and of others that have none.
    real: Vec<Ipv4Addr>,
    vni: u32,
}

/// All ways in turn, `rounds` times, for each number of services.
pub(crate) fn measure(args: &VipArgs) -> Comparison {
    assert!(args.services.iter().all(|&count| (1..=SERVICES_MAX).contains(&count)));
    let most = args.services.iter().copied().max().unwrap_or(1);
    let (site, made) = Site::start(args.across, most.min(args.real));
    let mut comparison = Comparison::begin("services", Way::Direct.name());
    comparison.notes = notes(args, most);
    for &count in &args.services {
        eprintln!("{count} services");
        // What does not depend on the number of services is measured once.
        let works = if Some(&count) == args.services.first() { &Work::ALL[..] } else { &Work::ALL[1..] };
        site.rounds(count, works, args.rounds, Duration::from_secs(args.seconds), &mut comparison);
    }
    comparison.end();
    comparison.targets = targets(&comparison);
    services::remove(site.cluster.manager(), &made);
    site.cluster.finish();
    comparison
}

fn notes(args: &VipArgs, most: u32) -> Vec<String> {
    let place =
        if args.across { "on another node, through the tunnel" } else { "on the same node as the client" };
    let mut notes = vec![format!("The task is {place}.")];
    if most > 1 {
        notes.push(format!(
            "Up to {} services are the cluster's, made by its API; the rest, and the one task as backend of all, \
             were put into the balancer's maps by the call that the node itself uses. Clients of virtual addresses \
             and of HAProxy go through all services, those of DNAT to one.",
            most.min(args.real)
        ));
    }
    notes
}

impl Site {
    /// With this many services, the first of which has the task; and the names of the others.
    fn start(across: bool, count: u32) -> (Self, Vec<String>) {
        // Nobody looks at the kernel meanwhile.
        let cluster = Cluster::start_with(2, &NodeOptions { verify_period: 0, ..NodeOptions::default() });
        let manager = cluster.manager();
        manager.docker(&["network", "create", "-d", "overlay", "--subnet", SUBNET, NETWORK]).ok();
        let place = |node: u8| format!("node.hostname==node{node}");
        let (here, there) = (place(1), place(if across { 2 } else { 1 }));
        let idle = |name| {
            cluster.service(name, 1, &["--network", NETWORK, "--constraint", &here], &["idle"]).remove(0)
        };
        let (client, translating, proxy) = (idle("client"), idle("translating"), idle("proxy"));
        let mounts = [
            mount(std::env::current_exe().unwrap(), "/bench"),
            mount("/lib", "/lib"),
            mount("/lib64", "/lib64"),
        ];
        let mut flags = vec!["--network", NETWORK, "--constraint", &there];
        flags.extend(mounts.iter().flat_map(|mount| ["--mount", mount]));
        let task = cluster.service("app", 1, &flags, &["/bench", "peer-serve"]).remove(0);
        for container in [&task, &client, &translating, &proxy] {
            settle(&container.netns());
        }
        let made: Vec<String> = (1..count).map(|number| format!("app{number}")).collect();
        services::create(manager, NETWORK, &made);
        let vni =
            manager.inspect("network", NETWORK)["Options"][VXLAN_IDS].as_str().and_then(|id| id.parse().ok());
        let mut real = vec![manager.vip("app")];
        real.extend(
            services::addresses(manager)
                .into_iter()
                .filter(|(name, _)| made.contains(name))
                .map(|(_, ip)| ip),
        );
        wait_until(PATIENCE, "the tables are in force", || in_force(&cluster, count + 3));
        (Self { task, client, translating, proxy, real, vni: vni.unwrap(), cluster }, made)
    }

    fn rounds(
        &self,
        count: u32,
        works: &[Work],
        rounds: usize,
        length: Duration,
        comparison: &mut Comparison,
    ) {
        let services = Services {
            node: self.cluster.manager(),
            vni: self.vni,
            task: self.task.address(NETWORK),
            real: &self.real,
            count,
        };
        services.fill();
        services.translate(&self.translating.netns());
        let proxy = self.proxy.netns();
        let haproxy = services.haproxy(&proxy);
        for way in Way::ALL {
            let path = self.targets(way);
            std::fs::write(&path, services.targets(way, self.proxy.address(NETWORK))).unwrap();
            wait_until(PATIENCE, &format!("{} leads to the task", way.name()), || {
                let told = self.ask(way, Work::Latency, Duration::from_millis(50));
                if told["errors"] == 0 && told["count"] != 0 { Ok(()) } else { Err(told.to_string()) }
            });
        }
        for &work in works {
            for (round, &way) in turns(rounds, &Way::ALL) {
                let told = self.ask(way, work, length);
                eprintln!("round {round}, {count} services, {}, {}: {told}", way.name(), work.name());
                for (measure, figure) in figures(work, &told) {
                    let key = Key { size: count, measure, way: way.name() };
                    comparison.add(key, figure, told["errors"].as_u64().unwrap_or(0));
                }
            }
        }
        drop(haproxy);
        services.clear();
    }

    /// The file with the addresses that this way leads to.
    fn targets(&self, way: Way) -> std::path::PathBuf {
        self.cluster.manager().path(&format!("targets-{way:?}"))
    }

    fn ask(&self, way: Way, work: Work, length: Duration) -> Value {
        let client = if way == Way::Dnat { &self.translating } else { &self.client };
        let netns = client.netns();
        let mut command = netns.command(std::env::current_exe().unwrap().to_str().unwrap());
        let milliseconds = length.as_millis().to_string();
        command.args(["peer-ask", work.name(), "--milliseconds", &milliseconds]).arg(self.targets(way));
        let output = process::run(command, b"", length * 10 + PATIENCE);
        if !output.stderr.is_empty() {
            eprintln!("{}: {}", way.name(), output.stderr);
        }
        serde_json::from_str(&output.ok()).unwrap()
    }
}

const VXLAN_IDS: &str = "com.docker.network.driver.overlay.vxlanid_list";

fn mount(source: impl AsRef<Path>, target: &str) -> String {
    format!("type=bind,source={},target={target},readonly", source.as_ref().display())
}

/// The first node has told its kernel and resolver of this many services.
fn in_force(cluster: &Cluster, count: u32) -> Result<(), String> {
    let text = cluster.manager().shoal(&["node", "tables", "--format", "json"]).ok();
    let reports: Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
    let told = reports.as_array().into_iter().flatten().find(|report| report["name"] == NETWORK);
    match told {
        Some(report) if report["services"].as_u64() == Some(count.into()) => Ok(()),
        _ => Err(text),
    }
}

fn figures(work: Work, told: &Value) -> Vec<(Measure, f64)> {
    let figure = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    match work {
        Work::Bytes => vec![(MIB, figure(&told["per_second"]) / f64::from(1 << 20))],
        Work::Connections => vec![(RATE, figure(&told["per_second"]))],
        Work::Latency => {
            let of = |name: &'static str| (0..2).map(move |at| figure(&told[name][at]));
            CONNECT.into_iter().zip(of("connect_us")).chain(ANSWER.into_iter().zip(of("answer_us"))).collect()
        }
    }
}

/// What was hoped for, and whether it came true.
fn targets(comparison: &Comparison) -> Vec<Target> {
    let sizes = comparison.each(|key| key.size);
    let of_direct =
        |size, measure| comparison.ratio(Key { size, measure, way: Way::Vip.name() }, Way::Direct.name());
    let mut targets = Vec::new();
    for &size in &sizes {
        for (measure, wanted) in [(MIB, THROUGHPUT), (RATE, CONNECTIONS)] {
            let Some(ratio) = of_direct(size, measure) else { continue };
            let shown = crate::comparison::shown(ratio, 3);
            let told = format!("{size} services, {}: {shown} of direct, {wanted} wanted", measure.name);
            targets.push(Target { told, met: ratio.value >= wanted });
        }
    }
    if let [least, .., most] = sizes[..]
        && let (Some(few), Some(many)) = (of_direct(least, RATE), of_direct(most, RATE))
    {
        let told =
            format!("connections of direct with {least} and with {most} services: intervals that overlap");
        targets.push(Target { told, met: few.overlaps(&many) });
    }
    targets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_told_of_what_was_measured() {
        let mut comparison = Comparison::begin("services", Way::Direct.name());
        for (size, vip) in [(10, 96.0), (10_000, 94.0)] {
            for (way, figure) in [(Way::Direct, 100.0), (Way::Vip, vip)] {
                for _ in 0..3 {
                    comparison.add(Key { size, measure: RATE, way: way.name() }, figure, 0);
                }
            }
        }
        let met: Vec<bool> = targets(&comparison).into_iter().map(|target| target.met).collect();
        assert_eq!(met, [true, false, false], "{:?}", targets(&comparison));
    }
}
