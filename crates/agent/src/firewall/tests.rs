//! Against rule sets as nft tells them: ufw's and firewalld's from the files in tests/firewalls, Docker's as
//! iptables-nft really makes it, with extensions that nft cannot read.

use serde_json::json;

use super::*;

fn surroundings(is_manager: bool) -> Surroundings {
    Surroundings {
        link: "eth0".into(),
        bridges: BTreeMap::new(),
        data_ports: BTreeSet::from([4789]),
        is_manager,
        for_cluster: true,
    }
}

fn found(ruleset: &str, is_manager: bool) -> Vec<(String, String)> {
    let ruleset = serde_json::from_str(ruleset).unwrap();
    let found = obstacles(&ruleset, &surroundings(is_manager));
    found.into_iter().map(|Obstacle { detail, remedy }| (detail, remedy)).collect()
}

fn remedies(found: &[(String, String)]) -> Vec<&str> {
    found.iter().map(|(_, remedy)| remedy.as_str()).collect()
}

/// The rule set with more rules at the beginning of a chain.
fn with(ruleset: &str, family: &str, table: &str, chain: &str, rules: &[Value]) -> String {
    let mut ruleset: Value = serde_json::from_str(ruleset).unwrap();
    let objects = ruleset["nftables"].as_array_mut().unwrap();
    let first = objects.iter().position(|object| object["rule"].is_object()).unwrap_or(objects.len());
    for expr in rules {
        let rule = json!({"rule": {"family": family, "table": table, "chain": chain, "expr": expr}});
        objects.insert(first, rule);
    }
    ruleset.to_string()
}

fn let_pass(key: &str) -> Value {
    json!([
        {"match": {"op": "==", "left": {"meta": {"key": key}}, "right": "shoal-*"}},
        {"counter": null},
        {"accept": null}
    ])
}

fn allow(protocol: &str, port: u16) -> Value {
    let left = json!({"payload": {"protocol": protocol, "field": "dport"}});
    json!([{"match": {"op": "==", "left": left, "right": port}}, {"accept": null}])
}

#[test]
fn docker_drops_what_it_forwards_and_has_a_chain_for_others() {
    let docker = include_str!("docker.json");
    let found = found(docker, true);
    let rules = "nft 'insert rule ip filter DOCKER-USER iifname \"shoal-*\" counter accept; \
                 insert rule ip filter DOCKER-USER oifname \"shoal-*\" counter accept'";
    assert_eq!(remedies(&found), [rules]);
    let detail = &found[0].0;
    assert!(
        detail.starts_with("chain FORWARD of table ip filter drops connections to published ports, "),
        "{detail}"
    );
    assert!(
        detail.contains("replies of tasks") && detail.contains("connections from other nodes"),
        "{detail}"
    );
    let helped = with(docker, "ip", "filter", "DOCKER-USER", &[let_pass("iifname"), let_pass("oifname")]);
    assert_eq!(found_of(&helped), []);
    // Half of it is not enough: the replies have to pass, too.
    let half = with(docker, "ip", "filter", "DOCKER-USER", &[let_pass("oifname")]);
    assert_eq!(found_of(&half).len(), 1);
}

#[test]
fn ufw_drops_in_both_versions_and_what_comes_to_the_node() {
    let ufw = include_str!("ufw.json");
    let manager = found(ufw, true);
    let forward = |family: &str| {
        format!(
            "nft 'insert rule {family} filter FORWARD iifname \"shoal-*\" counter accept; \
             insert rule {family} filter FORWARD oifname \"shoal-*\" counter accept'"
        )
    };
    let input = "nft 'insert rule ip filter INPUT udp dport 4789 counter accept; \
                 insert rule ip filter INPUT tcp dport 2377 counter accept'";
    assert_eq!(remedies(&manager), [&forward("ip"), input, &forward("ip6")]);
    assert!(!manager[0].0.contains("replies"), "what belongs to a connection passes: {}", manager[0].0);
    let worker = found(ufw, false);
    assert_eq!(remedies(&worker)[1], "nft 'insert rule ip filter INPUT udp dport 4789 counter accept'");
    // Allowed by its user, far down.
    let allowed = with(ufw, "ip", "filter", "ufw-user-input", &[allow("udp", 4789), allow("tcp", 2377)]);
    assert_eq!(remedies(&found_of(&allowed)), [&forward("ip"), &forward("ip6")]);
}

