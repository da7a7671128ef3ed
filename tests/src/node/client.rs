//! What a user does to a node: the docker client, our own verbs, and what they show.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::{Container, Node, shoal};
use crate::process::Output;
use crate::{Netns, PATIENCE, image, process, wait_until};

impl Node {
    /// The unmodified docker client against this node.
    pub fn docker(&self, arguments: &[&str]) -> Output {
        self.docker_with_input(arguments, b"")
    }

    pub fn docker_with_input(&self, arguments: &[&str], input: &[u8]) -> Output {
        process::run(self.docker_command(arguments), input, PATIENCE * 2)
    }

    pub fn docker_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command
            .args(arguments)
            .env("DOCKER_HOST", self.host())
            .env("DOCKER_CONFIG", self.path("docker-config"))
            .env_remove("DOCKER_CONTEXT");
        command
    }

    /// Our own binary against this node.
    pub fn shoal(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(shoal());
        command.args(arguments).env("DOCKER_HOST", self.host());
        process::run(command, b"", PATIENCE * 2)
    }

    /// A verb of our own binary that needs no daemon, such as `reset` or `doctor`.
    pub fn shoal_local(&self, verb: &str) -> Output {
        let mut command = self.netns.command(shoal().to_str().unwrap());
        command.arg(verb).args(self.node_flags());
        process::run(command, b"", PATIENCE)
    }

    /// One raw request on the API socket; the whole answer, head and body.
    pub fn http(&self, method: &str, path: &str, body: &str) -> std::io::Result<String> {
        let mut stream = UnixStream::connect(self.socket())?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: shoal\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    pub fn ctr(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("ctr");
        command
            .arg("--address")
            .arg(self.containerd_socket())
            .args(["--namespace", &self.containerd_namespace]);
        command.args(arguments);
        process::run(command, b"", PATIENCE)
    }

    pub fn import_busybox(&self) {
        self.docker_with_input(&["import", "-", "busybox"], &image::root_file_system()).ok();
    }

    /// What `docker … inspect` prints, as JSON; its first element.
    #[track_caller]
    pub fn inspect(&self, kind: &str, name: &str) -> Value {
        let text = self.docker(&[kind, "inspect", name]).ok();
        let mut list: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        list[0].take()
    }

    /// Running containers of a service, by slot.
    pub fn containers(&self, service: &str) -> Vec<Container> {
        let ids = self.docker(&["ps", "-q", "--no-trunc"]).ok();
        let ids: Vec<&str> = ids.lines().collect();
        if ids.is_empty() {
            return Vec::new();
        }
        // One that ends meanwhile makes docker exit 1 and print the others.
        let text = self.docker(&[&["inspect", "--type", "container"], &ids[..]].concat()).stdout;
        let list: Value = serde_json::from_str(&text).unwrap_or_default();
        let mut found: Vec<Container> = list
            .as_array()
            .into_iter()
            .flatten()
            .map(|detail| self.container_of(detail))
            .filter(|container| container.service == service && container.pid != 0)
            .collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        found
    }

    /// A running container by its name.
    #[track_caller]
    pub fn container(&self, name: &str) -> Container {
        self.container_of(&self.inspect("container", name))
    }

    fn container_of(&self, detail: &Value) -> Container {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Container {
            node: self.number,
            id: text(&detail["Id"]),
            name: text(&detail["Name"]).trim_start_matches('/').to_owned(),
            pid: detail["State"]["Pid"].as_u64().unwrap_or(0) as u32,
            service: text(&detail["Config"]["Labels"]["com.docker.swarm.service.name"]),
            detail: detail.clone(),
        }
    }

    /// Starts a plain container; what it runs is of the image `busybox`.
    #[track_caller]
    pub fn run(&self, name: &str, flags: &[&str], command: &[&str]) -> Container {
        self.docker(&[&["run", "-d", "--name", name], flags, &["busybox"], command].concat()).ok();
        self.container(name)
    }

    /// Waits until a service has exactly this many running containers.
    #[track_caller]
    pub fn running(&self, service: &str, count: usize) -> Vec<Container> {
        wait_until(PATIENCE, &format!("{service} has {count} running containers"), || {
            let found = self.containers(service);
            if found.len() == count {
                return Ok(found);
            }
            let names: Vec<&str> = found.iter().map(|container| container.name.as_str()).collect();
            let tasks = self.docker(&["service", "ps", "--no-trunc", service]);
            Err(format!("{names:?}\n{tasks}\n{}", self.log_tail()))
        })
    }

    /// Creates a service without waiting for Docker's five quiet seconds, and waits for its containers.
    #[track_caller]
    pub fn service(&self, name: &str, replicas: usize, flags: &[&str], command: &[&str]) -> Vec<Container> {
        self.create_service(name, replicas, flags, command);
        self.running(name, replicas)
    }

    pub fn create_service(&self, name: &str, replicas: usize, flags: &[&str], command: &[&str]) {
        let count = replicas.to_string();
        let fixed = ["service", "create", "--detach", "--name", name, "--replicas", &count];
        self.docker(&[&fixed[..], flags, &["busybox"], command].concat()).ok();
    }

    /// A web service whose tasks count as running once they listen, so that whoever finds one is served.
    #[track_caller]
    pub fn web(&self, name: &str, replicas: usize, flags: &[&str]) -> Vec<Container> {
        let probe = "wget -q -O /dev/null http://127.0.0.1/index.html";
        let health = ["--health-cmd", probe, "--health-interval", "200ms"];
        self.service(name, replicas, &[&health[..], flags].concat(), &["serve"]);
        self.serving(name, replicas)
    }

    /// Waits until a service has exactly this many containers, and all pass their health check.
    #[track_caller]
    pub fn serving(&self, service: &str, count: usize) -> Vec<Container> {
        wait_until(PATIENCE, &format!("{service} has {count} healthy containers"), || {
            let found = self.containers(service);
            if found.len() == count && found.iter().all(Container::is_healthy) {
                return Ok(found);
            }
            let tasks = self.docker(&["service", "ps", "--no-trunc", service]);
            Err(format!("{tasks}\n{}", self.log_tail()))
        })
    }

    pub fn network(&self, name: &str) {
        self.docker(&["network", "create", "-d", "overlay", name]).ok();
    }

    /// Runs a command in a container, as a user would.
    pub fn exec(&self, container: &Container, command: &[&str]) -> Output {
        self.docker(&[&["exec", &container.id], command].concat())
    }

    /// A service's virtual address on its first network.
    #[track_caller]
    pub fn vip(&self, service: &str) -> Ipv4Addr {
        self.vip_on(service, None)
    }

    #[track_caller]
    pub fn vip_on(&self, service: &str, network: Option<&str>) -> Ipv4Addr {
        let id = network.map(|name| self.inspect("network", name)["Id"].as_str().unwrap().to_owned());
        let detail = self.inspect("service", service);
        let addresses = detail["Endpoint"]["VirtualIPs"].as_array().cloned().unwrap_or_default();
        let entry = addresses.iter().find(|entry| id.as_deref().is_none_or(|id| entry["NetworkID"] == id));
        let text = entry.and_then(|entry| entry["Addr"].as_str());
        let address = text.and_then(|text| text.split('/').next()?.parse().ok());
        address.unwrap_or_else(|| panic!("{service} has no virtual address: {:#}", detail["Endpoint"]))
    }

    /// A service's IPv6 virtual address on its first network that has one.
    #[track_caller]
    pub fn vip_v6(&self, service: &str) -> Ipv6Addr {
        let detail = self.inspect("service", service);
        let addresses = detail["Endpoint"]["VirtualIPs"].as_array().cloned().unwrap_or_default();
        let texts = addresses.iter().filter_map(|entry| entry["Addr"].as_str()?.split('/').next());
        let address = texts.filter_map(|text| text.parse().ok()).next();
        address.unwrap_or_else(|| panic!("{service} has no IPv6 address: {:#}", detail["Endpoint"]))
    }

    /// What kernel and resolver hold, read back, is what the applied tables say, on every network.
    #[track_caller]
    pub fn tables_are_true(&self) {
        wait_until(PATIENCE / 4, "kernel and resolver hold what the tables say", || {
            let text = self.shoal(&["node", "tables", "--format", "json"]).ok();
            let reports: Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
            let reports = reports.as_array().ok_or_else(|| text.clone())?;
            let is_true = |report: &Value| report["differences"].as_array().is_some_and(Vec::is_empty);
            if reports.iter().all(is_true) { Ok(()) } else { Err(format!("{text}\n{}", self.log_tail())) }
        });
    }

    /// Waits until a name resolves to exactly these addresses, of one family, asked from inside a
    /// namespace.
    #[track_caller]
    pub fn resolves(&self, from: &Netns, name: &str, mut wanted: Vec<IpAddr>) {
        use crate::dns::{A, AAAA, Transport, ask};
        wanted.sort();
        let kind = if wanted.iter().any(IpAddr::is_ipv6) { AAAA } else { A };
        wait_until(PATIENCE, &format!("{name} resolves to {wanted:?}"), || {
            let question = name.to_owned();
            let seen = from.run(move || ask(&question, kind, Transport::Udp));
            match seen {
                Ok(answer) if answer.addresses() == wanted => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }
}
