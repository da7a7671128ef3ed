use oci_client::errors::{OciEnvelope, OciError};

use super::*;

fn refused(name: &str, code: OciErrorCode, message: &str) -> String {
    let name = Reference::parse(name).unwrap();
    let error = OciError { code, message: message.to_owned(), detail: serde_json::Value::Null };
    let envelope = OciEnvelope { errors: vec![error] };
    failed(&name, OciDistributionError::RegistryError { envelope, url: String::new() }).to_string()
}

/// As Docker 20.10 prints them.
#[test]
fn refusals_are_said_in_dockers_words() {
    assert_eq!(
        refused("nosuch:1.2", OciErrorCode::Denied, "requested access to the resource is denied"),
        "pull access denied for nosuch, repository does not exist or may require 'docker login': \
         denied: requested access to the resource is denied"
    );
    assert_eq!(
        refused("busybox:nosuch", OciErrorCode::ManifestUnknown, "manifest unknown"),
        "manifest for busybox:nosuch not found: manifest unknown: manifest unknown"
    );
    assert_eq!(
        refused("reg:5000/a/b:1", OciErrorCode::NameUnknown, "repository name not known to registry"),
        "repository reg:5000/a/b not found: name unknown: repository name not known to registry"
    );
}

#[test]
fn what_token_servers_say_is_found() {
    assert_eq!(
        reason_of(r#"{"details":"incorrect username or password"}"#),
        "incorrect username or password"
    );
    assert_eq!(reason_of(r#"{"errors":[{"code":"UNAUTHORIZED","message":"no"}]}"#), "no");
    assert_eq!(reason_of("<html>\n"), "<html>");
}

#[test]
fn documents_say_what_they_are_or_show_it() {
    let of = |text: &str| media_type(text.as_bytes());
    assert_eq!(of(r#"{"schemaVersion":2,"manifests":[]}"#).unwrap(), media::OCI_INDEX);
    assert_eq!(of(r#"{"schemaVersion":2,"config":{}}"#).unwrap(), media::OCI_MANIFEST);
    assert_eq!(of(&format!(r#"{{"mediaType":"{}"}}"#, media::DOCKER_INDEX)).unwrap(), media::DOCKER_INDEX);
    assert!(of(r#"{"mediaType":"application/vnd.docker.distribution.manifest.v1+prettyjws"}"#).is_err());
    assert!(of("[]").is_err());
}
