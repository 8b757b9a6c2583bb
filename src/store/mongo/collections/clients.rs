//! Clients. The client as it was written is one field, the use counts of its secrets another, so
//! that counting never conflicts with a change. A deleted client leaves its epoch and tenant
//! behind.

use std::collections::HashMap;

use async_trait::async_trait;
use mongodb::{
    bson::{Bson, Document, doc},
    options::{ReadConcern, ReturnDocument},
};

use crate::{
    model::{Client, ClientId, EpochOf, Event, SecretId, TenantId},
    store::{
        Change, ClientStore, Creation, Listed, Result, SecretUse, Write,
        mongo::{
            Mongo, Shared,
            audit::outbox::{AuditedChange, OutboxOwner},
            driver::{
                codec::{Fields, before, count, date, encode},
                error::MongoError,
                query::find_sorted,
                schema::CLIENTS,
            },
            run_detached,
        },
    },
};

/// Field of a client's epoch.
pub(crate) const EPOCH: &str = "epoch";

#[async_trait]
impl ClientStore for Mongo {
    async fn client(&self, id: &ClientId) -> Result<Option<Client>> {
        let found =
            self.shared.latest(CLIENTS, doc! { "_id": id.as_str(), "deleted": false }).await?;
        Ok(found.as_ref().map(decoded).transpose()?)
    }

    async fn clients(
        &self,
        tenant: Option<&TenantId>,
        after: Option<&ClientId>,
        limit: usize,
    ) -> Result<Vec<Listed>> {
        Ok(self.shared.listing(tenant, after, limit).await?)
    }

    async fn create_client(&self, client: &Client, event: Event) -> Result<Creation> {
        let (shared, client) = (self.shared.clone(), client.clone());
        run_detached(&self.shared, async move { shared.create_client(&client, false, event).await })
            .await
    }

    async fn create_client_of_any(&self, client: &Client, event: Event) -> Result<Creation> {
        let (shared, client) = (self.shared.clone(), client.clone());
        run_detached(&self.shared, async move { shared.create_client(&client, true, event).await })
            .await
    }

    async fn replace_client(&self, client: &Client, event: Event) -> Result<Write> {
        let (shared, client) = (self.shared.clone(), client.clone());
        run_detached(
            &self.shared,
            async move { shared.write_client(&client, vec![event], false).await },
        )
        .await
    }

    async fn end_client(&self, client: &Client, events: Vec<Event>, ended: Event) -> Result<Write> {
        let (shared, client) = (self.shared.clone(), client.clone());
        let records = events.into_iter().chain([ended]).collect();
        run_detached(&self.shared, async move { shared.write_client(&client, records, true).await })
            .await
    }

    async fn delete_client(&self, client: &Client, event: Event) -> Result<Write> {
        let (shared, client) = (self.shared.clone(), client.clone());
        run_detached(
            &self.shared,
            async move { shared.delete_client(&client, vec![event], None).await },
        )
        .await
    }

    async fn record_secret_uses(&self, uses: &[SecretUse]) -> Result<()> {
        if uses.is_empty() && self.shared.connection.is_closed() {
            return Err(MongoError::Closed.into());
        }
        for used in uses {
            let SecretUse { client, secret, at, count: by } = used.clone();
            let clients = self.shared.connection.collection(CLIENTS);
            let (id, secret) = (client.as_str().to_owned(), secret.as_str().to_owned());
            let note = async move {
                let counted = doc! { "$inc": { "uses.$.count": count(by) }, "$max": { "uses.$.last_used_at": date(at) } };
                let known = doc! { "_id": &id, "deleted": false, "uses.secret": &secret };
                if clients.update_one(known.clone(), counted.clone()).await?.matched_count > 0 {
                    return Ok(());
                }
                // First use. Of two at once, one finds the other's element and adds to it.
                let first = doc! { "_id": &id, "deleted": false, "client.secrets.id": &secret, "uses.secret": { "$ne": &secret } };
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
            self.shared.connection.call(note).await?;
        }
        Ok(())
    }
}

impl Shared {
    pub(super) async fn create_client(
        &self,
        client: &Client,
        of_any: bool,
        event: Event,
    ) -> Result<Creation, MongoError> {
        let audited = self.audited_change([event])?;
        // The document of a deleted client is reused. A live client, and a deleted one of another
        // tenant, block the upsert by their `_id`.
        let mut filter = doc! { "_id": client.id.as_str(), "deleted": true };
        if !of_any {
            filter
                .insert("tenant", doc! { "$in": [Bson::Null, Bson::from(client.tenant.as_str())] });
        }
        let mut set = encoded(client, &audited)?;
        set.insert("deleted", false);
        let update = doc! { "$set": set, "$push": { "outbox": audited.push(&owner(&client.id)) } };
        let clients = self.connection.collection(CLIENTS);
        let write = async move { Ok(clients.update_one(filter, update).upsert(true).await?) };
        match self.connection.call(write).await {
            Err(fault) if fault.is_duplicate() => {
                self.confirm_durable(owner(&client.id)).await?;
                return Ok(Creation::Taken);
            }
            outcome => drop(outcome?),
        }
        self.record_client_change(audited, client.id.clone(), None).await?;
        Ok(Creation::Created)
    }

