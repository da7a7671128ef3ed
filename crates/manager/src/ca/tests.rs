//! Enrolment and identity against a real manager, over real TLS.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use proptest::prelude::*;
use rustls::ClientConfig;
use shoal_model::*;
use shoal_protocol::cluster::certificates_client::CertificatesClient;
use shoal_protocol::cluster::enrolment_client::EnrolmentClient;
use shoal_protocol::cluster::{IssueRequest, Issued, RenewRequest, RootsRequest};
use shoal_protocol::identity::{Credentials, Identity, NodeCertificate, SigningRequest};
use shoal_protocol::session::dispatcher_client::DispatcherClient;
use shoal_protocol::session::manager_message::Message as Down;
use shoal_protocol::session::node_message::Message as Up;
use shoal_protocol::session::{Hello, ManagerMessage, NodeMessage};
use shoal_protocol::token::JoinToken;
use shoal_protocol::{encode, tls};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code::{InvalidArgument, PermissionDenied, Unimplemented};
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

use super::{Ca, CaError, ClusterKey, new_authority};
use crate::{InitOptions, Manager, ManagerConfig, Rotate};

const PATIENCE: Duration = Duration::from_secs(60);

struct World {
    dir: tempfile::TempDir,
    manager: Manager,
    address: SocketAddr,
}

fn config(dir: &std::path::Path) -> ManagerConfig {
    ManagerConfig {
        store: dir.join("cluster.redb"),
        socket: dir.join("manager.sock"),
        key: dir.join("cluster.key"),
    }
}

impl World {
    async fn new() -> Self {
        Self::listening(([127, 0, 0, 1], 0).into()).await
    }

    async fn listening(listen: SocketAddr) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = InitOptions {
            node_name: "one".into(),
            listen,
            advertise: ([127, 0, 0, 1], 2377).into(),
            data_path_address: [127, 0, 0, 1].into(),
            spec: ClusterSpec::default(),
            availability: Availability::Active,
            description: NodeDescription::default(),
        };
        let (manager, _) = Manager::init(config(dir.path()), options).await.unwrap();
        let address = manager.listening().unwrap();
        Self { dir, manager, address }
    }

    fn root(&self) -> String {
        self.manager.state().cluster().unwrap().authority.root.pem.clone()
    }

    fn token(&self) -> String {
        self.manager.join_tokens().unwrap().worker
    }

    async fn connect(&self, config: Arc<ClientConfig>) -> std::io::Result<Channel> {
        let stream = TcpStream::connect(self.address).await?;
        let stream = TlsConnector::from(config).connect(tls::manager_name(), stream).await?;
        let stream = Mutex::new(Some(TokioIo::new(stream)));
        let once = tower::service_fn(move |_| {
            let stream = stream.lock().unwrap().take();
            std::future::ready(stream.ok_or(std::io::Error::other("used")))
        });
        let endpoint = Endpoint::from_static("http://manager");
        endpoint.connect_with_connector(once).await.map_err(std::io::Error::other)
    }

    async fn candidate(&self) -> Channel {
        self.connect(tls::candidate(&self.root()).unwrap()).await.unwrap()
    }

    async fn issue(&self, request: IssueRequest) -> Result<Issued, Status> {
        let issued = EnrolmentClient::new(self.candidate().await).issue(request).await;
        issued.map(tonic::Response::into_inner)
    }

    /// A machine that becomes a node.
    async fn enrol(&self) -> (NodeId, Credentials) {
        let signing = SigningRequest::new().unwrap();
        let issued = self.issue(application(&self.token(), &signing)).await.unwrap();
        let credentials =
            Credentials { certificate: issued.certificate, key: signing.key, roots: issued.roots };
        (NodeId::new(issued.node_id), credentials)
    }

    /// Says hello as this node with these credentials.
    async fn session(
        &self,
        node: &NodeId,
        credentials: &Credentials,
    ) -> Result<(mpsc::Sender<NodeMessage>, Streaming<ManagerMessage>), Status> {
        let channel = self.connect(tls::node(credentials).unwrap()).await.unwrap();
        let (up, outbound) = mpsc::channel(8);
        let hello = Hello {
            node_id: node.to_string(),
            protocol_min: 1,
            protocol_max: 1,
            description: encode(&NodeDescription::default()),
            held: vec![],
        };
        up.send(NodeMessage { message: Some(Up::Hello(hello)) }).await.unwrap();
        let down = DispatcherClient::new(channel).session(ReceiverStream::new(outbound)).await?;
        Ok((up, down.into_inner()))
    }
}

