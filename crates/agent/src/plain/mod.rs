//! Plain containers: those of no service. They are this node's own, survive restarts of the daemon,
//! and may be guests on the cluster's attachable networks.

mod audience;
mod connect;
mod keeper;
mod names;
mod networks;
mod record;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use shoal_model::{ContainerId, IdGenerator, invent_name};
use shoal_runtime::{Container, ContainerConfig};

use crate::node::Node;
use crate::{Error, Result, lock, sandbox, volumes};

pub use keeper::WaitFor;
pub(crate) use keeper::{Keeper, Phase, Shown};
pub(crate) use record::PlainRecord;
pub use record::{NetworkMode, Place, PlainSpec, Restart};

#[derive(Default)]
pub(crate) struct Plains {
    keepers: Mutex<BTreeMap<ContainerId, Arc<Keeper>>>,
    /// Names of containers that are being made.
    reserved: Mutex<HashMap<String, ContainerId>>,
}

impl Plains {
    pub(crate) fn get(&self, id: &ContainerId) -> Option<Arc<Keeper>> {
        lock(&self.keepers).get(id).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Keeper>> {
        lock(&self.keepers).values().cloned().collect()
    }

    /// The container with a sandbox of this name, as it is now; only one that runs has one.
    pub(crate) fn record(&self, sandbox: &str) -> Option<PlainRecord> {
        let shown = self.get(&ContainerId::new(sandbox))?.shown();
        (shown.phase == Phase::Running).then_some(shown.record)
    }

    fn forget(&self, id: &ContainerId) {
        lock(&self.keepers).remove(id);
    }

    /// Containers that are to be there, for whoever removes the rest.
    pub(crate) fn containers(&self) -> HashSet<ContainerId> {
        lock(&self.keepers).keys().cloned().collect()
    }

    /// Sandboxes that are to be there.
    pub(crate) fn sandboxes(&self) -> HashSet<String> {
        let running = |keeper: &Arc<Keeper>| keeper.shown().phase == Phase::Running;
        self.all().into_iter().filter(running).map(|keeper| keeper.id.to_string()).collect()
    }

    fn holder(&self, name: &str) -> Option<ContainerId> {
        let named = self.all().into_iter().find(|keeper| keeper.shown().record.name == name);
        named.map(|keeper| keeper.id.clone()).or_else(|| lock(&self.reserved).get(name).cloned())
    }

    /// Takes a name for a container; the guard is to be kept until it has it.
    fn reserve(&self, name: &str, id: &ContainerId) -> Result<Reserved<'_>> {
        // One after the other: the look and the entry are one step.
        let mut reserved = lock(&self.reserved);
        let named = self.all().into_iter().find(|keeper| keeper.shown().record.name == name);
        if let Some(by) = named.map(|keeper| keeper.id.clone()).or_else(|| reserved.get(name).cloned()) {
            return Err(Error::NameInUse { name: name.to_owned(), by: by.to_string() });
        }
        reserved.insert(name.to_owned(), id.clone());
        Ok(Reserved { plains: self, name: name.to_owned() })
    }

    /// Makes a container that does not run yet.
    pub(crate) async fn create(
        &self,
        node: &Arc<Node>,
        name: Option<String>,
        mut spec: PlainSpec,
    ) -> Result<ContainerId> {
        let id = IdGenerator::from_os().container_id();
        let name = match name {
            Some(name) => {
                names::check(&name)?;
                name
            }
            None => invent_name(&mut IdGenerator::from_os(), |name| self.holder(name).is_some()),
        };
        let _reserved = self.reserve(&name, &id)?;
        match spec.network {
            NetworkMode::Bridge => spec.places.insert(0, networks::default_place(node).await?),
            NetworkMode::Named => spec.places.iter_mut().for_each(|place| networks::resolve(node, place)),
            NetworkMode::None | NetworkMode::Host | NetworkMode::Container => {}
        }
        let image = node.runtime.image(&spec.container.image).await?;
        spec.expose(&image.config.exposed_ports);
        let held = volumes::furnish(node, &id, &mut spec.container.mounts, &image).await?;
        let record = PlainRecord::new(id.clone(), name, spec);
        let made = make(node, &record).await;
        drop(held);
        if let Err(error) = made {
            volumes::release(node, &id, true).await?;
            return Err(error);
        }
        node.events.container("create", &record, None);
        lock(&self.keepers).insert(id.clone(), Keeper::new(record, Phase::Idle, None));
        Ok(id)
    }

    pub(crate) async fn rename(&self, node: &Node, keeper: &Keeper, name: &str) -> Result<()> {
        names::check(name)?;
        let _reserved = self.reserve(name, &keeper.id)?;
        keeper.rename(node, name.to_owned()).await
    }

