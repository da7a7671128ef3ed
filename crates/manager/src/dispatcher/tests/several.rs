//! Two nodes: what one of them does is no business of the other.

use std::time::Instant;

use shoal_model::Object;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::super::{Dispatcher, Listen, bind_tcp};
use super::*;
use crate::ca::ClusterKey;
use crate::plan::Observed;

/// So much of what is on its way to a node is the network's to hold.
const WINDOW: u32 = 65_535;
const CHANGES: usize = 1000;

/// A leader whose cluster has two nodes.
struct Pair {
    shared: Arc<Shared>,
    dispatcher: Arc<Dispatcher>,
    socket: PathBuf,
    nodes: [NodeId; 2],
    tasks: JoinSet<()>,
    _dir: tempfile::TempDir,
}

impl Pair {
    async fn new() -> Self {
        let Host { _dir, config, manager, node: first } = host().await;
        let mut second = Node::clone(manager.state().node(&first).unwrap());
        manager.shutdown().await;
        second.id = NodeId::new("second");
        second.description.hostname = "second".to_owned();
        second.ingress = None;
        let store = Arc::new(Embedded::open(&config.store).await.unwrap());
        let fence = store.campaign("manager", PATIENCE).await.unwrap();
        let state = load(&*store).await.unwrap();
        let shared = Shared::new(store, fence, state);
        let mut tasks = JoinSet::new();
        let (observed, observations) = watch::channel(Arc::new(Observed::default()));
        let tcp = bind_tcp(([127, 0, 0, 1], 0).into()).await.unwrap();
        let key = Arc::new(ClusterKey::load(&config.key).unwrap());
        let dispatcher =
            Dispatcher::start(shared.clone(), &config.socket, Listen::Now(tcp), key, observed, &mut tasks)
                .unwrap();
        tasks.spawn(follow(shared.clone()));
        tasks.spawn(crate::leader::lead(shared.clone(), observations));
        let nodes = [first, second.id.clone()];
        let pair = Self { shared, dispatcher, socket: config.socket, nodes, tasks, _dir };
        pair.put(Object::Node(second)).await;
        pair
    }

    async fn put(&self, object: Object) {
        let put = self.shared.transact(|draft, _, _| {
            draft.put(object.clone());
            Ok::<_, crate::Error>(())
        });
        put.await.unwrap();
    }

    async fn connect(&self, number: usize) -> FakeNode {
        FakeNode::connect_with(self.socket.clone(), &self.nodes[number], vec![], Some(WINDOW)).await.unwrap()
    }

    /// A network with a task on each node that is connected.
    async fn network(&self) -> NetworkId {
        let mut states = self.shared.states();
        let ready = |state: &Arc<crate::State>| {
            state.nodes().filter(|node| node.status.condition == NodeCondition::Ready).count() == 2
                && state.ingress_network().is_some_and(|network| network.state.is_some())
        };
        let state = tokio::time::timeout(PATIENCE, states.wait_for(ready)).await.unwrap().unwrap().clone();
        let mut network = state.ingress_network().unwrap().spec.clone();
        (network.name, network.ingress) = ("mynet".into(), false);
        let created = self
            .shared
            .transact(|draft, now, ids| crate::control::create_network(draft, now, ids, network.clone()));
        created.await.unwrap()
    }

    async fn service(&self, declared: ServiceSpec) -> ServiceId {
        let created = self
            .shared
            .transact(|draft, now, ids| crate::control::create_service(draft, now, ids, declared.clone()));
        created.await.unwrap().id
    }

