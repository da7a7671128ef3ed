//! Containers against the real containerd.

use std::collections::HashSet;
use std::process::Command;
use std::time::Duration;

use crate::support::{World, shell, text, words};
use futures::StreamExt;
use shoal_model::{ContainerId, ContainerSpec, LogSelector, LogSource, Mount, MountKind, Resources, Ulimit};
use shoal_runtime::{ContainerState, Error, ExecConfig};
use tokio::io::AsyncWriteExt;

#[tokio::test]
async fn a_container_runs_to_its_end() {
    let world = World::with_image().await;
    let runtime = &world.runtime;
    let id = world.create(shell("echo out; echo err >&2; printf end; exit 3")).await;
    let container = runtime.container(&id).await.unwrap();
    assert_eq!(container.state, ContainerState::Created);
    assert_eq!(container.argv[..2], ["sh", "-c"]);
    assert_eq!(container.config.labels["who"], "test");
    let twice = runtime.create(&container.config).await;
    assert!(matches!(twice, Err(Error::ContainerExists(_))));

    runtime.start(&id).await.unwrap();
    let exit = runtime.wait(&id).await.unwrap();
    assert_eq!((exit.code, exit.oom), (3, false));
    assert_eq!(runtime.wait(&id).await.unwrap(), exit, "also a second time");
    let log = world.log(&id).await;
    let of = |source: LogSource| {
        text(&log.iter().filter(|entry| entry.source == source).cloned().collect::<Vec<_>>())
    };
    assert_eq!((of(LogSource::Stdout), of(LogSource::Stderr)), ("out\nend".to_owned(), "err\n".to_owned()));
    let state = world.reconnect().await.container(&id).await.unwrap().state;
    assert!(matches!(state, ContainerState::Exited { exit: known, .. } if known == exit), "{state:?}");
    assert!(matches!(runtime.start(&id).await, Err(Error::Start(_))), "it runs once");
    assert!(matches!(runtime.kill(&id, 9).await, Err(Error::NotRunning(_))));
    assert_eq!(world.ctr(&["tasks", "ls", "-q"]), [""; 0], "an ended container holds no process");

    runtime.remove(&id).await.unwrap();
    runtime.remove(&id).await.unwrap();
    assert!(matches!(runtime.container(&id).await, Err(Error::NoSuchContainer(_))));
    assert!(matches!(runtime.wait(&id).await, Err(Error::NoSuchContainer(_))));
    assert!(!world.config.data_dir.join("containers").join(id.as_str()).exists());
}

#[tokio::test]
async fn what_cannot_start_says_why() {
    let world = World::with_image().await;
    let id = world.create(ContainerSpec { args: words(&["nosuchcmd"]), ..ContainerSpec::default() }).await;
    let error = world.runtime.start(&id).await.unwrap_err();
    let expected = "failed to create shim task: OCI runtime create failed: runc create failed: unable to start \
                    container process: exec: \"nosuchcmd\": executable file not found in $PATH: unknown";
    assert_eq!(error.to_string(), expected);
    assert_eq!(world.runtime.container(&id).await.unwrap().state, ContainerState::Created);
    world.runtime.remove(&id).await.unwrap();

    let refused = |spec: ContainerSpec, image: &str| {
        let mut config = crate::support::container(spec);
        config.image = image.to_owned();
        let runtime = world.runtime.clone();
        async move { runtime.create(&config).await.unwrap_err().to_string() }
    };
    assert_eq!(refused(shell("true"), "nosuch:1").await, "No such image: nosuch:1");
    let user = ContainerSpec { user: "nobody".to_owned(), ..shell("true") };
    assert_eq!(
        refused(user, "busybox").await,
        "unable to find user nobody: no matching entries in passwd file"
    );
    let mount = Mount { kind: MountKind::bind("/no/such"), target: "/m".to_owned(), read_only: false };
    let text = refused(ContainerSpec { mounts: vec![mount], ..shell("true") }, "busybox").await;
    assert_eq!(text, "invalid mount config for type \"bind\": bind source path does not exist: /no/such");
    let dirs = std::fs::read_dir(world.config.data_dir.join("containers")).unwrap();
    assert_eq!(dirs.count(), 0, "a refused container leaves nothing");
    assert_eq!(world.ctr(&["snapshots", "ls"]).len(), 2, "the heading and the layer");
}

