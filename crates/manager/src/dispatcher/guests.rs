//! Answers what nodes state of their plain containers.

use std::sync::Arc;
use std::time::Duration;

use shoal_model::{GuestAnswer, GuestRequest, Node, NodeDescription, NodeId, Object};
use shoal_protocol::encode;
use shoal_protocol::session::manager_message::Message as Down;
use shoal_protocol::session::{GuestAnswers, ManagerMessage};
use tokio::sync::mpsc;

use super::Dispatcher;
use crate::{Error, control};

/// A statement that could not be stored is tried again after this time.
const RETRY: Duration = Duration::from_secs(1);

/// Everything that a node's plain containers want.
pub(super) struct Statement {
    pub(super) node: NodeId,
    pub(super) session: u64,
    pub(super) generation: u64,
    pub(super) wanted: Vec<GuestRequest>,
}

/// Carries statements out one after the other, until the manager stops.
pub(super) async fn answer(dispatcher: Arc<Dispatcher>, mut statements: mpsc::Receiver<Statement>) {
    let stop = dispatcher.shared.stop.clone();
    while let Some(Some(statement)) = stop.run_until_cancelled(statements.recv()).await {
        loop {
            // A newer session of the node says it all again.
            let Some(outlet) = dispatcher.outlet_of(&statement.node, statement.session) else { break };
            match carry_out(&dispatcher, &statement).await {
                Ok(answers) => {
                    let answers = GuestAnswers {
                        generation: statement.generation,
                        answers: answers.iter().map(encode).collect(),
                    };
                    let message = ManagerMessage { message: Some(Down::GuestAnswers(answers)) };
                    // The session may have ended meanwhile.
                    let _ = stop.run_until_cancelled(outlet.send(message)).await;
                    break;
                }
                Err(error) => {
                    tracing::error!(node = %statement.node, %error, "plain containers wait for their networks");
                    if stop.run_until_cancelled(tokio::time::sleep(RETRY)).await.is_none() {
                        return;
                    }
                }
            }
        }
    }
}

async fn carry_out(dispatcher: &Dispatcher, statement: &Statement) -> Result<Vec<GuestAnswer>, Error> {
    let Statement { node, wanted, .. } = statement;
    let described = dispatcher.described(node);
    let decide = |draft: &mut crate::draft::Draft, now, ids: &mut _| {
        // What it said of itself before counts already, though no plan has taken it up yet.
        let known = draft.state().node(node).zip(described.as_ref());
        if let Some((known, described)) = known.filter(|(known, described)| known.description != ***described)
        {
            let description = NodeDescription::clone(described);
            draft.put(Object::Node(Node { description, ..Node::clone(known) }));
        }
        Ok(control::state_guests(draft, now, ids, node, wanted))
    };
    dispatcher.shared.transact(decide).await
}
