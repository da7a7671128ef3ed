//! What users ask for, through the code that serves them.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use rand::Rng;
use rand::rngs::StdRng;
use shoal_model::*;

use super::machine::Machine;
use super::script::with_availability;
use super::world::World;
use crate::cluster::begin;
use crate::draft::{Draft, commit_of};
use crate::plan::Now;
use crate::plan::tests::{port, spec};
use crate::{ControlError, InitOptions, control};

/// A number that picks one of what there is when the wish is granted.
type Pick = u64;

#[derive(Debug, Clone)]
pub(super) enum Wish {
    CreateNetwork {
        v6: bool,
        attachable: bool,
        /// Its addresses are those of each node's own configuration.
        by_node: bool,
    },
    RemoveNetwork(Pick),
    CreateService {
        replicas: u64,
        networks: Pick,
        published: bool,
        update: UpdateConfig,
        delay: Duration,
    },
    CreateJob {
        concurrent: u64,
        total: u64,
        networks: Pick,
        delay: Duration,
    },
    Scale {
        service: Pick,
        replicas: u64,
    },
    Update {
        service: Pick,
    },
    Join {
        service: Pick,
        networks: Pick,
    },
    Rollback(Pick),
    RemoveService(Pick),
    Availability {
        node: usize,
        to: Availability,
    },
    RemoveNode {
        node: usize,
        force: bool,
    },
    /// A machine joins the cluster as this node.
    Enlist {
        number: usize,
    },
    RemoveServices,
    RemoveNetworks,
}

/// Networks and services there may be at a time.
const NETWORKS_MAX: usize = 3;
const SERVICES_MAX: usize = 3;
/// Machines there may ever be.
const MACHINES_MAX: usize = 6;
/// So many tasks each. All of them together fit into one network.
const REPLICAS_MAX: u64 = 3;
/// Prefix length of every network: small ones use their addresses again soon.
const SUBNET_SIZE: u8 = 27;

fn pick<T>(from: &[T], number: Pick) -> Option<&T> {
    from.get((number % from.len().max(1) as u64) as usize)
}

fn services(draft: &Draft) -> Vec<Arc<Service>> {
    draft.state().services().cloned().collect()
}

fn networks(draft: &Draft) -> Vec<Arc<Network>> {
    draft.state().networks().filter(|network| !network.spec.ingress).cloned().collect()
}

impl Wish {
    /// `nodes`: how many there have been; `machines`: how many there are or were.
    pub(super) fn random(rng: &mut StdRng, nodes: usize, machines: usize) -> Self {
        let number: Pick = rng.random();
        let replicas = rng.random_range(0..=REPLICAS_MAX);
        match rng.random_range(0..100) {
            0..10 => Self::CreateNetwork {
                v6: rng.random_bool(0.2),
                attachable: rng.random_bool(0.7),
                by_node: rng.random_bool(0.2),
            },
            10..13 => Self::RemoveNetwork(number),
            13..17 => Self::CreateJob {
                concurrent: rng.random_range(1..=2),
                total: replicas,
                networks: number,
                delay: Duration::from_millis(rng.random_range(0..3_000)),
            },
            17..38 => Self::CreateService {
                replicas: replicas.max(1),
                networks: number,
                published: rng.random_bool(0.4),
                update: update_config(rng),
                delay: Duration::from_millis(rng.random_range(0..3_000)),
            },
            38..52 => Self::Scale { service: number, replicas },
            52..70 => Self::Update { service: number },
            70..73 => Self::Join { service: number, networks: rng.random() },
            73..76 => Self::Rollback(number),
            76..84 => Self::RemoveService(number),
            86..88 if machines < MACHINES_MAX => Self::Enlist { number: nodes },
            84..86 => Self::RemoveNode { node: rng.random_range(0..nodes), force: rng.random_bool(0.3) },
            _ => {
                let node = rng.random_range(0..nodes);
                let to = match rng.random_range(0..5) {
                    0 => Availability::Pause,
                    1 | 2 => Availability::Drain,
                    _ => Availability::Active,
                };
                Self::Availability { node, to }
            }
        }
    }

