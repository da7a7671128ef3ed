use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use axum::body::Body;
use axum::http::{Method, Request, Response};
use proptest::prelude::*;
use shoal_manager::{Code, ControlError, Manager};
use shoal_model::NodeId;

use super::*;
use crate::engine::{ClusterSide, InitRequest, JoinRequest, LocalState, Swarm};
use crate::server::{App, server_header};

/// A node that is in no cluster.
pub(super) struct Alone;

#[async_trait]
impl Swarm for Alone {
    fn manager(&self) -> Option<Manager> {
        None
    }

    fn local_state(&self) -> LocalState {
        LocalState::Inactive
    }

    async fn init(&self, request: InitRequest) -> Result<NodeId, ControlError> {
        Err(ControlError::new(Code::Unavailable, format!("cannot advertise {}", request.advertise)))
    }

    async fn join(&self, _: JoinRequest) -> Result<(), ControlError> {
        Err(ControlError::new(Code::Internal, "never asked"))
    }

    fn remote_managers(&self) -> Vec<(Option<NodeId>, String)> {
        Vec::new()
    }

    async fn leave(&self, _: bool) -> Result<(), ControlError> {
        Err(ControlError::new(Code::Internal, "never asked"))
    }
}

fn app() -> App {
    let side = ClusterSide::new(Arc::new(Alone), PathBuf::from("/nonexistent"), "1.2.3".to_owned());
    App { router: crate::routes::cluster::<ClusterSide>().with_state(side), server: server_header("1.2.3") }
}

async fn ask(method: Method, path: &str, kind: Option<&str>, body: impl Into<Body>) -> Response<Body> {
    let mut request = Request::builder().method(method).uri(path);
    if let Some(kind) = kind {
        request = request.header("Content-Type", kind);
    }
    app().answer(request.body(body.into()).unwrap()).await
}

async fn text(response: Response<Body>) -> String {
    let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    String::from_utf8(bytes.to_vec()).unwrap()
}

async fn check(method: Method, path: &str, body: &str, status: u16, message: &str) {
    let kind = (!body.is_empty()).then_some("application/json");
    let response = ask(method.clone(), path, kind, body.to_owned()).await;
    assert_eq!(response.status().as_u16(), status, "{method} {path}");
    assert_eq!(response.headers()["Content-Type"], "application/json");
    let expect = json_message(message);
    assert_eq!(text(response).await, expect, "{method} {path}");
}

fn json_message(message: &str) -> String {
    format!("{{\"message\":{}}}\n", serde_json::to_string(message).unwrap())
}

const NOT_A_MANAGER: &str = "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" \
                             to connect this node to swarm and try again.";

/// Paths that overlap are found when the router is put together, which needs no node.
#[test]
fn every_path_has_one_place() {
    let _ = crate::routes::all();
}

#[tokio::test]
async fn a_ping_says_what_is_served() {
    for method in [Method::GET, Method::HEAD] {
        let response = ask(method.clone(), "/_ping", None, "").await;
        assert_eq!(response.status(), 200);
        let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(header("Api-Version"), "1.41");
        assert_eq!(header("Ostype"), "linux");
        assert_eq!(header("Docker-Experimental"), "false");
        assert_eq!(header("Server"), "Docker/1.2.3 (linux)");
        assert_eq!(header("Cache-Control"), "no-cache, no-store, must-revalidate");
        assert_eq!(header("Pragma"), "no-cache");
        assert_eq!(header("Content-Type"), "text/plain; charset=utf-8");
        assert_eq!(text(response).await, if method == Method::GET { "OK" } else { "" });
    }
}

#[tokio::test]
async fn paths_that_are_not_there_are_docker_s_404() {
    for (method, path) in [
        (Method::GET, "/v1.41/nosuch"),
        (Method::GET, "/nosuch"),
        (Method::PATCH, "/v1.41/services"),
        (Method::GET, "/"),
        (Method::GET, "/v1.41/"),
    ] {
        check(method.clone(), path, "", 404, "page not found").await;
        let response = ask(method, path, None, "").await;
        assert!(response.headers().get("Api-Version").is_none());
    }
}

#[tokio::test]
async fn versions_out_of_range_are_refused() {
    let new = "client version 1.50 is too new. Maximum supported API version is 1.41";
    check(Method::GET, "/v1.50/services", "", 400, new).await;
    let old = "client version 1.11 is too old. Minimum supported API version is 1.12, please upgrade your client \
               to a newer version";
    check(Method::GET, "/v1.11/services", "", 400, old).await;
    check(Method::GET, "/v1.24/services", "", 503, NOT_A_MANAGER).await;
}

#[tokio::test]
async fn without_a_cluster_docker_s_refusals() {
    for path in
        ["/services", "/services?status=true", "/nodes", "/tasks", "/swarm", "/services/x", "/secrets"]
    {
        check(Method::GET, &format!("/v1.41{path}"), "", 503, NOT_A_MANAGER).await;
    }
    let service = golden!("vip-service.request.json");
    check(Method::POST, "/v1.41/services/create", service, 503, NOT_A_MANAGER).await;
    check(Method::POST, "/v1.41/networks/create", golden!("network.request.json"), 500, NOT_A_MANAGER).await;
    check(Method::POST, "/v1.41/swarm/leave", "", 503, "This node is not part of a swarm").await;
    check(Method::GET, "/v1.41/networks/nosuch", "", 404, "network nosuch not found").await;
    check(Method::GET, "/v1.41/networks/host?scope=swarm", "", 404, "network host not found").await;
}

