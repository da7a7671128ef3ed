//! Docker's look-up rules: full id, then exact name, then id prefix.

use std::sync::Arc;

use crate::{Code, ControlError};

/// Finds one of `candidates` (`id`, `name`, object). `kind` is what the error calls it.
pub(crate) fn find<'a, T: 'a>(
    kind: &str,
    term: &str,
    candidates: impl Iterator<Item = &'a Arc<T>>,
    id: impl Fn(&T) -> &str,
    name: impl Fn(&T) -> &str,
) -> Result<Arc<T>, ControlError> {
    let (mut named, mut prefixed) = (Vec::new(), Vec::new());
    for candidate in candidates {
        if id(candidate) == term {
            return Ok(candidate.clone());
        }
        if name(candidate) == term {
            named.push(candidate);
        } else if !term.is_empty() && id(candidate).starts_with(term) {
            prefixed.push(candidate);
        }
    }
    let (matches, by) = if named.is_empty() { (prefixed, "ID prefix") } else { (named, "name") };
    match matches.as_slice() {
        [] => Err(ControlError::not_found(kind, term)),
        [one] => Ok(Arc::clone(one)),
        many => {
            let count = many.len();
            // Networks say by what they matched.
            let found = match kind {
                "network" => format!("{count} matches found based on {by}"),
                _ => format!("{count} matches found"),
            };
            let text = format!("{kind} {term} is ambiguous ({found})");
            Err(ControlError::new(Code::InvalidArgument, text))
        }
    }
}
