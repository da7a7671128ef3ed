//! Placement constraints: `node.labels.zone==a`, `node.role!=manager`.

use std::net::IpAddr;

use ipnet::IpNet;
use shoal_model::{Node, NodeRole};

/// One condition on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Constraint {
    key: String,
    equal: bool,
    value: String,
}

impl Constraint {
    /// Reads constraints as SwarmKit does; the error is its text.
    pub(crate) fn parse_all(texts: &[String]) -> Result<Vec<Self>, String> {
        texts.iter().map(|text| Self::parse(text)).collect()
    }

    fn parse(text: &str) -> Result<Self, String> {
        let split = |operator| text.split_once(operator);
        let (equal, (key, value)) = split("==")
            .map(|parts| (true, parts))
            .or_else(|| split("!=").map(|parts| (false, parts)))
            .ok_or("constraint expected one operator from ==, !=")?;
        let (key, value) = (key.trim(), value.trim());
        let is_key = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        if key.is_empty() || !key.chars().all(is_key) {
            return Err(format!("key '{key}' is invalid"));
        }
        let is_value = |c: char| c.is_ascii_alphanumeric() || ":-_./ ".contains(c);
        if value.is_empty() || !value.chars().all(is_value) {
            return Err(format!("value '{value}' is invalid"));
        }
        Ok(Self { key: key.to_owned(), equal, value: value.to_owned() })
    }

    /// The node fulfils it. A key that names nothing is never fulfilled.
    pub(crate) fn holds(&self, node: &Node) -> bool {
        let lower = self.key.to_lowercase();
        let description = &node.description;
        let is = |actual: &str| actual.eq_ignore_ascii_case(&self.value);
        let same = match lower.as_str() {
            "node.id" => is(node.id.as_str()),
            "node.hostname" => is(&description.hostname),
            "node.ip" => self.is_address(node.status.address),
            "node.role" => is(match node.spec.role {
                NodeRole::Worker => "worker",
                NodeRole::Manager => "manager",
            }),
            "node.platform.os" => is(&description.os),
            "node.platform.arch" => is(&description.architecture),
            _ => {
                let label = |prefix: &str, labels: &shoal_model::Labels| {
                    // Label keys keep their case.
                    let key = lower.starts_with(prefix).then(|| self.key.get(prefix.len()..)).flatten();
                    key.map(|key| labels.get(key).is_some_and(|actual| is(actual)))
                };
                label("node.labels.", &node.spec.labels)
                    .or_else(|| label("engine.labels.", &description.engine_labels))
                    // As SwarmKit: a key it does not know fails, whatever the operator.
                    .unwrap_or(!self.equal)
            }
        };
        same == self.equal
    }

    /// The value is this address, or a subnet that it is in.
    fn is_address(&self, address: IpAddr) -> bool {
        let subnet = || self.value.parse::<IpNet>().is_ok_and(|subnet| subnet.contains(&address));
        self.value.parse() == Ok(address) || subnet()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::World;

    #[test]
    fn constraints_hold_as_swarmkits() {
        let mut node = Node::clone(World::new(1).state.nodes().next().unwrap());
        node.id = "abc".into();
        node.description.hostname = "Alpha".into();
        node.description.os = "linux".into();
        node.description.architecture = "x86_64".into();
        node.description.engine_labels.insert("disk".into(), "ssd".into());
        node.spec.labels.insert("Zone".into(), "a".into());
        let all = |texts: &[&str]| {
            let texts: Vec<String> = texts.iter().map(|text| text.to_string()).collect();
            let constraints = Constraint::parse_all(&texts).unwrap();
            constraints.iter().map(|constraint| constraint.holds(&node)).collect::<Vec<_>>()
        };
        let held = [
            "node.id==ABC",
            "node.hostname==alpha",
            "NODE.HOSTNAME != beta",
            "node.ip==192.0.2.1",
            "node.ip==192.0.2.0/24",
            "node.ip!=198.51.100.0/24",
            "node.role==manager",
            "node.platform.os==Linux",
            "node.platform.arch==x86_64",
            "node.labels.Zone==A",
            "node.labels.missing!=a",
            "engine.labels.disk==ssd",
        ];
        assert_eq!(all(&held), [true; 12], "values compare without case");
        let violated = [
            "node.id==ab",
            "node.ip==192.0.2.2",
            "node.ip!=192.0.2.0/24",
            "node.role!=manager",
            // Label keys keep their case.
            "node.labels.zone==a",
            "node.labels.missing==a",
            // Of a key that is not known nothing holds.
            "node.colour==red",
            "node.colour!=red",
        ];
        assert_eq!(all(&violated), [false; 8]);
    }
}
