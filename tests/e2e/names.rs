//! Every name that a container may ask for, by the row: who asks, for what, and what must come back, over each
//! transport and with each size that clients announce.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use shoal_e2e::dns::{
    A, AAAA, ANY, Answer, CNAME, Data, HTTPS, MX, NOERROR, NS, NXDOMAIN, PTR, SERVFAIL, SOA, SRV, SVCB, Stub,
    TXT, Transport, ask, ask_for, bind, reverse,
};
use shoal_e2e::{Container, Netns, Node, OUTSIDE, OUTSIDE_NAME, PATIENCE, wait_until};

/// What a question comes to.
#[derive(Debug, Clone)]
enum Comes {
    /// These addresses, of the types asked for, and no others.
    To(Vec<IpAddr>),
    /// The name is ours and has no such record.
    ToNothing,
    ToNames(Vec<String>),
    /// SRV records with this port, each to a name that has these addresses.
    ToServices(u16, Vec<(String, Vec<IpAddr>)>),
    /// The world was asked and knows no such name.
    ToDenial,
    ToFailure,
}
use Comes::{To, ToDenial, ToFailure, ToNames, ToNothing, ToServices};

/// How a question may be put: over what, and the size that the client announces.
const WAYS: [(Transport, Option<u16>); 6] = [
    (Transport::Udp, None),
    (Transport::Udp, Some(512)),
    (Transport::Udp, Some(1232)),
    (Transport::Udp, Some(4096)),
    (Transport::Tcp, None),
    (Transport::Tcp, Some(1232)),
];

/// What a client takes that asks this way.
fn limit((transport, announced): (Transport, Option<u16>)) -> usize {
    match transport {
        Transport::Udp => announced.unwrap_or(512).into(),
        Transport::Tcp => 65_535,
    }
}

fn put(from: &Netns, name: &str, kind: u16, way: (Transport, Option<u16>)) -> Answer {
    let question = name.to_owned();
    let asked = from.run(move || match way {
        (transport, None) => ask(&question, kind, transport),
        (transport, Some(bytes)) => ask_for(&question, kind, transport, bytes),
    });
    asked.unwrap_or_else(|error| panic!("type {kind} of {name} {way:?}: {error}"))
}

/// Asks in every way; each answer must be the one that is wanted.
#[track_caller]
fn check(from: &Netns, name: &str, kind: u16, comes: &Comes) {
    for way in WAYS {
        let answer = put(from, name, kind, way);
        let said = || format!("type {kind} of {name} {way:?}: {answer:#?}\nwanted {comes:?}");
        let code = match comes {
            ToDenial => NXDOMAIN,
            ToFailure => SERVFAIL,
            _ => NOERROR,
        };
        assert_eq!(answer.rcode, code, "{}", said());
        assert!(answer.bytes <= limit(way) && !answer.truncated, "{}", said());
        let asked = name.trim_end_matches('.');
        assert!(answer.records.iter().all(|record| record.owner == asked), "spelled as asked: {}", said());
        match comes {
            To(wanted) => assert_eq!(answer.addresses(), sorted(wanted.clone()), "{}", said()),
            ToNames(wanted) => assert_eq!(answer.names(), *wanted, "{}", said()),
            ToServices(port, wanted) => check_services(&answer, *port, wanted, limit(way)),
            ToNothing | ToDenial | ToFailure => assert!(answer.records.is_empty(), "{}", said()),
        }
        // Answers of the world are its own.
        let ours = !matches!(comes, ToDenial) && !asked.ends_with("example");
        assert!(!ours || answer.edns.is_some() == way.1.is_some(), "EDNS to whom speaks it: {}", said());
    }
}

