//! What a rule set does with a packet, as far as it can be told from its text (`nft -j list ruleset`). Pure.
//!
//! What a rule asks that is not known of a packet (an address, a limit) makes the rule count for nothing: an
//! acceptance for some is none for all, and neither is a drop.

use std::collections::HashMap;

use serde_json::Value;

/// Where packets pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hook {
    Forward,
    Input,
}

impl Hook {
    fn as_str(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Input => "input",
        }
    }
}

/// A packet that begins something, or answers it.
#[derive(Debug, Clone)]
pub(super) struct Packet<'a> {
    pub(super) hook: Hook,
    pub(super) v6: bool,
    pub(super) from: &'a str,
    /// Empty for one that stays on the node.
    pub(super) to: &'a str,
    pub(super) protocol: &'static str,
    /// `None`: any.
    pub(super) port: Option<u16>,
    /// What connection tracking calls it.
    pub(super) state: &'static str,
    /// Its destination was changed by a published port.
    pub(super) translated: bool,
}

/// A chain that packets come to by themselves.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Base {
    pub(super) family: String,
    pub(super) table: String,
    pub(super) chain: String,
}

#[derive(Debug, Default)]
struct Chain<'a> {
    hook: Option<&'a str>,
    drops: bool,
    rules: Vec<&'a [Value]>,
}

/// The chains of a rule set by family, table and name.
#[derive(Debug, Default)]
pub(super) struct Ruleset<'a> {
    chains: HashMap<(&'a str, &'a str, &'a str), Chain<'a>>,
}

/// What becomes of a packet in a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Accepted,
    Dropped,
    /// It comes out at the end.
    Through,
}

/// What is known of a packet that a rule asks about.
enum Known<'a> {
    Text(&'a str),
    Number(u64),
    /// It has nothing of the kind: no such rule is for it.
    Absent,
    Unknown,
}

/// Chains of a rule set may not go round in circles; this is the kernel's bound.
const DEPTH_MAX: usize = 16;

impl<'a> Ruleset<'a> {
    pub(super) fn parse(ruleset: &'a Value) -> Self {
        let mut parsed = Self::default();
        for object in ruleset["nftables"].as_array().into_iter().flatten() {
            let (kind, name) =
                if object["chain"].is_object() { ("chain", "name") } else { ("rule", "chain") };
            let object = &object[kind];
            let text = |key: &str| object[key].as_str();
            let (Some(family), Some(table), Some(name)) = (text("family"), text("table"), text(name)) else {
                continue;
            };
            let chain = parsed.chains.entry((family, table, name)).or_default();
            if kind == "chain" {
                chain.hook = text("hook").filter(|_| text("type") == Some("filter"));
                chain.drops = text("policy") == Some("drop");
            } else {
                chain.rules.extend(object["expr"].as_array().map(Vec::as_slice));
            }
        }
        parsed
    }

    /// The chains, of tables that are not `own`, that drop this packet.
    pub(super) fn dropping(&self, packet: &Packet<'_>, own: &str) -> Vec<Base> {
        let family = if packet.v6 { "ip6" } else { "ip" };
        let concerned = self.chains.iter().filter(|((of, table, _), chain)| {
            chain.hook == Some(packet.hook.as_str()) && (*of == family || *of == "inet") && *table != own
        });
        let mut dropping: Vec<Base> = concerned
            .filter(|(at, chain)| match self.fate(**at, packet, 0) {
                Fate::Accepted => false,
                Fate::Dropped => true,
                Fate::Through => chain.drops,
            })
            .map(|((family, table, chain), _)| Base {
                family: (*family).to_owned(),
                table: (*table).to_owned(),
                chain: (*chain).to_owned(),
            })
            .collect();
        dropping.sort();
        dropping
    }

    /// Whether there is a chain of this name, beside another one.
    pub(super) fn has(&self, base: &Base, name: impl Fn(&str) -> bool) -> bool {
        self.chains
            .keys()
            .any(|(family, table, chain)| *family == base.family && *table == base.table && name(chain))
    }

    fn fate(&self, at: (&str, &str, &str), packet: &Packet<'_>, depth: usize) -> Fate {
        let rules = self.chains.get(&at).map(|chain| chain.rules.as_slice()).unwrap_or_default();
        for rule in rules {
            match self.of_rule(at, rule, packet, depth) {
                Step::Next => {}
                Step::Ended(fate) => return fate,
            }
        }
        Fate::Through
    }

    /// What one rule does: nothing, unless it is for this packet and has a verdict.
    fn of_rule(&self, at: (&str, &str, &str), rule: &[Value], packet: &Packet<'_>, depth: usize) -> Step {
        for statement in rule {
            let Some((kind, value)) = statement.as_object().and_then(|statement| statement.iter().next())
            else {
                continue;
            };
            let applies = match kind.as_str() {
                "match" => matches(value, packet),
                "xt" => extension(value, rule, packet),
                "limit" | "quota" | "ct count" => false,
                "vmap" => match mapped(value, packet) {
                    Some(verdict) => return self.verdict(at, verdict, packet, depth),
                    None => false,
                },
                "counter" | "log" | "mangle" | "ct helper" => true,
                _ => match self.verdict(at, statement, packet, depth) {
                    Step::Next => true,
                    ended => return ended,
                },
            };
            if !applies {
                return Step::Next;
            }
        }
        Step::Next
    }

