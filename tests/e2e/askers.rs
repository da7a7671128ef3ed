//! Who asks for names: the C libraries and the languages that have their own way, each with the container's own
//! configuration and inside its network.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use shoal_e2e::process::Output;
use shoal_e2e::{Container, Node, OUTSIDE, OUTSIDE_NAME, PATIENCE, process};

/// Every address that the C library has for a name.
const IN_C: &str = r#"
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <sys/socket.h>

int main(int count, char **words) {
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *found;
    char text[INET6_ADDRSTRLEN];
    if (count != 2 || getaddrinfo(words[1], "80", &hints, &found)) return 2;
    for (; found; found = found->ai_next)
        if (!getnameinfo(found->ai_addr, found->ai_addrlen, text, sizeof text, 0, 0, NI_NUMERICHOST)) puts(text);
    return 0;
}
"#;
const IN_PYTHON: &str = "import socket, sys\n\
    for found in socket.getaddrinfo(sys.argv[1], 80): print(found[4][0])";
/// By the C library.
const IN_NODE: &str = "require('dns').lookup(process.argv[1], { all: true }, (error, all) => {\n\
    if (error) throw error; all.forEach(found => console.log(found.address)); })";
/// By c-ares, which reads the configuration itself and asks for one type at a time.
const IN_C_ARES: &str = "const dns = require('dns').promises, name = process.argv[1];\n\
    Promise.allSettled([dns.resolve4(name), dns.resolve6(name)]).then(all => {\n\
    const found = all.flatMap(one => one.value ?? []); found.forEach(one => console.log(one));\n\
    process.exitCode = found.length ? 0 : 2; })";

/// How long a name may take that nobody has.
const UNKNOWN_MAX: Duration = Duration::from_secs(2);

struct Stage {
    node: Node,
    client: Container,
    resolv_conf: PathBuf,
    nsswitch: PathBuf,
    in_c: PathBuf,
}

impl Stage {
    /// Runs a program of the machine's where the container is, as far as names go.
    fn run(&self, words: &[&str]) -> Output {
        // The files are bound over the machine's own, for this program alone.
        const SCRIPT: &str = "mount --bind \"$0\" /etc/resolv.conf && mount --bind \"$1\" /etc/nsswitch.conf && shift && exec \"$@\"";
        let netns = self.client.netns();
        let mut command = netns.command("unshare");
        command.args(["--mount", "sh", "-c", SCRIPT]).arg(&self.resolv_conf).arg(&self.nsswitch).args(words);
        process::run(command, b"", PATIENCE)
    }

    /// What one of those who ask says of a name.
    fn ask(&self, who: &str, name: &str) -> Output {
        match who {
            "glibc" => self.run(&["getent", "ahosts", name]),
            "musl" => self.run(&[self.in_c.to_str().unwrap(), name]),
            "python" => self.run(&["/usr/bin/python3", "-c", IN_PYTHON, name]),
            "node" => self.run(&["node", "-e", IN_NODE, name]),
            "c-ares" => self.run(&["node", "-e", IN_C_ARES, name]),
            "busybox" => self.node.exec(&self.client, &["nslookup", name]),
            _ => panic!("{who}"),
        }
    }
}

fn stage() -> Stage {
    let node = Node::cluster();
    let create = ["network", "create", "-d", "overlay", "--attachable", "--ipv6", "--subnet", "fd00:63::/64"];
    node.docker(&[&create[..], &["mynet"]].concat()).ok();
    let client = node.run("client", &["--network", "mynet"], &["idle"]);
    let place = |name: &str| node.path(name);
    let (resolv_conf, nsswitch, source, in_c) =
        (place("container-resolv.conf"), place("nsswitch.conf"), place("ask.c"), place("ask"));
    std::fs::write(&resolv_conf, node.exec(&client, &["cat", "/etc/resolv.conf"]).ok()).unwrap();
    std::fs::write(&nsswitch, "hosts: files dns\n").unwrap();
    std::fs::write(&source, IN_C).unwrap();
    let mut compile = Command::new("musl-gcc");
    compile.arg("-static").arg("-o").arg(&in_c).arg(&source);
    process::run(compile, b"", PATIENCE).ok();
    Stage { node, client, resolv_conf, nsswitch, in_c }
}

/// The addresses in what somebody printed, but for that of the server.
fn addresses(text: &str) -> BTreeSet<IpAddr> {
    let words = text.split_whitespace().filter_map(|word| word.parse::<IpAddr>().ok());
    words.filter(|address| !address.is_loopback()).collect()
}

#[test]
fn names_resolve_for_whoever_asks() {
    let stage = stage();
    let node = &stage.node;
    let on = ["--network", "name=mynet,alias=shop"];
    let web = node.service("web", 2, &on, &["serve"]);
    let rr = node.service("rr", 2, &["--network", "mynet", "--endpoint-mode", "dnsrr"], &["idle"]);
    let both = |tasks: &[Container]| -> BTreeSet<IpAddr> {
        let each = |task: &Container| [task.address("mynet").into(), task.address_v6("mynet").into()];
        tasks.iter().flat_map(each).collect()
    };
    let vips: BTreeSet<IpAddr> = [node.vip("web").into(), node.vip_v6("web").into()].into();
    for (name, tasks) in [("tasks.web", &web), ("rr", &rr)] {
        node.resolves(
            &stage.client.netns(),
            name,
            tasks.iter().map(|task| task.address("mynet").into()).collect(),
        );
    }
    let rows = [
        ("web", vips.clone()),
        ("WEB.mynet", vips.clone()),
        ("shop", vips),
        ("tasks.shop", both(&web)),
        ("rr", both(&rr)),
        (rr[0].name.as_str(), both(&rr[..1])),
        (OUTSIDE_NAME, [OUTSIDE.into()].into()),
    ];
    for who in ["glibc", "musl", "python", "node", "c-ares", "busybox"] {
        for (name, wanted) in &rows {
            let said = stage.ask(who, name);
            assert_eq!(addresses(&said.stdout), *wanted, "{who}: {name}\n{said}");
        }
        for unknown in ["nobody.example", "nobody"] {
            let said = stage.ask(who, unknown);
            assert!(said.code != 0 && addresses(&said.stdout).is_empty(), "{who}: {unknown}\n{said}");
            assert!(said.took < UNKNOWN_MAX, "{who}: {said}");
        }
    }
    for name in ["web", "shop", "tasks.web"] {
        let page = node.exec(&stage.client, &["wget", "-q", "-O-", &format!("http://{name}/")]);
        assert_eq!(page.ok(), "busybox\n", "{name}");
    }
    stage.node.finish();
}
