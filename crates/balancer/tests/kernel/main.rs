//! The balancer on the real kernel, seen as a program in a sandbox sees it. Needs root.

#![allow(clippy::unwrap_used)] // a failed step is a failed test

mod answer;
mod bypass;
mod counts;
mod destroy;
mod dns;
mod lifecycle;
mod ports;
mod tcp;
mod udp;
mod world;
