//! The nouns of Shoal: ids, specs, objects, task states and network tables.
//!
//! Everything here is plain data with pure functions over it: no I/O, no clock, no async runtime.
//! Managers, agents, the API and the resolver all speak in these words; `docs/nomenclature.md`
//! defines each of them.
#![forbid(unsafe_code)]

mod address;
mod authority;
mod balance;
mod claim;
mod deposit;
mod driver;
mod guest;
mod id;
mod log;
mod measure;
mod name;
mod object;
mod pool;
mod spec;
mod table;
mod task;
pub mod trace;
mod update;
mod verify;

pub use address::{MacAddr, ParseMacError};
pub use authority::{Authority, CertificateInfo, RootCertificate, Sealed};
pub use balance::{Addressed, Admission, Backends, BadLabel, Balance, Bind, Policy, SHARES, shares};
pub use claim::{Claim, claims};
pub use deposit::{Deposit, DepositFile, DepositKind, DepositReference, DepositSpec, SECRETS_DIR};
pub use driver::{
    BRIDGE_NAME, BridgeConfig, DEFAULT_BRIDGE, Driver, HOST_BINDING, ICC, MASQUERADE, MTU_OPTION,
    MacvlanConfig, MacvlanMode, NodeDriver, PARENT_OPTION, mtu,
};
pub use guest::{Guest, GuestAnswer, GuestRequest, PlaceAnswer, PlaceRequest, Refusal, RefusalReason};
pub use id::{
    ClusterId, ContainerId, DepositId, EndpointId, IdGenerator, NetworkId, NodeId, ServiceId, TaskId,
};
pub use log::{LogEntry, LogSelector, LogSource};
pub use measure::NameCounts;
pub use name::invent_name;
pub use object::{
    Attachment, Cluster, Failure, JobStatus, ManagerAddresses, Meta, Network, NetworkState, Node,
    NodeCondition, NodeDescription, NodeStatus, Object, ObjectKey, Resting, Service, ServiceEndpoint, Task,
    VirtualIp,
};
pub use pool::{AddressPool, check_pool};
pub use spec::*;
pub use table::{
    Changes, EndpointEntry, NetworkTable, NodeEntry, ServiceEntry, Shown, TableConfig, TableDelta,
    TableMismatch, TableVersion,
};
pub use task::{ContainerStatus, TaskState, TaskStatus};
pub use update::{Place, UpdateState, UpdateStatus};
pub use verify::{ClusterReport, DriftCounts, KindCounts, NodeReport, NodeVerdict, TableCounts, TableReport};
