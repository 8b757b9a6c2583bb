//! Rate-limit counters: one document for a key and a window, with the count of each process. A
//! flush is one command to write and one to read, whatever the number of keys.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::TryStreamExt as _;
use mongodb::{
    Database,
    bson::{Document, doc},
};

use crate::{
    model::Timestamp,
    store::{
        CounterStore, Result,
        mongo::{
            audit::node_lease::Node,
            driver::{
                codec::{Fields, count, date},
                connection::Connection,
                error::MongoError,
                query::expired_filter,
                schema::RATE_LIMITS,
            },
        },
    },
};

/// Updates in one command.
const BATCH_MAX: usize = 1_000;
/// Greatest count of a process, so that no sum exceeds MongoDB's integers.
const COUNT_MAX: u64 = 1 << 53;

/// Clock difference that is allowed between nodes.
const SKEW_MS: i64 = 3_600_000;
/// Distance from the current window, before or after, beyond which a window is dropped.
const WINDOW_DISTANCE_MAX: Duration = Duration::from_secs(60);

/// Counts of this process, by window and key. They are written as totals, never as increments: a
/// total that is written twice, or again after a lost reply, changes nothing (M7).
#[derive(Default)]
struct LocalCounts(Mutex<HashMap<Timestamp, HashMap<String, u64>>>);

impl LocalCounts {
    /// Adds hits; returns the totals of their keys.
    fn add(&self, hits: &[(String, u64)], until: Timestamp) -> HashMap<String, u64> {
        let mut windows = self.lock();
        let window = windows.entry(until).or_default();
        let mut totals = HashMap::new();
        for (id, by) in hits {
            let count = window.entry(id.clone()).or_default();
            *count = count.saturating_add(*by).min(COUNT_MAX);
            totals.insert(id.clone(), *count);
        }
        windows
            .retain(|other, _| other.since(until).max(until.since(*other)) <= WINDOW_DISTANCE_MAX);
        totals
    }

