//! A node's way into a cluster and out of it: the wiring of agent and manager.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use shoal_agent::{
    Agent, AgentConfig, Enrolment, EnrolmentError, LocalSpec, Managers, NodeNetwork, RemoteManager,
    SessionState,
};
use shoal_api::{InitRequest, JoinRequest, LocalState, Swarm};
use shoal_manager::{Code, ControlError, InitOptions, Manager, ManagerConfig};
use shoal_model::{Network, NetworkId, NodeId};

use crate::addresses;

/// Docker's texts.
const ALREADY_MEMBER: &str = "This node is already part of a swarm. Use \"docker swarm leave\" to leave this \
                              swarm and join another one.";
const NOT_A_MEMBER: &str = "This node is not part of a swarm";
const LAST_MANAGER: &str = "You are attempting to leave the swarm on a node that is participating as a manager. \
                            Removing the last manager erases all current state of the swarm. Use `--force` to \
                            ignore this message. ";

const JOIN_OVERDUE: &str = "Timeout was reached before node joined. The attempt to join the swarm will continue \
                            in the background. Use the \"docker info\" command to see the current swarm status \
                            of your node.";

/// Docker's patience with a node that joins.
const JOIN_MAX: Duration = Duration::from_secs(20);

pub(crate) struct Membership {
    agent: Agent,
    node_name: String,
    config: ManagerConfig,
    standing: Mutex<Standing>,
    /// One change of membership at a time.
    changing: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Standing {
    manager: Option<Manager>,
    /// Why a membership that exists on disk is not in force.
    error: Option<String>,
}

impl Membership {
    /// Takes up the membership that the node's data directory holds. What keeps the manager from
    /// starting does not stop the node: its containers run on, and the error is shown.
    pub(crate) async fn resume(agent: Agent, node: &AgentConfig) -> Self {
        let config = ManagerConfig {
            store: node.data_dir.join("cluster.redb"),
            socket: node.run_dir.join("manager.sock"),
            key: node.data_dir.join("cluster.key"),
        };
        let mut standing = Standing::default();
        if config.store.exists() {
            match Manager::open(config.clone()).await {
                Ok(manager) => standing.manager = Some(manager),
                Err(error) => {
                    tracing::error!(store = %config.store.display(), %error, "the manager cannot start");
                    standing.error = Some(error.to_string());
                }
            }
        }
        let resumed = Self {
            agent,
            node_name: node.node_name.clone(),
            config,
            standing: Mutex::new(standing),
            changing: tokio::sync::Mutex::default(),
        };
        resumed.recover_node().await;
        resumed
    }

    /// A node store that was lost does not know the cluster any more; the manager's own does.
    async fn recover_node(&self) {
        let Some(manager) = self.manager() else { return };
        if self.agent.membership().is_some() {
            return;
        }
        let state = manager.state();
        let mut nodes = state.nodes();
        // On the embedded store the only manager is this node.
        let Some(node) = nodes.find(|node| node.spec.role == shoal_model::NodeRole::Manager) else { return };
        let membership = self.joined(node.id.clone(), node.status.address, node.data_path_address);
        tracing::warn!(node = %membership.node, "taking up the membership that the cluster store names");
        if let Err(error) = self.agent.join(membership).await {
            tracing::error!(%error, "cannot take up the membership");
            self.standing().error = Some(error.to_string());
        }
    }

    fn joined(&self, node: NodeId, address: IpAddr, data_path_address: IpAddr) -> shoal_agent::Membership {
        let cluster =
            self.manager().and_then(|manager| manager.state().cluster().map(|cluster| cluster.id.clone()));
        let managers = Managers::Here(self.config.socket.clone());
        shoal_agent::Membership { node, cluster, managers, address, data_path_address, drained: false }
    }

    fn standing(&self) -> std::sync::MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) async fn shutdown(&self) {
        let manager = self.standing().manager.take();
        if let Some(manager) = manager {
            manager.shutdown().await;
        }
    }

    /// Ends the manager and forgets its cluster.
    async fn erase(&self) -> Result<(), ControlError> {
        self.shutdown().await;
        for path in [&self.config.store, &self.config.socket, &self.config.key] {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(internal(format!("remove {}: {error}", path.display())));
                }
                _ => {}
            }
        }
        self.standing().error = None;
        Ok(())
    }
}

#[async_trait]
impl Swarm for Membership {
    fn manager(&self) -> Option<Manager> {
        self.standing().manager.clone()
    }

    fn local_state(&self) -> LocalState {
        if let Some(error) = self.standing().error.clone() {
            return LocalState::Error(error);
        }
        let session = self.agent.session().borrow().clone();
        match (self.agent.membership(), session) {
            (Some(_), SessionState::Refused(reason)) => LocalState::Error(reason),
            (Some(member), _) => LocalState::Active { node: member.node, address: member.address },
            (None, _) => LocalState::Inactive,
        }
    }

