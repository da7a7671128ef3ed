//! What a user would notice, seen with the user's own tools. Each test owns its node.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod arrows;
mod cli;
mod cluster;
mod containers;
mod dns;
mod docs;
mod drain;
mod drift;
mod external;
mod filters;
mod firewalls;
mod floods;
mod full_disk;
mod guests;
mod host;
mod host_ports;
mod images;
mod ingress;
mod ipv6;
mod jobs;
mod join;
mod leftovers;
mod locals;
mod macvlan;
mod metrics;
mod names;
mod networks;
mod options;
mod overlay;
mod ports;
mod published;
mod quickstart;
mod refusals;
mod rude_clients;
mod runtime;
mod secrets;
mod services;
mod stack;
mod told;
mod trace;
mod vip;
mod volumes;
mod walkthrough;
mod whatever;
