//! The runtime against the real containerd and kernel; needs root.
// A helper of a test fails like the test itself.
#![allow(clippy::unwrap_used)]

mod containers;
mod images;
mod support;
mod survival;
