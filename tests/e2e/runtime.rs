//! Containers: what they see, what they say, and that they outlive us.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use shoal_e2e::{Node, NodeOptions, PATIENCE, process, wait_until};

#[test]
fn the_container_sees_dockers_world() {
    let node = Node::cluster();
    node.network("mynet");
    let flags =
        ["--network", "mynet", "--env", "GREETING=hello", "--hostname", "box", "--stop-grace-period", "1s"];
    let task = &node.service("web", 1, &flags, &["idle"])[0];
    let sees = |command: &str| node.exec(task, &["sh", "-c", command]).ok();
    assert_eq!(sees("grep CapEff /proc/1/status").split_whitespace().nth(1), Some("00000000a80425fb"));
    assert_eq!(sees("grep Seccomp: /proc/1/status").split_whitespace().nth(1), Some("2"));
    assert_eq!(sees("echo $GREETING; hostname"), "hello\nbox\n");
    let resolv = sees("cat /etc/resolv.conf");
    assert!(resolv.lines().any(|line| line == "nameserver 127.0.0.11"), "{resolv}");
    assert!(resolv.contains("ndots:0"), "{resolv}");
    assert!(sees("cat /etc/hosts").contains(&format!("{}\tbox", task.address("mynet"))));
    // Docker masks these; kernels differ in which of them they have.
    let masked = ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug", "/sys/firmware"];
    let present: Vec<&str> = masked.into_iter().filter(|path| std::path::Path::new(path).exists()).collect();
    assert!(!present.is_empty(), "this kernel has none of {masked:?}");
    for path in present {
        let seen = sees(&format!("if test -d {path}; then ls {path}; else cat {path}; fi"));
        assert_eq!(seen, "", "{path} is masked");
    }
    assert_ne!(node.exec(task, &["sh", "-c", "echo b > /proc/sysrq-trigger"]).code, 0);
    assert_ne!(node.exec(task, &["mount", "-t", "tmpfs", "none", "/tmp"]).code, 0);
    assert_eq!(
        sees("test -c /dev/null && test -c /dev/urandom && test ! -e /dev/sda && echo fine"),
        "fine\n"
    );
    node.finish();
}

/// `--init`: the program is not the first process, is told to stop all the same, and leaves no zombie.
#[test]
fn an_init_reaps_and_passes_signals_on() {
    let node = Node::cluster();
    node.network("mynet");
    let script = "trap 'echo told; exit 5' TERM; (sh -c 'sleep 0.1 & :' &); while :; do sleep 0.1; done";
    let flags = ["--network", "mynet", "--init", "--restart-condition", "none"];
    let task = &node.service("web", 1, &flags, &["sh", "-c", script])[0];
    assert_eq!(task.detail["HostConfig"]["Init"], true);
    assert_eq!(task.detail["Path"], "sh", "what the user wants to run is shown");
    let first = node.exec(task, &["cat", "/proc/1/cmdline"]).ok();
    assert!(first.starts_with("/sbin/docker-init\0--\0sh\0-c\0"), "{first}");
    wait_until(PATIENCE, "the orphan has ended and is gone", || {
        let processes = node.exec(task, &["sh", "-c", "cat /proc/[0-9]*/stat"]).ok();
        let orphans = processes.lines().filter(|line| line.contains(" Z ")).count();
        if orphans == 0 && processes.lines().count() >= 3 { Ok(()) } else { Err(processes) }
    });
    node.docker(&["stop", &task.id]).ok();
    let told = ps_of(&node, "web");
    assert!(told.contains("task: non-zero exit (5)"), "{told}");
    node.finish();
}

fn ps_of(node: &Node, service: &str) -> String {
    wait_until(PATIENCE, "the task has ended", || {
        let told = node.docker(&["service", "ps", "--no-trunc", service]).ok();
        if told.contains("non-zero exit") || told.contains("Complete") { Ok(told) } else { Err(told) }
    })
}

