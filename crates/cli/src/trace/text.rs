//! A trace in words.

use std::fmt::{Display, Write};
use std::net::IpAddr;

use shoal_model::trace::{
    Backend, Look, Lookup, LookupVerdict, Outcome, Reply, Resolution, Target, TargetKind, Trace,
    TracedNetwork, TracedService, TracedTask, Upstream, Who,
};
use shoal_model::{EndpointId, NetworkId, NodeId, TaskId};

/// Backends, and tasks, that are named one by one.
const LISTED_MAX: usize = 20;

pub(super) fn render(trace: &Trace) -> String {
    let mut text = Text { trace, lines: String::new(), steps: 0 };
    text.asker();
    text.networks();
    if let Some(lookup) = &trace.lookup {
        text.lookup(lookup);
    }
    for target in &trace.targets {
        text.target(target);
    }
    for service in trace.services.values() {
        text.service(service);
    }
    text.differences();
    text.lines
}

struct Text<'a> {
    trace: &'a Trace,
    lines: String,
    steps: usize,
}

impl Text<'_> {
    fn step(&mut self, title: impl Display) {
        self.steps += 1;
        // Writing to a string does not fail.
        let _ = writeln!(self.lines, "\n{}. {title}", self.steps);
    }

    fn line(&mut self, line: impl Display) {
        let _ = writeln!(self.lines, "   {line}");
    }

    fn asker(&mut self) {
        let Trace { name, port, asker, .. } = self.trace;
        let port = port.map(|port| format!(", port {port}")).unwrap_or_default();
        let _ = writeln!(self.lines, "{name}{port}, asked for by container {}", asker.name);
        for line in &asker.hosts {
            self.line(format!("Its /etc/hosts has \"{line}\": programs that read it ask nobody."));
        }
    }

    fn networks(&mut self) {
        self.step("Networks of the container, in order of look-up");
        for network in &self.trace.networks {
            self.line(describe_network(network));
        }
        if self.trace.networks.is_empty() {
            self.line("none");
        }
    }

    fn lookup(&mut self, lookup: &Lookup) {
        self.step("What the resolver does with the name");
        if let Some(target) = &lookup.link {
            self.line(format!("It is the container's own name for \"{target}\" (a link)"));
        }
        for look in &lookup.looks {
            self.line(self.look(look));
        }
        for holder in &self.trace.holders {
            self.line(format!("{} ({})", self.who(&holder.who), self.network(&holder.network)));
        }
        self.line(verdict(lookup.verdict));
        for answer in &lookup.answers {
            self.line(reply(answer));
        }
        if lookup.verdict == LookupVerdict::Forwarded {
            self.upstreams(&lookup.upstreams);
        }
        for elsewhere in &self.trace.elsewhere {
            self.line(format!(
                "{} is known on network {}, which the container is not on.",
                elsewhere.name, elsewhere.network_name
            ));
        }
    }

    fn upstreams(&mut self, upstreams: &[Upstream]) {
        if upstreams.is_empty() {
            self.line("There is no server to ask: the answer is SERVFAIL.");
        }
        for (place, upstream) in upstreams.iter().enumerate() {
            self.line(format!("{}. server {}: {}", place + 1, upstream.server, health(upstream)));
        }
    }

    fn look(&self, look: &Look) -> String {
        let network = self.network(&look.network);
        let asked = match look.by_network {
            true => format!("\"{}\" on {network}, by the network's name", look.asked),
            false => format!("\"{}\" on {network}", look.asked),
        };
        let Some(found) = &look.found else { return format!("{asked}: not known") };
        let addresses: Vec<String> = found
            .v4
            .iter()
            .map(ToString::to_string)
            .chain(found.v6.iter().map(ToString::to_string))
            .collect();
        match &found.pointer {
            Some(name) => format!("{asked}: is {name}"),
            None if addresses.is_empty() => format!("{asked}: known, with nobody behind it now"),
            None => format!("{asked}: {}", addresses.join(", ")),
        }
    }

    fn who(&self, who: &Who) -> String {
        match who {
            Who::Service { name, alias, mode, .. } => {
                let of = if *alias { "an alias of service" } else { "the name of service" };
                let mode = match mode {
                    Resolution::Vip => "which has a virtual address",
                    Resolution::Dnsrr => "which resolves to its tasks (dnsrr)",
                };
                format!("It is {of} {name}, {mode}")
            }
            Who::Tasks { name, .. } => format!("It means the tasks of service {name} that take connections"),
            Who::All { name, .. } => format!("It means all tasks of service {name}, healthy or not"),
            Who::Endpoint { endpoint, node, name, alias } => {
                let of = if *alias { "another name of" } else { "the name of" };
                format!("It is {of} container {name} {}", self.place(endpoint, node))
            }
        }
    }

    fn target(&mut self, target: &Target) {
        let to = match self.trace.port {
            Some(port) => format!("{}, port {port}", target.address),
            None => target.address.to_string(),
        };
        self.step(format!("What a connection to {to} meets"));
        match &target.kind {
            TargetKind::Virtual { service, backends, kernel, by_source } => {
                let name = service.as_ref().and_then(|id| Some(self.trace.services.get(id)?.name.clone()));
                let network = target.network.as_ref().map(|id| self.network(id)).unwrap_or_default();
                let name = name.unwrap_or_else(|| "of no service".to_owned());
                self.line(format!("The virtual address of {name} on {network}"));
                self.line(outcome(target.outcome, backends.len(), *by_source));
                self.backends(backends);
                self.kernel(backends, kernel.as_deref());
            }
            TargetKind::Endpoint { endpoint, node, name, listening } => {
                let place = self.place(endpoint, node);
                self.line(format!("Container {name} {place}, directly{}", heard(*listening)));
            }
            TargetKind::Nobody => self.line("Nobody has this address now: packets meet silence"),
            TargetKind::Outside => {
                self.line(
                    "An address on none of the container's networks: packets leave by its default route",
                );
            }
        }
    }

    fn backends(&mut self, backends: &[Backend]) {
        for backend in backends.iter().take(LISTED_MAX) {
            let place = self.place(&backend.endpoint, &backend.node);
            let name = self.task(&backend.endpoint).map_or(backend.endpoint.as_str(), |task| &task.name);
            self.line(format!("{}: {name} {place}{}", backend.address, heard(backend.listening)));
        }
        if backends.len() > LISTED_MAX {
            self.line(format!("and {} more", backends.len() - LISTED_MAX));
        }
    }

    fn kernel(&mut self, backends: &[Backend], kernel: Option<&[IpAddr]>) {
        let mut wanted: Vec<IpAddr> = backends.iter().map(|backend| backend.address).collect();
        wanted.sort_unstable();
        let text = match kernel {
            None => "The kernel's map does not have it".to_owned(),
            Some(kernel) if kernel == wanted => "The kernel's map agrees with the table".to_owned(),
            Some(kernel) => {
                let list: Vec<String> = kernel.iter().map(ToString::to_string).collect();
                format!(
                    "The kernel's map differs from the table: it leads to {}",
                    if list.is_empty() { "nobody".to_owned() } else { list.join(", ") }
                )
            }
        };
        self.line(text);
    }

    fn service(&mut self, service: &TracedService) {
        let serving = service.tasks.iter().filter(|task| task.serving).count();
        let of = match service.replicas {
            Some(replicas) => format!("{serving} of {replicas} tasks take connections"),
            None if self.trace.from_manager => format!("{serving} tasks take connections"),
            None => format!("this node has {} of its tasks, {serving} take connections", service.tasks.len()),
        };
        self.step(format!("Service {}: {of}", service.name));
        if !service.error.is_empty() {
            self.line(format!("It is not in the tables: {}", service.error));
        }
        if service.replicas == Some(0) {
            self.line("It is scaled to 0");
        }
        // Those with something to tell first.
        let mut tasks: Vec<&TracedTask> = service.tasks.iter().collect();
        tasks.sort_by_key(|task| task.serving);
        for task in tasks.iter().take(LISTED_MAX) {
            self.line(self.task_line(task));
        }
        if tasks.len() > LISTED_MAX {
            self.line(format!("and {} more", tasks.len() - LISTED_MAX));
        }
        for task in service.failed.iter().take(LISTED_MAX) {
            self.line(format!("before: {}", self.task_line(task)));
        }
        if !self.trace.from_manager && serving == 0 {
            self.line("What becomes of its tasks on other nodes, a manager can tell: ask there");
        }
    }

    fn task_line(&self, task: &TracedTask) -> String {
        let node = match (&task.host, &task.node) {
            (Some(host), _) => format!("on node {host}"),
            (None, Some(node)) => format!("on node {node}"),
            (None, None) => "on no node".to_owned(),
        };
        let mut line = format!("{} {node}: {}", task.name, task.state);
        if !task.serving && !task.message.is_empty() && task.message != task.state.as_str() {
            let _ = write!(line, " ({})", task.message);
        }
        if let Some(health) = &task.health {
            let _ = write!(line, ", {health}");
        }
        if !task.serving && !task.health_output.is_empty() {
            let _ = write!(line, ", its check says {:?}", task.health_output);
        }
        if !task.error.is_empty() {
            let _ = write!(line, ": {}", task.error);
        }
        line
    }

    fn differences(&mut self) {
        if self.trace.differences.is_empty() {
            return;
        }
        self.step("Resolver and kernel do not hold what the tables in force say");
        for difference in &self.trace.differences {
            self.line(difference);
        }
        self.line("The node looks for such things and puts them right; see shoal verify");
    }

    fn network(&self, id: &NetworkId) -> String {
        let known = self.trace.networks.iter().find(|network| network.network == *id);
        known.map_or_else(|| id.to_string(), |network| network.name.clone())
    }

    fn task(&self, endpoint: &EndpointId) -> Option<&TracedTask> {
        let id = TaskId::new(endpoint.as_str());
        self.trace.services.values().flat_map(|service| &service.tasks).find(|task| task.id == id)
    }

    /// On networks of one node alone nobody names the node.
    fn place(&self, endpoint: &EndpointId, node: &NodeId) -> String {
        if node.as_str().is_empty() {
            return "on this node".to_owned();
        }
        let host = self.task(endpoint).and_then(|task| task.host.clone());
        let own = self.trace.asker.node.as_ref() == Some(node);
        let name = host.unwrap_or_else(|| node.to_string());
        if own { format!("on node {name} (this one)") } else { format!("on node {name}") }
    }
}

