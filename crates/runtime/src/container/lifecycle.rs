//! A container's life: start, signals, exit, removal; and what containerd knows of it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use containerd_client::services::v1::snapshots::MountsRequest;
use containerd_client::services::v1::{
    Container as Stored, CreateTaskRequest, DeleteContainerRequest, DeleteTaskRequest, GetRequest,
    KillRequest, ListContainersRequest, ListPidsRequest, ListTasksRequest, StartRequest,
    UpdateContainerRequest, WaitRequest,
};
use containerd_client::types::v1::{Process, Status};
use jiff::Timestamp;
use prost_types::FieldMask;
use serde_json::json;
use shoal_model::{ContainerId, ContainerSpec};

use super::create::{blocking, own_netns, record_of, specification_any, specification_of};
use super::files::remove_dir;
use super::stdio::Streams;
use super::{Container, ContainerState, Containers, Exit, cgroup};
use crate::client::{ask, optional, timestamp};
use crate::image::{SNAPSHOTTER, remove_snapshot};
use crate::{Error, Result};

/// How a container ended that nobody saw ending (Docker's choice).
const LOST: i32 = 255;
/// How often a task that containerd calls unknown is asked for again, and how long that waits each time.
/// containerd itself gives a shim two seconds for each answer.
const ASKED_AGAIN: u32 = 10;
const BETWEEN: Duration = Duration::from_millis(200);
/// A task that cannot be deleted is deleted again so often, with a pause between.
const DELETE_ATTEMPTS: u32 = 5;
const DELETE_PAUSE: Duration = Duration::from_millis(200);
/// A killed task takes this long at most to be gone.
const DEATH: Duration = Duration::from_secs(15);

impl Containers {
    /// Makes a created container's process ready to start, its output connected. May be called again.
    pub(crate) async fn make_ready(&self, id: &ContainerId) -> Result<()> {
        let stored = self.stored(id).await?.ok_or_else(|| Error::NoSuchContainer(id.to_string()))?;
        let record = record_of(&stored).ok_or_else(|| Error::NoSuchContainer(id.to_string()))?;
        if self.files(id).exit().is_some() {
            return Err(Error::Start(format!("container {id} has run already")));
        }
        if self.task(id).await?.is_some() {
            return Ok(());
        }
        if record.config.netns.is_none() {
            self.join_own_netns(id, stored).await?;
        }
        let spec = record.config.spec;
        let made = self.in_turn(id, async move |this, id| this.create_task(&id, &spec).await).await;
        if made.is_err() {
            // The task, if there is one, cannot run any more; the container can be tried again.
            self.delete_task(id).await.ok();
        }
        made
    }

    /// Starts a created container; returns its process id on the node.
    pub(crate) async fn start(&self, id: &ContainerId) -> Result<u32> {
        self.make_ready(id).await?;
        let started = self.start_task(id).await;
        if started.is_err() {
            self.delete_task(id).await.ok();
            return started;
        }
        let files = self.files(id);
        blocking(move || files.set_started(Timestamp::now())).await?;
        started
    }

    /// Takes back what [`make_ready`](Self::make_ready) did for a process that is not to start after
    /// all.
    pub(crate) async fn unready(&self, id: &ContainerId) -> Result<()> {
        match self.task(id).await? {
            Some(task) if task.status() == Status::Created => self.end_task(id).await,
            _ => Ok(()),
        }
    }

    /// Makes an ended container one that was never started, with new contents of its hosts and
    /// resolv.conf files; its file system and log stay.
    pub(crate) async fn renew(&self, id: &ContainerId, hosts: String, resolv_conf: String) -> Result<()> {
        if let ContainerState::Running { .. } = self.container(id).await?.state {
            return Err(Error::Start(format!("container {id} is running")));
        }
        self.unready(id).await?;
        let files = self.files(id);
        blocking(move || {
            files.forget_run()?;
            files.write_names(&hosts, &resolv_conf)
        })
        .await
    }

