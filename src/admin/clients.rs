//! Registering clients (the data of RFC 7591 section 2, through administration RPCs) and keeping
//! their secrets.

use std::{sync::Arc, time::Duration};

use secrecy::SecretString;
use uuid::Uuid;

use super::{
    Administrator, AudienceLists, Conditions, LastAdministrator,
    client_secrets::{NewSecret, SecretMaker},
    client_settings::{SettingRules, Settings},
    listed_audiences::unlisted,
};
use crate::{
    error::{Error, Result},
    model::{
        Action, Call, Client, ClientCredential, ClientId, Grants, Mac, PlanName, Scopes, SecretId,
        TenantId, Timestamp, client::MAX_LIVE_SECRETS,
    },
    store::{ClientStore, ProvenWrite, Spent, Store, StoreError},
};

pub use crate::store::Listed;

/// The most a retired secret goes on working.
const MAX_OVERLAP: Duration = Duration::from_secs(90 * 86_400);
/// Tries of a write without etag if other processes write in between.
const TRIES: usize = 8;

/// A secret that was just added; its value is known only where it was made here.
pub struct Added {
    /// The client as written.
    pub client: Client,
    /// The secret's id.
    pub secret: SecretId,
    /// Its value, this once.
    pub value: Option<SecretString>,
}

/// Administration of clients.
pub struct Clients {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) settings: SettingRules,
    pub(crate) secrets: SecretMaker,
    pub(crate) audiences: Arc<AudienceLists>,
    pub(crate) last_administrator: LastAdministrator,
}

impl Clients {
    /// Registers a client with a first secret.
    pub async fn create(
        &self,
        call: &Call,
        admin: &Administrator,
        id: Option<ClientId>,
        tenant: Option<TenantId>,
        settings: Settings,
        secret: NewSecret,
    ) -> Result<Added> {
        let tenant = tenant.unwrap_or_else(|| admin.tenant().clone());
        admin.must_access_tenant(&tenant)?;
        let id = match id {
            Some(id) => id,
            None => Uuid::now_v7()
                .as_simple()
                .to_string()
                .parse()
                .map_err(Error::invalid("client.client_id"))?,
        };
        let blank = blank(id, tenant, call.now);
        let mut client = self.settings.apply(blank.clone(), settings)?;
        admin.may_grant(&client.scopes)?;
        self.settings.must_be_allowed(admin, &blank, &client)?;
        let (secret, value) = self.secrets.make(admin.tenant(), secret, None, call.now).await?;
        let secret_id = secret.id.clone();
        client.credentials.push(ClientCredential::Secret(secret));
        // Asked before an audience is claimed for it.
        match self.store.client(&client.id).await {
            // One that cannot be read is left to the write, which finds the id taken.
            Ok(None) | Err(StoreError::Corrupt(_)) => {}
            Ok(Some(_)) => return Err(Error::AlreadyExists("client")),
            Err(error) => return Err(error.into()),
        }
        let listed = self.audiences.claim(call, admin, &blank, &client).await?;
        let of_any = admin.tenant().is_operator();
        match self.audiences.create(call, admin, &client, of_any, listed).await? {
            Spent::Done => Ok(Added { client, secret: secret_id, value }),
            Spent::Taken => Err(Error::AlreadyExists("client")),
            Spent::Stale | Spent::Unproven => Err(Error::Stale("client")),
        }
    }

    /// A client that the administrator can_access_tenant; every other is not found.
    pub async fn get(&self, admin: &Administrator, id: &ClientId) -> Result<Client> {
        find(self.store.as_ref(), admin, id).await
    }

    /// A page of clients in the order of their ids, and of records that are none's.
    pub async fn list(
        &self,
        admin: &Administrator,
        tenant: Option<TenantId>,
        after: Option<&ClientId>,
        limit: usize,
    ) -> Result<Vec<Listed>> {
        let tenant = admin.tenant_filter(tenant)?;
        Ok(self.store.clients(tenant.as_ref(), after, limit).await?)
    }

    /// Changes a client's settings, validated exactly as on creation (N05). Where something is
    /// taken away, all that was issued to the client ends in the same write.
    pub async fn update(
        &self,
        call: &Call,
        admin: &Administrator,
        id: &ClientId,
        conditions: Conditions,
        settings: Settings,
    ) -> Result<Client> {
        let apply = |client: Client| self.settings.apply(client, settings.clone());
        self.rewrite(call, admin, id, conditions, Action::ClientUpdated, id.as_str(), None, apply)
            .await
    }

