//! How machines become nodes, and nodes get new certificates.

use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use shoal_model::{
    Availability, CertificateInfo, Cluster, Meta, Node, NodeDescription, NodeId, NodeRole, NodeSpec,
    NodeStatus, Object,
};
use shoal_protocol::cluster::certificates_server::Certificates;
use shoal_protocol::cluster::enrolment_server::Enrolment;
use shoal_protocol::cluster::{IssueRequest, Issued, RenewRequest, RootsRequest, RootsResponse};
use shoal_protocol::decode;
use shoal_protocol::identity::Identity;
use shoal_protocol::token::JoinToken;
use tonic::{Request, Response, Status};

use super::{Ca, CaError, ClusterKey, requested_key};
use crate::dispatcher::Peer;
use crate::leader::Shared;
use crate::{Code, ControlError, Error};

/// Docker's text.
const NO_TOKEN: &str = "A valid join token is necessary to join this cluster";
const ONE_MANAGER: &str = "this cluster keeps its state in the embedded store, which serves one manager: join as \
                           a worker, with the token that `docker swarm join-token worker` shows on the manager";

const DATA_PATH_V6: &str = "VXLAN frames are not sent over IPv6 yet: name an IPv4 address of this node with \
                            --data-path-addr";

/// For machines without a certificate.
pub(crate) struct Enrolling {
    pub(crate) shared: Arc<Shared>,
    pub(crate) key: Arc<ClusterKey>,
}

#[tonic::async_trait]
impl Enrolment for Enrolling {
    async fn roots(&self, _: Request<RootsRequest>) -> Result<Response<RootsResponse>, Status> {
        let cluster = cluster(&self.shared)?;
        let root = cluster.authority.root.pem.clone();
        Ok(Response::new(RootsResponse { root, now_ms: Timestamp::now().as_millisecond() }))
    }

    async fn issue(&self, request: Request<IssueRequest>) -> Result<Response<Issued>, Status> {
        let request = request.into_inner();
        let cluster = cluster(&self.shared)?;
        self.admit(&cluster, &request.token)?;
        let applicant = Applicant::read(&request)?;
        let certifying = Ca::open(cluster.certifying(), &self.key).map_err(broken)?;
        let now = Timestamp::now();
        let node = self.enlist(&cluster, &applicant, now).await?;
        tracing::info!(%node, address = %applicant.address, hostname = applicant.description.hostname, "a node joined");
        certificate(&cluster, &certifying, &applicant.key, node, now)
    }
}

impl Enrolling {
    /// Only workers: one manager owns the embedded store.
    fn admit(&self, cluster: &Cluster, token: &str) -> Result<(), Status> {
        let token: JoinToken = token.parse().map_err(|_| Status::invalid_argument(NO_TOKEN))?;
        let ca = Ca::open(&cluster.authority, &self.key).map_err(broken)?;
        match ca.admits(&token) {
            Some(NodeRole::Worker) => Ok(()),
            Some(NodeRole::Manager) => Err(Status::failed_precondition(ONE_MANAGER)),
            None => Err(Status::invalid_argument(NO_TOKEN)),
        }
    }

    async fn enlist(
        &self,
        cluster: &Cluster,
        applicant: &Applicant,
        now: Timestamp,
    ) -> Result<NodeId, Status> {
        let life = i64::try_from(cluster.spec.certificate_expiry.as_secs()).unwrap_or(i64::MAX);
        let certificate = CertificateInfo {
            issuer: cluster.certifying().root.public_key.clone(),
            // To the second, as certificates have it.
            expires: Timestamp::from_second(now.as_second().saturating_add(life)).unwrap_or(Timestamp::MAX),
        };
        let enlisted = self.shared.transact(|draft, now, ids| {
            let id = NodeId::new(ids.object_id());
            draft.put(Object::Node(Node {
                id: id.clone(),
                meta: Meta::new(now.wall),
                spec: NodeSpec {
                    name: String::new(),
                    labels: Default::default(),
                    role: NodeRole::Worker,
                    availability: applicant.availability,
                },
                description: applicant.description.clone(),
                status: NodeStatus::unheard(applicant.address, now.wall),
                data_path_address: applicant.data_path_address,
                ingress: None,
                manager: None,
                certificate: Some(certificate.clone()),
            }));
            Ok::<_, Error>(id)
        });
        enlisted.await.map_err(|error| refused(error.into()))
    }
}

