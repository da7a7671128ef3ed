//! `--publish`: `[PUBLISHED:]TARGET[/PROTOCOL]`, ranges, and the long `key=value` form.

use serde_json::{Value, json};

use crate::client::{Error, Result};

/// The ports one `--publish` word stands for.
pub(super) fn parse_publish(text: &str) -> Result<Vec<Value>> {
    if text.contains('=') { long(text).map(|port| vec![port]) } else { short(text) }
}

fn invalid(text: &str, why: &str) -> Error {
    Error::Usage(format!("invalid argument \"{text}\" for \"-p, --publish\" flag: {why}"))
}

fn short(text: &str) -> Result<Vec<Value>> {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    if !matches!(protocol, "tcp" | "udp" | "sctp") {
        return Err(invalid(text, &format!("invalid proto: {protocol}")));
    }
    let (published, target) = match ports.rsplit_once(':') {
        Some((published, _)) if published.contains(':') => {
            return Err(invalid(text, "hostip is not supported"));
        }
        Some((published, target)) => (Some(range(text, published)?), range(text, target)?),
        None => (None, range(text, ports)?),
    };
    if published.as_ref().is_some_and(|published| published.len() != target.len()) {
        return Err(invalid(text, "invalid ranges specified for container and host ports"));
    }
    let port = |(place, target): (usize, u16)| {
        let published = published.as_ref().and_then(|ports| ports.get(place)).copied().unwrap_or(0);
        config(protocol, target, published, "ingress")
    };
    Ok(target.into_iter().enumerate().map(port).collect())
}

fn range(text: &str, ports: &str) -> Result<Vec<u16>> {
    let number = |part: &str| {
        part.parse::<u16>()
            .ok()
            .filter(|&port| port > 0)
            .ok_or_else(|| invalid(text, &format!("invalid port: {part}")))
    };
    match ports.split_once('-') {
        Some((first, last)) => {
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(invalid(text, &format!("invalid range: {ports}")));
            }
            Ok((first..=last).collect())
        }
        None => Ok(vec![number(ports)?]),
    }
}

fn long(text: &str) -> Result<Value> {
    let (mut protocol, mut target, mut published, mut mode) = ("tcp", 0, 0, "ingress");
    for field in text.split(',') {
        let number =
            |value: &str| value.parse::<u16>().map_err(|_| invalid(text, &format!("invalid port: {value}")));
        match field.split_once('=') {
            Some(("protocol", value)) => protocol = value,
            Some(("mode", value)) => mode = value,
            Some(("target", value)) => target = number(value)?,
            Some(("published", value)) => published = number(value)?,
            _ => return Err(invalid(text, &format!("invalid field {field}"))),
        }
    }
    if target == 0 {
        return Err(invalid(text, "missing mandatory field \"target\""));
    }
    Ok(config(protocol, target, published, mode))
}

fn config(protocol: &str, target: u16, published: u16, mode: &str) -> Value {
    json!({ "Protocol": protocol, "TargetPort": target, "PublishedPort": published, "PublishMode": mode })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_forms() {
        assert_eq!(parse_publish("8000:80").unwrap(), vec![config("tcp", 80, 8000, "ingress")]);
        assert_eq!(parse_publish("53/udp").unwrap(), vec![config("udp", 53, 0, "ingress")]);
        let many = parse_publish("8000-8001:80-81").unwrap();
        assert_eq!(many, vec![config("tcp", 80, 8000, "ingress"), config("tcp", 81, 8001, "ingress")]);
    }

    #[test]
    fn the_long_form() {
        assert_eq!(
            parse_publish("published=8000,target=80,protocol=udp,mode=host").unwrap(),
            vec![config("udp", 80, 8000, "host")]
        );
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in ["", "x", "0:80", "80:", "1-2:3", "8000:80/ip", "1.2.3.4:80:80", "target=", "mode=host"] {
            assert!(parse_publish(bad).is_err(), "{bad}");
        }
    }
}
