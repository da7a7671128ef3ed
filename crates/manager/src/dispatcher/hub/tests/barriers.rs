//! Whom a stop and an update wait for.

use super::*;

impl Cluster {
    /// All tasks serve, and everybody knows.
    fn serving() -> Self {
        let mut cluster = Self::new();
        for _ in 0..8 {
            cluster.all_sync();
        }
        assert_eq!(cluster.world.serving(&cluster.service).len(), 4);
        cluster
    }

    fn node(&self, number: usize) -> NodeId {
        self.machines.keys().nth(number).unwrap().clone()
    }

    fn all_sync(&mut self) {
        (0..3).for_each(|node| self.take(&Step::Sync { node }));
        self.conclude_twice();
    }

    /// The second time with what the first plan made of the nodes.
    fn conclude_twice(&mut self) {
        self.take(&Step::Conclude);
        self.take(&Step::Conclude);
    }

    /// What the nodes are told to stop.
    fn told_to_stop(&self) -> usize {
        let views = self.machines.values().filter_map(|machine| machine.view.clone());
        let told = views.flat_map(|view| view.tasks.values().cloned().collect::<Vec<_>>());
        let tasks = told.map(|task| decode::<Task>(&task.payload).unwrap());
        tasks.filter(|task| task.desired > TaskState::Running && !task.status.state.is_terminal()).count()
    }

    /// Takes one task away, and returns the number of a node that does not run it.
    fn scale_down(&mut self) -> usize {
        self.take(&Step::Scale(3));
        self.conclude_twice();
        let is_leaving = |task: &&Arc<Task>| task.desired == TaskState::Remove;
        let leaving = self.world.state.tasks().find(is_leaving).unwrap().node.clone().unwrap();
        (0..3).find(|number| self.node(*number) != leaving).unwrap()
    }

    fn all_sync_but(&mut self, slow: usize) {
        (0..3).filter(|node| *node != slow).for_each(|node| self.take(&Step::Sync { node }));
        self.conclude_twice();
    }
}

#[test]
fn a_stop_waits_for_the_slowest_node_that_is_ready() {
    let mut cluster = Cluster::serving();
    let slow = cluster.scale_down();
    cluster.all_sync_but(slow);
    assert_eq!(cluster.told_to_stop(), 0);
    cluster.take(&Step::Sync { node: slow });
    cluster.conclude_twice();
    assert_eq!(cluster.told_to_stop(), 1);
}

#[test]
fn a_session_that_is_away_for_a_moment_is_waited_for_and_a_silent_node_is_not() {
    let mut cluster = Cluster::serving();
    let away = cluster.scale_down();
    cluster.take(&Step::CutOff { node: away });
    cluster.take(&Step::Pass(2));
    cluster.all_sync_but(away);
    assert_eq!(cluster.told_to_stop(), 0, "its kernel goes on without its daemon");
    cluster.take(&Step::Pass(1));
    cluster.conclude_twice();
    assert_eq!(cluster.told_to_stop(), 1, "before the bound of five seconds");
}

#[test]
fn a_node_that_reconnects_is_asked_for_what_it_does_not_hold() {
    let mut cluster = Cluster::serving();
    let back = cluster.scale_down();
    cluster.take(&Step::CutOff { node: back });
    cluster.all_sync_but(back);
    cluster.take(&Step::Reconnect { node: back });
    cluster.open(&cluster.node(back));
    cluster.conclude_twice();
    assert_eq!(cluster.told_to_stop(), 0, "it said hello with an older table");
    cluster.take(&Step::Sync { node: back });
    cluster.conclude_twice();
    assert_eq!(cluster.told_to_stop(), 1);
}

#[test]
fn a_new_leader_waits_for_what_it_was_not_told() {
    let mut cluster = Cluster::serving();
    let slow = cluster.scale_down();
    cluster.take(&Step::NewTerm);
    cluster.all_sync_but(slow);
    assert_eq!(cluster.told_to_stop(), 0, "a node that was not heard of yet is waited for");
    cluster.take(&Step::Sync { node: slow });
    cluster.conclude_twice();
    assert_eq!(cluster.told_to_stop(), 1);
}

/// Starts an update and takes it to where the first new task serves; the number of a slow node.
fn half_updated() -> (Cluster, usize) {
    let mut cluster = Cluster::serving();
    cluster.take(&Step::Force);
    cluster.conclude_twice();
    let new = |task: &Arc<Task>| task.spec.force_update == 1;
    for _ in 0..20 {
        let state = cluster.world.state.clone();
        if let Some(task) = state.tasks().find(|task| new(task) && task.is_serving()) {
            let slow = (0..3).find(|number| Some(cluster.node(*number)) != task.node).unwrap();
            return (cluster, slow);
        }
        // Statuses come one after the other, so that nobody has the newest table yet.
        cluster.all_sync();
    }
    panic!("the first new task never served");
}

fn outdated(cluster: &Cluster) -> usize {
    let wanted = cluster.world.state.tasks().filter(|task| task.desired <= TaskState::Running);
    wanted.filter(|task| task.spec.force_update == 0).count()
}

#[test]
fn an_update_goes_on_when_every_node_leads_to_the_new_task() {
    let (mut cluster, slow) = half_updated();
    cluster.all_sync_but(slow);
    cluster.all_sync_but(slow);
    assert_eq!(outdated(&cluster), 3);
    cluster.take(&Step::Sync { node: slow });
    cluster.conclude_twice();
    assert_eq!(outdated(&cluster), 2);
}

#[test]
fn an_update_does_not_wait_for_a_slow_node_for_ever() {
    let (mut cluster, slow) = half_updated();
    cluster.take(&Step::Pass(2));
    cluster.all_sync_but(slow);
    cluster.take(&Step::Pass(2));
    cluster.all_sync_but(slow);
    assert_eq!(outdated(&cluster), 3);
    cluster.take(&Step::Pass(1));
    cluster.all_sync_but(slow);
    assert_eq!(outdated(&cluster), 2);
}

#[test]
fn a_heartbeat_of_a_node_that_is_well_is_no_reason_to_plan() {
    let mut cluster = Cluster::serving();
    let before = cluster.world.observed.clone();
    let heard = |cluster: &mut Cluster, node: &NodeId| {
        cluster.world.pass(Duration::from_secs(1));
        let session = cluster.machines[node].session.unwrap();
        cluster.hub.heard(node, session, cluster.world.now.monotonic);
        Observed { sessions: cluster.hub.seen().clone(), ..before.clone() }
    };
    let node = cluster.node(0);
    assert!(!heard(&mut cluster, &node).differs_from(&before, &cluster.world.state));
    let mut suspect = Node::clone(cluster.world.state.node(&node).unwrap());
    suspect.status.condition = NodeCondition::Suspect;
    cluster.world.put(Object::Node(suspect));
    assert!(
        heard(&mut cluster, &node).differs_from(&before, &cluster.world.state),
        "one that is not is well again"
    );
}
