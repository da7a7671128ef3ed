//! Plain containers as their node keeps them.

use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shoal_model::{
    Attachment, ContainerId, ContainerSpec, GuestRequest, Labels, MacAddr, PlaceRequest, Port, PortConfig,
    Protocol, PublishMode, Resources,
};

use crate::host_ports::Binding;
use crate::local::LocalNetwork;
use crate::sandbox::{Link, Tenant};

/// What a user declared with `docker run` or `docker create`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PlainSpec {
    pub container: ContainerSpec,
    pub resources: Resources,
    /// `json-file` options (`max-size`, `max-file`).
    pub log_options: Labels,
    pub network: NetworkMode,
    /// The networks to join, in the order in which names are looked up; only with
    /// [`NetworkMode::Bridge`] and [`NetworkMode::Named`].
    pub places: Vec<Place>,
    /// Ports of the node that lead to it; of those without a number the node chooses one with each start.
    #[serde(default)]
    pub ports: Vec<Binding>,
    /// Ports that it listens on, as far as anybody said so.
    #[serde(default)]
    pub exposed: Vec<Port>,
    /// Those that image or user said it listens on are published, too.
    #[serde(default)]
    pub publish_all: bool,
    /// The container whose network it shares; only with [`NetworkMode::Container`], and its id once this
    /// container is made.
    #[serde(default)]
    pub shares: Option<String>,
    /// Removed when it ends.
    pub auto_remove: bool,
    pub restart: Restart,
    /// Its input ends with that of the first client attached to it.
    pub stdin_once: bool,
    /// Names of its own for other containers.
    #[serde(default)]
    pub links: Vec<Link>,
}

impl PlainSpec {
    /// Publishes what the image says it listens on, and what the user said, if that is wanted.
    pub(crate) fn expose(&mut self, image: &[String]) {
        let parse = |text: &String| {
            let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
            let protocol = match protocol {
                "tcp" => Protocol::Tcp,
                "udp" => Protocol::Udp,
                _ => return None,
            };
            Some(Port { protocol, number: number.parse().ok()? })
        };
        self.exposed.extend(image.iter().filter_map(parse));
        self.exposed.sort();
        self.exposed.dedup();
        if !self.publish_all {
            return;
        }
        for port in &self.exposed {
            let is_it =
                |held: &Binding| (held.port.protocol, held.port.target) == (port.protocol, port.number);
            if !self.ports.iter().any(is_it) {
                let (protocol, target) = (port.protocol, port.number);
                let port = PortConfig { protocol, target, mode: PublishMode::Host, ..PortConfig::default() };
                self.ports.push(Binding { port, address: None, upto: None });
            }
        }
    }
}

/// Where a plain container's way into the network is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkMode {
    /// The node's default network.
    #[default]
    Bridge,
    None,
    /// The node's own network stack.
    Host,
    /// Networks of the node or the cluster.
    #[serde(alias = "cluster")]
    Named,
    /// That of another container.
    Container,
}

/// One network, as the user asked for it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Name or id.
    pub network: String,
    pub aliases: Vec<String>,
    pub address: Option<IpAddr>,
    pub address_v6: Option<IpAddr>,
    /// Otherwise a random one.
    #[serde(default)]
    pub mac: Option<MacAddr>,
    /// The network, if it is this node's alone; found out when the container is made, and kept whole: should
    /// the node's store be lost, it is made again from this.
    #[serde(default)]
    pub local: Option<Box<LocalNetwork>>,
}

/// When a container that ended is started again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Restart {
    #[default]
    No,
    Always,
    UnlessStopped,
    /// At most so often; 0 is without end.
    OnFailure {
        attempts: u32,
    },
}

