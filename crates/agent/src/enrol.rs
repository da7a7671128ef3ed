//! How a machine becomes a node of another machine's cluster.
//!
//! It trusts nobody at first. It asks for the cluster's root certificate, which only counts if its
//! digest is the one in the join token; only over a connection that this root vouches for does it show
//! the token's secret.

use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use shoal_model::{Availability, ClusterId, NodeDescription, NodeId};
use shoal_protocol::cluster::enrolment_client::EnrolmentClient;
use shoal_protocol::cluster::{IssueRequest, Issued, RootsRequest, RootsResponse};
use shoal_protocol::identity::{BadCredentials, Credentials, SigningRequest, certificates};
use shoal_protocol::token::{InvalidToken, JoinToken, RootDigest};
use shoal_protocol::{encode, tls};

use crate::link::{dial, over, reasons, secured};
use crate::{Managers, Membership, RemoteManager};

/// How far the clocks of a node and its manager may be apart: certificates are backdated further.
const CLOCK_DIFFERENCE_MAX: Duration = Duration::from_secs(5 * 60);
/// For each question to a manager.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// What a machine needs to join.
#[derive(Debug, Clone)]
pub struct Enrolment {
    pub token: String,
    /// `host:port` each.
    pub managers: Vec<String>,
    pub description: NodeDescription,
    pub availability: Availability,
    /// `None`: the address from which the manager is reached.
    pub address: Option<IpAddr>,
    /// `None`: the same as `address`.
    pub data_path_address: Option<IpAddr>,
}

/// Why a machine did not become a node.
#[derive(Debug, thiserror::Error)]
pub enum EnrolmentError {
    #[error(transparent)]
    Token(#[from] InvalidToken),
    #[error("no manager could be reached: {0}")]
    Unreachable(String),
    /// SwarmKit's text.
    #[error(
        "remote CA does not match fingerprint. Expected: {expected}, the manager at {address} has {found}: \
             the token is of another cluster, or its certificate authority has been rotated since"
    )]
    OtherCluster { address: String, expected: RootDigest, found: RootDigest },
    #[error(
        "the clock of this node shows {ours}, that of the manager at {address} {theirs}: they may differ by \
             5 minutes at most; set the clock and join again"
    )]
    Clock { address: String, ours: Timestamp, theirs: Timestamp },
    #[error("the manager at {address} cannot prove that it belongs to the cluster: {reason}")]
    Impostor { address: String, reason: String },
    #[error("{0}")]
    Refused(String),
    #[error("the manager sent what cannot be used: {0}")]
    Unusable(#[from] BadCredentials),
}

/// Becomes a node. The first manager that answers decides.
pub async fn enrol(wish: &Enrolment) -> Result<Membership, EnrolmentError> {
    let token: JoinToken = wish.token.parse()?;
    let mut unreachable = Vec::new();
    for address in &wish.managers {
        match through(wish, &token, address).await {
            Err(EnrolmentError::Unreachable(reason)) => unreachable.push(format!("{address}: {reason}")),
            decided => return decided,
        }
    }
    Err(EnrolmentError::Unreachable(unreachable.join("; ")))
}

async fn through(wish: &Enrolment, token: &JoinToken, address: &str) -> Result<Membership, EnrolmentError> {
    let answer = ask_roots(address).await?;
    let root = checked_root(&answer, token, address)?;
    check_clock(Timestamp::now(), &answer, address)?;
    let stream = dial(address).await.map_err(|error| unreachable(&error))?;
    let local = stream.local_addr().map_err(|error| unreachable(&error))?.ip();
    let own = wish.address.unwrap_or(local);
    let data_path = wish.data_path_address.unwrap_or(own);
    let impostor = |error| EnrolmentError::Impostor { address: address.to_owned(), reason: reasons(&error) };
    let stream = secured(stream, tls::candidate(&root)?).await.map_err(impostor)?;
    let channel = over(stream).await.map_err(|error| unreachable(&error))?;
    let signing = SigningRequest::new()?;
    let request = IssueRequest {
        token: wish.token.clone(),
        signing_request: signing.request.into(),
        description: encode(&wish.description),
        availability: encode(&wish.availability),
        address: own.to_string(),
        data_path_address: data_path.to_string(),
    };
    let issued = in_time(EnrolmentClient::new(channel).issue(request)).await?;
    membership(issued, signing.key, address, own, data_path)
}

/// Asks whoever answers at this address.
async fn ask_roots(address: &str) -> Result<RootsResponse, EnrolmentError> {
    let stream = dial(address).await.map_err(|error| unreachable(&error))?;
    let stream = secured(stream, tls::stranger()?).await.map_err(|error| unreachable(&error))?;
    let channel = over(stream).await.map_err(|error| unreachable(&error))?;
    in_time(EnrolmentClient::new(channel).roots(RootsRequest {})).await
}

async fn in_time<T>(
    asking: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, EnrolmentError> {
    match tokio::time::timeout(ANSWER_MAX, asking).await {
        Err(_) => Err(EnrolmentError::Unreachable("no answer".to_owned())),
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) if status.code() == tonic::Code::Unavailable => {
            Err(EnrolmentError::Unreachable(reasons(&status)))
        }
        Ok(Err(status)) => Err(EnrolmentError::Refused(status.message().to_owned())),
    }
}

fn unreachable(error: &std::io::Error) -> EnrolmentError {
    EnrolmentError::Unreachable(reasons(error))
}

/// The root that the token vouches for.
fn checked_root(answer: &RootsResponse, token: &JoinToken, address: &str) -> Result<String, EnrolmentError> {
    let roots = certificates(&answer.root)?;
    let [root] = roots.as_slice() else {
        return Err(BadCredentials::Certificate("one root certificate is expected".to_owned()).into());
    };
    let found = RootDigest::of(root);
    if found != token.digest {
        return Err(EnrolmentError::OtherCluster {
            address: address.to_owned(),
            expected: token.digest,
            found,
        });
    }
    Ok(answer.root.clone())
}

/// With clocks too far apart, certificates would not be valid yet, or too soon not any more.
fn check_clock(ours: Timestamp, answer: &RootsResponse, address: &str) -> Result<(), EnrolmentError> {
    let theirs = Timestamp::from_millisecond(answer.now_ms).unwrap_or_default();
    if ours.duration_since(theirs).unsigned_abs() > CLOCK_DIFFERENCE_MAX {
        return Err(EnrolmentError::Clock { address: address.to_owned(), ours, theirs });
    }
    Ok(())
}

fn membership(
    issued: Issued,
    key: String,
    manager: &str,
    address: IpAddr,
    data_path_address: IpAddr,
) -> Result<Membership, EnrolmentError> {
    let credentials = Credentials { certificate: issued.certificate, key, roots: issued.roots };
    // Nothing that cannot be used is kept.
    tls::node(&credentials)?;
    Ok(Membership {
        node: NodeId::new(issued.node_id),
        cluster: Some(ClusterId::new(issued.cluster_id)),
        managers: Managers::Remote {
            managers: vec![RemoteManager { node: None, address: manager.to_owned() }],
            credentials,
        },
        address,
        data_path_address,
        drained: false,
    })
}

#[cfg(test)]
mod tests;
