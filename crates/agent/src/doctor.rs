//! `shoal doctor`: whether this machine can run a node, and what to do when it cannot.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde::Serialize;
use shoal_model::{DriftCounts, NodeReport, Port};
use shoal_runtime::Runtime;

use crate::firewall::Obstacle;
use crate::node::runtime_config;
use crate::{AgentConfig, firewall};

/// Connect-time programs refuse connections with `bpf_set_retval`, which is as old as this.
const KERNEL_MIN: (u32, u32) = (6, 1);
/// The daemon has more patience, since containerd may be on its way; who asks a doctor wants an answer.
const CONTAINERD_BOUND: Duration = Duration::from_secs(3);

/// One thing looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    pub name: String,
    pub ok: bool,
    pub detail: String,
    /// What to do about it; empty when all is well.
    pub remedy: String,
}

/// What was found, or what is wrong and what helps.
type Finding = Result<String, (String, String)>;

/// Looks at everything a node needs. Changes nothing.
pub async fn run(config: &AgentConfig) -> Vec<Check> {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let release = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
    let mut checks = vec![
        check("privileges", privileges()),
        check("kernel", kernel(&release.unwrap_or_default())),
        check(
            "cgroup2",
            mounted(&mounts, "cgroup2", "mount cgroup2: mount -t cgroup2 none /sys/fs/cgroup/unified"),
        ),
        check("bpffs", bpffs(&mounts)),
        check("vxlan", module("vxlan")),
        check("bridge", module("bridge")),
        check("veth", module("veth")),
        check("nftables", nft().await),
        check("containerd", containerd(config).await),
        check("resolv.conf", resolv_conf(&config.resolv_conf)),
        check("data directory", directory(&config.data_dir)),
    ];
    checks.extend(firewalls(firewall::look(config, true).await));
    checks
}

/// What the node's daemon finds, if one runs here.
pub fn tables(report: Option<Result<NodeReport, String>>) -> Check {
    let finding = match report {
        None => Ok("no daemon runs here".to_owned()),
        Some(Err(error)) => Err((error, "look into the daemon's log".to_owned())),
        Some(Ok(report)) => drift(&report),
    };
    check("tables", finding)
}

/// Published ports that are not this node's to lead anywhere, as its daemon finds, if one runs here.
pub fn ports(report: Option<&Result<NodeReport, String>>) -> Check {
    let finding = match report {
        None => Ok("no daemon runs here".to_owned()),
        Some(Err(_)) => {
            Err(("unknown: the daemon does not tell".to_owned(), "look into the daemon's log".to_owned()))
        }
        Some(Ok(report)) => taken(report),
    };
    check("published ports", finding)
}

fn taken(report: &NodeReport) -> Finding {
    if report.taken_ports.is_empty() {
        return Ok("no other program has one".to_owned());
    }
    let list = |each: fn(&Port) -> String, between: &str| -> String {
        report.taken_ports.iter().map(each).collect::<Vec<_>>().join(between)
    };
    let detail = format!(
        "in use by other programs of this node, so that it does not lead them to tasks: {}",
        list(Port::to_string, ", ")
    );
    let which = list(|port| format!("sport = :{}", port.number), " or ");
    Err((detail, format!("ss -Hlntup '{which}' tells by which; end them, or publish other ports")))
}

fn drift(report: &NodeReport) -> Finding {
    let of_tables = report.tables.iter().map(|table| table.differences.len()).sum::<usize>();
    let differences = of_tables + report.differences.len();
    let DriftCounts { found, repaired, .. } = report.drift;
    let history = format!("{found} differences found and {repaired} repaired since the daemon started");
    if differences == 0 {
        return Ok(format!("kernel and resolver hold {} tables; {history}", report.tables.len()));
    }
    Err((format!("{differences} differences now; {history}"), "`shoal verify` names them".to_owned()))
}

