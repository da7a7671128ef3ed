//! `service create`: Docker's flags to Docker's service spec.

use clap::Args;
use serde_json::{Map, Value, json};

use super::publish::parse_publish;
use crate::client::{Error, Result};
use crate::network::pairs;

#[derive(Debug, Clone, Args)]
pub struct CreateArgs {
    /// Exit immediately instead of waiting for the service to converge
    #[arg(short, long)]
    pub(super) detach: bool,
    /// Suppress progress output
    #[arg(short, long)]
    pub(super) quiet: bool,
    /// Service name
    #[arg(long, default_value = "")]
    name: String,
    /// Service mode (replicated, global, replicated-job or global-job)
    #[arg(long, default_value = "replicated")]
    mode: String,
    /// Number of tasks
    #[arg(long)]
    replicas: Option<u64>,
    /// Number of job tasks to run concurrently (default equal to --replicas)
    #[arg(long)]
    max_concurrent: Option<u64>,
    /// Network attachments, NAME or name=NAME,alias=ALIAS
    #[arg(long)]
    network: Vec<String>,
    /// Endpoint mode (vip or dnsrr)
    #[arg(long, default_value = "vip")]
    endpoint_mode: String,
    /// Publish a port as a node port
    #[arg(short, long)]
    publish: Vec<String>,
    /// Set environment variables
    #[arg(short, long)]
    env: Vec<String>,
    /// Service labels
    #[arg(short, long)]
    label: Vec<String>,
    /// Container labels
    #[arg(long)]
    container_label: Vec<String>,
    /// Placement constraints
    #[arg(long)]
    constraint: Vec<String>,
    /// Container hostname
    #[arg(long, default_value = "")]
    hostname: String,
    /// Username or UID (format: <name|uid>[:<group|gid>])
    #[arg(short, long, default_value = "")]
    user: String,
    /// Working directory inside the container
    #[arg(short, long, default_value = "")]
    workdir: String,
    /// Overwrite the default ENTRYPOINT of the image
    #[arg(long)]
    entrypoint: Option<String>,
    /// Allocate a pseudo-TTY
    #[arg(short, long)]
    tty: bool,
    /// Mount the container's root filesystem as read only
    #[arg(long)]
    read_only: bool,
    /// Set one or more custom host-to-IP mappings (host:ip)
    #[arg(long = "add-host")]
    hosts: Vec<String>,
    /// Set custom DNS servers
    #[arg(long)]
    dns: Vec<String>,
    /// Set custom DNS search domains
    #[arg(long)]
    dns_search: Vec<String>,
    /// Set DNS options
    #[arg(long)]
    dns_option: Vec<String>,
    /// Command to run to check health
    #[arg(long)]
    health_cmd: Option<String>,
    /// Time between running the check (ms|s|m|h)
    #[arg(long)]
    health_interval: Option<String>,
    /// Maximum time to allow one check to run (ms|s|m|h)
    #[arg(long)]
    health_timeout: Option<String>,
    /// Start period for the container to initialize before counting retries (ms|s|m|h)
    #[arg(long)]
    health_start_period: Option<String>,
    /// Consecutive failures needed to report unhealthy
    #[arg(long)]
    health_retries: Option<u32>,
    /// Disable any container-specified HEALTHCHECK
    #[arg(long)]
    no_healthcheck: bool,
    /// Restart when condition is met ("none", "on-failure", "any")
    #[arg(long)]
    restart_condition: Option<String>,
    /// Delay between restart attempts (ns|us|ms|s|m|h)
    #[arg(long)]
    restart_delay: Option<String>,
    /// Maximum number of restarts before giving up
    #[arg(long)]
    restart_max_attempts: Option<u64>,
    /// Time to wait before force killing a container (ns|us|ms|s|m|h)
    #[arg(long)]
    stop_grace_period: Option<String>,
    /// Signal to stop the container
    #[arg(long)]
    stop_signal: Option<String>,
    /// Image to run
    image: String,
    /// Command and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

impl CreateArgs {
    /// With the words of Docker's client where it refuses.
    fn mode(&self) -> Result<Value> {
        let wrong = |text: &str| Err(Error::Usage(text.to_owned()));
        if self.max_concurrent.is_some() && self.mode != "replicated-job" {
            return wrong("max-concurrent can only be used with replicated-job mode");
        }
        let replicas = self.replicas.unwrap_or(1);
        match self.mode.as_str() {
            "global" | "global-job" if self.replicas.is_some() => {
                wrong("replicas can only be used with replicated or replicated-job mode")
            }
            "replicated" => Ok(json!({ "Replicated": { "Replicas": replicas } })),
            "global" => Ok(json!({ "Global": {} })),
            "global-job" => Ok(json!({ "GlobalJob": {} })),
            "replicated-job" => {
                let concurrent = self.max_concurrent.unwrap_or(replicas);
                Ok(json!({ "ReplicatedJob": { "MaxConcurrent": concurrent, "TotalCompletions": replicas } }))
            }
            other => wrong(&format!("Unknown mode: {other}, only replicated and global supported")),
        }
    }

