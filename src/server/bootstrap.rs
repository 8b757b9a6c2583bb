//! First client of an empty store.

use super::{Bootstrap, StartError, open::Opened};
use crate::model::{Call, Peer};

/// Creates the first client unless the store has one; otherwise only names it.
pub(super) async fn first_client(opened: &Opened) -> Result<Option<Bootstrap>, StartError> {
    let call = Call { now: opened.clock.now(), peer: Peer::Local, request_id: "bootstrap".into() };
    let created = opened
        .services
        .admin
        .clients
        .bootstrap(&call)
        .await
        .map_err(|error| StartError::failed("bootstrap")(error.into()))?;
    Ok(created.map(|(client_id, client_secret)| Bootstrap { client_id, client_secret }))
}
