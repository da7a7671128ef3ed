//! The objects a new cluster begins with.

use jiff::Timestamp;
use shoal_model::{
    Cluster, ClusterId, IdGenerator, Meta, Network, NetworkDriver, NetworkId, NetworkSpec, Node, NodeId,
    NodeRole, NodeSpec, NodeStatus, Object,
};

use crate::InitOptions;
use crate::draft::Draft;

/// The cluster, its first node and the network that carries published ports.
pub(crate) fn begin(
    draft: &mut Draft,
    options: &InitOptions,
    now: Timestamp,
    ids: &mut IdGenerator,
) -> NodeId {
    let meta = Meta::new(now);
    draft.put(Object::Cluster(Cluster {
        id: ClusterId::new(ids.object_id()),
        meta,
        spec: options.spec.clone(),
        epoch: u64::from_be_bytes(ids.bytes()),
    }));
    let node = NodeId::new(ids.object_id());
    let mut description = options.description.clone();
    if description.hostname.is_empty() {
        description.hostname.clone_from(&options.node_name);
    }
    draft.put(Object::Node(Node {
        id: node.clone(),
        meta,
        spec: NodeSpec {
            name: String::new(),
            labels: Default::default(),
            role: NodeRole::Manager,
            availability: options.availability,
        },
        description,
        status: NodeStatus::unheard(options.advertise, now),
        data_path_address: options.data_path_address,
        ingress: None,
    }));
    draft.put(Object::Network(Network {
        id: NetworkId::new(ids.object_id()),
        meta,
        spec: NetworkSpec {
            name: "ingress".to_owned(),
            labels: Default::default(),
            driver: NetworkDriver::Overlay,
            options: Default::default(),
            internal: false,
            attachable: false,
            ingress: true,
            ipv6: false,
            pools: Vec::new(),
        },
        state: None,
    }));
    node
}
