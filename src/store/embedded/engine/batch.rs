//! One transaction in progress. Verbs write into it one after the other; notifications of followers
//! wait until it is committed.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Params, Row};
use tokio::sync::oneshot;

use super::error::SqliteError;
use crate::{
    crypto::chain::{ChainKey, Claim, Head},
    model::{Action, Event, Record, Timestamp},
    store::{
        Change, Follower, Result,
        embedded::{
            audit::index::KeyRow,
            integrity::checksum::{self, SetChecksum},
        },
        transfer::Chains,
    },
};

/// Claim of a chain that is not closed: of the own one, and of an imported one whose node had
/// stopped without closing it. There is no lease here, so it has no time.
pub(crate) const OPEN: Claim = Claim::Open { at: Timestamp::EPOCH };

/// The writer's in-memory copy of the row `head`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HeadRow {
    /// Name of the own chain: the node that wrote its first record, or will.
    pub(crate) chain: Arc<str>,
    /// Node that wrote the last audit record.
    pub(crate) node: Arc<str>,
    /// Sequence of the last audit record; 0 before the first.
    pub(crate) sequence: u64,
    /// Hash of the last audit record.
    pub(crate) hash: [u8; 32],
    /// Latest time that is durable: of any audit record, and of the sweep.
    pub(crate) newest_time: Timestamp,
    /// Checksum over all revocations and epochs: none may be lost.
    pub(crate) set_checksum: SetChecksum,
    /// Progress of an import that has begun and not ended; on disk, a flag.
    pub(crate) import: Option<Chains>,
}

impl HeadRow {
    /// Returns the sealed head of the own chain.
    pub(crate) fn head(&self, key: &ChainKey) -> Head {
        key.seal(&self.node, self.sequence, self.hash, OPEN)
    }

    /// Returns the checksum over the columns that the seal does not cover.
    pub(crate) fn sum(&self) -> [u8; 16] {
        let newest = self.newest_time.millis().to_be_bytes();
        checksum::row(
            "head",
            &[
                self.chain.as_bytes(),
                &newest,
                &self.set_checksum.to_bytes(),
                &[u8::from(self.import.is_some())],
            ],
        )
    }
}

/// Actions outside the database that follow the commit.
pub(crate) struct PostCommit {
    pub(crate) state: HeadRow,
    pub(crate) changes: Vec<Change>,
    pub(crate) records: Vec<Arc<Record>>,
    pub(crate) followers: Vec<Arc<dyn Follower>>,
    /// Ids of some chains.
    pub(crate) chain_ids: Vec<(Arc<str>, i64)>,
    /// Keys of the records of this batch.
    pub(crate) keys: Vec<KeyRow>,
    /// True if these keys were written, and those gathered before.
    pub(crate) are_keys_written: bool,
}

/// Transaction in progress.
pub(crate) struct Batch<'a> {
    pub(crate) connection: &'a Connection,
    /// Name of this node in the audit trail.
    pub(crate) node: &'a Arc<str>,
    /// Key that seals the heads of chains.
    pub(crate) key: &'a ChainKey,
    /// True if a tail of the trail is open.
    pub(crate) has_tail_readers: bool,
    /// True if only changes that revoke tokens may write: the disk is full.
    pub(crate) reserve_only: bool,
    pub(crate) post_commit: PostCommit,
}

impl Batch<'_> {
    pub(crate) fn execute(
        &self,
        sql: &'static str,
        parameters: impl Params,
    ) -> Result<usize, SqliteError> {
        Ok(self.connection.prepare_cached(sql)?.execute(parameters)?)
    }

    pub(crate) fn row<T>(
        &self,
        sql: &'static str,
        parameters: impl Params,
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>, SqliteError> {
        Ok(self.connection.prepare_cached(sql)?.query_row(parameters, read).optional()?)
    }

    pub(crate) fn change(&mut self, change: Change) {
        self.post_commit.changes.push(change);
    }
}

/// Event with the text that is stored and hashed.
pub(crate) struct EventText {
    pub(crate) event: Event,
    pub(crate) body: String,
}

impl EventText {
    /// Serializes an event. Called on the caller's thread: there are many of those and one writer.
    pub(crate) fn new(event: Event) -> Result<Self, SqliteError> {
        let body = serde_json::to_string(&event).map_err(super::error::malformed("audit event"))?;
        Ok(Self { event, body })
    }

    /// Serializes the events of one change, in their order.
    pub(crate) fn all(events: Vec<Event>) -> Result<Vec<Self>, SqliteError> {
        events.into_iter().map(Self::new).collect()
    }
}

/// Priority of a write: the delay it tolerates, the disk space it may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Priority {
    /// No caller waits: may be committed up to 20 ms later, with other writes.
    Background,
    /// A caller waits.
    Normal,
    /// Revokes tokens: may use the disk reserve.
    Revocation,
}

impl Priority {
    /// Priority of a change by its audit action: some changes of a client or of the keyset revoke
    /// tokens, most do not.
    pub(crate) const fn of(action: Action) -> Self {
        if matches!(action, Action::KeyRevoked | Action::ClientDisabled | Action::SecretRetired) {
            Self::Revocation
        } else {
            Self::Normal
        }
    }
}

/// Write that is queued for the writer.
pub(crate) trait Job: Send {
    fn priority(&self) -> Priority;
    /// Writes into the batch; called again with another batch if the first was not committed. An
    /// error rolls the whole batch back.
    fn run(&mut self, batch: &mut Batch<'_>) -> Result<(), SqliteError>;
    /// Sends the result, once the batch is committed or has failed.
    fn reply(self: Box<Self>, outcome: Result<(), SqliteError>);
}

/// Job made of a closure.
pub(crate) struct ClosureJob<F, T> {
    priority: Priority,
    work: F,
    done: Option<Result<T, SqliteError>>,
    reply: oneshot::Sender<Result<T>>,
}

impl<F, T> ClosureJob<F, T> {
    pub(crate) const fn new(
        priority: Priority,
        work: F,
        reply: oneshot::Sender<Result<T>>,
    ) -> Self {
        Self { priority, work, done: None, reply }
    }
}

impl<F, T> Job for ClosureJob<F, T>
where
    F: FnMut(&mut Batch<'_>) -> Result<T, SqliteError> + Send,
    T: Send,
{
    fn priority(&self) -> Priority {
        self.priority
    }

    fn run(&mut self, batch: &mut Batch<'_>) -> Result<(), SqliteError> {
        let done = (self.work)(batch);
        // An error without a kind was found before the verb wrote anything, so it concerns this
        // caller alone.
        let spoiled = done.as_ref().err().filter(|fault| fault.kind().is_some()).cloned();
        self.done = Some(done);
        spoiled.map_or(Ok(()), Err)
    }

    fn reply(self: Box<Self>, outcome: Result<(), SqliteError>) {
        let Self { done, reply, .. } = *self;
        let answer = outcome.and_then(|()| done.unwrap_or(Err(SqliteError::Failed)));
        // The receiver may be gone; that is fine.
        let _ = reply.send(answer.map_err(Into::into));
    }
}

/// Converts a number to SQLite's 63 bits; sequences and counts stay far below.
pub(crate) fn to_sql(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Converts a number back; a negative one was never written by this store and reads as 0.
pub(crate) fn from_sql(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
