//! Leases: what is made under one is kept from containerd's garbage collector until it is named.

use std::collections::HashMap;
use std::time::Duration;

use containerd_client::services::v1::{AddResourceRequest, CreateRequest, DeleteRequest, Resource};

use crate::Result;
use crate::client::{Client, ask, optional};

/// A lease that its process did not live to end goes after this time.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
const EXPIRE: &str = "containerd.io/gc.expire";

/// A lease and the connection that works under it.
pub(crate) struct Lease {
    id: String,
    pub(crate) client: Client,
}

impl Lease {
    pub(crate) async fn new(client: &Client) -> Result<Self> {
        let id = format!("shoal-{:032x}", rand::random::<u128>());
        let expires = (jiff::Timestamp::now() + LONGEST).to_string();
        let labels = HashMap::from([(EXPIRE.to_owned(), expires)]);
        let created = ask!(
            client,
            "creating lease",
            leases.create(CreateRequest { id: id.clone(), labels: labels.clone() })
        );
        match created {
            // A repeated attempt finds what the first one made before the connection broke.
            Err(error) if !error.is_already_exists() => Err(error),
            _ => Ok(Self { client: client.under(&id), id }),
        }
    }

    /// Protects something that exists already.
    pub(crate) async fn add(&self, kind: &str, id: &str) -> Result<()> {
        let added = ask!(
            self.client,
            format!("leasing {id}"),
            leases.add_resource(AddResourceRequest {
                id: self.id.clone(),
                resource: Some(Resource { id: id.to_owned(), r#type: kind.to_owned() }),
            })
        );
        match added {
            Err(error) if !error.is_already_exists() => Err(error),
            _ => Ok(()),
        }
    }

    /// Ends the lease. An error is only worth a log line: the lease ends by itself some time.
    pub(crate) async fn end(self) {
        let ended = ask!(
            self.client,
            "deleting lease",
            leases.delete(DeleteRequest { id: self.id.clone(), sync: false })
        );
        if let Err(error) = optional(ended) {
            tracing::warn!(%error, lease = self.id, "a lease stays until it expires");
        }
    }
}
