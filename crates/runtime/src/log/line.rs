//! One line of Docker's json-file format: `{"log":"text\n","stream":"stdout","time":"…Z"}`.

use std::io::Write;

use jiff::Timestamp;
use serde::Deserialize;
use shoal_model::{LogEntry, LogSource};

#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    log: String,
    stream: LogSource,
    time: Timestamp,
}

/// Docker splits longer lines; the pieces but the last lack the line feed.
pub(crate) const LONGEST: usize = 16 << 10;

/// Cuts one stream into lines and writes them in the log's format.
pub(crate) struct Encoder {
    stream: &'static str,
    /// The beginning of a line whose end has not come yet.
    pending: Vec<u8>,
}

impl Encoder {
    pub(crate) fn new(source: LogSource) -> Self {
        let stream = match source {
            LogSource::Stdout => "stdout",
            LogSource::Stderr => "stderr",
        };
        Self { stream, pending: Vec::new() }
    }

    /// Takes what was read and hands each complete line, encoded, to `emit`.
    pub(crate) fn push(&mut self, mut bytes: &[u8], now: Timestamp, emit: &mut impl FnMut(&[u8])) {
        while !bytes.is_empty() {
            let room = LONGEST - self.pending.len();
            let line_end = bytes.iter().take(room).position(|&byte| byte == b'\n').map(|place| place + 1);
            let (part, rest) = bytes.split_at(line_end.unwrap_or(room.min(bytes.len())));
            self.pending.extend_from_slice(part);
            bytes = rest;
            if line_end.is_some() || self.pending.len() == LONGEST {
                self.flush(now, emit);
            }
        }
    }

    /// Writes the beginning of a line as it is: the stream has ended.
    pub(crate) fn flush(&mut self, now: Timestamp, emit: &mut impl FnMut(&[u8])) {
        if self.pending.is_empty() {
            return;
        }
        let mut line = Vec::with_capacity(self.pending.len() + 96);
        line.extend_from_slice(b"{\"log\":");
        // Writing to memory does not fail.
        let _ = serde_json::to_writer(&mut line, &String::from_utf8_lossy(&self.pending));
        let _ = writeln!(line, ",\"stream\":\"{}\",\"time\":\"{now:.9}\"}}", self.stream);
        self.pending.clear();
        emit(&line);
    }
}

/// Reads a line back; `None` when it is damaged (the machine went down while it was written).
pub(crate) fn decode(line: &[u8]) -> Option<LogEntry> {
    let line: Line = serde_json::from_slice(line).ok()?;
    Some(LogEntry { time: line.time, source: line.stream, line: line.log.into_bytes() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encode(chunks: &[&[u8]]) -> Vec<LogEntry> {
        let mut lines = Vec::new();
        let mut encoder = Encoder::new(LogSource::Stderr);
        let mut emit = |line: &[u8]| lines.push(decode(line).unwrap());
        for chunk in chunks {
            encoder.push(chunk, Timestamp::UNIX_EPOCH, &mut emit);
        }
        encoder.flush(Timestamp::UNIX_EPOCH, &mut emit);
        lines
    }

    #[test]
    fn the_format_is_dockers() {
        let mut text = Vec::new();
        let now: Timestamp = "2026-11-23T08:36:11.128263813Z".parse().unwrap();
        Encoder::new(LogSource::Stdout)
            .push(b"a \"b\"\t\x1b[0m\n", now, &mut |line| text.extend_from_slice(line));
        let expected =
            r#"{"log":"a \"b\"\t\u001b[0m\n","stream":"stdout","time":"2026-11-23T08:36:11.128263813Z"}"#;
        assert_eq!(String::from_utf8(text).unwrap(), format!("{expected}\n"));
    }

    #[test]
    fn long_lines_are_split() {
        let long = vec![b'x'; 2 * LONGEST + 1];
        let lines = encode(&[&long, b"\nend"]);
        let sizes: Vec<usize> = lines.iter().map(|entry| entry.line.len()).collect();
        assert_eq!(sizes, [LONGEST, LONGEST, 2, 3]);
        assert_eq!(lines[2].line, b"x\n");
        assert_eq!(lines[0].source, LogSource::Stderr);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_however_it_is_cut(text in "(\\PC{0,40}\n?){0,20}", cuts in proptest::collection::vec(0usize..800, 0..8)) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.sort_unstable();
            let mut chunks = Vec::new();
            let mut start = 0;
            for cut in cuts.into_iter().chain([bytes.len()]) {
                chunks.push(&bytes[start..cut]);
                start = cut;
            }
            let lines = encode(&chunks);
            let joined: Vec<u8> = lines.iter().flat_map(|entry| entry.line.clone()).collect();
            prop_assert_eq!(joined, bytes);
            let whole = lines.iter().rev().skip(1).all(|entry| entry.line.ends_with(b"\n"));
            prop_assert!(whole);
        }
    }
}
