//! Docker's image names: `busybox` is `docker.io/library/busybox:latest`.

use std::fmt;

use crate::{Error, Result};

const DEFAULT_DOMAIN: &str = "docker.io";
/// Where official images live in the default registry, and what familiar names leave out.
const OFFICIAL: &str = "library/";
/// Docker's limit for the name without tag and digest.
const LONGEST_NAME: usize = 255;

/// A parsed image name in its full form.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<String>,
}

impl Reference {
    /// Parses what a user wrote, by the rules of Docker's `ParseNormalizedNamed`.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let invalid = || Error::InvalidReference("invalid reference format".to_owned());
        if is_identifier(text) {
            return Err(Error::InvalidReference(format!(
                "invalid repository name ({text}), cannot specify 64-byte hexadecimal strings"
            )));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (text, None),
        };
        // A colon after the last slash starts a tag; before it, a port.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        let (domain, path) = split_domain(name);
        if path.chars().any(|c| c.is_ascii_uppercase()) {
            return Err(Error::InvalidReference(format!(
                "invalid reference format: repository name ({path}) must be lowercase"
            )));
        }
        let good = name.len() <= LONGEST_NAME
            && is_domain(&domain)
            && path.split('/').all(is_component)
            && tag.is_none_or(is_tag)
            && digest.is_none_or(is_digest);
        if !good {
            return Err(invalid());
        }
        Ok(Self { domain, path, tag: tag.map(str::to_owned), digest: digest.map(str::to_owned) })
    }

    /// The name without tag and digest, in full: images of one repository share it.
    pub(crate) fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The registry.
    pub(crate) fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository's name in its registry.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    pub(crate) fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    pub(crate) fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    /// With `latest` when neither a tag nor a digest was given.
    pub(crate) fn with_default_tag(mut self) -> Self {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some("latest".to_owned());
        }
        self
    }

    /// The same repository's image with this digest.
    pub(crate) fn with_digest(&self, digest: &str) -> Self {
        Self { tag: None, digest: Some(digest.to_owned()), ..self.clone() }
    }

    /// `repository:tag`: the name under which containerd knows the image.
    pub(crate) fn full(&self) -> String {
        format!("{}{}", self.repository(), self.suffix())
    }

    /// As users write it: without the default registry and `library/`.
    pub(crate) fn familiar(&self) -> String {
        format!("{}{}", self.familiar_repository(), self.suffix())
    }

    pub(crate) fn familiar_repository(&self) -> String {
        if self.domain != DEFAULT_DOMAIN {
            return self.repository();
        }
        match self.path.strip_prefix(OFFICIAL) {
            Some(short) if !short.contains('/') => short.to_owned(),
            _ => self.path.clone(),
        }
    }

    fn suffix(&self) -> String {
        let tag = self.tag.iter().map(|tag| format!(":{tag}"));
        tag.chain(self.digest.iter().map(|digest| format!("@{digest}"))).collect()
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.familiar())
    }
}

/// The first component is a registry only when it looks like a host.
fn split_domain(name: &str) -> (String, String) {
    let (domain, path) = match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.chars().any(|c| c.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_DOMAIN, name),
    };
    let domain = if domain == "index.docker.io" { DEFAULT_DOMAIN } else { domain };
    let official = domain == DEFAULT_DOMAIN && !path.contains('/');
    (domain.to_owned(), if official { format!("{OFFICIAL}{path}") } else { path.to_owned() })
}

fn is_domain(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (text, None),
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    let host_good = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split('.').all(label),
    };
    host_good && port.is_none_or(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()))
}

/// Lower-case letters and digits, joined by one `.`, one or two `_`, or any number of `-`.
fn is_component(text: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let edges =
        bytes.first().copied().is_some_and(alphanumeric) && bytes.last().copied().is_some_and(alphanumeric);
    edges
        && text.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit()).all(|separator| {
            matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-')
        })
}

fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.len() <= 128
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

/// Only SHA-256 is used in practice, and only it is accepted here.
pub(crate) fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(is_identifier)
}

/// 64 lower-case hexadecimal characters.
pub(crate) fn is_identifier(text: &str) -> bool {
    text.len() == 64 && is_hex(text)
}

pub(crate) fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_dockers_rules() {
        for (text, full, familiar) in [
            ("busybox", "docker.io/library/busybox:latest", "busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36", "busybox:1.36"),
            ("foo/bar:1", "docker.io/foo/bar:1", "foo/bar:1"),
            ("docker.io/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
            ("index.docker.io/library/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
            ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
            ("localhost:5000/x:y", "localhost:5000/x:y", "localhost:5000/x:y"),
            (
                "registry.example.com/a/b__c-d.e:T_1",
                "registry.example.com/a/b__c-d.e:T_1",
                "registry.example.com/a/b__c-d.e:T_1",
            ),
        ] {
            let reference = Reference::parse(text).unwrap().with_default_tag();
            assert_eq!(reference.full(), full);
            assert_eq!(reference.familiar(), familiar);
        }
    }

    #[test]
    fn a_digest_stands_beside_the_tag() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let reference = Reference::parse(&format!("busybox:latest@{digest}")).unwrap();
        assert_eq!(reference.digest(), Some(digest.as_str()));
        assert_eq!(reference.repository(), "docker.io/library/busybox");
        let untagged = Reference::parse(&format!("busybox@{digest}")).unwrap().with_default_tag();
        assert_eq!(untagged.familiar(), format!("busybox@{digest}"));
    }

    #[test]
    fn what_docker_refuses_is_refused() {
        for text in [
            "",
            ":",
            "a:",
            "/a",
            "a//b",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "a@sha256:12",
            "a:-x",
            "a b",
            "a/",
            "[x]:1/a",
        ] {
            assert!(Reference::parse(text).is_err(), "{text:?}");
        }
        let error = Reference::parse("Foo").unwrap_err().to_string();
        assert_eq!(error, "invalid reference format: repository name (library/Foo) must be lowercase");
        assert!(Reference::parse(&"ab".repeat(32)).is_err(), "an id is no name");
    }
}
