//! The audit trail as it is read: all chains together, newest first, or one of them in order.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::TryStreamExt as _;
use mongodb::bson::{Bson, Document, doc};
use tokio::sync::broadcast;

use super::{
    Mongo,
    chain::{TIMELESS, beyond, decoded, newest, place, placed, records, sealed, shown},
    codec::Fields,
    fault::Fault,
    node::{head_of, sealed_in},
    pending::Entry,
    schema::{AUDIT_LOGS, NODES, WITNESSES},
    tail,
};
use crate::{
    crypto::chain::{Claim, Head},
    model::{
        Event, Record, Timestamp,
        event::{Filter, Place},
    },
    store::{AuditStore, Result, Store, Writer},
};

/// How old the time under the last heartbeat's seal may be of a node that runs. A heartbeat comes twice a second.
const SILENCE: Duration = Duration::from_secs(30);

#[async_trait]
impl AuditStore for Mongo {
    async fn append(&self, event: Event) -> Result<()> {
        Ok(self.shared.append(event).await?)
    }

    async fn append_soon(&self, event: Event) -> Result<()> {
        self.shared.brings(event.at);
        Ok(self.shared.chain.append_soon(Entry::new(event)?).await?)
    }

    async fn events(&self, filter: &Filter, before: Option<&Place>, limit: usize) -> Result<Vec<Record>> {
        let mut found = Vec::new();
        if before.is_none_or(|before| before.at.millis() != TIMELESS) {
            // A list of times would be found by each of them.
            let number = doc! { "$expr": { "$in": [{ "$type": "$event.at" }, ["long", "int", "double"]] } };
            let mut query = vec![placed(), query(filter), doc! { "event.at": { "$gte": i64::MIN } }, number];
            query.extend(before.map(behind));
            let newest_first = doc! { "event.at": -1, "_id": -1 };
            found = self.shared.pages(AUDIT_LOGS, doc! { "$and": query }, newest_first, limit).await?;
        }
        let room = limit.saturating_sub(found.len());
        if room > 0 && filter.from.is_none() && filter.to.is_none() {
            let mut query = vec![placed(), query(filter), timeless()];
            let before = before.filter(|before| before.at.millis() == TIMELESS);
            query.extend(before.map(|before| doc! { "_id": { "$lt": place(&before.chain, before.sequence) } }));
            let last = self.shared.pages(AUDIT_LOGS, doc! { "$and": query }, doc! { "_id": -1 }, room).await?;
            found.extend(last);
        }
        Ok(found.iter().filter_map(shown).collect())
    }

    async fn chains(&self) -> Result<Vec<Arc<str>>> {
        let nodes = self.shared.link.collection(NODES);
        let read = async move { Ok(nodes.find(doc! {}).await?.try_collect::<Vec<Document>>().await?) };
        let mut names = BTreeSet::new();
        for node in self.shared.link.call(read).await? {
            // Others can write to the database too: what is no node's document is no chain either.
            if let (Ok(name), Ok(Some(_))) = (Fields::of("node", &node).text("_id"), head_of(&node)) {
                names.insert(name.into());
            }
        }
        let mut after = doc! { "chain": "" };
        while let Some(name) = self.next_name(after).await? {
            after = beyond(&name);
            names.insert(name);
        }
        Ok(names.into_iter().collect())
    }

    async fn chain(&self, name: &str, after: u64, limit: usize) -> Result<Vec<Record>> {
        let found = records(&self.shared.link, name, after, limit).await?;
        Ok(found.iter().filter_map(shown).collect())
    }

    async fn head(&self, chain: &str) -> Result<Option<Head>> {
        let noted = self.noted(chain).await?;
        // The noted head follows the chain at some distance. Behind it each record's own seal counts; what is noted and not
        // there was cut off.
        let last = newest(&self.shared.link, chain).await?.as_ref().map(own_seal).transpose()?;
        Ok(match (noted, last) {
            (Some(noted), Some(last)) if last.sequence <= noted.sequence => Some(noted),
            (noted, last) => last.or(noted),
        })
    }

    async fn writer(&self, chain: &str) -> Result<Writer> {
        if self.shared.node.name.as_ref() == chain {
            return Ok(Writer::This);
        }
        // Also one of a chain that has not begun: it is noted some time before its first record is under it.
        let head = self.node_of(chain).await?.and_then(|node| sealed_in(&node).ok().flatten());
        let head = head.filter(|head| self.shared.node.key.check(head));
        let Some(Claim::Open { at }) = head.map(|head| head.claim) else { return Ok(Writer::Nobody) };
        let now = self.time().await?.unwrap_or(Timestamp::EPOCH);
        let silent = now.since(at).max(at.since(now));
        Ok(if silent < SILENCE { Writer::Another } else { Writer::Nobody })
    }

