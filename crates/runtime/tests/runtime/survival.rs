//! What outlives the daemon, containerd and the machine; and logs, which must lose nothing.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use crate::support::{World, eventually, shell, text, words};
use futures::StreamExt;
use shoal_model::{ContainerId, ContainerSpec, Labels, LogSelector, Mount, MountKind};
use shoal_runtime::{ContainerState, Runtime};
use tempfile::TempDir;

/// Sequence numbers in lines of a thousand characters.
const CHATTER: &str = "awk 'BEGIN{for(i=0;i<COUNT;i++){printf \"%d %0990d\\n\", i, 0; if(i%100==99){fflush(); system(\"sleep 0.1\")}}}'";

fn numbers(log: &str) -> Vec<u64> {
    log.lines().map(|line| line.split(' ').next().unwrap().parse().unwrap()).collect()
}

#[tokio::test]
async fn nothing_is_lost_while_nobody_is_there() {
    let mut world = World::with_image().await;
    let script = format!("{}; exit 7", CHATTER.replace("COUNT", "3000"));
    let id = world.create(shell(&script)).await;
    // Started by a client that goes, with all its tasks, as when the daemon is killed.
    let (config, started) = (world.config.clone(), id.clone());
    let start = move || {
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio.block_on(async { Runtime::connect(config).await.unwrap().start(&started).await.unwrap() })
    };
    tokio::task::spawn_blocking(start).await.unwrap();
    let log = world.runtime.container(&id).await.unwrap().dir.join("json.log");
    eventually("output", async || std::fs::metadata(&log).is_ok_and(|log| log.len() > 500_000)).await;
    world.runtime = world.reconnect().await;
    let found = world.runtime.containers().await.unwrap();
    assert!(matches!(found[0].state, ContainerState::Running { .. }), "{:?}", found[0].state);
    assert_eq!(found[0].config.id, id);
    assert_eq!(world.runtime.wait(&id).await.unwrap().code, 7);
    assert_eq!(numbers(&text(&world.log(&id).await)), (0..3000).collect::<Vec<_>>());
}

/// On a busy machine a shim takes longer to answer than containerd waits for it.
#[tokio::test]
async fn a_container_whose_shim_does_not_answer_is_not_taken_for_gone() {
    let world = World::with_image().await;
    let id = world.start(shell("sleep 600 & wait")).await;
    let ContainerState::Running { pid, .. } = world.runtime.container(&id).await.unwrap().state else {
        panic!("it runs")
    };
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let shim = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().to_owned();
    let tell = |signal: &str| assert!(Command::new("kill").args([signal, &shim]).status().unwrap().success());
    tell("-STOP");
    let states =
        [world.runtime.container(&id).await, Ok(world.runtime.containers().await.unwrap().remove(0))];
    tell("-CONT");
    for state in states.map(|container| container.unwrap().state) {
        assert!(matches!(state, ContainerState::Running { pid: seen, .. } if seen == pid), "{state:?}");
    }
}

/// Whoever waits for a container's end also clears away its process. Going away in the middle, as a
/// killed task's waiter does, must leave that to nobody but itself.
#[tokio::test]
async fn a_waiter_that_goes_away_leaves_no_shim() {
    let world = World::with_image().await;
    for delay in 0..40 {
        let id = world.start(shell("sleep 600")).await;
        let (runtime, waited) = (world.runtime.clone(), id.clone());
        let waiter = tokio::spawn(async move { runtime.wait(&waited).await });
        world.runtime.kill(&id, 9).await.unwrap();
        tokio::time::sleep(Duration::from_millis(delay * 2)).await;
        waiter.abort();
        waiter.await.ok();
        world.runtime.remove(&id).await.unwrap();
    }
    eventually("the end of every shim", async || world.shims().is_empty()).await;
}

