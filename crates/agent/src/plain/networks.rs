//! A plain container's networks: asked for before it starts, given back when it has ended.

use std::net::IpAddr;

use shoal_model::{Attachment, ContainerId, EndpointId, Healthcheck, PlaceAnswer, RefusalReason};
use shoal_runtime::Image;
use tokio::sync::watch;

use super::keeper::Shown;
use super::record::{NetworkMode, PlainRecord};
use crate::node::Node;
use crate::{Error, Result, health, prepare, sandbox};

/// Tables that are needed come into force within this time.
const TABLES_BOUND: std::time::Duration = std::time::Duration::from_secs(15);

/// Asks the manager for the container's places, and waits until their networks are in force here.
pub(super) async fn attach(node: &Node, record: &PlainRecord) -> Result<Vec<Attachment>> {
    let Some(first) = record.spec.places.first() else { return Ok(Vec::new()) };
    if node.membership().is_none() {
        return Err(Error::NoSuchNetwork(first.network.clone()));
    }
    let Some(answers) = node.guests.ask(record.request()).await else {
        return Err(Error::NoManager(first.network.clone()));
    };
    let mut attachments = Vec::with_capacity(answers.len());
    for (place, answer) in record.spec.places.iter().zip(answers) {
        match answer {
            PlaceAnswer::Attached(attachment) => attachments.push(attachment),
            PlaceAnswer::Refused(refusal) => {
                return Err(Error::NotAttached { network: place.network.clone(), refusal });
            }
        }
    }
    let endpoint = EndpointId::new(record.id.as_str());
    let networks: Vec<_> = attachments.iter().map(|attachment| attachment.network.clone()).collect();
    let ready = tokio::time::timeout(TABLES_BOUND, node.tables.ready(&endpoint, &networks)).await;
    ready.map_err(|_| Error::NotInForce(first.network.clone()))?;
    Ok(attachments)
}

pub(super) fn detach(node: &Node, id: &ContainerId) {
    node.guests.withdraw(id);
}

/// Makes the sandbox, and brings the container's files in line with it. Returns the health check in
/// force.
pub(super) async fn furnish(node: &Node, record: &PlainRecord) -> Result<Option<Healthcheck>> {
    let spec = &record.spec.container;
    let image = node.runtime.image(&spec.image).await.ok();
    let (hosts, resolv_conf) = match record.spec.network {
        NetworkMode::Host => prepare::names_of_node(node, spec).await?,
        _ => {
            let file = prepare::resolv_conf(node, &spec.dns).await?;
            let made = prepare::make_sandbox(node, record.tenant(), &file).await?;
            let gateway = prepare::gateway_address(&made);
            (hosts(record, gateway), file.text)
        }
    };
    node.runtime.renew(&record.id, hosts, resolv_conf).await?;
    Ok(check(record, image.as_ref()))
}

/// Takes over the sandbox of a running container, once its networks are in force.
pub(super) async fn adopt(node: &Node, record: &PlainRecord) -> Result<Option<Healthcheck>> {
    let networks: Vec<_> = record.attachments.iter().map(|attachment| attachment.network.clone()).collect();
    // Without an end: a manager that is away may come back.
    node.tables.ready(&EndpointId::new(record.id.as_str()), &networks).await;
    if record.left {
        // Its sandbox is what is left of it: no interface is to be made again.
        serve_none(node, record).await?;
    } else if record.spec.network != NetworkMode::Host {
        let file = prepare::resolv_conf(node, &record.spec.container.dns).await?;
        prepare::make_sandbox(node, record.tenant(), &file).await?;
    }
    // The image may be gone; its check then ended with the former process.
    let image = node.runtime.image(&record.spec.container.image).await.ok();
    Ok(check(record, image.as_ref()))
}

/// The container's names are those of no network any more.
pub(super) async fn serve_none(node: &Node, record: &PlainRecord) -> Result<()> {
    let file = prepare::resolv_conf(node, &record.spec.container.dns).await?;
    let netns = node.config.run_dir.join("netns").join(record.id.as_str());
    prepare::serve(node, record.tenant(), &netns, &file).await
}

/// Returns when the manager says that the container cannot have what it has.
pub(super) async fn evicted(node: &Node, shown: watch::Receiver<Shown>) {
    let mut answers = node.guests.answers();
    loop {
        let lost = {
            let answers = answers.borrow_and_update();
            let shown = shown.borrow();
            let held = &shown.record.attachments;
            let places = answers.places.get(&shown.record.id);
            places.filter(|_| !held.is_empty()).is_some_and(|places| {
                places.iter().zip(held).any(|(place, held)| match place {
                    PlaceAnswer::Attached(given) => given.address != held.address || given.mac != held.mac,
                    // What cannot be said now is no answer.
                    PlaceAnswer::Refused(refusal) => refusal.reason != RefusalReason::Unavailable,
                })
            })
        };
        if lost {
            return;
        }
        if answers.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

fn check(record: &PlainRecord, image: Option<&Image>) -> Option<Healthcheck> {
    let inherited = image.and_then(|image| image.config.healthcheck.as_ref());
    health::effective(record.spec.container.healthcheck.as_ref(), inherited)
}

/// `/etc/hosts` of a container with a sandbox.
pub(super) fn hosts(record: &PlainRecord, gateway: Option<IpAddr>) -> String {
    let hostname = sandbox::hostname(&record.spec.container, record.id.short());
    sandbox::hosts(record.tenant(), &hostname, gateway)
}
