//! `/images`.

use std::pin::Pin;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use axum::routing::{get, post};
use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use shoal_runtime::registry::Credentials;
use shoal_runtime::{Error, Image, ImportOptions};
use tokio_util::io::StreamReader;

use crate::body;
use crate::convert::image as convert;
use crate::engine::{Engine, NodeSide};
use crate::error::{ApiError, Result};
use crate::filters::Filters;
use crate::query::{Name, Params};
use crate::wire::image as wire;

pub(super) mod pull;

const FILTERS: &[&str] = &["before", "dangling", "label", "reference", "since"];

/// How long the rest of an archive that could not be used is taken in.
const UPLOAD_REST_MAX: Duration = Duration::from_secs(60);

pub(super) fn routes() -> Router<Engine> {
    Router::new()
        .route("/images/json", get(list))
        .route("/images/load", post(load))
        .route("/images/create", post(create))
        .route("/images/get", get(save_all))
        .route("/images/search", get(async || ApiError::unsupported("searching registries is")))
        .route("/images/prune", post(prune))
        // Image names have slashes: what is asked of the image is the end of the path.
        .route("/images/{*name}", get(read).post(change).delete(remove))
}

async fn list(State(node): State<NodeSide>, params: Params) -> Result<Response> {
    let filters = params.filters(FILTERS)?;
    let dangling = filters.flag("dangling")?;
    let images = node.agent.runtime().images().await?;
    let mut times = [None, None];
    for (key, time) in ["before", "since"].into_iter().zip(&mut times) {
        if let Some(name) = filters.values(key).next() {
            *time = node.agent.runtime().image(name).await?.created;
        }
    }
    let [before, since] = times;
    let mut images: Vec<_> = images
        .into_iter()
        .filter(|image| filters.labels("label", convert::labels(image)))
        .filter(|image| dangling.is_none_or(|wanted| wanted == image.references.is_empty()))
        .filter(|image| before.is_none_or(|before| image.created.is_some_and(|at| at < before)))
        .filter(|image| since.is_none_or(|since| image.created.is_some_and(|at| at > since)))
        .filter_map(|image| by_reference(image, &filters))
        .collect();
    images.sort_by_key(|image| std::cmp::Reverse(image.created));
    Ok(body::ok(&images.iter().map(convert::summary).collect::<Vec<_>>()))
}

/// `reference=busybox`, `busybox:1.*`, `*/*:latest`: the image with only those of its names that match.
fn by_reference(mut image: Image, filters: &Filters) -> Option<Image> {
    if filters.values("reference").next().is_none() {
        return Some(image);
    }
    let matches = |name: &String| {
        let repository = name.rsplit_once(':').map_or(name.as_str(), |(repository, _)| repository);
        filters.values("reference").any(|pattern| glob(pattern, name) || glob(pattern, repository))
    };
    image.references.retain(matches);
    image.digests.retain(|name| {
        let repository = name.split_once('@').map_or(name.as_str(), |(repository, _)| repository);
        filters.values("reference").any(|pattern| glob(pattern, name) || glob(pattern, repository))
    });
    (!image.references.is_empty() || !image.digests.is_empty()).then_some(image)
}

/// `*` stands for any characters but a slash, `?` for one.
fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    // Where the last star stands, and how far it reaches: there is never a need to go back further.
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some('?') if text[t] != '/' => (p, t) = (p + 1, t + 1),
            Some(&c) if c == text[t] => (p, t) = (p + 1, t + 1),
            _ => match star {
                Some((at, reach)) if text[reach] != '/' => {
                    star = Some((at, reach + 1));
                    (p, t) = (at + 1, reach + 1);
                }
                _ => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == '*')
}

type Upload = StreamReader<Pin<Box<dyn Stream<Item = std::io::Result<Bytes>> + Send>>, Bytes>;

fn reader(request: Request<Body>) -> Upload {
    let stream = request.into_body().into_data_stream().map_err(std::io::Error::other);
    StreamReader::new(Box::pin(stream))
}

/// After a failure, takes in what the client still sends: until it has, it would not read the answer.
async fn rest(mut upload: Upload) {
    let mut nowhere = tokio::io::sink();
    let reading = tokio::io::copy(&mut upload, &mut nowhere);
    let _ = tokio::time::timeout(UPLOAD_REST_MAX, reading).await;
}

async fn load(State(node): State<NodeSide>, request: Request<Body>) -> Result<Response> {
    let mut upload = reader(request);
    let loaded = match node.agent.runtime().load(&mut upload).await {
        Ok(loaded) => loaded,
        Err(error) => {
            rest(upload).await;
            return Err(error.into());
        }
    };
    let lines = loaded.iter().map(|name| {
        let what = if name.starts_with("sha256:") { "Loaded image ID" } else { "Loaded image" };
        wire::Progress { stream: Some(format!("{what}: {name}\n")), ..wire::Progress::default() }
    });
    Ok(progress(lines))
}