#[track_caller]
fn check_services(answer: &Answer, port: u16, wanted: &[(String, Vec<IpAddr>)], limit: usize) {
    let targets: BTreeSet<(String, u16)> = answer
        .records
        .iter()
        .map(|record| match &record.data {
            Data::Service { target, port } => (target.clone(), *port),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(targets, wanted.iter().map(|(name, _)| (name.clone(), port)).collect(), "{answer:#?}");
    let all: BTreeSet<(&str, &IpAddr)> =
        wanted.iter().flat_map(|(name, all)| all.iter().map(move |ip| (name.as_str(), ip))).collect();
    let told: BTreeSet<(&str, &IpAddr)> = answer
        .additional
        .iter()
        .filter_map(|record| match &record.data {
            Data::Address(address) => Some((record.owner.as_str(), address)),
            _ => None,
        })
        .collect();
    // Addresses come along where there is room.
    assert!(told.is_subset(&all) && (limit <= 512 || told == all), "{answer:#?}");
}

fn sorted(mut addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    addresses.sort();
    addresses
}

/// IPv4 and IPv6 addresses on `mynet`.
fn both(holders: &[&Container]) -> (Vec<IpAddr>, Vec<IpAddr>) {
    let v4 = holders.iter().map(|holder| holder.address("mynet").into()).collect();
    (v4, holders.iter().map(|holder| holder.address_v6("mynet").into()).collect())
}

/// Names of 60 characters, so that four of them are too much for a plain datagram.
const LONG: &str = "a-service-with-a-name-that-is-nearly-as-long-as-names-may-be";

/// A cluster with a network `mynet` of both families, and much on it.
struct Stage {
    node: Node,
    web: Vec<Container>,
    desk: Vec<Container>,
    rr: Vec<Container>,
    global: Container,
    chest: Container,
    drawer: Container,
    client: Netns,
}

impl Stage {
    fn set() -> Self {
        let node = Node::cluster();
        let create = ["network", "create", "-d", "overlay", "--attachable"];
        node.docker(&[&create[..], &["--ipv6", "--subnet", "fd00:61::/64", "mynet"]].concat()).ok();
        let shop = ["--network", "name=mynet,alias=shop"];
        let ring = ["--network", "name=mynet,alias=ring", "--endpoint-mode", "dnsrr"];
        node.create_service("web", 2, &[&shop[..], &["--hostname", "same"]].concat(), &["idle"]);
        node.create_service("desk", 1, &shop, &["idle"]);
        node.create_service("rr", 3, &ring, &["idle"]);
        let global = ["--mode", "global", "--network", "mynet", "busybox", "idle"];
        node.docker(&[&["service", "create", "-d", "--name", "everywhere"], &global[..]].concat()).ok();
        let on = ["--network", "mynet", "--network-alias", "shared"];
        let chest = node.run("chest", &[&on[..], &["--hostname", "ChestHost"]].concat(), &["idle"]);
        let drawer = node.run("drawer", &on, &["idle"]);
        let client = node.run("client", &["--network", "mynet"], &["idle"]).netns();
        let (web, desk, rr) = (node.running("web", 2), node.running("desk", 1), node.running("rr", 3));
        let global = node.running("everywhere", 1).remove(0);
        for (name, tasks) in [("tasks.web", &web), ("tasks.desk", &desk), ("rr", &rr)] {
            node.resolves(&client, name, both(&tasks.iter().collect::<Vec<_>>()).0);
        }
        node.resolves(&client, &global.name, both(&[&global]).0);
        Self { node, web, desk, rr, global, chest, drawer, client }
    }

    /// Names, and whose addresses they stand for.
    fn holders(&self) -> Vec<(String, Vec<&Container>)> {
        let (web, rr): (Vec<_>, Vec<_>) = (self.web.iter().collect(), self.rr.iter().collect());
        let shop: Vec<&Container> = self.web.iter().chain(&self.desk).collect();
        let shared = vec![&self.chest, &self.drawer];
        vec![
            ("tasks.web".into(), web.clone()),
            ("Tasks.WEB.mynet".into(), web.clone()),
            ("all.web".into(), web.clone()),
            ("same".into(), web),
            ("tasks.shop".into(), shop.clone()),
            ("all.shop.mynet.".into(), shop),
            ("rr".into(), rr.clone()),
            ("RR.mynet".into(), rr.clone()),
            ("ring".into(), rr.clone()),
            ("tasks.rr".into(), rr.clone()),
            ("tasks.ring.".into(), rr),
            (self.web[0].name.clone(), vec![&self.web[0]]),
            (self.web[1].name.to_uppercase(), vec![&self.web[1]]),
            (format!("{}.mynet", self.rr[0].name), vec![&self.rr[0]]),
            (self.web[0].id[..12].to_owned(), vec![&self.web[0]]),
            (self.global.name.clone(), vec![&self.global]),
            ("chest".into(), vec![&self.chest]),
            ("chest.".into(), vec![&self.chest]),
            ("CHEST.mynet".into(), vec![&self.chest]),
            ("chesthost".into(), vec![&self.chest]),
            (self.chest.id[..12].to_owned(), vec![&self.chest]),
            ("shared".into(), shared.clone()),
            ("shared.mynet.".into(), shared),
        ]
    }

    /// Both virtual addresses of a service.
    fn vips(&self, service: &str) -> [IpAddr; 2] {
        [self.node.vip(service).into(), self.node.vip_v6(service).into()]
    }

    /// No name of ours was asked for outside, and each of these was.
    fn asked_outside(&self, wanted: &[String], ours: &[String]) {
        let asked: BTreeSet<String> =
            self.node.world.asked().iter().map(|name| name.to_lowercase()).collect();
        for name in wanted {
            assert!(asked.contains(&name.to_lowercase()), "{name} is not among {asked:?}");
        }
        let bare = |name: &String| name.trim_end_matches('.').to_lowercase();
        let leaked: Vec<&String> = ours.iter().filter(|name| asked.contains(&bare(name))).collect();
        assert!(leaked.is_empty(), "asked outside: {leaked:?}");
    }
}

#[test]
fn every_name_a_user_may_say() {
    let stage = Stage::set();
    let (web, desk) = (stage.vips("web"), stage.vips("desk"));
    let mut rows: Vec<(String, u16, Comes)> = Vec::new();
    for (name, holders) in stage.holders() {
        let (v4, v6) = both(&holders);
        rows.push((name.clone(), ANY, To([&v4[..], &v6].concat())));
        rows.push((name.clone(), A, To(v4)));
        rows.push((name, AAAA, To(v6)));
    }
    for name in ["web", "WeB", "web.", "web.mynet", "WEB.MyNet."] {
        rows.push((name.into(), A, To(vec![web[0]])));
        rows.push((name.into(), AAAA, To(vec![web[1]])));
        rows.push((name.into(), ANY, To(web.into())));
    }
    // Two services have this name.
    rows.push(("shop".into(), A, To(vec![web[0], desk[0]])));
    rows.push(("shop.mynet".into(), AAAA, To(vec![web[1], desk[1]])));
    for name in ["web", "tasks.web", "rr", "shop", "chest", "shared.mynet"] {
        for kind in [CNAME, NS, SOA, MX, TXT, SRV, SVCB, HTTPS, PTR] {
            rows.push((name.into(), kind, ToNothing));
        }
    }
    rows.extend(pointers(&stage));
    rows.extend(services(&stage));
    let ours: Vec<String> = rows.iter().map(|(name, ..)| name.clone()).collect();

    let stranger = reverse(Ipv4Addr::new(203, 0, 113, 200));
    let outside = [
        ("nobody".into(), A),
        ("nobody.mynet".into(), AAAA),
        ("web.othernet".into(), A),
        ("nobody.example".into(), MX),
        (stranger.clone(), PTR),
        ("_80._tcp.nobody".into(), SRV),
    ];
    rows.extend(outside.iter().map(|(name, kind)| (name.clone(), *kind, ToDenial)));
    rows.push((OUTSIDE_NAME.into(), A, To(vec![OUTSIDE.into()])));
    rows.push((OUTSIDE_NAME.into(), AAAA, ToNothing));
    for (name, kind, comes) in &rows {
        check(&stage.client, name, *kind, comes);
    }
    stage.asked_outside(&outside.map(|(name, _)| name), &ours);
    stage.node.finish();
}

/// From addresses back to names.
fn pointers(stage: &Stage) -> Vec<(String, u16, Comes)> {
    let holders = [&stage.web[0], &stage.rr[1], &stage.global, &stage.chest];
    let mut known: Vec<(IpAddr, String)> = Vec::new();
    for holder in holders {
        known.push((holder.address("mynet").into(), format!("{}.mynet", holder.name)));
        known.push((holder.address_v6("mynet").into(), format!("{}.mynet", holder.name)));
    }
    known.extend(stage.vips("web").map(|vip| (vip, "web.mynet".to_owned())));
    let rows = |(address, name): (IpAddr, String)| {
        [(reverse(address), PTR, ToNames(vec![name])), (reverse(address), A, ToNothing)]
    };
    known.into_iter().flat_map(rows).collect()
}

/// `_port._proto.name`.
fn services(stage: &Stage) -> Vec<(String, u16, Comes)> {
    let target = |holder: &Container| {
        let (v4, v6) = both(&[holder]);
        (format!("{}.mynet", holder.name), [v4, v6].concat())
    };
    let rr: Vec<_> = stage.rr.iter().map(target).collect();
    let vip = vec![("web.mynet".to_owned(), stage.vips("web").to_vec())];
    vec![
        ("_80._tcp.rr".into(), SRV, ToServices(80, rr.clone())),
        ("_53._UDP.Ring.mynet".into(), SRV, ToServices(53, rr)),
        ("_443._tcp.web".into(), SRV, ToServices(443, vip)),
        ("_7._tcp.chest".into(), SRV, ToServices(7, vec![target(&stage.chest)])),
        ("_http._tcp.web".into(), SRV, ToNothing),
        ("_80._tcp.web".into(), A, ToNothing),
    ]
}

#[test]
fn an_answer_too_long_for_a_datagram_is_cut_and_comes_whole_over_tcp() {
    let node = Node::cluster();
    node.network("mynet");
    let tasks = node.service(LONG, 4, &["--network", "mynet", "--endpoint-mode", "dnsrr"], &["idle"]);
    let client = node.service("client", 1, &["--network", "mynet"], &["idle"])[0].netns();
    node.resolves(&client, LONG, tasks.iter().map(|task| task.address("mynet").into()).collect());
    let name = format!("_80._tcp.{LONG}");
    for way in WAYS {
        let answer = put(&client, &name, SRV, way);
        let fits = limit(way) > 512;
        assert!(answer.bytes <= limit(way), "{way:?}: {answer:?}");
        assert_eq!((answer.rcode, answer.truncated), (NOERROR, !fits), "{way:?}: {answer:?}");
        assert_eq!(answer.records.len(), if fits { 4 } else { 3 }, "{way:?}: as many as fit");
        assert_eq!(answer.edns.is_some(), way.1.is_some(), "{way:?}");
    }
    node.finish();
}

#[test]
fn of_several_networks_the_first_that_knows_a_name_answers() {
    let node = Node::cluster();
    let create = ["network", "create", "-d", "overlay", "--attachable"];
    node.docker(&[&create[..], &["--ipv6", "--subnet", "fd00:62::/64", "second"]].concat()).ok();
    node.docker(&[&create[..], &["first"]].concat()).ok();
    node.docker(&["network", "create", "a-bridge"]).ok();
    let own = |network: &str, alias: &str| {
        let flags = ["--network", network, "--network-alias", alias, "--network-alias", "twin"];
        node.run(&format!("on-{network}"), &flags, &["idle"]).address(network).into()
    };
    let on: [IpAddr; 3] = [own("first", "one"), own("second", "two"), own("a-bridge", "three")];
    let run = |name: &str, networks: &[&str]| {
        node.run(name, &["--network", networks[0], "--link", "on-second:Partner"], &["idle"]);
        networks[1..]
            .iter()
            .for_each(|network| drop(node.docker(&["network", "connect", network, name]).ok()));
        node.container(name).netns()
    };
    // Networks of the cluster before the node's own, then by name: not by when they were joined.
    let all = run("all", &["a-bridge", "second", "first"]);
    node.resolves(&all, "twin", vec![on[0]]);
    let rows = [
        ("TWIN", A, To(vec![on[0]])),
        ("twin", AAAA, ToNothing),
        ("twin.first", A, To(vec![on[0]])),
        ("twin.second", A, To(vec![on[1]])),
        ("Twin.A-Bridge", A, To(vec![on[2]])),
        ("one", A, To(vec![on[0]])),
        ("two", A, To(vec![on[1]])),
        ("three", A, To(vec![on[2]])),
        ("three.a-bridge", AAAA, ToNothing),
        ("one.second", A, ToDenial),
        // A name that the container alone has for another one.
        ("partner", A, To(vec![on[1]])),
        ("PARTNER.second", A, To(vec![on[1]])),
    ];
    for (name, kind, comes) in &rows {
        check(&all, name, *kind, comes);
    }
    for (network, own, elsewhere) in [("first", on[0], "two"), ("a-bridge", on[2], "one")] {
        let here = node.container(&format!("on-{network}")).netns();
        check(&here, "twin", A, &To(vec![own]));
        for unknown in [elsewhere, "partner", "twin.second"] {
            check(&here, unknown, A, &ToDenial);
        }
    }
    // With the first one gone the next answers.
    node.docker(&["network", "disconnect", "first", "all"]).ok();
    node.resolves(&all, "twin", vec![on[1]]);
    check(&all, "one", A, &ToDenial);
    node.docker(&["rm", "-f", "all", "on-first", "on-second", "on-a-bridge"]).ok();
    node.docker(&["network", "rm", "a-bridge"]).ok();
    node.finish();
}

#[test]
fn names_follow_their_container() {
    let node = Node::cluster();
    node.docker(&["network", "create", "-d", "overlay", "--attachable", "mynet"]).ok();
    node.docker(&["network", "create", "-d", "overlay", "--attachable", "late"]).ok();
    let client = node.run("client", &["--network", "mynet"], &["idle"]).netns();
    let check_flags = ["--health-cmd", "false", "--health-interval", "200ms", "--health-retries", "1"];
    let chest = node.run("chest", &[&["--network", "mynet"], &check_flags[..]].concat(), &["idle"]);
    let own: IpAddr = chest.address("mynet").into();
    node.resolves(&client, "chest", vec![own]);
    wait_until(PATIENCE, "it is unhealthy", || {
        let seen = crate::containers::state(&node, "chest")["Health"]["Status"].clone();
        if seen == "unhealthy" { Ok(()) } else { Err(seen.to_string()) }
    });
    check(&client, "chest", A, &To(vec![own]));

    node.docker(&["rename", "chest", "box"]).ok();
    node.resolves(&client, "box", vec![own]);
    check(&client, "chest", A, &ToDenial);
    check(&client, &reverse(own), PTR, &ToNames(vec!["box.mynet".into()]));
    node.docker(&["network", "connect", "--alias", "trunk", "late", "box"]).ok();
    node.docker(&["network", "connect", "late", "client"]).ok();
    let there: IpAddr = node.container("box").address("late").into();
    node.resolves(&client, "trunk", vec![there]);
    check(&client, "box.late", A, &To(vec![there]));
    check(&client, "box.mynet", A, &To(vec![own]));
    node.docker(&["network", "disconnect", "mynet", "box"]).ok();
    node.resolves(&client, "box", vec![there]);
    check(&client, "box.mynet", A, &ToDenial);
    check(&client, &reverse(own), PTR, &ToDenial);
    node.docker(&["stop", "-t", "1", "box"]).ok();
    node.resolves(&client, "trunk", vec![]);
    for gone in ["box", "trunk", &chest.id[..12]] {
        check(&client, gone, A, &ToDenial);
    }
    node.docker(&["start", "box"]).ok();
    let again = node.container("box").address("late").into();
    node.resolves(&client, "trunk", vec![again]);
    node.docker(&["rm", "-f", "box", "client"]).ok();
    node.finish();
}

#[test]
fn inside_an_internal_network_outside_names_fail_at_once() {
    let node = Node::cluster();
    node.docker(&["network", "create", "-d", "overlay", "--attachable", "--internal", "closed"]).ok();
    node.docker(&["network", "create", "-d", "overlay", "--attachable", "open"]).ok();
    let inside = node.run("inside", &["--network", "closed"], &["idle"]);
    let netns = inside.netns();
    let known = To(vec![inside.address("closed").into()]);
    for _ in 0..2 {
        check(&netns, "inside", A, &known);
        for name in [OUTSIDE_NAME, "nobody.example", "nobody"] {
            check(&netns, name, A, &ToFailure);
        }
        let asked = node.world.asked();
        assert!(!asked.iter().any(|name| name == "nobody"), "{asked:?}");
        node.docker(&["network", "connect", "open", "inside"]).ok();
        node.resolves(&netns, OUTSIDE_NAME, vec![OUTSIDE.into()]);
        node.docker(&["network", "disconnect", "open", "inside"]).ok();
        wait_until(PATIENCE, "there is no way out again", || {
            let answer = put(&netns, OUTSIDE_NAME, A, WAYS[0]);
            if answer.rcode == SERVFAIL { Ok(()) } else { Err(format!("{answer:?}")) }
        });
    }
    node.docker(&["rm", "-f", "inside"]).ok();
    node.finish();
}

/// A name server of the user's own, in the world outside.
const CHOSEN: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 54);
const CHOSEN_KNOWS: &str = "only.chosen.example";

fn serve_chosen(node: &Node) {
    node.world.netns.ip(&["addr", "add", &format!("{CHOSEN}/32"), "dev", "lo"]);
    let (udp, tcp) = node.world.netns.run(|| bind(SocketAddr::from((CHOSEN, 53))).unwrap());
    let stub = Stub { names: vec![(CHOSEN_KNOWS.into(), OUTSIDE)] };
    let over_tcp = stub.clone();
    std::thread::spawn(move || stub.serve_udp(&udp, drop));
    std::thread::spawn(move || {
        tcp.incoming().flatten().for_each(|stream| drop(over_tcp.serve_tcp(stream, drop)));
    });
}

#[test]
fn what_a_user_says_of_name_servers_and_domains_is_what_a_container_has() {
    let node = Node::cluster();
    serve_chosen(&node);
    let own = std::fs::read_to_string(node.path("resolv.conf")).unwrap();
    std::fs::write(node.path("resolv.conf"), own + "search node.example\noptions timeout:3\n").unwrap();
    node.docker(&["network", "create", "-d", "overlay", "--attachable", "mynet"]).ok();
    let web = node.run("web", &["--network", "mynet"], &["serve"]);
    let file = |container: &Container| {
        let text = node.exec(container, &["cat", "/etc/resolv.conf"]).ok();
        text.lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let domain = OUTSIDE_NAME.split_once('.').unwrap().1;
    let chosen = CHOSEN.to_string();
    // Flags, and what stands in the file beside the name server.
    let rows: [(&str, &[&str], &[&str]); 6] = [
        ("plain", &[], &["search node.example", "options timeout:3 ndots:0"]),
        ("rootless", &["--dns-search", "."], &["options timeout:3 ndots:0"]),
        ("search", &["--dns-search", domain], &["search outside.example", "options timeout:3 ndots:0"]),
        ("dots", &["--dns-option", "ndots:2"], &["search node.example", "options ndots:2"]),
        ("chosen", &["--dns", &chosen], &["search node.example", "options timeout:3 ndots:0"]),
        (
            "hosts",
            &["--add-host", &format!("friend:{OUTSIDE}")],
            &["search node.example", "options timeout:3 ndots:0"],
        ),
    ];
    let at = |name: &str| node.container(name);
    for (name, flags, wanted) in rows {
        let container = node.run(name, &[&["--network", "mynet"], flags].concat(), &["idle"]);
        assert_eq!(file(&container), [&["nameserver 127.0.0.11"], wanted].concat(), "{name}");
        check(&container.netns(), "web", A, &To(vec![web.address("mynet").into()]));
    }
    // The same of a service, which says some of it in other words.
    let said = ["--dns-search", domain, "--dns-option", "ndots:2", "--dns", &chosen];
    let task = node.service("said", 1, &[&["--network", "mynet"], &said[..]].concat(), &["idle"]).remove(0);
    let wanted = ["nameserver 127.0.0.11", "search outside.example", "options ndots:2"];
    assert_eq!(file(&task), wanted);

    check(&at("chosen").netns(), CHOSEN_KNOWS, A, &To(vec![OUTSIDE.into()]));
    check(&at("chosen").netns(), OUTSIDE_NAME, A, &ToDenial);
    check(&task.netns(), CHOSEN_KNOWS, A, &To(vec![OUTSIDE.into()]));
    check(&at("plain").netns(), CHOSEN_KNOWS, A, &ToDenial);
    // Somebody who chose how many dots make a name has the C library try its domains.
    for kind in [A, AAAA] {
        check(&at("dots").netns(), "single", kind, &ToNothing);
        check(&at("plain").netns(), "unknown", kind, &ToDenial);
    }
    check(&at("dots").netns(), "two.labels", A, &ToDenial);
    let asked = node.world.asked();
    assert!(!asked.iter().any(|name| name == "single"), "{asked:?}");
    assert!(asked.iter().any(|name| name == "unknown") && asked.iter().any(|name| name == "two.labels"));

    let page =
        |name: &str, host: &str| node.exec(&at(name), &["wget", "-q", "-O-", &format!("http://{host}/")]);
    assert!(page("search", "www").ok().starts_with("outside saw"), "by the search domain");
    assert_ne!(page("plain", "www").code, 0, "that is another one's domain");
    assert!(page("hosts", "friend").ok().starts_with("outside saw"), "of the hosts file");
    check(&at("hosts").netns(), "friend", A, &ToDenial);
    assert_eq!(page("dots", "web").ok(), "busybox\n");
    let all: Vec<&str> = rows.iter().map(|row| row.0).chain(["web"]).collect();
    node.docker(&[&["rm", "-f"], &all[..]].concat()).ok();
    node.finish();
}
