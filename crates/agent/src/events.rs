//! What happens to plain containers, for whoever listens.

use jiff::Timestamp;
use shoal_model::{ContainerId, Labels};
use tokio::sync::broadcast;

use super::record::PlainRecord;

/// Events a slow listener may lag behind before it misses some.
const LAG_MAX: usize = 1024;

/// Something happened to a plain container; the words are Docker's.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerEvent {
    pub action: &'static str,
    pub container: ContainerId,
    pub name: String,
    pub image: String,
    /// The container's labels, and what belongs to the action: `exitCode`, `signal`, `oldName`.
    pub attributes: Labels,
    pub at: Timestamp,
}

pub(crate) struct Events(broadcast::Sender<ContainerEvent>);

impl Default for Events {
    fn default() -> Self {
        Self(broadcast::Sender::new(LAG_MAX))
    }
}

impl Events {
    pub(super) fn tell(&self, action: &'static str, record: &PlainRecord, detail: Option<(&str, String)>) {
        let mut attributes = record.spec.container.labels.clone();
        attributes.extend(detail.map(|(key, value)| (key.to_owned(), value)));
        // Nobody listening is fine.
        let _ = self.0.send(ContainerEvent {
            action,
            container: record.id.clone(),
            name: record.name.clone(),
            image: record.spec.container.image.clone(),
            attributes,
            at: Timestamp::now(),
        });
    }

    pub(crate) fn listen(&self) -> broadcast::Receiver<ContainerEvent> {
        self.0.subscribe()
    }
}