    /// What the manager's shell does with it, but for the commit.
    pub(super) fn decide(
        &self,
        draft: &mut Draft,
        now: Now,
        ids: &mut IdGenerator,
    ) -> Result<(), ControlError> {
        let services = services(draft);
        let networks = networks(draft);
        match self {
            Self::CreateNetwork { v6, attachable, by_node } if networks.len() < NETWORKS_MAX => {
                let name = (0..).map(|number| format!("net{number}"));
                let name = name.into_iter().find(|name| draft.state().network_named(name).is_none());
                let mut spec = network_spec(name.unwrap_or_default(), *v6, *attachable, free_pool(&networks));
                if *by_node {
                    (spec.driver, spec.ipv6) = (NetworkDriver::Macvlan, false);
                    spec.pools.clear();
                    spec.config_from = Some(CONFIGURATION.to_owned());
                }
                control::create_network(draft, now, ids, spec).map(drop)
            }
            Self::CreateService { replicas, networks: bits, published, update, delay }
                if services.len() < SERVICES_MAX =>
            {
                let name = (0..).map(|number| format!("s{number}"));
                let name = name.into_iter().find(|name| draft.state().service_named(name).is_none());
                let mut declared = spec(&name.unwrap_or_default(), *replicas, &[]);
                declared.task.networks = targets(&networks, *bits);
                declared.task.restart.delay = *delay;
                declared.update = Some(update.clone());
                declared.endpoint.ports.extend(published.then(|| port(0)));
                control::create_service(draft, now, ids, declared).map(drop)
            }
            Self::CreateJob { concurrent, total, networks: bits, delay } if services.len() < SERVICES_MAX => {
                let name = (0..).map(|number| format!("j{number}"));
                let name = name.into_iter().find(|name| draft.state().service_named(name).is_none());
                let mut declared = spec(&name.unwrap_or_default(), 0, &[]);
                declared.mode = ServiceMode::ReplicatedJob { concurrent: *concurrent, total: *total };
                declared.task.networks = targets(&networks, *bits);
                declared.task.restart.delay = *delay;
                control::create_service(draft, now, ids, declared).map(drop)
            }
            Self::CreateNetwork { .. } | Self::CreateService { .. } | Self::CreateJob { .. } => Ok(()),
            Self::RemoveNetwork(number) => match pick(&networks, *number) {
                Some(network) => control::remove_network(draft, &network.id).map(drop),
                None => Ok(()),
            },
            Self::Scale { service, replicas } => {
                change(draft, now, &services, *service, |spec| match &mut spec.mode {
                    ServiceMode::ReplicatedJob { total, .. } => *total = *replicas,
                    mode => *mode = ServiceMode::Replicated { replicas: *replicas },
                })
            }
            Self::Update { service } => {
                change(draft, now, &services, *service, |spec| spec.task.force_update += 1)
            }
            Self::Join { service, networks: bits } => {
                let targets = targets(&networks, *bits);
                change(draft, now, &services, *service, |spec| spec.task.networks = targets)
            }
            Self::Rollback(number) => match pick(&services, *number) {
                Some(service) => {
                    control::rollback_service(draft, now, &service.id, service.meta.version).map(drop)
                }
                None => Ok(()),
            },
            Self::RemoveService(number) => match pick(&services, *number) {
                Some(service) => control::remove_service(draft, &service.id),
                None => Ok(()),
            },
            Self::Availability { node, to } => {
                let id = node_id(*node);
                let Some(node) = draft.state().node(&id).cloned() else { return Ok(()) };
                control::update_node(draft, &id, node.meta.version, with_availability(&node.spec, *to))
            }
            Self::Enlist { number } => {
                let first = draft.state().nodes().next().cloned();
                if let Some(first) = first {
                    draft.put(Object::Node(worker(&first, *number, now.wall)));
                }
                Ok(())
            }
            Self::RemoveNode { node, force } => control::remove_node(draft, &node_id(*node), *force),
            Self::RemoveServices => {
                services.iter().try_for_each(|service| control::remove_service(draft, &service.id))
            }
            Self::RemoveNetworks => {
                networks.iter().try_for_each(|network| control::remove_network(draft, &network.id).map(drop))
            }
        }
    }
}

fn update_config(rng: &mut StdRng) -> UpdateConfig {
    use UpdateFailureAction::{Continue, Pause, Rollback};
    UpdateConfig {
        parallelism: rng.random_range(0..=2),
        delay: Duration::from_millis(rng.random_range(0..500)),
        failure_action: [Pause, Continue, Rollback][rng.random_range(0..3)],
        monitor: Duration::from_millis(rng.random_range(0..5_000)),
        order: if rng.random_bool(0.5) { UpdateOrder::StartFirst } else { UpdateOrder::StopFirst },
        ..UpdateConfig::default()
    }
}

