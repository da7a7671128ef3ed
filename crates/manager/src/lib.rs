//! The manager (signatures; bodies follow).
#![forbid(unsafe_code)]
mod error;
mod manager;
pub use error::{Code, ControlError, Error};
pub use manager::{Created, InitOptions, Manager, ManagerConfig};
pub use shoal_store::State;
