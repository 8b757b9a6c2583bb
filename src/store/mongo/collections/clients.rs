//! Clients. The client as it was written is one field, the use counts of its secrets another, so
//! that counting never conflicts with a change. A deleted client leaves its epoch and tenant
//! behind.

use std::sync::Arc;

use async_trait::async_trait;
use mongodb::{
    bson::{Bson, Document, doc},
    options::ReturnDocument,
};

use super::{Handles, confirm_durable, record_and_notify};
use crate::{
    model::{Client, ClientId, EpochOf, Event, TenantId},
    store::{
        Change, ClientStore, Creation, Listed, Result, SecretUse, Write,
        mongo::{
            audit::{
                AuditLog,
                outbox::{AuditedChange, OutboxOwner},
            },
            documents::client::{EPOCH, decoded, without_use_counts},
            driver::{
                codec::{Fields, before, count, date, encode},
                connection::Connection,
                error::MongoError,
                query::{find_latest, find_sorted},
                schema::CLIENTS,
            },
            feed::ChangeFeed,
        },
    },
};

/// The collection `clients`.
#[derive(Clone)]
pub(crate) struct Clients {
    connection: Arc<Connection>,
    audit: Arc<AuditLog>,
    feed: Arc<ChangeFeed>,
}

impl Clients {
    pub(crate) fn new((connection, audit, feed): Handles) -> Self {
        Self { connection, audit, feed }
    }
}

#[async_trait]
impl ClientStore for Clients {
    async fn client(&self, id: &ClientId) -> Result<Option<Client>> {
        let found =
            find_latest(&self.connection, CLIENTS, doc! { "_id": id.as_str(), "deleted": false })
                .await?;
        Ok(found.as_ref().map(decoded).transpose()?)
    }

    async fn clients(
        &self,
        tenant: Option<&TenantId>,
        after: Option<&ClientId>,
        limit: usize,
    ) -> Result<Vec<Listed>> {
        Ok(self.list(tenant, after, limit).await?)
    }

    async fn create_client(&self, client: &Client, event: Event) -> Result<Creation> {
        let (clients, client) = (self.clone(), client.clone());
        self.connection
            .run_detached(async move { clients.insert(&client, false, event).await })
            .await
    }

    async fn create_client_of_any(&self, client: &Client, event: Event) -> Result<Creation> {
        let (clients, client) = (self.clone(), client.clone());
        self.connection
            .run_detached(async move { clients.insert(&client, true, event).await })
            .await
    }

    async fn replace_client(&self, client: &Client, event: Event) -> Result<Write> {
        let (clients, client) = (self.clone(), client.clone());
        self.connection
            .run_detached(async move { clients.write(&client, vec![event], false).await })
            .await
    }

    async fn end_client(&self, client: &Client, events: Vec<Event>, ended: Event) -> Result<Write> {
        let (clients, client) = (self.clone(), client.clone());
        let records = events.into_iter().chain([ended]).collect();
        self.connection
            .run_detached(async move { clients.write(&client, records, true).await })
            .await
    }

    async fn delete_client(&self, client: &Client, event: Event) -> Result<Write> {
        let (clients, client) = (self.clone(), client.clone());
        self.connection
            .run_detached(async move { clients.delete(&client, vec![event], None).await })
            .await
    }

    async fn record_secret_uses(&self, uses: &[SecretUse]) -> Result<()> {
        if uses.is_empty() && self.connection.is_closed() {
            return Err(MongoError::Closed.into());
        }
        for used in uses {
            let SecretUse { client, secret, at, count: by } = used.clone();
            let clients = self.connection.collection(CLIENTS);
            let (id, secret) = (client.as_str().to_owned(), secret.as_str().to_owned());
            let note = async move {
                let counted = doc! { "$inc": { "uses.$.count": count(by) }, "$max": { "uses.$.last_used_at": date(at) } };
                let known = doc! { "_id": &id, "deleted": false, "uses.secret": &secret };
                if clients.update_one(known.clone(), counted.clone()).await?.matched_count > 0 {
                    return Ok(());
                }
                // First use. Of two at once, one finds the other's element and adds to it.
                let first = doc! { "_id": &id, "deleted": false, "client.credentials.secret.id": &secret, "uses.secret": { "$ne": &secret } };
                let uses = doc! { "secret": &secret, "count": count(by), "last_used_at": date(at) };
                if clients
                    .update_one(first, doc! { "$push": { "uses": uses } })
                    .await?
                    .matched_count
                    == 0
                {
                    clients.update_one(known, counted).await?;
                }
                Ok(())
            };
            self.connection.call(note).await?;
        }
        Ok(())
    }
}

impl Clients {
    pub(super) async fn insert(
        &self,
        client: &Client,
        of_any: bool,
        event: Event,
    ) -> Result<Creation, MongoError> {
        let audited = self.audit.change([event])?;
        // The document of a deleted client is reused. A live client, and a deleted one of another
        // tenant, block the upsert by their `_id`.
        let mut filter = doc! { "_id": client.id.as_str(), "deleted": true };
        if !of_any {
            filter
                .insert("tenant", doc! { "$in": [Bson::Null, Bson::from(client.tenant.as_str())] });
        }
        let mut set = encoded(client)?;
        set.insert("deleted", false);
        let update = doc! { "$set": set, "$push": { "outbox": audited.push(&owner(&client.id)) } };
        let clients = self.connection.collection(CLIENTS);
        let write = async move { Ok(clients.update_one(filter, update).upsert(true).await?) };
        match self.connection.call(write).await {
            Err(fault) if fault.is_duplicate() => {
                confirm_durable(&self.connection, owner(&client.id)).await?;
                return Ok(Creation::Taken);
            }
            outcome => drop(outcome?),
        }
        self.record_change(audited, client.id.clone(), None).await?;
        Ok(Creation::Created)
    }

