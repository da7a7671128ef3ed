//! A plain container as a client declares it → [`shoal_agent::PlainSpec`].
//!
//! What cannot be honoured is refused by name.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use shoal_agent::{Link, NetworkMode, Place, PlainSpec, Restart};
use shoal_model as model;
use shoal_model::{DnsConfig, MountKind, Propagation, Resources};

use super::port;
use super::service_in::{healthcheck, mount, ulimit, volume};
use crate::error::{ApiError, Result};
use crate::wire::Unsupported;
use crate::wire::create as wire;

pub(crate) fn plain(request: wire::Create) -> Result<PlainSpec> {
    refuse("", &request.rest)?;
    let host = request.host_config.unwrap_or_default();
    refuse("HostConfig.", &host.rest)?;
    check_modes(&host)?;
    let (network, mut places, shares) = networks(&host, request.networking_config.unwrap_or_default())?;
    if let Some(text) = request.mac_address.as_deref().filter(|text| !text.is_empty()) {
        let first = places.first_mut().filter(|_| network == NetworkMode::Named);
        let without = || ApiError::unsupported("a MAC address of one's own on the default network is");
        first.ok_or_else(without)?.mac = Some(mac(text)?);
    }
    let ports = port::asked(&host)?;
    let publish_all = host.publish_all_ports.unwrap_or_default();
    let exposed = request.exposed_ports.unwrap_or_default();
    let dns = dns(&host)?;
    let image = request.image.unwrap_or_default();
    if image.is_empty() {
        return Err(ApiError::bad_request("no image specified"));
    }
    let links = links(&host, network)?;
    let (command, args) = command(request.entrypoint.unwrap_or_default(), request.cmd.unwrap_or_default())?;
    let restart = restart(host.restart_policy.clone().unwrap_or_default())?;
    let auto_remove = host.auto_remove.unwrap_or_default();
    if auto_remove && restart != Restart::No {
        return Err(ApiError::bad_request("can't create 'AutoRemove' container with restart policy"));
    }
    Ok(PlainSpec {
        resources: resources(&host)?,
        log_options: log_options(host.log_config.clone().unwrap_or_default())?,
        container: model::ContainerSpec {
            image,
            labels: request.labels.unwrap_or_default(),
            command,
            args,
            hostname: request.hostname.unwrap_or_default(),
            env: request.env.unwrap_or_default(),
            dir: request.working_dir.unwrap_or_default(),
            user: request.user.unwrap_or_default(),
            groups: host.group_add.clone().unwrap_or_default(),
            tty: request.tty.unwrap_or_default(),
            open_stdin: request.open_stdin.unwrap_or_default(),
            read_only: host.readonly_rootfs.unwrap_or_default(),
            init: host.init,
            mounts: mounts(&host, request.volumes.unwrap_or_default())?,
            hosts: hosts(host.extra_hosts.as_deref().unwrap_or_default())?,
            dns,
            healthcheck: request.healthcheck.map(healthcheck).transpose()?,
            stop_signal: request.stop_signal.unwrap_or_default(),
            stop_grace_period: request.stop_timeout.map(|seconds| {
                u64::try_from(seconds).map_or(Duration::from_secs(u32::MAX.into()), Duration::from_secs)
            }),
            sysctls: host.sysctls.unwrap_or_default(),
            capability_add: host.cap_add.unwrap_or_default(),
            capability_drop: host.cap_drop.unwrap_or_default(),
            ulimits: host.ulimits.unwrap_or_default().into_iter().map(ulimit).collect(),
            secrets: Vec::new(),
            configs: Vec::new(),
        },
        network,
        places,
        shares,
        ports,
        exposed: exposed.keys().map(|text| port::port(text)).collect::<Result<_>>()?,
        publish_all,
        auto_remove,
        restart,
        stdin_once: request.stdin_once.unwrap_or_default(),
        links,
    })
}