/// A plain container of this node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PlainRecord {
    pub id: ContainerId,
    pub name: String,
    pub spec: PlainSpec,
    /// Started, and not stopped by a user since: what its restart policy goes by.
    #[serde(default)]
    pub wanted: bool,
    /// Restarts by its policy since a user started it.
    #[serde(default)]
    pub restarts: u32,
    /// What the manager gave it; nothing while it does not run.
    #[serde(default)]
    pub attachments: Vec<Attachment>,
    /// Its ports of the node, with their numbers; none while it does not run.
    #[serde(default)]
    pub bindings: Vec<Binding>,
    /// The cluster was left while it ran: until its next start it is on no network.
    #[serde(default)]
    pub left: bool,
    /// Why it could not be started the last time.
    #[serde(default)]
    pub error: String,
}

impl PlainRecord {
    pub(crate) fn new(id: ContainerId, name: String, spec: PlainSpec) -> Self {
        Self {
            id,
            name,
            spec,
            wanted: false,
            restarts: 0,
            attachments: Vec::new(),
            bindings: Vec::new(),
            left: false,
            error: String::new(),
        }
    }

    /// What it is kept by with containerd, should the node's own store be lost.
    pub(crate) fn note(&self) -> String {
        serde_json::to_string(&(&self.name, &self.spec)).unwrap_or_default()
    }

    /// The inverse of [`note`](Self::note); `None` when it is no plain container.
    pub(crate) fn of_note(id: &ContainerId, note: &str) -> Option<Self> {
        let (name, spec) = serde_json::from_str(note).ok()?;
        Some(Self::new(id.clone(), name, spec))
    }

    /// What it asks of the manager: its places on the cluster's networks.
    pub(crate) fn request(&self) -> GuestRequest {
        let place = |(index, place): (usize, &Place)| PlaceRequest {
            network: place.network.clone(),
            // The host name is a name on every network, like those of the place alone.
            aliases: place
                .aliases
                .iter()
                .map(String::as_str)
                .chain(self.hostname())
                .map(str::to_owned)
                .collect(),
            address: place.address,
            address_v6: place.address_v6,
            mac: place.mac,
            held: self.attachments.get(index).cloned(),
        };
        let places = self.spec.places.iter().enumerate().filter(|(_, place)| place.local.is_none());
        GuestRequest { id: self.id.clone(), name: self.name.clone(), places: places.map(place).collect() }
    }

    /// What it has on the cluster's networks, in the order of the request.
    pub(crate) fn on_cluster(&self) -> impl Iterator<Item = &Attachment> {
        let held = self.spec.places.iter().zip(&self.attachments);
        held.filter(|(place, _)| place.local.is_none()).map(|(_, attachment)| attachment)
    }

    /// It has a network namespace of its own.
    pub(crate) fn has_sandbox(&self) -> bool {
        !matches!(self.spec.network, NetworkMode::Host | NetworkMode::Container)
    }

    /// What resolves to it on a network of this node where it has these aliases, its name first.
    pub(crate) fn names(&self, aliases: &[String]) -> Vec<String> {
        let further = aliases.iter().map(String::as_str).chain([self.id.short()]).chain(self.hostname());
        let mut names = vec![self.name.clone()];
        for name in further {
            if names.iter().all(|known| known != name) {
                names.push(name.to_owned());
            }
        }
        names
    }

    /// The host name that its user chose.
    fn hostname(&self) -> Option<&str> {
        Some(self.spec.container.hostname.as_str()).filter(|name| !name.is_empty())
    }

    pub(crate) fn tenant(&self) -> Tenant<'_> {
        Tenant {
            id: self.id.as_str(),
            attachments: &self.attachments,
            spec: &self.spec.container,
            secluded: self.spec.network == NetworkMode::None,
            links: &self.spec.links,
        }
    }
}

/// The first pause before a restart, and the longest; it doubles from one to the next (Docker's).
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// What becomes of a container that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    Stay,
    Remove,
    Restart { pause: Duration },
}

