//! Making the sandbox and container of a task, and taking them over from a former process; the
//! sandbox of a plain container is the same.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use std::sync::Arc;

use shoal_model::{Attachment, ContainerSpec, DnsConfig, Healthcheck, NetworkId, NetworkTable, Task};
use shoal_network::Sandbox;
use shoal_resolver::resolv_conf::{self, ContainerFile, ResolvConf};
use shoal_runtime::ContainerConfig;

use crate::health;
use crate::host_ports;
use crate::node::Node;
use crate::resolver::Served;
use crate::sandbox::{self, Tenant};
use crate::store::TaskRecord;
use crate::template::Context;
use crate::{Error, Result, deposits, volumes};

/// The node's own names.
const HOSTS: &str = "/etc/hosts";

/// Makes sandbox and container; left-overs of an earlier try go first. Returns the health check in
/// force.
pub(crate) async fn container(node: &Node, record: &TaskRecord) -> Result<Option<Healthcheck>> {
    let member = node.membership();
    let task = match &member {
        Some(member) => {
            let (task, name) = (&record.task, &node.config.node_name);
            Context { task, node: &member.node, node_name: name }.expanded()
        }
        None => record.task.clone(),
    };
    let spec = &task.spec;
    let image = node.runtime.image(&spec.container.image).await?;
    node.runtime.remove(&record.container).await?;
    let provided = deposits::provide(node, &record.container, &task).await?;
    let place = place(node, record, &task).await?;
    let mut container_spec = spec.container.clone();
    container_spec.hostname = place.hostname;
    let _held = volumes::furnish(node, &record.container, &mut container_spec.mounts, &image).await?;
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
        provided,
        note: String::new(),
        spec: container_spec,
    };
    node.runtime.create(&config).await?;
    Ok(health::effective(spec.container.healthcheck.as_ref(), image.config.healthcheck.as_ref()))
}

/// Brings a task's image in when the node does not have it. A name with a digest means the same
/// everywhere; for one without, registries are asked when services are created, not here.
pub(crate) async fn image(node: &Node, task: &Task) -> Result<()> {
    let name = &task.spec.container.image;
    match node.runtime.image(name).await {
        Err(shoal_runtime::Error::NoSuchImage(known)) => {
            let credentials = node.deposits.credentials(task)?;
            let pulled = node.runtime.pull(name, &credentials, "", None).await;
            let pulled = pulled.map_err(|error| Error::NoImage { name: known, reason: error.to_string() })?;
            tracing::info!(image = name, digest = pulled.digest, "pulled an image");
            Ok(())
        }
        found => Ok(found.map(drop)?),
    }
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
        let (hosts, resolv_conf) = names_of_node(node, &task.spec.container).await?;
        let hostname = sandbox::hostname(&task.spec.container, &node.config.node_name);
        return Ok(Place { netns: None, hostname, resolv_conf, hosts });
    }
    let file = resolv_conf(node, &task.spec.container.dns).await?;
    let made = make_sandbox(node, Tenant::from(&record.task), &file).await?;
    if host_ports::declared(&record.task).next().is_some() && way_in(node, &record.task, &made).is_empty() {
        return Err(Error::Secluded);
    }
    let hostname = sandbox::hostname(&task.spec.container, record.container.short());
    Ok(Place {
        hosts: sandbox::hosts(task, &hostname, gateway_address(&made), node_address(node, task, &made)),
        netns: Some(made.path),
        hostname,
        resolv_conf: file.text,
    })
}

/// The hosts and resolv.conf files of a container on the node's own network stack.
pub(crate) async fn names_of_node(node: &Node, spec: &ContainerSpec) -> Result<(String, String)> {
    let resolv_conf = read(&node.config.resolv_conf).await?;
    let hosts = sandbox::host_hosts(spec, &read(Path::new(HOSTS)).await?);
    Ok((hosts, resolv_conf::host_file(&resolv_conf, &spec.dns)))
}

/// Takes over the sandbox of a container that runs.
pub(crate) async fn adopt(node: &Node, record: &TaskRecord) -> Result<Option<Healthcheck>> {
    if !sandbox::uses_host(&record.task) {
        let file = resolv_conf(node, &record.task.spec.container.dns).await?;
        make_sandbox(node, Tenant::from(&record.task), &file).await?;
    }
    let spec = &record.task.spec.container;
    // The image may be gone; its check then ended with the former process.
    let image = node.runtime.image(&spec.image).await.ok();
    let inherited = image.as_ref().and_then(|image| image.config.healthcheck.as_ref());
    Ok(health::effective(spec.healthcheck.as_ref(), inherited))
}

/// Makes what is missing of a sandbox again. One whose namespace is gone stays as it is: the container
/// would not be in a new one.
pub(crate) async fn renew(node: &Node, tenant: Tenant<'_>) -> Result<()> {
    if node.fabric.has_namespace(tenant.id)? {
        let file = resolv_conf(node, &tenant.spec.dns).await?;
        make_sandbox(node, tenant, &file).await?;
    }
    Ok(())
}

