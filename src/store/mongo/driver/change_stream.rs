//! Change stream, read batch by batch. The driver's own stream resumes by itself after a break, and
//! if its first attempt fails too, the second has lost the resume token and starts from now (driver
//! 3.9.1): changes in between are lost without notice. Here a stream is one cursor and ends with
//! it; the reader opens another one at its resume token.

use std::time::Duration;

use futures_util::StreamExt as _;
use mongodb::{
    bson::{Document, doc},
    raw_batch_cursor::RawBatchCursor,
};

use super::{codec::lenient, connection::Connection, error::MongoError};

/// Time that the server waits for an event before it sends an empty batch.
const AWAIT_TIME: Duration = Duration::from_millis(500);

/// Consecutive refusals of a resume token by the server before it is given up.
pub(crate) const REFUSALS_MAX: u32 = 10;

/// Open stream.
pub(crate) struct Stream {
    cursor: RawBatchCursor,
    is_first: bool,
}

/// Batch of events.
pub(crate) struct Batch {
    /// Empty if there was no event for [`AWAIT_TIME`].
    pub(crate) events: Vec<Document>,
    /// Position after them.
    pub(crate) resume_token: ResumeToken,
    /// True if the server continues from there. The first batch arrives at once and is mostly
    /// empty, which proves little.
    pub(crate) is_resumable: bool,
}

/// Resume token: position at which a stream can be opened again.
#[derive(Clone)]
pub(crate) struct ResumeToken(Document);

impl Stream {
    /// Opens a stream over a collection or the whole database, at a resume token or from now on,
    /// with the events that the pipeline passes. Like every driver future it must not be dropped in
    /// flight.
    pub(crate) async fn open(
        connection: &Connection,
        collection: Option<&str>,
        after: Option<ResumeToken>,
        pipeline: impl IntoIterator<Item = Document>,
    ) -> Result<Self, MongoError> {
        let from =
            after.map_or_else(Document::new, |ResumeToken(token)| doc! { "resumeAfter": token });
        let stages = std::iter::once(doc! { "$changeStream": from }).chain(pipeline);
        let cursor = match collection {
            Some(name) => {
                connection
                    .collection(name)
                    .aggregate(stages)
                    .max_await_time(AWAIT_TIME)
                    .batch()
                    .await?
            }
            None => {
                connection.database().aggregate(stages).max_await_time(AWAIT_TIME).batch().await?
            }
        };
        Ok(Self { cursor, is_first: true })
    }

    /// Reads the next batch; `None` if the server has ended the stream. Not to be dropped in
    /// flight, as [`Self::open`].
    pub(crate) async fn next(&mut self) -> Result<Option<Batch>, MongoError> {
        let Some(batch) = self.cursor.next().await.transpose()? else { return Ok(None) };
        let wrong =
            |problem: &dyn std::fmt::Display| MongoError::malformed("change stream", problem);
        let cursor =
            batch.as_raw_document().get_document("cursor").map_err(|error| wrong(&error))?;
        let resume_token =
            cursor.get_document("postBatchResumeToken").map_err(|error| wrong(&error))?;
        let resume_token = ResumeToken(resume_token.try_into().map_err(|error| wrong(&error))?);
        let events = batch.doc_slices()?.into_iter().map(|event| {
            let event = event.map_err(|error| wrong(&error))?;
            event.as_document().map(lenient).ok_or_else(|| wrong(&"an event is not a document"))
        });
        let events: Vec<_> = events.collect::<Result<_, MongoError>>()?;
        let is_resumable = !std::mem::take(&mut self.is_first) || !events.is_empty();
        Ok(Some(Batch { events, resume_token, is_resumable }))
    }
}