fn refuse(prefix: &str, rest: &BTreeMap<String, Unsupported>) -> Result<()> {
    rest.iter().try_for_each(|(name, field)| field.refuse(&format!("{prefix}{name} of a container is")))
}

/// Modes that have one value here.
fn check_modes(host: &wire::HostConfig) -> Result<()> {
    for (name, value, known) in [
        ("CgroupnsMode", &host.cgroupns_mode, "host"),
        ("IpcMode", &host.ipc_mode, "private"),
        ("Runtime", &host.runtime, "runc"),
        ("Isolation", &host.isolation, "default"),
    ] {
        match value.as_deref() {
            None | Some("") => {}
            Some(value) if value == known => {}
            Some(other) => return Err(ApiError::unsupported(format!("{name} {other} of a container is"))),
        }
    }
    match host.memory_swappiness {
        None | Some(-1) => Ok(()),
        Some(_) => Err(ApiError::unsupported("MemorySwappiness of a container is")),
    }
}

/// `--entrypoint ""` takes the image's away.
fn command(entrypoint: Vec<String>, cmd: Vec<String>) -> Result<(Vec<String>, Vec<String>)> {
    match entrypoint.as_slice() {
        [only] if only.is_empty() => {
            if cmd.is_empty() {
                return Err(ApiError::bad_request("no command specified"));
            }
            Ok((cmd, Vec::new()))
        }
        _ => Ok((entrypoint, cmd)),
    }
}

// === networks ===

/// Where a container goes: its mode, its places, and whose network it shares.
type Networks = (NetworkMode, Vec<Place>, Option<String>);

fn networks(host: &wire::HostConfig, config: wire::NetworkingConfig) -> Result<Networks> {
    let mode = host.network_mode.as_deref().unwrap_or_default();
    let endpoints = config.endpoints_config.unwrap_or_default();
    let own = match mode {
        "" | "default" | "bridge" => NetworkMode::Bridge,
        "none" => NetworkMode::None,
        "host" => NetworkMode::Host,
        _ if mode.starts_with("container:") => NetworkMode::Container,
        _ => NetworkMode::Named,
    };
    if own == NetworkMode::Named {
        return Ok((own, places(mode, endpoints)?, None));
    }
    let mut further = Vec::new();
    for (name, endpoint) in endpoints {
        let place = place(name, endpoint.unwrap_or_default())?;
        if !matches!(place.network.as_str(), "default" | "bridge" | "none" | "host") {
            if own != NetworkMode::Bridge {
                return Err(ApiError::bad_request(format!(
                    "conflicting options: container of network mode {mode} cannot join network {}",
                    place.network
                )));
            }
            further.push(place);
            continue;
        }
        if !place.aliases.is_empty() {
            return Err(ApiError::bad_request(
                "network-scoped aliases are only supported for user-defined networks",
            ));
        }
        if place.address.or(place.address_v6).is_some() {
            return Err(ApiError::bad_request(
                "invalid config for network bridge: user specified IP address is supported on user defined \
                 networks only",
            ));
        }
    }
    let shares = mode.strip_prefix("container:").map(str::to_owned);
    if shares.is_some() && host.port_bindings.as_ref().is_some_and(|ports| !ports.is_empty()) {
        return Err(ApiError::bad_request(
            "conflicting options: port publishing and the container type network mode",
        ));
    }
    Ok((own, further, shares))
}

/// `container:alias`, or `container`. On a network of the user's the client says them twice.
fn links(host: &wire::HostConfig, network: NetworkMode) -> Result<Vec<Link>> {
    let texts = host.links.as_deref().unwrap_or_default();
    if !texts.is_empty() && network != NetworkMode::Named {
        return Err(ApiError::unsupported_but(
            "links on the default network are",
            "run both containers on a network of your own, where they have names",
        ));
    }
    let link = |text: &String| {
        let (target, alias) = text.split_once(':').unwrap_or((text, text));
        if target.is_empty() || alias.is_empty() {
            return Err(ApiError::bad_request(format!("bad format for links: {text}")));
        }
        Ok(Link { alias: alias.to_owned(), target: target.trim_start_matches('/').to_owned() })
    };
    texts.iter().map(link).collect()
}

