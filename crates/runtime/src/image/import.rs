//! `docker import`: a file system becomes an image of one layer.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::ImportOptions;
use super::archive::{Compression, Spooled, blocking};
use crate::{Error, Result};

/// The configuration of an imported image.
pub(super) async fn configuration(
    options: &ImportOptions,
    layer: &Spooled,
    now: Timestamp,
) -> Result<Vec<u8>> {
    let path = layer.path.clone();
    let diff_id = blocking(move || uncompressed_digest(path)).await?;
    let comment = if options.message.is_empty() { "Imported from -" } else { &options.message };
    let mut config = Map::new();
    for change in &options.changes {
        apply(&mut config, change)?;
    }
    let document = json!({
        "architecture": super::architecture(),
        "os": "linux",
        "created": now.to_string(),
        "comment": comment,
        "config": config,
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
        "history": [{ "created": now.to_string(), "comment": comment }],
    });
    serde_json::to_vec(&document).map_err(|error| Error::InvalidArchive(error.to_string()))
}

fn uncompressed_digest(path: std::path::PathBuf) -> Result<String> {
    use std::io::BufReader;

    use sha2::{Digest, Sha256};

    let file = std::fs::File::open(&path).map_err(Error::io(&path))?;
    let mut hash = Sha256::new();
    let bad = |error: std::io::Error| Error::InvalidArchive(error.to_string());
    match Compression::of_file(&path)? {
        Compression::None => std::io::copy(&mut BufReader::new(file), &mut hash).map_err(bad)?,
        Compression::Gzip => {
            let mut plain = flate2::bufread::MultiGzDecoder::new(BufReader::new(file));
            std::io::copy(&mut plain, &mut hash).map_err(bad)?
        }
        Compression::Zstd => {
            return Err(Error::InvalidArchive(
                "a file system compressed by zstd cannot be imported".to_owned(),
            ));
        }
    };
    Ok(format!("sha256:{}", hex::encode(hash.finalize())))
}

/// Applies one Dockerfile instruction to an image's `config` object.
fn apply(config: &mut Map<String, Value>, change: &str) -> Result<()> {
    let change = change.trim();
    let (instruction, rest) = change.split_once(char::is_whitespace).unwrap_or((change, ""));
    let rest = rest.trim();
    let instruction = instruction.to_ascii_uppercase();
    if rest.is_empty() {
        return Err(Error::InvalidConfig(format!("{instruction} requires at least one argument")));
    }
    match instruction.as_str() {
        "CMD" => drop(config.insert("Cmd".to_owned(), json!(command(rest)))),
        "ENTRYPOINT" => drop(config.insert("Entrypoint".to_owned(), json!(command(rest)))),
        "SHELL" => drop(config.insert("Shell".to_owned(), json!(exec_form(rest).unwrap_or_default()))),
        "USER" => drop(config.insert("User".to_owned(), json!(rest))),
        "WORKDIR" => drop(config.insert("WorkingDir".to_owned(), json!(rest))),
        "STOPSIGNAL" => drop(config.insert("StopSignal".to_owned(), json!(rest))),
        "ENV" => {
            let mut env: Vec<String> = config
                .get("Env")
                .and_then(|value| serde_json::from_value(value.clone()).ok())
                .unwrap_or_default();
            let added: Vec<String> =
                pairs("ENV", rest)?.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
            crate::spec::merge_environment(&mut env, &added);
            config.insert("Env".to_owned(), json!(env));
        }
        "LABEL" => {
            for (name, value) in pairs("LABEL", rest)? {
                object(config, "Labels").insert(name, json!(value));
            }
        }
        "EXPOSE" => {
            for port in words(rest) {
                let port = if port.contains('/') { port } else { format!("{port}/tcp") };
                object(config, "ExposedPorts").insert(port, json!({}));
            }
        }
        "VOLUME" => {
            for path in exec_form(rest).unwrap_or_else(|| words(rest)) {
                object(config, "Volumes").insert(path, json!({}));
            }
        }
        "ONBUILD" => match config.entry("OnBuild").or_insert_with(|| json!([])) {
            Value::Array(steps) => steps.push(json!(rest)),
            other => *other = json!([rest]),
        },
        "HEALTHCHECK" => drop(config.insert("Healthcheck".to_owned(), healthcheck(rest)?)),
        other => return Err(Error::InvalidConfig(format!("{other} is not a valid change command"))),
    }
    Ok(())
}

fn object<'a>(config: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    let slot = config.entry(key).or_insert_with(|| json!({}));
    if !slot.is_object() {
        *slot = json!({});
    }
    match slot {
        Value::Object(map) => map,
        _ => unreachable!("just made an object"),
    }
}

/// `["a", "b"]` as it is, anything else through the shell.
fn command(text: &str) -> Vec<String> {
    exec_form(text).unwrap_or_else(|| vec!["/bin/sh".to_owned(), "-c".to_owned(), text.to_owned()])
}

fn exec_form(text: &str) -> Option<Vec<String>> {
    serde_json::from_str(text).ok()
}

