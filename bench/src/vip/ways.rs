//! The ways to one task: directly, by its virtual address, and by what others put before it.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use shoal_balancer::{Balancer, BalancerConfig, ServiceKey};
use shoal_e2e::{Netns, Node};
use shoal_model::Backends;

use super::peers::PORT;
use crate::namespace::{Program, run};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// To the task's address.
    Direct,
    /// To virtual addresses of ours.
    Vip,
    /// To virtual addresses that nftables translates in the client's own namespace, as kube-proxy has it.
    Dnat,
    /// To ports of HAProxy, in a container between client and task.
    HaProxy,
}

impl Way {
    pub(crate) const ALL: [Self; 4] = [Self::Direct, Self::Vip, Self::Dnat, Self::HaProxy];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Vip => "VIP",
            Self::Dnat => "nftables DNAT",
            Self::HaProxy => "HAProxy",
        }
    }
}

/// All of this many services have the one task as their backend.
pub(crate) struct Services<'a> {
    pub(crate) node: &'a Node,
    pub(crate) vni: u32,
    pub(crate) task: Ipv4Addr,
    /// Of services that the cluster has.
    pub(crate) real: &'a [Ipv4Addr],
    pub(crate) count: u32,
}

impl Services<'_> {
    /// Virtual addresses: those of real services first.
    pub(crate) fn addresses(&self) -> Vec<Ipv4Addr> {
        let more = (0..).map(|number| Ipv4Addr::from(u32::from(MADE_UP) + number));
        self.real.iter().copied().chain(more).take(self.count as usize).collect()
    }

    fn balancer(&self) -> Balancer {
        let pins = format!("/sys/fs/bpf/shoal-{}", self.node.tag()).into();
        Balancer::open(&BalancerConfig { pins }).unwrap()
    }

    fn key(&self, address: Ipv4Addr) -> ServiceKey {
        ServiceKey { vni: self.vni, address: address.into() }
    }

    /// Has the node's balancer lead every service to the task, as the node's own daemon does it.
    pub(crate) fn fill(&self) {
        let balancer = self.balancer();
        let task = Backends { members: BTreeSet::from([IpAddr::from(self.task)]), by_source: false };
        for address in self.addresses() {
            balancer.set_service(self.key(address), &task).unwrap();
        }
    }

    /// Undoes [`fill`](Self::fill): real services but the first have no task, others are not there.
    pub(crate) fn clear(&self) {
        let (balancer, nobody) = (self.balancer(), Backends::default());
        for address in self.addresses().into_iter().skip(1) {
            if self.real.contains(&address) {
                balancer.set_service(self.key(address), &nobody).unwrap();
            } else {
                balancer.remove_service(self.key(address)).unwrap();
            }
        }
    }

    /// One per line: where a client of this way connects to.
    pub(crate) fn targets(&self, way: Way, proxy: Ipv4Addr) -> String {
        let at = |addresses: Vec<Ipv4Addr>| addresses.into_iter().map(|ip| (ip, PORT).into()).collect();
        let targets: Vec<SocketAddr> = match way {
            Way::Direct => at(vec![self.task]),
            Way::Vip => at(self.addresses()),
            // To one of them, always the same: connections of two services to one task that come from the same
            // port get into each other's way, and the kernel then looks for another port for milliseconds.
            Way::Dnat => at(self.translated().take(1).collect()),
            Way::HaProxy => (0..self.count as u16).map(|number| (proxy, HAPROXY + number).into()).collect(),
        };
        targets.iter().fold(String::new(), |text, target| text + &format!("{target}\n"))
    }

    /// Virtual addresses that are no service's of ours.
    fn translated(&self) -> impl Iterator<Item = Ipv4Addr> {
        (0..self.count).map(|number| Ipv4Addr::from(u32::from(TRANSLATED) + number))
    }

    /// The rules that kube-proxy has for such services, in its nftables mode: a map from address, protocol and
    /// port to the service's chain, in which the dice fall for the chain of an endpoint.
    pub(crate) fn translate(&self, client: &Netns) {
        let mut rules = format!(
            "table ip bench\ndelete table ip bench\ntable ip bench {{\n\
             chain endpoint {{\nmeta l4proto tcp dnat to {}:{PORT}\n}}\n",
            self.task
        );
        let mut elements = Vec::new();
        for (number, address) in self.translated().enumerate() {
            let _ =
                writeln!(rules, "chain s{number} {{\nnumgen random mod 1 vmap {{ 0 : goto endpoint }}\n}}");
            elements.push(format!("{address} . tcp . {PORT} : goto s{number}"));
        }
        let _ = write!(
            rules,
            "map services {{\ntype ipv4_addr . inet_proto . inet_service : verdict\nelements = {{ {} }}\n}}\n\
             chain output {{\ntype nat hook output priority -100\n\
             ip daddr . meta l4proto . th dport vmap @services\n}}\n}}\n",
            elements.join(", ")
        );
        run(client, "nft", &["-f", "-"], rules.as_bytes());
    }

    /// HAProxy with a port for each service; Debian's, without a log, otherwise as it comes.
    pub(crate) fn haproxy(&self, netns: &Netns) -> Program {
        let config = format!(
            "global\n  maxconn 4000\n\
             defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n\
             listen services\n  bind :{HAPROXY}-{}\n  server task {}:{PORT}\n",
            HAPROXY + self.count as u16 - 1,
            self.task
        );
        let path = self.node.path("haproxy.cfg");
        std::fs::write(&path, config).unwrap();
        let arguments = ["-db", "-f", path.to_str().unwrap()];
        Program::start(netns, &self.node.path("haproxy.log"), "haproxy", &arguments)
    }
}

/// The network of all; its upper half is never reached by addresses that are given out.
pub(crate) const SUBNET: &str = "10.77.0.0/16";
const MADE_UP: Ipv4Addr = Ipv4Addr::new(10, 77, 128, 1);
const TRANSLATED: Ipv4Addr = Ipv4Addr::new(10, 77, 192, 1);
const HAPROXY: u16 = 10_000;
/// As many as fit into a quarter of the network.
pub(crate) const SERVICES_MAX: u32 = 16_000;
