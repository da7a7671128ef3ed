//! Secrets and configs, and the credentials of services: values that the cluster keeps for its tasks.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{DepositId, Labels, Meta, Sealed};

/// A value that is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Deposit {
    pub id: DepositId,
    pub meta: Meta,
    pub spec: DepositSpec,
    /// Never changes: whoever wants another value makes another deposit.
    pub value: Sealed,
}

/// What it is: kinds differ in who may read the value, in how long it may be, and in their names, which do not
/// meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DepositKind {
    /// Nobody but the tasks that name it.
    Secret,
    /// Users, too.
    Config,
    /// Nobody but the nodes of a service's tasks, which show it to the registry of its image. Users do not
    /// see that there is such a thing, and it goes with its service.
    Credentials,
}

impl DepositKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Secret => "secret",
            Self::Config => "config",
            Self::Credentials => "credentials",
        }
    }
}

impl fmt::Display for DepositKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a user says of a deposit, its value aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DepositSpec {
    pub kind: DepositKind,
    pub name: String,
    #[serde(default)]
    pub labels: Labels,
    /// The value has placeholders, filled in for each task.
    #[serde(default)]
    pub templated: bool,
}

/// A deposit as a task's container finds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DepositReference {
    pub deposit: DepositId,
    /// The deposit's name, as the user gave it.
    pub name: String,
    pub file: DepositFile,
}

/// The file that holds a deposit's value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DepositFile {
    /// A path, or for a secret a name below [`SECRETS_DIR`].
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
}

/// Where a container finds secrets that ask for no other place.
pub const SECRETS_DIR: &str = "/run/secrets";
