//! Typed identifiers.
//!
//! Cluster objects carry Docker's 25-character base-36 ids, containers 64 hexadecimal characters, so
//! that every tool that matches on their shape keeps working.

use std::fmt;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

macro_rules! typed_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(std::sync::Arc<str>);

        impl $name {
            /// Wraps text that already is an id of this kind.
            pub fn new(text: impl AsRef<str>) -> Self {
                Self(text.as_ref().into())
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The twelve characters that Docker's client shows.
            pub fn short(&self) -> &str {
                self.0.get(..12).unwrap_or(&self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self::new(text)
            }
        }
    };
}

typed_id!(
    /// The one cluster a store describes.
    ClusterId
);
typed_id!(
    /// A machine (or network namespace) that runs a daemon.
    NodeId
);
typed_id!(
    /// A declared service.
    ServiceId
);
typed_id!(
    /// One attempt to run one container of a service.
    TaskId
);
typed_id!(
    /// A cluster-wide network.
    NetworkId
);
typed_id!(
    /// A secret or a config.
    DepositId
);
typed_id!(
    /// A container as the runtime and Docker's clients know it: 64 hexadecimal characters.
    ContainerId
);
typed_id!(
    /// One attachment point in a network table. For a task it is the task's id.
    EndpointId
);

impl From<&TaskId> for EndpointId {
    fn from(task: &TaskId) -> Self {
        Self::new(task.as_str())
    }
}

/// The only source of new ids and MAC addresses: seeded from outside, so that planning code stays
/// deterministic and a simulation can replay it.
#[derive(Debug, Clone)]
pub struct IdGenerator {
    random: StdRng,
}

impl IdGenerator {
    pub fn from_seed(seed: u64) -> Self {
        Self { random: StdRng::seed_from_u64(seed) }
    }

    /// A generator seeded by the operating system.
    pub fn from_os() -> Self {
        Self { random: StdRng::from_os_rng() }
    }

    /// 25 base-36 characters holding 128 random bits, as SwarmKit's `identity.NewID`.
    pub fn object_id(&mut self) -> String {
        const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
        let mut value: u128 = self.random.random();
        let mut text = [b'0'; 25];
        for place in text.iter_mut().rev() {
            *place = DIGITS[(value % 36) as usize];
            value /= 36;
        }
        text.iter().map(|&byte| byte as char).collect()
    }

    /// 64 hexadecimal characters, as Docker's container ids.
    pub fn container_id(&mut self) -> ContainerId {
        let bytes: [u8; 32] = self.random.random();
        ContainerId::new(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    }

    /// Random bytes for MAC addresses, table epochs and the like.
    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.random.fill(&mut bytes[..]);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_dockers_shapes() {
        let mut ids = IdGenerator::from_seed(7);
        let object = ids.object_id();
        assert_eq!(object.len(), 25);
        assert!(object.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase()));
        let container = ids.container_id();
        assert_eq!(container.as_str().len(), 64);
        assert_eq!(container.short().len(), 12);
    }

    #[test]
    fn a_seed_replays() {
        let (mut a, mut b) = (IdGenerator::from_seed(1), IdGenerator::from_seed(1));
        assert_eq!(a.object_id(), b.object_id());
        assert_ne!(a.object_id(), IdGenerator::from_seed(2).object_id());
    }
}
