//! Version negotiation: the `/v1.NN` prefix, and the headers every answer carries.

use axum::http::Uri;
use axum::http::uri::PathAndQuery;

use crate::error::{ApiError, Result};

/// The version of Docker's API whose behaviour is served.
pub const API_VERSION: &str = "1.41";
/// The oldest version accepted in a path.
pub const MIN_API_VERSION: &str = "1.12";

/// Takes the `/v1.NN` off a path, after looking at whether that version is served.
pub(crate) fn strip_prefix(uri: &Uri) -> Result<Option<Uri>> {
    let Some((version, rest)) = split(uri.path()) else { return Ok(None) };
    check(version)?;
    let path = match uri.query() {
        Some(query) => format!("{rest}?{query}"),
        None => rest.to_owned(),
    };
    let path = path
        .parse::<PathAndQuery>()
        .map_err(|error| ApiError::bad_request(format!("invalid path {path:?}: {error}")))?;
    Ok(Some(Uri::from(path)))
}

/// `/v1.41/info` → `1.41`, `/info`.
fn split(path: &str) -> Option<(&str, &str)> {
    let (version, _) = path.strip_prefix("/v")?.split_once('/')?;
    let plausible = version.starts_with(|c: char| c.is_ascii_digit())
        && version.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    plausible.then(|| (version, &path[2 + version.len()..]))
}

fn check(version: &str) -> Result<()> {
    let number = parse(version).ok_or_else(|| {
        ApiError::bad_request(format!("invalid API version {version}: must be major.minor"))
    })?;
    if Some(number) > parse(API_VERSION) {
        return Err(ApiError::bad_request(format!(
            "client version {version} is too new. Maximum supported API version is {API_VERSION}"
        )));
    }
    if Some(number) < parse(MIN_API_VERSION) {
        return Err(ApiError::bad_request(format!(
            "client version {version} is too old. Minimum supported API version is {MIN_API_VERSION}, please \
             upgrade your client to a newer version"
        )));
    }
    Ok(())
}

fn parse(version: &str) -> Option<(u32, u32)> {
    let (major, minor) = version.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_path(path: &str, expect: Result<Option<&str>, &str>) {
        let found = strip_prefix(&path.parse().unwrap());
        let found = found.map(|uri| uri.map(|uri| uri.to_string())).map_err(|error| error.message);
        assert_eq!(found, expect.map(|text| text.map(str::to_owned)).map_err(str::to_owned), "{path}");
    }

    #[test]
    fn the_prefix_is_taken_off() {
        check_path("/v1.41/info", Ok(Some("/info")));
        check_path("/v1.24/services?status=true", Ok(Some("/services?status=true")));
        check_path("/v1.41/", Ok(Some("/")));
        check_path("/info", Ok(None));
        check_path("/volumes", Ok(None));
        check_path("/version", Ok(None));
        check_path("/v1.41", Ok(None));
    }

    #[test]
    fn versions_outside_the_range_are_refused() {
        check_path(
            "/v1.50/version",
            Err("client version 1.50 is too new. Maximum supported API version is 1.41"),
        );
        check_path(
            "/v1.11/version",
            Err(
                "client version 1.11 is too old. Minimum supported API version is 1.12, please upgrade your \
                 client to a newer version",
            ),
        );
        check_path("/v1/version", Err("invalid API version 1: must be major.minor"));
        check_path("/v1.99999999999/x", Err("invalid API version 1.99999999999: must be major.minor"));
    }
}