    /// Deletes a client; with an event `ended`, raises its epoch too.
    pub(super) async fn delete_client(
        &self,
        client: &Client,
        events: Vec<Event>,
        ended: Option<Event>,
    ) -> Result<Write, MongoError> {
        let id = &client.id;
        let ends = ended.is_some();
        let audited = self.audited_change(events.into_iter().chain(ended))?;
        let filter = stored_filter(client, client.revision)?;
        let update = doc! {
            "$set": { "deleted": true, "op": audited.operation() },
            "$unset": { "client": 1, "uses": 1, "revision": 1 },
            "$push": { "outbox": audited.push(&owner(id)) },
        };
        self.change_client(id, filter, update, ends, audited).await
    }

    pub(super) async fn write_client(
        &self,
        client: &Client,
        events: Vec<Event>,
        ends: bool,
    ) -> Result<Write, MongoError> {
        let Some(before) = before(client.revision) else { return Ok(Write::Stale) };
        let audited = self.audited_change(events)?;
        let filter = stored_filter(client, before)?;
        let secrets: Vec<&str> = client.secrets.iter().map(|secret| secret.id.as_str()).collect();
        let update = doc! {
            "$set": encoded(client, &audited)?,
            "$pull": { "uses": { "secret": { "$nin": secrets } } },
            "$push": { "outbox": audited.push(&owner(&client.id)) },
        };
        self.change_client(&client.id, filter, update, ends, audited).await
    }

    /// Changes a client that matches `filter`; if `ends`, raises its epoch in the same write, which
    /// revokes its tokens.
    async fn change_client(
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
        self.record_client_change(audited, id.clone(), epoch).await?;
        Ok(Write::Done)
    }

    /// Entries of a listing; a document whose `_id` is no valid client id is left out.
    async fn listing(
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

    /// Reads the one document that matches a filter; no later read can return an older version.
    /// With read concern majority, a newly elected primary may briefly return a version from before
    /// a change that was already notified; linearizable rules that out.
    pub(super) async fn latest(
        &self,
        collection: &'static str,
        filter: Document,
    ) -> Result<Option<Document>, MongoError> {
        let documents = self.connection.collection(collection);
        let concern =
            if self.is_standalone { ReadConcern::majority() } else { ReadConcern::linearizable() };
        self.connection
            .call(async move { Ok(documents.find_one(filter).read_concern(concern).await?) })
            .await
    }

    async fn record_client_change(
        &self,
        audited: AuditedChange,
        id: ClientId,
        epoch: Option<u64>,
    ) -> Result<(), MongoError> {
        let owner = owner(&id);
        let epoch = epoch.map(|value| Change::Epoch(EpochOf::Client(id.clone()), value));
        self.record_and_notify(
            audited,
            owner,
            std::iter::once(Change::Client(id)).chain(epoch).collect(),
        )
        .await
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
fn encoded(client: &Client, audited: &AuditedChange) -> Result<Document, MongoError> {
    Ok(doc! {
        "tenant": client.tenant.as_str(),
        "revision": count(client.revision),
        "client": without_use_counts(client)?,
        "op": audited.operation(),
    })
}

/// Encodes a client without the use counts of its secrets, which are stored beside it.
pub(crate) fn without_use_counts(client: &Client) -> Result<Bson, MongoError> {
    let mut client = client.clone();
    for secret in &mut client.secrets {
        (secret.last_used_at, secret.use_count) = (None, 0);
    }
    encode("client", &client)
}

/// Decodes a client with the use counts of its secrets.
pub(crate) fn decoded(document: &Document) -> Result<Client, MongoError> {
    let mut client = decode_without_use_counts(document)?;
    let uses = uses(document)?;
    let mut by_secret: HashMap<&SecretId, &SecretUse> =
        uses.iter().map(|used| (&used.secret, used)).collect();
    for secret in &mut client.secrets {
        if let Some(used) = by_secret.remove(&secret.id) {
            (secret.last_used_at, secret.use_count) = (Some(used.at), used.count);
        }
    }
    Ok(client)
}

/// Epoch of a client in a document or a change event; `None` if the `_id` is no valid client id. A
/// value that is not a number reads as the highest one: it revokes what it covers and nothing else.
pub(crate) fn epoch(id: &Bson, fields: &Fields<'_>) -> Option<(EpochOf, u64)> {
    let id = id.as_str()?.parse().ok()?;
    Some((EpochOf::Client(id), fields.count(EPOCH).unwrap_or(i64::MAX.unsigned_abs())))
}

/// Decodes a client without the use counts of its secrets.
pub(crate) fn decode_without_use_counts(document: &Document) -> Result<Client, MongoError> {
    let fields = Fields::of("client", document);
    fields.part("client").map_err(|fault| {
        // The id is no secret; without it, one broken document among thousands is hard to find.
        let id = document.get("_id").map_or_else(String::new, ToString::to_string);
        MongoError::malformed("client", format!("{id}: {fault}"))
    })
}

/// Use counts of a client's secrets.
pub(crate) fn uses(document: &Document) -> Result<Vec<SecretUse>, MongoError> {
    let client: ClientId = Fields::of("client", document).parse("_id")?;
    let Some(Bson::Array(uses)) = document.get("uses") else { return Ok(Vec::new()) };
    let read = |used: &Bson| {
        let fields = used
            .as_document()
            .ok_or_else(|| MongoError::malformed("client", "malformed use counts"))?;
        let fields = Fields::of("client", fields);
        Ok(SecretUse {
            client: client.clone(),
            secret: fields.parse("secret")?,
            at: fields.time("last_used_at")?,
            count: fields.count("count")?,
        })
    };
    uses.iter().map(read).collect()
}
