//! `/containers/{id}/exec` and `/exec`.

use axum::Router;
use axum::body::Body;
use axum::extract::{FromRequest, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{get, post};
use shoal_model::IdGenerator;
use shoal_runtime::{ContainerState, ExecConfig};

use crate::body::{self, Json, OptionalJson};
use crate::engine::{Engine, NodeSide};
use crate::error::{ApiError, Result};
use crate::exec;
use crate::hijack::Hijack;
use crate::query::{Name, Params};
use crate::wire::container as wire;

pub(super) fn routes() -> Router<Engine> {
    Router::new()
        .route("/containers/{id}/exec", post(create))
        .route("/exec/{id}/start", post(start))
        .route("/exec/{id}/resize", post(resize))
        .route("/exec/{id}/json", get(inspect))
}

async fn create(
    State(node): State<NodeSide>,
    Name(name): Name,
    Json(request): Json<wire::ExecCreate>,
) -> Result<Response> {
    let argv = request.cmd.unwrap_or_default();
    if argv.is_empty() {
        return Err(ApiError::bad_request("No exec command specified"));
    }
    let view = node.agent.find_container(&name).await?;
    let container = view.container.config.id.clone();
    if !matches!(view.container.state, ContainerState::Running { .. }) {
        return Err(ApiError::conflict(format!("Container {container} is not running")));
    }
    let request = exec::Request {
        container,
        config: ExecConfig {
            argv,
            env: request.env.unwrap_or_default(),
            dir: request.working_dir.unwrap_or_default(),
            user: request.user.unwrap_or_default(),
            tty: request.tty.unwrap_or_default(),
            stdin: request.attach_stdin.unwrap_or_default(),
            privileged: request.privileged.unwrap_or_default(),
        },
        stdout: request.attach_stdout.unwrap_or_default(),
        stderr: request.attach_stderr.unwrap_or_default(),
        detach_keys: request.detach_keys.unwrap_or_default(),
    };
    let id = IdGenerator::from_os().container_id().to_string();
    node.execs.create(id.clone(), request)?;
    Ok(body::json(StatusCode::CREATED, &wire::ExecCreated { id }))
}

async fn start(State(node): State<NodeSide>, Name(id): Name, mut request: Request<Body>) -> Result<Response> {
    let hijack = Hijack::take(&mut request);
    let OptionalJson(options) = OptionalJson::<wire::ExecStart>::from_request(request, &()).await?;
    let options = options.unwrap_or_default();
    let mut request = node.execs.begin(&id)?;
    if options.detach.unwrap_or_default() {
        request.config.stdin = false;
        let exec = node.execs.start(&id, node.agent.runtime(), request).await?;
        tokio::spawn(async move { node.execs.finish(&id, exec.pid, &exec.handle()).await });
        return Ok(body::empty(StatusCode::OK));
    }
    Ok(hijack.answer(move |connection| async move {
        node.execs.attach(&id, node.agent.runtime(), request, connection).await;
    }))
}

async fn resize(State(node): State<NodeSide>, Name(id): Name, params: Params) -> Result<Response> {
    let size = |name: &str| {
        params
            .number::<u32>(name)?
            .ok_or_else(|| ApiError::bad_request(format!("invalid resize: {name} is missing")))
    };
    let (width, height) = (size("w")?, size("h")?);
    node.execs.running(&id)?.resize(width, height).await?;
    Ok(body::empty(StatusCode::OK))
}

async fn inspect(State(node): State<NodeSide>, Name(id): Name) -> Result<Response> {
    Ok(body::ok(&node.execs.inspect(&id)?))
}
