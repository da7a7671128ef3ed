//! `/containers`: those of this node, of tasks and of no service alike.

use std::str::FromStr;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use axum::routing::{MethodFilter, MethodRouter, get, on, post};
use futures::{FutureExt, StreamExt};
use jiff::Timestamp;
use nix::sys::signal::Signal;
use shoal_agent::{ContainerView, WaitFor};
use shoal_model::Labels;
use shoal_runtime::ContainerState;

use crate::body;
use crate::convert::container as convert;
use crate::engine::{Engine, NodeSide};
use crate::error::{ApiError, Result};
use crate::filters::Filters;
use crate::logs;
use crate::query::{Name, Params};
use crate::wire::container as wire;

const FILTERS: &[&str] = &[
    "ancestor", "before", "exited", "health", "id", "is-task", "label", "name", "network", "since", "status",
];

/// Stands for Docker's "wait for ever" (`t=-1`).
const NO_TIMEOUT: Duration = Duration::from_secs(u32::MAX as u64);

pub(super) fn routes() -> Router<Engine> {
    Router::new()
        .route("/containers/json", get(list))
        .route("/containers/{id}/json", get(inspect))
        .route("/containers/{id}/top", get(top))
        .route("/containers/{id}/logs", get(container_logs))
        .route("/containers/{id}/wait", post(wait))
        .route("/containers/{id}/kill", post(kill))
        .route("/containers/{id}/stop", post(stop))
        .route("/containers/{id}/pause", absent(MethodFilter::POST, "pausing containers is"))
        .route("/containers/{id}/unpause", absent(MethodFilter::POST, "pausing containers is"))
        .route("/containers/{id}/update", absent(MethodFilter::POST, "changing running containers is"))
        .route("/containers/{id}/stats", absent(MethodFilter::GET, "statistics of containers are"))
        .route("/containers/{id}/changes", absent(MethodFilter::GET, "differences to the image are"))
        .route("/containers/{id}/export", absent(MethodFilter::GET, "exporting containers is"))
        .route("/containers/{id}/archive", absent(COPY, "copying from and to containers is"))
}

/// The methods of `docker cp`; a HEAD comes with the GET.
const COPY: MethodFilter = MethodFilter::GET.or(MethodFilter::PUT);

/// What cannot be done with any container is refused for those that exist.
fn absent(methods: MethodFilter, what: &'static str) -> MethodRouter<Engine> {
    on(methods, async move |State(node): State<NodeSide>, Name(name): Name| -> Result<Response> {
        node.agent.find_container(&name).await?;
        Err(ApiError::unsupported(what))
    })
}

async fn list(State(node): State<NodeSide>, params: Params) -> Result<Response> {
    let filters = params.filters(FILTERS)?;
    let selection = Selection::read(&filters, &node).await?;
    let by_status = filters.values("status").next().is_some() || filters.values("exited").next().is_some();
    let all = params.flag("all") || by_status;
    // Docker reads a negative limit as none.
    let limit =
        params.number::<i64>("limit")?.and_then(|limit| usize::try_from(limit).ok()).filter(|&n| n > 0);
    let mut views = node.agent.containers().await?;
    views.sort_by_key(|view| std::cmp::Reverse(view.container.created));
    let now = Timestamp::now();
    let listed: Vec<_> = views
        .iter()
        .filter(|view| {
            all || limit.is_some() || matches!(view.container.state, ContainerState::Running { .. })
        })
        .filter(|view| selection.wants(view))
        .take(limit.unwrap_or(usize::MAX))
        .map(|view| convert::summary(view, now, &node.id))
        .collect();
    Ok(body::ok(&listed))
}

/// The filters, with names of containers and images resolved.
struct Selection {
    filters: Filters,
    before: Option<Timestamp>,
    since: Option<Timestamp>,
    is_task: Option<bool>,
    /// Ids of the images that were named.
    images: Vec<String>,
}

impl Selection {
    async fn read(filters: &Filters, node: &NodeSide) -> Result<Self> {
        let mut times = [None, None];
        for (key, time) in ["before", "since"].into_iter().zip(&mut times) {
            if let Some(name) = filters.values(key).next() {
                *time = Some(node.agent.find_container(name).await?.container.created);
            }
        }
        for status in filters.values("status") {
            if !["created", "restarting", "running", "removing", "paused", "exited", "dead"].contains(&status)
            {
                return Err(ApiError::bad_request(format!("Invalid filter 'status=[{status}]'")));
            }
        }
        let mut images = Vec::new();
        for name in filters.values("ancestor") {
            // An image that is not there has no containers.
            images.push(node.agent.runtime().image(name).await.map(|image| image.id).unwrap_or_default());
        }
        let [before, since] = times;
        Ok(Self { is_task: filters.flag("is-task")?, filters: filters.clone(), before, since, images })
    }

