//! What nodes and managers say to each other: generated frames, the coding of the nouns inside them,
//! and who may say it.
//!
//! One transport serves every node: mutual TLS over TCP, or a unix socket on the manager's own node.
//! There is no in-process short cut. [`identity`] is who a certificate says its holder is, [`tls`] the
//! four ways to stand on a connection, [`token`] what lets a machine and a cluster tell each other.
#![forbid(unsafe_code)]

pub mod identity;
pub mod tls;
pub mod token;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use shoal_model::{NetworkId, TableVersion};

/// Frames and service stubs generated from `proto/session.proto`.
#[allow(clippy::unwrap_used, unreachable_pub, missing_docs)]
pub mod session {
    tonic::include_proto!("shoal.session.v1");
}

/// Frames and service stubs generated from `proto/cluster.proto`.
#[allow(clippy::unwrap_used, unreachable_pub, missing_docs)]
pub mod cluster {
    tonic::include_proto!("shoal.cluster.v1");
}

/// Where managers serve nodes, if nothing else is said: Docker's port.
pub const DEFAULT_PORT: u16 = 2377;

/// The newest session protocol this build speaks.
pub const PROTOCOL_MAX: u32 = 1;
/// The oldest session protocol this build speaks.
pub const PROTOCOL_MIN: u32 = 1;

/// Largest frame either side accepts, in bytes. The table of a network with 65,000 endpoints fits.
pub const MAX_FRAME_BYTES: usize = 64 << 20;

/// A payload that is not the noun it should be.
#[derive(Debug, thiserror::Error)]
#[error("malformed {noun}")]
pub struct MalformedPayload {
    noun: &'static str,
    #[source]
    source: serde_json::Error,
}

/// A noun as it travels inside a frame.
pub fn encode<T: Serialize>(noun: &T) -> Bytes {
    // Model nouns have string keys and no failing serialisers, so this cannot fail.
    serde_json::to_vec(noun).map(Bytes::from).unwrap_or_default()
}

/// The inverse of [`encode`].
pub fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, MalformedPayload> {
    serde_json::from_slice(payload)
        .map_err(|source| MalformedPayload { noun: std::any::type_name::<T>(), source })
}

/// The protocol both sides speak, the newest possible; `None` when there is none.
pub fn negotiate(min: u32, max: u32) -> Option<u32> {
    let newest = max.min(PROTOCOL_MAX);
    (newest >= min.max(PROTOCOL_MIN)).then_some(newest)
}

impl From<TableVersion> for session::Version {
    fn from(version: TableVersion) -> Self {
        Self { epoch: version.epoch, revision: version.revision }
    }
}

impl From<session::Version> for TableVersion {
    fn from(version: session::Version) -> Self {
        Self { epoch: version.epoch, revision: version.revision }
    }
}

/// Without what is to be kept secret.
impl std::fmt::Debug for session::Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Value")
            .field("deposit_id", &self.deposit_id)
            .field("gone", &self.gone)
            .finish_non_exhaustive()
    }
}

impl session::TableAck {
    pub fn new(network: &NetworkId, version: TableVersion) -> Self {
        Self { network_id: network.to_string(), version: Some(version.into()) }
    }

    /// The acknowledged network and version; a missing version is version zero.
    pub fn parts(&self) -> (NetworkId, TableVersion) {
        (NetworkId::new(&self.network_id), self.version.map(Into::into).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn negotiation_takes_the_newest_common_version() {
        assert_eq!(negotiate(1, 1), Some(1));
        assert_eq!(negotiate(1, 9), Some(PROTOCOL_MAX));
        assert_eq!(negotiate(PROTOCOL_MAX + 1, PROTOCOL_MAX + 3), None);
    }

    #[test]
    fn rubbish_names_the_noun_it_is_not() {
        let error = decode::<shoal_model::TaskStatus>(b"{").unwrap_err();
        assert!(error.to_string().contains("TaskStatus"), "{error}");
    }
}