/// One waits, one lists, one removes: each clears away what has ended.
#[tokio::test]
async fn several_may_clear_away_one_container() {
    let world = World::with_image().await;
    for _ in 0..10 {
        let id = world.start(shell("sleep 600")).await;
        let ask = |runtime: Runtime, id: ContainerId| async move { runtime.wait(&id).await.map(drop) };
        let waiting = [0, 1].map(|_| tokio::spawn(ask(world.runtime.clone(), id.clone())));
        world.runtime.kill(&id, 9).await.unwrap();
        let (first, second) = tokio::join!(world.runtime.remove(&id), world.runtime.remove(&id));
        first.and(second).expect("both find it removed");
        for waiter in waiting {
            waiter.await.unwrap().ok();
        }
    }
    eventually("the end of every shim", async || world.shims().is_empty()).await;
    assert_eq!(world.ctr(&["containers", "ls", "-q"]), [""; 0]);
}

#[tokio::test]
async fn an_exit_in_our_absence_is_found() {
    let world = World::with_image().await;
    let id = world.start(shell("exit 11")).await;
    eventually("exit", async || world.ctr(&["tasks", "ls"]).iter().any(|line| line.contains("STOPPED")))
        .await;
    let runtime = world.reconnect().await;
    let state = runtime.containers().await.unwrap().remove(0).state;
    assert!(matches!(state, ContainerState::Exited { exit, .. } if exit.code == 11), "{state:?}");
    assert_eq!(runtime.wait(&id).await.unwrap().code, 11);
}

#[tokio::test]
async fn a_log_is_followed_across_rotations_and_kept_within_its_bounds() {
    let world = World::with_image().await;
    let script = CHATTER.replace("COUNT", "2000");
    let options = |size: &str, files: &str| {
        Labels::from([("max-size".to_owned(), size.to_owned()), ("max-file".to_owned(), files.to_owned())])
    };
    let id = world.create_with(shell(&script), |config| config.log_options = options("100k", "4")).await;
    let follow = LogSelector { follow: true, ..LogSelector::default() };
    // Before it is started: the follower waits for the logger.
    let followed =
        tokio::spawn(world.runtime.logs(&id, follow).map(|entry| entry.unwrap()).collect::<Vec<_>>());
    world.runtime.start(&id).await.unwrap();
    world.runtime.wait(&id).await.unwrap();
    let followed = tokio::time::timeout(Duration::from_secs(20), followed).await.unwrap().unwrap();
    assert_eq!(numbers(&text(&followed)), (0..2000).collect::<Vec<_>>());
    let dir = world.runtime.container(&id).await.unwrap().dir;
    let mut sizes = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        if entry.file_name().to_string_lossy().starts_with("json.log") {
            sizes.push(entry.metadata().unwrap().len());
        }
    }
    assert_eq!(sizes.len(), 4);
    assert!(sizes.iter().all(|&size| size <= 100 << 10), "{sizes:?}");
    let select = async |selector: LogSelector| {
        let entries = world.runtime.logs(&id, selector).map(|entry| entry.unwrap()).collect::<Vec<_>>().await;
        numbers(&text(&entries))
    };
    let last = LogSelector { tail: Some(150), ..LogSelector::default() };
    assert_eq!(select(last).await, (1850..2000).collect::<Vec<_>>());
    let middle = followed[1900].time;
    let since = LogSelector { since: Some(middle), ..LogSelector::default() };
    assert!(select(since).await.contains(&1900));
    let until = LogSelector { until: Some(middle), ..LogSelector::default() };
    assert!(select(until).await.last().is_some_and(|&last| last < 1900));
    let errors = LogSelector { stdout: false, ..LogSelector::default() };
    assert_eq!(select(errors).await, [0; 0]);
}

/// A small file system mounted over a directory.
struct Small(PathBuf);

