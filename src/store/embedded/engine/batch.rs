//! One transaction in the making: verbs write into it one after the other, and what followers are
//! to hear waits until it stands.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Params, Row};
use tokio::sync::oneshot;

use super::error::Fault;
use crate::{
    crypto::chain::{self, ChainKey, Claim, Head},
    model::{Action, Event, Record, Timestamp},
    store::{
        Change, Follower, Result,
        embedded::integrity::checksum::{self, Tally},
        transfer::Chains,
    },
};

/// The claim of the own chain's seal. There is one node, and one head.
pub(crate) const OWN: Claim = Claim::Open { at: Timestamp::EPOCH };

/// What the writer knows by heart; on disk it is the row `head`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct State {
    /// Who wrote the last audit record.
    pub(crate) node: Arc<str>,
    /// The last audit record; 0 before the first.
    pub(crate) sequence: u64,
    /// Its hash.
    pub(crate) hash: [u8; 32],
    /// The newest time that was acted on and is kept: of any audit record, and of the sweep.
    pub(crate) newest: Timestamp,
    /// Over revocations and epochs: none may be lost.
    pub(crate) tally: Tally,
    /// An import that has begun and not ended; on disk, that there is one.
    pub(crate) import: Option<Chains>,
}

impl State {
    /// The sealed end of the own chain.
    pub(crate) fn head(&self, key: &ChainKey) -> Head {
        key.seal(&self.node, self.sequence, self.hash, OWN)
    }

    /// Over what the seal does not cover.
    pub(crate) fn sum(&self) -> [u8; 16] {
        let newest = self.newest.millis().to_be_bytes();
        checksum::row(
            "head",
            &[&newest, &self.tally.to_bytes(), &[u8::from(self.import.is_some())]],
        )
    }
}

/// What happens outside the database once the transaction stands.
pub(crate) struct Effects {
    pub(crate) state: State,
    pub(crate) changes: Vec<Change>,
    pub(crate) records: Vec<Arc<Record>>,
    pub(crate) followers: Vec<Arc<dyn Follower>>,
}

/// One transaction in the making.
pub(crate) struct Batch<'a> {
    pub(crate) connection: &'a Connection,
    /// This node's name in the audit trail.
    pub(crate) node: &'a Arc<str>,
    /// The name of the chain that it writes.
    pub(crate) chain: &'a Arc<str>,
    /// What seals the ends of chains.
    pub(crate) key: &'a ChainKey,
    /// Whether anybody listens to new audit records.
    pub(super) listening: bool,
    /// Whether the room is for what ends tokens only.
    pub(crate) scarce: bool,
    pub(crate) effects: Effects,
}

impl Batch<'_> {
    pub(crate) fn execute(
        &self,
        sql: &'static str,
        parameters: impl Params,
    ) -> Result<usize, Fault> {
        Ok(self.connection.prepare_cached(sql)?.execute(parameters)?)
    }

    pub(crate) fn row<T>(
        &self,
        sql: &'static str,
        parameters: impl Params,
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>, Fault> {
        Ok(self.connection.prepare_cached(sql)?.query_row(parameters, read).optional()?)
    }

    pub(crate) fn change(&mut self, change: Change) {
        self.effects.changes.push(change);
    }

    /// Appends to the audit trail.
    pub(crate) fn append(&mut self, entry: &Entry) -> Result<(), Fault> {
        let sequence = self.effects.state.sequence.saturating_add(1);
        let hash =
            chain::link(&self.effects.state.hash, sequence, self.node, entry.body.as_bytes());
        self.keep(sequence, &self.node.clone(), hash, entry)
    }

    pub(crate) fn append_all(&mut self, entries: &[Entry]) -> Result<(), Fault> {
        entries.iter().try_for_each(|entry| self.append(entry))
    }

    /// Puts a record behind the last one.
    pub(crate) fn keep(
        &mut self,
        sequence: u64,
        node: &Arc<str>,
        hash: [u8; 32],
        entry: &Entry,
    ) -> Result<(), Fault> {
        self.execute(
            "INSERT INTO audit (sequence, node, hash, event) VALUES (?1, ?2, ?3, ?4)",
            (to_sql(sequence), node.as_ref(), hash, &entry.body),
        )?;
        let state = &mut self.effects.state;
        if state.node != *node {
            state.node = node.clone();
        }
        state.sequence = sequence;
        state.hash = hash;
        state.newest = state.newest.max(entry.event.at);
        if self.listening {
            let (chain, node) = (self.chain.clone(), node.clone());
            self.effects.records.push(Arc::new(Record {
                chain,
                sequence,
                node,
                event: entry.event.clone(),
                hash,
            }));
        }
        Ok(())
    }
}

