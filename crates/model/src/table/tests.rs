use proptest::prelude::*;

use super::*;
use crate::MacAddr;

fn table(revision: u64, services: &BTreeMap<u8, BTreeSet<u8>>, endpoints: &BTreeMap<u8, u8>) -> NetworkTable {
    let endpoint = |id: &u8| EndpointId::new(format!("e{id}"));
    NetworkTable {
        network: "net".into(),
        version: TableVersion { epoch: 1, revision },
        config: TableConfig {
            name: "mynet".into(),
            vni: 4097,
            pools: Vec::new(),
            internal: false,
            ingress: false,
            mtu: None,
            data_path_port: 4789,
            driver: Default::default(),
            config_from: None,
            shown: Default::default(),
        },
        services: services
            .iter()
            .map(|(id, backends)| {
                let entry = ServiceEntry {
                    name: format!("s{id}"),
                    aliases: Vec::new(),
                    vip: Some(IpAddr::from([10, 0, 1, *id])),
                    vip_v6: None,
                    ports: Vec::new(),
                    backends: backends.iter().map(endpoint).collect(),
                    others: Default::default(),
                    policy: Default::default(),
                };
                (ServiceId::new(format!("s{id}")), entry)
            })
            .collect(),
        endpoints: endpoints
            .iter()
            .map(|(id, last)| {
                let entry = EndpointEntry {
                    node: "n".into(),
                    address: IpNet::new_assert(IpAddr::from([10, 0, 1, *last]), 24),
                    address_v6: None,
                    mac: MacAddr([2, 0x42, 0, 0, 0, *id]),
                    names: vec![format!("e{id}")],
                };
                (endpoint(id), entry)
            })
            .collect(),
        nodes: BTreeMap::new(),
    }
}

fn content() -> impl Strategy<Value = (BTreeMap<u8, BTreeSet<u8>>, BTreeMap<u8, u8>)> {
    let ids = proptest::collection::btree_set(0u8..6, 0..5);
    (
        proptest::collection::btree_map(0u8..6, ids, 0..5),
        proptest::collection::btree_map(0u8..6, any::<u8>(), 0..6),
    )
}

proptest! {
    #[test]
    fn a_delta_leads_exactly_to_the_next_table(old in content(), new in content()) {
        let (old, new) = (table(3, &old.0, &old.1), table(4, &new.0, &new.1));
        let delta = old.delta_to(&new);
        let mut moved = old.clone();
        moved.apply(&delta).unwrap();
        prop_assert_eq!(&moved, &new);
        prop_assert_eq!(delta.is_empty(), old.same_content(&new));
        // A second time it does not start where the table stands: refused, nothing changed.
        prop_assert!(moved.apply(&delta).is_err());
        prop_assert_eq!(moved, new);
    }
}

#[test]
fn a_withdrawn_endpoint_is_in_no_service_and_has_no_name_but_stays_reachable() {
    let services = BTreeMap::from([(1, BTreeSet::from([1, 2]))]);
    let table = table(1, &services, &BTreeMap::from([(1, 1), (2, 2)]));
    let served = table.without(&BTreeSet::from(["e1".into()]));
    assert_eq!(served.services[&ServiceId::new("s1")].backends, BTreeSet::from(["e2".into()]));
    assert!(served.endpoints[&EndpointId::new("e1")].names.is_empty());
    assert_eq!(served.endpoints.len(), 2);
}