#[tokio::test]
async fn bodies_are_json_and_say_so() {
    let check_kind = async |kind: Option<&str>, body: &str, message: &str| {
        let response = ask(Method::POST, "/v1.41/services/create", kind, body.to_owned()).await;
        assert_eq!(response.status(), 400);
        assert_eq!(text(response).await, json_message(message));
    };
    check_kind(Some("application/json"), "", "got EOF while reading request body").await;
    let bad = "invalid character 'b' looking for beginning of object key string";
    check_kind(Some("application/json"), "{bad", bad).await;
    let kind = "Content-Type specified (text/plain) must be 'application/json'";
    check_kind(Some("text/plain"), "{}", kind).await;
    check_kind(None, "{}", "Content-Type specified () must be 'application/json'").await;
}

#[tokio::test]
async fn a_body_without_end_is_refused() {
    let endless = vec![b' '; crate::body::JSON_BODY_MAX + 1];
    let response = ask(Method::POST, "/networks/create", Some("application/json"), endless).await;
    assert_eq!(response.status(), 413);
    assert!(value(&text(response).await)["message"].is_string());
}

#[tokio::test]
async fn a_bad_filter_is_named() {
    let path = "/v1.41/networks?filters=%7B%22foo%22%3A%5B%22x%22%5D%7D";
    check(Method::GET, path, "", 400, "Invalid filter 'foo'").await;
}

#[tokio::test]
async fn the_networks_every_engine_has() {
    let networks = value(&text(ask(Method::GET, "/v1.41/networks", None, "").await).await);
    let names: Vec<_> =
        networks.as_array().unwrap().iter().map(|network| network["Name"].as_str().unwrap()).collect();
    assert_eq!(names, ["bridge", "none", "host"]);
    let host = value(&text(ask(Method::GET, "/v1.41/networks/host", None, "").await).await);
    assert_eq!(host, networks[2]);
    let by_id = format!("/v1.41/networks/{}", &host["Id"].as_str().unwrap()[..12]);
    assert_eq!(value(&text(ask(Method::GET, &by_id, None, "").await).await), host);
    let path = "/networks?filters=%7B%22driver%22%3A%7B%22null%22%3Atrue%7D%7D";
    let filtered = value(&text(ask(Method::GET, path, None, "").await).await);
    assert_eq!(filtered[0]["Name"], "none");
    assert_eq!(filtered.as_array().unwrap().len(), 1);
    let gone = "bridge is a pre-defined network and cannot be removed";
    check(Method::DELETE, "/v1.41/networks/bridge", "", 403, gone).await;
    let taken = r#"{"Name":"host","Driver":"overlay"}"#;
    check(Method::POST, "/networks/create", taken, 409, "network with name host already exists").await;
}

#[tokio::test]
async fn what_is_absent_says_what_to_do() {
    for (path, hint) in [("/build", "docker load"), ("/plugins/pull", "plugins are not supported")] {
        let response = ask(Method::POST, path, None, "").await;
        assert_eq!(response.status(), 501, "{path}");
        assert!(text(response).await.contains(hint), "{path}");
    }
}

#[tokio::test]
async fn events_are_a_stream_that_until_ends() {
    let response = ask(Method::GET, "/v1.41/events?until=1", None, "").await;
    assert_eq!(response.headers()["Content-Type"], "application/json");
    assert_eq!(text(response).await, "");
}

#[tokio::test]
async fn a_handler_that_fails_does_not_take_the_daemon_along() {
    async fn broken() -> &'static str {
        panic!("broken on purpose")
    }
    let router = axum::Router::new().route("/broken", axum::routing::get(broken));
    let app = App { router, server: server_header("1.2.3") };
    let response = app.answer(Request::get("/broken").body(Body::empty()).unwrap()).await;
    assert_eq!(response.status(), 500);
    assert!(value(&text(response).await)["message"].is_string());
}

proptest! {
    #[test]
    fn whatever_is_sent_is_answered_with_a_message(
        path in prop::sample::select(vec![
            "/services/create", "/services/x/update?version=1", "/networks/create", "/networks/x/connect",
            "/swarm/init", "/swarm/update?version=1", "/nodes/x/update?version=1", "/secrets/create",
        ]),
        body in prop_oneof!["\\PC{0,40}", "[\\[{\"a:1,}\\]]{0,20}"],
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let response = ask(Method::POST, path, Some("application/json"), body).await;
            prop_assert!(response.status().is_client_error() || response.status().is_server_error());
            let answer = value(&text(response).await);
            prop_assert!(answer["message"].as_str().is_some_and(|message| !message.is_empty()));
            Ok(())
        })?;
    }

    #[test]
    fn whatever_path_is_asked_is_answered(path in "/[a-z0-9/._%?=&{}-]{0,30}") {
        let Ok(uri) = path.parse::<axum::http::Uri>() else { return Ok(()) };
        // An event stream has no end.
        prop_assume!(!path.contains("events"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let response = app().answer(Request::get(uri).body(Body::empty()).unwrap()).await;
            if !response.status().is_success() {
                let answer = text(response).await;
                prop_assert!(value(&answer)["message"].is_string(), "{answer}");
            }
            Ok(())
        })?;
    }
}