/// An event with the text that is stored and hashed.
pub(crate) struct Entry {
    pub(crate) event: Event,
    pub(crate) body: String,
}

impl Entry {
    /// Written out by the caller, who has more threads than the writer.
    pub(crate) fn new(event: Event) -> Result<Self, Fault> {
        let body = serde_json::to_string(&event).map_err(super::error::row("audit event"))?;
        Ok(Self { event, body })
    }

    /// The records of one change, in their order.
    pub(crate) fn all(events: Vec<Event>) -> Result<Vec<Self>, Fault> {
        events.into_iter().map(Self::new).collect()
    }
}

/// How much a verb may wait or demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// Nobody waits: may be committed with what comes in the next moment.
    Lazy,
    /// Somebody waits.
    Normal,
    /// Ends tokens: may use the last of the disk.
    Vital,
}

impl Urgency {
    /// Of a change that is told as this: some changes of a client or of the keys end tokens, most
    /// do not.
    pub(crate) const fn of(action: Action) -> Self {
        if matches!(action, Action::KeyRevoked | Action::ClientDisabled | Action::SecretRetired) {
            Self::Vital
        } else {
            Self::Normal
        }
    }
}

/// A verb on its way through the writer.
pub(crate) trait Job: Send {
    fn urgency(&self) -> Urgency;
    /// Writes into the batch; again into another one if the first did not come to stand. An error
    /// undoes the whole batch.
    fn run(&mut self, batch: &mut Batch<'_>) -> Result<(), Fault>;
    /// Answers, once the batch stands or has failed.
    fn settle(self: Box<Self>, fate: Result<(), Fault>);
}

/// A job made of a closure.
pub(crate) struct Work<F, T> {
    urgency: Urgency,
    work: F,
    done: Option<Result<T, Fault>>,
    reply: oneshot::Sender<Result<T>>,
}

impl<F, T> Work<F, T> {
    pub(crate) const fn new(urgency: Urgency, work: F, reply: oneshot::Sender<Result<T>>) -> Self {
        Self { urgency, work, done: None, reply }
    }
}

impl<F, T> Job for Work<F, T>
where
    F: FnMut(&mut Batch<'_>) -> Result<T, Fault> + Send,
    T: Send,
{
    fn urgency(&self) -> Urgency {
        self.urgency
    }

    fn run(&mut self, batch: &mut Batch<'_>) -> Result<(), Fault> {
        let done = (self.work)(batch);
        // A fault without a kind was found before the verb wrote anything, so it is this caller's
        // alone.
        let spoiled = done.as_ref().err().filter(|fault| fault.kind().is_some()).cloned();
        self.done = Some(done);
        spoiled.map_or(Ok(()), Err)
    }

    fn settle(self: Box<Self>, fate: Result<(), Fault>) {
        let Self { done, reply, .. } = *self;
        let answer = fate.and_then(|()| done.unwrap_or(Err(Fault::Failed)));
        // A caller that has gone away does not need the answer.
        let _ = reply.send(answer.map_err(Into::into));
    }
}

/// SQLite keeps 63 bits; sequences and counts stay far below.
pub(crate) fn to_sql(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Back again; what is negative was never written by us and reads as 0.
pub(crate) fn from_sql(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
