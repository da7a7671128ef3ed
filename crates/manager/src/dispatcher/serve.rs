//! The two servers behind the doors.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use shoal_protocol::MAX_FRAME_BYTES;
use shoal_protocol::cluster::certificates_server::CertificatesServer;
use shoal_protocol::cluster::enrolment_server::EnrolmentServer;
use shoal_protocol::session::dispatcher_server::DispatcherServer;
use tonic::transport::Server;

use super::Dispatcher;
use super::listener::Doors;
use super::session::Sessions;
use crate::ca::{ClusterKey, Enrolling, Renewing};

/// Sessions get so long to end when the manager stops.
const STOP_WAIT_MAX: Duration = Duration::from_secs(5);
/// Enrolling takes no longer, and keeps no connection longer.
const ENROLMENT_MAX: Duration = Duration::from_secs(30);
/// Largest message of a machine that is no node yet.
const ENROLMENT_BYTES_MAX: usize = 64 << 10;

/// Serves until the manager stops.
pub(super) async fn serve(dispatcher: Arc<Dispatcher>, doors: Doors, key: Arc<ClusterKey>, socket: PathBuf) {
    let shared = dispatcher.shared.clone();
    let stop = shared.stop.clone();
    let sessions = DispatcherServer::new(Sessions(dispatcher))
        .max_decoding_message_size(MAX_FRAME_BYTES)
        .max_encoding_message_size(MAX_FRAME_BYTES);
    let renewing = CertificatesServer::new(Renewing { shared: shared.clone(), key: key.clone() })
        .max_decoding_message_size(ENROLMENT_BYTES_MAX);
    let members = Server::builder()
        .add_service(sessions)
        .add_service(renewing)
        .serve_with_incoming_shutdown(doors.members, stop.clone().cancelled_owned());
    let enrolling =
        EnrolmentServer::new(Enrolling { shared, key }).max_decoding_message_size(ENROLMENT_BYTES_MAX);
    let candidates = Server::builder()
        .timeout(ENROLMENT_MAX)
        .max_connection_age(ENROLMENT_MAX)
        .max_connection_age_grace(ENROLMENT_MAX)
        .max_concurrent_streams(2)
        .add_service(enrolling)
        .serve_with_incoming_shutdown(doors.candidates, stop.clone().cancelled_owned());
    let overdue = async {
        stop.cancelled().await;
        tokio::time::sleep(STOP_WAIT_MAX).await;
    };
    tokio::select! {
        served = futures::future::try_join(members, candidates) => if let Err(error) = served {
            tracing::error!(%error, "nodes are not served any more");
        },
        () = overdue => tracing::warn!("a node's session did not end in time"),
    }
    // Already gone when the run directory is.
    let _ = std::fs::remove_file(socket);
}
