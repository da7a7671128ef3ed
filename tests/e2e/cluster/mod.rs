//! Several nodes as one cluster.

mod change;
mod failure;
mod hard;
mod lans;
mod matrix;
mod mesh;
mod placement;
mod policies;
mod silence;
mod spread;
mod updates;
mod upkeep;

use std::net::Ipv4Addr;

use shoal_e2e::web::fetch;
use shoal_e2e::{Cluster, PATIENCE, wait_until};

const PORT: u16 = 8000;
const PAGE: &str = "/index.html";

/// `app`, published on port 8000, and a client on every node; reachable from everywhere.
fn serving(nodes: u8, replicas: usize) -> Cluster {
    let cluster = Cluster::start(nodes);
    cluster.manager().network("appnet");
    cluster.web("app", replicas, &["--network", "appnet", "--publish", "8000:80"]);
    cluster.service_on_each("client", &["--network", "appnet"], &["idle"]);
    answers_everywhere(&cluster);
    cluster
}

/// Waits until `app` answers every node's client, and the world on every node's port.
#[track_caller]
fn answers_everywhere(cluster: &Cluster) {
    let vip = cluster.manager().vip("app");
    for node in cluster.nodes() {
        let client = client(cluster, node.number);
        let address = node.address();
        wait_until(PATIENCE, &format!("app answers on node {}", node.number), || {
            client.run(move || fetch((vip, 80), PAGE))?;
            cluster.world.netns.run(move || fetch((address, PORT), PAGE)).map(drop)
        });
    }
}

/// The network namespace of a node's client.
#[track_caller]
fn client(cluster: &Cluster, number: u8) -> shoal_e2e::Netns {
    cluster.node(number).running(&format!("client-{number}"), 1)[0].netns()
}

/// Who answers: the host name of a task, its short identifier.
fn who(address: Ipv4Addr, port: u16) -> Result<String, String> {
    let body = fetch((address, port), "/cgi-bin/who")?;
    let (task, _) = body.split_once(' ').ok_or_else(|| body.clone())?;
    Ok(task.to_owned())
}
