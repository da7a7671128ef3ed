//! `/volumes`.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{get, post};
use shoal_agent::VolumeView;

use crate::body::{self, Json};
use crate::convert::volume as convert;
use crate::engine::{Engine, NodeSide};
use crate::error::{ApiError, Result};
use crate::filters::Filters;
use crate::query::{Name, Params};
use crate::wire::volume as wire;

pub(super) fn routes() -> Router<Engine> {
    Router::new()
        .route("/volumes", get(list))
        .route("/volumes/create", post(create))
        .route("/volumes/prune", post(prune))
        .route("/volumes/{name}", get(inspect).delete(remove))
}

async fn list(State(node): State<NodeSide>, params: Params) -> Result<Response> {
    let filters = params.filters(&["dangling", "driver", "label", "name"])?;
    let dangling = filters.flag("dangling")?;
    let wanted = |view: &VolumeView| {
        filters.contains("name", &view.volume.name)
            && filters.exact("driver", convert::DRIVER)
            && filters.labels("label", &view.volume.labels)
            && dangling.is_none_or(|dangling| dangling == view.users.is_empty())
    };
    let views = node.agent.volumes().await?;
    let volumes = views.iter().filter(|view| wanted(view)).map(convert::volume).collect();
    Ok(body::ok(&wire::List { volumes, warnings: None }))
}

async fn create(State(node): State<NodeSide>, Json(request): Json<wire::Create>) -> Result<Response> {
    request.cluster_volume_spec.refuse("cluster volumes are")?;
    request.driver_opts.refuse("options of a volume are")?;
    match request.driver.as_deref() {
        None | Some("" | convert::DRIVER) => {}
        Some(other) => return Err(ApiError::unsupported(format!("volume driver {other} is"))),
    }
    let name = request.name.filter(|name| !name.is_empty());
    let view = node.agent.create_volume(name, request.labels.unwrap_or_default()).await?;
    Ok(body::json(StatusCode::CREATED, &convert::volume(&view)))
}

async fn inspect(State(node): State<NodeSide>, Name(name): Name) -> Result<Response> {
    Ok(body::ok(&convert::volume(&node.agent.find_volume(&name).await?)))
}

/// `force` is for volumes that their driver does not know any more.
async fn remove(State(node): State<NodeSide>, Name(name): Name, params: Params) -> Result<Response> {
    match node.agent.remove_volume(&name).await {
        Err(shoal_agent::Error::NoSuchVolume(_)) if params.flag("force") => {}
        removed => removed?,
    }
    Ok(body::empty(StatusCode::NO_CONTENT))
}

/// All volumes that no container mounts: before API 1.42 those with names, too.
async fn prune(State(node): State<NodeSide>, params: Params) -> Result<Response> {
    let filters = params.filters(&["all", "label", "label!"])?;
    let (mut deleted, mut reclaimed) = (Vec::new(), 0);
    for view in node.agent.volumes().await? {
        if !view.users.is_empty() || !may_go(&filters, &view) {
            continue;
        }
        let size = convert::size(&view.path);
        match node.agent.remove_volume(&view.volume.name).await {
            Ok(()) => {
                deleted.push(view.volume.name);
                reclaimed += size;
            }
            // Mounted, or removed by another, in this moment.
            Err(shoal_agent::Error::VolumeInUse { .. } | shoal_agent::Error::NoSuchVolume(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let volumes_deleted = Some(deleted).filter(|deleted| !deleted.is_empty());
    Ok(body::ok(&wire::Pruned { volumes_deleted, space_reclaimed: reclaimed }))
}

fn may_go(filters: &Filters, view: &VolumeView) -> bool {
    let labels = &view.volume.labels;
    let spared = filters.values("label!").any(|label| match label.split_once('=') {
        Some((key, value)) => labels.get(key).is_some_and(|found| found == value),
        None => labels.contains_key(label),
    });
    let named_too = filters.values("all").all(|all| matches!(all, "1" | "true"));
    filters.labels("label", labels) && !spared && (named_too || view.is_anonymous())
}
