//! Keeps one plain container: carries out what users ask for, minds it while it runs.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use shoal_model::{ContainerId, Healthcheck};
use shoal_runtime::{ContainerOutput, ContainerState, Exit};
use tokio::sync::watch;
use tokio::time::Instant;

use super::audience::Audience;
use super::networks;
use super::record::{Next, PlainRecord, after};
use crate::health::{Health, HealthStatus};
use crate::node::Node;
use crate::{Error, Result, prepare, runner, volumes};

const SIGKILL: i32 = 9;
/// SIGKILL takes effect within this time, or the kernel holds the process.
const KILL_BOUND: Duration = Duration::from_secs(10);
/// A run of this length was a success: the restarts before it count no more (Docker's).
const GOOD_RUN: Duration = Duration::from_secs(10);
/// Before something that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How far a container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It does not run, and will not by itself.
    Idle,
    Running,
    /// Its restart policy will start it again.
    Restarting,
    /// It is being removed.
    Removing,
    Gone,
}

/// What others see of a plain container.
#[derive(Debug, Clone)]
pub(crate) struct Shown {
    pub record: PlainRecord,
    pub phase: Phase,
    /// The health check in force.
    pub check: Option<Healthcheck>,
    /// Runs that ended in this process's life.
    pub ended: u64,
    /// Exit code of the last run.
    pub code: Option<i32>,
}

/// What `docker wait` can wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitFor {
    NotRunning,
    NextExit,
    Removed,
}

pub(crate) struct Keeper {
    pub id: ContainerId,
    /// Held by whoever changes the container's life.
    turn: tokio::sync::Mutex<()>,
    shown: watch::Sender<Shown>,
    health: watch::Sender<Health>,
    audience: Audience,
}

impl Keeper {
    pub(super) fn new(record: PlainRecord, phase: Phase, code: Option<i32>) -> Arc<Self> {
        Arc::new(Self {
            id: record.id.clone(),
            turn: tokio::sync::Mutex::default(),
            shown: watch::Sender::new(Shown { record, phase, check: None, ended: 0, code }),
            health: watch::Sender::default(),
            audience: Audience::default(),
        })
    }

    pub(crate) fn shown(&self) -> Shown {
        self.shown.borrow().clone()
    }

    /// `None` without a health check.
    pub(crate) fn health(&self) -> Option<Health> {
        let shown = self.shown.borrow();
        (shown.check.is_some() && shown.phase == Phase::Running).then(|| self.health.borrow().clone())
    }

    fn phase(&self) -> Phase {
        self.shown.borrow().phase
    }

    /// Held by whoever changes the container's life.
    pub(super) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// Changes the record, and keeps it.
    pub(super) async fn change(&self, node: &Node, change: impl FnOnce(&mut Shown)) -> Result<()> {
        self.shown.send_modify(change);
        let record = self.shown.borrow().record.clone();
        node.store.put_container(&record).await
    }

    fn tell(&self, node: &Node, action: &'static str, detail: Option<(&str, String)>) {
        node.events.container(action, &self.shown.borrow().record, detail);
    }

    // === starting ===

    /// Starts it; `false` when it runs already.
    pub(crate) async fn start(self: &Arc<Self>, node: &Arc<Node>) -> Result<bool> {
        let _turn = self.turn.lock().await;
        match self.phase() {
            Phase::Running => return Ok(false),
            Phase::Removing | Phase::Gone => return Err(Error::NoSuchContainer(self.id.to_string())),
            Phase::Idle | Phase::Restarting => {}
        }
        self.change(node, |shown| {
            shown.phase = Phase::Idle;
            shown.record.wanted = true;
            shown.record.restarts = 0;
        })
        .await?;
        let begun = self.begin(node).await;
        let Err(error) = begun else { return Ok(true) };
        self.clear(node).await;
        let text = error.to_string();
        self.change(node, |shown| {
            shown.record.error = text;
            shown.record.wanted = false;
        })
        .await?;
        if self.shown.borrow().record.spec.auto_remove {
            self.remove_now(node, true).await?;
        }
        Err(error)
    }

