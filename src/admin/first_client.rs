//! The first client: it is registered without an administrator, since there is none yet.

use secrecy::SecretString;

use super::{Clients, client_secrets::NewSecret, clients::blank};
use crate::{
    error::{Error, Result},
    model::{Action, Call, Client, ClientCredential, ClientId, Grants, Scopes, TenantId},
    oauth::{ADMIN, introspection::INTROSPECT_ANY},
    store::{Creation, StoreError, Write},
};

/// Id of the first client.
const BOOTSTRAP: &str = "bootstrap";

impl Clients {
    /// The first client of an empty store: it may administer and introspect any token. On a store
    /// that has clients, the id of that client if it is still there, and no secret: that is not
    /// known afterwards.
    pub async fn bootstrap(&self, call: &Call) -> Result<Option<(ClientId, Option<SecretString>)>> {
        let id: ClientId = BOOTSTRAP.parse().map_err(Error::invalid("client_id"))?;
        match self.store.client(&id).await {
            Ok(None) => {}
            // One that cannot be read has the name too, and must not keep the service from
            // starting.
            Ok(Some(_)) | Err(StoreError::Corrupt(_)) => return Ok(Some((id, None))),
            Err(error) => return Err(error.into()),
        }
        if !self.store.clients(None, None, 1).await?.is_empty() {
            return Ok(None);
        }
        let scopes = Scopes::parse(&[ADMIN, INTROSPECT_ANY]).map_err(Error::invalid("scopes"))?;
        let (secret, value) =
            self.secrets.make(&TenantId::operator(), NewSecret::Generated, None, call.now).await?;
        let client = Client {
            display_name: "first administrator".to_owned(),
            default_scopes: scopes.clone(),
            scopes,
            grants: Grants { client_credentials: true, refresh_token: true },
            credentials: vec![ClientCredential::Secret(secret)],
            ..blank(id.clone(), TenantId::operator(), call.now)
        };
        let stamp = call.stamp_of(&client.tenant, &client.id, None);
        match self
            .store
            .create_client(&client, stamp.done(Action::ClientCreated, id.as_str()))
            .await?
        {
            Creation::Created => Ok(Some((id, value))),
            Creation::Taken => Ok(Some((id, None))),
        }
    }

    /// Deletes the first client again, whose secret could not be shown, with what was issued to it.
    pub async fn take_back(&self, call: &Call, id: &ClientId) -> Result<()> {
        let Some(client) = self.store.client(id).await? else { return Ok(()) };
        let stamp = call.stamp_of(&client.tenant, id, None);
        let because = |action| {
            stamp.done(action, id.as_str()).because("its secret could not be shown".to_owned())
        };
        let client = Client { revision: client.revision + 1, updated_at: call.now, ..client };
        let ended = self.store.end_client(&client, Vec::new(), because(Action::ClientRevoked));
        if ended.await? == Write::Stale {
            return Err(Error::Stale("client"));
        }
        match self.store.delete_client(&client, because(Action::ClientDeleted)).await? {
            Write::Done => Ok(()),
            Write::Stale => Err(Error::Stale("client")),
        }
    }
}
