use super::*;

fn container(node: &str, user: &DnsConfig) -> ContainerFile {
    container_file(&ResolvConf::parse(node), Path::new("/etc/resolv.conf"), user)
}

fn directive(file: &ContainerFile, word: &str) -> Vec<String> {
    file.text
        .lines()
        .filter_map(|line| line.strip_prefix(word).and_then(|rest| rest.strip_prefix(' ')))
        .map(str::to_owned)
        .collect()
}

#[test]
fn a_plain_node_gives_one_server_and_ndots_0() {
    let file = container("nameserver 10.99.0.2\n", &DnsConfig::default());
    assert_eq!(directive(&file, "nameserver"), ["127.0.0.11"]);
    assert_eq!(directive(&file, "options"), ["ndots:0"]);
    assert!(directive(&file, "search").is_empty());
    assert!(file.text.starts_with("nameserver 127.0.0.11\noptions ndots:0\n"), "{}", file.text);
    assert!(file.text.contains("# ExtServers: [host(10.99.0.2)]\n"), "{}", file.text);
    assert!(file.text.contains("# Option ndots from: internal\n"), "{}", file.text);
    assert!(file.upstreams.is_empty() && !file.ndots_set);
}

#[test]
fn the_nodes_search_options_and_other_directives_are_taken_over() {
    let node = "domain old.test\n# note\nsearch a.test b.test\noptions timeout:1 ndots:2\nsortlist 10.0.0.0\noptions rotate\n";
    let file = container(node, &DnsConfig::default());
    assert_eq!(directive(&file, "search"), ["a.test b.test"], "the last line wins");
    assert_eq!(directive(&file, "options"), ["timeout:1 ndots:2 rotate"], "options add up");
    assert_eq!(directive(&file, "sortlist"), ["10.0.0.0"]);
    assert!(file.ndots_set);
    assert!(file.text.contains("# Option ndots from: host\n") && file.text.contains("# NO EXTERNAL"));
}

#[test]
fn the_users_word_replaces_the_nodes() {
    let user = DnsConfig {
        nameservers: vec!["192.0.2.1".parse().unwrap(), "127.0.0.11".parse().unwrap()],
        search: vec!["mine.test".to_owned()],
        options: vec!["timeout:3".to_owned()],
    };
    let file = container("nameserver 10.0.0.1\nsearch node.test\noptions ndots:5\n", &user);
    assert_eq!(directive(&file, "nameserver"), ["127.0.0.11"]);
    assert_eq!(directive(&file, "search"), ["mine.test"]);
    assert_eq!(directive(&file, "options"), ["timeout:3 ndots:0"]);
    assert_eq!(file.upstreams, ["192.0.2.1".parse::<IpAddr>().unwrap()], "never ourselves");
    assert!(!file.ndots_set);
    assert!(file.text.contains("# Overrides: [nameservers search options]\n"), "{}", file.text);
}

#[test]
fn a_single_dot_removes_all_search_domains() {
    let user = DnsConfig { search: vec![".".to_owned()], ..DnsConfig::default() };
    assert!(directive(&container("search node.test\n", &user), "search").is_empty());
}

#[test]
fn on_the_host_network_the_nodes_file_stays_but_for_what_the_user_chose() {
    let text = "# ours\nnameserver 10.0.0.1\nsearch node.test\nsortlist 10.0.0.0/8\n";
    assert_eq!(host_file(text, &DnsConfig::default()), text);
    let user = DnsConfig {
        nameservers: vec!["10.0.0.2".parse().unwrap()],
        options: vec!["ndots:2".to_owned()],
        ..DnsConfig::default()
    };
    let expected = "nameserver 10.0.0.2\nsearch node.test\noptions ndots:2\nsortlist 10.0.0.0/8\n";
    assert_eq!(host_file(text, &user), expected);
}

#[test]
fn an_invalid_ndots_is_dropped() {
    for bad in ["ndots:-1", "ndots:x", "ndots:"] {
        let file = container(&format!("options {bad} edns0\n"), &DnsConfig::default());
        assert_eq!(directive(&file, "options"), ["edns0 ndots:0"], "{bad}");
        assert!(!file.ndots_set);
    }
}

#[test]
fn upstreams_are_the_usable_servers_and_never_ourselves() {
    let text = "nameserver 127.0.0.11\nnameserver 10.0.0.1\nnameserver fe80::1%eth0\nnameserver nonsense\nnameserver\n\
                nameserver 2001:db8::1 # trailing\n;nameserver 10.0.0.2\n";
    let expected: Vec<IpAddr> = vec!["10.0.0.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
    assert_eq!(ResolvConf::parse(text).upstreams(), expected);
}

#[test]
fn systemds_stub_is_recognised_only_alone() {
    assert!(ResolvConf::parse("nameserver 127.0.0.53\noptions edns0 trust-ad\n").is_systemd_stub());
    assert!(!ResolvConf::parse("nameserver 127.0.0.53\nnameserver 10.0.0.1\n").is_systemd_stub());
    assert!(!ResolvConf::parse("nameserver 127.0.0.1\n").is_systemd_stub());
}

proptest::proptest! {
    #[test]
    fn any_text_is_survived(text in "(nameserver|search|options|domain|[#;a-z ])*\\PC{0,80}\n?.{0,40}") {
        let file = container(&text, &DnsConfig::default());
        assert_eq!(directive(&file, "nameserver"), ["127.0.0.11"]);
    }
}
