//! Who answers: our resolver, and others with the same names, all at addresses of one container's loopback.

use std::fmt::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use shoal_e2e::Netns;
use shoal_e2e::dns::Transport;

use crate::namespace::Program;

/// Names and their addresses.
pub(crate) type Known = [(String, Ipv4Addr)];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Server {
    Echo,
    Ours,
    Dnsmasq,
    Unbound,
    Aardvark,
}

/// Debian puts it beside podman, which starts it.
const AARDVARK: &str = "/usr/lib/podman/aardvark-dns";

impl Server {
    pub(crate) const ALL: [Self; 5] = [Self::Echo, Self::Ours, Self::Dnsmasq, Self::Unbound, Self::Aardvark];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Ours => "Shoal",
            Self::Dnsmasq => "dnsmasq",
            Self::Unbound => "unbound",
            Self::Aardvark => "aardvark-dns",
        }
    }

    /// Where it answers, in the container.
    pub(crate) fn address(self) -> (Ipv4Addr, u16) {
        match self {
            Self::Ours => (Ipv4Addr::new(127, 0, 0, 11), 53),
            other => (Ipv4Addr::LOCALHOST, 5300 + other as u16),
        }
    }

    /// Debian's aardvark-dns does not listen for TCP.
    pub(crate) fn speaks(self, transport: Transport) -> bool {
        self != Self::Aardvark || transport == Transport::Udp
    }

    /// `None`: the node runs it.
    pub(crate) fn start(self, netns: &Netns, directory: &Path, known: &Known) -> Option<Program> {
        let (program, arguments) = match self {
            Self::Echo => (std::env::current_exe().unwrap(), self.echo()),
            Self::Ours => return None,
            Self::Dnsmasq => ("dnsmasq".into(), self.dnsmasq(directory, known)),
            Self::Unbound => ("unbound".into(), self.unbound(directory, known)),
            Self::Aardvark => (PathBuf::from(AARDVARK), self.aardvark(directory, known)),
        };
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let log = directory.join(format!("{}.log", self.name()));
        let started = Program::start(netns, &log, program.to_str().unwrap(), &arguments);
        Some(match self {
            Self::Aardvark => started.with_pid_file(&directory.join("aardvark/aardvark.pid")),
            _ => started,
        })
    }

    fn port(self) -> String {
        self.address().1.to_string()
    }

    fn echo(self) -> Vec<String> {
        vec!["dns-echo".to_owned(), self.port()]
    }

    /// Names from a file of hosts, nobody to ask for others, otherwise as it comes.
    fn dnsmasq(self, directory: &Path, known: &Known) -> Vec<String> {
        let hosts = lines(known, |name, address| format!("{address} {name}"));
        let hosts = written(directory, "hosts", &hosts);
        let port = self.port();
        ["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--bind-interfaces"]
            .map(str::to_owned)
            .into_iter()
            .chain(["--user=root", "--pid-file=", "--listen-address=127.0.0.1"].map(str::to_owned))
            .chain([format!("--addn-hosts={hosts}"), format!("--port={port}")])
            .collect()
    }

    /// Names as local data of one zone, otherwise as it comes.
    fn unbound(self, directory: &Path, known: &Known) -> Vec<String> {
        let data = lines(known, |name, address| format!("  local-data: \"{name}. 10 IN A {address}\""));
        let config = format!(
            "server:\n  interface: 127.0.0.1\n  port: {}\n  do-daemonize: no\n  use-syslog: no\n  chroot: \"\"\n\
             \x20 username: \"\"\n  pidfile: \"\"\n  directory: \"{}\"\n  do-ip6: no\n  module-config: iterator\n\
             \x20 local-zone: \".\" static\n{data}remote-control:\n  control-enable: no\n",
            self.port(),
            directory.display()
        );
        vec!["-d".to_owned(), "-c".to_owned(), written(directory, "unbound.conf", &config)]
    }

    /// Names of containers of one network, to which belongs who asks.
    fn aardvark(self, directory: &Path, known: &Known) -> Vec<String> {
        let containers = lines(known, |name, address| format!("{name} {address}  {name}"));
        let networks = directory.join("aardvark");
        std::fs::create_dir_all(&networks).unwrap();
        let asker = Ipv4Addr::LOCALHOST;
        written(&networks, "benchnet", &format!("{asker}\nasker {asker}  asker\n{containers}"));
        let words = ["-c", networks.to_str().unwrap(), "-p", &self.port(), "run"];
        words.map(str::to_owned).to_vec()
    }
}

fn lines(known: &Known, line: impl Fn(&str, Ipv4Addr) -> String) -> String {
    known.iter().fold(String::new(), |mut text, (name, address)| {
        let _ = writeln!(text, "{}", line(name, *address));
        text
    })
}

fn written(directory: &Path, name: &str, text: &str) -> String {
    let path = directory.join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}
