//! `/containers`, as far as it concerns containers of no service: making and removing them, starting
//! them, attaching to them.

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{delete, post};
use shoal_model::MountKind;
use shoal_runtime::ContainerState;

use super::containers::stop_timeout;
use super::networks;
use crate::attach::{self, Wishes};
use crate::body::{self, Json};
use crate::convert::create as convert;
use crate::detach::Keys;
use crate::engine::{ClusterSide, Engine, NodeSide};
use crate::error::{ApiError, Result};
use crate::hijack::Hijack;
use crate::query::{Name, Params};
use crate::wire::create as wire;
use crate::wire::network::{Connect, Disconnect};

pub(super) fn routes() -> Router<Engine> {
    Router::new()
        .route("/containers/create", post(create))
        .route("/containers/prune", post(prune))
        .route("/containers/{id}", delete(remove))
        .route("/containers/{id}/start", post(start))
        .route("/containers/{id}/restart", post(restart))
        .route("/containers/{id}/rename", post(rename))
        .route("/containers/{id}/attach", post(attach))
        .route("/containers/{id}/resize", post(resize))
        .route("/networks/{id}/connect", post(connect))
        .route("/networks/{id}/disconnect", post(disconnect))
}

async fn create(
    State(node): State<NodeSide>,
    params: Params,
    Json(request): Json<wire::Create>,
) -> Result<Response> {
    if let Some(platform) = params.given("platform") {
        return Err(ApiError::unsupported(format!("choosing a platform ({platform}) is")));
    }
    // Docker makes what `-v` names; what `--mount` names must be there.
    let binds = request.host_config.iter().flat_map(|host| host.binds.iter().flatten()).count();
    let spec = convert::plain(request)?;
    // First of all: without its image nothing else is of interest.
    node.agent.runtime().image(&spec.container.image).await?;
    for mount in spec.container.mounts.iter().take(binds) {
        if let MountKind::Bind { source, .. } = &mount.kind {
            tokio::fs::create_dir_all(source).await.or_else(|error| exists(source, error))?;
        }
    }
    let name = params.given("name").map(|name| name.strip_prefix('/').unwrap_or(name).to_owned());
    let id = node.agent.create_container(name, spec).await?;
    let created = wire::Created { id: id.to_string(), warnings: Vec::new() };
    Ok(body::json(StatusCode::CREATED, &created))
}

// === networks ===

async fn connect(
    State(node): State<NodeSide>,
    State(cluster): State<ClusterSide>,
    Name(name): Name,
    Json(request): Json<Connect>,
) -> Result<Response> {
    let network = known_network(&cluster, &name)?;
    let view = node.agent.find_container(&request.container.unwrap_or_default()).await?;
    let place = convert::place(network, request.endpoint_config.unwrap_or_default())?;
    node.agent.connect_container(&view.container.config.id, place).await?;
    Ok(body::empty(StatusCode::OK))
}

async fn disconnect(
    State(node): State<NodeSide>,
    State(cluster): State<ClusterSide>,
    Name(name): Name,
    Json(request): Json<Disconnect>,
) -> Result<Response> {
    // A container that is to be let go of by force may be on a network that is gone.
    let network = match known_network(&cluster, &name) {
        Err(_) if request.force == Some(true) => name,
        found => found?,
    };
    let view = node.agent.find_container(&request.container.unwrap_or_default()).await?;
    node.agent.disconnect_container(&view.container.config.id, &network).await?;
    Ok(body::empty(StatusCode::OK))
}

/// The name of a network that containers of this node may be on.
fn known_network(cluster: &ClusterSide, name: &str) -> Result<String> {
    let own = networks::local(cluster).into_iter().find(|network| networks::is_named(network, name));
    if let Some(network) = own {
        return Ok(network.name);
    }
    if let Some(manager) = cluster.swarm.manager() {
        return Ok(manager.find_network(name).map_err(ApiError::from_lookup)?.spec.name.clone());
    }
    let attachable = cluster.swarm.attachable_networks();
    let is_it = |network: &&shoal_model::Network| network.id.as_str() == name || network.spec.name == name;
    let found = attachable.iter().find(is_it).map(|network| network.spec.name.clone());
    found.ok_or_else(|| ApiError::not_found(format!("network {name} not found")))
}

// === making ===

/// A file is as good as a directory.
fn exists(source: &str, error: std::io::Error) -> Result<()> {
    if std::path::Path::new(source).exists() {
        return Ok(());
    }
    Err(ApiError::internal(format!("error while creating mount source path '{source}': {error}")))
}