fn application(token: &str, signing: &SigningRequest) -> IssueRequest {
    IssueRequest {
        token: token.to_owned(),
        signing_request: signing.request.clone().into(),
        description: encode(&NodeDescription { hostname: "two".into(), ..Default::default() }),
        availability: encode(&Availability::Drain),
        address: "192.0.2.2".to_owned(),
        data_path_address: "192.0.2.3".to_owned(),
    }
}

#[tokio::test]
async fn a_machine_with_the_token_becomes_a_node_and_has_a_session() {
    let world = World::new().await;
    let roots = EnrolmentClient::new(world.connect(tls::stranger().unwrap()).await.unwrap())
        .roots(RootsRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(roots.root, world.root());
    assert!((roots.now_ms - Timestamp::now().as_millisecond()).abs() < 60_000);

    let (node, credentials) = world.enrol().await;
    let state = world.manager.state();
    let stored = state.node(&node).unwrap();
    assert_eq!((stored.spec.role, stored.spec.availability), (NodeRole::Worker, Availability::Drain));
    assert_eq!(stored.description.hostname, "two");
    assert_eq!(
        (stored.status.address, stored.data_path_address),
        ([192, 0, 2, 2].into(), [192, 0, 2, 3].into())
    );
    let certificate = NodeCertificate::from_pem(&credentials.certificate).unwrap();
    let cluster = state.cluster().unwrap().id.clone();
    assert_eq!(certificate.identity, Identity { node: node.clone(), role: NodeRole::Worker, cluster });
    let now = Timestamp::now();
    let life = Duration::try_from(certificate.expires.duration_since(now)).unwrap();
    assert!(life <= ClusterSpec::default().certificate_expiry, "{life:?}");
    assert!(certificate.begins < now && certificate.half_life() > now);

    let (_up, mut down) = world.session(&node, &credentials).await.unwrap();
    assert!(matches!(down.message().await.unwrap().unwrap().message, Some(Down::Welcome(_))));
    let Some(Down::Surroundings(around)) = down.message().await.unwrap().unwrap().message else {
        panic!("surroundings follow the welcome")
    };
    assert_eq!(
        (around.roots.as_str(), around.managers[0].address.as_str()),
        (&*world.root(), "127.0.0.1:2377")
    );
}

#[tokio::test]
async fn a_node_speaks_for_itself_alone() {
    let world = World::new().await;
    let (_, credentials) = world.enrol().await;
    let (other, _) = world.enrol().await;
    let refused = world.session(&other, &credentials).await.unwrap_err();
    assert_eq!(refused.code(), PermissionDenied, "{refused}");
    let manager = world.manager.state().nodes().find(|node| node.manager.is_some()).unwrap().id.clone();
    let refused = world.session(&manager, &credentials).await.unwrap_err();
    assert_eq!(refused.code(), PermissionDenied, "{refused}");
}

#[tokio::test]
async fn a_node_that_is_removed_loses_its_session_and_its_certificate_opens_none() {
    let world = World::new().await;
    let (node, credentials) = world.enrol().await;
    let (_up, mut down) = world.session(&node, &credentials).await.unwrap();
    let channel = world.connect(tls::node(&credentials).unwrap()).await.unwrap();
    world.manager.remove_node(&node, true).await.unwrap();
    let ended = async {
        loop {
            match down.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("ended without a reason"),
                Err(status) => return status,
            }
        }
    };
    let ended = tokio::time::timeout(PATIENCE, ended).await.expect("the session ends");
    assert_eq!(ended.code(), PermissionDenied, "{ended}");
    let again = world.session(&node, &credentials).await.unwrap_err();
    assert_eq!(again.code(), PermissionDenied, "{again}");
    let signing_request = SigningRequest::new().unwrap().request.into();
    let renewed = CertificatesClient::new(channel).renew(RenewRequest { signing_request }).await;
    assert_eq!(renewed.unwrap_err().code(), PermissionDenied);
}

#[tokio::test]
async fn without_a_certificate_there_is_enrolment_and_nothing_else() {
    let world = World::new().await;
    let (up, outbound) = mpsc::channel(1);
    let refused = DispatcherClient::new(world.candidate().await).session(ReceiverStream::new(outbound)).await;
    assert_eq!(refused.unwrap_err().code(), Unimplemented);
    drop(up);
    let signing_request = SigningRequest::new().unwrap().request.into();
    let refused =
        CertificatesClient::new(world.candidate().await).renew(RenewRequest { signing_request }).await;
    assert_eq!(refused.unwrap_err().code(), Unimplemented);
    // And members have no business with it.
    let (_, credentials) = world.enrol().await;
    let channel = world.connect(tls::node(&credentials).unwrap()).await.unwrap();
    let refused = EnrolmentClient::new(channel).roots(RootsRequest {}).await;
    assert_eq!(refused.unwrap_err().code(), Unimplemented);
}

