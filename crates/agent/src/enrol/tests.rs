//! Enrolment with managers that are not what they should be.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, IsCa, Issuer, KeyPair,
    PKCS_ECDSA_P256_SHA256,
};
use shoal_protocol::cluster::enrolment_server::{Enrolment as Service, EnrolmentServer};
use shoal_protocol::identity::{MANAGER_NAME, WORKER_NAME};
use shoal_protocol::token::Secret;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::*;

/// A certificate authority as a manager has one.
struct Ca {
    pem: String,
    digest: RootDigest,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    fn new() -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap();
        let (pem, digest) = (root.pem(), RootDigest::of(root.der()));
        Self { pem, digest, issuer: Issuer::new(params, key) }
    }

    fn token(&self) -> String {
        JoinToken { digest: self.digest, secret: Secret::new([7; 16]) }.to_string()
    }

    fn credentials(&self, name: &str) -> Credentials {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Credentials { certificate, key: key.serialize_pem(), roots: self.pem.clone() }
    }
}

/// A manager that says what a test wants it to say.
struct FakeManager {
    ca: Ca,
    /// The root it claims to have.
    root: String,
    clock_ahead_ms: i64,
    refuses: Option<Status>,
    asked: tokio::sync::mpsc::UnboundedSender<IssueRequest>,
}

#[tonic::async_trait]
impl Service for FakeManager {
    async fn roots(&self, _: Request<RootsRequest>) -> Result<Response<RootsResponse>, Status> {
        let now_ms = Timestamp::now().as_millisecond() + self.clock_ahead_ms;
        Ok(Response::new(RootsResponse { root: self.root.clone(), now_ms }))
    }

    async fn issue(&self, request: Request<IssueRequest>) -> Result<Response<Issued>, Status> {
        let request = request.into_inner();
        self.asked.send(request.clone()).unwrap();
        if let Some(refusal) = &self.refuses {
            return Err(refusal.clone());
        }
        let signing = request.signing_request.to_vec();
        let mut params = CertificateSigningRequestParams::from_der(&signing.as_slice().into()).unwrap();
        params.params.distinguished_name.push(DnType::CommonName, "node9");
        Ok(Response::new(Issued {
            node_id: "node9".to_owned(),
            cluster_id: "cluster9".to_owned(),
            certificate: params.signed_by(&self.ca.issuer).unwrap().pem(),
            roots: self.ca.pem.clone(),
        }))
    }
}

/// Such a manager, served.
struct Stage {
    address: String,
    ca_token: String,
    asked: tokio::sync::mpsc::UnboundedReceiver<IssueRequest>,
}

impl Stage {
    async fn set(server_name: &str, change: impl FnOnce(&mut FakeManager)) -> Self {
        let ca = Ca::new();
        let (asked_out, asked) = tokio::sync::mpsc::unbounded_channel();
        let root = ca.pem.clone();
        let mut manager = FakeManager { ca, root, clock_ahead_ms: 0, refuses: None, asked: asked_out };
        change(&mut manager);
        let ca_token = manager.ca.token();
        let acceptor = TlsAcceptor::from(tls::server(&manager.ca.credentials(server_name)).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (connections, incoming) = tokio::sync::mpsc::channel(4);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let (near, mut far) = tokio::io::duplex(64 << 10);
                tokio::spawn(async move { tokio::io::copy_bidirectional(&mut stream, &mut far).await });
                let _ = connections.send(Ok::<_, std::io::Error>(near)).await;
            }
        });
        let server = tonic::transport::Server::builder()
            .add_service(EnrolmentServer::from_arc(Arc::new(manager)))
            .serve_with_incoming(ReceiverStream::new(incoming));
        tokio::spawn(server);
        Self { address, ca_token, asked }
    }

    fn wish(&self) -> Enrolment {
        Enrolment {
            token: self.ca_token.clone(),
            managers: vec![self.address.clone()],
            description: NodeDescription { hostname: "nine".to_owned(), ..NodeDescription::default() },
            availability: Availability::Pause,
            address: None,
            data_path_address: None,
        }
    }

    /// Whether anybody was shown the token's secret.
    fn secret_was_shown(&mut self) -> bool {
        self.asked.try_recv().is_ok()
    }
}

