//! A change stream, batch by batch. Not the driver's own: where the way breaks off, that one takes
//! itself up again, and if its first attempt fails too, the second has forgotten where it was and
//! goes on from now (driver 3.9.1). What came in between is lost, and nobody is told. Here a stream
//! is one cursor and ends with it; whoever reads takes up another one where it was.

use std::time::Duration;

use futures_util::StreamExt as _;
use mongodb::{
    bson::{Document, doc},
    raw_batch_cursor::RawBatchCursor,
};

use super::{codec::lenient, connection::Connection, error::MongoError};

/// How long the server waits for something to tell.
const AWAIT_TIME: Duration = Duration::from_millis(500);

/// How often in a row the server may refuse a place before that is given up.
pub(crate) const REFUSALS_MAX: u32 = 10;

/// A stream that is open.
pub(crate) struct Stream {
    cursor: RawBatchCursor,
    is_first: bool,
}

/// What came.
pub(crate) struct Batch {
    /// None, if nothing came for a while.
    pub(crate) events: Vec<Document>,
    /// Behind them.
    pub(crate) resume_token: ResumeToken,
    /// Whether the server goes on from there. The first batch is there at once, and mostly empty:
    /// that says little.
    pub(crate) is_resumable: bool,
}

/// Where a stream can be taken up: a resume token.
#[derive(Clone)]
pub(crate) struct ResumeToken(Document);

impl Stream {
    /// Of a collection or of the whole database, from a place on, else from now on; what the
    /// pipeline lets through. Must not be dropped before it is done, as no operation of the driver
    /// must.
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

    /// What came next; `None` where the server has ended the stream. As for [`Self::open`], not to
    /// be dropped in flight.
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
            event.as_document().map(lenient).ok_or_else(|| wrong(&"an event is no document"))
        });
        let events: Vec<_> = events.collect::<Result<_, MongoError>>()?;
        let is_resumable = !std::mem::take(&mut self.is_first) || !events.is_empty();
        Ok(Some(Batch { events, resume_token, is_resumable }))
    }
}
