//! Several nodes of one world, joined by its bridge.

use std::sync::Arc;

use crate::{Container, Node, NodeOptions, PATIENCE, World, wait_until};

/// Nodes are numbered from 1; the first one is the manager.
pub struct Cluster {
    pub world: Arc<World>,
    nodes: Vec<Node>,
}

impl Cluster {
    /// Nodes that are one cluster, each with the image `busybox`.
    pub fn start(count: u8) -> Self {
        Self::start_with(count, &NodeOptions::default())
    }

    pub fn start_with(count: u8, options: &NodeOptions) -> Self {
        let cluster = Self::apart(count, options);
        cluster.manager().init();
        cluster.workers().for_each(|node| cluster.join(node.number));
        cluster.each(Node::import_busybox);
        cluster.ready(count.into());
        cluster
    }

    /// Nodes whose daemons answer, in no cluster yet.
    pub fn apart(count: u8, options: &NodeOptions) -> Self {
        let world: Arc<World> = Arc::default();
        let start = |number: u8| {
            let options = NodeOptions { name: format!("node{number}"), ..options.clone() };
            Node::start_in(world.clone(), number, options)
        };
        let nodes = all((1..=count).collect(), start);
        Self { world, nodes }
    }

    /// The Nth node joins the first one's cluster, as a worker.
    pub fn join(&self, number: u8) {
        let token = self.manager().docker(&["swarm", "join-token", "-q", "worker"]).ok();
        let (node, manager) = (self.node(number), self.manager().address());
        let address = node.address().to_string();
        let join = ["swarm", "join", "--advertise-addr", &address, "--token", token.trim()];
        node.docker(&[&join[..], &[&format!("{manager}:2377")]].concat()).ok();
    }

    pub fn node(&self, number: u8) -> &Node {
        &self.nodes[usize::from(number) - 1]
    }

