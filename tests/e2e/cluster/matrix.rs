//! Published ports from everywhere to everywhere: whoever asks, whatever node is asked, in both versions of
//! IP, over TCP and UDP.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use shoal_e2e::web::{fetch, fetch_over};
use shoal_e2e::{CLIENT, CLIENT_V6, Cluster, Container, Netns, Node, PATIENCE, node_address_v6, wait_until};

const TCP: u16 = 8000;
const UDP: u16 = 9000;

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asker {
    Outside,
    Node(u8),
    /// Of a node; it publishes nothing.
    Container(u8),
    /// The task that answers.
    Itself,
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Address(u8),
    Localhost,
}

struct Matrix {
    cluster: Cluster,
    task: Container,
}

/// A task on the first node; the second one is paused, the third one drained.
fn matrix() -> Matrix {
    let cluster = Cluster::start(3);
    cluster.manager().network("appnet");
    cluster.manager().network("othernet");
    cluster.service_on_each("other", &["--network", "othernet"], &["idle"]);
    cluster.docker(&["node", "update", "--availability", "pause", "node2"]).ok();
    let flags = [
        "--network",
        "appnet",
        "--publish",
        "8000:80",
        "--publish",
        "published=9000,target=7000,protocol=udp",
    ];
    let here = ["--constraint", "node.hostname==node1"];
    let task = cluster.web("app", 1, &[flags.as_slice(), &here].concat()).remove(0);
    let socket = task.netns().run(|| UdpSocket::bind("[::]:7000").unwrap());
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(format!("app {}", from.ip()).as_bytes(), from);
        }
    });
    Matrix { cluster, task }
}

impl Matrix {
    fn netns(&self, asker: Asker) -> Netns {
        match asker {
            Asker::Outside => self.cluster.world.netns.clone(),
            Asker::Node(number) => self.cluster.node(number).netns.clone(),
            Asker::Container(number) => {
                self.cluster.node(number).running(&format!("other-{number}"), 1)[0].netns()
            }
            Asker::Itself => self.task.netns(),
        }
    }

    /// The address that the task must see, where the client has one that means something there.
    fn seen(&self, asker: Asker, asked: Asked, v6: bool) -> Option<IpAddr> {
        match (asker, asked) {
            (Asker::Outside, _) => Some(if v6 { CLIENT_V6.into() } else { CLIENT.into() }),
            // The way back would be the client's own.
            (Asker::Node(1), Asked::Address(2 | 3)) => None,
            (Asker::Node(number), Asked::Address(_)) => Some(address(self.cluster.node(number), v6)),
            _ => None,
        }
    }

    fn cells(&self) -> Vec<(Asker, Asked)> {
        let askers = [Asker::Outside, Asker::Itself]
            .into_iter()
            .chain((1..=3).flat_map(|number| [Asker::Node(number), Asker::Container(number)]));
        let cells = askers.flat_map(|asker| {
            let localhost = matches!(asker, Asker::Node(_)).then_some((asker, Asked::Localhost));
            (1..=3).map(move |number| (asker, Asked::Address(number))).chain(localhost)
        });
        // A drained node has no container.
        cells
            .filter(|(asker, _)| self.drained().is_none_or(|number| *asker != Asker::Container(number)))
            .collect()
    }

    fn drained(&self) -> Option<u8> {
        let listed = self.cluster.docker(&["node", "ls", "--format", "{{.Hostname}} {{.Availability}}"]).ok();
        listed.contains("node3 Drain").then_some(3)
    }

    fn check(&self) {
        for (asker, asked) in self.cells() {
            let netns = self.netns(asker);
            for v6 in [false, true] {
                let to = match asked {
                    Asked::Address(number) => address(self.cluster.node(number), v6),
                    Asked::Localhost if v6 => Ipv6Addr::LOCALHOST.into(),
                    Asked::Localhost => Ipv4Addr::LOCALHOST.into(),
                };
                let seen = self.seen(asker, asked, v6);
                let source = if asker == Asker::Outside { seen } else { None };
                for (protocol, answer) in [
                    ("tcp", self.ask_tcp(&netns, asker, (to, TCP).into())),
                    ("udp", netns.run(move || ask_udp(source, (to, UDP).into()))),
                ] {
                    let what = format!("{asker:?} asks {asked:?} ({to}) over {protocol}");
                    let client = answer.unwrap_or_else(|error| panic!("{what}: {error}"));
                    assert!(seen.is_none_or(|seen| seen == client), "{what}: the task saw {client}");
                }
            }
        }
    }

    fn ask_tcp(&self, netns: &Netns, asker: Asker, to: SocketAddr) -> Result<IpAddr, String> {
        let body = match asker {
            Asker::Outside => {
                let stream = self.cluster.world.connect_from_client(to).map_err(|error| error.to_string())?;
                fetch_over(stream, "/cgi-bin/who")?
            }
            _ => netns.run(move || fetch(to, "/cgi-bin/who"))?,
        };
        let (task, client) = body.split_once(' ').ok_or_else(|| body.clone())?;
        assert!(self.task.id.starts_with(task), "{task} answered");
        parse(client)
    }
}

fn address(node: &Node, v6: bool) -> IpAddr {
    if v6 { node_address_v6(node.number).into() } else { node.address().into() }
}

/// As a server sees it that listens in both versions of IP.
fn parse(client: &str) -> Result<IpAddr, String> {
    let client = client.trim_start_matches('[').trim_end_matches(']');
    let client: IpAddr = client.parse().map_err(|error| format!("{client:?}: {error}"))?;
    Ok(client.to_canonical())
}

/// From a socket that is not connected, so that the answer's source address counts.
fn ask_udp(source: Option<IpAddr>, to: SocketAddr) -> Result<IpAddr, String> {
    let any = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let words = |error: std::io::Error| error.to_string();
    let socket = UdpSocket::bind((source.unwrap_or(any), 0)).map_err(words)?;
    socket.set_read_timeout(Some(Duration::from_secs(3))).map_err(words)?;
    socket.send_to(b"who", to).map_err(words)?;
    let mut buffer = [0; 256];
    let (length, from) = socket.recv_from(&mut buffer).map_err(words)?;
    if from != to {
        return Err(format!("the answer came from {from}"));
    }
    let answer = String::from_utf8_lossy(&buffer[..length]).into_owned();
    parse(answer.strip_prefix("app ").ok_or(answer.clone())?)
}

#[test]
fn everybody_reaches_a_published_port_through_every_node() {
    let matrix = matrix();
    for node in matrix.cluster.nodes() {
        for v6 in [false, true] {
            let to = (address(node, v6), TCP).into();
            wait_until(PATIENCE, &format!("{to} answers"), || {
                matrix.ask_tcp(&matrix.cluster.world.netns, Asker::Outside, to).map(drop)
            });
        }
    }
    matrix.check();
    matrix.cluster.docker(&["node", "update", "--availability", "drain", "node3"]).ok();
    matrix.cluster.node(3).running("other-3", 0);
    matrix.check();
    matrix.cluster.finish();
}