    /// In place: they are bind-mounted into the container.
    pub(crate) async fn rewrite_names(
        &self,
        id: &ContainerId,
        hosts: String,
        resolv_conf: String,
    ) -> Result<()> {
        let files = self.files(id);
        blocking(move || files.write_names(&hosts, &resolv_conf)).await
    }

    /// The process that made the container may have been another one than this.
    async fn join_own_netns(&self, id: &ContainerId, mut stored: Stored) -> Result<()> {
        let mut specification = specification_of(id, &stored)?;
        if let Some(namespaces) = specification["linux"]["namespaces"].as_array_mut() {
            for namespace in namespaces.iter_mut().filter(|namespace| namespace["type"] == "network") {
                namespace["path"] = json!(own_netns());
            }
        }
        stored.spec = Some(specification_any(&specification));
        let request = || UpdateContainerRequest {
            container: Some(stored.clone()),
            update_mask: Some(FieldMask { paths: vec!["spec".to_owned()] }),
        };
        ask!(self.client, format!("updating container {id}"), containers.update(request())).map(drop)
    }

    async fn create_task(&self, id: &ContainerId, spec: &ContainerSpec) -> Result<()> {
        let request = || MountsRequest { snapshotter: SNAPSHOTTER.to_owned(), key: id.to_string() };
        let rootfs = ask!(self.client, format!("mounting {id}"), snapshots.mounts(request()))?.mounts;
        let Streams { stdin, stdout, stderr } = self.streams(id, spec).await?;
        let request = || CreateTaskRequest {
            container_id: id.to_string(),
            rootfs: rootfs.clone(),
            stdin: stdin.clone(),
            stdout: stdout.clone(),
            stderr: stderr.clone(),
            terminal: spec.tty,
            ..CreateTaskRequest::default()
        };
        match ask!(self.client, format!("starting container {id}"), tasks.create(request())) {
            Ok(_) => Ok(()),
            // An attempt whose answer was lost has made it.
            Err(error) if error.is_already_exists() => Ok(()),
            Err(error @ Error::Containerd { .. }) => Err(Error::Start(error.into_message())),
            Err(error) => Err(error),
        }
    }

    async fn start_task(&self, id: &ContainerId) -> Result<u32> {
        let request = || StartRequest { container_id: id.to_string(), exec_id: String::new() };
        match ask!(self.client, format!("starting container {id}"), tasks.start(request())) {
            Ok(started) => Ok(started.pid),
            Err(error @ Error::Containerd { .. }) => match self.task(id).await? {
                // As above: it runs, or has run, since an attempt before.
                Some(task) if !matches!(task.status(), Status::Created | Status::Unknown) => Ok(task.pid),
                _ => Err(Error::Start(error.into_message())),
            },
            Err(error) => Err(error),
        }
    }

    /// containerd's task of a container, if it has one.
    pub(crate) async fn task(&self, id: &ContainerId) -> Result<Option<Process>> {
        let request = || GetRequest { container_id: id.to_string(), exec_id: String::new() };
        let found =
            optional(ask!(self.client, format!("looking for the process of {id}"), tasks.get(request())))?;
        Ok(found.and_then(|found| found.process))
    }

    /// Sends a signal to the container's first process.
    pub(crate) async fn kill(&self, id: &ContainerId, signal: i32) -> Result<()> {
        let signal =
            u32::try_from(signal).map_err(|_| Error::InvalidConfig(format!("invalid signal: {signal}")))?;
        let request =
            || KillRequest { container_id: id.to_string(), exec_id: String::new(), signal, all: false };
        match optional(ask!(self.client, format!("killing {id}"), tasks.kill(request())))? {
            Some(_) => Ok(()),
            None if self.stored(id).await?.is_some() => Err(Error::NotRunning(id.to_string())),
            None => Err(Error::NoSuchContainer(id.to_string())),
        }
    }

