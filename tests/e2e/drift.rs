//! Truth is checked: what somebody changes behind the daemon's back is seen, put back, counted and
//! told.

use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use shoal_e2e::web::{fetch, fetch_over};
use shoal_e2e::{CLIENT, NODE, Netns, Node, NodeOptions, PATIENCE, wait_until};

const PORT: u16 = 8000;
const WHO: &str = "/cgi-bin/who";
/// Period, two looks, and the repair, on a busy machine.
const SECONDS: Duration = Duration::from_secs(20);

/// A node with a client and a service that is reached by name, address and published port.
struct Stage {
    node: Node,
    client: Netns,
    vip: Ipv4Addr,
    network: String,
}

impl Stage {
    fn set(verify_period: u64) -> Self {
        let node = Node::cluster_with(NodeOptions { verify_period, ..NodeOptions::default() });
        node.network("mynet");
        let client = node.service("client", 1, &["--network", "mynet"], &["idle"])[0].netns();
        node.service("web", 2, &["--network", "mynet", "--publish", "8000:80"], &["serve"]);
        let vip = node.vip("web");
        let network = node.inspect("network", "mynet")["Id"].as_str().unwrap().to_owned();
        let stage = Self { node, client, vip, network };
        wait_until(PATIENCE, "everything works", || stage.works());
        stage
    }

    /// By name, by virtual address, and from outside.
    fn works(&self) -> Result<(), String> {
        let vip = self.vip;
        let asked = self.client.run(|| {
            use shoal_e2e::dns::{A, Transport, ask};
            ask("web", A, Transport::Udp).map(|answer| answer.addresses())
        });
        if asked.as_deref().ok() != Some(&[vip.into()]) {
            return Err(format!("web resolves to {asked:?}"));
        }
        self.client
            .run(move || fetch((vip, 80), WHO))
            .map_err(|error| format!("virtual address: {error}"))?;
        let stream = self.node.world.connect_from_client((NODE, PORT).into());
        let body = fetch_over(stream.map_err(|error| format!("published port: {error}"))?, WHO)?;
        if body.contains(&CLIENT.to_string()) { Ok(()) } else { Err(format!("published port: {body}")) }
    }

    fn map(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/sys/fs/bpf/shoal-{}/2/maps/{name}", self.node.tag()))
    }

    /// What the node says it has found and repaired so far.
    fn counts(&self) -> (u64, u64) {
        let drift = &self.verify().1["nodes"][0]["report"]["drift"];
        (drift["found"].as_u64().unwrap(), drift["repaired"].as_u64().unwrap())
    }