impl Small {
    /// With what the directory held.
    fn over(dir: &Path, size: &str) -> Self {
        let files: Vec<(PathBuf, Vec<u8>)> = std::fs::read_dir(dir)
            .unwrap()
            .flatten()
            .filter(|entry| entry.file_type().unwrap().is_file())
            .map(|entry| (entry.path(), std::fs::read(entry.path()).unwrap()))
            .collect();
        let options = format!("size={size}");
        let mut mount = Command::new("mount");
        assert!(mount.args(["-t", "tmpfs", "-o", &options, "small"]).arg(dir).status().unwrap().success());
        for (path, data) in files {
            std::fs::write(path, data).unwrap();
        }
        Self(dir.to_owned())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}

#[tokio::test]
async fn a_full_disk_stops_neither_container_nor_logger() {
    let world = World::with_image().await;
    let shared = world.dir.path().join("shared");
    std::fs::create_dir(&shared).unwrap();
    let script = format!(
        "{}; touch /shared/full; until test -e /shared/go; do sleep 0.05; done; echo 777 after",
        CHATTER.replace("COUNT", "1500")
    );
    let kind = MountKind::bind(shared.to_string_lossy());
    let mount = Mount { kind, target: "/shared".to_owned(), read_only: false };
    let id = world.create(ContainerSpec { mounts: vec![mount], ..shell(&script) }).await;
    let dir = world.runtime.container(&id).await.unwrap().dir;
    let small = Small::over(&dir, "1m");
    std::fs::write(dir.join("filler"), vec![0; 200_000]).unwrap();
    world.runtime.start(&id).await.unwrap();
    eventually("a megabyte of output", async || shared.join("full").exists()).await;
    std::fs::remove_file(dir.join("filler")).unwrap();
    std::fs::write(shared.join("go"), "").unwrap();
    assert_eq!(world.runtime.wait(&id).await.unwrap().code, 0, "no write failed");
    let log = text(&world.log(&id).await);
    let (lines, rest): (Vec<&str>, Vec<&str>) = log.lines().partition(|line| line.len() > 900);
    assert!(lines.len() > 500 && lines.len() < 1000, "{} lines", lines.len());
    let (last, notes) = rest.split_last().unwrap();
    assert_eq!(*last, "777 after");
    assert!(
        notes.iter().all(|note| note.ends_with("lines could not be written: the disk was full")),
        "{notes:?}"
    );
    assert_eq!(numbers(&notes.join("\n")).iter().sum::<u64>(), 1500 - lines.len() as u64, "{notes:?}");
    drop(small);
}

#[tokio::test]
async fn a_follower_ends_when_the_container_is_removed() {
    let world = World::with_image().await;
    let id = world.create(shell("true")).await;
    let follow = LogSelector { follow: true, ..LogSelector::default() };
    let follower = tokio::spawn(world.runtime.logs(&id, follow).count());
    world.runtime.remove(&id).await.unwrap();
    assert_eq!(tokio::time::timeout(Duration::from_secs(10), follower).await.unwrap().unwrap(), 0);
    let gone = world.runtime.logs(&id, LogSelector::default()).next().await.unwrap();
    assert!(matches!(gone, Err(shoal_runtime::Error::NoSuchContainer(_))));
}

/// A containerd that this test may kill.
struct Containerd {
    dir: TempDir,
    child: Child,
}

impl Containerd {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let child = Self::spawn(dir.path());
        let this = Self { dir, child };
        this.ready().await;
        this
    }