    /// The body of `POST /services/create`; networks still go by the names the user gave.
    pub(super) fn spec(&self) -> Result<Value> {
        let ports = self.publish.iter().map(|text| parse_publish(text)).collect::<Result<Vec<_>>>()?;
        let networks = self.network.iter().map(|text| network(text)).collect::<Result<Vec<_>>>()?;
        let mut task = json!({
            "ContainerSpec": self.container()?,
            "Resources": { "Limits": {}, "Reservations": {} },
            "Placement": { "Constraints": self.constraint },
            "ForceUpdate": 0,
        });
        if let Some(restart) = self.restart_policy()? {
            task["RestartPolicy"] = restart;
        }
        if !networks.is_empty() {
            task["Networks"] = json!(networks);
        }
        Ok(json!({
            "Name": self.name,
            "Labels": pairs(&self.label),
            "TaskTemplate": task,
            "Mode": self.mode()?,
            "EndpointSpec": { "Mode": self.endpoint_mode, "Ports": ports.into_iter().flatten().collect::<Vec<_>>() },
        }))
    }

    fn container(&self) -> Result<Value> {
        let mut spec = Map::new();
        let mut set = |key: &str, value: Value| spec.insert(key.to_owned(), value);
        set("Image", json!(self.image));
        set("Labels", pairs(&self.container_label));
        set("Hostname", json!(self.hostname));
        set("User", json!(self.user));
        set("Dir", json!(self.workdir));
        set("TTY", json!(self.tty));
        set("ReadOnly", json!(self.read_only));
        set("Env", json!(self.env));
        set("Hosts", json!(self.hosts.iter().map(|text| host_entry(text)).collect::<Result<Vec<_>>>()?));
        if !self.args.is_empty() {
            set("Args", json!(self.args));
        }
        if let Some(entrypoint) = &self.entrypoint {
            set("Command", json!(entrypoint.split_whitespace().collect::<Vec<_>>()));
        }
        set(
            "DNSConfig",
            json!({ "Nameservers": self.dns, "Search": self.dns_search, "Options": self.dns_option }),
        );
        if let Some(health) = self.healthcheck()? {
            set("Healthcheck", health);
        }
        if let Some(signal) = &self.stop_signal {
            set("StopSignal", json!(signal));
        }
        if let Some(grace) = nanoseconds(&self.stop_grace_period)? {
            set("StopGracePeriod", json!(grace));
        }
        Ok(Value::Object(spec))
    }

    fn healthcheck(&self) -> Result<Option<Value>> {
        if self.no_healthcheck {
            return Ok(Some(json!({ "Test": ["NONE"] })));
        }
        let mut check = Map::new();
        if let Some(command) = &self.health_cmd {
            check.insert("Test".to_owned(), json!(["CMD-SHELL", command]));
        }
        for (key, text) in [
            ("Interval", &self.health_interval),
            ("Timeout", &self.health_timeout),
            ("StartPeriod", &self.health_start_period),
        ] {
            if let Some(value) = nanoseconds(text)? {
                check.insert(key.to_owned(), json!(value));
            }
        }
        if let Some(retries) = self.health_retries {
            check.insert("Retries".to_owned(), json!(retries));
        }
        Ok((!check.is_empty()).then_some(Value::Object(check)))
    }