#[tokio::test]
async fn signals_reach_the_first_process() {
    let world = World::with_image().await;
    let id = world.start(shell("trap 'exit 9' TERM; echo ready; while :; do sleep 0.1; done")).await;
    let selector = LogSelector { follow: true, ..LogSelector::default() };
    let mut log = world.runtime.logs(&id, selector);
    assert_eq!(log.next().await.unwrap().unwrap().line, b"ready\n");
    assert!(!world.runtime.processes(&id).await.unwrap().is_empty());
    world.runtime.kill(&id, 15).await.unwrap();
    assert_eq!(world.runtime.wait(&id).await.unwrap().code, 9);
    assert!(log.next().await.is_none(), "the log ends with the container");
    let id = world.start(shell("sleep 100")).await;
    world.runtime.kill(&id, 9).await.unwrap();
    assert_eq!(world.runtime.wait(&id).await.unwrap().code, 137);
    let id = world.start(shell("sleep 100")).await;
    world.runtime.remove(&id).await.unwrap();
}

#[tokio::test]
async fn memory_limits_kill_and_say_so() {
    let world = World::with_image().await;
    let id = world
        .create_with(shell("tail /dev/zero"), |config| {
            config.resources = Resources { limit_memory: 16 << 20, ..Resources::default() };
        })
        .await;
    world.runtime.start(&id).await.unwrap();
    let exit = world.runtime.wait(&id).await.unwrap();
    assert_eq!((exit.code, exit.oom), (137, true));
}

#[tokio::test]
async fn dockers_restrictions_are_in_force() {
    let world = World::with_image().await;
    let script = "id -u; id -G; grep -E '^(CapEff|CapBnd|Seccomp|NoNewPrivs):' /proc/self/status; \
                  head -c 1 /proc/interrupts | wc -c; ls /sys/firmware | wc -l; \
                  touch /proc/sys/vm/swappiness 2>/dev/null || echo proc-sys; \
                  mkdir /sys/x 2>/dev/null || echo sys; unshare -U true 2>/dev/null || echo unshare; \
                  mknod /tmp-dev b 7 0 && ! head -c1 /tmp-dev 2>/dev/null && echo device; \
                  df -k /dev/shm | awk 'END{print $2}'; hostname; cat /etc/hostname /etc/hosts /etc/resolv.conf; \
                  head -c 2 /dev/urandom | wc -c; echo $PATH";
    let (exit, output) = world.run_spec(ContainerSpec { hostname: "box".to_owned(), ..shell(script) }).await;
    let expected = "0\n0 10\nCapEff:\t00000000a80425fb\nCapBnd:\t00000000a80425fb\nNoNewPrivs:\t0\nSeccomp:\t2\n\
                    0\n0\nproc-sys\nsys\nunshare\ndevice\n65536\nbox\nbox\n127.0.0.1 localhost\n\
                    nameserver 127.0.0.11\noptions ndots:0\n2\n\
                    /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n";
    assert_eq!(output, expected);
    assert_eq!(exit.code, 0);
}

