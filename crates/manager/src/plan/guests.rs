//! Plain containers on the cluster's networks: those whose node is gone leave, and what they left is
//! handed out again when no node sends there any more.

use std::sync::Arc;

use shoal_model::{Attachment, Guest, NodeId, Object, ObjectKey};

use super::Planner;
use super::release::rest;

pub(super) fn plan(planner: &mut Planner<'_>) {
    let guests: Vec<Arc<Guest>> = planner.state().guests().cloned().collect();
    for guest in guests {
        let mut next = Guest::clone(&guest);
        // A node that is down may come back, and its containers with it: they keep their places.
        let node = planner.state().node(&guest.node).cloned();
        if node.is_none_or(|node| planner.is_lost(&node)) {
            next.leaving.append(&mut next.attachments);
        }
        let left = std::mem::take(&mut next.leaving);
        next.leaving = left.into_iter().filter(|at| !is_released(planner, &guest, at)).collect();
        if next.attachments.is_empty() && next.leaving.is_empty() {
            planner.draft.remove(ObjectKey::Guest(guest.id.clone()));
        } else {
            planner.draft.put(Object::Guest(next));
        }
    }
}

/// Nobody sends to the place any more, but perhaps nodes that are down: for them its addresses rest.
fn is_released(planner: &mut Planner<'_>, guest: &Guest, at: &Attachment) -> bool {
    let place = (guest.id.clone(), at.network.clone());
    let Some(holders) = planner.observed.guests_held_by.get(&place).cloned() else { return false };
    let holders = planner.possible_holders(holders);
    let down = |node: &NodeId| planner.state().node(node).is_some_and(|node| node.is_down());
    if !holders.iter().all(down) {
        return false;
    }
    if !holders.is_empty() {
        rest(planner, at, &holders);
    }
    true
}
