//! What this engine does not have: said plainly, or shown as empty where clients look in passing.

use axum::Router;
use axum::extract::{FromRef, Request};
use axum::response::Response;
use axum::routing::{any, delete, get, post};
use serde_json::json;

use crate::body;
use crate::engine::ClusterSide;
use crate::error::{ApiError, Result};
use crate::query::Name;

pub(super) fn routes<S>() -> Router<S>
where
    S: Clone + Send + Sync + 'static,
    ClusterSide: FromRef<S>,
{
    Router::new()
        .route("/plugins", get(async || body::ok(&json!([]))))
        .route("/plugins/pull", post(async || refuse("plugins are")))
        .route("/plugins/privileges", get(async || refuse("plugins are")))
        .route("/plugins/{name}/json", get(no_plugin))
        .route("/plugins/{name}", delete(no_plugin))
        .route("/build", post(no_build))
        .route("/build/prune", post(no_build))
        .route("/session", any(no_build))
        .route("/grpc", any(no_build))
        .route("/commit", post(async || refuse("making images from containers is")))
}

/// The context is taken in first: a client that is still sending it would not read the answer.
async fn no_build(request: Request) -> ApiError {
    body::discard(request.into_body()).await;
    ApiError::unsupported_but(
        "building images is",
        "build elsewhere, for example with buildah or docker buildx build --output type=docker, and bring the image \
         in with docker load",
    )
}

fn refuse(what: &str) -> Result<Response> {
    Err(ApiError::unsupported(what))
}

async fn no_plugin(Name(name): Name) -> ApiError {
    ApiError::not_found(format!("plugin \"{name}\" not found"))
}
