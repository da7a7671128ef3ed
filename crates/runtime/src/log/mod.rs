//! A container's log: the line format, and reading it back.

mod follow;
mod line;
mod reader;

pub(crate) use follow::{has_ended, read};
pub(crate) use line::Encoder;
