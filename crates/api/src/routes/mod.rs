//! One module per group of Docker's paths.

mod absent;
mod containers;
mod deposits;
mod distribution;
mod execs;
mod images;
mod networks;
mod nodes;
mod own;
mod plain;
mod services;
mod swarm;
mod system;
mod tasks;
mod volumes;

use axum::Router;
use axum::extract::FromRef;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use crate::engine::{ClusterSide, Engine};
use crate::error::{ApiError, Result};
use crate::query::Params;

/// Marks Docker's answer to a path it does not know, which carries no version headers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NotFound;

/// Every path of the API.
pub(crate) fn all() -> Router<Engine> {
    cluster::<Engine>()
        .merge(system::routes())
        .merge(containers::routes())
        .merge(plain::routes())
        .merge(execs::routes())
        .merge(images::routes())
        .merge(volumes::routes())
        .merge(distribution::routes())
        .merge(own::routes())
}

/// The paths that need no container to answer.
pub(crate) fn cluster<S>() -> Router<S>
where
    S: Clone + Send + Sync + 'static,
    ClusterSide: FromRef<S>,
{
    Router::new()
        .merge(system::cluster_routes())
        .merge(swarm::routes())
        .merge(nodes::routes())
        .merge(networks::routes())
        .merge(services::routes())
        .merge(tasks::routes())
        .merge(deposits::routes())
        .merge(absent::routes())
        .fallback(not_found)
        .method_not_allowed_fallback(not_found)
}

async fn not_found() -> Response {
    let mut response = ApiError::new(StatusCode::NOT_FOUND, "page not found").into_response();
    response.extensions_mut().insert(NotFound);
    response
}

/// The `version` every update names: the one its sender has seen.
fn version(params: &Params, what: &str) -> Result<u64> {
    let text = params.get("version").unwrap_or_default();
    text.parse().map_err(|_| ApiError::bad_request(format!("invalid {what} version '{text}': not a number")))
}