    pub fn node_mut(&mut self, number: u8) -> &mut Node {
        &mut self.nodes[usize::from(number) - 1]
    }

    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter()
    }

    pub fn manager(&self) -> &Node {
        self.node(1)
    }

    pub fn workers(&self) -> impl Iterator<Item = &Node> {
        self.nodes().skip(1)
    }

    /// The same on every node at once.
    pub fn each<T: Send>(&self, work: impl Fn(&Node) -> T + Sync) -> Vec<T> {
        all(self.nodes.iter().collect(), work)
    }

    /// The docker client against the manager.
    pub fn docker(&self, arguments: &[&str]) -> crate::process::Output {
        self.manager().docker(arguments)
    }

    /// What `docker node ls` calls a node's status: `Ready`, `Down`.
    pub fn status(&self, number: u8) -> String {
        let listed = self.docker(&["node", "ls", "--format", "{{.Hostname}} {{.Status}}"]).ok();
        let name = &self.node(number).options.name;
        let line = listed.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_default().to_owned()
    }

    /// Waits until the manager calls this many nodes ready.
    #[track_caller]
    pub fn ready(&self, count: usize) {
        wait_until(PATIENCE, &format!("{count} nodes are ready"), || {
            let listed = self.docker(&["node", "ls", "--format", "{{.Hostname}} {{.Status}}"]).ok();
            let ready = listed.lines().filter(|line| line.ends_with(" Ready")).count();
            if ready == count { Ok(()) } else { Err(format!("{listed}\n{}", self.log_tails())) }
        });
    }

    /// Running containers of a service on all nodes whose daemon answers, by slot.
    pub fn containers(&self, service: &str) -> Vec<Container> {
        let answering: Vec<&Node> = self.nodes().filter(|node| node.daemon_runs()).collect();
        let mut found = all(answering, |node| node.containers(service)).concat();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        found
    }

    /// Waits until a service has exactly this many running containers, all nodes together.
    #[track_caller]
    pub fn running(&self, service: &str, count: usize) -> Vec<Container> {
        wait_until(PATIENCE, &format!("{service} has {count} running containers"), || {
            let found = self.containers(service);
            if found.len() == count {
                return Ok(found);
            }
            let names: Vec<String> =
                found.iter().map(|container| format!("{}@{}", container.name, container.node)).collect();
            let tasks = self.docker(&["service", "ps", "--no-trunc", service]);
            Err(format!("{names:?}\n{tasks}\n{}", self.log_tails()))
        })
    }

    /// Creates a service without waiting for Docker's five quiet seconds, and waits for its containers.
    #[track_caller]
    pub fn service(&self, name: &str, replicas: usize, flags: &[&str], command: &[&str]) -> Vec<Container> {
        self.manager().create_service(name, replicas, flags, command);
        self.running(name, replicas)
    }

    /// A web service whose tasks are found once they listen: running alone says nothing of that.
    #[track_caller]
    pub fn web(&self, name: &str, replicas: usize, flags: &[&str]) -> Vec<Container> {
        let probe = "wget -q -O /dev/null http://127.0.0.1/index.html";
        let health = ["--health-cmd", probe, "--health-interval", "1s"];
        self.service(name, replicas, &[&health[..], flags].concat(), &["serve"]);
        self.serving(name, replicas)
    }

    /// Waits until a service has exactly this many containers, all nodes together, and all are healthy.
    #[track_caller]
    pub fn serving(&self, service: &str, count: usize) -> Vec<Container> {
        wait_until(PATIENCE, &format!("{service} has {count} healthy containers"), || {
            let found = self.containers(service);
            let all = found.len() == count && found.iter().all(Container::is_healthy);
            if all {
                Ok(found)
            } else {
                Err(self.docker(&["service", "ps", "--no-trunc", service]).to_string())
            }
        })
    }

    /// One task of a service of its own on each node, named `NAME-N`; by node.
    #[track_caller]
    pub fn service_on_each(&self, name: &str, flags: &[&str], command: &[&str]) -> Vec<Container> {
        for node in self.nodes() {
            let place = format!("node.hostname=={}", node.options.name);
            let flags = [flags, &["--constraint", &place]].concat();
            self.manager().create_service(&format!("{name}-{}", node.number), 1, &flags, command);
        }
        self.nodes().map(|node| node.running(&format!("{name}-{}", node.number), 1).remove(0)).collect()
    }

    pub fn log_tails(&self) -> String {
        self.nodes().map(Node::log_tail).collect::<Vec<_>>().join("\n")
    }

    /// Every table is in force everywhere; then removes everything a user can remove, dissolves the
    /// cluster and proves for each node that nothing of it is left. Every node has to be there.
    pub fn finish(mut self) {
        self.each(Node::tables_are_true);
        self.each(Node::remove_all);
        self.each(Node::has_no_container);
        self.each(crate::leaks::assert_idle);
        self.workers().for_each(Node::leave);
        self.manager().leave();
        all(self.nodes.iter_mut().collect(), Node::end);
    }
}

/// The same with each item, on threads; the first panic is passed on.
fn all<I: Send, T: Send>(items: Vec<I>, work: impl Fn(I) -> T + Sync) -> Vec<T> {
    let work = &work;
    std::thread::scope(|scope| {
        let threads: Vec<_> = items.into_iter().map(|item| scope.spawn(move || work(item))).collect();
        threads
            .into_iter()
            .map(|thread| match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            })
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::web::fetch;

    #[test]
    fn a_cut_node_is_reached_by_nobody_and_runs_on() {
        let mut cluster = Cluster::apart(2, &NodeOptions::default());
        cluster.each(|node| {
            node.init();
            node.import_busybox();
        });
        cluster.node(2).service("app", 1, &["--publish", "8000:80"], &["serve"]);
        let (here, there) = (cluster.node(1).netns.clone(), cluster.node(2).address());
        let reach = || here.run(move || fetch((there, 8000), "/index.html"));
        wait_until(PATIENCE, "the other node's port answers", reach);
        cluster.node(2).cut();
        reach().unwrap_err();
        assert_eq!(
            cluster.containers("app").len(),
            1,
            "its daemon is asked over a socket, not over the link"
        );
        cluster.node(2).restore();
        wait_until(PATIENCE, "it is back", reach);
        cluster.node_mut(2).kill_daemon();
        assert_eq!(cluster.containers("app").len(), 0, "nobody answers");
        cluster.node_mut(2).start_daemon();
        cluster.finish();
    }
}