#[test]
fn exec_passes_input_output_and_exit_codes() {
    let node = Node::cluster();
    node.network("mynet");
    let task = &node.service("web", 1, &["--network", "mynet"], &["idle"])[0];
    let both = node.exec(task, &["sh", "-c", "echo out; echo err >&2; exit 3"]);
    assert_eq!((both.code, both.stdout.as_str(), both.stderr.as_str()), (3, "out\n", "err\n"));
    let piped = node.docker_with_input(&["exec", "-i", &task.id, "wc", "-c"], &[b'x'; 300_000]);
    assert_eq!(piped.ok().trim(), "300000");
    let missing = node.exec(task, &["nosuchprogram"]);
    assert!(matches!(missing.code, 126 | 127), "{missing}");
    assert!(missing.to_string().contains("executable file not found in $PATH"), "{missing}");
    let elsewhere = node.docker(&[
        "exec",
        "-w",
        "/tmp",
        "-e",
        "A=b",
        "-u",
        "65534",
        &task.id,
        "sh",
        "-c",
        "pwd; echo $A; id -u",
    ]);
    assert_eq!(elsewhere.ok(), "/tmp\nb\n65534\n");
    node.finish();
}

#[test]
fn logs_keep_streams_order_and_tail() {
    let node = Node::cluster();
    node.network("mynet");
    let script = "for i in 1 2 3 4 5; do echo out $i; done; echo problem >&2; exec idle";
    let task = &node.service("talker", 1, &["--network", "mynet"], &["sh", "-c", script])[0];
    wait_until(PATIENCE, "everything is in the log", || {
        let logs = node.docker(&["logs", &task.id]).ok();
        if logs.lines().count() == 5 { Ok(()) } else { Err(logs) }
    });
    let logs = node.docker(&["logs", &task.id]);
    assert_eq!(logs.stdout, "out 1\nout 2\nout 3\nout 4\nout 5\n");
    assert_eq!(logs.stderr, "problem\n");
    assert_eq!(node.docker(&["logs", "--tail", "2", &task.id]).ok(), "out 5\n");
    let stamped = node.docker(&["logs", "-t", "--tail", "2", &task.id]).ok();
    assert!(stamped.starts_with("20") && stamped.contains("Z out 5"), "{stamped}");
    let service = node.docker(&["service", "logs", "talker"]).ok();
    assert!(
        service.lines().all(|line| line.starts_with("talker.1.") && line.contains("@node1    | ")),
        "{service}"
    );
    assert_eq!(service.lines().count(), 5, "{service}");
    node.finish();
}

#[test]
fn containers_outlive_the_daemon_and_keep_their_exit_codes() {
    let mut node = Node::cluster();
    node.network("mynet");
    let stays = node.service("stays", 1, &["--network", "mynet"], &["idle"])[0].clone();
    let flags = ["--network", "mynet", "--restart-condition", "none"];
    let ends = node.service(
        "ends",
        1,
        &flags,
        &["sh", "-c", "while ! test -f /tmp/end; do sleep 0.1; done; exit 7"],
    );
    let ends = &ends[0];
    node.stop_daemon();
    assert!(
        std::path::Path::new(&format!("/proc/{}", stays.pid)).exists(),
        "a stopped daemon stops no container"
    );
    node.start_daemon();
    assert_eq!(node.running("stays", 1)[0].pid, stays.pid);
    node.exec(ends, &["sh", "-c", "(sleep 1; touch /tmp/end) > /dev/null 2>&1 &"]).ok();
    node.kill_daemon();
    wait_until(PATIENCE, "the container ended while nobody looked", || {
        let state = std::fs::read_to_string(format!("/proc/{}/stat", ends.pid)).unwrap_or_default();
        if state.is_empty() || state.contains(" Z ") { Ok(()) } else { Err(state) }
    });
    node.start_daemon();
    assert_eq!(node.running("stays", 1)[0].pid, stays.pid);
    wait_until(PATIENCE, "its exit code is told", || {
        let told = node.docker(&["service", "ps", "--no-trunc", "ends"]).ok();
        if told.contains("task: non-zero exit (7)") { Ok(()) } else { Err(told) }
    });
    node.finish();
}

