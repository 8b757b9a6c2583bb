//! Queries over the audit trail: all chains together, newest first, or one chain in order.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use mongodb::bson::{Bson, Document, doc};
use tokio::sync::broadcast;

use super::{
    AuditLog,
    records::{TIME_FIELD, UNREADABLE_TIME, has_position, record_id, shown},
    retention::cuts_of,
    size,
};
use crate::{
    crypto::chain::{CutMark, Head},
    model::{
        Action, ClientId, Event, Principal, Record, SecretId, Subject, Timestamp,
        event::{Filter, Place},
    },
    store::{
        AuditStore, ChainReader as _, EventPage, Result, TrailSize, Writer,
        mongo::driver::{error::MongoError, query::find_sorted, schema::AUDIT_LOGS},
    },
};

#[async_trait]
impl AuditStore for AuditLog {
    async fn append(&self, event: Event) -> Result<()> {
        Ok(self.append_event(event).await?)
    }

    async fn append_soon(&self, event: Event) -> Result<()> {
        Ok(self.append_event_soon(event).await?)
    }

    async fn page(
        &self,
        filter: &Filter,
        before: Option<&Place>,
        limit: usize,
        patience: Duration,
    ) -> Result<EventPage> {
        if before.is_none() {
            self.await_pending().await;
        }
        let mut found: Vec<Record> = Vec::new();
        if before.is_none_or(|before| before.at.millis() != UNREADABLE_TIME) {
            let page = self.timed(filter, before, limit, patience).await?;
            if page.next.is_some() {
                return Ok(page);
            }
            found = page.records;
        }
        let room = limit.saturating_sub(found.len());
        if room > 0 && filter.from.is_none() && filter.to.is_none() {
            let mut query = vec![has_position(), query(filter), has_unreadable_time()];
            let before = before.filter(|before| before.at.millis() == UNREADABLE_TIME);
            query.extend(before.map(
                |before| doc! { "_id": { "$lt": record_id(&before.chain, before.sequence) } },
            ));
            found.extend(self.shown(query, doc! { "_id": -1 }, room).await?);
        }
        let is_full = limit == 0 || found.len() >= limit;
        let next = found.last().map(Record::place).filter(|_| is_full);
        Ok(EventPage { records: found, next })
    }

    async fn chains(&self) -> Result<Vec<Arc<str>>> {
        self.await_pending().await;
        self.stored.chains().await
    }

    async fn chain(&self, name: &str, after: u64, limit: usize) -> Result<Vec<Record>> {
        self.await_pending_of(name).await;
        self.stored.chain(name, after, limit).await
    }

    async fn head(&self, chain: &str) -> Result<Option<Head>> {
        self.await_pending_of(chain).await;
        self.stored.head(chain).await
    }

    async fn writer(&self, chain: &str) -> Result<Writer> {
        self.stored.writer(chain).await
    }

    async fn witnesses(&self, after: Option<&Place>, limit: usize) -> Result<Vec<Record>> {
        self.stored.witnesses(after, limit).await
    }

    async fn cut_mark(&self, chain: &str) -> Result<Option<CutMark>> {
        self.stored.cut_mark(chain).await
    }

    async fn cut_marks(&self) -> Result<Vec<(Arc<str>, CutMark)>> {
        self.stored.cut_marks().await
    }

    async fn trail_size(&self, now: Timestamp) -> Result<TrailSize> {
        Ok(size::of_trail(&self.connection, now).await?)
    }

    fn tail(&self) -> broadcast::Receiver<Option<Arc<Record>>> {
        let records = self.chain.subscribe();
        self.remote_tail.start();
        records
    }
}

impl AuditLog {
    pub(super) async fn node_of(&self, chain: &str) -> Result<Option<Document>, MongoError> {
        self.stored.node_of(chain).await
    }

    /// Reads up to `limit` records. Documents without a position, and records below a cut, end no
    /// page.
    pub(super) async fn shown(
        &self,
        query: Vec<Document>,
        sort: Document,
        limit: usize,
    ) -> Result<Vec<Record>, MongoError> {
        let (mut records, mut seen) = (Vec::new(), 0_usize);
        loop {
            let (query, room) =
                (doc! { "$and": query.clone() }, limit.saturating_sub(records.len()));
            let page = find_sorted(
                &self.connection,
                AUDIT_LOGS,
                query,
                sort.clone(),
                of_records(),
                seen.saturating_add(room),
            )
            .await?;
            let found: Vec<Record> = page.iter().skip(seen).filter_map(shown).collect();
            let chains: BTreeSet<&str> = found.iter().map(|record| &*record.chain).collect();
            let cuts =
                cuts_of(&self.connection, &self.node.key, chains.into_iter().collect()).await?;
            let is_cut = |record: &Record| {
                cuts.get(&record.chain).is_some_and(|cut| record.sequence <= *cut)
            };
            records.extend(found.into_iter().filter(|record| !is_cut(record)));
            if page.len() < seen.saturating_add(room) || records.len() >= limit {
                return Ok(records);
            }
            seen = page.len();
        }
    }
}

