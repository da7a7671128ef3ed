//! Secrets and configs: creation, labels, removal, and the references of services to them. SwarmKit's rules and
//! texts (`manager/controlapi/secret.go`, `config.go`, `service.go`).

use std::collections::BTreeMap;

use shoal_model::{
    ContainerSpec, Deposit, DepositId, DepositKind, DepositReference, DepositSpec, IdGenerator, Labels, Meta,
    Object, ObjectKey, Service, ServiceId,
};
use shoal_store::State;

use super::in_sequence;
use crate::ca::{CaError, ClusterKey};
use crate::draft::Draft;
use crate::plan::Now;
use crate::{Code, ControlError, Error};

const NAME_MAX: usize = 64;

/// A value has fewer bytes than this.
fn value_bound(kind: DepositKind) -> usize {
    match kind {
        DepositKind::Secret => 500 * 1024,
        DepositKind::Config => 1000 * 1024,
        DepositKind::Credentials => 64 * 1024,
    }
}

/// Stores a value, sealed, under a name that nothing else of its kind has.
pub(crate) fn create(
    draft: &mut Draft,
    now: Now,
    ids: &mut IdGenerator,
    spec: DepositSpec,
    value: &[u8],
    key: &ClusterKey,
) -> Result<DepositId, ControlError> {
    check_name(&spec.name)?;
    let (kind, bound) = (spec.kind, value_bound(spec.kind));
    if value.is_empty() || value.len() >= bound {
        let text = format!("{kind} data must be larger than 0 and less than {bound} bytes");
        return Err(ControlError::invalid(text));
    }
    let taken = |held: &Deposit| held.spec.name.eq_ignore_ascii_case(&spec.name);
    if draft.state().deposits(kind).any(|held| taken(held)) {
        let text = format!("{kind} {} already exists", spec.name);
        return Err(ControlError::new(Code::AlreadyExists, text));
    }
    let id = DepositId::new(ids.object_id());
    let value = key.seal(&purpose(&id), value).map_err(Error::Ca)?;
    let deposit = Deposit { id: id.clone(), meta: Meta::new(now.wall), spec, value };
    draft.put(Object::Deposit(deposit));
    Ok(id)
}

/// Gives a service what its image's registry is to be shown; the same again changes nothing.
pub(crate) fn entrust(
    draft: &mut Draft,
    now: Now,
    ids: &mut IdGenerator,
    id: &ServiceId,
    credentials: &str,
    key: &ClusterKey,
) -> Result<(), ControlError> {
    let service = draft.state().service(id).cloned();
    let service = service.ok_or_else(|| ControlError::not_found("service", id.as_str()))?;
    let held = service.credentials.as_ref().and_then(|held| draft.state().deposit(held));
    if held.is_some_and(|held| open(held, key).is_ok_and(|held| held == credentials.as_bytes())) {
        return Ok(());
    }
    let name = format!("service-{}", ids.object_id());
    let kind = DepositKind::Credentials;
    let spec = DepositSpec { kind, name, labels: Labels::new(), templated: false };
    let deposit = create(draft, now, ids, spec, credentials.as_bytes(), key)?;
    draft.put(Object::Service(Service { credentials: Some(deposit), ..Service::clone(&service) }));
    Ok(())
}

/// The value of a deposit.
pub(crate) fn open(deposit: &Deposit, key: &ClusterKey) -> Result<Vec<u8>, CaError> {
    key.open(&purpose(&deposit.id), &deposit.value)
}

/// A sealed value opens under its own id only.
fn purpose(id: &DepositId) -> String {
    format!("value of {id}")
}

/// Changes the labels, which is all that can be changed. `spec` and `value`, where given, say the same as what
/// is stored.
pub(crate) fn update(
    draft: &mut Draft,
    id: &DepositId,
    version: u64,
    spec: DepositSpec,
    value: Option<&[u8]>,
    key: &ClusterKey,
) -> Result<(), ControlError> {
    let held = held(draft.state(), spec.kind, id)?;
    in_sequence(held.meta.version, version)?;
    let same = |value: &[u8]| open(&held, key).is_ok_and(|present| present == value);
    let declared = DepositSpec { labels: Labels::new(), ..held.spec.clone() };
    if (DepositSpec { labels: Labels::new(), ..spec.clone() }) != declared || !value.is_none_or(same) {
        return Err(ControlError::invalid("only updates to Labels are allowed"));
    }
    draft.put(Object::Deposit(Deposit { spec, ..held }));
    Ok(())
}