    fn spawn(dir: &Path) -> Child {
        let file = dir.join("config.toml");
        let text = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = {:?}\n",
            dir.join("root"),
            dir.join("state"),
            dir.join("sock"),
        );
        std::fs::write(&file, text).unwrap();
        let log = std::fs::File::options().create(true).append(true).open(dir.join("log")).unwrap();
        Command::new("containerd").arg("--config").arg(&file).stderr(log).spawn().unwrap()
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("sock")
    }

    async fn ready(&self) {
        eventually("containerd", async || tokio::net::UnixStream::connect(self.socket()).await.is_ok()).await;
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    async fn restart(&mut self) {
        self.child = Self::spawn(self.dir.path());
        self.ready().await;
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[tokio::test]
async fn a_containerd_restart_is_survived() {
    let mut containerd = Containerd::new().await;
    let world = World::at(&containerd.socket()).await;
    world.load_busybox().await;
    let id = world.start(shell("trap 'exit 6' TERM; while :; do sleep 0.1; done")).await;
    let (runtime, waited) = (world.runtime.clone(), id.clone());
    let waiting = tokio::spawn(async move { runtime.wait(&waited).await });
    containerd.kill();
    let (runtime, asked) = (world.runtime.clone(), id.clone());
    let asking = tokio::spawn(async move { runtime.container(&asked).await });
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!waiting.is_finished() && !asking.is_finished(), "nothing is known while containerd is away");
    containerd.restart().await;
    let state = asking.await.unwrap().unwrap().state;
    assert!(matches!(state, ContainerState::Running { .. }), "{state:?}");
    let probe = world.runtime.probe(&id, words(&["true"]), Duration::from_secs(20)).await.unwrap();
    assert_eq!(probe.exit_code, 0, "{}", probe.output);
    world.runtime.kill(&id, 15).await.unwrap();
    let exit = tokio::time::timeout(Duration::from_secs(20), waiting).await.unwrap().unwrap().unwrap();
    assert_eq!(exit.code, 6);
    drop(world);
}

#[tokio::test]
async fn after_a_reboot_what_ran_has_ended() {
    let mut containerd = Containerd::new().await;
    let world = World::at(&containerd.socket()).await;
    world.load_busybox().await;
    let (ran, never) = (world.start(shell("sleep 1000")).await, world.create(shell("true")).await);
    let ContainerState::Running { pid, .. } = world.runtime.container(&ran).await.unwrap().state else {
        panic!("it runs");
    };
    containerd.kill();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let shim = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().to_owned();
    // The machine goes down: shim, container and run directory are gone, the disk stays.
    for pid in [shim, pid.to_string()] {
        assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
    }
    let state = containerd.dir.path().join("state");
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    for mount in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
        if Path::new(mount).starts_with(&state) {
            assert!(Command::new("umount").args(["-l", mount]).status().unwrap().success());
        }
    }
    std::fs::remove_dir_all(&state).unwrap();
    containerd.restart().await;
    let state = world.runtime.container(&ran).await.unwrap().state;
    assert!(matches!(state, ContainerState::Exited { exit, .. } if exit.code == 255), "{state:?}");
    assert_eq!(world.runtime.wait(&ran).await.unwrap().code, 255);
    assert_eq!(world.runtime.container(&never).await.unwrap().state, ContainerState::Created);
    world.runtime.remove(&ran).await.unwrap();
    world.runtime.start(&never).await.expect("what was only made can still run");
    world.runtime.wait(&never).await.unwrap();
    drop(world);
}

#[tokio::test]
async fn what_containerd_lost_sight_of_is_ended() {
    let mut containerd = Containerd::new().await;
    let world = World::at(&containerd.socket()).await;
    world.load_busybox().await;
    let (lost, kept) = (world.start(shell("sleep 1000")).await, world.start(shell("sleep 1000")).await);
    let ContainerState::Running { pid, .. } = world.runtime.container(&lost).await.unwrap().state else {
        panic!("it runs");
    };
    containerd.kill();
    let tasks = containerd.dir.path().join("state/io.containerd.runtime.v2.task");
    let bundle = tasks.join(&world.config.namespace).join(lost.as_str());
    assert!(Command::new("umount").arg("-l").arg(bundle.join("rootfs")).status().unwrap().success());
    std::fs::remove_dir_all(bundle).unwrap();
    containerd.restart().await;
    assert_eq!(world.shims().len(), 2);
    world.runtime.prune(&HashSet::from([lost.clone(), kept.clone()])).await.unwrap();
    let served = |shim: &String| shim.contains(kept.as_str());
    eventually("the end of the lost shim", async || world.shims().iter().all(served)).await;
    eventually("the end of what it served", async || !Path::new(&format!("/proc/{pid}")).exists()).await;
    let states = [&lost, &kept].map(|id| world.runtime.container(id));
    let [lost, kept] = futures::future::join_all(states).await.try_into().unwrap();
    assert!(matches!(lost.unwrap().state, ContainerState::Exited { exit, .. } if exit.code == 255));
    assert!(matches!(kept.unwrap().state, ContainerState::Running { .. }));
    drop(world);
}