#[tokio::test]
async fn a_machine_becomes_a_node_with_the_address_it_is_seen_at() {
    let mut stage = Stage::set(MANAGER_NAME, |_| {}).await;
    let member = enrol(&stage.wish()).await.unwrap();
    assert_eq!((member.node.as_str(), member.cluster), ("node9", Some(ClusterId::new("cluster9"))));
    let here: IpAddr = [127, 0, 0, 1].into();
    assert_eq!((member.address, member.data_path_address), (here, here));
    let Managers::Remote { managers, .. } = member.managers else { panic!("a remote manager") };
    assert_eq!(managers, [RemoteManager { node: None, address: stage.address.clone() }]);
    let asked = stage.asked.recv().await.unwrap();
    assert_eq!(asked.token, stage.ca_token);
    assert_eq!(shoal_protocol::decode::<Availability>(&asked.availability).unwrap(), Availability::Pause);
}

#[tokio::test]
async fn a_manager_of_another_cluster_is_not_shown_the_secret() {
    let mut stage = Stage::set(MANAGER_NAME, |_| {}).await;
    let wish = Enrolment { token: Ca::new().token(), ..stage.wish() };
    let error = enrol(&wish).await.unwrap_err();
    assert!(error.to_string().contains("remote CA does not match fingerprint"), "{error}");
    assert!(!stage.secret_was_shown());
}

/// Somebody in between can repeat the root, which is no secret, but cannot serve with it.
#[tokio::test]
async fn somebody_who_only_repeats_the_root_is_not_shown_the_secret() {
    let real = Ca::new();
    let token = real.token();
    let mut stage = Stage::set(MANAGER_NAME, |manager| manager.root = real.pem).await;
    let error = enrol(&Enrolment { token, ..stage.wish() }).await.unwrap_err();
    assert!(matches!(error, EnrolmentError::Impostor { .. }), "{error}");
    assert!(!stage.secret_was_shown());
}

#[tokio::test]
async fn a_worker_cannot_stand_for_a_manager() {
    let mut stage = Stage::set(WORKER_NAME, |_| {}).await;
    let error = enrol(&stage.wish()).await.unwrap_err();
    assert!(matches!(error, EnrolmentError::Impostor { .. }), "{error}");
    assert!(!stage.secret_was_shown());
}

#[tokio::test]
async fn a_clock_too_far_off_is_said_with_both_times() {
    for minutes in [-6, 6] {
        let mut stage = Stage::set(MANAGER_NAME, |manager| manager.clock_ahead_ms = minutes * 60_000).await;
        let error = enrol(&stage.wish()).await.unwrap_err();
        let EnrolmentError::Clock { ours, theirs, .. } = error else { panic!("{error}") };
        let text = error.to_string();
        assert!(text.contains(&ours.to_string()) && text.contains(&theirs.to_string()), "{text}");
        assert!(!stage.secret_was_shown());
    }
    let stage = Stage::set(MANAGER_NAME, |manager| manager.clock_ahead_ms = 4 * 60_000).await;
    enrol(&stage.wish()).await.unwrap();
}

#[tokio::test]
async fn a_refusal_is_told_as_the_manager_says_it() {
    let refuses = Some(Status::invalid_argument("A valid join token is necessary to join this cluster"));
    let stage = Stage::set(MANAGER_NAME, |manager| manager.refuses = refuses).await;
    let error = enrol(&stage.wish()).await.unwrap_err();
    assert_eq!(error.to_string(), "A valid join token is necessary to join this cluster");
}

#[tokio::test]
async fn the_first_manager_that_answers_decides_and_without_one_every_reason_is_named() {
    let stage = Stage::set(MANAGER_NAME, |_| {}).await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let managers = vec![closed.clone(), stage.address.clone()];
    enrol(&Enrolment { managers, ..stage.wish() }).await.unwrap();
    let nobody = Enrolment { managers: vec![closed.clone()], ..stage.wish() };
    let error = enrol(&nobody).await.unwrap_err().to_string();
    assert!(error.contains(&closed) && error.contains("refused"), "{error}");
}

#[tokio::test]
async fn what_is_no_token_is_asked_of_nobody() {
    let mut stage = Stage::set(MANAGER_NAME, |_| {}).await;
    let error = enrol(&Enrolment { token: "nonsense".to_owned(), ..stage.wish() }).await.unwrap_err();
    assert_eq!(error.to_string(), "invalid join token");
    assert!(!stage.secret_was_shown());
}
