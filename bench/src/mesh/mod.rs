//! A published port against a connection without one, and against others' proxies on the same nodes.

mod load;
mod report;
mod ways;

use std::time::Duration;

use shoal_e2e::{CLIENT, Cluster, Container, Node, NodeOptions, PATIENCE, wait_until, web};

use crate::comparison::turns;
use crate::meter::Meter;
use crate::namespace::settle;
use load::Work;
pub(crate) use report::Report;
use ways::{Entry, MESH, TASK, Way};

/// Manager, the task's node, another node.
const NODES: u8 = 3;
/// Of the small page, as of many an answer.
const SMALL: usize = 1024;
const LARGE: u64 = 4 << 20;

/// All ways in turn, `rounds` times, for each number of published ports.
pub(crate) fn measure(published: &[u16], rounds: usize, length: Duration) -> Report {
    // Nobody looks at the kernel meanwhile.
    let options = NodeOptions { verify_period: 0, ..NodeOptions::default() };
    let cluster = Cluster::start_with(NODES, &options);
    cluster.nodes().map(|node| &node.netns).chain([&cluster.world.netns]).for_each(settle);
    two_clients(&cluster);
    let mut report = Report::begin();
    for &ports in published {
        eprintln!("{ports} published ports");
        let task = serve(cluster.node(Entry::Its.node()), &cluster, ports);
        let address = ways::ingress_address(&task);
        let proxies = ways::start_proxies(&cluster, address, ports);
        ways::open_direct(&cluster, address);
        // What does not depend on the number of ports is measured once.
        let works = if Some(&ports) == published.first() { &Work::ALL[..] } else { &[Work::Connections] };
        for &work in works {
            rounds_of(&cluster, &task, ports, work, rounds, length, &mut report);
        }
        ways::close_direct(&cluster);
        drop(proxies);
        cluster.docker(&["service", "rm", "app"]).ok();
        cluster.each(Node::has_no_container);
    }
    report.end();
    cluster.finish();
    report
}

fn rounds_of(
    cluster: &Cluster,
    task: &Container,
    ports: u16,
    work: Work,
    rounds: usize,
    length: Duration,
    report: &mut Report,
) {
    let (client, address) = (&cluster.world.netns, ways::ingress_address(task));
    let ways = Way::all();
    for way in &ways {
        let to = way.target(cluster, address, ports);
        wait_until(PATIENCE, &format!("{} answers", way.name()), || {
            client.run(move || web::fetch(to, "/small"))
        });
    }
    let nodes = cluster.nodes().map(|node| &node.netns);
    let task_netns = task.netns();
    let meter = Meter::new(nodes.chain([client, &task_netns]));
    for (round, &way) in turns(rounds, &ways) {
        let sample = load::run(client, way.target(cluster, address, ports), work, length, &meter);
        eprintln!(
            "round {round}, {ports} ports, {}: {:.0} {} a second, {:?} of processor each, {} errors",
            way.name(),
            sample.per_second,
            work.name(),
            sample.cpu_each,
            sample.errors
        );
        report.add(ports, work, way, sample);
    }
}

/// Each node has a client address of its own: a port that is used through two nodes at once, to one task, is
/// something else than what is measured here.
fn two_clients(cluster: &Cluster) {
    let other = cluster.node(Entry::Other.node()).address().to_string();
    cluster.world.netns.ip(&["route", "add", &other, "dev", "nodes", "src", &CLIENT.to_string()]);
}

/// One task of a service with so many ports: the machine's nginx, which finds in the container all that it needs.
fn serve(node: &Node, cluster: &Cluster, ports: u16) -> Container {
    let site = node.path("site");
    std::fs::create_dir_all(&site).unwrap();
    std::fs::write(site.join("small"), vec![b'x'; SMALL]).unwrap();
    std::fs::File::create(site.join("large")).unwrap().set_len(LARGE).unwrap();
    std::fs::write(site.join("nginx.conf"), SERVER).unwrap();
    let mount = |source: &str, target: &str| format!("type=bind,source={source},target={target},readonly");
    let mounts = [
        mount("/usr/sbin/nginx", "/nginx"),
        mount("/lib", "/lib"),
        mount("/lib64", "/lib64"),
        mount(site.to_str().unwrap(), "/site"),
    ];
    let publish = format!("{MESH}-{}:{TASK}", MESH + ports - 1);
    let place = format!("node.hostname=={}", node.options.name);
    let mut flags = vec!["--publish", &publish, "--constraint", &place];
    flags.extend(mounts.iter().flat_map(|mount| ["--mount", mount]));
    let command = ["/nginx", "-e", "stderr", "-c", "/site/nginx.conf"];
    cluster.service("app", 1, &flags, &command).remove(0)
}

const SERVER: &str = "user root;\ndaemon off;\nworker_processes 1;\nerror_log stderr crit;\npid /tmp/nginx.pid;\n\
    events { worker_connections 4096; }\n\
    http {\n  access_log off;\n  sendfile on;\n  tcp_nopush on;\n  keepalive_requests 100000000;\n\
    \x20 open_file_cache max=10;\n  client_body_temp_path /tmp/b;\n  proxy_temp_path /tmp/p;\n\
    \x20 fastcgi_temp_path /tmp/f;\n  uwsgi_temp_path /tmp/u;\n  scgi_temp_path /tmp/s;\n\
    \x20 server { listen 80 backlog=4096; listen 81 backlog=4096; listen 82 backlog=4096; root /site; }\n}\n";