async fn start(State(node): State<NodeSide>, Name(name): Name) -> Result<Response> {
    let id = node.agent.find_container(&name).await?.container.config.id;
    let started = node.agent.start_container(&id).await?;
    Ok(body::empty(if started { StatusCode::NO_CONTENT } else { StatusCode::NOT_MODIFIED }))
}

async fn restart(State(node): State<NodeSide>, Name(name): Name, params: Params) -> Result<Response> {
    let timeout = stop_timeout(&params)?;
    let id = node.agent.find_container(&name).await?.container.config.id;
    node.agent.restart_container(&id, timeout).await?;
    Ok(body::empty(StatusCode::NO_CONTENT))
}

async fn rename(State(node): State<NodeSide>, Name(name): Name, params: Params) -> Result<Response> {
    let Some(new) = params.given("name") else {
        return Err(ApiError::bad_request("Neither old nor new names may be empty"));
    };
    let id = node.agent.find_container(&name).await?.container.config.id;
    node.agent.rename_container(&id, new.strip_prefix('/').unwrap_or(new).to_owned()).await?;
    Ok(body::empty(StatusCode::NO_CONTENT))
}

async fn remove(State(node): State<NodeSide>, Name(name): Name, params: Params) -> Result<Response> {
    if params.flag("link") {
        return Err(ApiError::unsupported("removing links between containers is"));
    }
    let id = node.agent.find_container(&name).await?.container.config.id;
    node.agent.remove_container(&id, params.flag("force"), params.flag("v")).await?;
    Ok(body::empty(StatusCode::NO_CONTENT))
}

/// Removes the plain containers that do not run.
async fn prune(State(node): State<NodeSide>, params: Params) -> Result<Response> {
    let filters = params.filters(&["label", "label!", "until"])?;
    if filters.values("until").next().is_some() || filters.values("label!").next().is_some() {
        return Err(ApiError::unsupported("pruning containers by age, or by labels that they lack, is"));
    }
    let mut deleted = Vec::new();
    for view in node.agent.containers().await? {
        let idle = view.plain.as_ref().is_some_and(|plain| !plain.restarting)
            && !matches!(view.container.state, ContainerState::Running { .. });
        if !idle || !filters.labels("label", &view.container.config.labels) {
            continue;
        }
        let id = &view.container.config.id;
        match node.agent.remove_container(id, false, false).await {
            Ok(()) => deleted.push(id.to_string()),
            // Started, or removed by another, in this moment.
            Err(shoal_agent::Error::Running(_) | shoal_agent::Error::NoSuchContainer(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let deleted = Some(deleted).filter(|ids| !ids.is_empty());
    Ok(body::ok(&wire::Pruned { containers_deleted: deleted, space_reclaimed: 0 }))
}

/// One that does not run yet is attached when it starts: clients attach first.
async fn attach(
    State(node): State<NodeSide>,
    Name(name): Name,
    params: Params,
    mut request: Request<Body>,
) -> Result<Response> {
    let hijack = Hijack::take(&mut request);
    if params.flag("logs") {
        return Err(ApiError::unsupported_but("attaching with earlier output is", "use docker logs"));
    }
    let view = node.agent.find_container(&name).await?;
    let config = &view.container.config;
    let detach = match config.spec.tty {
        true => Keys::parse(params.get("detachKeys").unwrap_or_default())?,
        false => Keys::none(),
    };
    if view.plain.is_none() && !matches!(view.container.state, ContainerState::Running { .. }) {
        return Err(ApiError::conflict(format!("Container {} is not running", config.id)));
    }
    let stream = params.flag("stream");
    let wishes = Wishes {
        container: config.id.clone(),
        tty: config.spec.tty,
        stdin: stream && params.flag("stdin") && config.spec.open_stdin,
        stdout: stream && params.flag("stdout"),
        stderr: stream && params.flag("stderr"),
        stdin_once: view.plain.as_ref().is_some_and(|plain| plain.spec.stdin_once),
        detach,
    };
    let output = node.agent.container_output(&config.id);
    Ok(hijack.answer(move |connection| attach::serve(node.agent, wishes, output, connection)))
}

async fn resize(State(node): State<NodeSide>, Name(name): Name, params: Params) -> Result<Response> {
    let size = |name: &str| {
        params
            .number::<u32>(name)?
            .ok_or_else(|| ApiError::bad_request(format!("invalid resize: {name} is missing")))
    };
    let (width, height) = (size("w")?, size("h")?);
    let view = node.agent.find_container(&name).await?;
    let id = &view.container.config.id;
    if !matches!(view.container.state, ContainerState::Running { .. }) {
        return Err(ApiError::conflict(format!("Container {id} is not running")));
    }
    node.agent.runtime().resize(id, width, height).await?;
    Ok(body::empty(StatusCode::OK))
}
