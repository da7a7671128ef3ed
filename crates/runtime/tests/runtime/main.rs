//! The runtime against the real containerd and kernel; needs root.

mod containers;
mod images;
mod support;
mod survival;