    fn wants(&self, view: &ContainerView) -> bool {
        let (filters, container) = (&self.filters, &view.container);
        let networks = view.networks.iter();
        let networks =
            networks.flat_map(|network| [network.name.as_str(), network.attachment.network.as_str()]);
        filters.prefix("id", container.config.id.as_str())
            && self.wants_name(view.name())
            && filters.labels("label", &container.config.labels)
            && filters.exact("status", convert::state_word(view))
            && filters.exact("health", convert::health_word(view))
            && filters.any_of("network", networks)
            && self.wants_exit_code(view)
            && self.is_task.is_none_or(|wanted| wanted == view.task.is_some())
            && (self.images.is_empty() || self.images.contains(&container.image_id))
            && self.before.is_none_or(|before| container.created < before)
            && self.since.is_none_or(|since| container.created > since)
    }

    /// Docker matches a regular expression; `^` and `$` are what people use of it.
    fn wants_name(&self, name: &str) -> bool {
        let mut wanted = self.filters.values("name").peekable();
        wanted.peek().is_none()
            || wanted.any(|pattern| {
                let pattern = pattern.strip_prefix('/').unwrap_or(pattern);
                let (start, rest) = match pattern.strip_prefix('^') {
                    Some(rest) => (true, rest.strip_prefix('/').unwrap_or(rest)),
                    None => (false, pattern),
                };
                match (start, rest.strip_suffix('$')) {
                    (true, Some(rest)) => name == rest,
                    (true, None) => name.starts_with(rest),
                    (false, Some(rest)) => name.ends_with(rest),
                    (false, None) => name.contains(rest),
                }
            })
    }

    fn wants_exit_code(&self, view: &ContainerView) -> bool {
        let mut wanted = self.filters.values("exited").peekable();
        wanted.peek().is_none()
            || match view.container.state {
                ContainerState::Exited { exit, .. } => wanted.any(|code| code.parse() == Ok(exit.code)),
                _ => false,
            }
    }
}

async fn inspect(State(node): State<NodeSide>, Name(name): Name) -> Result<Response> {
    let view = node.agent.find_container(&name).await?;
    let execs = node.execs.of(&view.container.config.id);
    Ok(body::ok(&convert::container(&view, execs, &node.id)))
}

/// Runs `ps`, as Docker does, and keeps the lines of the container's processes.
async fn top(State(node): State<NodeSide>, Name(name): Name, params: Params) -> Result<Response> {
    let view = node.agent.find_container(&name).await?;
    let id = &view.container.config.id;
    if !matches!(view.container.state, ContainerState::Running { .. }) {
        return Err(ApiError::conflict(format!("Container {id} is not running")));
    }
    let pids = node.agent.runtime().processes(id).await?;
    let arguments: Vec<&str> = params.given("ps_args").unwrap_or("-ef").split_whitespace().collect();
    let output = tokio::process::Command::new("ps")
        .args(&arguments)
        .output()
        .await
        .map_err(|error| ApiError::internal(format!("Error running ps: {error}")))?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr);
        return Err(ApiError::bad_request(format!("Error running ps: {}", reason.trim())));
    }
    let table = parse_ps(&String::from_utf8_lossy(&output.stdout), &pids);
    table
        .map(|top| body::ok(&top))
        .ok_or_else(|| ApiError::bad_request("Couldn't find PID field in ps output"))
}

/// The lines of `ps` that belong to `pids`; `None` when there is no PID column to tell by.
fn parse_ps(output: &str, pids: &[u32]) -> Option<wire::Top> {
    let mut lines = output.lines();
    let titles: Vec<String> = lines.next()?.split_whitespace().map(str::to_owned).collect();
    let pid = titles.iter().position(|title| title == "PID")?;
    let last = titles.len() - 1;
    let processes = lines.filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let id: u32 = words.get(pid)?.parse().ok()?;
        if words.len() < titles.len() || !pids.contains(&id) {
            return None;
        }
        // The last column, the command, has spaces of its own.
        let mut fields: Vec<String> = words[..last].iter().map(|&word| word.to_owned()).collect();
        fields.push(words[last..].join(" "));
        Some(fields)
    });
    Some(wire::Top { processes: processes.collect(), titles })
}