    async fn end(mut self) {
        self.shared.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
        self.shared.store.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_table_of_a_network_the_node_is_not_on_is_refused() {
    let pair = Pair::new().await;
    let (mut one, mut two) = (pair.connect(0).await, pair.connect(1).await);
    let net = pair.network().await;
    pair.service(spec("web", 1, &[&net])).await;
    let mut found = None;
    while found.is_none() {
        tokio::select! {
            frame = one.down.message() => one.take(frame.unwrap().unwrap()),
            frame = two.down.message() => two.take(frame.unwrap().unwrap()),
        }
        found = [!one.tasks.is_empty(), !two.tasks.is_empty()].iter().position(|has_task| *has_task);
    }
    let stranger = if found == Some(0) { &mut two } else { &mut one };
    assert!(!stranger.tables.contains_key(&net));
    for (count, network) in [net.to_string(), "no such network".to_owned()].into_iter().enumerate() {
        stranger.say(Up::TableRequest(TableRequest { network_id: network.clone() })).await;
        stranger.until(|node| node.refused.contains(&NetworkId::new(&network))).await;
        assert_eq!(pair.dispatcher.refused_requests(), count as u64 + 1);
    }
    assert!(!stranger.tables.contains_key(&net), "refused, and the session goes on");
    let known = stranger.tables.keys().next().unwrap().to_string();
    let snapshots = stranger.snapshots;
    stranger.say(Up::TableRequest(TableRequest { network_id: known })).await;
    stranger.until(|node| node.snapshots == snapshots + 1).await;
    pair.end().await;
}

#[tokio::test]
async fn a_node_that_does_not_read_holds_nobody_up_and_gets_the_newest_state_only() {
    let pair = Pair::new().await;
    let (mut fast, mut slow) = (pair.connect(0).await, pair.connect(1).await);
    let net = pair.network().await;
    pair.service(spec("web", 2, &[&net])).await;
    let idle = pair.service(spec("idle", 0, &[&net])).await;
    slow.until(|node| node.tables.get(&net).is_some_and(|table| table.services.contains_key(&idle))).await;
    // It lives, but reads nothing from here on.
    let up = slow.up.clone();
    let beating = tokio::spawn(async move {
        while up.send(NodeMessage { message: Some(Up::Heartbeat(Heartbeat {})) }).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    });

    let alias = |number: usize| format!("{number:08}").repeat(512);
    let mut late = Duration::ZERO;
    for number in 1..=CHANGES {
        let mut service = Service::clone(pair.shared.state().service(&idle).unwrap());
        service.spec.task.networks[0].aliases = vec![alias(number)];
        pair.put(Object::Service(service)).await;
        let committed = Instant::now();
        fast.until(|node| {
            let service = node.tables.get(&net).and_then(|table| table.services.get(&idle));
            service.is_some_and(|service| service.aliases == [alias(number)])
        })
        .await;
        late = late.max(committed.elapsed());
    }
    assert!(late < Duration::from_secs(5), "the other node has each change at once, not after {late:?}");

    let before = slow.deltas + slow.snapshots;
    slow.until(|node| node.tables[&net].services[&idle].aliases == [alias(CHANGES)]).await;
    let received = slow.deltas + slow.snapshots - before;
    println!("{CHANGES} changes, {received} frames for the node that did not read; at most {late:?} late");
    assert!(received < CHANGES / 2, "what came in between is skipped, but {received} frames came");
    assert_eq!(slow.tables[&net].services, fast.tables[&net].services);
    beating.abort();
    pair.end().await;
}

#[tokio::test]
async fn verifying_asks_every_node_and_tells_who_is_behind_and_who_does_not_answer() {
    let pair = Pair::new().await;
    let mut one = pair.connect(0).await;
    one.until(|node| node.complete && node.tables.len() == 1).await;
    let state = pair.shared.state();
    let asking = crate::verify::cluster(&pair.dispatcher, &state);
    let answering = async {
        // Behind when it is asked first, and still when it is asked again.
        for question in 0..2 {
            one.until(|node| node.questions.len() == question + 1).await;
            let report = NodeReport { node: Some(pair.nodes[0].clone()), ..NodeReport::default() };
            let (id, report) = (one.questions[question], encode(&report));
            // An answer to a question that was never asked is no answer.
            one.say(Up::VerifyReport(VerifyReport { id: id + 100, ..VerifyReport::default() })).await;
            one.say(Up::VerifyReport(VerifyReport { id, report, error: String::new() })).await;
        }
    };
    let (report, ()) = tokio::join!(asking, answering);
    let verdict = |node: &NodeId| report.nodes.iter().find(|it| it.id.as_ref() == Some(node)).unwrap();
    let behind = &verdict(&pair.nodes[0]).behind;
    assert!(behind.len() == 1 && behind[0].contains("no table in force"), "{behind:?}");
    assert!(!verdict(&pair.nodes[0]).is_well());
    assert!(verdict(&pair.nodes[1]).error.as_ref().unwrap().contains("no session"));
    pair.end().await;
}
