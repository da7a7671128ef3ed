//! `GET /distribution/{name}/json`: what a registry says of an image.

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;

use crate::body;
use crate::convert::image as convert;
use crate::engine::{ClusterSide, Engine, NodeSide};
use crate::error::{ApiError, Result};
use crate::query::Name;

pub(super) fn routes() -> Router<Engine> {
    Router::new().route("/distribution/{*name}", get(inspect))
}

/// Registries are not asked yet. On a refusal `docker service create` warns that nodes may find different
/// images under the name, and goes on with the name alone. Where one node is the whole cluster there is
/// nothing to warn of: it answers for its own image, without a digest of a registry, so that the service
/// keeps the name alone as well.
async fn inspect(
    State(node): State<NodeSide>,
    State(cluster): State<ClusterSide>,
    Name(name): Name,
) -> Result<Response> {
    let name = name.strip_suffix("/json").unwrap_or(&name);
    let alone = cluster.swarm.manager().is_some_and(|manager| manager.state().nodes().count() == 1);
    let image = if alone { node.agent.runtime().image(name).await.ok() } else { None };
    match image {
        Some(image) => Ok(body::ok(&convert::distribution(&image))),
        None => Err(ApiError::unsupported(format!("asking a registry for {name} is"))),
    }
}
