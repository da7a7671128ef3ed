//! Whether this node is to be sent traffic from outside. Pure.
//!
//! A manager that cannot be reached is no reason against it: the node goes on serving the tables it has, and if
//! every node went out of service with the manager, nothing would be left to serve.

/// What counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The daemon has been told to stop.
    pub stopping: bool,
    pub member: bool,
    /// Managers say that the node is no member any more.
    pub refused: bool,
    pub drained: bool,
    /// A table of the network that carries published ports is in force.
    pub ports_in_force: bool,
}

/// Why a node is to be sent no traffic from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OutOfService {
    #[error("the node's daemon is stopping")]
    Stopping,
    #[error("the node is in no cluster")]
    NoMember,
    #[error("the node was removed from its cluster")]
    Removed,
    #[error("the node is drained")]
    Drained,
    #[error("the published ports are not in force on the node")]
    NoPorts,
}

pub(crate) fn judge(facts: Facts) -> Result<(), OutOfService> {
    match facts {
        Facts { stopping: true, .. } => Err(OutOfService::Stopping),
        Facts { member: false, .. } => Err(OutOfService::NoMember),
        Facts { refused: true, .. } => Err(OutOfService::Removed),
        Facts { drained: true, .. } => Err(OutOfService::Drained),
        Facts { ports_in_force: false, .. } => Err(OutOfService::NoPorts),
        Facts { .. } => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_reason_is_enough_and_the_most_final_one_is_told() {
        let well = Facts { member: true, ports_in_force: true, ..Facts::default() };
        assert_eq!(judge(well), Ok(()));
        assert_eq!(judge(Facts { ports_in_force: false, ..well }), Err(OutOfService::NoPorts));
        assert_eq!(judge(Facts { drained: true, ports_in_force: false, ..well }), Err(OutOfService::Drained));
        assert_eq!(judge(Facts { refused: true, drained: true, ..well }), Err(OutOfService::Removed));
        assert_eq!(judge(Facts { member: false, drained: true, ..well }), Err(OutOfService::NoMember));
        assert_eq!(judge(Facts { stopping: true, ..Facts::default() }), Err(OutOfService::Stopping));
    }
}