/// Conditions of a list of records whose time is a number.
pub(super) fn of_time(filter: &Filter) -> Vec<Document> {
    // An array of times would match by each of its elements.
    let number = doc! { "$expr": { "$in": [{ "$type": "$event.at" }, ["long", "int", "double"]] } };
    vec![has_position(), query(filter), doc! { "event.at": { "$gte": i64::MIN } }, number]
}

/// Order of a list.
pub(super) fn newest_first() -> Document {
    doc! { "event.at": -1, "_id": -1 }
}

/// Projection of a record. The time is read separately, since invalid UTF-8 in the event hides its
/// later fields.
pub(super) fn of_records() -> Document {
    doc! { "node": 1, "event": 1, "hash": 1, "seal": 1, "entry": 1, TIME_FIELD: "$event.at" }
}

/// Filter for records whose time cannot be read.
fn has_unreadable_time() -> Document {
    let others = [
        "string",
        "object",
        "array",
        "binData",
        "objectId",
        "bool",
        "date",
        "regex",
        "javascript",
        "timestamp",
        "minKey",
        "maxKey",
        "decimal",
        "symbol",
        "dbPointer",
        "javascriptWithScope",
        "undefined",
    ];
    let missing = doc! { "event.at": { "$exists": false } };
    doc! { "$or": [missing, { "event.at": null }, { "event.at": f64::NAN }, { "event.at": { "$type": others.as_slice() } }] }
}

/// Filter for records after a place in the common order, newest first.
pub(super) fn older_than(before: &Place) -> Document {
    let at = before.at.millis();
    let same = doc! { "event.at": at, "_id": { "$lt": record_id(&before.chain, before.sequence) } };
    // The first condition says where an index is entered.
    doc! { "event.at": { "$lte": at }, "$or": [{ "event.at": { "$lt": at } }, same] }
}

/// Filter for events that concern a client. No index answers it: see [`Filter::alternatives`].
fn about(client: &ClientId) -> Document {
    let secrets = doc! { "$gte": format!("{client}/"), "$lt": format!("{client}0") };
    let of_secret =
        doc! { "event.action": { "$in": actions_of("secret.") }, "event.target": secrets };
    let names = [client.to_string(), Subject::of_client(client).to_string()];
    doc! { "$or": [by(client), { "event.target": { "$in": names.as_slice() } }, of_secret] }
}

/// Filter for events that have a secret of a client.
fn with_secret((client, id): &(ClientId, SecretId)) -> Document {
    let target = doc! {
        "event.action": { "$in": actions_of("secret.") },
        "event.target": format!("{client}/{id}"),
    };
    let presented = doc! {
        "event.auth.method": "client_secret",
        "event.auth.id": id.as_str(),
        "$or": [by(client), { "event.target": client.as_str() }],
    };
    doc! { "$or": [target, presented] }
}

fn by(client: &ClientId) -> Document {
    doc! { "event.actor": { "client": client.as_str() } }
}

fn actions_of(prefix: &str) -> Vec<&'static str> {
    let names = Action::ALL.iter().map(|action| action.as_str());
    names.filter(|name| name.starts_with(prefix)).collect()
}

/// Translates [`Filter::admits`] into a query.
pub(super) fn query(filter: &Filter) -> Document {
    let mut query = Document::new();
    if let Some(tenant) = &filter.tenant {
        query.insert("event.tenant", tenant.as_str());
    }
    match &filter.actor {
        Some(Principal::Client(client)) => {
            // The whole value: its index has the order of a list for nodes and clients alike.
            query.insert("event.actor", doc! { "client": client.as_str() });
        }
        Some(Principal::Node) => {
            query.insert("event.actor", "node");
        }
        None => {}
    }
    match &filter.action {
        // Each action with this prefix, and not a range: the index has the order of time only for
        // one action, and MongoDB merges a list of them.
        Some(action) if action.ends_with('.') => {
            let admitted = Action::ALL.iter().filter(|action| filter.admits_action(**action));
            let admitted: Vec<&str> = admitted.map(|action| action.as_str()).collect();
            query.insert("event.action", doc! { "$in": admitted });
        }
        Some(action) => drop(query.insert("event.action", action)),
        None => {}
    }
    if let Some(outcome) = filter.outcome {
        query.insert("event.outcome", outcome.as_str());
    }
    if let Some(target) = &filter.target {
        query.insert("event.target", target);
    }
    if let Some(family) = filter.family {
        query.insert("event.family", family.to_string());
    }
    let concerned = [filter.about.as_ref().map(about), filter.secret.as_ref().map(with_secret)];
    let concerned: Vec<Document> = concerned.into_iter().flatten().collect();
    if !concerned.is_empty() {
        query.insert("$and", concerned);
    }
    let mut at = Document::new();
    at.extend(filter.from.map(|from| ("$gte".to_owned(), Bson::Int64(from.millis()))));
    at.extend(filter.to.map(|to| ("$lt".to_owned(), Bson::Int64(to.millis()))));
    if !at.is_empty() {
        query.insert("event.at", at);
    }
    query
}