    /// Takes over what a former process left. A record without a container is dropped; what does not
    /// run may be started again, or removed, as its policy says.
    pub(crate) async fn adopt(
        &self,
        node: &Arc<Node>,
        records: Vec<PlainRecord>,
        found: &[Container],
        rebuilt: bool,
    ) {
        let records = if rebuilt { found.iter().filter_map(remembered).collect() } else { records };
        let found: HashMap<&ContainerId, &Container> =
            found.iter().map(|container| (&container.config.id, container)).collect();
        for mut record in records {
            let id = record.id.clone();
            let Some(container) = found.get(&id) else {
                tracing::warn!(container = %id, name = record.name, "the container is gone from containerd");
                if let Err(error) = node.store.remove_container(&id).await {
                    tracing::warn!(container = %id, %error, "cannot forget a container");
                }
                continue;
            };
            let (phase, code) = keeper::found(&container.state);
            if rebuilt {
                self.restore_networks(node, &record).await;
            }
            if phase == Phase::Running {
                let asks = record.spec.places.iter().any(|place| place.local.is_none());
                if record.on_cluster().next().is_some() || (rebuilt && asks) {
                    node.guests.restate(record.request());
                }
                record.attachments = networks::reclaim(node, &record).await;
                if rebuilt {
                    record.bindings = networks::former_ports(node, &record).await;
                }
            } else {
                record.bindings.clear();
                record.attachments.clear();
            }
            if let Err(error) = node.store.put_container(&record).await {
                tracing::warn!(container = %id, %error, "cannot store a container");
            }
            lock(&self.keepers).insert(id, Keeper::new(record, phase, code));
        }
    }

    /// Ports that led to a container when the former process ended go on doing so, once they are applied.
    pub(crate) async fn resume_ports(&self, node: &Node) {
        for shown in self.all().iter().map(|keeper| keeper.shown()) {
            if shown.phase == Phase::Running {
                networks::resume_ports(node, &shown.record).await;
            }
        }
    }

    /// The node's store was lost: its networks are known by who is on them.
    async fn restore_networks(&self, node: &Node, record: &PlainRecord) {
        for network in record.spec.places.iter().filter_map(|place| place.local.as_deref()) {
            if let Err(error) = node.locals.restore(node, network).await {
                tracing::warn!(network = network.config.name, %error, "cannot store a network");
            }
        }
    }

    /// Begins to mind what was taken over; after everything that nobody claims has been removed.
    pub(crate) async fn resume(&self, node: &Arc<Node>) {
        for keeper in self.all() {
            let shown = keeper.shown();
            if shown.phase == Phase::Running {
                if let Ok(container) = node.runtime.container(&keeper.id).await
                    && let Err(error) = node.runtime.keep_logged(&container).await
                {
                    tracing::warn!(container = %keeper.id, %error, "the container's output is not logged");
                }
                keeper.open_to_clients();
                keeper.mind(node, true);
            } else {
                keeper.resume_stopped(node, record::at_start(&shown.record, shown.code));
            }
        }
    }

    /// The cluster is left: containers on its networks run on without them.
    pub(crate) async fn leave(&self, node: &Node) {
        for keeper in self.all() {
            if let Err(error) = keeper.leave(node).await {
                tracing::warn!(container = %keeper.id, %error, "cannot take a container off the networks");
            }
        }
        node.guests.clear();
    }
}

/// A name that is taken while a container with it is being made.
struct Reserved<'a> {
    plains: &'a Plains,
    name: String,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        lock(&self.plains.reserved).remove(&self.name);
    }
}

/// The record of a container that only containerd remembers.
fn remembered(container: &Container) -> Option<PlainRecord> {
    let config = &container.config;
    let mut record = PlainRecord::of_note(&config.id, &config.note)?;
    record.wanted = matches!(container.state, shoal_runtime::ContainerState::Running { .. });
    Some(record)
}

async fn make(node: &Node, record: &PlainRecord) -> Result<()> {
    node.runtime.create(&config(node, record).await?).await?;
    if let Err(error) = node.store.put_container(record).await {
        node.runtime.remove(&record.id).await?;
        return Err(error);
    }
    Ok(())
}

/// What the runtime makes the container from. Its hosts and resolv.conf files are written with each
/// start.
async fn config(node: &Node, record: &PlainRecord) -> Result<ContainerConfig> {
    let spec = &record.spec;
    let mut container = spec.container.clone();
    let netns = match (spec.network, &spec.shares) {
        (NetworkMode::Host, _) => None,
        (NetworkMode::Container, Some(other)) => {
            let other = node.runtime.container(&ContainerId::new(other)).await?.config;
            if container.hostname.is_empty() {
                container.hostname = sandbox::hostname(&other.spec, other.id.short());
            }
            other.netns
        }
        _ => Some(node.config.run_dir.join("netns").join(record.id.as_str())),
    };
    let own = match spec.network {
        // Without a name of its own it has the node's.
        NetworkMode::Host => sandbox::hostname(&container, &node.config.node_name),
        _ => sandbox::hostname(&container, record.id.short()),
    };
    container.hostname = own;
    Ok(ContainerConfig {
        id: record.id.clone(),
        name: record.name.clone(),
        image: container.image.clone(),
        resources: spec.resources.clone(),
        labels: container.labels.clone(),
        netns,
        resolv_conf: String::new(),
        hosts: String::new(),
        log_options: spec.log_options.clone(),
        provided: Vec::new(),
        note: record.note(),
        spec: container,
    })
}

/// Stops a container, if it runs, and starts it.
pub(crate) async fn restart(keeper: &Arc<Keeper>, node: &Arc<Node>, grace: Option<Duration>) -> Result<()> {
    keeper.stop(node, grace).await?;
    keeper.start(node).await.map(drop)
}