#[tokio::test]
async fn a_certificate_that_another_authority_issued_opens_nothing() {
    let (world, other) = (World::new().await, World::new().await);
    let (node, mut credentials) = other.enrol().await;
    // It would believe this manager, but the manager does not believe it.
    credentials.roots = world.root();
    let refused = world.session(&node, &credentials).await.unwrap_err();
    assert_ne!(refused.code(), tonic::Code::Ok);
    assert!(world.manager.state().node(&node).is_none());
    // And a node of this cluster does not believe the other manager.
    let (_, credentials) = world.enrol().await;
    other.connect(tls::node(&credentials).unwrap()).await.unwrap_err();
}

#[tokio::test]
async fn an_expired_certificate_and_one_for_a_worker_do_not_stand_for_a_manager() {
    let world = World::new().await;
    let (node, credentials) = world.enrol().await;
    let (_, other) = world.enrol().await;
    tls::server(&other).expect("a key and a certificate that fit");
    let key = ClusterKey::load(&world.dir.path().join("cluster.key")).unwrap();
    let state = world.manager.state();
    let cluster = state.cluster().unwrap();
    let ca = Ca::open(&cluster.authority, &key).unwrap();
    let holder = Identity { node: node.clone(), role: NodeRole::Worker, cluster: cluster.id.clone() };
    let own = rcgen::KeyPair::from_pem(&credentials.key).unwrap();
    let long_ago = Timestamp::now() - jiff::SignedDuration::from_hours(50);
    let certificate = ca.certify(&own, &holder, long_ago, Duration::from_secs(3600)).unwrap();
    let expired = Credentials { certificate, ..credentials };
    let refused = world.session(&node, &expired).await.unwrap_err();
    let reasons = format!("{refused:?}");
    assert!(reasons.contains("CertificateExpired") || reasons.contains("closed"), "{reasons}");
}

#[tokio::test]
async fn wrong_and_replaced_tokens_are_refused_and_the_managers_token_with_the_remedy() {
    let (world, other) = (World::new().await, World::new().await);
    let signing = SigningRequest::new().unwrap();
    let right = world.token();
    let foreign = other.token();
    let (digest, _) = right.rsplit_once('-').unwrap();
    let (_, secret) = foreign.rsplit_once('-').unwrap();
    for wrong in [String::new(), "SWMTKN-1-x-y".into(), format!("{digest}-{secret}"), foreign.clone()] {
        let refused = world.issue(application(&wrong, &signing)).await.unwrap_err();
        assert_eq!(refused.code(), InvalidArgument, "{wrong}");
        assert_eq!(refused.message(), "A valid join token is necessary to join this cluster");
    }
    let manager = world.manager.join_tokens().unwrap().manager;
    let refused = world.issue(application(&manager, &signing)).await.unwrap_err();
    assert!(refused.message().contains("join as a worker"), "{refused}");

    let cluster = world.manager.state().cluster().unwrap().clone();
    let rotate = Rotate { worker_token: true, manager_token: false };
    world.manager.update_cluster(cluster.meta.version, cluster.spec.clone(), rotate).await.unwrap();
    assert_ne!(world.token(), right);
    assert_eq!(world.manager.join_tokens().unwrap().manager, manager, "the other one stays");
    world.issue(application(&right, &signing)).await.unwrap_err();
    world.issue(application(&world.token(), &signing)).await.unwrap();
}

#[tokio::test]
async fn a_cluster_goes_on_with_its_authority_after_a_restart_and_not_without_its_key() {
    let world = World::new().await;
    let (tokens, root) = (world.manager.join_tokens().unwrap(), world.root());
    let (node, credentials) = world.enrol().await;
    world.manager.shutdown().await;
    let World { dir, .. } = world;
    let manager = Manager::open(config(dir.path())).await.unwrap();
    let address = manager.listening().unwrap();
    let world = World { dir, manager, address };
    assert_eq!((world.manager.join_tokens().unwrap(), world.root()), (tokens, root));
    world.session(&node, &credentials).await.unwrap();
    world.manager.shutdown().await;

    let path = world.dir.path().join("cluster.key");
    let key = std::fs::read(&path).unwrap();
    ClusterKey::create(&path).unwrap();
    let refused = Manager::open(config(world.dir.path())).await.err().unwrap();
    assert!(matches!(refused, crate::Error::Ca(CaError::Unsealed(_))), "{refused}");
    std::fs::write(&path, key).unwrap();
    Manager::open(config(world.dir.path())).await.unwrap().shutdown().await;
}

