//! `/services`.

use axum::Router;
use axum::extract::{FromRef, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::{get, post};
use shoal_manager::Manager;
use shoal_model::{NetworkId, ServiceMode, ServiceSpec};
use shoal_runtime::registry::Credentials;

use super::tasks::stream_logs;
use crate::body::{self, Json};
use crate::convert::service_in;
use crate::convert::service_out::{self, Defaults};
use crate::engine::ClusterSide;
use crate::error::{ApiError, Result};
use crate::query::{Name, Params};
use crate::wire::service as wire;

const FILTERS: &[&str] = &["id", "label", "mode", "name", "runtime"];

pub(super) fn routes<S>() -> Router<S>
where
    S: Clone + Send + Sync + 'static,
    ClusterSide: FromRef<S>,
{
    Router::new()
        .route("/services", get(list))
        .route("/services/create", post(create))
        .route("/services/{id}", get(inspect).delete(remove))
        .route("/services/{id}/update", post(update))
        .route("/services/{id}/logs", get(logs))
}

async fn list(State(cluster): State<ClusterSide>, params: Params) -> Result<Response> {
    let filters = params.filters(FILTERS)?;
    let state = cluster.manager()?.state();
    let with_status = params.flag("status");
    let services: Vec<_> = state
        .services()
        .filter(|service| {
            filters.prefix("id", service.id.as_str())
                && filters.prefix("name", &service.spec.name)
                && filters.exact("mode", mode(service.spec.mode))
                && filters.exact("runtime", "container")
                && filters.labels("label", &service.spec.labels)
        })
        .map(|service| wire::Service {
            service_status: with_status
                .then(|| service_out::status(service, state.service_tasks(&service.id).map(AsRef::as_ref))),
            ..service_out::service(service, Defaults::Omit)
        })
        .collect();
    Ok(body::ok(&services))
}

/// As filters name it.
fn mode(mode: ServiceMode) -> &'static str {
    match mode {
        ServiceMode::Replicated { .. } => "replicated",
        ServiceMode::Global => "global",
        ServiceMode::ReplicatedJob { .. } => "replicated-job",
        ServiceMode::GlobalJob => "global-job",
    }
}

async fn create(
    State(cluster): State<ClusterSide>,
    headers: HeaderMap,
    Json(spec): Json<wire::ServiceSpec>,
) -> Result<Response> {
    let manager = cluster.manager()?;
    let spec = read(spec, &manager)?;
    let created =
        manager.create_service(spec, credentials(&headers)?).await.map_err(ApiError::from_control)?;
    let warnings = Some(created.warnings).filter(|warnings| !warnings.is_empty());
    Ok(body::json(StatusCode::CREATED, &wire::Created { id: created.id.to_string(), warnings }))
}

/// What nodes are to show the image's registry. It stays as it came: whoever needs it reads it then.
fn credentials(headers: &HeaderMap) -> Result<Option<&str>> {
    let nobody = super::images::credentials(headers)? == Credentials::None;
    let header = headers.get("X-Registry-Auth").and_then(|header| header.to_str().ok());
    Ok(header.filter(|_| !nobody))
}

/// Networks may be named; the model knows ids only.
fn read(spec: wire::ServiceSpec, manager: &Manager) -> Result<ServiceSpec> {
    let network = |term: &str| -> Result<NetworkId> {
        manager.find_network(term).map(|network| network.id.clone()).map_err(ApiError::from_lookup)
    };
    service_in::service(spec, &network)
}

async fn inspect(State(cluster): State<ClusterSide>, Name(id): Name, params: Params) -> Result<Response> {
    let service = cluster.manager()?.find_service(&id).map_err(ApiError::from_lookup)?;
    let defaults = if params.flag("insertDefaults") { Defaults::Insert } else { Defaults::Omit };
    Ok(body::ok(&service_out::service(&service, defaults)))
}

async fn update(
    State(cluster): State<ClusterSide>,
    Name(id): Name,
    params: Params,
    headers: HeaderMap,
    Json(spec): Json<wire::ServiceSpec>,
) -> Result<Response> {
    let manager = cluster.manager()?;
    let version = super::version(&params, "service")?;
    // A service has one set of credentials, whatever it declares and declared.
    match params.get("registryAuthFrom") {
        None | Some("" | "spec" | "previous-spec") => {}
        Some(other) => {
            return Err(ApiError::bad_request(format!("unsupported registryAuthFrom value {other:?}")));
        }
    }
    let service = manager.find_service(&id).map_err(ApiError::from_lookup)?;
    let warnings = match params.get("rollback") {
        None | Some("" | "none") => {
            let spec = read(spec, &manager)?;
            manager.update_service(&service.id, version, spec, credentials(&headers)?).await
        }
        // The body is the current spec then, and means nothing.
        Some("previous") => manager.rollback_service(&service.id, version).await,
        Some(other) => return Err(ApiError::bad_request(format!("unrecognized rollback option {other}"))),
    };
    let warnings = warnings.map_err(ApiError::from_control)?;
    Ok(body::ok(&wire::Updated { warnings: Some(warnings).filter(|warnings| !warnings.is_empty()) }))
}

async fn remove(State(cluster): State<ClusterSide>, Name(id): Name) -> Result<Response> {
    let manager = cluster.manager()?;
    let service = manager.find_service(&id).map_err(ApiError::from_lookup)?;
    manager.remove_service(&service.id).await.map_err(ApiError::from_control)?;
    Ok(body::empty(StatusCode::OK))
}

async fn logs(State(cluster): State<ClusterSide>, Name(id): Name, params: Params) -> Result<Response> {
    let manager = cluster.manager()?;
    let service = manager.find_service(&id).map_err(ApiError::from_lookup)?;
    let tasks = manager.state().service_tasks(&service.id).cloned().collect();
    stream_logs(&manager, tasks, service.spec.task.container.tty, &params)
}
