//! Bodies in and out: JSON as Docker reads and writes it.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use futures::StreamExt;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{ApiError, Result};

/// The largest JSON body accepted, in bytes. A service with a thousand labels is some 100 KB.
pub(crate) const JSON_BODY_MAX: usize = 4 * 1024 * 1024;
/// How long a JSON body may take to arrive.
const BODY_TIME_MAX: Duration = Duration::from_secs(30);

/// A JSON answer with the line feed Docker ends it with.
pub(crate) fn json<T: Serialize + ?Sized>(status: StatusCode, value: &T) -> Response {
    let mut text = match serde_json::to_vec(value) {
        Ok(text) => text,
        // Only a map with keys that are no strings fails; no wire type has one.
        Err(error) => return plain(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    };
    text.push(b'\n');
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// `200 OK` with a JSON body.
pub(crate) fn ok<T: Serialize + ?Sized>(value: &T) -> Response {
    json(StatusCode::OK, value)
}

/// A status without a body.
pub(crate) fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

fn plain(status: StatusCode, text: String) -> Response {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response
}

/// A required JSON body.
pub(crate) struct Json<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self> {
        let bytes = read(request).await?;
        if bytes.is_empty() {
            return Err(ApiError::bad_request("got EOF while reading request body"));
        }
        Ok(Self(decode(&bytes)?))
    }
}

/// A JSON body that may be left out.
pub(crate) struct OptionalJson<T>(pub(crate) Option<T>);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for OptionalJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self> {
        let bytes = read(request).await?;
        Ok(Self(if bytes.is_empty() { None } else { Some(decode(&bytes)?) }))
    }
}

/// Reads a body to its end, for a while, and throws it away.
pub(crate) async fn discard(body: Body) {
    let mut pieces = body.into_data_stream();
    let reading = async { while pieces.next().await.is_some_and(|piece| piece.is_ok()) {} };
    if tokio::time::timeout(BODY_TIME_MAX, reading).await.is_err() {
        tracing::debug!("a body that nobody wants is too long");
    }
}

async fn read(request: Request) -> Result<Bytes> {
    let kind = request.headers().get(header::CONTENT_TYPE).cloned();
    let body = axum::body::to_bytes(request.into_body(), JSON_BODY_MAX);
    let body = tokio::time::timeout(BODY_TIME_MAX, body)
        .await
        .map_err(|_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "the request body did not arrive in time"))?;
    let bytes = body.map_err(|_| {
        ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("request body is incomplete or larger than {JSON_BODY_MAX} bytes"),
        )
    })?;
    if !bytes.is_empty() {
        check_type(kind.as_ref())?;
    }
    Ok(bytes)
}

fn check_type(kind: Option<&HeaderValue>) -> Result<()> {
    let text = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let media = text.split(';').next().unwrap_or_default().trim();
    if media.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(ApiError::bad_request(format!("Content-Type specified ({text}) must be 'application/json'")))
}

/// Parses JSON; what is wrong with it is said in the words of Go's decoder where those are known.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| ApiError::bad_request(complaint(bytes, &error)))
}

fn complaint(bytes: &[u8], error: &serde_json::Error) -> String {
    use serde_json::error::Category;
    let text = error.to_string();
    match error.classify() {
        Category::Eof => "unexpected EOF".to_owned(),
        Category::Syntax => {
            let Some(character) = at(bytes, error.line(), error.column()) else { return text };
            let place = if text.starts_with("key must be a string") {
                "looking for beginning of object key string"
            } else if text.starts_with("expected `:`") {
                "after object key"
            } else if text.starts_with("expected `,` or `}`") {
                "after object key:value pair"
            } else if text.starts_with("expected `,` or `]`") {
                "after array element"
            } else if text.starts_with("trailing characters") {
                "after top-level value"
            } else {
                "looking for beginning of value"
            };
            format!("invalid character '{character}' {place}")
        }
        Category::Data | Category::Io => format!("invalid JSON: {text}"),
    }
}

/// The character serde's position (one-based) points at.
fn at(bytes: &[u8], line: usize, column: usize) -> Option<char> {
    let line = bytes.split(|&byte| byte == b'\n').nth(line.checked_sub(1)?)?;
    line.get(column.checked_sub(1)?).map(|&byte| char::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(body: &str, expect: &str) {
        let error = decode::<std::collections::BTreeMap<String, u64>>(body.as_bytes()).unwrap_err();
        assert_eq!((error.status, error.message.as_str()), (StatusCode::BAD_REQUEST, expect), "{body}");
    }

    #[test]
    fn bad_json_is_explained_in_gos_words() {
        check("{bad", "invalid character 'b' looking for beginning of object key string");
        check("{\"a\" 1}", "invalid character '1' after object key");
        check("{\"a\":1 2}", "invalid character '2' after object key:value pair");
        check("{\"a\":x}", "invalid character 'x' looking for beginning of value");
        check("{\"a\":1", "unexpected EOF");
        check("{\"a\":1}}", "invalid character '}' after top-level value");
    }

    #[test]
    fn a_wrong_type_names_the_place() {
        check("{\"a\":-1}", "invalid JSON: invalid value: integer `-1`, expected u64 at line 1 column 7");
    }

    #[test]
    fn only_json_is_taken_for_json() {
        let value = |text: &'static str| HeaderValue::from_static(text);
        assert!(check_type(Some(&value("application/json"))).is_ok());
        assert!(check_type(Some(&value("application/json; charset=utf-8"))).is_ok());
        assert_eq!(
            check_type(Some(&value("text/plain"))).unwrap_err().message,
            "Content-Type specified (text/plain) must be 'application/json'"
        );
        assert!(check_type(None).is_err());
    }
}
