//! `docker pull`: the answer is a stream of what happens, one JSON object a line.

use std::collections::BTreeMap;
use std::convert::Infallible;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream;
use shoal_runtime::registry::Credentials;
use shoal_runtime::{Error, LayerStep, PullEvent, Pulled};
use tokio::sync::mpsc;

use crate::engine::NodeSide;
use crate::error::{ApiError, Result};
use crate::query::Params;
use crate::wire::image as wire;

/// Progress that nobody has read yet; what does not fit is left out.
const EVENTS: usize = 256;
/// A layer's progress is told again after this many more bytes.
const STRIDE: u64 = 512 << 10;

/// The name as one, which clients send in two parts; a digest comes in place of a tag.
pub(super) fn name(image: &str, tag: Option<&str>) -> String {
    match tag {
        None | Some("") => image.to_owned(),
        Some(digest) if digest.contains(':') => format!("{image}@{digest}"),
        Some(tag) => format!("{image}:{tag}"),
    }
}

type Work = BoxFuture<'static, Result<Pulled, Error>>;

/// Fails as a request as long as the registry has not said that it knows the image. The client that goes
/// away takes the pull with it.
pub(super) async fn pull(
    node: NodeSide,
    name: String,
    credentials: Credentials,
    params: &Params,
) -> Result<Response> {
    let platform = params.get("platform").unwrap_or_default().to_owned();
    let (sender, mut events) = mpsc::channel(EVENTS);
    let runtime = node.agent.runtime().clone();
    let asked = name.clone();
    let mut work: Work =
        Box::pin(async move { runtime.pull(&asked, &credentials, &platform, Some(sender)).await });
    let done = tokio::select! {
        biased;
        _ = events.recv() => None,
        done = &mut work => Some(done?),
    };
    let telling = Telling { name, told: BTreeMap::new() };
    let first = telling.first();
    let state = match done {
        None => State::Running { work, events, telling },
        Some(pulled) => State::Ended(telling.last(&Ok(pulled))),
    };
    let lines = stream::unfold(state, next).map(Ok::<_, Infallible>);
    let all = stream::iter([Ok(first)]).chain(lines);
    Ok(super::stream_of(Body::from_stream(all)))
}

enum State {
    Running { work: Work, events: mpsc::Receiver<PullEvent>, telling: Telling },
    Ended(Bytes),
    Over,
}

async fn next(state: State) -> Option<(Bytes, State)> {
    match state {
        State::Running { mut work, mut events, mut telling } => loop {
            tokio::select! {
                biased;
                Some(event) = events.recv() => {
                    if let Some(line) = telling.event(event) {
                        return Some((line, State::Running { work, events, telling }));
                    }
                }
                done = &mut work => {
                    // Nothing more will be told, but some of it may not have been read yet.
                    let mut rest = Vec::new();
                    while let Ok(event) = events.try_recv() {
                        rest.extend(telling.event(event));
                    }
                    return Some((rest.concat().into(), State::Ended(telling.last(&done))));
                }
            }
        },
        State::Ended(last) => Some((last, State::Over)),
        State::Over => None,
    }
}

/// What the client has been told.
struct Telling {
    name: String,
    /// Bytes of each layer.
    told: BTreeMap<String, u64>,
}

impl Telling {
    fn first(&self) -> Bytes {
        let (repository, tag) = self.parts();
        line(wire::Progress {
            status: Some(format!("Pulling from {repository}")),
            id: Some(tag),
            ..wire::Progress::default()
        })
    }

