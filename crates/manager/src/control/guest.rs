//! Plain containers that want to be on the cluster's networks.

use std::net::IpAddr;

use shoal_model::{
    Attachment, Guest, GuestAnswer, GuestRequest, IdGenerator, Meta, Network, NetworkId, NodeId, Object,
    PlaceAnswer, PlaceRequest, Refusal, RefusalReason,
};

use super::find::find;
use crate::Code;
use crate::draft::Draft;
use crate::plan::{Addresses, Now, Spot, WantedPlace, allocate_place};

/// Takes in everything that a node's plain containers want now. What they have and do not want any
/// more is left; what they want is given or refused, network by network. Saying the same again
/// changes nothing.
pub(crate) fn state_guests(
    draft: &mut Draft,
    now: Now,
    ids: &mut IdGenerator,
    node: &NodeId,
    wanted: &[GuestRequest],
) -> Vec<GuestAnswer> {
    let known: Vec<_> = draft.state().node_guests(node).cloned().collect();
    for guest in known.iter().filter(|guest| wanted.iter().all(|request| request.id != guest.id)) {
        let mut next = Guest::clone(guest);
        next.leaving.append(&mut next.attachments);
        draft.put(Object::Guest(next));
    }
    let mut addresses = Addresses::default();
    wanted.iter().map(|request| answer(draft, now, ids, &mut addresses, node, request)).collect()
}

fn answer(
    draft: &mut Draft,
    now: Now,
    ids: &mut IdGenerator,
    addresses: &mut Addresses,
    node: &NodeId,
    request: &GuestRequest,
) -> GuestAnswer {
    let known = draft.state().guest(&request.id).map(|guest| Guest::clone(guest));
    let refuse_all = |refusal: Refusal| GuestAnswer {
        id: request.id.clone(),
        places: request.places.iter().map(|_| PlaceAnswer::Refused(refusal.clone())).collect(),
    };
    let mut guest = match known {
        Some(guest) if guest.node == *node => guest,
        Some(guest) => {
            let text = format!("container {} belongs to node {}", request.id, guest.node);
            return refuse_all(refusal(RefusalReason::Unavailable, text));
        }
        None => Guest {
            id: request.id.clone(),
            meta: Meta::new(now.wall),
            node: node.clone(),
            name: request.name.clone(),
            attachments: Vec::new(),
            leaving: Vec::new(),
        },
    };
    guest.name.clone_from(&request.name);
    // What is not asked for again is left.
    guest.leaving.append(&mut guest.attachments);
    let mut places = Vec::with_capacity(request.places.len());
    for wanted in &request.places {
        places.push(match place(draft, ids, addresses, &mut guest, wanted) {
            Ok(attachment) => {
                guest.attachments.push(attachment.clone());
                // Put at once: the next place must find its addresses taken.
                draft.put(Object::Guest(guest.clone()));
                PlaceAnswer::Attached(attachment)
            }
            Err(refusal) => PlaceAnswer::Refused(refusal),
        });
    }
    if !guest.attachments.is_empty() || !guest.leaving.is_empty() {
        draft.put(Object::Guest(guest));
    }
    GuestAnswer { id: request.id.clone(), places }
}

fn place(
    draft: &mut Draft,
    ids: &mut IdGenerator,
    addresses: &mut Addresses,
    guest: &mut Guest,
    wanted: &PlaceRequest,
) -> Result<Attachment, Refusal> {
    let network = network(draft, wanted)?;
    if guest.attachment(&network).is_some() {
        let text = format!("container {} is on network {} twice", guest.id, wanted.network);
        return Err(refusal(RefusalReason::Address, text));
    }
    let fits = |at: &Attachment| {
        at.network == network
            && wanted.address.is_none_or(|address| at.address.addr() == address)
            && wanted.address_v6.is_none_or(|address| at.address_v6.map(|at| at.addr()) == Some(address))
            && wanted.mac.is_none_or(|mac| at.mac == mac)
    };
    if let Some(present) = guest.leaving.iter().position(fits) {
        let mut attachment = guest.leaving.remove(present);
        attachment.aliases.clone_from(&wanted.aliases);
        return Ok(attachment);
    }
    let held = wanted.held.as_ref().filter(|held| held.network == network);
    let given = |asked: Option<IpAddr>, held: Option<IpAddr>| asked.or(held);
    let wanted = WantedPlace {
        aliases: wanted.aliases.clone(),
        address: given(wanted.address, held.map(|held| held.address.addr())),
        address_v6: given(wanted.address_v6, held.and_then(|held| held.address_v6).map(|at| at.addr())),
        mac: wanted.mac.or(held.map(|held| held.mac)),
    };
    let spot = Spot { network: &network, node: Some(&guest.node) };
    allocate_place(draft, addresses, spot, &wanted, ids)
        .map_err(|error| refusal(RefusalReason::Address, error.to_string()))
}

/// The network that is meant, if plain containers may join it.
fn network(draft: &Draft, wanted: &PlaceRequest) -> Result<NetworkId, Refusal> {
    let held = wanted.held.as_ref().and_then(|held| draft.state().network(&held.network)).cloned();
    let found = match held {
        Some(network) => network,
        None => find(
            "network",
            &wanted.network,
            draft.state().networks(),
            |it: &Network| it.id.as_str(),
            |it| &it.spec.name,
        )
        .map_err(|error| {
            let reason = match error.code {
                Code::NotFound => RefusalReason::NotFound,
                _ => RefusalReason::Unavailable,
            };
            refusal(reason, error.message)
        })?,
    };
    if !found.spec.attachable {
        let text = format!("network {} not manually attachable", found.spec.name);
        return Err(refusal(RefusalReason::NotAttachable, text));
    }
    Ok(found.id.clone())
}

fn refusal(reason: RefusalReason, message: String) -> Refusal {
    Refusal { reason, message }
}

#[cfg(test)]
mod tests;
