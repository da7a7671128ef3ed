//! Health checks: when to probe, and what a probe's result means (Docker's `daemon/health.go`).
//!
//! Pure: time comes in as the age of the container.

use std::time::Duration;

use serde::Serialize;
use shoal_model::Healthcheck;
use shoal_runtime::ProbeResult;

/// Results kept for `inspect`.
const LOG_LENGTH: usize = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthStatus {
    Starting,
    Healthy,
    Unhealthy,
}

/// What is known of a container's health.
#[derive(Debug, Clone)]
pub struct Health {
    pub status: HealthStatus,
    /// Failed probes in a row.
    pub failing_streak: u32,
    /// The last five results, the oldest first.
    pub log: Vec<ProbeResult>,
}

impl Default for Health {
    fn default() -> Self {
        Self { status: HealthStatus::Starting, failing_streak: 0, log: Vec::new() }
    }
}

/// The check in force for a container: the service's, each gap filled from the image's, then from
/// Docker's defaults. `None` when there is nothing to check.
pub(crate) fn effective(spec: Option<&Healthcheck>, image: Option<&Healthcheck>) -> Option<Healthcheck> {
    let inherited = image.cloned().unwrap_or_default();
    let own = spec.cloned().unwrap_or_default();
    let pick = |own: Duration, inherited: Duration, default: u64| {
        [own, inherited].into_iter().find(|d| !d.is_zero()).unwrap_or(Duration::from_secs(default))
    };
    let check = Healthcheck {
        interval: pick(own.interval, inherited.interval, 30),
        timeout: pick(own.timeout, inherited.timeout, 30),
        start_period: pick(own.start_period, inherited.start_period, 0),
        start_interval: pick(own.start_interval, inherited.start_interval, 5),
        retries: [own.retries, inherited.retries].into_iter().find(|&n| n > 0).unwrap_or(3),
        test: if own.test.is_empty() { inherited.test } else { own.test },
    };
    command(&check).is_some().then_some(check)
}

/// The program a check runs; `None` when the check is switched off or names nothing.
pub(crate) fn command(check: &Healthcheck) -> Option<Vec<String>> {
    let (kind, rest) = check.test.split_first()?;
    match (kind.as_str(), rest) {
        ("NONE", _) | (_, []) => None,
        ("CMD-SHELL", words) => Some(vec!["/bin/sh".to_owned(), "-c".to_owned(), words.join(" ")]),
        ("CMD", argv) => Some(argv.to_vec()),
        _ => None,
    }
}

/// How long to wait before the next probe of a container of this age.
pub(crate) fn wait(check: &Healthcheck, health: &Health, age: Duration) -> Duration {
    if age < check.start_period && health.status == HealthStatus::Starting {
        check.start_interval
    } else {
        check.interval
    }
}

/// Takes in the result of a probe that was begun when the container had this age.
pub(crate) fn observe(check: &Healthcheck, health: &mut Health, age: Duration, result: ProbeResult) {
    if result.exit_code == 0 {
        health.failing_streak = 0;
        health.status = HealthStatus::Healthy;
    } else if health.status != HealthStatus::Starting || age >= check.start_period {
        health.failing_streak = health.failing_streak.saturating_add(1);
        if health.failing_streak >= check.retries {
            health.status = HealthStatus::Unhealthy;
        }
    }
    if health.log.len() == LOG_LENGTH {
        health.log.remove(0);
    }
    health.log.push(result);
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use proptest::prelude::*;

    use super::*;

    fn check(test: &[&str], retries: u32, start_period: u64) -> Healthcheck {
        Healthcheck {
            test: test.iter().map(|&word| word.to_owned()).collect(),
            retries,
            start_period: Duration::from_secs(start_period),
            ..Healthcheck::default()
        }
    }

    fn result(exit_code: i32) -> ProbeResult {
        ProbeResult {
            exit_code,
            output: String::new(),
            started: Timestamp::UNIX_EPOCH,
            ended: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_check_inherits_what_it_does_not_say() {
        let image = check(&["CMD", "true"], 7, 4);
        let own = check(&[], 0, 9);
        let check_in_force = effective(Some(&own), Some(&image)).unwrap();
        assert_eq!(command(&check_in_force).unwrap(), ["true"]);
        assert_eq!((check_in_force.retries, check_in_force.start_period.as_secs()), (7, 9));
        assert_eq!((check_in_force.interval.as_secs(), check_in_force.timeout.as_secs()), (30, 30));
        assert_eq!(check_in_force.start_interval.as_secs(), 5);
    }

    #[test]
    fn none_switches_an_images_check_off() {
        let image = check(&["CMD-SHELL", "exit 1"], 0, 0);
        assert!(effective(None, Some(&image)).is_some());
        assert!(effective(Some(&check(&["NONE"], 0, 0)), Some(&image)).is_none());
        assert!(effective(None, None).is_none());
    }

    #[test]
    fn failures_do_not_count_in_the_start_period_and_a_success_ends_it() {
        let check = effective(Some(&check(&["CMD", "x"], 2, 10)), None).unwrap();
        let mut health = Health::default();
        assert_eq!(wait(&check, &health, Duration::ZERO).as_secs(), 5);
        for age in [0, 5, 9] {
            observe(&check, &mut health, Duration::from_secs(age), result(1));
        }
        assert_eq!((health.status, health.failing_streak), (HealthStatus::Starting, 0));
        observe(&check, &mut health, Duration::from_secs(9), result(0));
        assert_eq!(health.status, HealthStatus::Healthy);
        assert_eq!(wait(&check, &health, Duration::from_secs(9)).as_secs(), 30);
        observe(&check, &mut health, Duration::from_secs(9), result(1));
        assert_eq!((health.status, health.failing_streak), (HealthStatus::Healthy, 1));
        observe(&check, &mut health, Duration::from_secs(9), result(-1));
        assert_eq!(health.status, HealthStatus::Unhealthy);
    }

    proptest! {
        #[test]
        fn unhealthy_means_retries_failures_in_a_row(codes in proptest::collection::vec(0i32..2, 0..40), retries in 1u32..5) {
            let check = effective(Some(&check(&["CMD", "x"], retries, 0)), None).unwrap();
            let mut health = Health::default();
            let mut streak = 0;
            for code in codes {
                let before = health.status;
                observe(&check, &mut health, Duration::ZERO, result(code));
                streak = if code == 0 { 0 } else { streak + 1 };
                let expected = match (code, streak >= retries) {
                    (0, _) => HealthStatus::Healthy,
                    (_, true) => HealthStatus::Unhealthy,
                    (_, false) => before,
                };
                prop_assert_eq!(health.status, expected);
                prop_assert!(health.log.len() <= LOG_LENGTH);
            }
        }
    }
}