    /// Waits for a started container to end, however long containerd is away meanwhile.
    pub(crate) async fn wait(&self, id: &ContainerId) -> Result<Exit> {
        let request = || WaitRequest { container_id: id.to_string(), exec_id: String::new() };
        let forever = Duration::MAX;
        let waited = self
            .client
            .retry(format!("waiting for {id}"), forever, || {
                let (mut service, request) = (self.client.tasks(), self.client.request(request()));
                async move { service.wait(request).await }
            })
            .await;
        // The answer is also in the task, where every other way of learning it finds it too; so is that of a shim
        // which somebody else cleared away meanwhile (`ttrpc: closed`).
        let failed = optional(waited).err();
        match self.container(id).await?.state {
            ContainerState::Exited { exit, .. } => Ok(exit),
            ContainerState::Created | ContainerState::Running { .. } => {
                Err(failed.unwrap_or_else(|| Error::NotRunning(id.to_string())))
            }
        }
    }

    /// Writes down how a stopped task ended, then lets containerd forget the task, and with it the
    /// logger and the shim.
    async fn reap(&self, id: &ContainerId, task: &Process) -> Result<Exit> {
        let files = self.files(id);
        let exit = match files.exit() {
            Some(exit) => exit,
            None => {
                let code = i32::try_from(task.exit_status).unwrap_or(LOST);
                let at = timestamp(task.exited_at).unwrap_or_else(Timestamp::now);
                let exit = Exit { code, at, oom: self.out_of_memory(id) };
                if let Err(error) = self.write_down(id, exit).await {
                    // The task stays, as long as nothing else knows how it ended.
                    tracing::warn!(%error, container = %id, "how it ended cannot be written down");
                    return Ok(exit);
                }
                exit
            }
        };
        if let Err(error) = self.delete_task(id).await {
            tracing::warn!(%error, container = %id, "an ended task stays for now");
        }
        Ok(exit)
    }

    /// The kernel counts its kills in the container's cgroup, which is there until the task is
    /// deleted.
    fn out_of_memory(&self, id: &ContainerId) -> bool {
        let name = if self.kernel.unified { "memory.events" } else { "memory.oom_control" };
        let text = std::fs::read_to_string(self.cgroup_file(id, name)).unwrap_or_default();
        text.lines().filter_map(|line| line.strip_prefix("oom_kill ")).any(|count| count.trim() != "0")
    }

    /// A file of the container's cgroup: of the one hierarchy, or of the memory controller's.
    fn cgroup_file(&self, id: &ContainerId, name: &str) -> String {
        let hierarchy = if self.kernel.unified { "" } else { "/memory" };
        format!("/sys/fs/cgroup{hierarchy}{}/{name}", self.cgroup(id))
    }

    /// Lets containerd forget a container's task, and with it the logger and the shim; returns when
    /// they are gone.
    async fn delete_task(&self, id: &ContainerId) -> Result<()> {
        self.in_turn(id, async |this, id| this.delete_task_now(&id).await).await
    }

    /// When a shim was killed, containerd says once that the connection to it is closed: asked again,
    /// it has noticed.
    async fn delete_task_now(&self, id: &ContainerId) -> Result<()> {
        let request = || DeleteTaskRequest { container_id: id.to_string() };
        let what = || format!("removing the process of {id}");
        let mut attempts = 1;
        loop {
            let deleted = optional(ask!(self.client, what(), tasks.delete(request()))).map(drop);
            if deleted.is_ok() || attempts == DELETE_ATTEMPTS {
                return deleted;
            }
            attempts += 1;
            tokio::time::sleep(DELETE_PAUSE).await;
        }
    }

    /// Removes a container, running or not, and whatever a half-made one left. Goes on after errors.
    pub(crate) async fn remove(&self, id: &ContainerId) -> Result<()> {
        let mut errors = Vec::new();
        errors.extend(self.end_task(id).await.err());
        let request = || DeleteContainerRequest { id: id.to_string() };
        let deleted = ask!(self.client, format!("removing container {id}"), containers.delete(request()));
        errors.extend(optional(deleted).err());
        errors.extend(remove_snapshot(&self.client, id.as_str()).await.err());
        let (files, fifos, cgroup) = (self.files(id), self.fifos(id.as_str()), self.cgroup(id));
        errors.extend(
            blocking(move || {
                cgroup::remove(&[&cgroup]);
                Ok(())
            })
            .await
            .err(),
        );
        errors.extend(blocking(move || files.remove()).await.err());
        errors.extend(blocking(move || remove_dir(&fifos)).await.err());
        Error::collect(errors)
    }