/// 1 MB a second, through ten seconds without a daemon: every line is there, in order.
#[test]
fn output_loses_nothing_while_the_daemon_is_away() {
    const LINES_PER_SECOND: usize = 10_000;
    let mut node = Node::cluster();
    node.network("mynet");
    // Room enough that rotation takes nothing away before it is counted.
    let flags = ["--network", "mynet", "--log-driver", "json-file", "--log-opt", "max-size=200m"];
    // 100 bytes a line, a thousand lines each tenth of a second.
    let program = r#"BEGIN { for (;;) { for (i = 0; i < 1000; i++) printf "%09d %089d\n", n++, 0; fflush(); system("usleep 100000") } }"#;
    let task = node.service("chatty", 1, &flags, &["awk", program])[0].clone();
    let lines = |node: &Node| node.docker(&["logs", &task.id]).ok().lines().count();
    wait_until(PATIENCE, "it talks", || {
        if lines(&node) > LINES_PER_SECOND / 2 { Ok(()) } else { Err("silence".to_owned()) }
    });
    node.kill_daemon();
    let away = Instant::now();
    while away.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(100));
    }
    node.start_daemon();
    assert_eq!(node.running("chatty", 1)[0].pid, task.pid, "it was not restarted");
    let text = node.docker(&["logs", &task.id]).ok();
    let numbers: Vec<usize> =
        text.lines().map(|line| line.split(' ').next().unwrap().parse().unwrap()).collect();
    assert!(numbers.len() > 7 * LINES_PER_SECOND, "only {} lines", numbers.len());
    let gap = numbers.windows(2).find(|pair| pair[1] != pair[0] + 1);
    assert_eq!(gap, None, "of {} lines", numbers.len());
    assert_eq!(numbers[0], 0, "the oldest lines are still there");
    node.finish();
}

/// A reader that takes nothing for a while, of a log longer than anything between would hold.
#[test]
fn a_slow_reader_of_a_services_log_misses_nothing_and_costs_no_memory() {
    const LINES: usize = 1_500_000;
    let node = Node::cluster();
    node.network("mynet");
    let flags = ["--network", "mynet", "--log-driver", "json-file", "--log-opt", "max-size=500m"];
    let script = format!("awk 'BEGIN {{ for (i = 0; i < {LINES}; i++) print i }}'; exec idle");
    let task = &node.service("talker", 1, &flags, &["sh", "-c", &script])[0];
    wait_until(PATIENCE, "everything is in the log", || {
        let last = node.docker(&["logs", "--tail", "1", &task.id]).ok();
        if last.trim() == (LINES - 1).to_string() { Ok(()) } else { Err(last) }
    });
    let before = process::memory(node.daemon_pid());
    let mut command = node.docker_command(&["service", "logs", "--raw", "talker"]);
    let mut reader = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(reader.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!(lines.next().as_deref(), Some("0"));
    let mut spent = process::cpu_time(node.daemon_pid());
    wait_until(PATIENCE, "the daemon waits for the reader", || {
        std::thread::sleep(Duration::from_millis(500));
        let before = std::mem::replace(&mut spent, process::cpu_time(node.daemon_pid()));
        // It goes on with its heartbeats.
        if spent - before < Duration::from_millis(50) { Ok(()) } else { Err(format!("{:?}", spent - before)) }
    });
    let grown = process::memory(node.daemon_pid()).saturating_sub(before);
    assert!(grown < 64 << 20, "the daemon keeps {} MiB for a reader that does not read", grown >> 20);
    let numbers = lines.map(|line| line.parse::<usize>().unwrap_or_else(|_| panic!("{line}")));
    assert!(numbers.eq(1..LINES), "a line is missing, or out of order");
    assert_eq!(process::wait(&mut reader, PATIENCE), Some(0));
    node.finish();
}

#[test]
fn a_containerd_restart_is_survived() {
    let mut node = Node::cluster_with(NodeOptions { own_containerd: true, ..NodeOptions::default() });
    node.network("mynet");
    let task =
        node.service("web", 1, &["--network", "mynet", "--restart-delay", "100ms"], &["idle"])[0].clone();
    node.kill_containerd();
    node.start_containerd();
    wait_until(PATIENCE, "the container is still the same", || {
        let now = node.containers("web");
        if now.len() == 1 && now[0].pid == task.pid { Ok(()) } else { Err(format!("{now:?}")) }
    });
    assert_eq!(node.exec(&task, &["echo", "alive"]).ok(), "alive\n");
    process::signal(task.pid, Signal::SIGKILL);
    wait_until(PATIENCE, "a death after the restart is noticed", || {
        let now = node.containers("web");
        if now.len() == 1 && now[0].id != task.id {
            Ok(())
        } else {
            Err(format!("{now:?}\n{}", node.log_tail()))
        }
    });
    node.finish();
}