fn found_of(ruleset: &str) -> Vec<(String, String)> {
    found(ruleset, true)
}

#[test]
fn firewalld_lets_published_ports_pass_but_not_on_to_the_task_of_another_node() {
    let found = found(include_str!("firewalld.json"), true);
    assert_eq!(found.len(), 2, "{found:?}");
    let (forward, input) = (&found[0], &found[1]);
    assert!(
        forward.0.starts_with("chain filter_FORWARD of table inet firewalld drops connections from"),
        "{}",
        forward.0
    );
    assert!(!forward.0.contains("published"), "{}", forward.0);
    assert!(
        input.1.contains("insert rule inet firewalld filter_INPUT udp dport 4789 counter accept"),
        "{}",
        input.1
    );
}

#[test]
fn a_bridge_of_the_nodes_own_has_to_be_let_pass_by_its_name() {
    let ufw: Value = serde_json::from_str(include_str!("ufw.json")).unwrap();
    let bridges = [("br-1".to_owned(), true), ("shoal0".to_owned(), false)].into();
    let found = obstacles(&ufw, &Surroundings { bridges, ..surroundings(false) });
    let rules = |family: &str, bridge: &str| {
        ["iifname", "oifname"]
            .map(|key| format!("insert rule {family} filter FORWARD {key} \"{bridge}\" counter accept"))
    };
    let has = |obstacle: &Obstacle, rules: &[String]| rules.iter().all(|rule| obstacle.remedy.contains(rule));
    assert!(has(&found[0], &rules("ip", "br-1")) && has(&found[0], &rules("ip", "shoal0")), "{found:?}");
    assert!(has(&found[2], &rules("ip6", "br-1")) && !has(&found[2], &rules("ip6", "shoal0")), "{found:?}");
}

/// As in a hand-written /etc/nftables.conf.
#[test]
fn verdict_maps_ranges_and_sets_are_read() {
    let table = |name: &str, rules: &[Value]| {
        let chain = json!({"chain": {"family": "inet", "table": name, "name": "in", "type": "filter", "hook": "input",
            "prio": 0, "policy": "drop"}});
        let rules = rules
            .iter()
            .map(|expr| json!({"rule": {"family": "inet", "table": name, "chain": "in", "expr": expr}}));
        json!({"nftables": std::iter::once(chain).chain(rules).collect::<Vec<_>>()}).to_string()
    };
    let states = json!([{"vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": [
        ["established", {"accept": null}], ["invalid", {"drop": null}], ["untracked", {"accept": null}]]}}}]);
    assert_eq!(found(&table("filter", &[states]), false), [], "untracked frames are accepted");
    let ports = |right: Value| {
        let left = json!({"payload": {"protocol": "udp", "field": "dport"}});
        json!([{"match": {"op": "==", "left": left, "right": right}}, {"accept": null}])
    };
    assert_eq!(found(&table("filter", &[ports(json!({"range": [4000, 5000]}))]), false), []);
    assert_eq!(found(&table("filter", &[ports(json!({"set": [53, {"range": [4700, 4800]}]}))]), false), []);
    assert_eq!(found(&table("filter", &[ports(json!({"set": [53, 67]}))]), false).len(), 1);
    let some = json!([
        {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": "192.0.2.1"}},
        {"accept": null}
    ]);
    assert_eq!(found(&table("filter", &[some]), false).len(), 1, "an acceptance for some is none for all");
    assert_eq!(found(&table(OWN, &[]), false), [], "our own table is no obstacle");
    assert_eq!(found("{\"nftables\": []}", true), []);
}

#[test]
fn the_link_to_the_outside_is_that_of_the_default_route() {
    let text = "Iface\tDestination\tGateway\tFlags\neth1\t0002000A\t00000000\t0001\neth0\t00000000\t010200C0\t0003\n";
    assert_eq!(way_out(text), Some("eth0"));
    assert_eq!(way_out(""), None);
    let set = json!({"nftables": [{"metainfo": {}}, {"set": {"name": "data_ports", "elem": [4789, 4790]}}]});
    assert_eq!(numbers(&set), BTreeSet::from([4789, 4790]));
    let set = json!({"nftables": [{"set": {"name": "bridges", "elem": ["br-1", "shoal0"]}}]});
    assert_eq!(names(&set), BTreeSet::from(["br-1".to_owned(), "shoal0".to_owned()]));
}