fn check(name: &str, finding: Finding) -> Check {
    let name = name.to_owned();
    match finding {
        Ok(detail) => Check { name, ok: true, detail, remedy: String::new() },
        Err((detail, remedy)) => Check { name, ok: false, detail, remedy },
    }
}

fn privileges() -> Finding {
    if nix::unistd::geteuid().is_root() {
        return Ok("root".to_owned());
    }
    Err(("not root".to_owned(), "run it with sudo".to_owned()))
}

fn kernel(release: &str) -> Finding {
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) >= KERNEL_MIN => Ok(release.to_owned()),
        _ => Err((
            format!("Linux {release}"),
            format!("Linux {}.{} or newer is needed", KERNEL_MIN.0, KERNEL_MIN.1),
        )),
    }
}

fn mounted(mounts: &str, kind: &str, remedy: &str) -> Finding {
    let mut fields = mounts.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    match fields.find(|fields| fields.get(2) == Some(&kind)) {
        Some(fields) => Ok(format!("at {}", fields.get(1).unwrap_or(&""))),
        None => Err((format!("no {kind} mount"), remedy.to_owned())),
    }
}

/// The daemon mounts it itself; only the place must be there.
fn bpffs(mounts: &str) -> Finding {
    mounted(mounts, "bpf", "").or_else(|_| {
        if Path::new("/sys/fs/bpf").is_dir() {
            Ok("will be mounted at /sys/fs/bpf".to_owned())
        } else {
            Err(("no /sys/fs/bpf".to_owned(), "use a kernel with CONFIG_BPF_SYSCALL".to_owned()))
        }
    })
}

/// Loaded, built in, or there to be loaded when it is first needed.
fn module(name: &str) -> Finding {
    if Path::new("/sys/module").join(name).exists() {
        return Ok("loaded".to_owned());
    }
    let release = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
    let dir = Path::new("/lib/modules").join(release.unwrap_or_default());
    let listed = ["modules.builtin", "modules.dep"].iter().find(|list| {
        let text = std::fs::read_to_string(dir.join(list)).unwrap_or_default();
        text.lines().any(|line| line.contains(&format!("/{name}.ko")))
    });
    match listed {
        Some(&"modules.builtin") => Ok("built in".to_owned()),
        Some(_) => Ok("available".to_owned()),
        // Kernels without module files have everything built in, or not at all: only use can tell.
        None if !dir.exists() => Ok("unknown: this kernel comes without module files".to_owned()),
        None => Err((format!("no module {name}"), format!("install the kernel's {name} module"))),
    }
}

async fn output(program: &str, arguments: &[&str]) -> std::io::Result<std::process::Output> {
    tokio::process::Command::new(program).args(arguments).stdin(Stdio::null()).output().await
}

async fn nft() -> Finding {
    match output("nft", &["list", "tables"]).await {
        Ok(output) if output.status.success() => Ok("nft works".to_owned()),
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err((text, "a kernel with nf_tables is needed".to_owned()))
        }
        Err(error) => Err((format!("nft: {error}"), "install the package nftables".to_owned())),
    }
}

async fn containerd(config: &AgentConfig) -> Finding {
    let remedy =
        || format!("install and start containerd (1.6 or newer), socket {}", config.containerd.display());
    let version = async { Runtime::connect(runtime_config(config)).await?.version().await };
    let answered = tokio::time::timeout(CONTAINERD_BOUND, version).await;
    let Ok(version) = answered else {
        let seconds = CONTAINERD_BOUND.as_secs();
        let text =
            format!("containerd at {} does not answer within {seconds} s", config.containerd.display());
        return Err((text, remedy()));
    };
    match version {
        Ok(versions) if versions.runc.is_empty() => {
            Err((format!("containerd {}, but no runc", versions.containerd), "install runc".to_owned()))
        }
        Ok(versions) => Ok(format!("containerd {}, runc {}", versions.containerd, versions.runc)),
        Err(error) => Err((error.to_string(), remedy())),
    }
}

