//! Published ports that are not accepted on some node, and why. Pure.

use shoal_model::{NodeCondition, Port, PublishMode, Task, TaskState};
use shoal_store::State;

/// On which nodes other programs have ports at which the task is published; `None` where all is well, or where the
/// task is not there to be reached.
pub fn withheld(state: &State, task: &Task) -> Option<String> {
    if task.desired > TaskState::Running || task.status.state > TaskState::Running {
        return None;
    }
    let published = task.ports.iter().filter(|port| port.mode == PublishMode::Ingress);
    let ports = published.map(|port| Port { protocol: port.protocol, number: port.published });
    let present = || state.nodes().filter(|node| node.status.condition != NodeCondition::Down);
    let complaints = ports.flat_map(|port| {
        let nodes = present().filter(move |node| node.description.taken_ports.contains(&port));
        nodes.map(move |node| {
            format!("port {port} is in use by another program on node {}", node.description.hostname)
        })
    });
    let complaints: Vec<String> = complaints.collect();
    (!complaints.is_empty()).then(|| complaints.join("; "))
}

#[cfg(test)]
mod tests {
    use shoal_model::{Node, Object, Protocol};

    use super::*;
    use crate::plan::tests::{World, port, spec};

    #[test]
    fn a_taken_port_is_told_on_every_task_that_is_to_be_reached_by_it() {
        let mut world = World::new(3);
        let mut declared = spec("web", 2, &[]);
        declared.endpoint.ports = vec![port(8000)];
        let web = world.service(declared).unwrap();
        let quiet = world.service(spec("quiet", 1, &[])).unwrap();
        world.run(3);
        let told = |world: &World| -> Vec<Option<String>> {
            let tasks = world.state.service_tasks(&web).chain(world.state.service_tasks(&quiet));
            tasks.map(|task| withheld(&world.state, task)).collect()
        };
        assert_eq!(told(&world), [None, None, None]);

        let ids: Vec<_> = world.state.nodes().map(|node| node.id.clone()).collect();
        let take = |world: &mut World, number: usize, ports: &[Port]| {
            let mut node = Node::clone(world.state.node(&ids[number]).unwrap());
            node.description.taken_ports = ports.iter().copied().collect();
            node.description.hostname = format!("host{number}");
            world.put(Object::Node(node));
        };
        let taken = Port { protocol: Protocol::Tcp, number: 8000 };
        take(&mut world, 0, &[Port { protocol: Protocol::Udp, number: 8000 }]);
        take(&mut world, 1, &[taken]);
        let why = "port 8000/tcp is in use by another program on node host1".to_owned();
        assert_eq!(told(&world), [Some(why.clone()), Some(why.clone()), None]);
        take(&mut world, 2, &[taken]);
        let both = format!("{why}; port 8000/tcp is in use by another program on node host2");
        assert_eq!(told(&world)[0], Some(both));
        let mut ending = Task::clone(world.state.service_tasks(&web).next().unwrap());
        ending.desired = TaskState::Shutdown;
        assert_eq!(withheld(&world.state, &ending), None);
        take(&mut world, 1, &[]);
        take(&mut world, 2, &[]);
        assert_eq!(told(&world), [None, None, None]);
    }
}
