//! `/tasks`.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{FromRef, State};
use axum::response::Response;
use axum::routing::get;
use futures::StreamExt;
use shoal_manager::{Manager, State as Picture};
use shoal_model::{Labels, LogEntry, Service, Task, TaskId, TaskSpec};

use crate::body;
use crate::convert::task as convert;
use crate::engine::ClusterSide;
use crate::error::{ApiError, Result};
use crate::filters::Filters;
use crate::logs::{self, Format};
use crate::query::{Name, Params};
use crate::wire::task as wire;

const FILTERS: &[&str] =
    &["_up-to-date", "desired-state", "id", "label", "name", "node", "runtime", "service"];

pub(super) fn routes<S>() -> Router<S>
where
    S: Clone + Send + Sync + 'static,
    ClusterSide: FromRef<S>,
{
    Router::new()
        .route("/tasks", get(list))
        .route("/tasks/{id}", get(inspect))
        .route("/tasks/{id}/logs", get(task_logs))
}

async fn list(State(cluster): State<ClusterSide>, params: Params) -> Result<Response> {
    let manager = cluster.manager()?;
    let filters = Selection::read(&params.filters(FILTERS)?, &manager)?;
    let state = manager.state();
    let tasks: Vec<_> =
        state.tasks().filter(|task| filters.wants(&state, task)).map(|task| shown(&state, task)).collect();
    Ok(body::ok(&tasks))
}

fn shown(state: &Picture, task: &Task) -> wire::Task {
    let trouble = shoal_manager::ports::withheld(state, task);
    convert::task(task, trouble, |id| state.network(id).map(Arc::as_ref))
}

/// The filters, with names of services and nodes resolved.
struct Selection {
    filters: Filters,
    services: Vec<String>,
    nodes: Vec<String>,
    up_to_date: Option<bool>,
}

impl Selection {
    fn read(filters: &Filters, manager: &Manager) -> Result<Self> {
        for state in filters.values("desired-state") {
            if !matches!(state, "running" | "shutdown" | "accepted") {
                return Err(ApiError::bad_request(format!("Invalid filter 'desired-state=[{state}]'")));
            }
        }
        let services = filters.values("service").map(|name| {
            manager.find_service(name).map(|service| service.id.to_string()).map_err(ApiError::from_lookup)
        });
        let nodes = filters.values("node").map(|name| {
            manager.find_node(name).map(|node| node.id.to_string()).map_err(ApiError::from_lookup)
        });
        Ok(Self {
            services: services.collect::<Result<_>>()?,
            nodes: nodes.collect::<Result<_>>()?,
            up_to_date: filters.flag("_up-to-date")?,
            filters: filters.clone(),
        })
    }

    fn wants(&self, state: &Picture, task: &Task) -> bool {
        let node = task.node.as_ref().map(|node| node.as_str()).unwrap_or_default();
        let service = state.service(&task.service);
        let no_labels = Labels::new();
        self.filters.prefix("id", task.id.as_str())
            && self.filters.prefix("name", &task.name())
            && self.filters.exact("runtime", "container")
            && self.filters.labels("label", service.map_or(&no_labels, |service| &service.spec.labels))
            && (self.services.is_empty() || self.services.iter().any(|id| id == task.service.as_str()))
            && (self.nodes.is_empty() || self.nodes.iter().any(|id| id == node))
            && self.filters.exact("desired-state", convert::desired(task))
            && self
                .up_to_date
                .is_none_or(|wanted| wanted == service.is_some_and(|service| is_up_to_date(service, task)))
    }
}

/// The task needs no replacement: it was made from the service as it stands now. Where it may run is
/// left out, since a task that fits its node stays when only that changes.
fn is_up_to_date(service: &Service, task: &Task) -> bool {
    let declared = &service.spec.task;
    let placed = TaskSpec { placement: declared.placement.clone(), ..task.spec.clone() };
    let ports = &service.endpoint.ports;
    let execution = service.job.map(|job| job.iteration);
    placed == *declared
        && task.iteration == execution
        && task.ports.len() == ports.len()
        && task.ports.iter().all(|port| ports.contains(port))
}

async fn inspect(State(cluster): State<ClusterSide>, Name(id): Name) -> Result<Response> {
    let manager = cluster.manager()?;
    let task = manager.find_task(&id).map_err(ApiError::from_lookup)?;
    let state = manager.state();
    Ok(body::ok(&shown(&state, &task)))
}

async fn task_logs(State(cluster): State<ClusterSide>, Name(id): Name, params: Params) -> Result<Response> {
    let manager = cluster.manager()?;
    let task = manager.find_task(&id).map_err(ApiError::from_lookup)?;
    stream_logs(&manager, vec![task.clone()], task.spec.container.tty, &params)
}

/// Streams the output of tasks, each line with the ids of its task, service and node if wanted.
pub(super) fn stream_logs(
    manager: &Manager,
    tasks: Vec<Arc<Task>>,
    tty: bool,
    params: &Params,
) -> Result<Response> {
    let (selector, format) = logs::selection(params, tty)?;
    let details: std::collections::HashMap<TaskId, Labels> =
        tasks.iter().map(|task| (task.id.clone(), details(task))).collect();
    let ids = tasks.iter().map(|task| task.id.clone()).collect();
    let lines = manager.logs(ids, selector).map(move |line| match line {
        Ok((task, entry)) => Ok::<_, std::convert::Infallible>(render(format, &entry, details.get(&task))),
        // The head of the answer is out: the client has to hear of it where the lines are.
        Err(error) => Ok(format.framing.fault(&error.message)),
    });
    Ok(Response::new(Body::from_stream(lines)))
}

fn render(format: Format, entry: &LogEntry, details: Option<&Labels>) -> bytes::Bytes {
    format.entry(entry, details.unwrap_or(&Labels::new()))
}

fn details(task: &Task) -> Labels {
    Labels::from([
        (
            "com.docker.swarm.node.id".to_owned(),
            task.node.as_ref().map(ToString::to_string).unwrap_or_default(),
        ),
        ("com.docker.swarm.service.id".to_owned(), task.service.to_string()),
        ("com.docker.swarm.task.id".to_owned(), task.id.to_string()),
    ])
}