    async fn witnesses(&self, after: Option<&Place>, limit: usize) -> Result<Vec<Record>> {
        let mut after = after.map_or_else(|| doc! { "chain": "" }, |after| place(&after.chain, after.sequence));
        loop {
            let query = vec![placed(), doc! { "event.action": WITNESSES, "_id": { "$gt": after } }];
            let found = self.shared.pages(AUDIT_LOGS, doc! { "$and": query }, doc! { "_id": 1 }, limit).await?;
            let is_sealed = |found: &&Document| sealed(found).is_ok_and(|head| self.shared.node.key.check(&head));
            let ours: Vec<Record> = found.iter().filter(is_sealed).filter_map(|found| decoded(found).ok()).collect();
            // A page of nothing but forged ones hides none of those behind it.
            match found.last().and_then(|last| last.get_document("_id").ok()) {
                Some(last) if ours.is_empty() => after = last.clone(),
                Some(_) | None => return Ok(ours),
            }
        }
    }

    fn tail(&self) -> broadcast::Receiver<Option<Arc<Record>>> {
        let records = self.shared.chain.tail();
        tail::listen(&self.shared);
        records
    }
}

impl Mongo {
    /// The head of a chain that was noted last. One that cannot be read counts as none: the end of the chain is then not sure.
    async fn noted(&self, chain: &str) -> Result<Option<Head>, Fault> {
        Ok(self.node_of(chain).await?.and_then(|node| head_of(&node).ok().flatten()))
    }

    async fn node_of(&self, chain: &str) -> Result<Option<Document>, Fault> {
        let (nodes, id) = (self.shared.link.collection(NODES), chain.to_owned());
        self.shared.link.call(async move { Ok(nodes.find_one(doc! { "_id": id }).await?) }).await
    }

    /// The next chain of which there are records. One may have very many: each name is looked up behind the one before.
    async fn next_name(&self, after: Document) -> Result<Option<Arc<str>>, Fault> {
        // Up to the `_id`s that begin otherwise.
        let mut filter = doc! { "_id": { "$gt": after, "$lt": { "chain": {} } } };
        filter.extend(placed());
        let logs = self.shared.link.collection(AUDIT_LOGS);
        let read = async move { Ok(logs.find_one(filter).sort(doc! { "_id": 1 }).projection(doc! { "_id": 1 }).await?) };
        let found = self.shared.link.call(read).await?;
        let id = found.as_ref().and_then(|found| found.get_document("_id").ok());
        Ok(id.and_then(|id| id.get_str("chain").ok()).map(Into::into))
    }
}

/// The seal of a record; a wrong one of a record that cannot be read.
fn own_seal(document: &Document) -> Result<Head, Fault> {
    sealed(document).or_else(|fault| {
        let Record { node, sequence, hash, .. } = shown(document).ok_or(fault)?;
        Ok(Head { node, sequence, hash, claim: Claim::Record { entry: [0; 16] }, seal: [0; 32] })
    })
}

/// Records whose time cannot be read.
fn timeless() -> Document {
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
    ];
    let missing = doc! { "event.at": { "$exists": false } };
    doc! { "$or": [missing, { "event.at": null }, { "event.at": f64::NAN }, { "event.at": { "$type": others.as_slice() } }] }
}

/// What stands behind a place in the common order, newest first.
fn behind(before: &Place) -> Document {
    let at = before.at.millis();
    let same = doc! { "event.at": at, "_id": { "$lt": place(&before.chain, before.sequence) } };
    doc! { "$or": [{ "event.at": { "$lt": at } }, same] }
}

/// [`Filter::admits`] as a query.
fn query(filter: &Filter) -> Document {
    let mut query = Document::new();
    if let Some(tenant) = &filter.tenant {
        query.insert("event.tenant", tenant.as_str());
    }
    if let Some(client) = &filter.client {
        query.insert("event.client", client.as_str());
    }
    match &filter.action {
        // All that begin so: from the dot up to the character behind it.
        Some(action) if action.ends_with('.') => {
            let end = format!("{}/", action.trim_end_matches('.'));
            query.insert("event.action", doc! { "$gte": action, "$lt": end });
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
    let mut at = Document::new();
    at.extend(filter.from.map(|from| ("$gte".to_owned(), Bson::Int64(from.millis()))));
    at.extend(filter.to.map(|to| ("$lt".to_owned(), Bson::Int64(to.millis()))));
    if !at.is_empty() {
        query.insert("event.at", at);
    }
    query
}