/// The network of the mode first; it may have no configuration of its own.
fn places(mode: &str, mut endpoints: BTreeMap<String, Option<wire::EndpointConfig>>) -> Result<Vec<Place>> {
    let first = endpoints.remove(mode).flatten().unwrap_or_default();
    let mut places = vec![place(mode.to_owned(), first)?];
    for (name, endpoint) in endpoints {
        places.push(place(name, endpoint.unwrap_or_default())?);
    }
    Ok(places)
}

pub(crate) fn place(network: String, endpoint: wire::EndpointConfig) -> Result<Place> {
    endpoint.driver_opts.refuse("driver options of a container's network are")?;
    endpoint.gw_priority.refuse("GwPriority of a container's network is")?;
    let ipam = endpoint.ipam.unwrap_or_default();
    ipam.link_local.refuse("link-local addresses of a container are")?;
    let address = |text: Option<String>, family: &str| match text.filter(|text| !text.is_empty()) {
        None => Ok(None),
        Some(text) => match text.parse::<IpAddr>() {
            Ok(address) if address.is_ipv6() == (family == "IPv6") => Ok(Some(address)),
            _ => Err(ApiError::bad_request(format!("invalid {family} address: {text}"))),
        },
    };
    Ok(Place {
        network,
        aliases: endpoint.aliases.unwrap_or_default(),
        address: address(ipam.ipv4, "IPv4")?,
        address_v6: address(ipam.ipv6, "IPv6")?,
        mac: endpoint.mac_address.filter(|text| !text.is_empty()).map(|text| mac(&text)).transpose()?,
        // The node knows.
        local: None,
    })
}

fn mac(text: &str) -> Result<model::MacAddr> {
    let invalid = || ApiError::bad_request(format!("invalid MAC address: {text}"));
    let mac: model::MacAddr = text.parse().map_err(|_| invalid())?;
    // A group's is nobody's own.
    if mac.0[0] & 1 == 1 { Err(invalid()) } else { Ok(mac) }
}

fn dns(host: &wire::HostConfig) -> Result<DnsConfig> {
    let servers = host.dns.iter().flatten();
    let nameservers = servers.map(|text| {
        text.parse::<IpAddr>().map_err(|_| ApiError::bad_request(format!("invalid nameserver: {text}")))
    });
    Ok(DnsConfig {
        nameservers: nameservers.collect::<Result<_>>()?,
        search: host.dns_search.clone().unwrap_or_default(),
        options: host.dns_options.clone().unwrap_or_default(),
    })
}

/// `name:address` → `address name`.
fn hosts(extra: &[String]) -> Result<Vec<String>> {
    let line = |text: &String| {
        let (name, address) = text
            .split_once(['=', ':'])
            .filter(|(name, _)| !name.is_empty())
            .ok_or_else(|| ApiError::bad_request(format!("bad format for add-host: \"{text}\"")))?;
        let address = address.trim_start_matches('[').trim_end_matches(']');
        if address != "host-gateway" && address.parse::<IpAddr>().is_err() {
            return Err(ApiError::bad_request(format!("invalid IP address in add-host: \"{address}\"")));
        }
        Ok(format!("{address} {name}"))
    };
    extra.iter().map(line).collect()
}

// === the rest ===

/// `volumes`: where the container wants one of its own.
fn mounts(
    host: &wire::HostConfig,
    volumes: BTreeMap<String, serde_json::Value>,
) -> Result<Vec<model::Mount>> {
    let binds = host.binds.iter().flatten().map(|text| bind(text));
    let given = host.mounts.iter().flatten().cloned().map(mount);
    let tmpfs = host.tmpfs.iter().flatten().map(|(target, options)| tmpfs(target, options));
    let own = volumes.into_keys().map(|target| {
        let kind = volume(String::new(), Default::default())?;
        Ok(model::Mount { kind, target, read_only: false })
    });
    binds.chain(given).chain(tmpfs).chain(own).collect()
}

