//! [`shoal_model::Task`] → a task as Docker's clients read it.

use shoal_model as model;

use super::network::{subnet_config, swarm_options};
use super::service_out::{self, Defaults};
use super::{some, time};
use crate::wire::Version;
use crate::wire::task as wire;

/// `network` finds the networks the task is on; those that are gone are left out. `trouble` is told where the task
/// itself has nothing to say.
pub(crate) fn task<'a>(
    task: &model::Task,
    trouble: Option<String>,
    network: impl Fn(&model::NetworkId) -> Option<&'a model::Network>,
) -> wire::Task {
    wire::Task {
        id: task.id.to_string(),
        version: Version { index: task.meta.version },
        created_at: time(task.meta.created),
        updated_at: time(task.meta.updated),
        labels: model::Labels::new(),
        spec: service_out::task(&task.spec, Defaults::Omit),
        service: task.service.to_string(),
        slot: Some(task.slot).filter(|slot| *slot != 0),
        node: task.node.as_ref().or(task.pinned.as_ref()).map(ToString::to_string),
        status: status(task, trouble),
        desired_state: desired(task),
        job_iteration: task.iteration.map(service_out::job_iteration),
        networks_attachments: attachments(task, network),
    }
}

/// A job's task is wanted until it has done its work; Docker calls that state `complete`.
pub(crate) fn desired(task: &model::Task) -> &'static str {
    match task.desired {
        model::TaskState::Running if task.iteration.is_some() => model::TaskState::Complete.as_str(),
        desired => desired.as_str(),
    }
}

fn status(task: &model::Task, trouble: Option<String>) -> wire::Status {
    let status = &task.status;
    let own = Some(status.error.clone()).filter(|error| !error.is_empty());
    wire::Status {
        timestamp: time(status.timestamp),
        state: status.state.as_str(),
        message: status.message.clone(),
        err: own.or(trouble).unwrap_or_default(),
        container_status: status.container.as_ref().map(|container| wire::ContainerStatus {
            id: container.id.to_string(),
            pid: container.pid,
            exit_code: container.exit_code,
        }),
        port_status: wire::PortStatus { ports: status.ports.iter().map(service_out::port).collect() },
    }
}

/// The ingress network first, as Docker shows them.
fn attachments<'a>(
    task: &model::Task,
    network: impl Fn(&model::NetworkId) -> Option<&'a model::Network>,
) -> Vec<wire::Attachment> {
    let mut found: Vec<_> =
        task.attachments.iter().filter_map(|at| network(&at.network).map(|network| (network, at))).collect();
    found.sort_by_key(|(network, _)| !network.spec.ingress);
    found
        .into_iter()
        .map(|(network, at)| wire::Attachment {
            network: swarm_network(network),
            addresses: [Some(at.address), at.address_v6]
                .into_iter()
                .flatten()
                .map(|at| at.to_string())
                .collect(),
        })
        .collect()
}

fn swarm_network(network: &model::Network) -> wire::Network {
    let driver = super::network::driver(network.spec.driver);
    wire::Network {
        id: network.id.to_string(),
        version: Version { index: network.meta.version },
        created_at: time(network.meta.created),
        updated_at: time(network.meta.updated),
        spec: wire::NetworkSpec {
            name: network.spec.name.clone(),
            labels: network.spec.labels.clone(),
            driver_configuration: wire::Driver { name: driver, options: some(network.spec.options.clone()) },
            ipv6: network.spec.ipv6,
            internal: network.spec.internal,
            attachable: network.spec.attachable,
            ingress: network.spec.ingress,
            ipam: wire::IpamOptions {
                driver: wire::Driver { name: "default", options: None },
                configs: network.spec.pools.iter().map(ipam_config).collect(),
            },
            scope: "swarm",
        },
        driver_state: wire::Driver { name: driver, options: swarm_options(network) },
        ipam: wire::IpamOptions {
            driver: wire::Driver { name: "default", options: None },
            configs: network.state.iter().flat_map(|state| &state.pools).map(ipam_config).collect(),
        },
    }
}

fn ipam_config(pool: &model::AddressPool) -> wire::IpamConfig {
    let config = subnet_config(pool);
    wire::IpamConfig { subnet: config.subnet, range: config.ip_range, gateway: config.gateway }
}