/// Removes a deposit that no service names.
pub(crate) fn remove(draft: &mut Draft, kind: DepositKind, id: &DepositId) -> Result<(), ControlError> {
    let state = draft.state();
    let held = held(state, kind, id)?;
    let names = |container: &ContainerSpec| container.deposits().any(|reference| reference.deposit == *id);
    let users = state.services().filter(|service| names(&service.spec.task.container));
    let users: Vec<&str> = users.map(|service| service.spec.name.as_str()).collect();
    if !users.is_empty() {
        let (name, word) = (&held.spec.name, if users.len() == 1 { "service" } else { "services" });
        let text = format!("{kind} '{name}' is in use by the following {word}: {}", users.join(", "));
        return Err(ControlError::invalid(text));
    }
    draft.remove(ObjectKey::Deposit(id.clone()));
    Ok(())
}

fn held(state: &State, kind: DepositKind, id: &DepositId) -> Result<Deposit, ControlError> {
    let held = state.deposit(id).filter(|deposit| deposit.spec.kind == kind);
    held.map(|held| Deposit::clone(held)).ok_or_else(|| ControlError::not_found(kind.as_str(), id.as_str()))
}

/// `^[a-zA-Z0-9]+(?:[a-zA-Z0-9-_.]*[a-zA-Z0-9])?$`
fn check_name(name: &str) -> Result<(), ControlError> {
    if name.is_empty() {
        return Err(ControlError::invalid("name must be provided"));
    }
    let plain = |c: char| c.is_ascii_alphanumeric();
    let within = name.chars().all(|c| plain(c) || "-_.".contains(c));
    if name.len() > NAME_MAX || !within || !name.starts_with(plain) || !name.ends_with(plain) {
        return Err(ControlError::invalid(
            "invalid name, only 64 [a-zA-Z0-9-_.] characters allowed, and the start and end character must be \
             [a-zA-Z0-9]",
        ));
    }
    Ok(())
}

/// What a service names is there, under that name, and every file is one deposit's.
pub(super) fn check_references(state: &State, container: &ContainerSpec) -> Result<(), ControlError> {
    check_kind(state, DepositKind::Secret, &container.secrets)?;
    check_kind(state, DepositKind::Config, &container.configs)
}

fn check_kind(state: &State, kind: DepositKind, references: &[DepositReference]) -> Result<(), ControlError> {
    let mut files: BTreeMap<&str, &str> = BTreeMap::new();
    for DepositReference { deposit, name, file } in references {
        if deposit.as_str().is_empty() || name.is_empty() {
            return Err(ControlError::invalid(format!("malformed {kind} reference")));
        }
        if file.name.is_empty() {
            let text = format!("malformed file {kind} reference, invalid target file name provided");
            return Err(ControlError::invalid(text));
        }
        if let Some(other) = files.insert(&file.name, name) {
            let target = &file.name;
            let text =
                format!("{kind} references '{other}' and '{name}' have a conflicting target: '{target}'");
            return Err(ControlError::invalid(text));
        }
    }
    let is_there = |reference: &&DepositReference| {
        let found = state.deposit(&reference.deposit).filter(|deposit| deposit.spec.kind == kind);
        found.is_some_and(|deposit| deposit.spec.name == reference.name)
    };
    let missing = references.iter().filter(|reference| !is_there(reference));
    let missing: Vec<&str> = missing.map(|reference| reference.name.as_str()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let plural = if missing.len() == 1 { "" } else { "s" };
    Err(ControlError::invalid(format!("{kind}{plural} not found: {}", missing.join(", "))))
}

#[cfg(test)]
mod tests;
