//! What a daemon is told: flags, then `daemon.json`, then defaults.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Deserialize;
use shoal_agent::AgentConfig;
use shoal_runtime::registry::RegistryConfig;

/// Read when it is there and no other file is named.
const CONFIG_FILE: &str = "/etc/shoal/daemon.json";
const VERIFY_PERIOD_SECONDS: u64 = 10;
const HEALTH_GRACE_SECONDS: u64 = 5;
/// Where roots of registries' certificates are looked for.
const CERTIFICATES: [&str; 2] = ["/etc/shoal/certs.d", "/etc/docker/certs.d"];

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    #[default]
    Text,
    Json,
}

/// Flags of every verb that concerns a node of this machine.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct DaemonArgs {
    /// Where the node keeps what survives a reboot [default: /var/lib/shoal]
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
    /// Where the node keeps sockets and namespaces [default: /run/shoal]
    #[arg(long)]
    pub run_dir: Option<PathBuf>,
    /// Name of the node in its cluster [default: the host name]
    #[arg(long)]
    pub node_name: Option<String>,
    /// The node's resolver configuration [default: /etc/resolv.conf]
    #[arg(long)]
    pub resolv_conf: Option<PathBuf>,
    /// Socket of containerd [default: /run/containerd/containerd.sock]
    #[arg(long)]
    pub containerd: Option<PathBuf>,
    /// containerd's namespace for this node [default: shoal]
    #[arg(long)]
    pub containerd_namespace: Option<String>,
    /// Configuration file; flags win over it [default: /etc/shoal/daemon.json]
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Form of the daemon's own log [default: text]
    #[arg(long)]
    pub log_format: Option<LogFormat>,
    /// Seconds between two looks at what kernel and resolver really hold; 0: never [default: 10]
    #[arg(long)]
    pub verify_period: Option<u64>,
    /// A label of the engine, KEY=VALUE, for constraints and preferences (engine.labels.KEY); repeatable
    #[arg(long)]
    pub label: Vec<String>,
    /// A registry (HOST[:PORT]) or network whose certificates are not checked, and which may be without TLS;
    /// may be given several times
    #[arg(long = "insecure-registry")]
    pub insecure_registries: Vec<String>,
    /// Directory with more roots for registries' certificates, HOST[:PORT]/*.crt
    /// [default: /etc/shoal/certs.d and /etc/docker/certs.d]
    #[arg(long)]
    pub registry_certificates: Option<PathBuf>,
    /// Where load balancers ask whether the node is in service, ADDRESS:PORT; nowhere unless it is given
    #[arg(long)]
    pub health_address: Option<SocketAddr>,
    /// Seconds for which a daemon that is told to stop says so at the health address before it does [default: 5]
    #[arg(long)]
    pub health_grace: Option<u64>,
    /// Where Prometheus asks for the node's numbers, ADDRESS:PORT; nowhere unless it is given
    #[arg(long)]
    pub metrics_addr: Option<SocketAddr>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    pub node: DaemonArgs,
    /// Print the checks as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ResetArgs {
    #[command(flatten)]
    pub node: DaemonArgs,
}

/// `daemon.json`: Docker's key names where the meaning is Docker's.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    hosts: Vec<String>,
    data_root: Option<PathBuf>,
    exec_root: Option<PathBuf>,
    node_name: Option<String>,
    resolv_conf: Option<PathBuf>,
    containerd: Option<PathBuf>,
    containerd_namespace: Option<String>,
    log_format: Option<LogFormat>,
    verify_period: Option<u64>,
    labels: Vec<String>,
    insecure_registries: Vec<String>,
    registry_certificates: Option<PathBuf>,
    health_address: Option<SocketAddr>,
    health_grace: Option<u64>,
    metrics_addr: Option<SocketAddr>,
}

/// Where and for how long a node says how it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Health {
    pub address: SocketAddr,
    pub grace: Duration,
}