    /// Kills a task and waits until it is gone.
    async fn end_task(&self, id: &ContainerId) -> Result<()> {
        // Without a task there may still be somebody who is clearing it away: that is waited for.
        let Some(task) = self.task(id).await? else { return self.delete_task(id).await };
        if task.status() != Status::Stopped {
            let request = || KillRequest {
                container_id: id.to_string(),
                exec_id: String::new(),
                signal: nix::libc::SIGKILL as u32,
                all: true,
            };
            optional(ask!(self.client, format!("killing {id}"), tasks.kill(request())))?;
            if task.status() != Status::Created {
                let request = || WaitRequest { container_id: id.to_string(), exec_id: String::new() };
                let wait = async { ask!(self.client, format!("waiting for {id}"), tasks.wait(request())) };
                // Somebody else may clear its shim away meanwhile; whether it has ended, its removal finds out.
                match tokio::time::timeout(DEATH, wait).await {
                    Ok(waited) => drop(waited),
                    Err(_) => tracing::warn!(container = %id, "a killed container does not end"),
                }
            }
        }
        self.delete_task(id).await
    }

    /// All containers that are ours.
    pub(crate) async fn list(&self) -> Result<Vec<Container>> {
        let request = || ListContainersRequest { filters: Vec::new() };
        let stored = ask!(self.client, "listing containers", containers.list(request()))?.containers;
        let request = || ListTasksRequest { filter: String::new() };
        let tasks = ask!(self.client, "listing tasks", tasks.list(request()))?.tasks;
        // containerd gives a task the id of its container.
        let mut tasks: HashMap<String, Process> =
            tasks.into_iter().map(|task| (task.id.clone(), task)).collect();
        let mut containers = Vec::with_capacity(stored.len());
        for stored in stored {
            let task = tasks.remove(&stored.id);
            containers.extend(self.describe(stored, task).await?);
        }
        Ok(containers)
    }

    pub(crate) async fn container(&self, id: &ContainerId) -> Result<Container> {
        let missing = || Error::NoSuchContainer(id.to_string());
        let stored = self.stored(id).await?.ok_or_else(missing)?;
        let task = self.task(id).await?;
        self.describe(stored, task).await?.ok_or_else(missing)
    }

    async fn describe(&self, stored: Stored, task: Option<Process>) -> Result<Option<Container>> {
        let Some(record) = record_of(&stored) else { return Ok(None) };
        let id = record.config.id.clone();
        let created = timestamp(stored.created_at).unwrap_or_else(Timestamp::now);
        let state = self.state(&id, task, created).await?;
        Ok(Some(Container {
            config: record.config,
            created,
            state,
            argv: record.argv,
            env: record.env,
            image_id: record.image_id,
            stop_signal: record.stop_signal,
            dir: self.files(&id).dir,
        }))
    }

    async fn state(
        &self,
        id: &ContainerId,
        task: Option<Process>,
        created: Timestamp,
    ) -> Result<ContainerState> {
        let files = self.files(id);
        let started = files.started();
        let since = started.unwrap_or(created);
        match (self.known(id, task, started.is_some()).await?, started) {
            (Some(task), _) if task.status() == Status::Stopped => {
                Ok(ContainerState::Exited { exit: self.reap(id, &task).await?, started: since })
            }
            (Some(task), Some(_)) if task.status() == Status::Unknown => match self.first_process(id) {
                Some(pid) => Ok(ContainerState::Running { pid, started: since }),
                None => Ok(ContainerState::Exited { exit: self.lost(id).await?, started: since }),
            },
            (Some(task), _) if matches!(task.status(), Status::Created | Status::Unknown) => {
                Ok(ContainerState::Created)
            }
            (Some(task), _) => Ok(ContainerState::Running { pid: task.pid, started: since }),
            (None, Some(_)) => self.state_of_started(id, since).await,
            (None, None) => match files.exit() {
                Some(exit) => Ok(ContainerState::Exited { exit, started: since }),
                None => Ok(ContainerState::Created),
            },
        }
    }

