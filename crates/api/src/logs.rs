//! Output of containers on the wire: lines, their prefixes, and Docker's framing.

use bytes::{BufMut, Bytes, BytesMut};
use jiff::Timestamp;
use shoal_model::{Labels, LogEntry, LogSelector, LogSource};

use crate::error::{ApiError, Result};
use crate::query::Params;

/// How entries are written out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Format {
    pub(crate) timestamps: bool,
    pub(crate) details: bool,
    pub(crate) framing: Framing,
}

/// What tells the two output streams apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// Eight bytes before each piece: the stream (1, 2 or [`DAEMON_ERROR`]), three zeros, the length in big endian.
    Multiplexed,
    /// Nothing: there is a terminal, hence one stream.
    Raw,
}

/// The stream on which Docker's daemon itself speaks (`stdcopy.Systemerr`).
const DAEMON_ERROR: u8 = 3;

impl Framing {
    pub(crate) fn of_tty(tty: bool) -> Self {
        if tty { Self::Raw } else { Self::Multiplexed }
    }

    /// A piece of output as it goes out. Pieces beyond 4 GiB do not exist.
    pub(crate) fn frame(self, source: LogSource, parts: &[&[u8]]) -> Bytes {
        let stream = match source {
            LogSource::Stdout => 1,
            LogSource::Stderr => 2,
        };
        self.piece(stream, parts)
    }

    /// Why the rest is missing: the client shows it and ends with an error. A terminal gets it as text.
    pub(crate) fn fault(self, reason: &str) -> Bytes {
        let text = format!("Error grabbing logs: rpc error: code = Unknown desc = {reason}\n");
        self.piece(DAEMON_ERROR, &[text.as_bytes()])
    }

    fn piece(self, stream: u8, parts: &[&[u8]]) -> Bytes {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let mut frame = BytesMut::with_capacity(length + 8);
        if self == Self::Multiplexed {
            frame.put_slice(&[stream, 0, 0, 0]);
            frame.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
        }
        for part in parts {
            frame.put_slice(part);
        }
        frame.freeze()
    }
}

/// Reads `stdout`, `stderr`, `follow`, `since`, `until`, `tail`, `timestamps` and `details`.
pub(crate) fn selection(params: &Params, tty: bool) -> Result<(LogSelector, Format)> {
    let (stdout, stderr) = (params.flag("stdout"), params.flag("stderr"));
    if !stdout && !stderr {
        return Err(ApiError::bad_request("Bad parameters: you must choose at least one stream"));
    }
    let selector = LogSelector {
        stdout,
        stderr,
        follow: params.flag("follow"),
        since: params.time("since")?,
        until: params.time("until")?,
        // Docker takes whatever is no number for "all".
        tail: params.given("tail").and_then(|text| text.parse().ok()),
    };
    let format = Format {
        timestamps: params.flag("timestamps"),
        details: params.flag("details"),
        framing: Framing::of_tty(tty),
    };
    Ok((selector, format))
}

impl Format {
    /// One entry with its prefixes: time, then details.
    pub(crate) fn entry(self, entry: &LogEntry, details: &Labels) -> Bytes {
        let time = if self.timestamps { format!("{} ", fixed(entry.time)) } else { String::new() };
        let details = if self.details { format!("{} ", join(details)) } else { String::new() };
        self.framing.frame(entry.source, &[time.as_bytes(), details.as_bytes(), &entry.line])
    }
}

/// RFC 3339 with nine digits, so that columns line up.
fn fixed(time: Timestamp) -> String {
    format!("{time:.9}")
}

fn join(details: &Labels) -> String {
    details.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(source: LogSource) -> LogEntry {
        LogEntry { time: "2026-11-23T08:36:29.19536613Z".parse().unwrap(), source, line: b"hi\n".to_vec() }
    }

    #[test]
    fn a_line_is_framed_with_its_stream_and_length() {
        let format = Format { timestamps: false, details: false, framing: Framing::Multiplexed };
        let line = format.entry(&entry(LogSource::Stderr), &Labels::new());
        assert_eq!(&line[..], b"\x02\0\0\0\0\0\0\x03hi\n");
        let raw = Format { framing: Framing::Raw, ..format };
        assert_eq!(&raw.entry(&entry(LogSource::Stdout), &Labels::new())[..], b"hi\n");
    }

    #[test]
    fn a_fault_comes_on_the_daemons_own_stream() {
        let fault = Framing::Multiplexed.fault("gone");
        let text = b"Error grabbing logs: rpc error: code = Unknown desc = gone\n";
        assert_eq!(fault[..8], [3, 0, 0, 0, 0, 0, 0, 59]);
        assert_eq!((&fault[8..], &Framing::Raw.fault("gone")[..]), (&text[..], &text[..]));
    }

    #[test]
    fn time_comes_before_details() {
        let format = Format { timestamps: true, details: true, framing: Framing::Raw };
        let details = Labels::from([("b".into(), "2".into()), ("a".into(), "1".into())]);
        let line = format.entry(&entry(LogSource::Stdout), &details);
        assert_eq!(std::str::from_utf8(&line).unwrap(), "2026-11-23T08:36:29.195366130Z a=1,b=2 hi\n");
    }
}
