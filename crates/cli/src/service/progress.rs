//! Waiting until a service is what its spec asks for, told as Docker's client tells it.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{Client, Result, escape};

/// How often the daemon is asked, as Docker's client.
const POLL: Duration = Duration::from_millis(200);
/// SwarmKit's default for how long new tasks are watched.
const DEFAULT_MONITOR: Duration = Duration::from_secs(5);

/// What the progress shows of one look at the service.
#[derive(Debug, PartialEq)]
struct Look {
    job: bool,
    /// Of a job: those that have done their work.
    running: u64,
    wanted: u64,
    /// Why a task that should run does not.
    error: Option<String>,
}

/// Returns when the service has converged and stayed so for its monitoring period.
pub(super) async fn wait(client: &Client, id: &str, quiet: bool) -> Result<ExitCode> {
    let say = |line: String| {
        if !quiet {
            println!("{line}");
        }
    };
    let (mut last, mut stable_since, mut shown_seconds) = (None, None::<Instant>, u64::MAX);
    loop {
        let service = client.get_json(&format!("/services/{}", escape(id))).await?;
        if let Some(message) = stopped_update(&service) {
            say(message);
            return Ok(ExitCode::FAILURE);
        }
        let filters = json!({ "service": { id: true }, "_up-to-date": { "true": true } });
        let tasks = client.get_json(&format!("/tasks?filters={}", escape(&filters.to_string()))).await?;
        let look = look(&service, &tasks);
        if last.as_ref() != Some(&look) {
            say(match look.job {
                true => format!("job progress: {} out of {} complete", look.running, look.wanted),
                false => format!("overall progress: {} out of {} tasks", look.running, look.wanted),
            });
            look.error.iter().for_each(|error| say(error.clone()));
        }
        if look.job && look.running == look.wanted {
            say("job complete".to_owned());
            return Ok(ExitCode::SUCCESS);
        }
        if look.running < look.wanted {
            stable_since = None;
        } else {
            let monitor = monitor(&service);
            let since = *stable_since.get_or_insert_with(Instant::now);
            let left = monitor.saturating_sub(since.elapsed());
            if left.is_zero() {
                say(format!("verify: Service {id} converged"));
                return Ok(ExitCode::SUCCESS);
            }
            let seconds = left.as_secs() + 1;
            if seconds != shown_seconds {
                shown_seconds = seconds;
                say(format!("verify: Waiting {seconds} seconds to verify that tasks are stable..."));
            }
        }
        last = Some(look);
        tokio::time::sleep(POLL).await;
    }
}

fn look(service: &Value, tasks: &Value) -> Look {
    let job = service.get("JobStatus").is_some();
    let aim = if job { "complete" } else { "running" };
    let tasks: Vec<&Value> =
        tasks.as_array().into_iter().flatten().filter(|task| task["DesiredState"] == aim).collect();
    let declared = ["/Spec/Mode/Replicated/Replicas", "/Spec/Mode/ReplicatedJob/TotalCompletions"];
    let declared = declared.into_iter().find_map(|path| service.pointer(path)?.as_u64());
    // Of a global service all tasks are made at once, as soon as there is one.
    let wanted = declared.unwrap_or_else(|| tasks.len().max(1) as u64);
    let running = tasks.iter().filter(|task| task["Status"]["State"] == aim).count() as u64;
    let error = tasks
        .iter()
        .filter(|task| task["Status"]["State"] != aim)
        .find_map(|task| task["Status"]["Err"].as_str().filter(|text| !text.is_empty()))
        .map(str::to_owned);
    Look { job, running: running.min(wanted), wanted, error }
}

/// The end of an update that did not succeed.
fn stopped_update(service: &Value) -> Option<String> {
    let status = service.get("UpdateStatus")?;
    let message = status["Message"].as_str().unwrap_or_default();
    match status["State"].as_str()? {
        "paused" => Some(format!("service update paused: {message}")),
        "rollback_paused" => Some(format!("service rollback paused: {message}")),
        "rollback_completed" => Some(format!("service rolled back: {message}")),
        _ => None,
    }
}

fn monitor(service: &Value) -> Duration {
    service
        .pointer("/Spec/UpdateConfig/Monitor")
        .and_then(Value::as_u64)
        .filter(|&nanoseconds| nanoseconds > 0)
        .map_or(DEFAULT_MONITOR, Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(desired: &str, state: &str, error: &str) -> Value {
        json!({ "DesiredState": desired, "Status": { "State": state, "Err": error } })
    }

    #[test]
    fn only_wanted_tasks_count_and_their_errors_show() {
        let service = json!({ "Spec": { "Mode": { "Replicated": { "Replicas": 2 } } } });
        let tasks = json!([
            task("running", "running", ""),
            task("running", "pending", "no suitable node"),
            task("shutdown", "running", "old"),
        ]);
        assert_eq!(
            look(&service, &tasks),
            Look { job: false, running: 1, wanted: 2, error: Some("no suitable node".to_owned()) }
        );
    }

    #[test]
    fn a_job_counts_what_is_done() {
        let job = |mode: Value| json!({ "JobStatus": {}, "Spec": { "Mode": mode } });
        let tasks = json!([task("complete", "complete", ""), task("complete", "running", "")]);
        let counts = |service: &Value, tasks: &Value| {
            let look = look(service, tasks);
            (look.running, look.wanted)
        };
        assert_eq!(counts(&job(json!({ "ReplicatedJob": { "TotalCompletions": 3 } })), &tasks), (1, 3));
        assert_eq!(counts(&job(json!({ "GlobalJob": {} })), &tasks), (1, 2));
        assert_eq!(counts(&job(json!({ "GlobalJob": {} })), &json!([])), (0, 1), "there is none yet");
    }

    #[test]
    fn a_paused_update_is_an_end() {
        let service = json!({ "UpdateStatus": { "State": "paused", "Message": "update paused due to x" } });
        assert_eq!(stopped_update(&service).unwrap(), "service update paused: update paused due to x");
        assert_eq!(stopped_update(&json!({})), None);
    }
}