    /// Exit code and report.
    fn verify(&self) -> (i32, Value) {
        let output = self.node.shoal(&["verify", "--format", "json"]);
        let report = serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output}"));
        (output.code, report)
    }

    /// Does the damage, sees that something does not work, and waits until it is put right.
    #[track_caller]
    fn survives(&self, what: &str, named: &str, damage: impl FnOnce()) {
        let (found, repaired) = self.counts();
        assert_eq!(found, repaired, "before: {what}");
        damage();
        wait_until(SECONDS, &format!("repaired: {what}"), || {
            let (now_found, now_repaired) = self.counts();
            if now_found > found && now_repaired == now_found {
                return self.works();
            }
            Err(format!("{found} to {now_found} found, {now_repaired} repaired\n{}", self.node.log_tail()))
        });
        let log = std::fs::read_to_string(self.node.path("daemon.log")).unwrap();
        let told = log.lines().any(|line| line.contains("not as the tables say") && line.contains(named));
        assert!(told, "the log says {named:?}: {}", self.node.log_tail());
    }

    fn in_node(&self, script: &str) {
        let output = self.node.netns.command("sh").args(["-ec", script]).output().unwrap();
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// The keys of a pinned map, as bpftool writes bytes.
fn keys(map: &Path) -> Vec<Vec<String>> {
    let output = Command::new("bpftool").args(["-j", "map", "dump", "pinned"]).arg(map).output().unwrap();
    let entries: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let bytes =
        |key: &Value| key.as_array().unwrap().iter().map(|byte| byte.as_str().unwrap().to_owned()).collect();
    entries.as_array().into_iter().flatten().map(|entry| bytes(&entry["key"])).collect()
}

/// Deletes every entry of a pinned map.
pub(crate) fn empty(map: &Path) {
    let keys = keys(map);
    assert!(!keys.is_empty(), "{} is empty already", map.display());
    for key in keys {
        let mut command = Command::new("bpftool");
        command.args(["map", "delete", "pinned"]).arg(map).args(["key", "hex"]);
        let key = key.iter().map(|byte| byte.trim_start_matches("0x"));
        assert!(command.args(key).status().unwrap().success());
    }
}

/// Speaks to the resolver as the daemon does.
fn tell_resolver(node: &Node, request: &str) {
    let mut stream = UnixStream::connect(node.run_dir().join("resolver.sock")).unwrap();
    let mut replies = BufReader::new(stream.try_clone().unwrap()).lines();
    for line in ["{\"hello\":{\"feed_version\":1}}", request] {
        writeln!(stream, "{line}").unwrap();
        let reply = replies.next().unwrap().unwrap();
        assert!(!reply.contains("error"), "{request}: {reply}");
    }
}

#[test]
fn what_somebody_takes_out_of_balancer_and_resolver_comes_back() {
    let stage = Stage::set(1);
    let node = &stage.node;
    stage.survives("virtual addresses deleted", "balancer: ", || empty(&stage.map("services")));
    stage.survives("backends deleted", "balancer: ", || empty(&stage.map("slots")));
    stage.survives("published ports deleted", "balancer: port 8000/tcp is missing", || {
        empty(&stage.map("ports"));
    });
    stage.survives("memberships deleted", "balancer: the networks of the sandbox", || {
        empty(&stage.map("sandboxes"));
    });
    stage.survives("the node's addresses deleted", "balancer: the node's own addresses", || {
        empty(&stage.map("locals"));
    });
    stage.survives("names removed", "resolver: does not know the network", || {
        tell_resolver(node, &format!("{{\"remove_names\":{:?}}}", stage.network));
    });
    stage.survives("pins removed", "balancer: map affinity is not pinned", || {
        std::fs::remove_dir_all(stage.map("").parent().unwrap()).unwrap();
    });

    // The process with all it knows, on disk too: watched, not looked for.
    let [resolver] = node.helpers("resolver")[..] else { panic!("one resolver") };
    std::fs::remove_dir_all(node.data_dir().join("resolver")).unwrap();
    shoal_e2e::process::signal(resolver, nix::sys::signal::Signal::SIGKILL);
    wait_until(SECONDS, "names are served by another resolver", || stage.works());
    stage.node.finish();
}

#[test]
fn what_somebody_takes_out_of_the_nodes_network_comes_back() {
    let stage = Stage::set(1);
    let tasks = stage.node.running("web", 2);
    stage.survives("a published port's slots deleted", "nft: ports16 lacks tcp . 8000 . 3", || {
        stage.in_node("nft delete element inet shoal ports16 '{ tcp . 8000 . 3, tcp . 8000 . 4 }'");
    });
    stage.survives("a map flushed", "nft: ports16 lacks tcp . 8000 . ", || {
        stage.in_node("nft flush map inet shoal ports16");
    });
    stage.survives("every rule of the node flushed", "nft: table inet shoal is gone", || {
        stage.in_node("nft flush ruleset");
    });
    stage.survives("a rule put in front", "nft: the rules of table inet shoal were changed", || {
        stage.in_node("nft insert rule inet shoal publish tcp dport 8000 drop");
    });
    stage.survives("forwarding switched off", "sysctl: net/ipv4/ip_forward is 0, not 1", || {
        stage.in_node("sysctl -qw net.ipv4.ip_forward=0");
    });
    stage.survives("the routing rule deleted", "fabric: no rule for what carries the mark", || {
        stage.in_node("ip rule del priority 90");
    });
    stage.survives("the ingress bridge deleted", "fabric: link shoal-ing is gone", || {
        stage.in_node("ip link del shoal-ing");
    });
    let overlay = stage.node.run_dir().join("netns").join(format!("net-{}", stage.network));
    let in_overlay = |script: &str| {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", overlay.display())).args(["sh", "-ec", script]);
        assert!(command.status().unwrap().success(), "{script}");
    };
    let each_end = "for end in $(ip -br link show master br0 | grep -o '^shv[^@]*')";
    stage.survives("answerers taken away", "balancer: no answerer on network", || {
        in_overlay(&format!("{each_end}; do tc qdisc del dev $end clsact; done"));
    });
    stage.survives("bridge entries deleted", "sandbox: no bridge entry", || {
        in_overlay(
            "bridge fdb show br br0 | grep 'dev shv' | grep static | \
             while read mac dev end rest; do bridge fdb del $mac dev $end master; done",
        );
    });
    // The far ends of the tasks' interfaces: the containers lose them, too.
    stage.survives("links of tasks deleted", "sandbox: no link to network", || {
        stage.in_node(
            "for end in $(ip -br link show master shoal-ing | sed 's/@.*//'); do ip link del $end; done",
        );
    });
    let now = stage.node.running("web", 2);
    assert!(tasks.iter().all(|old| now.iter().any(|new| new.id == old.id)), "no container was replaced");
    stage.node.finish();
}

/// `docker run` makes sandboxes, too.
#[test]
fn what_somebody_takes_out_of_a_plain_containers_sandbox_comes_back() {
    let stage = Stage::set(1);
    let node = &stage.node;
    node.docker(&["network", "create", "-d", "overlay", "--attachable", "open"]).ok();
    let web = node.service("inner", 1, &["--network", "open"], &["serve"]).remove(0);
    let id = node.docker(&["run", "-d", "--name", "guest", "--network", "open", "busybox", "idle"]).ok();
    let pid = node.inspect("container", "guest")["State"]["Pid"].as_u64().unwrap() as u32;
    let guest = Netns::of_process(pid);
    let vip = node.vip("inner");
    let reaches = || guest.run(move || fetch((vip, 80), "/index.html"));
    wait_until(PATIENCE, "the guest reaches the service", reaches);
    wait_until(PATIENCE, "nothing differs", || {
        let (found, repaired) = stage.counts();
        if found == repaired { Ok(()) } else { Err(format!("{found} found, {repaired} repaired")) }
    });

    stage.survives("the guest's interface deleted", "sandbox: no link to network", || {
        guest.run(|| {
            let deleted = Command::new("ip").args(["link", "del", "eth0"]).status().unwrap();
            assert!(deleted.success());
        });
        reaches().unwrap_err();
    });
    reaches().unwrap();
    stage.survives("the guest's namespace forgotten", "balancer: the networks of the sandbox", || {
        empty(&stage.map("sandboxes"));
    });
    reaches().unwrap();
    let now = node.inspect("container", "guest");
    assert_eq!((now["Id"].as_str(), now["State"]["Pid"].as_u64()), (Some(id.trim()), Some(pid.into())));
    drop((web, guest));
    node.docker(&["rm", "-f", "guest"]).ok();
    stage.node.finish();
}

#[test]
fn verify_names_what_differs_and_says_so_with_its_exit_code() {
    let mut stage = Stage::set(0);
    let (code, report) = stage.verify();
    assert_eq!(code, 0, "{report:#}");
    let table = stage.node.shoal(&["verify"]).ok();
    assert!(table.contains("mynet") && table.contains("The node holds what its tables say."), "{table}");

    empty(&stage.map("services"));
    stage.in_node("nft flush map inet shoal ports16");
    let output = stage.node.shoal(&["verify"]);
    assert_eq!(output.code, 1, "{output}");
    for told in [format!("mynet: balancer: {} is missing", stage.vip), "nft: ports16 lacks".to_owned()] {
        assert!(output.stdout.contains(&told), "{told}: {output}");
    }
    assert!(output.stdout.contains("1 of 1 nodes differ"), "{output}");
    let (_, report) = stage.verify();
    let tables = report["nodes"][0]["report"]["tables"].as_array().unwrap();
    assert!(tables.iter().all(|table| table["found"] == 0), "without a period nothing is repaired");
    assert!(stage.works().is_err());
    let tables = stage.node.shoal(&["node", "tables", "--format", "json"]).ok();
    assert!(tables.contains("is missing"), "{tables}");
    let doctor = stage.node.shoal(&["-H", &stage.node.host(), "doctor"]);
    assert!(doctor.code == 1 && doctor.stdout.contains("`shoal verify` names them"), "{doctor}");

    // The next daemon puts its tables into force from what it finds.
    stage.node.stop_daemon();
    stage.node.start_daemon();
    wait_until(PATIENCE, "everything works again", || stage.works());
    stage.node.finish();
}
