//! The audit trail as it is read: all chains together, newest first, or one of them in order.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::TryStreamExt as _;
use mongodb::bson::{Bson, Document, doc};
use tokio::sync::broadcast;

use super::{
    Mongo,
    chain::{decoded, newest, place, records, sealed},
    codec::Fields,
    node::head_of,
    pending::Entry,
    schema::{AUDIT_LOGS, NODES},
    tail,
};
use crate::{
    crypto::chain::Head,
    model::{
        Event, Record,
        event::{Filter, Place},
    },
    store::{AuditStore, Result},
};

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
        let mut query = vec![query(filter)];
        query.extend(before.map(behind));
        let newest_first = doc! { "event.at": -1, "_id": -1 };
        let found = self.shared.pages(AUDIT_LOGS, doc! { "$and": query }, newest_first, limit).await?;
        Ok(found.iter().map(decoded).collect::<Result<_, _>>()?)
    }

    async fn chains(&self) -> Result<Vec<Arc<str>>> {
        let nodes = self.shared.link.collection(NODES);
        let read = async move { Ok(nodes.find(doc! {}).sort(doc! { "_id": 1 }).await?.try_collect::<Vec<Document>>().await?) };
        let own = (self.shared.chain.sequence() > 0).then(|| self.shared.node.name.clone());
        let mut names = Vec::new();
        for node in self.shared.link.call(read).await? {
            let name = Fields::of("node", &node).text("_id")?;
            // One that died before its first heartbeat has records all the same.
            let begun = head_of(&node)?.is_some() || own.as_deref() == Some(name);
            if begun || newest(&self.shared.link, name).await?.is_some() {
                names.push(name.into());
            }
        }
        Ok(names)
    }

    async fn chain(&self, name: &str, after: u64, limit: usize) -> Result<Vec<Record>> {
        let found = records(&self.shared.link, name, after, limit).await?;
        Ok(found.iter().map(decoded).collect::<Result<_, _>>()?)
    }

    async fn head(&self, chain: &str) -> Result<Option<Head>> {
        let (nodes, id) = (self.shared.link.collection(NODES), chain.to_owned());
        let noted = self.shared.link.call(async move { Ok(nodes.find_one(doc! { "_id": id }).await?) }).await?;
        let noted = noted.as_ref().map(head_of).transpose()?.flatten();
        // The noted head follows the chain at some distance. Behind it each record's own seal counts; what is noted and not
        // there was cut off.
        let last = newest(&self.shared.link, chain).await?.as_ref().map(sealed).transpose()?;
        Ok(match (noted, last) {
            (Some(noted), Some(last)) if last.sequence < noted.sequence => Some(noted),
            (noted, last) => last.or(noted),
        })
    }

    fn tail(&self) -> broadcast::Receiver<Option<Arc<Record>>> {
        let records = self.shared.chain.tail();
        tail::listen(&self.shared);
        records
    }
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