/// The namespace with its interfaces, names and virtual addresses. Adopts what is there.
pub(crate) async fn make_sandbox(node: &Node, tenant: Tenant<'_>, file: &ContainerFile) -> Result<Sandbox> {
    let tables = node.tables.in_force().borrow().clone();
    let made = node.fabric.create_sandbox(&sandbox::config(tenant, &tables)).await?;
    if has_resolver(node, tenant) {
        serve(node, tenant, &made.path, file).await?;
    } else {
        node.resolver.forget(tenant.id).await?;
    }
    for link in &made.links {
        let table = link.network.as_ref().and_then(|network| tables.get(network));
        let has_services = |table: &&Arc<NetworkTable>| !table.config.ingress && table.config.is_overlay();
        if let (Some(table), Some(end)) = (table.filter(has_services), &link.far_end) {
            node.balancer.attach_answerer(&end.netns, &end.interface, table.config.vni)?;
        }
    }
    Ok(made)
}

/// The tenant asks the node's resolver: all do but those without any network, and those on the default one
/// only.
pub(crate) fn has_resolver(node: &Node, tenant: Tenant<'_>) -> bool {
    let tables = node.tables.in_force().borrow().clone();
    let is_default =
        |at: &Attachment| tables.get(&at.network).is_some_and(|table| sandbox::is_default(table));
    let only_default = !tenant.attachments.is_empty() && tenant.attachments.iter().all(is_default);
    !tenant.secluded && !only_default
}

/// Names and virtual addresses of the tenant's networks, as they are now.
pub(crate) async fn serve(node: &Node, tenant: Tenant<'_>, netns: &Path, file: &ContainerFile) -> Result<()> {
    let tables = node.tables.in_force().borrow().clone();
    let cookie = shoal_balancer::netns_cookie(netns)?;
    let view = sandbox::view(tenant, &tables, netns, file);
    node.resolver.serve(Served { view, cookie, vnis: sandbox::vnis(tenant, &tables) }).await
}

/// The address of a sandbox's gateway link.
pub(crate) fn gateway_address(sandbox: &Sandbox) -> Option<IpAddr> {
    let link = sandbox.links.iter().find(|link| link.network.is_none())?;
    link.address.map(|address| address.addr())
}

/// Where the tenant of a sandbox reaches the node itself: the gateway of its way out.
pub(crate) fn node_address<'a>(
    node: &Node,
    tenant: impl Into<Tenant<'a>>,
    sandbox: &Sandbox,
) -> Option<IpAddr> {
    let tables = node.tables.in_force().borrow().clone();
    if let Some(gateway) = sandbox::own_gateway(tenant.into(), &tables) {
        return Some(gateway);
    }
    // The gateway link's first address is the bridge's.
    let link = sandbox.links.iter().find(|link| link.network.is_none())?;
    link.address?.trunc().hosts().next()
}

/// Where the node itself reaches a sandbox: on the bridge that its way out leads over, on its gateway link, or
/// on the ingress network, which is one.
pub(crate) fn way_in<'a>(node: &Node, tenant: impl Into<Tenant<'a>>, sandbox: &Sandbox) -> Vec<IpAddr> {
    let ingress = node.tables.ingress();
    let bridge = sandbox::bridge_out(tenant.into(), &node.known_tables());
    let find =
        |network: Option<&NetworkId>| sandbox.links.iter().find(|link| link.network.as_ref() == network);
    let bridged = bridge.as_ref().and_then(|bridge| find(Some(bridge)));
    let link = bridged.or_else(|| find(None)).or_else(|| find(Some(ingress.as_ref()?)));
    link.into_iter().flat_map(|link| link.addresses()).collect()
}

/// Removes a sandbox with its names and virtual addresses. Idempotent.
pub(crate) async fn free_sandbox(node: &Node, id: &str) -> Result<()> {
    let names = node.resolver.forget(id).await;
    // The namespace goes even when the resolver does not answer: it is pruned when it does again.
    node.fabric.remove_sandbox(id).await?;
    names
}

/// What a container with these wishes finds as its `/etc/resolv.conf`, and where its questions go.
pub(crate) async fn resolv_conf(node: &Node, dns: &DnsConfig) -> Result<ContainerFile> {
    let mut path = node.config.resolv_conf.as_path();
    let mut text = read(path).await?;
    let stub = Path::new(resolv_conf::SYSTEMD_RESOLVED_FILE);
    let is_default = path == Path::new(resolv_conf::DEFAULT_FILE);
    if is_default && ResolvConf::parse(&text).is_systemd_stub() && stub.exists() {
        path = stub;
        text = read(path).await?;
    }
    let parsed = ResolvConf::parse(&text);
    Ok(resolv_conf::container_file(&parsed, path, dns))
}

/// The same of a container on the default network only.
pub(crate) async fn default_resolv_conf(node: &Node, dns: &DnsConfig) -> Result<String> {
    let path = &node.config.resolv_conf;
    let mut text = read(path).await?;
    let stub = Path::new(resolv_conf::SYSTEMD_RESOLVED_FILE);
    if ResolvConf::parse(&text).is_systemd_stub() && stub.exists() {
        text = read(stub).await?;
    }
    Ok(resolv_conf::default_file(&text, dns))
}

/// A node without the file has no servers, like one with an empty file.
async fn read(path: &Path) -> Result<String> {
    match tokio::fs::read_to_string(path).await {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        read => read.map_err(Error::io("read", path)),
    }
}
