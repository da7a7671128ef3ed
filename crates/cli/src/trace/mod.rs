//! `trace`: why a name leads a container where it leads, step by step.

mod text;

use std::net::IpAddr;
use std::process::ExitCode;

use clap::Args;
use shoal_model::trace::Trace;

use crate::client::{Client, Error, Result, escape};
use crate::output::{Format, indent};

#[derive(Debug, Clone, Args)]
pub struct TraceArgs {
    /// Container that asks, by name or id
    #[arg(long)]
    from: String,
    /// Format of the output
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Name (or address) that it asks for, and a port to connect to
    #[arg(value_name = "NAME[:PORT]")]
    name: String,
}

/// The exit code is 1 when a connection would be refused, or the node does not do what its tables say.
pub(crate) async fn run(client: &Client, args: TraceArgs) -> Result<ExitCode> {
    let (name, port) = split(&args.name)?;
    let mut path = format!("/shoal/trace?from={}&name={}", escape(&args.from), escape(&name));
    path.extend(port.map(|port| format!("&port={port}")));
    let body = client.get(&path).await?;
    let trace: Trace =
        serde_json::from_slice(&body).map_err(|error| Error::UnexpectedAnswer(error.to_string()))?;
    match args.format {
        Format::Json => println!("{}", indent(&String::from_utf8_lossy(&body), 0)),
        Format::Table => print!("{}", text::render(&trace)),
    }
    Ok(if trace.works() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// `web`, `web:80`, `10.0.1.2:80`, `fd00::2`, `[fd00::2]:80`.
fn split(text: &str) -> Result<(String, Option<u16>)> {
    let usage = || Error::Usage(format!("invalid name or port: {text}"));
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    if bare.parse::<IpAddr>().is_ok() {
        return Ok((bare.to_owned(), None));
    }
    let Some((name, port)) = text.rsplit_once(':') else { return Ok((text.to_owned(), None)) };
    let name = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    let port: u16 = port.parse().map_err(|_| usage())?;
    if name.is_empty() || port == 0 {
        return Err(usage());
    }
    Ok((name.to_owned(), Some(port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_have_a_port() {
        for (text, name, port) in [
            ("web", "web", None),
            ("web.mynet:80", "web.mynet", Some(80)),
            ("10.0.1.2:8080", "10.0.1.2", Some(8080)),
            ("fd00::2", "fd00::2", None),
            ("[fd00::2]", "fd00::2", None),
            ("[fd00::2]:80", "fd00::2", Some(80)),
        ] {
            assert_eq!(split(text).unwrap(), (name.to_owned(), port), "{text}");
        }
        for bad in ["web:http", "web:0", "web:70000", ":80"] {
            assert!(matches!(split(bad), Err(Error::Usage(_))), "{bad}");
        }
    }
}
