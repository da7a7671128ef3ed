use super::*;
use crate::plan::tests::World;
use crate::table;
use std::time::Duration;

struct Net {
    world: World,
    node: NodeId,
    id: NetworkId,
}

fn net(nodes: usize) -> Net {
    let mut world = World::new(nodes);
    world.settle();
    let id = world.network("net", Some("10.77.0.0/28")).unwrap();
    let mut network = Network::clone(world.state.network(&id).unwrap());
    network.spec.attachable = true;
    world.put(Object::Network(network));
    world.settle();
    let node = world.state.nodes().next().unwrap().id.clone();
    Net { world, node, id }
}

fn place(network: &str) -> PlaceRequest {
    PlaceRequest { network: network.to_owned(), ..PlaceRequest::default() }
}

fn request(id: &str, places: Vec<PlaceRequest>) -> GuestRequest {
    GuestRequest { id: id.into(), name: format!("name-{id}"), places }
}

impl Net {
    fn state(&mut self, wanted: &[GuestRequest]) -> Vec<GuestAnswer> {
        let node = self.node.clone();
        self.state_as(&node, wanted)
    }

    fn state_as(&mut self, node: &NodeId, wanted: &[GuestRequest]) -> Vec<GuestAnswer> {
        self.world.control(|draft, now, ids| Ok(state_guests(draft, now, ids, node, wanted))).unwrap()
    }

    fn endpoints(&self) -> usize {
        table::derive(&self.world.state, &self.id).unwrap().endpoints.len()
    }

    /// Every node has let go of what was left.
    fn let_go(&mut self) {
        let left = self.world.state.guests().flat_map(|guest| {
            guest.leaving.iter().map(move |at| ((guest.id.clone(), at.network.clone()), Default::default()))
        });
        self.world.observed.guests_held_by = left.collect();
        self.world.settle();
        self.world.observed.guests_held_by.clear();
    }
}