    fn networks_here(&self) -> Vec<NodeNetwork> {
        self.agent.networks()
    }

    fn local_networks(&self) -> Vec<NodeNetwork> {
        self.agent.local_networks()
    }

    async fn create_local_network(&self, spec: LocalSpec) -> Result<NetworkId, shoal_agent::Error> {
        self.agent.create_network(spec).await
    }

    async fn remove_local_network(&self, id: &NetworkId) -> Result<(), shoal_agent::Error> {
        self.agent.remove_network(id).await
    }

    fn attachable_networks(&self) -> Arc<Vec<Network>> {
        self.agent.attachable_networks()
    }

    async fn init(&self, request: InitRequest) -> Result<NodeId, ControlError> {
        let _changing = self.changing.lock().await;
        if self.agent.membership().is_some() || self.config.store.exists() {
            return Err(ControlError::new(Code::Unavailable, ALREADY_MEMBER));
        }
        let local = addresses::local()?;
        let listen = addresses::listen(&request.listen, &local)?;
        let advertise = addresses::advertise(&request.advertise, listen, &local)?;
        let data_path_address =
            addresses::data_path(&request.data_path, Some(advertise.ip()), &local)?.unwrap_or(advertise.ip());
        let options = InitOptions {
            node_name: self.node_name.clone(),
            listen,
            advertise,
            data_path_address,
            spec: request.spec,
            availability: request.availability,
            description: self.agent.description(),
        };
        let (manager, node) = match Manager::init(self.config.clone(), options).await {
            Ok(begun) => begun,
            Err(error) => {
                self.erase().await?;
                return Err(error.into());
            }
        };
        self.standing().manager = Some(manager);
        let membership = self.joined(node.clone(), advertise.ip(), data_path_address);
        if let Err(error) = self.agent.join(membership).await {
            self.erase().await?;
            return Err(internal(error.to_string()));
        }
        Ok(node)
    }

    fn remote_managers(&self) -> Vec<(Option<NodeId>, String)> {
        match self.agent.membership().map(|member| member.managers) {
            Some(Managers::Remote { managers, .. }) => {
                managers.into_iter().map(|RemoteManager { node, address }| (node, address)).collect()
            }
            _ => Vec::new(),
        }
    }

    async fn join(&self, request: JoinRequest) -> Result<(), ControlError> {
        let _changing = self.changing.lock().await;
        if self.agent.membership().is_some() || self.config.store.exists() {
            return Err(ControlError::new(Code::Unavailable, ALREADY_MEMBER));
        }
        let local = addresses::local()?;
        let address = addresses::worker(&request.advertise, &local)?;
        let wish = Enrolment {
            token: request.token,
            managers: request.managers.iter().map(|address| addresses::remote(address)).collect(),
            description: self.agent.description(),
            availability: request.availability,
            address,
            data_path_address: addresses::data_path(&request.data_path, address, &local)?,
        };
        let membership = shoal_agent::enrol(&wish).await.map_err(not_enrolled)?;
        let mut session = self.agent.session();
        self.agent.join(membership).await.map_err(|error| internal(error.to_string()))?;
        let open = session.wait_for(|state| *state == SessionState::Open);
        match tokio::time::timeout(JOIN_MAX, open).await {
            Ok(_) => Ok(()),
            Err(_) => Err(ControlError::new(Code::Unavailable, JOIN_OVERDUE)),
        }
    }

    async fn leave(&self, force: bool) -> Result<(), ControlError> {
        let _changing = self.changing.lock().await;
        let is_manager = self.config.store.exists();
        if !is_manager && self.agent.membership().is_none() {
            return Err(ControlError::new(Code::Unavailable, NOT_A_MEMBER));
        }
        if is_manager && !force {
            return Err(ControlError::new(Code::Unavailable, LAST_MANAGER));
        }
        // The manager first, so that it does not replace the tasks that are being removed.
        self.erase().await?;
        self.agent.leave().await.map_err(|error| internal(error.to_string()))
    }
}

fn not_enrolled(error: EnrolmentError) -> ControlError {
    let code = match &error {
        EnrolmentError::Token(_) => Code::InvalidArgument,
        EnrolmentError::Unreachable(_) => Code::Unavailable,
        EnrolmentError::Unusable(_) => Code::Internal,
        EnrolmentError::OtherCluster { .. }
        | EnrolmentError::Clock { .. }
        | EnrolmentError::Impostor { .. }
        | EnrolmentError::Refused(_) => Code::FailedPrecondition,
    };
    ControlError::new(code, error.to_string())
}

fn internal(message: String) -> ControlError {
    ControlError::new(Code::Internal, message)
}