    /// Refuses a client from now on and ends what it holds, in one write: a call that is cut off
    /// leaves both or neither.
    pub async fn disable(
        &self,
        call: &Call,
        admin: &Administrator,
        id: &ClientId,
        conditions: Conditions,
    ) -> Result<Client> {
        let disable = |client: Client| Ok(Client { disabled: true, ..client });
        self.rewrite(
            call,
            admin,
            id,
            conditions,
            Action::ClientDisabled,
            id.as_str(),
            Some("disabled"),
            disable,
        )
        .await
    }

    /// Admits a disabled client again.
    pub async fn enable(
        &self,
        call: &Call,
        admin: &Administrator,
        id: &ClientId,
        etag: Option<u64>,
    ) -> Result<Client> {
        let enable = |client: Client| Ok(Client { disabled: false, ..client });
        self.rewrite(
            call,
            admin,
            id,
            Conditions::of(etag),
            Action::ClientEnabled,
            id.as_str(),
            None,
            enable,
        )
        .await
    }

    /// Removes a client and raises its epoch in one write: that is what ends its families also for
    /// a later client of its name.
    pub async fn delete(
        &self,
        call: &Call,
        admin: &Administrator,
        id: &ClientId,
        conditions: Conditions,
    ) -> Result<()> {
        let remove = |client: Client| Ok(client);
        self.rewrite(
            call,
            admin,
            id,
            conditions,
            Action::ClientDeleted,
            id.as_str(),
            Some("deleted"),
            remove,
        )
        .await
        .map(drop)
    }

    /// Gives a client a further secret, unless two live already.
    pub async fn add_secret(
        &self,
        call: &Call,
        admin: &Administrator,
        id: &ClientId,
        etag: Option<u64>,
        source: NewSecret,
        expires_at: Option<Timestamp>,
    ) -> Result<Added> {
        if expires_at.is_some_and(|end| end <= call.now) {
            return Err(Error::field("expire_time", "must be in the future"));
        }
        // Asked before the price of argon2id is paid.
        self.get(admin, id).await.and_then(|client| admin.may_grant(&client.scopes))?;
        let (secret, value) =
            self.secrets.make(admin.tenant(), source, expires_at, call.now).await?;
        let secret_id = secret.id.clone();
        let target = format!("{id}/{secret_id}");
        let client = self
            .rewrite(
                call,
                admin,
                id,
                Conditions::of(etag),
                Action::SecretAdded,
                &target,
                None,
                |mut client| {
                    client.drop_expired(call.now);
                    if client.live_secrets(call.now).count() >= MAX_LIVE_SECRETS {
                        return Err(Error::precondition(
                            "the client has two active secrets; retire one first",
                        ));
                    }
                    client.credentials.push(ClientCredential::Secret(secret.clone()));
                    Ok(client)
                },
            )
            .await?;
        Ok(Added { client, secret: secret_id, value })
    }

    /// Ends a secret, after an overlap or at once; it never lives longer than it would have. For
    /// one that leaked, everything that was issued to the client so far ends in the same write.
    #[expect(clippy::too_many_arguments, reason = "the fields of one message")]
    pub async fn retire_secret(
        &self,
        call: &Call,
        admin: &Administrator,
        id: &ClientId,
        conditions: Conditions,
        secret: &SecretId,
        overlap: Duration,
        revoke_issued: bool,
    ) -> Result<Client> {
        if revoke_issued && !overlap.is_zero() {
            return Err(Error::field(
                "revoke_issued",
                "requires an overlap of zero: during an overlap the secret still gets tokens",
            ));
        }
        if overlap > MAX_OVERLAP {
            return Err(Error::field("overlap", "must be at most 90 days"));
        }
        let end = call.now + overlap;
        let ends = revoke_issued.then_some("secret retired");
        self.rewrite(
            call,
            admin,
            id,
            conditions,
            Action::SecretRetired,
            &format!("{id}/{secret}"),
            ends,
            |mut client| {
                let found = client
                    .secrets_mut()
                    .find(|own| own.id == *secret)
                    .ok_or(Error::NotFound("secret"))?;
                found.expires_at = Some(found.expires_at.map_or(end, |already| already.min(end)));
                client.drop_expired(call.now);
                Ok(client)
            },
        )
        .await
    }