/// Everything decided.
#[derive(Debug)]
pub(crate) struct Options {
    /// The unix socket on which the API is served.
    pub socket: PathBuf,
    pub agent: AgentConfig,
    pub log_format: LogFormat,
    pub health: Option<Health>,
    pub metrics: Option<SocketAddr>,
}

impl DaemonArgs {
    /// Fills every gap; `host` is a `-H` from the command line.
    pub(crate) fn resolve(self, host: Option<String>) -> anyhow::Result<Options> {
        let file = self.read_file()?;
        let host = match (host, file.hosts.as_slice()) {
            (Some(host), _) => host,
            (None, []) => shoal_cli::DEFAULT_HOST.to_owned(),
            (None, [host]) => host.clone(),
            (None, hosts) => bail!("only one host is supported, the configuration names {}", hosts.len()),
        };
        let Some(socket) = host.strip_prefix("unix://") else {
            bail!("cannot listen on {host:?}: only unix:///PATH is supported");
        };
        let node_name = match self.node_name.or(file.node_name) {
            Some(name) => name,
            None => nix::unistd::gethostname()?.to_string_lossy().into_owned(),
        };
        // As Docker's daemon: those of the command line, or else those of the file.
        let labels = if self.label.is_empty() { file.labels } else { self.label };
        let engine_labels = labels.iter().map(|text| label(text)).collect::<anyhow::Result<_>>()?;
        let path = |flag: Option<PathBuf>, file: Option<PathBuf>, default: &str| {
            let path = flag.or(file).unwrap_or_else(|| PathBuf::from(default));
            std::path::absolute(&path).with_context(|| format!("path {}", path.display()))
        };
        let grace = self.health_grace.or(file.health_grace).unwrap_or(HEALTH_GRACE_SECONDS);
        let health = self.health_address.or(file.health_address);
        Ok(Options {
            health: health.map(|address| Health { address, grace: Duration::from_secs(grace) }),
            metrics: self.metrics_addr.or(file.metrics_addr),
            socket: std::path::absolute(socket)?,
            log_format: self.log_format.or(file.log_format).unwrap_or_default(),
            agent: AgentConfig {
                data_dir: path(self.data_dir, file.data_root, "/var/lib/shoal")?,
                run_dir: path(self.run_dir, file.exec_root, "/run/shoal")?,
                node_name,
                engine_labels,
                resolv_conf: path(self.resolv_conf, file.resolv_conf, "/etc/resolv.conf")?,
                executable: std::env::current_exe()?,
                containerd: path(self.containerd, file.containerd, "/run/containerd/containerd.sock")?,
                containerd_namespace: self
                    .containerd_namespace
                    .or(file.containerd_namespace)
                    .unwrap_or_else(|| "shoal".to_owned()),
                verify_period: Duration::from_secs(
                    self.verify_period.or(file.verify_period).unwrap_or(VERIFY_PERIOD_SECONDS),
                ),
                registries: RegistryConfig {
                    insecure: [self.insecure_registries, file.insecure_registries].concat(),
                    certificates: match self.registry_certificates.or(file.registry_certificates) {
                        Some(directory) => vec![std::path::absolute(directory)?],
                        None => CERTIFICATES.map(PathBuf::from).to_vec(),
                    },
                },
            },
        })
    }

    fn read_file(&self) -> anyhow::Result<File> {
        let path = self.config.as_deref().unwrap_or(Path::new(CONFIG_FILE));
        let text = match std::fs::read_to_string(path) {
            Err(error) if self.config.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(File::default());
            }
            read => read.with_context(|| format!("read {}", path.display()))?,
        };
        serde_json::from_str(&text).with_context(|| format!("configuration {}", path.display()))
    }
}