/// Decides after a run that ended with this exit code.
pub(crate) fn after(record: &PlainRecord, code: i32) -> Next {
    if record.spec.auto_remove {
        return Next::Remove;
    }
    let again = match record.spec.restart {
        Restart::No => false,
        Restart::Always | Restart::UnlessStopped => record.wanted,
        Restart::OnFailure { attempts } => {
            record.wanted && code != 0 && (attempts == 0 || record.restarts < attempts)
        }
    };
    let doubled = PAUSE_FIRST.saturating_mul(1 << record.restarts.min(16));
    if again { Next::Restart { pause: doubled.min(PAUSE_MAX) } } else { Next::Stay }
}

/// Decides for a container that does not run when the daemon starts: `code` of its last run, if it ran.
pub(crate) fn at_start(record: &PlainRecord, code: Option<i32>) -> Next {
    match (record.spec.restart, code) {
        _ if record.spec.auto_remove => Next::Remove,
        // Docker's difference between the two: only one remembers that it was stopped.
        (Restart::Always, Some(_)) => Next::Restart { pause: Duration::ZERO },
        // The former process ended while it was starting it.
        (restart, None) if restart != Restart::No && record.wanted => Next::Restart { pause: Duration::ZERO },
        (_, None) => Next::Stay,
        (_, Some(code)) => match after(record, code) {
            Next::Restart { .. } => Next::Restart { pause: Duration::ZERO },
            next => next,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(restart: Restart, wanted: bool, restarts: u32) -> PlainRecord {
        let spec = PlainSpec { restart, ..PlainSpec::default() };
        PlainRecord { wanted, restarts, ..PlainRecord::new(ContainerId::new("c"), "c".to_owned(), spec) }
    }

    fn again(next: Next) -> bool {
        matches!(next, Next::Restart { .. })
    }

    #[test]
    fn policies_restart_what_nobody_stopped() {
        for restart in [Restart::Always, Restart::UnlessStopped] {
            assert!(again(after(&record(restart, true, 900), 0)));
            assert!(!again(after(&record(restart, false, 0), 1)));
        }
        assert!(!again(after(&record(Restart::No, true, 0), 1)));
        let twice = Restart::OnFailure { attempts: 2 };
        assert!(again(after(&record(twice, true, 1), 7)));
        assert!(!again(after(&record(twice, true, 2), 7)));
        assert!(!again(after(&record(twice, true, 0), 0)));
        assert!(again(after(&record(Restart::OnFailure { attempts: 0 }, true, 99), 1)));
    }

    #[test]
    fn pauses_double_up_to_a_minute() {
        let pause = |restarts| match after(&record(Restart::Always, true, restarts), 1) {
            Next::Restart { pause } => pause.as_millis(),
            other => panic!("{other:?}"),
        };
        assert_eq!([pause(0), pause(1), pause(3), pause(40)], [100, 200, 800, 60_000]);
    }

    #[test]
    fn only_unless_stopped_remembers_a_stop_over_a_restart_of_the_daemon() {
        assert!(again(at_start(&record(Restart::Always, false, 0), Some(0))));
        assert!(!again(at_start(&record(Restart::UnlessStopped, false, 0), Some(0))));
        assert!(again(at_start(&record(Restart::UnlessStopped, true, 0), Some(0))));
        assert!(!again(at_start(&record(Restart::Always, false, 0), None)), "never started");
        let interrupted = record(Restart::OnFailure { attempts: 2 }, true, 1);
        assert!(again(at_start(&interrupted, None)), "it was being started");
    }

    #[test]
    fn what_is_removed_at_its_end_is_removed_whenever_it_does_not_run() {
        let mut record = record(Restart::No, true, 0);
        record.spec.auto_remove = true;
        assert_eq!(after(&record, 3), Next::Remove);
        assert_eq!(at_start(&record, None), Next::Remove);
    }

    #[test]
    fn a_lost_store_is_rebuilt_from_notes() {
        let mut record = record(Restart::Always, false, 0);
        record.spec.places = vec![Place { network: "net".to_owned(), ..Place::default() }];
        assert_eq!(PlainRecord::of_note(&record.id, &record.note()), Some(record.clone()));
        assert_eq!(PlainRecord::of_note(&record.id, ""), None);
    }
}
