//! Clients attached to a container: those who are there before it starts see all that it prints.

use std::future::Future;
use std::sync::{Arc, Mutex};

use shoal_model::ContainerId;
use shoal_runtime::ContainerOutput;
use tokio::sync::oneshot;

use crate::lock;
use crate::node::Node;

#[derive(Default)]
pub(super) struct Audience(Mutex<State>);

#[derive(Default)]
struct State {
    /// Output can be had at once.
    open: bool,
    waiting: Vec<oneshot::Sender<ContainerOutput>>,
}

impl Audience {
    /// The container's output, at once or when it starts; `None` in the end when that never comes.
    pub(super) fn join(
        &self,
        node: &Arc<Node>,
        id: &ContainerId,
    ) -> impl Future<Output = Option<ContainerOutput>> + Send + 'static + use<> {
        let (sender, receiver) = oneshot::channel();
        let open = {
            let mut state = lock(&self.0);
            // Who is gone without having seen anything waits no more.
            state.waiting.retain(|waiting| !waiting.is_closed());
            if !state.open {
                state.waiting.push(sender);
            }
            state.open
        };
        let (node, id) = (node.clone(), id.clone());
        async move {
            if !open {
                return receiver.await.ok();
            }
            node.runtime.output(&id).await.unwrap_or_else(|error| {
                tracing::warn!(container = %id, %error, "cannot attach to the container");
                None
            })
        }
    }

    /// Lets in the clients that wait; to be called before the container prints anything.
    pub(super) async fn admit(&self, node: &Node, id: &ContainerId) {
        let waiting = {
            let mut state = lock(&self.0);
            state.open = true;
            std::mem::take(&mut state.waiting)
        };
        for client in waiting.into_iter().filter(|client| !client.is_closed()) {
            match node.runtime.output(id).await {
                // It may be gone by now.
                Ok(Some(output)) => drop(client.send(output)),
                Ok(None) => {}
                Err(error) => tracing::warn!(container = %id, %error, "cannot attach a client"),
            }
        }
    }

    pub(super) fn open(&self) {
        lock(&self.0).open = true;
    }

    /// Whoever comes now waits for the next start.
    pub(super) fn close(&self) {
        lock(&self.0).open = false;
    }

    /// There will be no next start.
    pub(super) fn dismiss(&self) {
        lock(&self.0).waiting.clear();
    }
}