/// `docker import`; `docker pull` is the same path with other parameters.
async fn create(State(node): State<NodeSide>, params: Params, request: Request<Body>) -> Result<Response> {
    if let Some(name) = params.given("fromImage") {
        let credentials = credentials(request.headers())?;
        return pull::pull(node, pull::name(name, params.get("tag")), credentials, &params).await;
    }
    match params.get("fromSrc") {
        Some("-") => {}
        _ => return Err(ApiError::unsupported("importing an image from a URL is")),
    }
    let reference = params.given("repo").map(|repository| match params.given("tag") {
        Some(tag) => format!("{repository}:{tag}"),
        None => repository.to_owned(),
    });
    let options = ImportOptions {
        reference,
        message: params.get("message").unwrap_or_default().to_owned(),
        changes: params.all("changes").map(str::to_owned).collect(),
    };
    let mut upload = reader(request);
    let id = match node.agent.runtime().import(&mut upload, options).await {
        Ok(id) => id,
        Err(error) => {
            rest(upload).await;
            return Err(error.into());
        }
    };
    Ok(progress(std::iter::once(wire::Progress { status: Some(id), ..wire::Progress::default() })))
}

/// Who asks a registry: Docker's `X-Registry-Auth`.
pub(super) fn credentials(headers: &HeaderMap) -> Result<Credentials> {
    let header = headers.get("X-Registry-Auth").map(HeaderValue::to_str).transpose();
    let header = header.map_err(|_| ApiError::bad_request("invalid X-Registry-Auth header"))?;
    Ok(Credentials::parse(header.unwrap_or_default())?)
}

/// A progress stream: JSON objects, each on a line that ends as Docker's do.
fn progress(lines: impl Iterator<Item = wire::Progress>) -> Response {
    stream_of(Body::from(lines.map(|progress| line(&progress)).collect::<String>()))
}

fn line(progress: &wire::Progress) -> String {
    serde_json::to_string(progress).unwrap_or_default() + "\r\n"
}

fn stream_of(body: Body) -> Response {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

async fn read(State(node): State<NodeSide>, Name(path): Name) -> Result<Response> {
    if let Some(name) = path.strip_suffix("/json") {
        let image = node.agent.runtime().image(name).await.map_err(|error| match error {
            Error::NoSuchImage(_) => ApiError::not_found(format!("no such image: {name}: {error}")),
            other => other.into(),
        })?;
        return Ok(body::ok(&convert::image(&image)));
    }
    if let Some(name) = path.strip_suffix("/history") {
        let image = node.agent.runtime().image(name).await?;
        return Ok(body::ok(&convert::history(&image)));
    }
    if let Some(name) = path.strip_suffix("/get") {
        return save(&node, &[name.to_owned()]).await;
    }
    Err(ApiError::not_found("page not found"))
}

/// `docker save` of several.
async fn save_all(State(node): State<NodeSide>, params: Params) -> Result<Response> {
    let names: Vec<String> = params.all("names").map(str::to_owned).collect();
    save(&node, &names).await
}

async fn save(node: &NodeSide, names: &[String]) -> Result<Response> {
    let pieces = node.agent.runtime().save(names).await?;
    let mut response = Response::new(Body::from_stream(pieces));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-tar"));
    Ok(response)
}

async fn change(State(node): State<NodeSide>, Name(path): Name, params: Params) -> Result<Response> {
    if let Some(name) = path.strip_suffix("/tag") {
        let repository = params
            .given("repo")
            .ok_or_else(|| ApiError::bad_request("invalid reference format: repository name is missing"))?;
        let tag = params.given("tag").unwrap_or("latest");
        node.agent.runtime().tag(name, &format!("{repository}:{tag}")).await?;
        return Ok(body::empty(StatusCode::CREATED));
    }
    if path.ends_with("/push") {
        return Err(ApiError::unsupported("pushing images is"));
    }
    Err(ApiError::not_found("page not found"))
}

async fn remove(State(node): State<NodeSide>, Name(name): Name, params: Params) -> Result<Response> {
    let deletions = node.agent.runtime().remove_image(&name, params.flag("force")).await?;
    Ok(body::ok(&deletions.into_iter().map(convert::deletion).collect::<Vec<_>>()))
}

/// Removes images without a name; with `dangling=false` all that no container uses.
async fn prune(State(node): State<NodeSide>, params: Params) -> Result<Response> {
    let filters = params.filters(&["dangling", "label"])?;
    let nameless_only = filters.flag("dangling")?.unwrap_or(true);
    let used: Vec<String> =
        node.agent.containers().await?.into_iter().map(|view| view.container.image_id).collect();
    let (mut deletions, mut reclaimed) = (Vec::new(), 0);
    for image in node.agent.runtime().images().await? {
        let nameless = image.references.is_empty() && image.digests.is_empty();
        let wanted = (!nameless_only || nameless) && !used.contains(&image.id);
        if !wanted || !filters.labels("label", convert::labels(&image)) {
            continue;
        }
        match node.agent.runtime().remove_image(&image.id, true).await {
            Ok(removed) => {
                deletions.extend(removed.into_iter().map(convert::deletion));
                reclaimed += image.size;
            }
            // Another prune, or a task that started meanwhile, was faster.
            Err(Error::NoSuchImage(_) | Error::ImageInUse(_)) => {}
            Err(other) => return Err(other.into()),
        }
    }
    let deleted = Some(deletions).filter(|list| !list.is_empty());
    Ok(body::ok(&wire::Pruned { images_deleted: deleted, space_reclaimed: reclaimed }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_as_gos_path_match() {
        for (pattern, text, expect) in [
            ("busybox", "busybox", true),
            ("busy*", "busybox", true),
            ("b*x:1.*", "busybox:1.36", true),
            ("*", "foo/bar", false),
            ("*/*", "foo/bar", true),
            ("b?", "bx", true),
            ("b?", "b/", false),
            ("", "", true),
            ("**a", "bca", true),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxbyyd", false),
        ] {
            assert_eq!(glob(pattern, text), expect, "{pattern} {text}");
        }
    }
}
