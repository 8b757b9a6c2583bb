//! Everything about a request that is not in its message.

use std::{fmt, net::IpAddr, sync::Arc};

use super::{
    auth_method::AuthMethod,
    event::Stamp,
    id::{ClientId, TenantId},
    principal::Principal,
    time::Timestamp,
};

/// Origin of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    /// An address, without the port.
    Ip(IpAddr),
    /// The command line or a background task of this process.
    Local,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Local => f.write_str("local"),
        }
    }
}

/// A request's circumstances, fixed when it arrives: rules read the time here and nowhere else.
#[derive(Clone, Debug)]
pub struct Call {
    /// Time of arrival.
    pub now: Timestamp,
    /// Origin.
    pub peer: Peer,
    /// The caller's `x-request-id` where it is 1 to 64 of `[A-Za-z0-9._-]`, otherwise a new UUID.
    pub request_id: Arc<str>,
}

impl Call {
    /// A stamp for the audit trail before the caller has authenticated.
    pub fn stamp(&self) -> Stamp {
        Stamp {
            at: self.now,
            peer: self.peer.to_string().into(),
            request_id: self.request_id.clone(),
            tenant: None,
            actor: None,
            auth: None,
        }
    }

    /// A stamp for the audit trail on behalf of a client.
    pub fn stamp_of(
        &self,
        tenant: &TenantId,
        client: &ClientId,
        auth: Option<AuthMethod>,
    ) -> Stamp {
        Stamp {
            tenant: Some(tenant.clone()),
            actor: Some(Principal::Client(client.clone())),
            auth,
            ..self.stamp()
        }
    }
}