/// `a=1 b="two words"`, or the old form `a the rest`.
fn pairs(instruction: &str, text: &str) -> Result<Vec<(String, String)>> {
    let words = words(text);
    if words.first().is_some_and(|word| !word.contains('=')) {
        let (name, value) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        return Ok(vec![(name.to_owned(), value.trim().to_owned())]);
    }
    let pair = |word: String| match word.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(Error::InvalidConfig(format!(
            "Syntax error - can't find = in {word:?}. Must be of the form: name=value for {instruction}"
        ))),
    };
    words.into_iter().map(pair).collect()
}

/// Words separated by blanks; quotes and backslashes protect blanks.
fn words(text: &str) -> Vec<String> {
    let (mut words, mut word, mut open, mut quote) = (Vec::new(), String::new(), false, None);
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match (c, quote) {
            ('\\', None | Some('"')) => {
                word.extend(characters.next());
                open = true;
            }
            (c, Some(end)) if c == end => quote = None,
            (c, Some(_)) => word.push(c),
            ('"' | '\'', None) => {
                quote = Some(c);
                open = true;
            }
            (c, None) if c.is_whitespace() => {
                if open {
                    words.push(std::mem::take(&mut word));
                }
                open = false;
            }
            (c, None) => {
                word.push(c);
                open = true;
            }
        }
    }
    if open {
        words.push(word);
    }
    words
}

/// `NONE`, or `[--interval=5s …] CMD …`; durations in nanoseconds as the image format has them.
fn healthcheck(text: &str) -> Result<Value> {
    let mut health = Map::new();
    let mut rest = text;
    while let Some(option) = rest.strip_prefix("--") {
        let (option, tail) = option.split_once(char::is_whitespace).unwrap_or((option, ""));
        let bad = || Error::InvalidConfig(format!("invalid HEALTHCHECK option --{option}"));
        let (name, value) = option.split_once('=').ok_or_else(bad)?;
        let key = match name {
            "interval" => "Interval",
            "timeout" => "Timeout",
            "start-period" => "StartPeriod",
            "start-interval" => "StartInterval",
            "retries" => "Retries",
            _ => return Err(bad()),
        };
        let number = if name == "retries" { value.parse().ok() } else { nanoseconds(value) };
        health.insert(key.to_owned(), json!(number.ok_or_else(bad)?));
        rest = tail.trim_start();
    }
    let (kind, tail) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let test = match (kind.to_ascii_uppercase().as_str(), tail.trim()) {
        ("NONE", "") => vec!["NONE".to_owned()],
        ("CMD", tail) if !tail.is_empty() => match exec_form(tail) {
            Some(argv) => std::iter::once("CMD".to_owned()).chain(argv).collect(),
            None => vec!["CMD-SHELL".to_owned(), tail.to_owned()],
        },
        _ => return Err(Error::InvalidConfig(format!("unknown type {kind:?} in HEALTHCHECK (try CMD)"))),
    };
    health.insert("Test".to_owned(), json!(test));
    Ok(Value::Object(health))
}

/// Go's durations, as far as Dockerfiles use them: `1m30s`, `500ms`.
fn nanoseconds(text: &str) -> Option<u64> {
    let (mut total, mut rest) = (0u64, text);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, tail) = rest.split_at(digits);
        let unit = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let scale = match unit {
            "ns" => 1,
            "us" | "µs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60 * 1_000_000_000,
            "h" => 3600 * 1_000_000_000,
            _ => return None,
        };
        total = total.checked_add(number.parse::<u64>().ok()?.checked_mul(scale)?)?;
        rest = tail;
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_dockerfile_instructions() {
        let mut config = Map::new();
        for change in [
            "CMD [\"sh\", \"-c\", \"true\"]",
            "entrypoint /bin/run it",
            "ENV A=1 B=\"two words\"",
            "ENV A=3",
            "LABEL old the value",
            "EXPOSE 80 53/udp",
            "VOLUME /data",
            "WORKDIR /srv",
            "USER www:web",
            "STOPSIGNAL SIGUSR1",
            "HEALTHCHECK --interval=1m30s --retries=2 CMD wget -q localhost",
        ] {
            apply(&mut config, change).unwrap();
        }
        let expected = json!({
            "Cmd": ["sh", "-c", "true"],
            "Entrypoint": ["/bin/sh", "-c", "/bin/run it"],
            "Env": ["A=3", "B=two words"],
            "Labels": { "old": "the value" },
            "ExposedPorts": { "80/tcp": {}, "53/udp": {} },
            "Volumes": { "/data": {} },
            "WorkingDir": "/srv",
            "User": "www:web",
            "StopSignal": "SIGUSR1",
            "Healthcheck": {
                "Interval": 90_000_000_000u64, "Retries": 2, "Test": ["CMD-SHELL", "wget -q localhost"],
            },
        });
        assert_eq!(Value::Object(config), expected);
        for bad in ["RUN make", "CMD", "ENV =x", "HEALTHCHECK --interval=x CMD y", "HEALTHCHECK SOON"] {
            assert!(apply(&mut Map::new(), bad).is_err(), "{bad}");
        }
    }
}
