//! Docker's output shapes: aligned tables, short ids, ages, sizes, indented JSON.

use clap::ValueEnum;
use jiff::Timestamp;

/// Narrowest column and the gap between columns, as Docker's tabwriter has them.
const MIN_COLUMN: usize = 10;
const GAP: usize = 3;

/// What verbs of our own print.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
}

/// A table as Docker prints it: left aligned, the last cell of a row unpadded.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths = vec![0; header.len()];
    let head: Vec<String> = header.iter().map(|cell| (*cell).to_owned()).collect();
    for row in rows.iter().chain([&head]) {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max((cell.chars().count() + GAP).max(MIN_COLUMN));
        }
    }
    let mut text = String::new();
    for row in [&head].into_iter().chain(rows) {
        for (place, cell) in row.iter().enumerate() {
            let last = place + 1 == row.len();
            text.push_str(cell);
            if !last {
                let padding = widths[place].saturating_sub(cell.chars().count());
                text.extend(std::iter::repeat_n(' ', padding));
            }
        }
        text.push('\n');
    }
    text
}

/// The twelve characters Docker shows of an id.
pub(crate) fn short_id(id: &str) -> String {
    let id = id.strip_prefix("sha256:").unwrap_or(id);
    id.get(..12).unwrap_or(id).to_owned()
}

/// `2 minutes`, `About an hour`: Docker's words for a duration.
pub(crate) fn human_duration(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, (seconds as f64 / 3600.0).round() as i64);
    match () {
        () if seconds < 1 => "Less than a second".to_owned(),
        () if seconds == 1 => "1 second".to_owned(),
        () if seconds < 60 => format!("{seconds} seconds"),
        () if minutes == 1 => "About a minute".to_owned(),
        () if minutes < 60 => format!("{minutes} minutes"),
        () if hours == 1 => "About an hour".to_owned(),
        () if hours < 48 => format!("{hours} hours"),
        () if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        () if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        () if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        () => format!("{} years", hours / 24 / 365),
    }
}

/// How long ago an RFC 3339 time was; empty when it is not one.
pub(crate) fn ago(time: &str, now: Timestamp) -> String {
    match time.parse::<Timestamp>() {
        Ok(then) => format!("{} ago", human_duration(now.as_second() - then.as_second())),
        Err(_) => String::new(),
    }
}

/// `1.99MB`: decimal units, three significant digits, as Docker's image list.
pub(crate) fn human_size(bytes: i64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = if value >= 100.0 || unit == 0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    let mut text = format!("{value:.digits$}");
    if text.contains('.') {
        text.truncate(text.trim_end_matches('0').trim_end_matches('.').len());
    }
    format!("{text}{}", UNITS[unit])
}

/// Re-indents JSON without touching its key order or numbers, four spaces a level as `docker inspect`.
pub(crate) fn indent(json: &str, outer: usize) -> String {
    let mut text = String::with_capacity(json.len() * 2);
    let mut depth = outer;
    let (mut in_string, mut escaped) = (false, false);
    let mut chars = json.chars().peekable();
    let newline = |text: &mut String, depth: usize| {
        text.push('\n');
        text.extend(std::iter::repeat_n("    ", depth));
    };
    while let Some(c) = chars.next() {
        if in_string {
            text.push(c);
            (in_string, escaped) = (escaped || c != '"', !escaped && c == '\\');
            continue;
        }
        match c {
            '"' => {
                in_string = true;
                text.push(c);
            }
            '{' | '[' => {
                text.push(c);
                while chars.peek().is_some_and(|next| next.is_whitespace()) {
                    chars.next();
                }
                if chars.peek().is_some_and(|next| matches!(next, '}' | ']')) {
                    text.extend(chars.next());
                } else {
                    depth += 1;
                    newline(&mut text, depth);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                newline(&mut text, depth);
                text.push(c);
            }
            ',' => {
                text.push(c);
                newline(&mut text, depth);
            }
            ':' => text.push_str(": "),
            c if c.is_whitespace() => {}
            c => text.push(c),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_looks_like_dockers() {
        let rows = vec![vec![
            "mb0xh2tyi0me".to_owned(),
            "myservice".to_owned(),
            "replicated".to_owned(),
            "2/2".to_owned(),
            "busybox:latest".to_owned(),
            String::new(),
        ]];
        assert_eq!(
            table(&["ID", "NAME", "MODE", "REPLICAS", "IMAGE", "PORTS"], &rows),
            "ID             NAME        MODE         REPLICAS   IMAGE            PORTS\n\
             mb0xh2tyi0me   myservice   replicated   2/2        busybox:latest   \n"
        );
    }

    #[test]
    fn json_keeps_its_order_and_its_strings() {
        assert_eq!(
            indent(r#"{"b":1,"a":[],"c":{"k":"x,{\"y\": [1]}"}}"#, 0),
            "{\n    \"b\": 1,\n    \"a\": [],\n    \"c\": {\n        \"k\": \"x,{\\\"y\\\": [1]}\"\n    }\n}"
        );
    }

    #[test]
    fn sizes_and_ages_read_like_dockers() {
        assert_eq!(human_size(1_990_000), "1.99MB");
        assert_eq!(human_size(0), "0B");
        assert_eq!(human_size(12_340_000_000), "12.3GB");
        let now: Timestamp = "2026-11-23T08:30:00Z".parse().unwrap();
        assert_eq!(ago("2026-11-23T08:29:52.5Z", now), "8 seconds ago");
        assert_eq!(ago("2026-11-23T08:28:30Z", now), "About a minute ago");
        assert_eq!(ago("rubbish", now), "");
    }
}
