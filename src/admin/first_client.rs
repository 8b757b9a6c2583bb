//! Administrators that are registered without an administrator: the first client of an empty store,
//! and one that the master key makes where no client can administer the service (OPERATORS B44).

use secrecy::SecretString;

use super::{Clients, client_secrets::NewSecret, clients::blank};
use crate::{
    error::{Error, Result},
    model::{
        Action, Call, Client, ClientCredential, ClientId, Event, Grants, Scopes, Stamp, TenantId,
    },
    oauth::{ADMIN, introspection::INTROSPECT_ANY},
    store::{Creation, StoreError, Write},
};

/// Id of the first client.
const BOOTSTRAP: &str = "bootstrap";
/// Id of an administrator that the master key makes; with a number if it is taken.
const RECOVERED: &str = "admin";
/// Ids of that kind that are tried.
const RECOVERED_MAX: usize = 100;

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
        let stamp = call.stamp_of(&TenantId::operator(), &id, None);
        let event = stamp.done(Action::ClientCreated, id.as_str());
        let made = self
            .make_administrator(call, &id, "first administrator", &[ADMIN, INTROSPECT_ANY], event)
            .await?;
        Ok(Some((id, made)))
    }

    /// Creates an administrator of the operator's tenant under an id that is free: `id`, or one that
    /// is chosen here.
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyExists`] if `id` is taken.
    pub async fn reset_administrator(
        &self,
        call: &Call,
        id: Option<ClientId>,
    ) -> Result<(ClientId, SecretString)> {
        let ids = match id {
            Some(id) => vec![id],
            None => (1..=RECOVERED_MAX)
                .map(|number| match number {
                    1 => RECOVERED.to_owned(),
                    _ => format!("{RECOVERED}-{number}"),
                })
                .map(|id| id.parse().map_err(Error::invalid("client_id")))
                .collect::<Result<_>>()?,
        };
        for id in ids {
            let stamp = Stamp { tenant: Some(TenantId::operator()), ..Stamp::internal(call.now) };
            let event = stamp.done(Action::AdministratorReset, id.as_str());
            let name = "administrator made with the master key";
            if let Some(secret) = self.make_administrator(call, &id, name, &[ADMIN], event).await? {
                return Ok((id, secret));
            }
        }
        Err(Error::AlreadyExists("client"))
    }

    /// Registers an administrator of the operator's tenant and returns its secret; `None` if the id
    /// is taken.
    async fn make_administrator(
        &self,
        call: &Call,
        id: &ClientId,
        display_name: &str,
        scopes: &[&str],
        event: Event,
    ) -> Result<Option<SecretString>> {
        let scopes = Scopes::parse(scopes).map_err(Error::invalid("scopes"))?;
        let (secret, value) =
            self.secrets.make(&TenantId::operator(), NewSecret::Generated, None, call.now).await?;
        let client = Client {
            display_name: display_name.to_owned(),
            default_scopes: scopes.clone(),
            scopes,
            grants: Grants { client_credentials: true, refresh_token: true },
            credentials: vec![ClientCredential::Secret(secret)],
            ..blank(id.clone(), TenantId::operator(), call.now)
        };
        match self.store.create_client(&client, event).await? {
            Creation::Created => Ok(value),
            Creation::Taken => Ok(None),
        }
    }

    /// Deletes an administrator again whose secret could not be shown, with what was issued to it.
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
