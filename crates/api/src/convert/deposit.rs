//! Secrets and configs: Docker's JSON ⇄ the model.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use shoal_model as model;
use shoal_model::{Deposit, DepositFile, DepositId, DepositKind, DepositReference};

use super::time;
use crate::error::{ApiError, Result};
use crate::wire::Version;
use crate::wire::deposit as wire;

/// The one language of placeholders that Docker has.
const TEMPLATING: &str = "golang";
/// The bits of a mode that are permissions.
const PERMISSIONS: u32 = 0o7777;

/// What a client declares, and the value if it gives one.
pub(crate) fn spec(kind: DepositKind, spec: wire::SpecIn) -> Result<(model::DepositSpec, Option<Vec<u8>>)> {
    spec.driver.refuse("secret drivers are")?;
    let templated = match spec.templating {
        None => false,
        Some(driver) => {
            driver.options.refuse("options of a template driver are")?;
            match driver.name.as_str() {
                "" => false,
                TEMPLATING => true,
                other => return Err(ApiError::unsupported(format!("template driver {other} is"))),
            }
        }
    };
    let data = spec.data.filter(|data| !data.is_empty());
    let data = data.map(|data| {
        BASE64
            .decode(data)
            .map_err(|error| ApiError::bad_request(format!("{kind} data is no base64: {error}")))
    });
    let (name, labels) = (spec.name.unwrap_or_default(), spec.labels.unwrap_or_default());
    Ok((model::DepositSpec { kind, name, labels, templated }, data.transpose()?))
}

/// `value` is a config's.
pub(crate) fn deposit(deposit: &Deposit, value: Option<&[u8]>) -> wire::Deposit {
    wire::Deposit {
        id: deposit.id.to_string(),
        version: Version { index: deposit.meta.version },
        created_at: time(deposit.meta.created),
        updated_at: time(deposit.meta.updated),
        spec: wire::Spec {
            name: deposit.spec.name.clone(),
            labels: deposit.spec.labels.clone(),
            data: value.map(|value| BASE64.encode(value)),
            templating: deposit
                .spec
                .templated
                .then(|| wire::Driver { name: TEMPLATING.to_owned(), ..wire::Driver::default() }),
        },
    }
}

// === references of services ===

pub(super) fn secret_in(reference: wire::SecretReference) -> Result<DepositReference> {
    reference_in(DepositKind::Secret, reference.id, reference.name, reference.file)
}

pub(super) fn config_in(reference: wire::ConfigReference) -> Result<DepositReference> {
    if reference.runtime.is_some_and(|runtime| !runtime.is_null()) {
        return Err(ApiError::unsupported("configs for the runtime (credential specs) are"));
    }
    reference_in(DepositKind::Config, reference.id, reference.name, reference.file)
}

fn reference_in(
    kind: DepositKind,
    id: String,
    name: String,
    file: Option<wire::File>,
) -> Result<DepositReference> {
    let Some(file) = file else {
        // SwarmKit's text.
        return Err(ApiError::bad_request(format!(
            "rpc error: code = InvalidArgument desc = malformed {kind} reference, no target provided"
        )));
    };
    let owner = |text: &str, what: &str| match text {
        "" => Ok(0),
        text => text.parse().map_err(|_| {
            ApiError::bad_request(format!("invalid {what} {text:?} of {kind} {name}: it must be a number"))
        }),
    };
    let (uid, gid) = (owner(&file.uid, "UID")?, owner(&file.gid, "GID")?);
    let file = DepositFile { name: file.name, uid, gid, mode: file.mode & PERMISSIONS };
    Ok(DepositReference { deposit: DepositId::new(id), name, file })
}

pub(super) fn secret_out(reference: &DepositReference) -> wire::SecretReference {
    wire::SecretReference {
        file: Some(file_out(&reference.file)),
        id: reference.deposit.to_string(),
        name: reference.name.clone(),
    }
}

pub(super) fn config_out(reference: &DepositReference) -> wire::ConfigReference {
    wire::ConfigReference {
        file: Some(file_out(&reference.file)),
        runtime: None,
        id: reference.deposit.to_string(),
        name: reference.name.clone(),
    }
}

fn file_out(file: &DepositFile) -> wire::File {
    wire::File {
        name: file.name.clone(),
        uid: file.uid.to_string(),
        gid: file.gid.to_string(),
        mode: file.mode,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(kind: DepositKind, body: serde_json::Value) -> Result<(model::DepositSpec, Option<Vec<u8>>)> {
        spec(kind, serde_json::from_value(body).unwrap())
    }

    #[test]
    fn what_the_client_sends_is_read() {
        // As docker 28.2 sends it.
        let (declared, value) =
            read(DepositKind::Secret, json!({"Name": "sec1", "Labels": {}, "Data": "dm0K"})).unwrap();
        assert_eq!((declared.name.as_str(), value.as_deref()), ("sec1", Some(&b"vm\n"[..])));
        let templated = json!({"Name": "c", "Data": "eA==", "Templating": {"Name": "golang"}});
        assert!(read(DepositKind::Config, templated).unwrap().0.templated);
    }

    #[test]
    fn drivers_and_what_is_no_base64_are_refused() {
        let refused = |body| read(DepositKind::Secret, body).unwrap_err().message;
        assert!(refused(json!({"Driver": {"Name": "vault"}})).starts_with("secret drivers are not"));
        assert!(
            refused(json!({"Templating": {"Name": "jinja"}})).starts_with("template driver jinja is not")
        );
        assert!(refused(json!({"Data": "&&&"})).starts_with("secret data is no base64"));
        let runtime = json!({"Runtime": {}, "ConfigID": "x", "ConfigName": "y"});
        let runtime = config_in(serde_json::from_value(runtime).unwrap()).unwrap_err();
        assert!(runtime.message.starts_with("configs for the runtime"), "{}", runtime.message);
        let bare = secret_in(serde_json::from_value(json!({"SecretID": "x"})).unwrap()).unwrap_err();
        assert!(bare.message.ends_with("malformed secret reference, no target provided"), "{}", bare.message);
        let named = json!({"SecretID": "x", "SecretName": "s", "File": {"Name": "f", "UID": "web"}});
        let named = secret_in(serde_json::from_value(named).unwrap()).unwrap_err();
        assert_eq!(named.message, "invalid UID \"web\" of secret s: it must be a number");
    }
}