/// `/source:/target[:options]`, or the name of a volume in place of the source.
fn bind(text: &str) -> Result<model::Mount> {
    let invalid = || ApiError::bad_request(format!("invalid volume specification: '{text}'"));
    let mut parts = text.split(':');
    let (Some(source), Some(target)) = (parts.next(), parts.next()) else { return Err(invalid()) };
    let options = parts.next().unwrap_or_default();
    if parts.next().is_some() || !target.starts_with('/') {
        return Err(invalid());
    }
    let is_bind = source.starts_with('/');
    let (mut read_only, mut no_copy, mut propagation) = (false, false, Propagation::default());
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => read_only = true,
            "nocopy" if !is_bind => no_copy = true,
            // Without SELinux the last two say nothing.
            "rw" | "z" | "Z" => {}
            other => {
                let found = Propagation::ALL.into_iter().find(|propagation| propagation.as_str() == other);
                propagation = found
                    .filter(|_| is_bind)
                    .ok_or_else(|| ApiError::unsupported(format!("option {other} of a mount ({text}) is")))?;
            }
        }
    }
    let kind = if is_bind {
        MountKind::Bind { source: source.to_owned(), propagation, non_recursive: false }
    } else {
        MountKind::Volume { name: source.to_owned(), labels: model::Labels::new(), no_copy }
    };
    Ok(model::Mount { kind, target: target.to_owned(), read_only })
}

fn tmpfs(target: &str, options: &str) -> Result<model::Mount> {
    let (mut size, mut mode, mut read_only) = (None, None, false);
    for option in options.split(',').filter(|option| !option.is_empty()) {
        let bad = || ApiError::bad_request(format!("invalid tmpfs option [\"{option}\"]"));
        match option.split_once('=') {
            Some(("size", text)) => size = Some(bytes(text).ok_or_else(bad)?),
            Some(("mode", text)) => mode = Some(u32::from_str_radix(text, 8).map_err(|_| bad())?),
            None if option == "ro" => read_only = true,
            // What a tmpfs mount has anyway.
            None if matches!(option, "rw" | "noexec" | "nosuid" | "nodev") => {}
            _ => return Err(ApiError::unsupported(format!("option {option} of a tmpfs mount is"))),
        }
    }
    Ok(model::Mount { kind: MountKind::Tmpfs { size, mode }, target: target.to_owned(), read_only })
}

