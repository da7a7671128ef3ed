//! What one plan of the control loops costs in a big cluster: 10,000 nodes, 100,000 tasks of 2,000 services
//! on 200 networks. In this process and in memory, without store or sessions.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use jiff::Timestamp;
use shoal_manager::State;
use shoal_manager::plan::{Now, Observed, SessionView, plan};
use shoal_model::*;

const NODES: u32 = 10_000;
const SERVICES: u32 = 2_000;
const NETWORKS: u32 = 200;
const REPLICAS: u32 = 50;
const ROUNDS: u32 = 10;

pub(crate) fn measure() {
    let wall = Timestamp::UNIX_EPOCH;
    let meta = Meta::new(wall);
    let mut ids = IdGenerator::from_seed(1);
    let mut state = State::default();
    let mut observed = Observed::default();
    for number in 0..NODES {
        let node = node(number, meta);
        let description = Arc::new(node.description.clone());
        let session = SessionView { last_heard: Duration::ZERO, live: true, description };
        observed.sessions.insert(node.id.clone(), session);
        state.put(Object::Node(node));
    }
    for number in 0..NETWORKS {
        state.put(Object::Network(network(number, meta)));
    }
    for number in 0..SERVICES {
        let service = service(number, meta);
        for slot in 0..REPLICAS {
            let task = task(&service, number, slot, meta, &mut ids);
            observed.in_service.insert(task.id.clone());
            state.put(Object::Task(task));
        }
        state.put(Object::Service(service));
    }
    // What a cluster like this has settled to.
    let now = Now { monotonic: Duration::from_millis(500), wall };
    loop {
        let planned = plan(&state, &observed, now, &mut ids);
        if planned.changes.is_empty() {
            break;
        }
        planned.changes.into_iter().filter_map(|change| change.new).for_each(|object| state.put(object));
    }
    time("nothing to do", &state, &observed, now, &mut ids);
    let mut scaled = state.clone();
    let mut service = Service::clone(scaled.services().next().unwrap());
    service.spec.mode = ServiceMode::Replicated { replicas: u64::from(REPLICAS) + 1 };
    scaled.put(Object::Service(service));
    time("one task more", &scaled, &observed, now, &mut ids);
    let mut failed = state.clone();
    let mut task = Task::clone(failed.tasks().next().unwrap());
    task.status.state = TaskState::Failed;
    failed.put(Object::Task(task));
    time("one task failed", &failed, &observed, now, &mut ids);
}

fn time(what: &str, state: &State, observed: &Observed, now: Now, ids: &mut IdGenerator) {
    let mut times = Vec::new();
    let mut changes = 0;
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        changes = plan(state, observed, now, ids).changes.len();
        times.push(begun.elapsed());
    }
    times.sort();
    println!("{what}: {changes} changes, median {:?}, least {:?}", times[times.len() / 2], times[0]);
}

fn node(number: u32, meta: Meta) -> Node {
    let address = IpAddr::from((0x0a64_0000 + number).to_be_bytes());
    let mut status = NodeStatus::unheard(address, meta.created);
    status.condition = NodeCondition::Ready;
    let description = NodeDescription { hostname: format!("node-{number}"), ..NodeDescription::default() };
    Node {
        id: NodeId::new(format!("node-{number}")),
        meta,
        spec: NodeSpec {
            name: String::new(),
            labels: Labels::new(),
            role: NodeRole::Worker,
            availability: Availability::Active,
        },
        description,
        status,
        data_path_address: address,
        ingress: None,
        manager: None,
        certificate: None,
    }
}

fn subnet(network: u32) -> IpNet {
    IpNet::new_assert(IpAddr::from((0x0b00_0000 + network * 4096).to_be_bytes()), 20)
}

fn network(number: u32, meta: Meta) -> Network {
    let pool =
        AddressPool { subnet: subnet(number), gateway: None, range: None, reserved: Default::default() };
    let state = NetworkState {
        vni: 4096 + number,
        pools: vec![pool],
        last_address: None,
        last_address_v6: None,
        resting: Vec::new(),
    };
    Network {
        id: NetworkId::new(format!("network-{number}")),
        meta,
        spec: NetworkSpec {
            name: format!("network-{number}"),
            labels: Labels::new(),
            driver: NetworkDriver::Overlay,
            options: Labels::new(),
            internal: false,
            attachable: false,
            ingress: false,
            ipv6: false,
            pools: Vec::new(),
            config_from: None,
        },
        state: Some(state),
    }
}

/// The address of one place: ten services of fifty tasks and an address of their own share a network.
fn address(service: u32, place: u32) -> IpNet {
    let network = service % NETWORKS;
    let number = 0x0b00_0000 + network * 4096 + 2 + (service / NETWORKS) * (REPLICAS + 1) + place;
    IpNet::new_assert(IpAddr::from(number.to_be_bytes()), 20)
}

fn service(number: u32, meta: Meta) -> Service {
    let network = NetworkId::new(format!("network-{}", number % NETWORKS));
    let virtual_ip = VirtualIp { network: network.clone(), address: address(number, 0) };
    Service {
        id: ServiceId::new(format!("service-{number}")),
        meta,
        spec: ServiceSpec {
            name: format!("service-{number}"),
            labels: Labels::new(),
            task: TaskSpec {
                container: ContainerSpec { image: "busybox".into(), ..ContainerSpec::default() },
                resources: Resources::default(),
                restart: RestartPolicy::default(),
                placement: Placement::default(),
                networks: vec![NetworkTarget { network, aliases: Vec::new() }],
                force_update: 0,
                log_options: Labels::new(),
            },
            mode: ServiceMode::Replicated { replicas: u64::from(REPLICAS) },
            update: None,
            rollback: None,
            endpoint: EndpointSpec::default(),
        },
        previous: None,
        endpoint: ServiceEndpoint { virtual_ips: vec![virtual_ip], ports: Vec::new() },
        removing: false,
        allocation_error: String::new(),
        update_status: None,
        job: None,
        credentials: None,
    }
}

fn task(service: &Service, number: u32, slot: u32, meta: Meta, ids: &mut IdGenerator) -> Task {
    let attachment = Attachment {
        network: service.spec.task.networks[0].network.clone(),
        address: address(number, slot + 1),
        address_v6: None,
        mac: MacAddr::random(ids),
        aliases: Vec::new(),
    };
    Task {
        id: TaskId::new(ids.object_id()),
        meta,
        service: service.id.clone(),
        service_name: service.spec.name.clone(),
        service_labels: service.spec.labels.clone(),
        slot: u64::from(slot) + 1,
        pinned: None,
        spec: service.spec.task.clone(),
        ports: Vec::new(),
        node: Some(NodeId::new(format!("node-{}", (number * REPLICAS + slot) % NODES))),
        desired: TaskState::Running,
        status: TaskStatus::new(TaskState::Running, meta.created, "started"),
        attachments: vec![attachment],
        running_since: Some(meta.created),
        released: false,
        credentials: None,
        start_after: None,
        failures: Vec::new(),
        iteration: None,
    }
}