async fn container_logs(State(node): State<NodeSide>, Name(name): Name, params: Params) -> Result<Response> {
    let view = node.agent.find_container(&name).await?;
    let (selector, format) = logs::selection(&params, view.container.config.spec.tty)?;
    let details = Labels::new();
    let lines = node.agent.runtime().logs(&view.container.config.id, selector);
    let lines = lines.map(move |line| line.map(|entry| format.entry(&entry, &details)));
    Ok(Response::new(Body::from_stream(lines)))
}

/// The head goes out at once, the body when the container has ended: clients wait before they start.
async fn wait(State(node): State<NodeSide>, Name(name): Name, params: Params) -> Result<Response> {
    let condition = match params.get("condition") {
        None | Some("" | "not-running") => WaitFor::NotRunning,
        Some("next-exit") => WaitFor::NextExit,
        Some("removed") => WaitFor::Removed,
        Some(other) => return Err(ApiError::bad_request(format!("invalid condition: {other:?}"))),
    };
    let id = node.agent.find_container(&name).await?.container.config.id;
    let over = node.agent.wait_container(&id, condition);
    let ended = async move {
        let answer = match over.await {
            Ok(code) => wire::Waited { error: None, status: code },
            Err(error) => {
                wire::Waited { error: Some(wire::WaitError { message: error.to_string() }), status: -1 }
            }
        };
        let mut text = serde_json::to_vec(&answer)?;
        text.push(b'\n');
        Ok::<_, serde_json::Error>(text)
    };
    let mut response = Response::new(Body::from_stream(ended.into_stream()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

async fn kill(State(node): State<NodeSide>, Name(name): Name, params: Params) -> Result<Response> {
    let signal = params.given("signal").map_or(Ok(Signal::SIGKILL as i32), signal)?;
    let view = node.agent.find_container(&name).await?;
    let id = view.container.config.id;
    if !matches!(view.container.state, ContainerState::Running { .. }) {
        return Err(ApiError::conflict(format!(
            "Cannot kill container: {name}: Container {id} is not running"
        )));
    }
    node.agent.kill_container(&id, signal).await?;
    Ok(body::empty(StatusCode::NO_CONTENT))
}

/// `SIGHUP`, `HUP` or `1`, in any case.
fn signal(text: &str) -> Result<i32> {
    let unknown = || ApiError::bad_request(format!("Invalid signal: {text}"));
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=64).contains(&number) { Ok(number) } else { Err(unknown()) };
    }
    let name = text.to_ascii_uppercase();
    let name = if name.starts_with("SIG") { name } else { format!("SIG{name}") };
    Signal::from_str(&name).map(|signal| signal as i32).map_err(|_| unknown())
}

async fn stop(State(node): State<NodeSide>, Name(name): Name, params: Params) -> Result<Response> {
    let timeout = stop_timeout(&params)?;
    let view = node.agent.find_container(&name).await?;
    let restarting = view.plain.as_ref().is_some_and(|plain| plain.restarting);
    if !restarting && !matches!(view.container.state, ContainerState::Running { .. }) {
        return Ok(body::empty(StatusCode::NOT_MODIFIED));
    }
    node.agent.stop_container(&view.container.config.id, timeout).await?;
    Ok(body::empty(StatusCode::NO_CONTENT))
}

/// How long a stop or a restart waits before it kills.
pub(super) fn stop_timeout(params: &Params) -> Result<Option<Duration>> {
    if params.given("signal").is_some() {
        return Err(ApiError::unsupported("a signal of one's own for docker stop is"));
    }
    let timeout = params.number::<i64>("t")?.map(|seconds| {
        // Docker reads a negative time as "wait for ever".
        u64::try_from(seconds).map_or(NO_TIMEOUT, Duration::from_secs)
    });
    Ok(timeout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_many_names() {
        for text in ["HUP", "SIGHUP", "sighup", "1"] {
            assert_eq!(signal(text), Ok(1), "{text}");
        }
        assert_eq!(signal("64"), Ok(64));
        for text in ["0", "65", "-1", "NOPE", ""] {
            assert!(signal(text).is_err(), "{text}");
        }
    }

    #[test]
    fn ps_is_read_by_its_titles() {
        let output = "UID        PID  PPID  C STIME TTY          TIME CMD\n\
                      root         1     0  0 08:00 ?        00:00:01 /sbin/init splash\n\
                      root      8225  8204  0 08:31 ?        00:00:00 ping localhost\n\
                      rubbish\n";
        let top = parse_ps(output, &[8225]).unwrap();
        assert_eq!(top.titles, ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]);
        assert_eq!(
            top.processes,
            [["root", "8225", "8204", "0", "08:31", "?", "00:00:00", "ping localhost"]]
        );
        assert!(parse_ps("A B\n1 2\n", &[1]).is_none());
        assert!(parse_ps("", &[1]).is_none());
    }
}