    async fn begin(self: &Arc<Self>, node: &Arc<Node>) -> Result<()> {
        let record = self.shown.borrow().record.clone();
        let attachments = networks::attach(node, &record).await?;
        let bindings = networks::reserve_ports(node, &record)?;
        self.change(node, |shown| {
            shown.record.attachments = attachments;
            shown.record.bindings = bindings;
            shown.record.left = false;
            shown.record.error.clear();
        })
        .await?;
        let record = self.shown.borrow().record.clone();
        let check = networks::furnish(node, &record).await?;
        node.runtime.make_ready(&self.id).await?;
        self.audience.admit(node, &self.id).await;
        // Who is told that it runs finds its ports open.
        networks::lead_ports(node, &record).await?;
        node.runtime.start(&self.id).await?;
        self.health.send_replace(Health::default());
        self.shown.send_modify(|shown| {
            shown.phase = Phase::Running;
            shown.check = check;
        });
        for (network, config) in networks::joined(node, &record) {
            node.events.network("connect", &network, &config, Some(&self.id));
        }
        self.tell(node, "start", None);
        self.mind(node, false);
        Ok(())
    }

    /// Gives back what a run needs and a container that does not run has not.
    async fn clear(&self, node: &Node) {
        self.audience.close();
        if let Err(error) = node.runtime.unready(&self.id).await {
            tracing::warn!(container = %self.id, %error, "what was made ready for a start stays for now");
        }
        if let Err(error) = node.host_ports.release(node, self.id.as_str()).await {
            tracing::warn!(container = %self.id, %error, "its ports still lead nowhere");
        }
        let has_sandbox = self.shown.borrow().record.has_sandbox();
        while has_sandbox && let Err(error) = prepare::free_sandbox(node, self.id.as_str()).await {
            tracing::warn!(container = %self.id, %error, "cannot remove the sandbox yet");
            tokio::time::sleep(RETRY).await;
        }
        networks::detach(node, &self.id);
        self.shown.send_modify(|shown| {
            shown.record.attachments.clear();
            shown.record.bindings.clear();
        });
    }

    // === running ===

    /// Makes what is missing of a running container's sandbox again.
    pub(crate) async fn renew(&self, node: &Node) -> Result<()> {
        let _turn = self.turn.lock().await;
        let Shown { record, phase, .. } = self.shown();
        if phase != Phase::Running || !record.has_sandbox() {
            return Ok(());
        }
        if record.left {
            // Its sandbox is what is left of it.
            return networks::serve_none(node, &record).await;
        }
        prepare::renew(node, record.tenant()).await
    }

    /// Waits for its end and probes its health, from now on. One that a former process started is
    /// taken over first.
    pub(super) fn mind(self: &Arc<Self>, node: &Arc<Node>, adopt: bool) {
        let (keeper, node) = (self.clone(), node.clone());
        node.tracker.clone().spawn(async move {
            let closing = node.closing.clone();
            closing.run_until_cancelled(keeper.watch(&node, adopt)).await;
        });
    }

    async fn watch(self: Arc<Self>, node: &Arc<Node>, adopt: bool) {
        let began = Instant::now();
        let exit = tokio::select! {
            exit = runner::end(node.clone(), self.id.clone()) => exit,
            never = self.look_after(node, adopt) => match never {},
        };
        let _turn = self.turn.lock().await;
        self.take_end(node, exit, began.elapsed()).await;
    }