    /// Takes back hits that were not applied as far as is known: their caller counts them again.
    fn revert(&self, hits: &[(String, u64)], until: Timestamp) {
        if let Some(window) = self.lock().get_mut(&until) {
            for (id, by) in hits {
                if let Some(count) = window.get_mut(id) {
                    *count = count.saturating_sub(*by);
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Timestamp, HashMap<String, u64>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The collection `rate_limits`.
#[derive(Clone)]
pub(crate) struct Counters {
    connection: Arc<Connection>,
    /// Field of this process's own counts.
    field: Arc<str>,
    local: Arc<LocalCounts>,
}

impl Counters {
    /// Counters of the process that holds the name of `node`.
    pub(crate) fn new(connection: Arc<Connection>, node: &Node) -> Self {
        let field = format!("by.{}", node.session().simple()).into();
        Self { connection, field, local: Arc::default() }
    }

    /// Deletes windows that are over.
    pub(super) async fn sweep(&self, now: Timestamp) -> Result<usize, MongoError> {
        let counters = self.connection.collection(RATE_LIMITS);
        // A node whose clock is ahead must not delete windows that others still count in.
        let mut expired = expired_filter("until", now, doc! {});
        expired.insert("$expr", doc! { "$lte": ["$until", { "$subtract": ["$$NOW", SKEW_MS] }] });
        let swept =
            self.connection.call(async move { Ok(counters.delete_many(expired).await?) }).await?;
        Ok(usize::try_from(swept.deleted_count).unwrap_or(usize::MAX))
    }
}

#[async_trait]
impl CounterStore for Counters {
    async fn count(&self, hits: &[(String, u64)], until: Timestamp) -> Result<Vec<u64>> {
        if self.connection.is_closed() {
            return Err(MongoError::Closed.into());
        }
        let mut totals = Vec::with_capacity(hits.len());
        let local_counts = &self.local;
        for (at, batch) in hits.chunks(BATCH_MAX).enumerate() {
            let due = local_counts.add(batch, until);
            let flush = Flush {
                database: self.connection.database().clone(),
                deadline: self.connection.deadline(),
                field: self.field.clone(),
                until,
            };
            let batch = batch.to_vec();
            match self.connection.call(async move { flush.run(due, &batch).await }).await {
                Ok(written) => totals.extend(written),
                Err(fault) => {
                    // The caller repeats all of it, including batches that were written.
                    let written = hits.get(..(at + 1) * BATCH_MAX).unwrap_or(hits);
                    local_counts.revert(written, until);
                    return Err(fault.into());
                }
            }
        }
        Ok(totals)
    }
}

/// Window first, so that a sweep of old windows and a look at new ones are ranges.
fn key(id: &str, until: Timestamp) -> String {
    format!("{}/{id}", until.millis())
}

/// One command's worth of counts.
struct Flush {
    database: Database,
    deadline: Duration,
    /// Field of this process's own counts.
    field: Arc<str>,
    until: Timestamp,
}

impl Flush {
    async fn run(
        &self,
        due: HashMap<String, u64>,
        hits: &[(String, u64)],
    ) -> Result<Vec<u64>, MongoError> {
        let counters = self.database.collection::<Document>(RATE_LIMITS);
        let mut due: Vec<(String, u64)> =
            due.into_iter().map(|(id, count)| (key(&id, self.until), count)).collect();
        // Of two nodes that create the same counter at once, one gets a duplicate key and tries
        // again.
        for _ in 0..2 {
            due = self.write(due).await?;
        }
        if !due.is_empty() {
            return Err(MongoError::TooManyPending);
        }
        let keys: Vec<String> = hits.iter().map(|(id, _)| key(id, self.until)).collect();
        let found: Vec<Document> =
            counters.find(doc! { "_id": { "$in": &keys } }).await?.try_collect().await?;
        let mut values = HashMap::new();
        for document in &found {
            values.insert(Fields::of("counter", document).text("_id")?, total(document)?);
        }
        // A key that occurs twice: each hit gets the counter's value after itself.
        let mut after: HashMap<&str, u64> = HashMap::new();
        let mut totals: Vec<u64> = Vec::with_capacity(hits.len());
        for (key, (_, by)) in keys.iter().zip(hits).rev() {
            let later = after.entry(key).or_default();
            let value = values.get(key.as_str()).copied();
            // Swept in between, or not yet visible on a newly elected primary.
            let value = value.ok_or(MongoError::TooManyPending)?;
            totals.push(value.saturating_sub(*later));
            *later = later.saturating_add(*by);
        }
        totals.reverse();
        Ok(totals)
    }

    /// Writes totals; returns those that another node's concurrent insert refused.
    async fn write(&self, due: Vec<(String, u64)>) -> Result<Vec<(String, u64)>, MongoError> {
        if due.is_empty() {
            return Ok(due);
        }
        let updates: Vec<Document> = due
            .iter()
            .map(|(key, totals)| {
                let mut written = Document::new();
                written.insert(self.field.as_ref(), count(*totals));
                let update = doc! { "$max": written, "$set": { "until": date(self.until) } };
                doc! { "q": { "_id": key }, "u": update, "upsert": true }
            })
            .collect();
        let wait = i64::try_from(self.deadline.as_millis()).unwrap_or(i64::MAX);
        // The driver's bulk write needs server 8.0, and run_command adds no write concern.
        let command = doc! {
            "update": RATE_LIMITS,
            "updates": updates,
            "ordered": false,
            "writeConcern": { "w": "majority", "j": true, "wtimeout": wait },
        };
        let answer = self.database.run_command(command).await?;
        if let Ok(concern) = answer.get_document("writeConcernError") {
            return Err(MongoError::refused(concern));
        }
        let mut again = Vec::new();
        for error in answer.get_array("writeErrors").into_iter().flatten() {
            let error = error
                .as_document()
                .ok_or_else(|| MongoError::malformed("counters", "malformed reply"))?;
            let at = error.get_i32("index").ok().and_then(|index| usize::try_from(index).ok());
            match at.and_then(|at| due.get(at)) {
                Some(written) if error.get_i32("code").is_ok_and(|code| code == 11_000) => {
                    again.push(written.clone())
                }
                _ => return Err(MongoError::refused(error)),
            }
        }
        Ok(again)
    }
}

/// Sum over all processes.
fn total(counter: &Document) -> Result<u64, MongoError> {
    let Ok(by) = counter.get_document("by") else { return Ok(0) };
    let fields = Fields::of("counter", by);
    by.keys().try_fold(0_u64, |sum, process| Ok(sum.saturating_add(fields.count(process)?)))
}
