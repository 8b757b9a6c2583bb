//! Rate-limit counters: one document for a key and a window. All of a flush goes in one command, whatever the number of keys, and
//! comes back in another.

use std::collections::HashMap;

use async_trait::async_trait;
use futures_util::TryStreamExt as _;
use mongodb::{
    Database,
    bson::{Document, doc},
};

use super::{
    Mongo,
    codec::{Fields, count, date},
    fault::Fault,
    schema::RATE_LIMITS,
};
use crate::{
    model::Timestamp,
    store::{CounterStore, Result},
};

/// Updates in one command.
const STRIDE: usize = 1_000;
/// The most that is added at once, so that no sum passes what MongoDB can count.
const MOST: u64 = 1 << 53;

#[async_trait]
impl CounterStore for Mongo {
    async fn count(&self, hits: &[(String, u64)], until: Timestamp) -> Result<Vec<u64>> {
        if self.shared.link.is_closed() {
            return Err(Fault::Closed.into());
        }
        let mut standing = Vec::with_capacity(hits.len());
        for hits in hits.chunks(STRIDE) {
            let (database, hits) = (self.shared.link.database().clone(), hits.to_vec());
            standing.extend(self.shared.link.call(async move { flush(&database, &hits, until).await }).await?);
        }
        Ok(standing)
    }
}

/// Window first: a sweep of old ones and a shell's view of new ones are ranges then.
fn key(id: &str, until: Timestamp) -> String {
    format!("{}/{id}", until.millis())
}

async fn flush(database: &Database, hits: &[(String, u64)], until: Timestamp) -> Result<Vec<u64>, Fault> {
    let counters = database.collection::<Document>(RATE_LIMITS);
    let mut adding: HashMap<String, u64> = HashMap::new();
    for (id, by) in hits {
        let sum = adding.entry(key(id, until)).or_default();
        *sum = sum.saturating_add(*by);
    }
    let mut due: Vec<(String, u64)> = adding.into_iter().collect();
    // Two nodes that make the same counter at once: one of them is told that it is there, and adds to it.
    for _ in 0..2 {
        due = add(database, due, until).await?;
    }
    if !due.is_empty() {
        return Err(Fault::Crowded);
    }
    let keys: Vec<String> = hits.iter().map(|(id, _)| key(id, until)).collect();
    let found: Vec<Document> = counters.find(doc! { "_id": { "$in": &keys } }).await?.try_collect().await?;
    let mut values = HashMap::new();
    for document in &found {
        let fields = Fields::of("counter", document);
        values.insert(fields.text("_id")?, fields.count("value")?);
    }
    // One key twice: each hit says where the counter stood after it.
    let mut after: HashMap<&str, u64> = HashMap::new();
    let mut standing: Vec<u64> = Vec::with_capacity(hits.len());
    for (key, (_, by)) in keys.iter().zip(hits).rev() {
        let later = after.entry(key).or_default();
        let value = values.get(key.as_str()).copied();
        // Swept in between, or not shown yet by a primary that has just become one.
        let value = value.ok_or(Fault::Crowded)?;
        standing.push(value.saturating_sub(*later));
        *later = later.saturating_add(*by);
    }
    standing.reverse();
    Ok(standing)
}

/// Adds; gives back what has yet to be added because another made the document at the same moment.
async fn add(database: &Database, due: Vec<(String, u64)>, until: Timestamp) -> Result<Vec<(String, u64)>, Fault> {
    if due.is_empty() {
        return Ok(due);
    }
    let updates: Vec<Document> = due
        .iter()
        .map(|(key, by)| {
            let update = doc! { "$inc": { "value": count((*by).min(MOST)) }, "$set": { "until": date(until) } };
            doc! { "q": { "_id": key }, "u": update, "upsert": true }
        })
        .collect();
    // The driver has no command for many different updates that servers before 8.0 know, and adds no write concern to one
    // that it is handed.
    let answer = database
        .run_command(doc! {
            "update": RATE_LIMITS,
            "updates": updates,
            "ordered": false,
            "writeConcern": { "w": "majority", "j": true, "wtimeout": 1_000 },
        })
        .await?;
    if let Ok(concern) = answer.get_document("writeConcernError") {
        return Err(Fault::refused(concern));
    }
    let mut again = Vec::new();
    for error in answer.get_array("writeErrors").into_iter().flatten() {
        let error = error.as_document().ok_or_else(|| Fault::row("counters", "an answer that is none"))?;
        let at = error.get_i32("index").ok().and_then(|index| usize::try_from(index).ok());
        match at.and_then(|at| due.get(at)) {
            Some(hit) if error.get_i32("code").is_ok_and(|code| code == 11_000) => again.push(hit.clone()),
            _ => return Err(Fault::refused(error)),
        }
    }
    Ok(again)
}