    /// On a busy machine a shim may not answer in time, and containerd calls its task unknown. Of a
    /// container that was started this says nothing: while it has processes it runs, and when it has
    /// none, how they ended is asked for again, for a while.
    async fn known(&self, id: &ContainerId, task: Option<Process>, started: bool) -> Result<Option<Process>> {
        let mut task = task;
        for _ in 0..ASKED_AGAIN {
            let is_unknown = task.as_ref().is_some_and(|task| task.status() == Status::Unknown);
            if !(started && is_unknown && self.first_process(id).is_none()) {
                return Ok(task);
            }
            tokio::time::sleep(BETWEEN).await;
            task = self.task(id).await?;
        }
        // A shim that is silent for so long is lost, and with it what it knew.
        Ok(task)
    }

    /// The kernel's word for whether a container runs: its first process, if it has any.
    fn first_process(&self, id: &ContainerId) -> Option<u32> {
        let listed = std::fs::read_to_string(self.cgroup_file(id, "cgroup.procs")).ok()?;
        let processes: Vec<u32> = listed.lines().filter_map(|pid| pid.parse().ok()).collect();
        let is_first = |pid: &&u32| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            // Number one in its own namespace, which is named last (proc_pid_status(5)).
            let inner =
                status.lines().find_map(|line| line.strip_prefix("NSpid:")?.split_whitespace().last());
            inner == Some("1")
        };
        processes.iter().find(is_first).or(processes.first()).copied()
    }

    /// Writes down that a container ended unseen.
    async fn lost(&self, id: &ContainerId) -> Result<Exit> {
        let exit = Exit { code: LOST, at: Timestamp::now(), oom: false };
        self.write_down(id, exit).await?;
        Ok(exit)
    }

    /// Of a container that is being removed nobody will ask how it ended.
    async fn write_down(&self, id: &ContainerId, exit: Exit) -> Result<()> {
        let files = self.files(id);
        match blocking(move || files.set_exit(&exit)).await {
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(()),
            written => written,
        }
    }

    /// Looks again at a container that was started, had no task and had not ended: it may have been
    /// started or have ended between the two looks.
    async fn state_of_started(&self, id: &ContainerId, since: Timestamp) -> Result<ContainerState> {
        let files = self.files(id);
        match self.task(id).await? {
            Some(task) if task.status() == Status::Stopped => {
                Ok(ContainerState::Exited { exit: self.reap(id, &task).await?, started: since })
            }
            Some(task) => Ok(ContainerState::Running { pid: task.pid, started: since }),
            None => {
                let exit = match files.exit() {
                    Some(exit) => exit,
                    // Neither a task nor a word of its end is left: the machine went down.
                    None => self.lost(id).await?,
                };
                Ok(ContainerState::Exited { exit, started: since })
            }
        }
    }

    /// Process ids on the node, the container's first process among them.
    pub(crate) async fn processes(&self, id: &ContainerId) -> Result<Vec<u32>> {
        let request = || ListPidsRequest { container_id: id.to_string() };
        let listed =
            optional(ask!(self.client, format!("listing processes of {id}"), tasks.list_pids(request())))?;
        match listed {
            Some(listed) => Ok(listed.processes.iter().map(|process| process.pid).collect()),
            None if self.stored(id).await?.is_some() => Err(Error::NotRunning(id.to_string())),
            None => Err(Error::NoSuchContainer(id.to_string())),
        }
    }

    /// The directory of a container, whether or not it exists.
    pub(crate) fn dir(&self, id: &ContainerId) -> PathBuf {
        self.files(id).dir
    }
}
