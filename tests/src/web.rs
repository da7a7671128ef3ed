//! A web client small enough to trust.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(5);

/// One request on a connection of its own, from the namespace this thread is in. The body, or what
/// went wrong and where.
pub fn fetch(to: impl Into<SocketAddr>, path: &str) -> Result<String, String> {
    fetch_within(TIMEOUT, to, path)
}

/// The same with a bound on how long connecting may take.
pub fn fetch_within(bound: Duration, to: impl Into<SocketAddr>, path: &str) -> Result<String, String> {
    let stream =
        TcpStream::connect_timeout(&to.into(), bound).map_err(|error| format!("connect: {error}"))?;
    fetch_over(stream, path)
}

/// The same over a connection that is already there.
pub fn fetch_over(mut stream: TcpStream, path: &str) -> Result<String, String> {
    stream.set_read_timeout(Some(TIMEOUT)).map_err(|error| error.to_string())?;
    // In one piece: a server that reads only once must have it all.
    let request = format!("GET {path} HTTP/1.0\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(|error| format!("write: {error}"))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(|error| format!("read: {error}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| format!("cut short: {answer:?}"))?;
    if head.contains(" 200 ") { Ok(body.trim().to_owned()) } else { Err(format!("answered {head:?}")) }
}