#[tokio::test]
async fn a_containers_wishes_are_granted() {
    let world = World::with_image().await;
    let shared = world.dir.path().join("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::write(shared.join("f"), "bound\n").unwrap();
    let bind = |target: &str, read_only| Mount {
        kind: MountKind::bind(shared.to_string_lossy()),
        target: target.to_owned(),
        read_only,
    };
    let tmpfs = Mount {
        kind: MountKind::Tmpfs { size: Some(1 << 20), mode: Some(0o1777) },
        target: "/t".to_owned(),
        read_only: false,
    };
    let script = "id -u; id -g; id -G; grep -E '^Cap(Eff|Bnd):' /proc/self/status; pwd; echo $A; cat /rw/f; \
                  touch /ro/x 2>/dev/null || echo ro; touch /x 2>/dev/null || echo root-ro; \
                  df -k /t | awk 'END{print $2}'; touch /t/x && echo t; ulimit -n; \
                  cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/pids/pids.max \
                      /sys/fs/cgroup/cpu/cpu.cfs_quota_us";
    let spec = ContainerSpec {
        user: "www".to_owned(),
        groups: words(&["wheel"]),
        env: words(&["A=b"]),
        dir: "/made".to_owned(),
        read_only: true,
        mounts: vec![bind("/rw", false), bind("/ro", true), tmpfs],
        capability_add: words(&["NET_ADMIN"]),
        capability_drop: words(&["CHOWN"]),
        ulimits: vec![Ulimit { name: "nofile".to_owned(), soft: 123, hard: 456 }],
        ..shell(script)
    };
    let id = world
        .create_with(spec, |config| {
            config.resources = Resources {
                limit_memory: 64 << 20,
                limit_pids: 50,
                limit_nano_cpus: 500_000_000,
                ..Resources::default()
            };
        })
        .await;
    world.runtime.start(&id).await.unwrap();
    world.runtime.wait(&id).await.unwrap();
    let expected = "33\n34\n34 10 50\nCapEff:\t0000000000000000\nCapBnd:\t00000000a80435fa\n/made\nb\nbound\nro\n\
                    root-ro\n1024\nt\n123\n67108864\n50\n50000\n";
    assert_eq!(text(&world.log(&id).await), expected);
}

#[tokio::test]
async fn a_network_namespace_is_joined() {
    struct Netns(String);
    impl Drop for Netns {
        fn drop(&mut self) {
            Command::new("ip").args(["netns", "del", &self.0]).status().ok();
        }
    }
    let netns = Netns(format!("shoal-rt-{:08x}", rand::random::<u32>()));
    assert!(Command::new("ip").args(["netns", "add", &netns.0]).status().unwrap().success());
    let world = World::with_image().await;
    let script = "ls /sys/class/net; cat /proc/sys/net/ipv4/ip_unprivileged_port_start";
    let id = world
        .create_with(shell(script), |config| config.netns = Some(format!("/run/netns/{}", netns.0).into()))
        .await;
    world.runtime.start(&id).await.unwrap();
    world.runtime.wait(&id).await.unwrap();
    assert_eq!(text(&world.log(&id).await), "lo\n0\n");
}

#[tokio::test]
async fn exec_runs_beside_the_container() {
    let world = World::with_image().await;
    let id = world.start(ContainerSpec { env: words(&["A=1"]), ..shell("sleep 100") }).await;
    let exec = |config: ExecConfig| world.runtime.exec(&id, config);
    let run = async |config: ExecConfig| {
        let mut exec = exec(config).await.unwrap();
        let mut output = Vec::new();
        while let Some((_, bytes)) = exec.output.next().await {
            output.extend_from_slice(&bytes);
        }
        (exec.wait().await.unwrap(), String::from_utf8(output).unwrap())
    };
    let config = |script: &str| ExecConfig { argv: words(&["sh", "-c", script]), ..ExecConfig::default() };
    assert_eq!(run(config("echo $A; exit 5")).await, (5, "1\n".to_owned()));
    let full = ExecConfig {
        env: words(&["A=2"]),
        dir: "/bin".to_owned(),
        user: "www:extra".to_owned(),
        ..config("echo $A $PWD $(id -u) $(id -G); grep CapEff /proc/self/status")
    };
    assert_eq!(run(full).await, (0, "2 /bin 33 50\nCapEff:\t0000000000000000\n".to_owned()));
    let (_, privileged) =
        run(ExecConfig { privileged: true, ..config("grep CapEff /proc/self/status") }).await;
    assert!(!privileged.contains("a80425fb"), "{privileged}");
    let (code, big) = run(config("head -c 3000000 /dev/zero | tr '\\0' x")).await;
    assert_eq!((code, big.len()), (0, 3_000_000));
    // A child that holds the output open does not hold the exec.
    assert_eq!(run(config("sleep 60 & echo done")).await, (0, "done\n".to_owned()));

    let mut cat =
        exec(ExecConfig { argv: words(&["cat"]), stdin: true, ..ExecConfig::default() }).await.unwrap();
    let mut stdin = cat.stdin.take().unwrap();
    stdin.write_all(b"hello").await.unwrap();
    stdin.shutdown().await.unwrap();
    assert_eq!(cat.output.next().await.unwrap().1, "hello");
    assert_eq!(cat.wait().await.unwrap(), 0, "the end of the input ends it");

    let missing = exec(ExecConfig { argv: words(&["nosuch"]), ..ExecConfig::default() }).await.err().unwrap();
    let expected = "OCI runtime exec failed: exec failed: unable to start container process: exec: \"nosuch\": \
                    executable file not found in $PATH: unknown";
    assert_eq!(missing.to_string(), expected);
    let fifos = world.config.run_dir.join("exec").join(id.as_str());
    crate::support::eventually("removal of FIFOs", async || {
        std::fs::read_dir(&fifos).unwrap().next().is_none()
    })
    .await;
    world.runtime.kill(&id, 9).await.unwrap();
    world.runtime.wait(&id).await.unwrap();
    assert!(matches!(exec(config("true")).await, Err(Error::NotRunning(_))));
}

#[tokio::test]
async fn exec_has_a_terminal() {
    let world = World::with_image().await;
    let id = world.start(shell("sleep 100")).await;
    let config = ExecConfig { argv: words(&["sh"]), tty: true, stdin: true, ..ExecConfig::default() };
    let mut exec = world.runtime.exec(&id, config).await.unwrap();
    exec.resize(132, 43).await.unwrap();
    let mut stdin = exec.stdin.take().unwrap();
    stdin.write_all(b"stty size; tty; echo $TERM; exit 4\n").await.unwrap();
    let mut output = Vec::new();
    while let Some((source, bytes)) = exec.output.next().await {
        assert_eq!(source, LogSource::Stdout);
        output.extend_from_slice(&bytes);
    }
    let output = String::from_utf8_lossy(&output).into_owned();
    assert!(output.contains("43 132\r\n/dev/pts/") && output.contains("xterm\r\n"), "{output:?}");
    assert_eq!(exec.wait().await.unwrap(), 4);
}

#[tokio::test]
async fn a_container_has_a_terminal() {
    let world = World::with_image().await;
    let (exit, output) =
        world.run_spec(ContainerSpec { tty: true, ..shell("test -t 1 && echo tty $TERM") }).await;
    assert_eq!((exit.code, output.as_str()), (0, "tty xterm\r\n"));
}

#[tokio::test]
async fn probes_have_deadlines() {
    let world = World::with_image().await;
    let id = world.start(shell("sleep 100")).await;
    let probe = |script: &str, timeout| world.runtime.probe(&id, words(&["sh", "-c", script]), timeout);
    let long = Duration::from_secs(20);
    let good = probe("echo fine", long).await.unwrap();
    assert_eq!((good.exit_code, good.output.as_str()), (0, "fine\n"));
    let bad = probe("echo bad >&2; exit 1", long).await.unwrap();
    assert_eq!((bad.exit_code, bad.output.as_str()), (1, "bad\n"));
    assert_eq!(probe("head -c 9999 /dev/zero", long).await.unwrap().output.len(), 4096);
    let slow = probe("sleep 77", Duration::from_millis(1500)).await.unwrap();
    assert_eq!((slow.exit_code, slow.output.as_str()), (-1, "Health check exceeded timeout (1.5s)"));
    assert!(slow.ended.duration_since(slow.started) < jiff::SignedDuration::from_secs(15));
    let missing = world.runtime.probe(&id, words(&["nosuch"]), long).await.unwrap();
    assert_eq!(missing.exit_code, -1);
    assert!(missing.output.contains("executable file not found"), "{}", missing.output);
    let gone = world.runtime.probe(&ContainerId::new("ab".repeat(32)), words(&["true"]), long).await;
    assert!(matches!(gone, Err(Error::NoSuchContainer(_))));
}

#[tokio::test]
async fn prune_removes_what_nobody_claims() {
    let world = World::with_image().await;
    let (kept, doomed) = (world.start(shell("sleep 100")).await, world.start(shell("sleep 100")).await);
    // Half-made: a snapshot without a container, a directory without either, a killed load's files.
    let layer = world.runtime.image("busybox").await.unwrap().layers.remove(0);
    world.ctr(&["snapshots", "prepare", &"cd".repeat(32), &layer]);
    let stray = world.config.data_dir.join("containers").join("ef".repeat(32));
    let scratch = world.config.data_dir.join("tmp/1-x");
    std::fs::create_dir_all(&stray).unwrap();
    std::fs::create_dir_all(&scratch).unwrap();
    world.runtime.prune(&HashSet::from([kept.clone()])).await.unwrap();
    let left = world.runtime.containers().await.unwrap();
    assert_eq!(left.iter().map(|container| &container.config.id).collect::<Vec<_>>(), [&kept]);
    assert!(matches!(left[0].state, ContainerState::Running { .. }));
    assert!(!stray.exists() && !scratch.exists());
    assert!(!world.config.data_dir.join("containers").join(doomed.as_str()).exists());
    assert_eq!(world.ctr(&["snapshots", "ls"]).len(), 3, "the heading, the layer, the kept one's");

    world.runtime.purge().await.unwrap();
    assert_eq!(world.left_overs(), [""; 0]);
    let namespaces = world.ctr(&["namespaces", "ls", "-q"]);
    assert!(!namespaces.contains(&world.config.namespace), "{namespaces:?}");
    assert!(!world.config.data_dir.join("containers").exists());
}
