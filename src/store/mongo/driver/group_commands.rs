//! Commands of a group commit: inserts of documents, and conditional updates of single documents,
//! each with an entry in the document's outbox.

use std::collections::HashSet;

use async_trait::async_trait;
use futures_util::TryStreamExt as _;
use mongodb::{
    bson::{Bson, Document, doc},
    error::ErrorKind,
};
use uuid::Uuid;

use super::{
    codec::{Fields, count, uuid},
    connection::Connection,
    error::MongoError,
    group_commit::GroupCommand,
};

/// Insert command for one collection.
pub(crate) struct Inserts(pub(crate) &'static str);

/// Outcome of an insert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inserted {
    /// The document is stored.
    Created,
    /// Another document has its `_id`; it may not be durable.
    Taken,
}

#[async_trait]
impl GroupCommand for Inserts {
    type Operation = Document;
    type Outcome = Inserted;

    async fn run(
        &self,
        connection: &Connection,
        documents: Vec<Document>,
    ) -> Result<Vec<Result<Inserted, MongoError>>, MongoError> {
        let (collection, number) = (connection.collection(self.0), documents.len());
        let insert = async move {
            match collection.insert_many(documents).ordered(false).await {
                Ok(_) => Ok(Vec::new()),
                Err(error) => {
                    let ErrorKind::InsertMany(errors) = &*error.kind else {
                        return Err(error.into());
                    };
                    // Without the majority's acknowledgement nothing is certain.
                    if errors.write_concern_error.is_some() {
                        return Err(error.into());
                    }
                    Ok(errors.write_errors.clone().unwrap_or_default())
                }
            }
        };
        let errors = connection.call(insert).await?;
        let mut outcomes: Vec<_> = (0..number).map(|_| Ok(Inserted::Created)).collect();
        for error in errors {
            if let Some(outcome) = outcomes.get_mut(error.index) {
                *outcome = if MongoError::is_duplicate_code(error.code) {
                    Ok(Inserted::Taken)
                } else {
                    Err(MongoError::refused_code(error.code))
                };
            }
        }
        Ok(outcomes)
    }
}

/// Update command for one collection.
pub(crate) struct Updates(pub(crate) &'static str);

/// Conditional update of one document.
#[derive(Clone)]
pub(crate) struct Statement {
    /// `_id` of the document.
    pub(crate) id: Bson,
    /// Condition; it names the `_id`, and no document matches it once the update is applied.
    pub(crate) filter: Document,
    pub(crate) update: Vec<Document>,
    /// Outbox entry that the update adds.
    pub(crate) entry: Uuid,
}

/// Outcome of a conditional update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Updated {
    /// Applied, and durable.
    Applied,
    /// No document matched, as far as it shows in a reply that counts all statements together
    /// and a read that may be old: the caller reads the document as it is.
    NotSeen,
}

#[async_trait]
impl GroupCommand for Updates {
    type Operation = Statement;
    type Outcome = Updated;

    async fn run(
        &self,
        connection: &Connection,
        statements: Vec<Statement>,
    ) -> Result<Vec<Result<Updated, MongoError>>, MongoError> {
        let (reply, is_first) = match self.update(connection, &statements).await {
            // The conditions make a second attempt safe: what the first one changed no longer
            // matches.
            Err(fault) if fault.is_retryable() => {
                (self.update(connection, &statements).await?, false)
            }
            reply => (reply?, true),
        };
        let applied = if is_first && reply.are_all_applied(statements.len()) {
            statements.iter().map(|statement| statement.entry).collect()
        } else {
            self.find_applied(connection, &statements).await?
        };
        let outcome = |(index, statement): (usize, &Statement)| match reply.error(index) {
            Some(fault) => Err(fault),
            None if applied.contains(&statement.entry) => Ok(Updated::Applied),
            None => Ok(Updated::NotSeen),
        };
        Ok(statements.iter().enumerate().map(outcome).collect())
    }
}

/// Reply to an update command.
struct UpdateReply {
    /// Number of statements that matched a document.
    matched: u64,
    /// Errors of single statements.
    errors: Vec<Document>,
}

impl UpdateReply {
    fn are_all_applied(&self, statements: usize) -> bool {
        self.errors.is_empty() && usize::try_from(self.matched) == Ok(statements)
    }

    fn error(&self, index: usize) -> Option<MongoError> {
        let of_index = |error: &&Document| {
            error.get_i32("index").is_ok_and(|at| usize::try_from(at) == Ok(index))
        };
        self.errors.iter().find(of_index).map(MongoError::refused)
    }
}

impl Updates {
    /// Sends the command, which the driver does not repeat.
    async fn update(
        &self,
        connection: &Connection,
        statements: &[Statement],
    ) -> Result<UpdateReply, MongoError> {
        let updates: Vec<Document> = statements
            .iter()
            .map(|statement| doc! { "q": &statement.filter, "u": &statement.update })
            .collect();
        let wtimeout = u64::try_from(connection.deadline().as_millis()).unwrap_or(u64::MAX);
        let command = doc! {
            "update": self.0,
            "updates": updates,
            "ordered": false,
            "writeConcern": { "w": "majority", "j": true, "wtimeout": count(wtimeout) },
        };
        let database = connection.database().clone();
        let reply =
            connection.call(async move { Ok(database.run_command(command).await?) }).await?;
        if let Ok(concern) = reply.get_document("writeConcernError") {
            return Err(MongoError::refused(concern));
        }
        let errors = reply.get_array("writeErrors").map(Vec::as_slice).unwrap_or_default();
        // A primary that steps down, behind a router, refuses each statement by itself.
        let lost = errors.iter().filter_map(Bson::as_document).map(MongoError::refused);
        if let Some(lost) = lost.into_iter().find(MongoError::is_retryable) {
            return Err(lost);
        }
        Ok(UpdateReply {
            matched: Fields::of("reply", &reply).count("n")?,
            errors: errors.iter().filter_map(Bson::as_document).cloned().collect(),
        })
    }

    /// Finds the statements whose entries are in their documents. Nothing removes an entry before
    /// its event is recorded, which is after the update returns.
    async fn find_applied(
        &self,
        connection: &Connection,
        statements: &[Statement],
    ) -> Result<HashSet<Uuid>, MongoError> {
        let entries: Vec<Bson> = statements.iter().map(|statement| uuid(statement.entry)).collect();
        let ids: Vec<&Bson> = statements.iter().map(|statement| &statement.id).collect();
        let filter = doc! { "_id": { "$in": ids }, "outbox.id": { "$in": entries } };
        let documents = connection.collection(self.0);
        let batch = u32::try_from(statements.len()).unwrap_or(u32::MAX);
        let read = async move {
            let found = documents.find(filter).projection(doc! { "outbox.id": 1 });
            Ok(found.batch_size(batch).await?.try_collect::<Vec<_>>().await?)
        };
        let found = connection.call(read).await?;
        Ok(found.iter().flat_map(entries_in).collect())
    }
}

/// Ids of the entries in a document's outbox.
pub(crate) fn entries_in(document: &Document) -> impl Iterator<Item = Uuid> {
    let outbox = document.get_array("outbox").map(Vec::as_slice).unwrap_or_default();
    let id = |entry: &Bson| Fields::of("outbox", entry.as_document()?).uuid("id").ok();
    outbox.iter().filter_map(id)
}