fn targets(networks: &[Arc<Network>], bits: Pick) -> Vec<NetworkTarget> {
    let chosen = networks.iter().enumerate().filter(|(index, _)| bits >> index & 1 == 1);
    chosen.map(|(_, network)| NetworkTarget { network: network.id.clone(), aliases: Vec::new() }).collect()
}

fn change(
    draft: &mut Draft,
    now: Now,
    services: &[Arc<Service>],
    number: Pick,
    how: impl FnOnce(&mut ServiceSpec),
) -> Result<(), ControlError> {
    let Some(service) = pick(services, number) else { return Ok(()) };
    let mut spec = service.spec.clone();
    how(&mut spec);
    control::update_service(draft, now, &service.id, service.meta.version, spec).map(drop)
}

/// A subnet that is soon used up.
fn free_pool(networks: &[Arc<Network>]) -> AddressPool {
    let used = |subnet: IpNet| {
        let pools = networks.iter().flat_map(|network| &network.spec.pools);
        pools.into_iter().any(|pool| pool.subnet == subnet)
    };
    let subnets = (0..=255).map(|third| IpNet::new_assert(IpAddr::from([10, 77, third, 0]), SUBNET_SIZE));
    let subnet = subnets.into_iter().find(|subnet| !used(*subnet)).expect("a free subnet");
    AddressPool { subnet, gateway: None, range: None, reserved: Default::default() }
}

fn network_spec(name: String, ipv6: bool, attachable: bool, pool: AddressPool) -> NetworkSpec {
    NetworkSpec {
        name,
        labels: Labels::new(),
        driver: NetworkDriver::Overlay,
        options: Labels::new(),
        internal: false,
        attachable,
        ingress: false,
        ipv6,
        pools: vec![pool],
        config_from: None,
    }
}

/// What every node says networks may be made from.
const CONFIGURATION: &str = "part";

/// What a node says of itself.
pub(super) fn description(id: &NodeId) -> NodeDescription {
    let pool = AddressPool::new(IpNet::new_assert(IpAddr::from([10, 78, 0, 0]), 24));
    NodeDescription {
        hostname: id.to_string(),
        configurations: [(CONFIGURATION.to_owned(), vec![pool])].into(),
        ..NodeDescription::default()
    }
}

pub(super) fn node_id(number: usize) -> NodeId {
    NodeId::new(format!("node-{number}"))
}

/// A node like the first one, but for what makes that the first.
fn worker(first: &Node, number: usize, now: jiff::Timestamp) -> Node {
    let address = IpAddr::from([192, 0, 2, number as u8 + 1]);
    let mut node = Node { id: node_id(number), meta: Meta::new(now), ingress: None, ..Node::clone(first) };
    node.description = description(&node.id);
    node.spec.role = NodeRole::Worker;
    node.spec.availability = Availability::Active;
    node.manager = None;
    node.data_path_address = address;
    node.status = NodeStatus::unheard(address, now);
    node
}

impl World {
    /// A machine has become a node.
    pub(super) fn join(&mut self, number: usize) {
        self.machines.push(Machine::new(node_id(number)));
        let index = self.machines.len() - 1;
        self.start_daemon(index);
    }

    /// The cluster's first objects.
    pub(super) fn found(&mut self) {
        let mut ids = IdGenerator::from_seed(self.rng.random());
        let mut draft = Draft::new(self.truth.clone(), self.wall());
        let address = IpAddr::from([192, 0, 2, 1]);
        let options = InitOptions {
            node_name: "node-0".into(),
            listen: (address, 2377).into(),
            advertise: (address, 2377).into(),
            data_path_address: address,
            spec: ClusterSpec { default_subnet_size: 26, ..ClusterSpec::default() },
            availability: Availability::Active,
            description: NodeDescription::default(),
        };
        let first = begin(&mut draft, &options, Authority::default(), self.wall(), &mut ids);
        let first = draft.state().node(&first).cloned().expect("the first node");
        draft.remove(ObjectKey::Node(first.id.clone()));
        for number in 0..self.weather.nodes {
            let mut node = worker(&first, number, self.wall());
            if number == 0 {
                node.spec.role = NodeRole::Manager;
                node.manager = first.manager;
            }
            self.machines.push(Machine::new(node.id.clone()));
            draft.put(Object::Node(node));
        }
        self.enlisted = self.weather.nodes;
        let (expect, writes) = commit_of(&draft.into_changes(), &self.truth).expect("nothing twice");
        let (revision, events) = self.store.commit(&expect, writes).expect("an empty store");
        self.check_commit(revision, &events);
    }
}