fn label(text: &str) -> anyhow::Result<(String, String)> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => bail!("bad attribute format: {text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_file(text: &str) -> (tempfile::TempDir, DaemonArgs) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("daemon.json");
        std::fs::write(&path, text).unwrap();
        (dir, DaemonArgs { config: Some(path), ..DaemonArgs::default() })
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let (_dir, mut arguments) = with_file(
            r#"{"data-root": "/a", "exec-root": "/b", "hosts": ["unix:///c.sock"], "log-format": "json"}"#,
        );
        arguments.data_dir = Some("/flag".into());
        let options = arguments.clone().resolve(None).unwrap();
        assert_eq!(options.agent.data_dir, Path::new("/flag"));
        assert_eq!(options.agent.run_dir, Path::new("/b"));
        assert_eq!(options.socket, Path::new("/c.sock"));
        assert_eq!(options.log_format, LogFormat::Json);
        assert_eq!(options.agent.containerd_namespace, "shoal");
        let options = arguments.resolve(Some("unix:///d.sock".to_owned())).unwrap();
        assert_eq!(options.socket, Path::new("/d.sock"));
    }

    #[test]
    fn labels_come_from_the_command_line_or_else_from_the_file() {
        let (_dir, mut arguments) = with_file(r#"{"labels": ["disk=ssd", "empty="]}"#);
        let labels = |arguments: &DaemonArgs| arguments.clone().resolve(None).unwrap().agent.engine_labels;
        assert_eq!(labels(&arguments), [("disk", "ssd"), ("empty", "")].map(owned).into());
        arguments.label = vec!["disk=hdd".to_owned()];
        assert_eq!(labels(&arguments), [("disk", "hdd")].map(owned).into());
        arguments.label = vec!["disk".to_owned()];
        assert_eq!(arguments.resolve(None).unwrap_err().to_string(), "bad attribute format: disk");
    }

    fn owned((key, value): (&str, &str)) -> (String, String) {
        (key.to_owned(), value.to_owned())
    }

    /// A port that is open to the outside is not opened unasked.
    #[test]
    fn the_health_endpoint_is_off_unless_it_has_an_address() {
        let (_dir, arguments) = with_file("{}");
        assert_eq!(arguments.resolve(None).unwrap().health, None);
        let (_dir, mut arguments) = with_file(r#"{"health-address": "192.0.2.10:2378", "health-grace": 9}"#);
        let health = |arguments: &DaemonArgs| arguments.clone().resolve(None).unwrap().health.unwrap();
        let (address, grace) = ("192.0.2.10:2378".parse().unwrap(), Duration::from_secs(9));
        assert_eq!(health(&arguments), Health { address, grace });
        arguments.health_address = Some("[::]:2378".parse().unwrap());
        assert_eq!(health(&arguments).address, "[::]:2378".parse().unwrap());
    }

    #[test]
    fn metrics_are_off_unless_they_have_an_address() {
        let (_dir, arguments) = with_file("{}");
        assert_eq!(arguments.resolve(None).unwrap().metrics, None);
        let (_dir, mut arguments) = with_file(r#"{"metrics-addr": "127.0.0.1:9323"}"#);
        let metrics = |arguments: &DaemonArgs| arguments.clone().resolve(None).unwrap().metrics.unwrap();
        assert_eq!(metrics(&arguments), "127.0.0.1:9323".parse().unwrap());
        arguments.metrics_addr = Some("[::1]:9323".parse().unwrap());
        assert_eq!(metrics(&arguments), "[::1]:9323".parse().unwrap());
    }

    #[test]
    fn unknown_keys_and_missing_files_are_errors() {
        let (_dir, arguments) = with_file(r#"{"data-rot": "/a"}"#);
        let error = format!("{:#}", arguments.resolve(None).unwrap_err());
        assert!(error.contains("unknown field `data-rot`"), "{error}");
        let missing = DaemonArgs { config: Some("/nonexistent/daemon.json".into()), ..DaemonArgs::default() };
        assert!(missing.resolve(None).is_err());
    }

    #[test]
    fn only_unix_sockets_are_served() {
        let (_dir, arguments) = with_file("{}");
        assert!(arguments.resolve(Some("tcp://0.0.0.0:2375".to_owned())).is_err());
    }
}
