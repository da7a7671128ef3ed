//! `/_ping`, `/version`, `/info`, `/events`, `/system/df`.

use std::collections::BTreeMap;

use axum::Router;
use axum::body::Body;
use axum::extract::{FromRef, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use axum::routing::get;
use futures::StreamExt;
use jiff::Timestamp;
use serde_json::json;
use shoal_runtime::ContainerState;
use tokio::sync::broadcast::error::RecvError;

use crate::body;
use crate::convert::{identity, image, node as nodes, swarm as clusters, time, volume};
use crate::engine::{ClusterSide, Engine, LocalState, NodeSide};
use crate::error::Result;
use crate::events;
use crate::query::Params;
use crate::version::{API_VERSION, MIN_API_VERSION};
use crate::wire::system as wire;
use crate::wire::{container, swarm};

pub(super) fn cluster_routes<S>() -> Router<S>
where
    S: Clone + Send + Sync + 'static,
    ClusterSide: FromRef<S>,
{
    Router::new().route("/_ping", get(ping).head(ping_head)).route("/events", get(stream))
}

pub(super) fn routes() -> Router<Engine> {
    Router::new()
        .route("/version", get(version))
        .route("/info", get(info))
        .route("/system/df", get(disk_usage))
}

fn ping_headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store, must-revalidate"));
    headers.insert(header::PRAGMA, HeaderValue::from_static("no-cache"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    // Sends `docker build` to the path that answers with what to do instead.
    headers.insert("Builder-Version", HeaderValue::from_static("1"));
    headers
}

async fn ping() -> (HeaderMap, &'static str) {
    (ping_headers(), "OK")
}

async fn ping_head() -> HeaderMap {
    let mut headers = ping_headers();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    headers
}

/// Docker's word for this processor.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn kernel_version() -> String {
    nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default()
}

async fn version(State(engine): State<Engine>) -> Result<Response> {
    let versions = engine.node.agent.runtime().version().await?;
    let about = &engine.cluster.about;
    let details = BTreeMap::from([
        ("ApiVersion".to_owned(), API_VERSION.to_owned()),
        ("Arch".to_owned(), architecture().to_owned()),
        ("BuildTime".to_owned(), String::new()),
        ("Experimental".to_owned(), "false".to_owned()),
        ("GitCommit".to_owned(), String::new()),
        ("GoVersion".to_owned(), String::new()),
        ("KernelVersion".to_owned(), kernel_version()),
        ("MinAPIVersion".to_owned(), MIN_API_VERSION.to_owned()),
        ("Os".to_owned(), "linux".to_owned()),
    ]);
    let component = |name, version, details| wire::Component { name, version, details };
    Ok(body::ok(&wire::Version {
        platform: wire::Platform { name: "Shoal".to_owned() },
        components: vec![
            component("Engine", about.version.clone(), details),
            component("containerd", versions.containerd, BTreeMap::new()),
            component("runc", versions.runc, BTreeMap::new()),
        ],
        version: about.version.clone(),
        api_version: API_VERSION,
        min_api_version: MIN_API_VERSION,
        git_commit: String::new(),
        go_version: String::new(),
        os: "linux",
        arch: architecture(),
        kernel_version: kernel_version(),
        build_time: String::new(),
    }))
}

async fn info(State(engine): State<Engine>) -> Result<Response> {
    let (agent, about) = (&engine.node.agent, &engine.cluster.about);
    let description = agent.description();
    let containers = agent.containers().await?;
    let running = containers
        .iter()
        .filter(|view| matches!(view.container.state, ContainerState::Running { .. }))
        .count();
    let versions = agent.runtime().version().await?;
    let release = os_release();
    let commit = |id: String| wire::Commit { expected: id.clone(), id };
    Ok(body::ok(&wire::Info {
        id: identity::spelled(&about.id),
        containers: containers.len(),
        containers_running: running,
        containers_paused: 0,
        containers_stopped: containers.len() - running,
        images: agent.runtime().images().await?.len(),
        driver: image::STORAGE_DRIVER,
        driver_status: vec![["driver-type".to_owned(), "io.containerd.snapshotter.v1".to_owned()]],
        plugins: wire::Plugins {
            volume: Vec::new(),
            network: vec!["host", "overlay"],
            authorization: None,
            log: vec!["json-file"],
        },
        memory_limit: true,
        swap_limit: true,
        kernel_memory: false,
        kernel_memory_tcp: false,
        cpu_cfs_period: true,
        cpu_cfs_quota: true,
        cpu_shares: true,
        cpu_set: true,
        pids_limit: true,
        ipv4_forwarding: true,
        bridge_nf_iptables: true,
        bridge_nf_ip6tables: true,
        debug: false,
        files: std::fs::read_dir("/proc/self/fd").map(Iterator::count).unwrap_or_default(),
        oom_kill_disable: false,
        tasks: 0,
        system_time: time(Timestamp::now()),
        logging_driver: "json-file",
        cgroup_driver: "cgroupfs",
        cgroup_version: cgroup_version(),
        event_listeners: engine.cluster.events.listeners(),
        kernel_version: kernel_version(),
        operating_system: release.get("PRETTY_NAME").cloned().unwrap_or_else(|| "Linux".to_owned()),
        os_version: release.get("VERSION_ID").cloned().unwrap_or_default(),
        os_type: "linux",
        architecture: description.architecture,
        index_server_address: "",
        registry_config: wire::RegistryConfig::default(),
        cpus: description.nano_cpus / 1_000_000_000,
        mem_total: description.memory,
        generic_resources: None,
        docker_root_dir: about.data_dir.display().to_string(),
        http_proxy: "",
        https_proxy: "",
        no_proxy: "",
        name: description.hostname,
        labels: description.engine_labels.iter().map(|(key, value)| format!("{key}={value}")).collect(),
        experimental_build: false,
        server_version: about.version.clone(),
        runtimes: wire::Runtimes { runc: wire::RuntimePath { path: "runc" } },
        default_runtime: "runc",
        swarm: swarm_info(&engine.cluster),
        live_restore_enabled: true,
        isolation: "",
        init_binary: "",
        containerd_commit: commit(versions.containerd),
        runc_commit: commit(versions.runc),
        init_commit: wire::Commit::default(),
        security_options: vec!["name=seccomp,profile=default"],
        warnings: None,
    }))
}

fn swarm_info(cluster: &ClusterSide) -> swarm::Info {
    let mut info = swarm::Info {
        node: String::new(),
        address: String::new(),
        local_node_state: "inactive",
        control_available: false,
        error: String::new(),
        remote_managers: None,
        nodes: None,
        managers: None,
        cluster: None,
    };
    match cluster.swarm.local_state() {
        LocalState::Inactive => {}
        LocalState::Pending => info.local_node_state = "pending",
        LocalState::Error(reason) => {
            info.local_node_state = "error";
            info.error = reason;
        }
        LocalState::Active { node, address } => {
            info.local_node_state = "active";
            info.node = node.to_string();
            info.address = address.to_string();
        }
    }
    if let Some(manager) = cluster.swarm.manager() {
        let state = manager.state();
        let managers = state.nodes().filter(|node| node.spec.role == shoal_model::NodeRole::Manager);
        let managers: Vec<_> = managers
            .map(|node| swarm::RemoteManager {
                node: node.id.to_string(),
                address: nodes::manager_address(node),
            })
            .collect();
        info.control_available = true;
        info.managers = Some(managers.len() as u64);
        info.remote_managers = Some(managers);
        info.nodes = Some(state.nodes().count() as u64);
        info.cluster = state.cluster().map(|object| clusters::cluster(object, None));
    } else {
        info.remote_managers = remote_managers(cluster);
    }
    info
}

/// `None` where none is known, as Docker has it.
fn remote_managers(cluster: &ClusterSide) -> Option<Vec<swarm::RemoteManager>> {
    let known = cluster.swarm.remote_managers().into_iter().map(|(node, address)| swarm::RemoteManager {
        node: node.map(|node| node.to_string()).unwrap_or_default(),
        address,
    });
    Some(known.collect::<Vec<_>>()).filter(|known| !known.is_empty())
}

fn cgroup_version() -> &'static str {
    // On a unified hierarchy this file is at the root; on a hybrid one runc uses version 1.
    if std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { "2" } else { "1" }
}