    fn restart_policy(&self) -> Result<Option<Value>> {
        let mut policy = Map::new();
        if let Some(condition) = &self.restart_condition {
            policy.insert("Condition".to_owned(), json!(condition));
        }
        if let Some(delay) = nanoseconds(&self.restart_delay)? {
            policy.insert("Delay".to_owned(), json!(delay));
        }
        if let Some(attempts) = self.restart_max_attempts {
            policy.insert("MaxAttempts".to_owned(), json!(attempts));
        }
        Ok((!policy.is_empty()).then_some(Value::Object(policy)))
    }
}

/// `NAME` or `name=NAME,alias=A,alias=B`.
fn network(text: &str) -> Result<Value> {
    if !text.contains('=') {
        return Ok(json!({ "Target": text }));
    }
    let (mut target, mut aliases) = (String::new(), Vec::new());
    for field in text.split(',') {
        match field.split_once('=') {
            Some(("name", value)) => target = value.to_owned(),
            Some(("alias", value)) => aliases.push(value.to_owned()),
            _ => return Err(Error::Usage(format!("invalid field key {field} in --network"))),
        }
    }
    Ok(json!({ "Target": target, "Aliases": aliases }))
}

/// `host:ip` on the command line is `ip host` in the spec, as in hosts(5).
fn host_entry(text: &str) -> Result<String> {
    let (host, address) = text
        .split_once(':')
        .filter(|(host, address)| !host.is_empty() && !address.is_empty())
        .ok_or_else(|| Error::Usage(format!("bad format for add-host: \"{text}\"")))?;
    Ok(format!("{address} {host}"))
}

fn nanoseconds(text: &Option<String>) -> Result<Option<i64>> {
    text.as_deref().map(parse_duration).transpose()
}

/// Go's duration syntax: `1h2m3.5s`, `300ms`. The answer is in nanoseconds.
fn parse_duration(text: &str) -> Result<i64> {
    let invalid = || Error::Usage(format!("invalid duration \"{text}\""));
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(invalid)?;
        let number: f64 = rest[..digits].parse().map_err(|_| invalid())?;
        rest = &rest[digits..];
        let unit_end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        total += number
            * match &rest[..unit_end] {
                "ns" => 1.0,
                "us" | "µs" => 1e3,
                "ms" => 1e6,
                "s" => 1e9,
                "m" => 60e9,
                "h" => 3600e9,
                _ => return Err(invalid()),
            };
        rest = &rest[unit_end..];
    }
    if text.is_empty() || total > i64::MAX as f64 { Err(invalid()) } else { Ok(total as i64) }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: CreateArgs,
    }

    fn spec(words: &[&str]) -> Value {
        Cli::try_parse_from([&["create"], words].concat()).unwrap().args.spec().unwrap()
    }

    #[test]
    fn the_walk_throughs_service() {
        let spec = spec(&[
            "--network",
            "mynet",
            "--name",
            "myservice",
            "--replicas",
            "2",
            "busybox",
            "ping",
            "-c1",
            "x",
        ]);
        assert_eq!(spec["Name"], "myservice");
        assert_eq!(spec["Mode"]["Replicated"]["Replicas"], 2);
        assert_eq!(spec["TaskTemplate"]["Networks"], json!([{ "Target": "mynet" }]));
        assert_eq!(spec["TaskTemplate"]["ContainerSpec"]["Image"], "busybox");
        assert_eq!(spec["TaskTemplate"]["ContainerSpec"]["Args"], json!(["ping", "-c1", "x"]));
    }

    #[test]
    fn a_job_works_on_all_at_once_unless_told_otherwise() {
        let mode = |words: &[&str]| spec(&[words, &["busybox"]].concat())["Mode"].clone();
        let job = ["--mode", "replicated-job", "--replicas", "3"];
        let shown = |concurrent: u64| json!({ "ReplicatedJob": { "MaxConcurrent": concurrent, "TotalCompletions": 3 } });
        assert_eq!(mode(&job), shown(3));
        assert_eq!(mode(&[&job[..], &["--max-concurrent", "2"]].concat()), shown(2));
        assert_eq!(mode(&["--mode", "global-job"]), json!({ "GlobalJob": {} }));
        let refused = Cli::try_parse_from(["create", "--mode", "global", "--replicas", "2", "busybox"]);
        assert!(refused.unwrap().args.spec().is_err());
    }

    #[test]
    fn ports_aliases_and_health_checks() {
        let spec = spec(&[
            "-p",
            "8000:80",
            "--network",
            "name=n,alias=a",
            "--health-cmd",
            "true",
            "--health-interval",
            "1m30s",
            "--endpoint-mode",
            "dnsrr",
            "busybox",
        ]);
        assert_eq!(spec["EndpointSpec"]["Mode"], "dnsrr");
        assert_eq!(spec["EndpointSpec"]["Ports"][0]["PublishedPort"], 8000);
        assert_eq!(spec["TaskTemplate"]["Networks"][0], json!({ "Target": "n", "Aliases": ["a"] }));
        let health = &spec["TaskTemplate"]["ContainerSpec"]["Healthcheck"];
        assert_eq!(health["Test"], json!(["CMD-SHELL", "true"]));
        assert_eq!(health["Interval"], 90_000_000_000i64);
    }

    #[test]
    fn durations_are_gos() {
        assert_eq!(parse_duration("1h2m3.5s").unwrap(), 3_723_500_000_000);
        assert_eq!(parse_duration("300ms").unwrap(), 300_000_000);
        for bad in ["", "5", "s", "1x", "1.2.3s"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
