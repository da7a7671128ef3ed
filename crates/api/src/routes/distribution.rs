//! What registries say: `GET /distribution/{name}/json`, and whether they know somebody: `POST /auth`.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use axum::routing::{get, post};
use shoal_runtime::registry::Credentials;

use super::images::{credentials, pull};
use crate::body::{self, Json};
use crate::convert::image as convert;
use crate::engine::{ClusterSide, Engine, NodeSide};
use crate::error::Result;
use crate::query::Name;
use crate::wire::image as wire;

/// For a registry's answer when there is one to do without it.
const PATIENCE: Duration = Duration::from_secs(3);

pub(super) fn routes() -> Router<Engine> {
    Router::new().route("/distribution/{*name}", get(inspect)).route("/auth", post(authenticate))
}

/// On a refusal `docker service create` warns that nodes may find different images under the name, and
/// goes on with the name alone. Where one node is the whole cluster there is nothing to warn of: it answers
/// for its own image, without a digest of a registry, so that the service keeps the name alone as well.
async fn inspect(
    State(node): State<NodeSide>,
    State(cluster): State<ClusterSide>,
    Name(name): Name,
    headers: HeaderMap,
) -> Result<Response> {
    let name = name.strip_suffix("/json").unwrap_or(&name);
    let runtime = node.agent.runtime();
    let credentials = credentials(&headers)?;
    let asked = runtime.distribution(name, &credentials);
    let alone = cluster.swarm.manager().is_some_and(|manager| manager.state().nodes().count() == 1);
    let own = if alone { runtime.image(name).await.ok() } else { None };
    let Some(own) = own else {
        return Ok(body::ok(&convert::distribution(asked.await?)));
    };
    Ok(body::ok(&match tokio::time::timeout(PATIENCE, asked).await {
        Ok(Ok(found)) => convert::distribution(found),
        Ok(Err(_)) | Err(_) => convert::own_distribution(&own),
    }))
}

/// `docker login`.
async fn authenticate(State(node): State<NodeSide>, Json(wish): Json<wire::AuthConfig>) -> Result<Response> {
    let credentials = Credentials::Password { user: wish.username, password: wish.password };
    let server = wish.serveraddress.trim_start_matches("https://").trim_start_matches("http://");
    let registry = server.split('/').next().unwrap_or_default();
    node.agent.runtime().log_in(registry, &credentials).await.map_err(pull::refused)?;
    Ok(body::ok(&wire::LoggedIn { status: "Login Succeeded", identity_token: "" }))
}