/// What a machine says of itself, understood.
struct Applicant {
    key: rcgen::PublicKey,
    description: NodeDescription,
    availability: Availability,
    address: IpAddr,
    data_path_address: IpAddr,
}

impl Applicant {
    fn read(request: &IssueRequest) -> Result<Self, Status> {
        let malformed = |error: shoal_protocol::MalformedPayload| Status::invalid_argument(error.to_string());
        let address = |text: &str| {
            let address = text.parse::<IpAddr>().ok().filter(|address| !address.is_unspecified());
            address.ok_or_else(|| Status::invalid_argument(format!("{text:?} is no address of a node")))
        };
        let data_path_address = address(&request.data_path_address)?;
        if data_path_address.is_ipv6() {
            return Err(Status::invalid_argument(DATA_PATH_V6));
        }
        Ok(Self {
            key: requested_key(&request.signing_request).map_err(unfit)?,
            description: decode(&request.description).map_err(malformed)?,
            availability: decode(&request.availability).map_err(malformed)?,
            address: address(&request.address)?,
            data_path_address,
        })
    }
}

/// For nodes: a new certificate before the old one ends, or when the authority changes.
pub(crate) struct Renewing {
    pub(crate) shared: Arc<Shared>,
    pub(crate) key: Arc<ClusterKey>,
}

#[tonic::async_trait]
impl Certificates for Renewing {
    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<Issued>, Status> {
        let Some(Peer::Member(holder)) = request.extensions().get::<Peer>().cloned() else {
            return Err(Status::permission_denied("only a node with a certificate can renew it"));
        };
        let cluster = cluster(&self.shared)?;
        let identity = &holder.certificate.identity;
        if self.shared.state().node(&identity.node).is_none() || identity.cluster != cluster.id {
            return Err(Status::permission_denied(format!(
                "{} is not a member of the cluster",
                identity.node
            )));
        }
        let key = requested_key(&request.get_ref().signing_request).map_err(unfit)?;
        let certifying = Ca::open(cluster.certifying(), &self.key).map_err(broken)?;
        certificate(&cluster, &certifying, &key, identity.node.clone(), Timestamp::now())
    }
}

fn certificate(
    cluster: &Cluster,
    certifying: &Ca,
    key: &rcgen::PublicKey,
    node: NodeId,
    now: Timestamp,
) -> Result<Response<Issued>, Status> {
    let holder = Identity { node, role: NodeRole::Worker, cluster: cluster.id.clone() };
    let certificate =
        certifying.certify(key, &holder, now, cluster.spec.certificate_expiry).map_err(broken)?;
    Ok(Response::new(Issued {
        node_id: holder.node.to_string(),
        cluster_id: holder.cluster.to_string(),
        certificate,
        roots: cluster.trusted_roots(),
    }))
}

fn cluster(shared: &Shared) -> Result<Arc<Cluster>, Status> {
    let state = shared.state();
    state.cluster().cloned().ok_or_else(|| Status::unavailable("the cluster is not there yet"))
}

/// The authority itself is at fault.
fn broken(error: CaError) -> Status {
    tracing::error!(%error, "no certificate can be issued");
    Status::internal(format!("the manager cannot issue certificates: {error}"))
}

/// What was sent is at fault.
fn unfit(error: CaError) -> Status {
    Status::invalid_argument(format!("signing request: {error}"))
}

fn refused(error: ControlError) -> Status {
    match error.code {
        Code::Unavailable => Status::unavailable(error.message),
        _ => Status::internal(error.message),
    }
}

/// For tests: whether an application could be read.
#[cfg(test)]
pub(super) fn readable(request: &IssueRequest) -> Result<(), Status> {
    Applicant::read(request).map(drop)
}