/// `64k`, `1g`: powers of 1024.
fn bytes(text: &str) -> Option<u64> {
    let text = text.to_ascii_lowercase();
    let text = text.strip_suffix('b').unwrap_or(&text);
    let (digits, shift) = match text.char_indices().last()? {
        (at, 'k') => (&text[..at], 10),
        (at, 'm') => (&text[..at], 20),
        (at, 'g') => (&text[..at], 30),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn resources(host: &wire::HostConfig) -> Result<Resources> {
    let amount = |value: Option<i64>, what: &str| {
        u64::try_from(value.unwrap_or_default())
            .map_err(|_| ApiError::bad_request(format!("invalid {what}: cannot be negative")))
    };
    Ok(Resources {
        limit_nano_cpus: amount(host.nano_cpus, "cpu limit")?,
        limit_memory: amount(host.memory, "memory limit")?,
        limit_pids: amount(host.pids_limit.map(|limit| limit.max(0)), "pids limit")?,
        reserve_nano_cpus: 0,
        reserve_memory: amount(host.memory_reservation, "memory reservation")?,
    })
}

fn restart(policy: wire::RestartPolicy) -> Result<Restart> {
    let attempts = policy.maximum_retry_count.unwrap_or_default();
    let name = policy.name.unwrap_or_default();
    if attempts != 0 && name != "on-failure" {
        return Err(ApiError::bad_request(
            "invalid restart policy: maximum retry count can only be used with 'on-failure'",
        ));
    }
    match name.as_str() {
        "" | "no" => Ok(Restart::No),
        "always" => Ok(Restart::Always),
        "unless-stopped" => Ok(Restart::UnlessStopped),
        "on-failure" => {
            let attempts = u32::try_from(attempts).map_err(|_| {
                ApiError::bad_request("invalid restart policy: maximum retry count cannot be negative")
            })?;
            Ok(Restart::OnFailure { attempts })
        }
        other => Err(ApiError::bad_request(format!("invalid restart policy: unknown policy '{other}'"))),
    }
}

fn log_options(config: wire::LogConfig) -> Result<model::Labels> {
    match config.r#type.as_deref() {
        None | Some("" | "json-file") => {}
        Some(other) => return Err(ApiError::unsupported(format!("log driver {other} is"))),
    }
    let options = config.config.unwrap_or_default();
    match options.keys().find(|key| !matches!(key.as_str(), "max-size" | "max-file")) {
        Some(key) => Err(ApiError::unsupported(format!("option {key} of log driver json-file is"))),
        None => Ok(options),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Result<PlainSpec> {
        plain(serde_json::from_str(body).unwrap())
    }

    fn refused(body: &str) -> String {
        read(body).unwrap_err().message
    }

    #[test]
    fn what_the_client_always_sends_asks_for_nothing() {
        // As docker 28.2 sends it for `docker run -d --network attnet --network-alias aal busybox sleep 9`.
        let spec = read(
            r#"{"Hostname":"","Domainname":"","User":"","AttachStdin":false,"AttachStdout":false,"AttachStderr":false,
            "Tty":false,"OpenStdin":false,"StdinOnce":false,"Env":null,"Cmd":["sleep","9"],"Image":"busybox",
            "Volumes":{},"WorkingDir":"","Entrypoint":null,"OnBuild":null,"Labels":{},"HostConfig":{"Binds":null,
            "ContainerIDFile":"","LogConfig":{"Type":"","Config":{}},"NetworkMode":"attnet","PortBindings":{},
            "RestartPolicy":{"Name":"no","MaximumRetryCount":0},"AutoRemove":false,"VolumeDriver":"",
            "VolumesFrom":null,"ConsoleSize":[0,0],"CapAdd":null,"CapDrop":null,"CgroupnsMode":"","Dns":[],
            "DnsOptions":[],"DnsSearch":[],"ExtraHosts":null,"GroupAdd":null,"IpcMode":"","Cgroup":"","Links":null,
            "OomScoreAdj":0,"PidMode":"","Privileged":false,"PublishAllPorts":false,"ReadonlyRootfs":false,
            "SecurityOpt":null,"UTSMode":"","UsernsMode":"","ShmSize":0,"Isolation":"","CpuShares":0,"Memory":0,
            "NanoCpus":0,"MemorySwap":0,"MemorySwappiness":-1,"OomKillDisable":false,"PidsLimit":0,"Ulimits":[],
            "MaskedPaths":null,"ReadonlyPaths":null},"NetworkingConfig":{"EndpointsConfig":{"attnet":{
            "IPAMConfig":null,"Links":null,"Aliases":["aal"],"MacAddress":"","DriverOpts":null,"GwPriority":0,
            "NetworkID":"","EndpointID":"","Gateway":"","IPAddress":"","DNSNames":null}}}}"#,
        )
        .unwrap();
        assert_eq!(spec.network, NetworkMode::Named);
        assert_eq!(spec.places.len(), 1);
        assert_eq!(
            (spec.places[0].network.as_str(), &spec.places[0].aliases[..]),
            ("attnet", &["aal".to_owned()][..])
        );
        assert_eq!(spec.container.args, ["sleep", "9"]);
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        for (host, expect) in [
            (r#""Privileged":true"#, "HostConfig.Privileged of a container is not supported"),
            (
                r#""PortBindings":{"80/tcp":[{"HostPort":"8009-8000"}]}"#,
                "invalid port specification: \"8009-8000\"",
            ),
            (r#""PortBindings":{"80/sctp":null}"#, "ports of SCTP are not"),
            (r#""Binds":["data:/data:foo"]"#, "option foo of a mount (data:/data:foo) is not supported"),
            (r#""Links":["a:b"]"#, "links on the default network are not supported"),
            (
                r#""NetworkMode":"container:x","PortBindings":{"80/tcp":null}"#,
                "conflicting options: port publishing and the container type network mode",
            ),
            (r#""IpcMode":"host""#, "IpcMode host"),
        ] {
            let body = format!(r#"{{"Image":"b","HostConfig":{{{host}}}}}"#);
            let message = refused(&body);
            assert!(message.starts_with(expect), "{message}");
        }
        assert!(refused(r#"{"Image":"b","Domainname":"x"}"#).starts_with("Domainname of a container is"));
        let mac = r#"{"Image":"b","MacAddress":"02:00:00:00:00:01"}"#;
        assert!(refused(mac).starts_with("a MAC address of one's own on the default network is"));
        let group = r#"{"Image":"b","MacAddress":"03:00:00:00:00:01","HostConfig":{"NetworkMode":"n"}}"#;
        assert_eq!(refused(group), "invalid MAC address: 03:00:00:00:00:01");
    }

    #[test]
    fn mounts_hosts_and_policies_are_read() {
        let spec = read(
            r#"{"Image":"b","HostConfig":{"Binds":["/a:/b:ro"],"Tmpfs":{"/t":"size=64k,mode=1777"},
            "ExtraHosts":["db:10.0.0.1","v6=[fd00::1]"],"RestartPolicy":{"Name":"on-failure","MaximumRetryCount":3}}}"#,
        )
        .unwrap();
        assert_eq!(spec.container.hosts, ["10.0.0.1 db", "fd00::1 v6"]);
        assert_eq!(spec.restart, Restart::OnFailure { attempts: 3 });
        assert!(spec.container.mounts[0].read_only);
        assert_eq!(spec.container.mounts[1].kind, MountKind::Tmpfs { size: Some(65536), mode: Some(0o1777) });
        assert_eq!(spec.network, NetworkMode::Bridge);
        let clash = r#"{"Image":"b","HostConfig":{"AutoRemove":true,"RestartPolicy":{"Name":"always"}}}"#;
        assert_eq!(refused(clash), "can't create 'AutoRemove' container with restart policy");
    }

    #[test]
    fn ports_are_published_as_the_client_says() {
        let spec = read(
            r#"{"Image":"b","ExposedPorts":{"80/tcp":{}},"HostConfig":{"PortBindings":{
            "80/tcp":[{"HostIp":"0.0.0.0","HostPort":"8020"},{"HostIp":"::","HostPort":"8020"}],
            "81/udp":[{"HostIp":"127.0.0.1","HostPort":""}]}}}"#,
        )
        .unwrap();
        let told = spec.ports.iter().map(|held| (held.port.target, held.port.published, held.address));
        let loopback = Some("127.0.0.1".parse().unwrap());
        assert_eq!(told.collect::<Vec<_>>(), [(80, 8020, None), (81, 0, loopback)]);
        assert_eq!(spec.exposed, [model::Port { protocol: model::Protocol::Tcp, number: 80 }]);
        let shared = read(r#"{"Image":"b","HostConfig":{"NetworkMode":"container:x"}}"#).unwrap();
        assert_eq!((shared.network, shared.shares.as_deref()), (NetworkMode::Container, Some("x")));
    }

    #[test]
    fn an_empty_entrypoint_takes_the_images_away() {
        let spec = read(r#"{"Image":"b","Entrypoint":[""],"Cmd":["echo","x"]}"#).unwrap();
        assert_eq!((spec.container.command, spec.container.args.len()), (vec!["echo".into(), "x".into()], 0));
    }
}