#[track_caller]
fn attached(answers: &[GuestAnswer]) -> Attachment {
    match &answers[0].places[..] {
        [PlaceAnswer::Attached(attachment)] => attachment.clone(),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn refused(answers: &[GuestAnswer]) -> (RefusalReason, String) {
    match &answers[0].places[..] {
        [PlaceAnswer::Refused(refusal)] => (refusal.reason, refusal.message.clone()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_guest_is_in_the_table_by_its_names_until_it_leaves() {
    let mut net = net(1);
    let aliased = PlaceRequest { aliases: vec!["db".to_owned()], ..place("net") };
    let wanted = [request("c1", vec![aliased])];
    let given = attached(&net.state(&wanted));
    assert_eq!(attached(&net.state(&wanted)), given, "saying it again changes nothing");
    let table = table::derive(&net.world.state, &net.id).unwrap();
    let entry = table.endpoints.values().next().unwrap();
    assert_eq!(
        (&entry.names[..], entry.address),
        (&["name-c1", "db", "c1"].map(str::to_owned)[..], given.address)
    );
    assert!(table.nodes.contains_key(&net.node));
    let revision = net.world.state.revision();
    net.state(&wanted);
    assert_eq!(net.world.state.revision(), revision);
    net.state(&[]);
    assert_eq!(net.endpoints(), 0);
    assert!(net.world.state.guest(&"c1".into()).is_some(), "its address rests");
    net.let_go();
    assert!(net.world.state.guest(&"c1".into()).is_none());
}

#[test]
fn a_guest_that_comes_back_soon_has_its_place_again() {
    let mut net = net(1);
    let wanted = [request("c1", vec![place("net")])];
    let given = attached(&net.state(&wanted));
    net.state(&[]);
    assert_eq!(attached(&net.state(&wanted)), given);
    net.let_go();
    assert_eq!(net.endpoints(), 1, "what is wanted again is not let go of");
}

#[test]
fn refusals_have_dockers_words() {
    let mut net = net(1);
    net.world.network("closed", None).unwrap();
    let mut ask = |place: PlaceRequest| refused(&net.state(&[request("c1", vec![place])]));
    let closed = (RefusalReason::NotAttachable, "network closed not manually attachable".to_owned());
    assert_eq!(ask(place("closed")), closed);
    assert_eq!(ask(place("nosuch")), (RefusalReason::NotFound, "network nosuch not found".to_owned()));
    for bad in [[10, 77, 0, 0], [10, 77, 0, 15], [10, 78, 0, 1]] {
        let (reason, text) = ask(PlaceRequest { address: Some(bad.into()), ..place("net") });
        assert_eq!(reason, RefusalReason::Address);
        assert!(text.contains("It does not belong to any of this network's subnets"), "{text}");
    }
    let (_, gateway) = ask(PlaceRequest { address: Some([10, 77, 0, 1].into()), ..place("net") });
    assert_eq!(gateway, "Address already in use: 10.77.0.1 on network net");
    assert!(net.world.state.guests().next().is_none(), "a refusal leaves nothing");
}

#[test]
fn an_address_that_is_asked_for_is_given_to_one_only() {
    let mut net = net(1);
    let this = PlaceRequest { address: Some([10, 77, 0, 9].into()), ..place("net") };
    let both = [request("c1", vec![this.clone()]), request("c2", vec![this.clone()])];
    let answers = net.state(&both);
    assert_eq!(attached(&answers[..1]).address.to_string(), "10.77.0.9/28");
    assert_eq!(refused(&answers[1..]).0, RefusalReason::Address);
    // The first leaves; until it is let go of, its address rests.
    assert_eq!(refused(&net.state(&both[1..])).0, RefusalReason::Address);
    net.let_go();
    assert_eq!(attached(&net.state(&both[1..])).address.to_string(), "10.77.0.9/28");
}

#[test]
fn a_full_network_says_so() {
    let mut net = net(1);
    let many: Vec<_> = (0..14).map(|n| request(&format!("c{n}"), vec![place("net")])).collect();
    let answers = net.state(&many);
    assert_eq!(refused(&answers[13..]).1, "no available address on network net (10.77.0.0/28)");
    assert_eq!(net.endpoints(), 13);
}

#[test]
fn the_guests_of_a_lost_node_leave_and_come_back_with_what_they_hold() {
    let mut net = net(2);
    let wanted = [request("c1", vec![place("net")])];
    let given = attached(&net.state(&wanted));
    let lost = net.node.clone();
    let silent_for = |net: &mut Net, hours: u64| {
        net.world.pass(Duration::from_secs(hours * 3600));
        net.world.hear_from_nodes();
        net.world.observed.sessions.remove(&lost);
        net.world.settle();
    };
    silent_for(&mut net, 1);
    assert_eq!(net.endpoints(), 0, "a node that is down is in no table");
    net.let_go();
    assert_eq!(net.world.state.guests().count(), 1, "and keeps what it has");
    silent_for(&mut net, 30);
    net.let_go();
    assert!(net.world.state.guests().next().is_none(), "but not for ever");
    // It was only away: its container has run on, with its address.
    net.world.hear_from_nodes();
    net.world.settle();
    let held = PlaceRequest { held: Some(given.clone()), ..place("net") };
    assert_eq!(attached(&net.state(&[request("c1", vec![held.clone()])])), given);
    // Another has it by now.
    net.state(&[]);
    net.let_go();
    let other = PlaceRequest { address: Some(given.address.addr()), ..place("net") };
    let answers = net.state(&[request("c2", vec![other]), request("c1", vec![held])]);
    assert_eq!(refused(&answers[1..]).0, RefusalReason::Address);
}

#[test]
fn a_node_speaks_for_its_own_containers_only() {
    let mut net = net(2);
    let wanted = [request("c1", vec![place("net")])];
    net.state(&wanted);
    let other = net.world.state.nodes().map(|node| node.id.clone()).find(|id| *id != net.node).unwrap();
    assert_eq!(refused(&net.state_as(&other, &wanted)).0, RefusalReason::Unavailable);
    net.state_as(&other, &[]);
    assert_eq!(net.endpoints(), 1);
}

#[test]
fn a_network_with_guests_stays() {
    let mut net = net(1);
    net.state(&[request("c1", vec![place("net")])]);
    let id = net.id.clone();
    let error = net.world.control(|draft, _, _| super::super::remove_network(draft, &id)).unwrap_err();
    assert!(error.message.contains("is in use by container name-c1"), "{}", error.message);
    net.state(&[]);
    assert!(!net.world.control(|draft, _, _| super::super::remove_network(draft, &id)).unwrap());
    net.let_go();
    assert!(net.world.control(|draft, _, _| super::super::remove_network(draft, &id)).unwrap());
}
