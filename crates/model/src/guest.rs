//! Guests: plain containers on the cluster's networks.
//!
//! A plain container belongs to its node; the cluster only knows where it is attached. Its node states
//! what all its containers want, as often as that changes; the manager answers with what they get.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{Attachment, ContainerId, EndpointId, MacAddr, Meta, NetworkId, NodeId};

/// A plain container as the cluster knows it. It goes when nothing is left of its attachments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Guest {
    pub id: ContainerId,
    pub meta: Meta,
    pub node: NodeId,
    /// The container's name.
    pub name: String,
    /// Where it is: at most one place on each network.
    pub attachments: Vec<Attachment>,
    /// Where it was, while some node may still send there.
    #[serde(default)]
    pub leaving: Vec<Attachment>,
}

impl Guest {
    pub fn endpoint(&self) -> EndpointId {
        EndpointId::new(self.id.as_str())
    }

    pub fn attachment(&self, network: &NetworkId) -> Option<&Attachment> {
        self.attachments.iter().find(|attachment| attachment.network == *network)
    }

    /// What resolves to it on a network where it has these aliases: the container's name first.
    pub fn names(&self, attachment: &Attachment) -> Vec<String> {
        let mut names = vec![self.name.clone()];
        for alias in attachment.aliases.iter().map(String::as_str).chain([self.id.short()]) {
            if !names.iter().any(|name| name == alias) {
                names.push(alias.to_owned());
            }
        }
        names
    }
}

/// What a node wants for one of its plain containers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestRequest {
    pub id: ContainerId,
    pub name: String,
    pub places: Vec<PlaceRequest>,
}

/// One network a container wants to be on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PlaceRequest {
    /// The network's id or name, as the user wrote it.
    pub network: String,
    pub aliases: Vec<String>,
    /// What the user asks for.
    pub address: Option<IpAddr>,
    pub address_v6: Option<IpAddr>,
    pub mac: Option<MacAddr>,
    /// What the container has, from an earlier answer.
    pub held: Option<Attachment>,
}

/// What a container gets: one answer for each place, in the order of the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestAnswer {
    pub id: ContainerId,
    pub places: Vec<PlaceAnswer>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlaceAnswer {
    Attached(Attachment),
    Refused(Refusal),
}

/// Why a container cannot be on a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    pub reason: RefusalReason,
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalReason {
    /// There is no such network.
    NotFound,
    /// Plain containers may not join it.
    NotAttachable,
    /// The address asked for cannot be had.
    Address,
    /// The manager cannot say now.
    Unavailable,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_said_once_and_the_containers_own_is_first() {
        let guest = Guest {
            id: ContainerId::new("0123456789abcdef"),
            meta: Meta::new(jiff::Timestamp::UNIX_EPOCH),
            node: NodeId::new("n"),
            name: "box".to_owned(),
            attachments: Vec::new(),
            leaving: Vec::new(),
        };
        let attachment = Attachment {
            network: NetworkId::new("net"),
            address: "10.0.1.2/24".parse().unwrap(),
            address_v6: None,
            mac: "02:42:0a:00:01:02".parse().unwrap(),
            aliases: vec!["db".to_owned(), "box".to_owned(), "0123456789ab".to_owned()],
        };
        assert_eq!(guest.names(&attachment), ["box", "db", "0123456789ab"]);
    }
}