/// As at boot, when an address may come up after the daemon.
#[tokio::test]
async fn a_manager_that_cannot_listen_yet_serves_its_own_node_and_lets_others_in_once_it_can() {
    let free = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
    let world = World::listening(free).await;
    let (node, credentials) = world.enrol().await;
    world.manager.shutdown().await;

    let World { dir, address, .. } = world;
    let occupied = std::net::TcpListener::bind(address).unwrap();
    let manager = Manager::open(config(dir.path())).await.unwrap();
    let world = World { dir, manager, address };
    tokio::net::UnixStream::connect(world.dir.path().join("manager.sock")).await.unwrap();
    assert_eq!(world.manager.state().nodes().count(), 2);
    drop(occupied);
    let up = async {
        while TcpStream::connect(address).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, up).await.expect("it listens once it can");
    world.session(&node, &credentials).await.unwrap();
}

#[tokio::test]
async fn nothing_secret_is_in_the_store_file() {
    let world = World::new().await;
    let tokens = world.manager.join_tokens().unwrap();
    let key_file = std::fs::read_to_string(world.dir.path().join("cluster.key")).unwrap();
    let key = ClusterKey::load(&world.dir.path().join("cluster.key")).unwrap();
    let authority = world.manager.state().cluster().unwrap().authority.clone();
    let signing = String::from_utf8(key.open(super::SIGNING_KEY, &authority.key).unwrap()).unwrap();
    world.manager.shutdown().await;
    let store = std::fs::read(world.dir.path().join("cluster.redb")).unwrap();
    let holds = |needle: &[u8]| store.windows(needle.len()).any(|window| window == needle);
    assert!(holds(b"sealed") || holds(authority.key.0.as_bytes()), "the search finds what is there");
    for line in signing.lines().filter(|line| !line.starts_with('-')) {
        assert!(!holds(line.as_bytes()), "the signing key");
    }
    assert!(!holds(key_file.trim().as_bytes()), "the cluster key");
    for token in [tokens.worker, tokens.manager] {
        let parsed: JoinToken = token.parse().unwrap();
        let (_, secret) = token.rsplit_once('-').unwrap();
        assert!(!holds(secret.as_bytes()) && !holds(parsed.secret.bytes()), "a token's secret");
    }
}

#[test]
fn a_seal_opens_for_its_purpose_and_its_key_only() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cluster.key");
    let key = ClusterKey::create(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let sealed = key.seal("this", b"secret").unwrap();
    assert_eq!(ClusterKey::load(&path).unwrap().open("this", &sealed).unwrap(), b"secret");
    assert!(key.open("that", &sealed).is_err());
    assert!(ClusterKey::create(&path).unwrap().open("this", &sealed).is_err());
    for damaged in [String::new(), "AAAA".into(), "?".into(), sealed.0.replacen(&sealed.0[20..24], "AAAA", 1)]
    {
        assert!(key.open("this", &Sealed(damaged)).is_err());
    }
    std::fs::write(&path, "rubbish").unwrap();
    assert!(ClusterKey::load(&path).is_err());
}

#[test]
fn every_authority_is_another_one() {
    let dir = tempfile::tempdir().unwrap();
    let key = ClusterKey::create(&dir.path().join("cluster.key")).unwrap();
    let authorities = [(); 2].map(|()| new_authority(&key, Timestamp::now()).unwrap());
    let [a, b] = authorities.map(|authority| Ca::open(&authority, &key).unwrap().tokens());
    assert!(a.worker != b.worker && a.manager != b.manager && a.worker != a.manager);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// What a machine that is no node yet may send.
    #[test]
    fn no_application_brings_the_manager_down(
        signing in prop::collection::vec(any::<u8>(), 0..400),
        cut in 0usize..200,
        flip in any::<(usize, u8)>(),
        text in "\\PC{0,40}",
        payload in prop::collection::vec(any::<u8>(), 0..60),
    ) {
        super::requested_key(&signing).unwrap_err();
        let mut real = SigningRequest::new().unwrap().request;
        let place = flip.0 % real.len();
        let damage = flip.1 | 1;
        real[place] ^= damage;
        let _ = super::requested_key(&real);
        let _ = super::requested_key(&real[..real.len() - cut.min(real.len())]);
        let request = IssueRequest {
            token: text.clone(),
            signing_request: real.into(),
            description: payload.clone().into(),
            availability: payload.into(),
            address: text.clone(),
            data_path_address: text,
        };
        prop_assert!(super::enrolment::readable(&request).is_err());
    }
}
