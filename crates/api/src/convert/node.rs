//! Nodes, both ways.

use shoal_model as model;
use shoal_model::{Availability, NodeRole};

use super::swarm::tls_info;
use super::{some, time};
use crate::error::{ApiError, Result};
use crate::wire::node as wire;
use crate::wire::service::Platform;
use crate::wire::{Version, swarm};

/// What every node of this engine can do, in the form Docker lists plugins.
const PLUGINS: [(&str, &str); 3] = [("Log", "json-file"), ("Network", "host"), ("Network", "overlay")];

pub(crate) fn spec(spec: wire::NodeSpec) -> Result<model::NodeSpec> {
    Ok(model::NodeSpec {
        name: spec.name.unwrap_or_default(),
        labels: spec.labels.unwrap_or_default(),
        role: match spec.role.as_deref() {
            Some("manager") => NodeRole::Manager,
            Some("worker") => NodeRole::Worker,
            other => {
                return Err(ApiError::bad_request(format!(
                    "invalid Role: \"{}\"",
                    other.unwrap_or_default()
                )));
            }
        },
        availability: availability(spec.availability.as_deref())?,
    })
}

pub(crate) fn availability(text: Option<&str>) -> Result<Availability> {
    match text {
        None | Some("" | "active") => Ok(Availability::Active),
        Some("pause") => Ok(Availability::Pause),
        Some("drain") => Ok(Availability::Drain),
        Some(other) => Err(ApiError::bad_request(format!("invalid Availability: \"{other}\""))),
    }
}

pub(crate) fn role(role: NodeRole) -> &'static str {
    match role {
        NodeRole::Worker => "worker",
        NodeRole::Manager => "manager",
    }
}

/// Docker has no word for a node that is silent, but not given up yet: it is ready, and its message says
/// what is the matter.
pub(crate) fn state(node: &model::Node) -> &'static str {
    if node.is_down() { "down" } else { "ready" }
}

/// Where a manager serves nodes; empty for a worker.
pub(crate) fn manager_address(node: &model::Node) -> String {
    node.manager.map(|addresses| addresses.advertise.to_string()).unwrap_or_default()
}

pub(crate) fn node(node: &model::Node, cluster: Option<&model::Cluster>) -> wire::Node {
    let availability = match node.spec.availability {
        Availability::Active => "active",
        Availability::Pause => "pause",
        Availability::Drain => "drain",
    };
    // There is one manager, and what it says of itself it says because it is reachable.
    let manager = (node.spec.role == NodeRole::Manager).then(|| wire::ManagerStatus {
        leader: true,
        reachability: "reachable",
        address: manager_address(node),
    });
    wire::Node {
        id: node.id.to_string(),
        version: Version { index: node.meta.version },
        created_at: time(node.meta.created),
        updated_at: time(node.meta.updated),
        spec: wire::NodeSpec {
            name: some(node.spec.name.clone()),
            labels: Some(node.spec.labels.clone()),
            role: Some(role(node.spec.role).to_owned()),
            availability: Some(availability.to_owned()),
        },
        description: description(&node.description, trust(node, cluster)),
        status: wire::Status {
            state: state(node),
            message: node.status.message.clone(),
            address: node.status.address.to_string(),
        },
        manager_status: manager,
    }
}

fn description(description: &model::NodeDescription, tls_info: swarm::TlsInfo) -> wire::Description {
    wire::Description {
        hostname: description.hostname.clone(),
        platform: Platform { architecture: description.architecture.clone(), os: description.os.clone() },
        resources: wire::Resources { nano_cpus: description.nano_cpus, memory: description.memory },
        engine: wire::Engine {
            engine_version: description.engine_version.clone(),
            labels: some(description.engine_labels.clone()),
            plugins: PLUGINS.iter().map(|&(r#type, name)| wire::Plugin { r#type, name }).collect(),
        },
        tls_info,
    }
}

/// Whom the node trusts, and of whom its certificate is. A node without a record of one is the
/// manager's own, whose certificate is of the present authority.
fn trust(node: &model::Node, cluster: Option<&model::Cluster>) -> swarm::TlsInfo {
    let Some(cluster) = cluster else { return swarm::TlsInfo::default() };
    let issuer = node.certificate.as_ref().map(|certificate| certificate.issuer.as_str());
    match &cluster.next_authority {
        Some(next) if issuer == Some(&next.root.public_key) => tls_info(&next.root, cluster.trusted_roots()),
        _ => tls_info(&cluster.authority.root, cluster.authority.root.pem.clone()),
    }
}
