//! Paths of our own, under `/shoal/`.

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;

use crate::body;
use crate::engine::{Engine, NodeSide};
use crate::error::Result;

pub(super) fn routes() -> Router<Engine> {
    Router::new().route("/shoal/node/tables", get(tables))
}

/// The network tables this node holds, against what its kernel and resolver really have.
async fn tables(State(node): State<NodeSide>) -> Result<Response> {
    Ok(body::ok(&node.agent.tables().await?))
}
