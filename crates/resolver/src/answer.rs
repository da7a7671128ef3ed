//! stub
use crate::View;
/// How a query came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport { Udp, Tcp }
/// What is to be done with a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict { Local, Forward, Ignore }
/// stub
pub fn answer(_view: &View, _packet: &[u8], _transport: Transport, _rng: &mut impl rand::Rng, _out: &mut Vec<u8>) -> Verdict { Verdict::Ignore }
