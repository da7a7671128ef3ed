//! Networks.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Unsupported;
use super::create::EndpointConfig;
use super::service::Map;

/// `POST /networks/create`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Create {
    pub(crate) name: Option<String>,
    pub(crate) driver: Option<String>,
    pub(crate) scope: Option<String>,
    #[serde(rename = "EnableIPv6")]
    pub(crate) enable_ipv6: Option<bool>,
    /// API 1.48.
    #[serde(rename = "EnableIPv4")]
    pub(crate) enable_ipv4: Option<bool>,
    #[serde(rename = "IPAM")]
    pub(crate) ipam: Option<IpamIn>,
    pub(crate) internal: Option<bool>,
    pub(crate) attachable: Option<bool>,
    pub(crate) ingress: Option<bool>,
    pub(crate) config_only: Option<bool>,
    pub(crate) config_from: Option<ConfigFrom>,
    pub(crate) options: Option<Map>,
    pub(crate) labels: Option<Map>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct IpamIn {
    pub(crate) driver: Option<String>,
    pub(crate) options: Unsupported,
    pub(crate) config: Option<Vec<IpamConfigIn>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct IpamConfigIn {
    pub(crate) subnet: Option<String>,
    #[serde(rename = "IPRange")]
    pub(crate) ip_range: Option<String>,
    pub(crate) gateway: Option<String>,
    #[serde(rename = "AuxiliaryAddresses")]
    pub(crate) reserved: Option<Map>,
}

/// `POST /networks/{id}/connect`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Connect {
    pub(crate) container: Option<String>,
    pub(crate) endpoint_config: Option<EndpointConfig>,
}

/// `POST /networks/{id}/disconnect`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Disconnect {
    pub(crate) container: Option<String>,
    pub(crate) force: Option<bool>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Created {
    #[serde(rename = "Id")]
    pub(crate) id: String,
    #[serde(rename = "Warning")]
    pub(crate) warning: String,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Network {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) created: String,
    pub(crate) scope: &'static str,
    pub(crate) driver: &'static str,
    #[serde(rename = "EnableIPv6")]
    pub(crate) enable_ipv6: bool,
    #[serde(rename = "IPAM")]
    pub(crate) ipam: Ipam,
    pub(crate) internal: bool,
    pub(crate) attachable: bool,
    pub(crate) ingress: bool,
    pub(crate) config_from: ConfigFrom,
    pub(crate) config_only: bool,
    /// `null` for a network this node has no part in.
    pub(crate) containers: Option<BTreeMap<String, Endpoint>>,
    pub(crate) options: Option<Map>,
    pub(crate) labels: Option<Map>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) peers: Vec<Peer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) services: Option<BTreeMap<String, ServiceInfo>>,
}

#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Ipam {
    pub(crate) driver: &'static str,
    pub(crate) options: Option<Map>,
    pub(crate) config: Option<Vec<IpamConfig>>,
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct IpamConfig {
    #[serde(rename = "Subnet")]
    pub(crate) subnet: String,
    #[serde(rename = "IPRange", skip_serializing_if = "Option::is_none")]
    pub(crate) ip_range: Option<String>,
    #[serde(rename = "Gateway", skip_serializing_if = "Option::is_none")]
    pub(crate) gateway: Option<String>,
    #[serde(rename = "AuxiliaryAddresses", skip_serializing_if = "Option::is_none")]
    pub(crate) reserved: Option<Map>,
}

/// The configuration that a network is made from; empty: none.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct ConfigFrom {
    pub(crate) network: String,
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct Endpoint {
    #[serde(rename = "Name")]
    pub(crate) name: String,
    #[serde(rename = "EndpointID")]
    pub(crate) endpoint: String,
    #[serde(rename = "MacAddress")]
    pub(crate) mac: String,
    #[serde(rename = "IPv4Address")]
    pub(crate) ipv4: String,
    #[serde(rename = "IPv6Address")]
    pub(crate) ipv6: String,
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct Peer {
    #[serde(rename = "Name")]
    pub(crate) name: String,
    #[serde(rename = "IP")]
    pub(crate) address: String,
}

/// A service as `network inspect --verbose` shows it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ServiceInfo {
    #[serde(rename = "VIP")]
    pub(crate) vip: String,
    #[serde(rename = "Ports")]
    pub(crate) ports: Vec<String>,
    #[serde(rename = "LocalLBIndex")]
    pub(crate) local_index: u32,
    #[serde(rename = "Tasks")]
    pub(crate) tasks: Vec<TaskInfo>,
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct TaskInfo {
    #[serde(rename = "Name")]
    pub(crate) name: String,
    #[serde(rename = "EndpointID")]
    pub(crate) endpoint: String,
    #[serde(rename = "EndpointIP")]
    pub(crate) address: String,
    #[serde(rename = "Info")]
    pub(crate) info: Map,
}

#[derive(Debug, Serialize)]
pub(crate) struct Pruned {
    #[serde(rename = "NetworksDeleted")]
    pub(crate) deleted: Option<Vec<String>>,
}
