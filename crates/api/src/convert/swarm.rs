//! The cluster, both ways.

use ipnet::IpNet;
use shoal_manager::JoinTokens;
use shoal_model as model;

use super::{duration, nanos, node, time};
use crate::engine::{InitRequest, JoinRequest};
use crate::error::{ApiError, Result};
use crate::wire::Version;
use crate::wire::swarm as wire;

pub(crate) fn init(request: wire::Init) -> Result<InitRequest> {
    request.auto_lock_managers.refuse("locked managers (autolock) are")?;
    let mut spec = spec(request.spec.unwrap_or_default(), model::ClusterSpec::default())?;
    let pools = request.default_addr_pool.unwrap_or_default();
    if !pools.is_empty() {
        spec.default_pools = pools.iter().map(|text| pool(text)).collect::<Result<_>>()?;
    }
    if let Some(size) = request.subnet_size.filter(|&size| size != 0) {
        spec.default_subnet_size =
            u8::try_from(size).ok().filter(|size| (8..=29).contains(size)).ok_or_else(|| {
                ApiError::bad_request(format!("invalid subnet size {size}: must be from 8 to 29"))
            })?;
    }
    if let Some(port) = request.data_path_port.filter(|&port| port != 0) {
        spec.data_path_port =
            u16::try_from(port).ok().filter(|&port| (1024..=49151).contains(&port)).ok_or_else(|| {
                ApiError::bad_request("Datapath port number is not in valid range (1024-49151)".to_owned())
            })?;
    }
    Ok(InitRequest {
        listen: request.listen_addr.unwrap_or_default(),
        advertise: request.advertise_addr.unwrap_or_default(),
        data_path: request.data_path_addr.unwrap_or_default(),
        availability: node::availability(request.availability.as_deref())?,
        spec,
        force_new_cluster: request.force_new_cluster.unwrap_or_default(),
    })
}

pub(crate) fn join(request: wire::Join) -> Result<JoinRequest> {
    let managers = request.remote_addrs.unwrap_or_default();
    if managers.is_empty() {
        // Docker's text.
        return Err(ApiError::bad_request("at least 1 RemoteAddr is required to join"));
    }
    Ok(JoinRequest {
        token: request.join_token.unwrap_or_default(),
        managers,
        advertise: request.advertise_addr.unwrap_or_default(),
        data_path: request.data_path_addr.unwrap_or_default(),
        availability: node::availability(request.availability.as_deref())?,
    })
}

fn pool(text: &str) -> Result<IpNet> {
    text.parse::<IpNet>().map(|pool| pool.trunc()).map_err(|_| {
        ApiError::bad_request(format!("invalid default address pool: invalid CIDR address: {text}"))
    })
}

/// A cluster's settings as a client declares them; what it leaves out stays as in `current`.
pub(crate) fn spec(spec: wire::Spec, current: model::ClusterSpec) -> Result<model::ClusterSpec> {
    if spec.encryption_config.is_some_and(|config| config.auto_lock_managers) {
        return Err(ApiError::unsupported("locked managers (autolock) are"));
    }
    if let Some(defaults) = spec.task_defaults {
        defaults.log_driver.refuse("a cluster-wide log driver is")?;
    }
    let ca = spec.ca_config.unwrap_or_default();
    ca.external_cas.refuse("external certificate authorities are")?;
    ca.signing_ca_cert.refuse("a certificate authority of one's own is")?;
    ca.signing_ca_key.refuse("a certificate authority of one's own is")?;
    let history = spec.orchestration.unwrap_or_default().task_history;
    let period = |nanos: Option<i64>, what: &str, current| match nanos {
        None | Some(0) => Ok(current),
        Some(nanos) => duration(nanos, what),
    };
    Ok(model::ClusterSpec {
        name: match spec.name.as_deref() {
            None | Some("" | "default") => "default".to_owned(),
            Some(_) => return Err(ApiError::bad_request("swarm spec must be named \"default\"")),
        },
        labels: spec.labels.unwrap_or_default(),
        task_history: match history {
            None => current.task_history,
            // Docker reads a negative number as "keep everything".
            Some(limit) => u64::try_from(limit).unwrap_or(u64::MAX),
        },
        heartbeat_period: period(
            spec.dispatcher.unwrap_or_default().heartbeat_period,
            "heartbeat period",
            current.heartbeat_period,
        )?,
        certificate_expiry: period(
            ca.node_cert_expiry,
            "node certificate expiry",
            current.certificate_expiry,
        )?,
        force_rotate: ca.force_rotate.unwrap_or(current.force_rotate),
        ..current
    })
}

/// Tokens are secrets: `GET /swarm` shows them, `docker info` does not.
pub(crate) fn cluster(cluster: &model::Cluster, tokens: Option<JoinTokens>) -> wire::Cluster {
    let spec = &cluster.spec;
    let own_pools = spec.default_pools != model::ClusterSpec::default().default_pools;
    let pools = own_pools.then(|| spec.default_pools.iter().map(ToString::to_string).collect());
    wire::Cluster {
        id: cluster.id.to_string(),
        version: Version { index: cluster.meta.version },
        created_at: time(cluster.meta.created),
        updated_at: time(cluster.meta.updated),
        spec: wire::Spec {
            name: Some(spec.name.clone()),
            labels: Some(spec.labels.clone()),
            orchestration: Some(wire::Orchestration {
                task_history: Some(i64::try_from(spec.task_history).unwrap_or(-1)),
            }),
            raft: Some(wire::Raft::default()),
            dispatcher: Some(wire::Dispatcher { heartbeat_period: Some(nanos(spec.heartbeat_period)) }),
            ca_config: Some(wire::CaConfig {
                node_cert_expiry: Some(nanos(spec.certificate_expiry)),
                force_rotate: Some(spec.force_rotate).filter(|&count| count != 0),
                ..wire::CaConfig::default()
            }),
            task_defaults: Some(wire::TaskDefaults::default()),
            encryption_config: Some(wire::EncryptionConfig::default()),
        },
        // What certificates are to be of: during a rotation, the root to come.
        tls_info: tls_info(&cluster.certifying().root, cluster.certifying().root.pem.clone()),
        root_rotation_in_progress: cluster.next_authority.is_some(),
        default_addr_pool: pools,
        subnet_size: u32::from(spec.default_subnet_size),
        data_path_port: u32::from(spec.data_path_port),
        join_tokens: tokens.map(|tokens| wire::JoinTokens { worker: tokens.worker, manager: tokens.manager }),
    }
}

pub(crate) fn tls_info(issuer: &model::RootCertificate, trust_root: String) -> wire::TlsInfo {
    wire::TlsInfo {
        trust_root,
        cert_issuer_subject: issuer.subject.clone(),
        cert_issuer_public_key: issuer.public_key.clone(),
    }
}
