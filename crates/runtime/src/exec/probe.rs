//! Health probes: an exec with a deadline, of which the beginning of the output is kept.

use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use shoal_model::ContainerId;
use tokio::time::{Instant, timeout_at};

use super::{Exec, ExecConfig, ProbeResult};
use crate::container::Containers;
use crate::{Error, Result};

/// Docker keeps no more of a probe's output.
const LONGEST_OUTPUT: usize = 4096;
/// No exit code.
const FAILED: i32 = -1;

impl Containers {
    /// Runs a probe; an error means that there was nothing to probe.
    pub(crate) async fn probe(
        &self,
        id: &ContainerId,
        argv: Vec<String>,
        timeout: Duration,
    ) -> Result<ProbeResult> {
        let started = Timestamp::now();
        let deadline = Instant::now() + timeout;
        let mut output = Vec::new();
        let config = ExecConfig { argv, ..ExecConfig::default() };
        let exit_code = match self.exec(id, &config).await {
            Ok(exec) => run(exec, deadline, &mut output).await?,
            Err(Error::Exec(message)) => {
                output = message.into_bytes();
                Some(FAILED)
            }
            Err(error) => return Err(error),
        };
        let output = match exit_code {
            Some(_) => String::from_utf8_lossy(&output).into_owned(),
            None => format!("Health check exceeded timeout ({})", go_duration(timeout)),
        };
        Ok(ProbeResult { exit_code: exit_code.unwrap_or(FAILED), output, started, ended: Timestamp::now() })
    }
}

/// The exit code, `None` when the deadline came first; the process is then killed.
async fn run(mut exec: Exec, deadline: Instant, output: &mut Vec<u8>) -> Result<Option<i32>> {
    let handle = exec.handle();
    let listen = async {
        while let Some((_, bytes)) = exec.output.next().await {
            let room = LONGEST_OUTPUT - output.len();
            output.extend_from_slice(&bytes[..bytes.len().min(room)]);
        }
        handle.wait().await
    };
    match timeout_at(deadline, listen).await {
        Ok(code) => code.map(Some),
        Err(_) => {
            handle.kill(nix::libc::SIGKILL).await?;
            Ok(None)
        }
    }
}

/// As Go prints durations: `30s`, `1m30s`, `1.5s`, `500ms`.
fn go_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds == 0 {
        let micros = duration.as_micros();
        return match (micros, micros % 1000) {
            (0, _) => "0s".to_owned(),
            (_, 0) => format!("{}ms", micros / 1000),
            _ if micros > 1000 => format!("{}ms", duration.as_secs_f64() * 1e3),
            _ => format!("{micros}µs"),
        };
    }
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    let rest = Duration::from_secs(seconds % 60) + Duration::from_nanos(duration.subsec_nanos().into());
    let rest = rest.as_secs_f64();
    match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, minutes) => format!("{minutes}m{rest}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{rest}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_look_like_gos() {
        for (millis, text) in [
            (0, "0s"),
            (500, "500ms"),
            (1500, "1.5s"),
            (30_000, "30s"),
            (90_000, "1m30s"),
            (3_600_000, "1h0m0s"),
        ] {
            assert_eq!(go_duration(Duration::from_millis(millis)), text);
        }
    }
}