fn resolv_conf(path: &Path) -> Finding {
    match std::fs::read_to_string(path) {
        Ok(text) => {
            let servers = shoal_resolver::resolv_conf::ResolvConf::parse(&text).upstreams();
            if servers.is_empty() {
                return Err((
                    format!("{} names no server", path.display()),
                    "names of the outside will not resolve; use --resolv-conf".to_owned(),
                ));
            }
            Ok(format!("{} servers in {}", servers.len(), path.display()))
        }
        Err(error) => Err((format!("{}: {error}", path.display()), "use --resolv-conf".to_owned())),
    }
}

/// One for each foreign chain that drops what the cluster needs; the remedy is a command.
fn firewalls(found: Result<Vec<Obstacle>, String>) -> Vec<Check> {
    let found = match found {
        Ok(found) if found.is_empty() => Ok("no foreign chain drops what the cluster needs".to_owned()),
        Ok(found) => {
            let wrong = found.into_iter().map(|obstacle| Err((obstacle.detail, obstacle.remedy)));
            return wrong.map(|finding| check("firewall", finding)).collect();
        }
        Err(error) => Err((format!("unknown: {error}"), "see nftables".to_owned())),
    };
    vec![check("firewall", found)]
}

fn directory(path: &Path) -> Finding {
    let existing = path.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    let usable = nix::unistd::access(existing, nix::unistd::AccessFlags::W_OK);
    match usable {
        Ok(()) => Ok(path.display().to_string()),
        Err(error) => Err((format!("{}: {error}", existing.display()), "use --data-dir".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use shoal_model::Protocol;

    use super::*;

    #[test]
    fn kernels_are_compared_as_numbers() {
        for good in ["6.1.0-18-amd64", "6.18.0", "10.0"] {
            assert!(kernel(good).is_ok(), "{good}");
        }
        for bad in ["5.15.0", "6.0.9", "rubbish", ""] {
            assert!(kernel(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn each_obstacle_is_a_finding_with_a_command() {
        let obstacle =
            |name: &str| Obstacle { detail: format!("{name} drops"), remedy: format!("allow {name}") };
        let found = firewalls(Ok(vec![obstacle("one"), obstacle("two")]));
        assert!(found.iter().all(|check| !check.ok && check.name == "firewall"));
        assert_eq!(found[1].remedy, "allow two");
        assert!(firewalls(Ok(Vec::new()))[0].ok && !firewalls(Err("no nft".to_owned()))[0].ok);
    }

    #[test]
    fn a_node_that_differs_from_its_tables_is_not_well() {
        assert!(tables(None).ok);
        assert!(!tables(Some(Err("no answer".to_owned()))).ok);
        let drift = DriftCounts { found: 3, repaired: 2, ..DriftCounts::default() };
        let mut report = NodeReport { drift, ..NodeReport::default() };
        let well = tables(Some(Ok(report.clone())));
        assert!(well.ok && well.detail.contains("3 differences found and 2 repaired"), "{}", well.detail);
        report.differences.push("nft: table inet shoal is gone".to_owned());
        assert!(!tables(Some(Ok(report))).ok);
    }

    #[test]
    fn a_published_port_of_another_program_is_named() {
        assert!(ports(None).ok && ports(Some(&Ok(NodeReport::default()))).ok);
        let taken_ports = [8000, 8001].map(|number| Port { protocol: Protocol::Tcp, number }).into();
        let found = ports(Some(&Ok(NodeReport { taken_ports, ..NodeReport::default() })));
        assert!(!found.ok && found.detail.contains("8000/tcp, 8001/tcp"), "{found:?}");
        assert!(found.remedy.contains("'sport = :8000 or sport = :8001'"), "{found:?}");
    }

    #[test]
    fn mounts_are_found_by_kind() {
        let mounts = "none /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(mounted(mounts, "cgroup2", "").unwrap(), "at /sys/fs/cgroup/unified");
        assert!(mounted(mounts, "bpf", "mount it").is_err());
    }
}