    fn verdict(&self, at: (&str, &str, &str), verdict: &Value, packet: &Packet<'_>, depth: usize) -> Step {
        let Some((kind, value)) = verdict.as_object().and_then(|verdict| verdict.iter().next()) else {
            return Step::Next;
        };
        let target = || {
            let name = value["target"].as_str().unwrap_or_default();
            if depth < DEPTH_MAX { self.fate((at.0, at.1, name), packet, depth + 1) } else { Fate::Through }
        };
        match kind.as_str() {
            "accept" | "queue" => Step::Ended(Fate::Accepted),
            "drop" | "reject" => Step::Ended(Fate::Dropped),
            "return" => Step::Ended(Fate::Through),
            "goto" => Step::Ended(target()),
            "jump" => match target() {
                Fate::Through => Step::Next,
                fate => Step::Ended(fate),
            },
            _ => Step::Next,
        }
    }
}

/// How a chain goes on behind a rule.
enum Step {
    Next,
    Ended(Fate),
}

fn matches(test: &Value, packet: &Packet<'_>) -> bool {
    let (right, negated) = (&test["right"], test["op"] == "!=");
    let known = known(&test["left"], packet);
    if !matches!(test["op"].as_str(), Some("==" | "in" | "!=")) || matches!(known, Known::Absent) {
        return false;
    }
    contains(right, &known).is_some_and(|contained| contained != negated)
}

/// What iptables asks by extensions of its own cannot be read. By far the most of those that accept by the state
/// of a connection accept what belongs to one.
fn extension(test: &Value, rule: &[Value], packet: &Packet<'_>) -> bool {
    let has = |verdict: &str| rule.iter().any(|statement| statement.get(verdict).is_some());
    match (test["type"].as_str(), test["name"].as_str()) {
        (Some("target"), _) | (_, Some("comment")) => true,
        (_, Some("conntrack")) => has("accept") && packet.state == "established",
        // ufw lets go on what is for the node itself.
        (_, Some("addrtype")) => has("return") && packet.hook == Hook::Input,
        _ => false,
    }
}

/// The verdict of a map for a packet.
fn mapped<'v>(map: &'v Value, packet: &Packet<'_>) -> Option<&'v Value> {
    let known = known(&map["key"], packet);
    let entries = map["data"]["set"].as_array()?;
    entries.iter().find(|entry| contains(&entry[0], &known) == Some(true)).map(|entry| &entry[1])
}

fn known<'a>(expression: &Value, packet: &Packet<'a>) -> Known<'a> {
    let text = |of: &str, key: &str| expression[of][key].as_str();
    match (text("meta", "key"), text("ct", "key"), text("payload", "protocol")) {
        (Some("iifname" | "iif"), ..) => Known::Text(packet.from),
        (Some("oifname" | "oif"), ..) => Known::Text(packet.to),
        (Some("l4proto"), ..) => Known::Text(packet.protocol),
        (Some("nfproto"), ..) => Known::Text(if packet.v6 { "ipv6" } else { "ipv4" }),
        (_, Some("state"), _) => Known::Text(packet.state),
        (_, Some("status"), _) => Known::Text(if packet.translated { "dnat" } else { "" }),
        _ if expression["fib"]["result"] == "type" => Known::Text(match packet.hook {
            Hook::Input => "local",
            Hook::Forward => "unicast",
        }),
        (_, _, Some(protocol)) => of_header(protocol, text("payload", "field").unwrap_or_default(), packet),
        _ => Known::Unknown,
    }
}

fn of_header<'a>(protocol: &str, field: &str, packet: &Packet<'a>) -> Known<'a> {
    match protocol {
        "ip" if packet.v6 => Known::Absent,
        "ip6" if !packet.v6 => Known::Absent,
        "ip" if field == "protocol" => Known::Text(packet.protocol),
        "ip6" if field == "nexthdr" => Known::Text(packet.protocol),
        "ip" | "ip6" => Known::Unknown,
        "th" => {
            packet.port.filter(|_| field == "dport").map_or(Known::Unknown, |port| Known::Number(port.into()))
        }
        _ if protocol != packet.protocol => Known::Absent,
        _ if field == "dport" => packet.port.map_or(Known::Unknown, |port| Known::Number(port.into())),
        _ => Known::Unknown,
    }
}

/// Whether a value is among those that a rule names; `None`: that cannot be told.
fn contains(wanted: &Value, known: &Known<'_>) -> Option<bool> {
    if let Some(list) = wanted.as_array().or_else(|| wanted["set"].as_array()) {
        let found: Vec<_> = list.iter().map(|wanted| contains(wanted, known)).collect();
        return if found.contains(&Some(true)) {
            Some(true)
        } else {
            found.into_iter().collect::<Option<Vec<_>>>().map(|_| false)
        };
    }
    match known {
        Known::Text(text) => {
            let wanted = wanted.as_str().filter(|wanted| !wanted.starts_with('@'))?;
            Some(wanted.strip_suffix('*').map_or(wanted == *text, |start| text.starts_with(start)))
        }
        Known::Number(number) => match wanted["range"].as_array().map(Vec::as_slice) {
            Some([first, last]) => Some((first.as_u64()?..=last.as_u64()?).contains(number)),
            _ => Some(wanted.as_u64()? == *number),
        },
        Known::Absent | Known::Unknown => None,
    }
}