fn describe_network(network: &TracedNetwork) -> String {
    let addresses: Vec<String> = network.addresses.iter().map(ToString::to_string).collect();
    let revision = |version: Option<shoal_model::TableVersion>| {
        version.map_or_else(|| "none".to_owned(), |version| version.revision.to_string())
    };
    let mut line = format!("{} ({}): ", network.name, addresses.join(", "));
    let _ = write!(line, "table revision {} is in force", revision(network.in_force));
    if network.resolver.is_some() {
        let _ = write!(line, ", the resolver answers from {}", revision(network.resolver));
    }
    if network.current.is_some() {
        let _ = write!(line, ", the manager wants {}", revision(network.current));
    }
    line
}

fn verdict(verdict: LookupVerdict) -> &'static str {
    match verdict {
        LookupVerdict::Known => {
            "The name is known: it is answered here, for every type, and never asked elsewhere"
        }
        LookupVerdict::Forwarded => {
            "No network of the container knows it: other servers are asked, in this order"
        }
        LookupVerdict::NoWayOut => {
            "No network of the container knows it, and none leads outside: nobody is asked"
        }
        LookupVerdict::LeftToSearchDomains => {
            "No network of the container knows it; ndots was set, so it is left to the container's search domains"
        }
        LookupVerdict::NoName => "It is no name that can be asked for",
    }
}

