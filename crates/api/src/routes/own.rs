//! Paths of our own, under `/shoal/`.

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use shoal_model::{ClusterReport, NodeVerdict};

use crate::body;
use crate::engine::{ClusterSide, Engine, NodeSide};
use crate::error::{ApiError, Result};
use crate::query::Params;

pub(super) fn routes() -> Router<Engine> {
    Router::new()
        .route("/shoal/node/tables", get(tables))
        .route("/shoal/node/verify", get(verify_node))
        .route("/shoal/verify", get(verify))
        .route("/shoal/trace", get(trace))
}

/// The network tables this node holds, against what its kernel and resolver really have.
async fn tables(State(node): State<NodeSide>) -> Result<Response> {
    Ok(body::ok(&node.agent.tables().await?))
}

/// Everything this node really has, and what it has found since its daemon started.
async fn verify_node(State(node): State<NodeSide>) -> Result<Response> {
    Ok(body::ok(&node.agent.verify().await?))
}

/// Why a name leads a container of this node where it leads; with what the manager knows, where one runs.
async fn trace(
    State(cluster): State<ClusterSide>,
    State(node): State<NodeSide>,
    params: Params,
) -> Result<Response> {
    let given =
        |name| params.given(name).ok_or_else(|| ApiError::bad_request(format!("{name} must be given")));
    let mut trace = node.agent.trace(given("from")?, given("name")?, params.number("port")?).await?;
    if let Some(manager) = cluster.swarm.manager() {
        manager.explain(&mut trace);
    }
    Ok(body::ok(&trace))
}

/// The whole cluster, as every node sees itself; where no manager runs, this node alone.
async fn verify(State(cluster): State<ClusterSide>, State(node): State<NodeSide>) -> Result<Response> {
    if let Some(manager) = cluster.swarm.manager() {
        return Ok(body::ok(&manager.verify().await));
    }
    let report = node.agent.verify().await?;
    let alone = NodeVerdict {
        id: report.node.clone(),
        name: node.agent.description().hostname,
        error: None,
        report: Some(report),
        current: None,
        behind: Vec::new(),
    };
    Ok(body::ok(&ClusterReport { nodes: vec![alone], refused_requests: 0 }))
}