    /// Everything that goes on beside a running container.
    async fn look_after(&self, node: &Arc<Node>, adopt: bool) -> std::convert::Infallible {
        if adopt {
            self.adopt(node).await;
        }
        let check = self.shown.borrow().check.clone();
        let probing = async {
            if let Some(check) = check {
                runner::probe(node.clone(), self.id.clone(), check, self.health.clone()).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = probing => {}
            () = networks::evicted(node, self.shown.subscribe()) => {
                tracing::warn!(container = %self.id, "its address is another's now: stopping the container");
                if let Err(error) = node.runtime.kill(&self.id, SIGKILL).await {
                    tracing::warn!(container = %self.id, %error, "cannot kill the container");
                }
            }
        }
        std::future::pending().await
    }

    async fn adopt(&self, node: &Arc<Node>) {
        loop {
            match self.try_adopt(node).await {
                Ok(check) => {
                    // It was what it was when the former process left it.
                    self.health.send_modify(|health| health.status = HealthStatus::Healthy);
                    self.shown.send_modify(|shown| shown.check = check);
                    return;
                }
                Err(error) => {
                    tracing::warn!(container = %self.id, %error, "cannot take over a running container yet");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn try_adopt(&self, node: &Node) -> Result<Option<Healthcheck>> {
        let record = self.shown.borrow().record.clone();
        let forgotten = record.attachments.is_empty() && !record.spec.places.is_empty() && !record.left;
        if forgotten {
            // The node's store was lost; the manager still knows.
            let attachments = networks::attach(node, &record).await?;
            self.change(node, |shown| shown.record.attachments = attachments).await?;
        }
        let record = self.shown.borrow().record.clone();
        networks::adopt(node, &record).await
    }

    /// A run is over.
    async fn take_end(self: &Arc<Self>, node: &Arc<Node>, exit: Exit, ran: Duration) {
        let joined = networks::joined(node, &self.shown.borrow().record);
        self.clear(node).await;
        let removing = self.phase() == Phase::Removing;
        let next = {
            let mut shown = self.shown.borrow().clone();
            if ran >= GOOD_RUN {
                shown.record.restarts = 0;
            }
            if removing { Next::Stay } else { after(&shown.record, exit.code) }
        };
        let kept = self.change(node, |shown| {
            shown.ended += 1;
            shown.code = Some(exit.code);
            if ran >= GOOD_RUN {
                shown.record.restarts = 0;
            }
            if matches!(next, Next::Restart { .. }) {
                shown.record.restarts += 1;
            }
            shown.phase = match next {
                _ if removing => Phase::Removing,
                Next::Restart { .. } => Phase::Restarting,
                Next::Stay | Next::Remove => Phase::Idle,
            };
        });
        if let Err(error) = kept.await {
            tracing::warn!(container = %self.id, %error, "cannot store how the container ended");
        }
        self.tell(node, "die", Some(("exitCode", exit.code.to_string())));
        for (network, config) in joined {
            node.events.network("disconnect", &network, &config, Some(&self.id));
        }
        match next {
            Next::Stay => {}
            Next::Restart { pause } => self.restart_after(node, pause),
            Next::Remove => {
                if let Err(error) = self.remove_now(node, true).await {
                    tracing::warn!(container = %self.id, %error, "cannot remove the container at its end");
                }
            }
        }
    }

    /// Starts it again, unless somebody stops, starts or removes it before. What keeps it from
    /// starting may pass: it is tried again.
    pub(super) fn restart_after(self: &Arc<Self>, node: &Arc<Node>, pause: Duration) {
        let (keeper, node) = (self.clone(), node.clone());
        node.tracker.clone().spawn(async move {
            let closing = node.closing.clone();
            closing.run_until_cancelled(keeper.restart(&node, pause)).await;
        });
    }

    /// Carries out what is decided for a container that does not run when the daemon starts.
    pub(super) fn resume_stopped(self: &Arc<Self>, node: &Arc<Node>, next: Next) {
        match next {
            Next::Stay => {}
            Next::Restart { pause } => {
                self.shown.send_modify(|shown| {
                    shown.phase = Phase::Restarting;
                    shown.record.wanted = true;
                });
                self.restart_after(node, pause);
            }
            Next::Remove => {
                let (keeper, node) = (self.clone(), node.clone());
                node.tracker.clone().spawn(async move {
                    if let Err(error) = keeper.remove(&node, false, true).await {
                        tracing::warn!(container = %keeper.id, %error, "cannot remove an ended container");
                    }
                });
            }
        }
    }

    async fn restart(self: &Arc<Self>, node: &Arc<Node>, pause: Duration) {
        tokio::time::sleep(pause).await;
        loop {
            let turn = self.turn.lock().await;
            if self.phase() != Phase::Restarting {
                return;
            }
            let Err(error) = self.begin(node).await else { return };
            tracing::warn!(container = %self.id, %error, "the container cannot be started again yet");
            self.clear(node).await;
            self.shown.send_modify(|shown| shown.record.error = error.to_string());
            drop(turn);
            tokio::time::sleep(RETRY).await;
        }
    }

    // === stopping and removing ===

    /// Signals, waits, kills; `false` when it did not run.
    pub(crate) async fn stop(&self, node: &Node, grace: Option<Duration>) -> Result<bool> {
        let mut was = Phase::Idle;
        self.change(node, |shown| {
            was = shown.phase;
            shown.record.wanted = false;
            if shown.phase == Phase::Restarting {
                shown.phase = Phase::Idle;
            }
        })
        .await?;
        match was {
            Phase::Restarting => return Ok(true),
            Phase::Running | Phase::Removing => {}
            Phase::Idle | Phase::Gone => return Ok(false),
        }
        let signal = node.runtime.container(&self.id).await?.stop_signal;
        let own = self.shown.borrow().record.spec.container.stop_grace_period;
        let grace = grace.or(own).unwrap_or(crate::agent::DEFAULT_STOP_TIMEOUT);
        let stopped = self.end_with(node, signal, grace).await?;
        self.tell(node, "stop", None);
        Ok(stopped)
    }

    /// `false`: it had ended before.
    async fn end_with(&self, node: &Node, signal: i32, grace: Duration) -> Result<bool> {
        for (signal, bound) in [(signal, grace), (SIGKILL, KILL_BOUND)] {
            let mut changes = self.shown.subscribe();
            let before = changes.borrow_and_update().ended;
            match node.runtime.kill(&self.id, signal).await {
                // It ended by itself: what follows is on its way.
                Ok(()) | Err(shoal_runtime::Error::NotRunning(_)) => {}
                Err(error) => return Err(error.into()),
            }
            let ended = changes.wait_for(|shown| shown.ended > before || shown.phase == Phase::Gone);
            if tokio::time::timeout(bound, ended).await.is_ok() {
                return Ok(true);
            }
        }
        Err(Error::DoesNotEnd(self.id.to_string()))
    }

    /// Sends a signal. One that is to end it is a user's stop.
    pub(crate) async fn kill(&self, node: &Node, signal: i32) -> Result<()> {
        let stop_signal = node.runtime.container(&self.id).await?.stop_signal;
        if signal == SIGKILL || signal == stop_signal {
            self.change(node, |shown| shown.record.wanted = false).await?;
        }
        node.runtime.kill(&self.id, signal).await?;
        self.tell(node, "kill", Some(("signal", signal.to_string())));
        Ok(())
    }

    /// Removes it; one that runs only by force.
    pub(crate) async fn remove(&self, node: &Node, force: bool, with_volumes: bool) -> Result<()> {
        let mut runs = false;
        let mut refused = false;
        self.shown.send_modify(|shown| {
            runs = shown.phase == Phase::Running;
            refused = (runs && !force) || shown.phase == Phase::Gone;
            if !refused {
                shown.phase = Phase::Removing;
                shown.record.wanted = false;
            }
        });
        if refused {
            return Err(match runs {
                true => Error::Running(self.id.to_string()),
                false => Error::NoSuchContainer(self.id.to_string()),
            });
        }
        let removed = self.end_and_remove(node, runs, with_volumes).await;
        if removed.is_err() {
            self.shown.send_if_modified(|shown| {
                let stuck = shown.phase == Phase::Removing;
                if stuck {
                    shown.phase = Phase::Idle;
                }
                stuck
            });
        }
        removed
    }

    async fn end_and_remove(&self, node: &Node, runs: bool, with_volumes: bool) -> Result<()> {
        if runs {
            self.end_with(node, SIGKILL, KILL_BOUND).await?;
        }
        let _turn = self.turn.lock().await;
        if self.phase() == Phase::Gone {
            return Ok(());
        }
        self.remove_now(node, with_volumes).await
    }

    /// With the turn held, and nothing running.
    async fn remove_now(&self, node: &Node, with_volumes: bool) -> Result<()> {
        let with_volumes = with_volumes || self.shown.borrow().record.spec.auto_remove;
        node.runtime.remove(&self.id).await?;
        volumes::release(node, &self.id, with_volumes).await?;
        node.store.remove_container(&self.id).await?;
        node.plains.forget(&self.id);
        self.audience.dismiss();
        self.tell(node, "destroy", None);
        self.shown.send_modify(|shown| shown.phase = Phase::Gone);
        Ok(())
    }

    pub(super) async fn rename(&self, node: &Node, name: String) -> Result<()> {
        let _turn = self.turn.lock().await;
        let old = self.shown.borrow().record.name.clone();
        self.change(node, |shown| shown.record.name = name).await?;
        self.tell(node, "rename", Some(("oldName", format!("/{old}"))));
        let record = self.shown.borrow().record.clone();
        if record.on_cluster().next().is_some() {
            node.guests.restate(record.request());
        }
        if !record.attachments.is_empty() {
            networks::reclaim(node, &record).await;
        }
        Ok(())
    }

    /// The cluster is left: its networks go, the container runs on.
    pub(super) async fn leave(&self, node: &Node) -> Result<()> {
        let _turn = self.turn.lock().await;
        if self.shown.borrow().record.on_cluster().next().is_none() {
            return Ok(());
        }
        networks::detach(node, &self.id);
        self.change(node, |shown| {
            shown.record.attachments.clear();
            shown.record.left = true;
        })
        .await?;
        let record = self.shown.borrow().record.clone();
        networks::serve_none(node, &record).await
    }

    // === clients ===

    /// The exit code of the run that is waited for, once that is over.
    pub(crate) fn wait(&self, condition: WaitFor) -> impl Future<Output = i32> + Send + 'static + use<> {
        let mut changes = self.shown.subscribe();
        let before = changes.borrow_and_update().ended;
        async move {
            let over = changes.wait_for(|shown| match condition {
                WaitFor::NotRunning => matches!(shown.phase, Phase::Idle | Phase::Gone),
                WaitFor::NextExit => shown.ended > before || shown.phase == Phase::Gone,
                WaitFor::Removed => shown.phase == Phase::Gone,
            });
            let code = over.await.map(|shown| shown.code);
            code.ok().flatten().unwrap_or_default()
        }
    }

    /// What it prints: from now on, or from its next start when it does not run. `None` in the end
    /// when that never comes.
    pub(crate) fn output(
        &self,
        node: &Arc<Node>,
    ) -> impl Future<Output = Option<ContainerOutput>> + Send + 'static + use<> {
        self.audience.join(node, &self.id)
    }

    /// Output can be had from the container that a former process started.
    pub(super) fn open_to_clients(&self) {
        self.audience.open();
    }
}

/// What the runtime shows of a container that nobody has kept yet.
pub(super) fn found(state: &ContainerState) -> (Phase, Option<i32>) {
    match state {
        ContainerState::Created => (Phase::Idle, None),
        ContainerState::Running { .. } => (Phase::Running, None),
        ContainerState::Exited { exit, .. } => (Phase::Idle, Some(exit.code)),
    }
}