    /// Deletes a client; with an event `ended`, raises its epoch too.
    pub(super) async fn delete(
        &self,
        client: &Client,
        events: Vec<Event>,
        ended: Option<Event>,
    ) -> Result<Write, MongoError> {
        let id = &client.id;
        let ends = ended.is_some();
        let audited = self.audit.change(events.into_iter().chain(ended))?;
        let filter = stored_filter(client, client.revision)?;
        let update = doc! {
            "$set": { "deleted": true },
            "$unset": { "client": 1, "uses": 1, "revision": 1 },
            "$push": { "outbox": audited.push(&owner(id)) },
        };
        self.change(id, filter, update, ends, audited).await
    }

    pub(super) async fn write(
        &self,
        client: &Client,
        events: Vec<Event>,
        ends: bool,
    ) -> Result<Write, MongoError> {
        let Some(before) = before(client.revision) else { return Ok(Write::Stale) };
        let audited = self.audit.change(events)?;
        let filter = stored_filter(client, before)?;
        let secrets: Vec<&str> = client.secrets().map(|secret| secret.id.as_str()).collect();
        let update = doc! {
            "$set": encoded(client)?,
            "$pull": { "uses": { "secret": { "$nin": secrets } } },
            "$push": { "outbox": audited.push(&owner(&client.id)) },
        };
        self.change(&client.id, filter, update, ends, audited).await
    }

    /// Changes a client that matches `filter`; if `ends`, raises its epoch in the same write, which
    /// revokes its tokens.
    async fn change(
        &self,
        id: &ClientId,
        filter: Document,
        mut update: Document,
        ends: bool,
        audited: AuditedChange,
    ) -> Result<Write, MongoError> {
        if ends {
            update.insert("$inc", doc! { EPOCH: 1_i64 });
        }
        let clients = self.connection.collection(CLIENTS);
        let write = async move {
            let after =
                clients.find_one_and_update(filter, update).return_document(ReturnDocument::After);
            Ok(after.projection(doc! { EPOCH: 1 }).await?)
        };
        let Some(found) = self.connection.call(write).await? else { return Ok(Write::Stale) };
        let epoch = if ends { Some(Fields::of("client", &found).count(EPOCH)?) } else { None };
        self.record_change(audited, id.clone(), epoch).await?;
        Ok(Write::Done)
    }

    /// Entries of a listing; a document whose `_id` is no valid client id is left out.
    async fn list(
        &self,
        tenant: Option<&TenantId>,
        after: Option<&ClientId>,
        limit: usize,
    ) -> Result<Vec<Listed>, MongoError> {
        let (mut listed, mut last) =
            (Vec::new(), after.map_or_else(String::new, ToString::to_string));
        loop {
            let mut filter = doc! { "deleted": false, "_id": { "$gt": &last } };
            if let Some(tenant) = tenant {
                filter.insert("tenant", tenant.as_str());
            }
            let missing = limit.saturating_sub(listed.len());
            let found = find_sorted(
                &self.connection,
                CLIENTS,
                filter,
                doc! { "_id": 1 },
                doc! { "outbox": 0 },
                missing,
            )
            .await?;
            let Some(end) = found.last() else { return Ok(listed) };
            Fields::of("client", end).text("_id")?.clone_into(&mut last);
            for document in &found {
                let Ok(id) = Fields::of("client", document).parse::<ClientId>("_id") else {
                    continue;
                };
                listed.push(match decoded(document) {
                    Ok(client)
                        if client.id == id
                            && tenant.is_none_or(|tenant| client.tenant == *tenant) =>
                    {
                        Listed::Client(Box::new(client))
                    }
                    Ok(_) | Err(_) => Listed::NotAuthentic(id),
                });
            }
            if found.len() < missing || listed.len() >= limit {
                return Ok(listed);
            }
        }
    }

    async fn record_change(
        &self,
        audited: AuditedChange,
        id: ClientId,
        epoch: Option<u64>,
    ) -> Result<(), MongoError> {
        let owner = owner(&id);
        let epoch = epoch.map(|value| Change::Epoch(EpochOf::Client(id.clone()), value));
        let changes: Vec<Change> = std::iter::once(Change::Client(id)).chain(epoch).collect();
        record_and_notify(&self.audit, &self.feed, audited, owner, &changes).await
    }
}

fn owner(id: &ClientId) -> OutboxOwner {
    OutboxOwner { collection: CLIENTS, id: id.as_str().into() }
}

/// Filter for a stored client at this revision. Revisions start at 1 again after a deletion, so the
/// tenant and the time of creation count too: a late change of a deleted client must not reach its
/// successor.
fn stored_filter(client: &Client, revision: u64) -> Result<Document, MongoError> {
    Ok(doc! {
        "_id": client.id.as_str(),
        "deleted": false,
        "tenant": client.tenant.as_str(),
        "revision": count(revision),
        "client.created_at": encode("client", &client.created_at)?,
    })
}

/// Fields that a change sets.
fn encoded(client: &Client) -> Result<Document, MongoError> {
    Ok(doc! {
        "tenant": client.tenant.as_str(),
        "revision": count(client.revision),
        "client": without_use_counts(client)?,
    })
}
