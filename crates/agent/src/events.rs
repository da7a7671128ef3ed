//! What happens on this node alone, for whoever listens: to its plain containers and to its own networks.

use jiff::Timestamp;
use shoal_model::{ContainerId, Labels, NetworkId, TableConfig};
use tokio::sync::broadcast;

use crate::plain::PlainRecord;

/// Events a slow listener may lag behind before it misses some.
const LAG_MAX: usize = 1024;

/// Something happened; the words are Docker's.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeEvent {
    pub kind: EventKind,
    pub action: &'static str,
    /// The container's or the network's.
    pub id: String,
    /// `name`, of a container also `image` and its labels, and what belongs to the action: `exitCode`,
    /// `signal`, `oldName`, `container`.
    pub attributes: Labels,
    pub at: Timestamp,
}

/// To what something happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    Container,
    Network,
}

pub(crate) struct Events(broadcast::Sender<NodeEvent>);

impl Default for Events {
    fn default() -> Self {
        Self(broadcast::Sender::new(LAG_MAX))
    }
}

impl Events {
    fn tell(&self, kind: EventKind, action: &'static str, id: &str, attributes: Labels) {
        let at = Timestamp::now();
        // Nobody listening is fine.
        let _ = self.0.send(NodeEvent { kind, action, id: id.to_owned(), attributes, at });
    }

    pub(crate) fn container(
        &self,
        action: &'static str,
        record: &PlainRecord,
        detail: Option<(&str, String)>,
    ) {
        let mut attributes = record.spec.container.labels.clone();
        attributes.extend(detail.map(|(key, value)| (key.to_owned(), value)));
        attributes.insert("image".to_owned(), record.spec.container.image.clone());
        attributes.insert("name".to_owned(), record.name.clone());
        self.tell(EventKind::Container, action, record.id.as_str(), attributes);
    }

    /// `container` joined or left it.
    pub(crate) fn network(
        &self,
        action: &'static str,
        id: &NetworkId,
        config: &TableConfig,
        container: Option<&ContainerId>,
    ) {
        let mut attributes = Labels::from([
            ("name".to_owned(), config.name.clone()),
            ("type".to_owned(), config.driver.as_str().to_owned()),
        ]);
        attributes.extend(container.map(|container| ("container".to_owned(), container.to_string())));
        self.tell(EventKind::Network, action, id.as_str(), attributes);
    }

    pub(crate) fn listen(&self) -> broadcast::Receiver<NodeEvent> {
        self.0.subscribe()
    }
}
