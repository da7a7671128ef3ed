//! What users ask for: looked up, validated, given defaults, and put into a draft.

mod find;
mod network;
mod service;

use shoal_model::{Cluster, ClusterSpec, Node, NodeId, NodeRole, NodeSpec, Object, ObjectKey, ServiceId};

use crate::draft::Draft;
use crate::{Code, ControlError};

pub(crate) use find::find;
pub(crate) use network::{create as create_network, remove as remove_network};
pub(crate) use service::{
    create as create_service, remove as remove_service, rollback as rollback_service,
    update as update_service,
};

/// Why a node cannot become a manager, and what to do.
pub(crate) const ONE_MANAGER: &str = "the embedded store serves exactly one manager, so this node cannot be one: several managers need a \
     store that they share (--store etcd://...), which this version does not have. Leave the node a worker";

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

pub(crate) fn update_cluster(draft: &mut Draft, version: u64, spec: ClusterSpec) -> Result<(), ControlError> {
    let cluster = draft.state().cluster().ok_or_else(|| ControlError::not_found("cluster", "default"))?;
    in_sequence(cluster.meta.version, version)?;
    if spec.heartbeat_period < std::time::Duration::from_secs(1) {
        return Err(ControlError::invalid("heartbeat period cannot be less than 1 second"));
    }
    let mut cluster = Cluster::clone(cluster);
    cluster.spec = spec;
    draft.put(Object::Cluster(cluster));
    Ok(())
}

#[cfg(test)]
mod tests;
