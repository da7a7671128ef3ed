//! Making a task's sandbox and container, and taking them over from a former process.

use std::path::{Path, PathBuf};

use shoal_model::{Healthcheck, Task, TaskId};
use shoal_resolver::resolv_conf::{self, ContainerFile, ResolvConf};
use shoal_runtime::ContainerConfig;

use crate::health;
use crate::node::Node;
use crate::resolver::Served;
use crate::sandbox;
use crate::store::TaskRecord;
use crate::{Error, Result};

/// The node's own names.
const HOSTS: &str = "/etc/hosts";

/// Makes sandbox and container; left-overs of an earlier try go first. Returns the health check in
/// force.
pub(crate) async fn container(node: &Node, record: &TaskRecord) -> Result<Option<Healthcheck>> {
    let member = node.membership();
    let task = match &member {
        Some(member) => sandbox::expanded(&record.task, &member.node, &node.config.node_name),
        None => record.task.clone(),
    };
    let spec = &task.spec;
    let image = node.runtime.image(&spec.container.image).await?;
    node.runtime.remove(&record.container).await?;
    let place = place(node, record, &task).await?;
    let mut container_spec = spec.container.clone();
    container_spec.hostname = place.hostname;
    let config = ContainerConfig {
        id: record.container.clone(),
        name: task.name(),
        image: spec.container.image.clone(),
        resources: spec.resources.clone(),
        labels: sandbox::labels(&task, member.as_ref().map(|member| &member.node)),
        netns: place.netns,
        resolv_conf: place.resolv_conf,
        hosts: place.hosts,
        log_options: spec.log_options.clone(),
        spec: container_spec,
    };
    node.runtime.create(&config).await?;
    Ok(health::effective(spec.container.healthcheck.as_ref(), image.config.healthcheck.as_ref()))
}

/// What a container finds around it.
struct Place {
    /// `None` is the node's own.
    netns: Option<PathBuf>,
    hostname: String,
    resolv_conf: String,
    hosts: String,
}

/// A sandbox of its own for the task, or the node's own network stack. `task` has its placeholders
/// filled in.
async fn place(node: &Node, record: &TaskRecord, task: &Task) -> Result<Place> {
    if sandbox::uses_host(task) {
        let resolv_conf = read(&node.config.resolv_conf).await?;
        return Ok(Place {
            netns: None,
            hostname: sandbox::hostname(task, &node.config.node_name),
            resolv_conf: resolv_conf::host_file(&resolv_conf, &task.spec.container.dns),
            hosts: sandbox::host_hosts(task, &read(Path::new(HOSTS)).await?),
        });
    }
    let file = resolv_conf(node, record).await?;
    let made = make_sandbox(node, record, &file).await?;
    let gateway = made.links.iter().find(|link| link.network.is_none()).and_then(|link| link.address);
    let hostname = sandbox::hostname(task, record.container.short());
    Ok(Place {
        netns: Some(made.path),
        hosts: sandbox::hosts(task, &hostname, gateway.map(|address| address.addr())),
        hostname,
        resolv_conf: file.text,
    })
}

/// Takes over the sandbox of a container that runs.
pub(crate) async fn adopt(node: &Node, record: &TaskRecord) -> Result<Option<Healthcheck>> {
    if !sandbox::uses_host(&record.task) {
        let file = resolv_conf(node, record).await?;
        make_sandbox(node, record, &file).await?;
    }
    let spec = &record.task.spec.container;
    // The image may be gone; its check then ended with the former process.
    let image = node.runtime.image(&spec.image).await.ok();
    let inherited = image.as_ref().and_then(|image| image.config.healthcheck.as_ref());
    Ok(health::effective(spec.healthcheck.as_ref(), inherited))
}

/// The namespace with its interfaces, names and virtual addresses. Adopts what is there.
async fn make_sandbox(
    node: &Node,
    record: &TaskRecord,
    file: &ContainerFile,
) -> Result<shoal_network::Sandbox> {
    let task = &record.task;
    let tables = node.tables.in_force().borrow().clone();
    let made = node.fabric.create_sandbox(&sandbox::config(task, &tables)).await?;
    let cookie = shoal_balancer::netns_cookie(&made.path)?;
    let view = sandbox::view(task, &tables, &made.path, file);
    node.resolver.serve(Served { view, cookie, vnis: sandbox::vnis(task, &tables) }).await?;
    for link in &made.links {
        let table = link.network.as_ref().and_then(|network| tables.get(network));
        if let Some(table) = table.filter(|table| !table.config.ingress) {
            node.balancer.attach_answerer(&link.host_netns, &link.host_interface, table.config.vni)?;
        }
    }
    Ok(made)
}

/// Removes a sandbox with its names and virtual addresses. Idempotent.
pub(crate) async fn free_sandbox(node: &Node, task: &TaskId) -> Result<()> {
    let names = node.resolver.forget(task.as_str()).await;
    // The namespace goes even when the resolver does not answer: it is pruned when it does again.
    node.fabric.remove_sandbox(task.as_str()).await?;
    names
}

async fn resolv_conf(node: &Node, record: &TaskRecord) -> Result<ContainerFile> {
    let mut path = node.config.resolv_conf.as_path();
    let mut text = read(path).await?;
    let stub = Path::new(resolv_conf::SYSTEMD_RESOLVED_FILE);
    let is_default = path == Path::new(resolv_conf::DEFAULT_FILE);
    if is_default && ResolvConf::parse(&text).is_systemd_stub() && stub.exists() {
        path = stub;
        text = read(path).await?;
    }
    let parsed = ResolvConf::parse(&text);
    Ok(resolv_conf::container_file(&parsed, path, &record.task.spec.container.dns))
}

/// A node without the file has no servers, like one with an empty file.
async fn read(path: &Path) -> Result<String> {
    match tokio::fs::read_to_string(path).await {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        read => read.map_err(Error::io("read", path)),
    }
}