fn reply(reply: &Reply) -> String {
    let from = if reply.from_cache { ", as another server said before" } else { "" };
    if reply.records.is_empty() {
        let code = if reply.code == "NOERROR" { "no data" } else { &reply.code };
        return format!("Answer to {}: {code}{from}", reply.kind);
    }
    let records: Vec<String> =
        reply.records.iter().map(|record| format!("{} (TTL {} s)", record.data, record.ttl)).collect();
    format!("Answer to {}: {}{from}", reply.kind, records.join(", "))
}

fn health(upstream: &Upstream) -> String {
    let one = |name: &str, health: Option<shoal_model::trace::Silence>| match health {
        None => format!("nothing against it over {name}"),
        Some(silence) => {
            format!("silent over {name}, looked at again in {:.1} s", silence.retry_in as f64 / 1000.0)
        }
    };
    match (upstream.udp.silent, upstream.tcp.silent) {
        (None, None) => "nothing against it".to_owned(),
        (udp, tcp) => format!("{}; {}", one("UDP", udp), one("TCP", tcp)),
    }
}

fn outcome(outcome: Outcome, backends: usize, by_source: bool) -> String {
    match outcome {
        Outcome::Refused => "Refused at once: no task takes connections".to_owned(),
        Outcome::Direct => "Nothing is put in its place: nobody answers there".to_owned(),
        Outcome::Balanced if by_source => {
            format!("Led to one of {backends} tasks, always the same for this container")
        }
        Outcome::Balanced => format!("Led to one of {backends} tasks, at random"),
    }
}

fn heard(listening: Option<bool>) -> &'static str {
    match listening {
        None => "",
        Some(true) => ", a program listens there",
        Some(false) => ", no program listens there: it refuses",
    }
}

#[cfg(test)]
mod tests;