    /// Reads, changes and conditionally writes a client; again if another process wrote in between
    /// and no etag was given. What the client holds ends with it where `ends` says why, or
    /// something is taken away. Each try is proven anew.
    #[expect(clippy::too_many_arguments, reason = "one place for every write of a client")]
    async fn rewrite(
        &self,
        call: &Call,
        admin: &Administrator,
        id: &ClientId,
        conditions: Conditions,
        action: Action,
        target: &str,
        ends: Option<&'static str>,
        change: impl Fn(Client) -> Result<Client>,
    ) -> Result<Client> {
        for _ in 0..TRIES {
            let client = self.get(admin, id).await?;
            if conditions.etag.is_some_and(|etag| etag != client.revision) {
                return Err(Error::Stale("client"));
            }
            // Both as it was and as it shall be: a lesser office neither gives nor touches what it
            // does not hold.
            admin.may_grant(&client.scopes)?;
            let before = client.clone();
            let client =
                Client { revision: before.revision + 1, updated_at: call.now, ..change(client)? };
            let ends = ends.or_else(|| before.loses_by(&client).then_some("narrowed"));
            admin.may_grant(&client.scopes)?;
            self.settings.must_be_allowed(admin, &before, &client)?;
            let deleted = action == Action::ClientDeleted;
            let after = (!deleted).then_some(&client);
            let guard = &self.last_administrator;
            // Until the write is done, so that two changes do not count on each other's client.
            let _changing = if guard.is_lost(&before, after, call.now) {
                let changing = guard.changes.lock().await;
                if !conditions.allow_no_administrator {
                    let (store, gate) = (self.store.as_ref(), &self.audiences.gate);
                    let remaining = guard.must_remain(store, &before, after, call.now).await?;
                    if let Some(remaining) = remaining {
                        let stamp = admin.stamp_in(call, &remaining.tenant);
                        if !guard.claim(store, gate, admin, remaining, &stamp).await? {
                            continue;
                        }
                    }
                }
                Some(changing)
            } else {
                None
            };
            let listed = self.audiences.claim(call, admin, &before, &client).await?;
            let stamp = admin.stamp_in(call, &client.tenant);
            let kept = if deleted { unlisted(&client) } else { client.clone() };
            let own = stamp.done(action, target);
            let events = self.audiences.events(call, admin, own, (&before, &kept), &listed).await;
            let ended =
                |why: &str| stamp.done(Action::ClientRevoked, id.as_str()).because(why.to_owned());
            let kept = Box::new(kept);
            let write = if deleted {
                ProvenWrite::DeleteClient {
                    client: Box::new(before),
                    ended: ended("deleted"),
                    events,
                }
            } else if let Some(why) = ends {
                ProvenWrite::EndClient { client: kept, events, ended: ended(why) }
            } else {
                ProvenWrite::ReplaceClient { client: kept, events }
            };
            if self.audiences.write(call, admin, write, &client, listed).await? == Spent::Done {
                return Ok(client);
            }
        }
        Err(Error::Stale("client"))
    }
}

/// The client, if the administrator can access its tenant; else it is not found.
///
/// # Errors
///
/// [`Error::NotFound`], or that of the store.
pub(super) async fn find<S: ClientStore + ?Sized>(
    store: &S,
    admin: &Administrator,
    id: &ClientId,
) -> Result<Client> {
    let found = store.client(id).await?;
    found.filter(|client| admin.can_access_tenant(&client.tenant)).ok_or(Error::NotFound("client"))
}

/// A client without scopes, audiences and secrets.
pub(super) fn blank(id: ClientId, tenant: TenantId, now: Timestamp) -> Client {
    Client {
        id,
        tenant,
        display_name: String::new(),
        scopes: Scopes::default(),
        default_scopes: Scopes::default(),
        roles: Vec::new(),
        audiences: Vec::new(),
        serves: Vec::new(),
        grants: Grants { client_credentials: true, refresh_token: false },
        access_ttl: None,
        refresh_ttl: None,
        refresh_idle: None,
        rate_plan: PlanName::standard(),
        disabled: false,
        credentials: Vec::new(),
        revision: 1,
        created_at: now,
        updated_at: now,
        mac: Mac::default(),
    }
}
