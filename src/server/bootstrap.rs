//! First client of an empty store.

use super::{Bootstrap, StartError, open::Opened};
use crate::model::{Call, ClientId, Peer};

/// Creates the first client unless the store has one; otherwise only names it.
pub(super) async fn first_client(opened: &Opened) -> Result<Option<Bootstrap>, StartError> {
    let call = call(opened);
    let created = opened
        .services
        .admin
        .clients
        .bootstrap(&call)
        .await
        .map_err(|error| StartError::failed("bootstrap")(error.into()))?;
    Ok(created.map(|(client_id, client_secret)| Bootstrap { client_id, client_secret }))
}

/// Deletes a new administrator again whose secret was not shown: a first client would only keep the
/// next start from creating another. Returns the error for the operator.
pub(super) async fn take_back(opened: &Opened, id: &ClientId, error: StartError) -> StartError {
    match opened.services.admin.clients.take_back(&call(opened), id).await {
        Ok(()) => error.and("the new client is deleted again"),
        Err(kept) => error.and(&format!("the new client {id} cannot be deleted again: {kept}")),
    }
}

fn call(opened: &Opened) -> Call {
    Call { now: opened.clock.now(), peer: Peer::Local, request_id: "bootstrap".into() }
}
