//! Images, containers, exec and logs of one node, on containerd 1.6 and runc.
//!
//! [`Runtime`] is a client of containerd that keeps no state of its own: what exists is what
//! containerd's namespace and the container directories say, so a restarted daemon sees exactly what
//! it left. Containers outlive this process; their output is written by [`log_shim`], a process
//! per container that containerd's shim starts.
#![forbid(unsafe_code)]

mod client;
mod container;
mod error;
mod exec;
mod image;
mod lease;
mod log;
pub mod log_shim;
pub mod registry;
mod rootfs;
mod runtime;
mod spec;
pub mod volume;

pub use container::{
    Container, ContainerConfig, ContainerInput, ContainerOutput, ContainerState, Exit, Provided,
};
pub use error::{Error, Result};
pub use exec::{Exec, ExecConfig, ExecHandle, ExecInput, ExecOutput, ProbeResult};
pub use image::{History, Image, ImageConfig, ImageDeletion, ImportOptions, LayerStep, PullEvent, Pulled};
pub use runtime::{Runtime, RuntimeConfig, Versions};
