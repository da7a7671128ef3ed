//! A cluster's network that ends at the node, as it is on this one: pure functions.

use shoal_model::{Driver, EndpointEntry, NetworkTable, NodeDriver, NodeId, TableConfig};

/// A cluster's network as it is on this node: what the node's own configuration says of it is filled in, and
/// where the network ends at the node, nobody elsewhere is on it. One whose configuration is missing stays as
/// it is, and cannot be built.
pub(crate) fn on_this_node(
    mut table: NetworkTable,
    configuration: Option<&TableConfig>,
    node: Option<&NodeId>,
) -> NetworkTable {
    let config = &mut table.config;
    if let (Driver::Unconfigured(kind), Some(own)) = (&config.driver, configuration) {
        match kind.configure(&table.network, &own.shown.options, config.internal) {
            Ok(driver) => {
                config.internal |= driver.is_internal();
                config.driver = driver;
                config.pools.clone_from(&own.pools);
                config.mtu = own.mtu;
                config.shown.options.clone_from(&own.shown.options);
            }
            Err(error) => {
                tracing::warn!(network = config.name, %error, "its configuration on this node does not fit");
            }
        }
    }
    // Whoever is elsewhere is out of reach.
    if matches!(config.driver, Driver::Bridge(_)) || config.driver.is_internal() {
        retain(&mut table, |endpoint| Some(&endpoint.node) == node);
    }
    table
}

/// A table as a node serves it that cannot build the network: none of its own is on it.
pub(crate) fn unbuilt(mut table: NetworkTable, node: Option<&NodeId>) -> NetworkTable {
    table.config.driver = match table.config.driver {
        Driver::Bridge(_) => Driver::Unconfigured(NodeDriver::Bridge),
        Driver::Macvlan(_) => Driver::Unconfigured(NodeDriver::Macvlan),
        other => other,
    };
    retain(&mut table, |endpoint| Some(&endpoint.node) != node);
    table
}

fn retain(table: &mut NetworkTable, these: impl Fn(&EndpointEntry) -> bool) {
    let endpoints = &mut table.endpoints;
    endpoints.retain(|_, endpoint| these(endpoint));
    for service in table.services.values_mut() {
        service.backends.retain(|id| endpoints.contains_key(id));
        service.others.retain(|id| endpoints.contains_key(id));
    }
}

#[cfg(test)]
mod tests {
    use shoal_model::{AddressPool, Labels};

    use super::*;
    use crate::testing;

    /// A task of a service on this node, and one on another.
    fn sent(driver: Driver) -> NetworkTable {
        let mut table = testing::table("net", 1);
        table.config.driver = driver;
        for (id, node) in [("t1", "here"), ("t2", "there")] {
            table.endpoints.insert(id.into(), testing::endpoint(node, "10.0.1.5/24"));
        }
        table.services.insert("s1".into(), testing::service("web", None, &["t1", "t2"]));
        table
    }

    fn driver(kind: NodeDriver, options: &[(&str, &str)]) -> Driver {
        let options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        kind.configure(&"net".into(), &options, false).unwrap()
    }

    /// Who is left on the network, and how many backends its service has.
    fn left(table: &NetworkTable) -> (Vec<&str>, usize) {
        let endpoints = table.endpoints.keys().map(|id| id.as_str()).collect();
        (endpoints, table.services.values().next().unwrap().backends.len())
    }

    #[test]
    fn what_the_nodes_configuration_says_is_filled_in() {
        let sent = sent(Driver::Unconfigured(NodeDriver::Macvlan));
        assert_eq!(on_this_node(sent.clone(), None, None), sent, "unknown");
        let mut only = testing::table("part", 1).config;
        only.driver = Driver::Configuration;
        only.pools = vec![AddressPool::new("192.168.68.0/24".parse().unwrap())];
        only.shown.options = Labels::from([("parent".to_owned(), "eth0".to_owned())]);
        let here = on_this_node(sent, Some(&only), None);
        assert_eq!(here.config.driver, driver(NodeDriver::Macvlan, &[("parent", "eth0")]));
        assert_eq!(here.config.pools, only.pools);
        assert_eq!(left(&here).1, 2, "who is on other nodes is reached");
    }

    #[test]
    fn nobody_elsewhere_is_on_what_ends_at_the_node() {
        for ends in [driver(NodeDriver::Bridge, &[]), driver(NodeDriver::Macvlan, &[])] {
            for (node, own) in [("here", "t1"), ("there", "t2")] {
                let here = on_this_node(sent(ends.clone()), None, Some(&NodeId::new(node)));
                assert_eq!(left(&here), (vec![own], 1));
            }
            let elsewhere = on_this_node(sent(ends), None, Some(&NodeId::new("another")));
            assert_eq!(left(&elsewhere), (vec![], 0));
        }
    }

    #[test]
    fn none_of_its_own_is_on_a_network_that_cannot_be_built() {
        let sent = sent(driver(NodeDriver::Macvlan, &[("parent", "eth9")]));
        let unbuilt = unbuilt(sent, Some(&NodeId::new("here")));
        assert_eq!(unbuilt.config.driver, Driver::Unconfigured(NodeDriver::Macvlan));
        assert_eq!(left(&unbuilt), (vec!["t2"], 1), "names of others are served all the same");
    }
}