    /// Repository and tag (or digest), as Docker writes them here: without a registry's name.
    fn parts(&self) -> (String, String) {
        let (rest, digest) = match self.name.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (self.name.as_str(), None),
        };
        let (repository, tag) = match rest.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') => (repository, tag),
            _ => (rest, "latest"),
        };
        let path = match repository.split_once('/') {
            Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => path,
            _ => repository,
        };
        (path.to_owned(), digest.unwrap_or(tag).to_owned())
    }

    fn event(&mut self, event: PullEvent) -> Option<Bytes> {
        let PullEvent::Layer { id, step } = event else { return None };
        let id: String = id.chars().take(12).collect();
        let (status, detail) = match step {
            LayerStep::Waiting => ("Pulling fs layer", None),
            LayerStep::Exists => ("Already exists", None),
            LayerStep::Transferred => ("Download complete", None),
            LayerStep::Unpacked => ("Pull complete", None),
            LayerStep::Transferring { current, total } => {
                let told = self.told.entry(id.clone()).or_default();
                if current < *told + STRIDE {
                    return None;
                }
                *told = current;
                ("Downloading", Some(wire::ProgressDetail { current: Some(current), total: Some(total) }))
            }
        };
        Some(line(wire::Progress {
            status: Some(status.to_owned()),
            progress_detail: Some(detail.unwrap_or_default()),
            id: Some(id),
            ..wire::Progress::default()
        }))
    }

    fn last(&self, done: &Result<Pulled, Error>) -> Bytes {
        let status = |text: String| line(wire::Progress { status: Some(text), ..wire::Progress::default() });
        match done {
            Ok(pulled) => {
                let what = if pulled.up_to_date { "Image is up to date" } else { "Downloaded newer image" };
                let digest = status(format!("Digest: {}", pulled.digest));
                let name = if self.name.contains('@') { self.name.clone() } else { self.tagged() };
                [digest, status(format!("Status: {what} for {name}"))].concat().into()
            }
            Err(error) => {
                let message = error.to_string();
                line(wire::Progress {
                    error_detail: Some(serde_json::json!({ "message": message })),
                    error: Some(message),
                    ..wire::Progress::default()
                })
            }
        }
    }

    /// As users write it.
    fn tagged(&self) -> String {
        let familiar = self.name.strip_prefix("docker.io/").unwrap_or(&self.name);
        let familiar = familiar.strip_prefix("library/").unwrap_or(familiar);
        let (_, tag) = self.parts();
        let suffix = format!(":{tag}");
        if familiar.ends_with(&suffix) { familiar.to_owned() } else { format!("{familiar}{suffix}") }
    }
}

fn line(progress: wire::Progress) -> Bytes {
    super::line(&progress).into()
}

/// `POST /auth` fails with this when a registry does not take the credentials.
pub(in crate::routes) fn refused(error: Error) -> ApiError {
    match error {
        Error::NoSuchManifest(reason) | Error::Registry(reason) => ApiError::unauthorized(reason),
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn telling(name: &str) -> Telling {
        Telling { name: name.to_owned(), told: BTreeMap::new() }
    }

    #[test]
    fn names_come_in_two_parts() {
        assert_eq!(name("a/b", Some("1")), "a/b:1");
        assert_eq!(name("a/b", Some("sha256:00")), "a/b@sha256:00");
        assert_eq!(name("a/b:1", None), "a/b:1");
        assert_eq!(name("a/b", Some("")), "a/b");
    }

    #[test]
    fn what_is_told_is_what_docker_tells() {
        let text = |bytes: Bytes| String::from_utf8(bytes.to_vec()).unwrap();
        let mut busybox = telling("docker.io/library/busybox:latest");
        assert_eq!(
            text(busybox.first()),
            "{\"status\":\"Pulling from library/busybox\",\"id\":\"latest\"}\r\n"
        );
        let layer = |step| PullEvent::Layer { id: "0123456789abcdef".to_owned(), step };
        assert_eq!(
            text(busybox.event(layer(LayerStep::Waiting)).unwrap()),
            "{\"status\":\"Pulling fs layer\",\"progressDetail\":{},\"id\":\"0123456789ab\"}\r\n"
        );
        let (current, total) = (STRIDE, 2 * STRIDE);
        let progress = text(busybox.event(layer(LayerStep::Transferring { current, total })).unwrap());
        assert!(progress.contains("\"progressDetail\":{\"current\":524288,\"total\":1048576}"), "{progress}");
        assert!(busybox.event(layer(LayerStep::Transferring { current: current + 1, total })).is_none());
        let pulled = Pulled { id: String::new(), digest: "sha256:00".to_owned(), up_to_date: false };
        assert_eq!(
            text(busybox.last(&Ok(pulled))),
            "{\"status\":\"Digest: sha256:00\"}\r\n\
             {\"status\":\"Status: Downloaded newer image for busybox:latest\"}\r\n"
        );
        let failed = text(busybox.last(&Err(Error::Registry("broken".to_owned()))));
        assert_eq!(failed, "{\"errorDetail\":{\"message\":\"broken\"},\"error\":\"broken\"}\r\n");
        assert_eq!(telling("localhost:5000/a/b").parts(), ("a/b".to_owned(), "latest".to_owned()));
        assert_eq!(telling("localhost:5000/a/b").tagged(), "localhost:5000/a/b:latest");
        assert_eq!(telling("a@sha256:00").parts(), ("a".to_owned(), "sha256:00".to_owned()));
    }
}
