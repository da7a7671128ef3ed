//! `/secrets` and `/configs`.

use axum::Router;
use axum::extract::{FromRef, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{get, post};
use shoal_manager::Manager;
use shoal_model::{Deposit, DepositKind};

use crate::body::{self, Json};
use crate::convert::deposit as convert;
use crate::engine::ClusterSide;
use crate::error::{ApiError, Result};
use crate::query::{Name, Params};
use crate::wire::deposit as wire;
use crate::wire::service::Created;

/// `name` is how a name begins, `names` all of it, as in Docker.
const FILTERS: &[&str] = &["id", "label", "name", "names"];

pub(super) fn routes<S>() -> Router<S>
where
    S: Clone + Send + Sync + 'static,
    ClusterSide: FromRef<S>,
{
    of(DepositKind::Secret).merge(of(DepositKind::Config))
}

fn of<S>(kind: DepositKind) -> Router<S>
where
    S: Clone + Send + Sync + 'static,
    ClusterSide: FromRef<S>,
{
    let path = |rest: &str| format!("/{kind}s{rest}");
    Router::new()
        .route(&path(""), get(async move |cluster, params| list(kind, cluster, params).await))
        .route(&path("/create"), post(async move |cluster, spec| create(kind, cluster, spec).await))
        .route(
            &path("/{id}"),
            get(async move |cluster, name| inspect(kind, cluster, name).await)
                .delete(async move |cluster, name| remove(kind, cluster, name).await),
        )
        .route(
            &path("/{id}/update"),
            post(async move |cluster, name, params, spec| update(kind, cluster, name, params, spec).await),
        )
}

async fn list(kind: DepositKind, State(cluster): State<ClusterSide>, params: Params) -> Result<Response> {
    let manager = cluster.manager()?;
    let filters = params.filters(FILTERS)?;
    let state = manager.state();
    let wanted = |deposit: &Deposit| {
        filters.prefix("id", deposit.id.as_str())
            && filters.prefix("name", &deposit.spec.name)
            && filters.exact("names", &deposit.spec.name)
            && filters.labels("label", &deposit.spec.labels)
    };
    let deposits = state.deposits(kind).filter(|deposit| wanted(deposit));
    let shown = deposits.map(|deposit| shown(&manager, deposit)).collect::<Result<Vec<_>>>()?;
    Ok(body::ok(&shown))
}

/// With its value, if that may be shown.
fn shown(manager: &Manager, deposit: &Deposit) -> Result<wire::Deposit> {
    let value = match deposit.spec.kind {
        DepositKind::Secret | DepositKind::Credentials => None,
        DepositKind::Config => Some(manager.config_value(deposit).map_err(ApiError::from_control)?),
    };
    Ok(convert::deposit(deposit, value.as_deref()))
}

async fn create(
    kind: DepositKind,
    State(cluster): State<ClusterSide>,
    Json(spec): Json<wire::SpecIn>,
) -> Result<Response> {
    let manager = cluster.manager()?;
    let (spec, value) = convert::spec(kind, spec)?;
    let created = manager.create_deposit(spec, &value.unwrap_or_default()).await;
    let id = created.map_err(ApiError::from_control)?.to_string();
    Ok(body::json(StatusCode::CREATED, &Created { id, warnings: None }))
}

async fn inspect(
    kind: DepositKind,
    State(cluster): State<ClusterSide>,
    Name(name): Name,
) -> Result<Response> {
    let manager = cluster.manager()?;
    let deposit = manager.find_deposit(kind, &name).map_err(ApiError::from_lookup)?;
    Ok(body::ok(&shown(&manager, &deposit)?))
}

async fn update(
    kind: DepositKind,
    State(cluster): State<ClusterSide>,
    Name(name): Name,
    params: Params,
    Json(spec): Json<wire::SpecIn>,
) -> Result<Response> {
    let manager = cluster.manager()?;
    let version = super::version(&params, kind.as_str())?;
    let (spec, value) = convert::spec(kind, spec)?;
    let deposit = manager.find_deposit(kind, &name).map_err(ApiError::from_lookup)?;
    let updated = manager.update_deposit(&deposit.id, version, spec, value.as_deref()).await;
    updated.map_err(ApiError::from_control)?;
    Ok(body::empty(StatusCode::OK))
}

async fn remove(kind: DepositKind, State(cluster): State<ClusterSide>, Name(name): Name) -> Result<Response> {
    let manager = cluster.manager()?;
    let deposit = manager.find_deposit(kind, &name).map_err(ApiError::from_lookup)?;
    manager.remove_deposit(kind, &deposit.id).await.map_err(ApiError::from_control)?;
    Ok(body::empty(StatusCode::NO_CONTENT))
}
