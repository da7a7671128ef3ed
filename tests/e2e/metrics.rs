//! A node in numbers, as Prometheus reads them.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use shoal_e2e::dns::{A, Transport, ask};
use shoal_e2e::web::fetch;
use shoal_e2e::{METRICS_PORT, Node, PATIENCE, wait_until};

/// Every sample by name and labels.
fn samples(node: &Node) -> BTreeMap<String, u64> {
    let text = node.netns.run(|| fetch((Ipv4Addr::LOCALHOST, METRICS_PORT), "/metrics")).unwrap();
    let mut types = BTreeMap::new();
    let mut samples = BTreeMap::new();
    for line in text.lines() {
        if let Some(family) = line.strip_prefix("# TYPE ") {
            let (name, kind) = family.split_once(' ').unwrap();
            assert_eq!(types.insert(name.to_owned(), kind.to_owned()), None, "{name} comes twice");
        } else if !line.starts_with('#') {
            let (sample, value) = line.rsplit_once(' ').unwrap();
            let name = sample.split('{').next().unwrap();
            let kind = types.get(name).unwrap_or_else(|| panic!("{name} has no type"));
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
            samples.insert(sample.to_owned(), value.parse().unwrap());
        }
    }
    samples
}

/// The sum of all samples of a family whose labels say all of this.
fn sum(samples: &BTreeMap<String, u64>, family: &str, labels: &[&str]) -> u64 {
    let of = |sample: &&String| {
        sample.split('{').next() == Some(family) && labels.iter().all(|label| sample.contains(label))
    };
    samples.iter().filter(|(sample, _)| of(sample)).map(|(_, value)| value).sum()
}

#[test]
fn connections_refusals_pings_names_tables_and_tasks_are_counted() {
    const CONNECTIONS: u64 = 30;
    let node = Node::cluster();
    node.network("mynet");
    let web = node.web("web", 2, &["--network", "mynet"]);
    let client = node.service("client", 1, &["--network", "mynet"], &["idle"]).remove(0);
    let (netns, vip) = (client.netns(), node.vip("web"));
    node.resolves(&netns, "tasks.web", web.iter().map(|task| task.address("mynet").into()).collect());

    let before = samples(&node);
    netns.run(move || (0..CONNECTIONS).for_each(|_| drop(fetch((vip, 80), "/index.html").unwrap())));
    netns.run(|| (0..10).for_each(|_| drop(ask("web", A, Transport::Udp).unwrap())));
    netns.run(|| drop(ask("nobody.example", A, Transport::Tcp).unwrap()));
    node.exec(&client, &["ping", "-c", "3", "-W", "2", "web"]).ok();
    let after = samples(&node);
    let rise = |family: &str, labels: &[&str]| sum(&after, family, labels) - sum(&before, family, labels);
    let address = format!("address=\"{vip}\"");
    let labels = ["network=\"mynet\"", "service=\"web\"", &address];
    assert_eq!(rise("shoal_vip_connections_total", &labels), CONNECTIONS, "{after:?}");
    for task in &web {
        let backend = format!("backend=\"{}\"", task.address("mynet"));
        assert!(rise("shoal_vip_connections_total", &[&labels[..], &[&backend]].concat()) > 0, "{after:?}");
        assert!(after.keys().any(|sample| sample.contains(&backend) && sample.contains("task=\"")));
    }
    assert_eq!(rise("shoal_vip_pings_total", &labels), 3, "{after:?}");
    assert_eq!(rise("shoal_vip_refused_total", &labels), 0);
    // ping asks for a name, too.
    assert!(rise("shoal_dns_questions_total", &["result=\"local\""]) > 10, "{after:?}");
    assert_eq!(rise("shoal_dns_questions_total", &["result=\"forwarded\""]), 1, "{after:?}");
    assert_eq!(sum(&after, "shoal_tasks", &["state=\"running\""]), 3, "{after:?}");
    assert_eq!(sum(&after, "shoal_table_services", &["network=\"mynet\""]), 2);
    assert!(sum(&after, "shoal_table_revision", &["network=\"mynet\""]) > 0);

    node.docker(&["service", "scale", "-d", "web=0"]).ok();
    wait_until(PATIENCE, "refused connections are counted", || {
        let refused = netns.run(move || fetch((vip, 80), "/index.html")).is_err();
        let count = sum(&samples(&node), "shoal_vip_refused_total", &labels);
        if refused && count > 0 { Ok(()) } else { Err(format!("{count} refused")) }
    });
    let left = sum(&samples(&node), "shoal_vip_connections_total", &labels);
    assert_eq!(left, 0, "backends that are none any more are not told");
    node.finish();
}
