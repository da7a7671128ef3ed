//! What users ask for: looked up, validated, given defaults, and put into a draft.

mod deposit;
mod find;
mod guest;
mod network;
mod service;

use jiff::Timestamp;
use shoal_model::{Cluster, ClusterSpec, Node, NodeId, NodeRole, NodeSpec, Object, ObjectKey, ServiceId};
use shoal_store::State;

use crate::ca::{ClusterKey, new_authority, rotate_token};
use crate::draft::Draft;
use crate::plan::behind;
use crate::{Code, ControlError, Error};

pub(crate) use deposit::{
    create as create_deposit, entrust, open as open_deposit, remove as remove_deposit,
    update as update_deposit,
};
pub(crate) use find::find;
pub(crate) use guest::state_guests;
pub(crate) use network::{create as create_network, remove as remove_network};
pub(crate) use service::{
    create as create_service, remove as remove_service, rollback as rollback_service,
    update as update_service,
};

/// Why a node cannot become a manager, and what to do.
pub(crate) const ONE_MANAGER: &str = "the embedded store serves exactly one manager, so this node cannot be one: several managers need a \
     store that they share (--store etcd://...), which this version does not have. Leave the node a worker";
/// Nodes renew their certificates at half life; shorter lives than SwarmKit's shortest serve nobody.
const CERTIFICATE_EXPIRY_MIN: std::time::Duration = std::time::Duration::from_secs(3600);

/// A service that was created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    pub id: ServiceId,
    pub warnings: Vec<String>,
}

/// SwarmKit's answer to an update of an object that changed since it was read.
fn in_sequence(held: u64, given: u64) -> Result<(), ControlError> {
    if held == given { Ok(()) } else { Err(ControlError::new(Code::OutOfSequence, "update out of sequence")) }
}

pub(crate) fn update_node(
    draft: &mut Draft,
    id: &NodeId,
    version: u64,
    spec: NodeSpec,
) -> Result<(), ControlError> {
    let state = draft.state();
    let node = state.node(id).ok_or_else(|| ControlError::not_found("node", id.as_str()))?;
    in_sequence(node.meta.version, version)?;
    let manages = |node: &Node| node.spec.role == NodeRole::Manager;
    let managers = state.nodes().filter(|node| manages(node)).count();
    if manages(node) && spec.role == NodeRole::Worker && managers == 1 {
        let text = "attempting to demote the last manager of the swarm";
        return Err(ControlError::new(Code::FailedPrecondition, text));
    }
    if !manages(node) && spec.role == NodeRole::Manager {
        return Err(ControlError::new(Code::Unimplemented, ONE_MANAGER));
    }
    let mut node = Node::clone(node);
    node.spec = spec;
    draft.put(Object::Node(node));
    Ok(())
}

/// Takes a node out of the cluster; its tasks are lost with it.
pub(crate) fn remove_node(draft: &mut Draft, id: &NodeId, force: bool) -> Result<(), ControlError> {
    let state = draft.state();
    let node = state.node(id).ok_or_else(|| ControlError::not_found("node", id.as_str()))?;
    let refused = |text: String| Err(ControlError::new(Code::FailedPrecondition, text));
    if node.spec.role == NodeRole::Manager {
        return refused(format!(
            "node {id} is a cluster manager and is a member of the raft cluster. It must be demoted to worker \
             before removal"
        ));
    }
    if !force && !node.is_down() {
        return refused(format!("node {id} is not down and can't be removed"));
    }
    draft.remove(ObjectKey::Node(id.clone()));
    Ok(())
}

/// Join tokens that are to be replaced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rotate {
    pub worker_token: bool,
    pub manager_token: bool,
}

pub(crate) fn update_cluster(
    draft: &mut Draft,
    now: Timestamp,
    version: u64,
    spec: ClusterSpec,
    rotate: Rotate,
    key: &ClusterKey,
) -> Result<(), ControlError> {
    let cluster = draft.state().cluster().ok_or_else(|| ControlError::not_found("cluster", "default"))?;
    in_sequence(cluster.meta.version, version)?;
    if spec.heartbeat_period < std::time::Duration::from_secs(1) {
        return Err(ControlError::invalid("heartbeat period cannot be less than 1 second"));
    }
    if spec.certificate_expiry < CERTIFICATE_EXPIRY_MIN {
        return Err(ControlError::invalid("minimum certificate expiry time is: 1h0m0s"));
    }
    let mut cluster = Cluster::clone(cluster);
    if spec.force_rotate != cluster.spec.force_rotate {
        if cluster.next_authority.is_some() {
            return Err(still_rotating(draft.state()));
        }
        cluster.next_authority = Some(new_authority(key, now).map_err(Error::Ca)?);
    }
    cluster.spec = spec;
    let wanted = [(rotate.worker_token, NodeRole::Worker), (rotate.manager_token, NodeRole::Manager)];
    for (_, role) in wanted.into_iter().filter(|(wanted, _)| *wanted) {
        rotate_token(&mut cluster.authority, role, key).map_err(Error::Ca)?;
    }
    draft.put(Object::Cluster(cluster));
    Ok(())
}

/// One rotation at a time: a third root would be trusted by those who are here, and not by those away.
fn still_rotating(state: &State) -> ControlError {
    let behind: Vec<&str> = behind(state).map(|node| node.description.hostname.as_str()).collect();
    let text = format!(
        "the certificate authority is being rotated already: it is done when these nodes have come back, or have \
         been removed: {}",
        behind.join(", ")
    );
    ControlError::new(Code::FailedPrecondition, text)
}

#[cfg(test)]
mod tests;