fn os_release() -> BTreeMap<String, String> {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    pairs.map(|(key, value)| (key.to_owned(), value.trim_matches('"').to_owned())).collect()
}

/// Sizes are those of images; what containers wrote is not measured.
async fn disk_usage(State(node): State<NodeSide>) -> Result<Response> {
    let containers = node.agent.containers().await?;
    let images = node.agent.runtime().images().await?;
    let volumes = node.agent.volumes().await?;
    let now = Timestamp::now();
    let summaries: Vec<_> = images
        .iter()
        .map(|one| {
            let used = containers.iter().filter(|view| view.container.image_id == one.id).count();
            crate::wire::image::Summary {
                containers: i64::try_from(used).unwrap_or(i64::MAX),
                shared_size: 0,
                ..image::summary(one)
            }
        })
        .collect();
    let containers: Vec<container::Summary> =
        containers.iter().map(|view| crate::convert::container::summary(view, now, &node.id)).collect();
    Ok(body::ok(&json!({
        "LayersSize": images.iter().map(|image| image.size).sum::<u64>(),
        "Images": summaries,
        "Containers": containers,
        "Volumes": volumes.iter().map(volume::used).collect::<Vec<_>>(),
        "BuildCache": null,
        "BuilderSize": 0,
    })))
}

/// Past events that are still kept, then those to come, until the client goes or `until` is reached.
async fn stream(State(cluster): State<ClusterSide>, params: Params) -> Result<Response> {
    let filters = params.filters(events::FILTERS)?;
    let (since, until) = (params.time("since")?, params.time("until")?);
    let (kept, receiver) = cluster.events.listen();
    let past = kept.into_iter().filter(move |event| {
        let at = i128::from(event.time_nanos);
        since.is_some_and(|since| at >= since.as_nanosecond())
            && until.is_none_or(|until| at <= until.as_nanosecond())
    });
    let coming = futures::stream::unfold(receiver, |mut receiver| async {
        loop {
            match receiver.recv().await {
                Ok(event) => return Some((event, receiver)),
                // A listener that is too slow misses some, as Docker's do.
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    });
    let end = async move {
        match until.map(|until| until.duration_since(Timestamp::now())) {
            Some(left) => tokio::time::sleep(left.try_into().unwrap_or_default()).await,
            None => std::future::pending().await,
        }
    };
    let events = futures::stream::iter(past)
        .chain(coming.take_until(Box::pin(end)))
        .filter(move |event| std::future::ready(events::wanted(&filters, event)))
        .map(|event| serde_json::to_string(&event).map(|line| line + "\n"));
    let mut response = Response::new(Body::from_stream(events));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}
