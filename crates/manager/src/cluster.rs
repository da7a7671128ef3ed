//! The objects a new cluster begins with.

use jiff::Timestamp;
use shoal_model::{
    Authority, Cluster, ClusterId, IdGenerator, ManagerAddresses, Meta, Network, NetworkDriver, NetworkId,
    NetworkSpec, Node, NodeId, NodeRole, NodeSpec, NodeStatus, Object,
};

use crate::draft::Draft;
use crate::plan::{NoSubnet, allocate_network};
use crate::{ControlError, InitOptions};

/// The label of networks that exist so that services can name the node's own (SwarmKit's).
const PREDEFINED: &str = "com.docker.swarm.predefined";

/// The cluster, its first node, the network that carries published ports, and the one by which a service
/// names its nodes' own network stack.
pub(crate) fn begin(
    draft: &mut Draft,
    options: &InitOptions,
    authority: Authority,
    now: Timestamp,
    ids: &mut IdGenerator,
) -> NodeId {
    let meta = Meta::new(now);
    draft.put(Object::Cluster(Cluster {
        id: ClusterId::new(ids.object_id()),
        meta,
        spec: options.spec.clone(),
        epoch: u64::from_be_bytes(ids.bytes()),
        last_vni: None,
        authority,
        next_authority: None,
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
        status: NodeStatus::unheard(options.advertise.ip(), now),
        data_path_address: options.data_path_address,
        ingress: None,
        manager: Some(ManagerAddresses { listen: options.listen, advertise: options.advertise }),
        certificate: None,
    }));
    for (name, driver) in [("ingress", NetworkDriver::Overlay), ("host", NetworkDriver::Host)] {
        draft.put(Object::Network(network(NetworkId::new(ids.object_id()), meta, name, driver)));
    }
    node
}

fn network(id: NetworkId, meta: Meta, name: &str, driver: NetworkDriver) -> Network {
    let predefined = (driver == NetworkDriver::Host).then(|| (PREDEFINED.to_owned(), "true".to_owned()));
    Network {
        id,
        meta,
        spec: NetworkSpec {
            name: name.to_owned(),
            labels: predefined.into_iter().collect(),
            driver,
            options: Default::default(),
            internal: false,
            attachable: false,
            ingress: driver == NetworkDriver::Overlay,
            // Published ports answer in both families.
            ipv6: driver == NetworkDriver::Overlay,
            pools: Vec::new(),
            config_from: None,
        },
        state: None,
    }
}

/// The subnet of the network that carries published ports. A cluster whose pools have none for it is
/// better not begun: later on nothing tells why no port is ever published.
pub(crate) fn give_ingress_subnet(draft: &mut Draft, ids: &mut IdGenerator) -> Result<(), ControlError> {
    let Some(ingress) = draft.state().ingress_network().map(|network| network.id.clone()) else {
        return Ok(());
    };
    allocate_network(draft, &ingress, ids).map_err(|error| {
        let hint = match error {
            NoSubnet::PoolsExhausted => {
                ": the node has addresses or routes in all of them; choose others with --default-addr-pool"
            }
            _ => "",
        };
        ControlError::invalid(format!("ingress network: {error}{hint}"))
    })
}
