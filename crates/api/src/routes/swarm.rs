//! `/swarm`.

use axum::Router;
use axum::extract::{FromRef, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{get, post};
use shoal_manager::Rotate;

use crate::body::{self, Json};
use crate::convert::swarm as convert;
use crate::engine::{ClusterSide, LocalState};
use crate::error::{ApiError, Result};
use crate::query::Params;
use crate::wire;

/// What Docker says to a node that is a member already.
const ALREADY_MEMBER: &str = "This node is already part of a swarm. Use \"docker swarm leave\" to leave this \
                              swarm and join another one.";
/// What Docker says to a node that is none.
const NO_MEMBER: &str = "This node is not part of a swarm";

pub(super) fn routes<S>() -> Router<S>
where
    S: Clone + Send + Sync + 'static,
    ClusterSide: FromRef<S>,
{
    Router::new()
        .route("/swarm", get(inspect))
        .route("/swarm/init", post(init))
        .route("/swarm/join", post(join))
        .route("/swarm/leave", post(leave))
        .route("/swarm/update", post(update))
        .route("/swarm/unlockkey", get(unlock_key))
        .route("/swarm/unlock", post(unlock))
}

async fn inspect(State(cluster): State<ClusterSide>) -> Result<Response> {
    let manager = cluster.manager()?;
    let state = manager.state();
    let object = state.cluster().ok_or_else(|| ApiError::unavailable("the cluster is not there yet"))?;
    let tokens = manager.join_tokens().map_err(ApiError::from_control)?;
    Ok(body::ok(&convert::cluster(object, Some(tokens))))
}

async fn init(
    State(cluster): State<ClusterSide>,
    Json(request): Json<wire::swarm::Init>,
) -> Result<Response> {
    let request = convert::init(request)?;
    let member = matches!(cluster.swarm.local_state(), LocalState::Active { .. } | LocalState::Pending);
    if member && !request.force_new_cluster {
        return Err(ApiError::unavailable(ALREADY_MEMBER));
    }
    let node = cluster.swarm.init(request).await.map_err(ApiError::from_lookup)?;
    cluster.events.begin();
    Ok(body::ok(node.as_str()))
}

async fn join(
    State(cluster): State<ClusterSide>,
    Json(request): Json<wire::swarm::Join>,
) -> Result<Response> {
    if matches!(cluster.swarm.local_state(), LocalState::Active { .. } | LocalState::Pending) {
        return Err(ApiError::unavailable(ALREADY_MEMBER));
    }
    cluster.swarm.join(convert::join(request)?).await.map_err(ApiError::from_lookup)?;
    Ok(body::empty(StatusCode::OK))
}

async fn leave(State(cluster): State<ClusterSide>, params: Params) -> Result<Response> {
    if cluster.swarm.local_state() == LocalState::Inactive {
        return Err(ApiError::unavailable(NO_MEMBER));
    }
    cluster.swarm.leave(params.flag("force")).await.map_err(ApiError::from_lookup)?;
    Ok(body::empty(StatusCode::OK))
}

async fn update(
    State(cluster): State<ClusterSide>,
    params: Params,
    Json(spec): Json<wire::swarm::Spec>,
) -> Result<Response> {
    let manager = cluster.manager()?;
    let version = super::version(&params, "swarm")?;
    if params.flag("rotateManagerUnlockKey") {
        return Err(ApiError::unsupported("rotateManagerUnlockKey is"));
    }
    let rotate = Rotate {
        worker_token: params.flag("rotateWorkerToken"),
        manager_token: params.flag("rotateManagerToken"),
    };
    let state = manager.state();
    let current = state.cluster().map(|cluster| cluster.spec.clone()).unwrap_or_default();
    let spec = convert::spec(spec, current)?;
    manager.update_cluster(version, spec, rotate).await.map_err(ApiError::from_control)?;
    Ok(body::empty(StatusCode::OK))
}

/// No key: managers are never locked.
async fn unlock_key(State(cluster): State<ClusterSide>) -> Result<Response> {
    cluster.manager()?;
    Ok(body::ok(&serde_json::json!({"UnlockKey": ""})))
}

async fn unlock() -> ApiError {
    ApiError::conflict("swarm is not locked")
}
