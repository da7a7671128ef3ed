//! `/nodes`.

use axum::Router;
use axum::extract::{FromRef, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{get, post};
use shoal_model::Node;

use crate::body::{self, Json};
use crate::convert::node as convert;
use crate::engine::ClusterSide;
use crate::error::{ApiError, Result};
use crate::filters::Filters;
use crate::query::{Name, Params};
use crate::wire;

const FILTERS: &[&str] = &["id", "label", "membership", "name", "node.label", "role"];

pub(super) fn routes<S>() -> Router<S>
where
    S: Clone + Send + Sync + 'static,
    ClusterSide: FromRef<S>,
{
    Router::new()
        .route("/nodes", get(list))
        .route("/nodes/{id}", get(inspect).delete(remove))
        .route("/nodes/{id}/update", post(update))
}

async fn list(State(cluster): State<ClusterSide>, params: Params) -> Result<Response> {
    let filters = params.filters(FILTERS)?;
    let state = cluster.manager()?.state();
    let trust = state.cluster().map(AsRef::as_ref);
    let nodes: Vec<_> =
        state.nodes().filter(|node| wanted(&filters, node)).map(|node| convert::node(node, trust)).collect();
    Ok(body::ok(&nodes))
}

fn wanted(filters: &Filters, node: &Node) -> bool {
    filters.prefix("id", node.id.as_str())
        && filters.prefix("name", &node.description.hostname)
        && filters.exact("role", convert::role(node.spec.role))
        && filters.exact("membership", "accepted")
        && filters.labels("label", &node.description.engine_labels)
        && filters.labels("node.label", &node.spec.labels)
}

async fn inspect(State(cluster): State<ClusterSide>, Name(id): Name) -> Result<Response> {
    let manager = cluster.manager()?;
    let node = manager.find_node(&id).map_err(ApiError::from_lookup)?;
    let state = manager.state();
    Ok(body::ok(&convert::node(&node, state.cluster().map(AsRef::as_ref))))
}

async fn update(
    State(cluster): State<ClusterSide>,
    Name(id): Name,
    params: Params,
    Json(spec): Json<wire::node::NodeSpec>,
) -> Result<Response> {
    let manager = cluster.manager()?;
    let version = super::version(&params, "node")?;
    let spec = convert::spec(spec)?;
    let node = manager.find_node(&id).map_err(ApiError::from_lookup)?;
    manager.update_node(&node.id, version, spec).await.map_err(ApiError::from_control)?;
    Ok(body::empty(StatusCode::OK))
}

async fn remove(State(cluster): State<ClusterSide>, Name(id): Name, params: Params) -> Result<Response> {
    let manager = cluster.manager()?;
    let node = manager.find_node(&id).map_err(ApiError::from_lookup)?;
    manager.remove_node(&node.id, params.flag("force")).await.map_err(ApiError::from_control)?;
    Ok(body::empty(StatusCode::OK))
}
