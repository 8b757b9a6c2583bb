//! Audit log of this node: appends events to its chain, with or without a change that they belong
//! to.

use std::sync::{Arc, atomic::Ordering::SeqCst};

use mongodb::bson::Document;
use uuid::Uuid;

use super::{
    chain_writer::ChainHandle,
    node_lease::{HEARTBEAT_INTERVAL, Node, decode_head, is_cluster_key, stored_head},
    outbox::{AuditedChange, Entry, OutboxOwner},
    outbox_cleaner::OutboxCleaner,
    records::{ChainTip, decoded, last_record, verify_tip},
    remote_tail::RemoteTail,
    stored::StoredChains,
    time_reset::reset_at,
};
use crate::{
    crypto::chain::ChainKey,
    model::{Event, Timestamp},
    store::mongo::driver::{
        connection::{Connection, pause},
        error::{MongoError, OpenError},
        schema,
    },
};

/// This node's lease, its chain, and the outboxes that lead into it.
pub(crate) struct AuditLog {
    pub(super) connection: Arc<Connection>,
    pub(super) node: Arc<Node>,
    pub(super) chain: ChainHandle,
    pub(super) cleaner: OutboxCleaner,
    pub(super) remote_tail: RemoteTail,
    pub(super) stored: StoredChains,
}

impl AuditLog {
    /// Takes the node's name for this process, at MongoDB's time `now`, and continues its chain.
    ///
    /// # Errors
    ///
    /// [`OpenError::MasterKey`] if the chains of the database were sealed with another key,
    /// [`OpenError::Corrupt`] if this node's chain is damaged or an import is unfinished.
    pub(crate) async fn open(
        connection: Arc<Connection>,
        node: &str,
        key: ChainKey,
        now: Timestamp,
    ) -> Result<Self, OpenError> {
        // A start under another master key must not take the name of a running node.
        if stored_head(&connection, node).await?.is_some_and(|head| !key.check(&head)) {
            return Err(OpenError::MasterKey(format!("the head of the audit chain {node}")));
        }
        // Nor may a new name start under another key: outbox entries of other nodes would look
        // forged, and be removed.
        if !is_cluster_key(&connection, &key).await? {
            return Err(OpenError::MasterKey("every audit chain of this database".to_owned()));
        }
        let (node, before) = Node::register(&connection, node, key.clone(), now).await?;
        // After our own registration: an import looks for that after its own mark.
        if schema::is_importing(&connection).await? {
            return Err(OpenError::unfinished_import());
        }
        let tip = resume_chain(&connection, &node, &key, before.as_ref()).await?;
        let node = Arc::new(node);
        let stored = StoredChains::of_node(connection.clone(), key.clone(), Arc::clone(&node.name));
        let cleaner = OutboxCleaner::start(connection.clone());
        let chain = ChainHandle::start(connection.clone(), node.clone(), key, tip, cleaner.clone());
        let remote_tail =
            RemoteTail::new(connection.clone(), node.name.clone(), chain.weak_subscribers());
        Ok(Self { connection, node, chain, cleaner, remote_tail, stored })
    }

    /// This node.
    pub(crate) const fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Builds the outbox entries for one document write.
    pub(crate) fn change(
        &self,
        events: impl IntoIterator<Item = Event>,
    ) -> Result<AuditedChange, MongoError> {
        let audited = AuditedChange::new(&self.node, self.chain.sequence(), events)?;
        audited.entries.iter().for_each(|entry| self.observe_time(entry.event.at));
        Ok(audited)
    }

    /// Hands a change that was written to the chain; returns before it is recorded. Its events are
    /// durable in the outbox. Waits while the chain is as far behind as it may be.
    pub(crate) async fn record(
        &self,
        audited: AuditedChange,
        owner: OutboxOwner,
    ) -> Result<(), MongoError> {
        self.chain.append_behind(audited.entries, owner).await
    }

    /// Waits until every event that was accepted before is in the chain, so that a reader of the
    /// trail finds what it has caused. A chain that cannot be written does not keep it from being
    /// read.
    pub(super) async fn await_pending(&self) {
        if let Err(fault) = self.chain.await_pending().await {
            tracing::debug!(%fault, "the audit chain is behind");
        }
    }

    /// Records an event without a change; returns once it is durable.
    pub(super) async fn append_event(&self, event: Event) -> Result<(), MongoError> {
        self.observe_time(event.at);
        self.chain.append(vec![Entry::new(event)?], None).await
    }

    /// Records an event without a change; returns before it is durable, unless writes are
    /// slow or fail.
    pub(super) async fn append_event_soon(&self, event: Event) -> Result<(), MongoError> {
        self.observe_time(event.at);
        self.chain.append_soon(Entry::new(event)?).await
    }

    /// Waits as [`Self::await_pending`] does, before a chain is read that is this node's.
    pub(super) async fn await_pending_of(&self, chain: &str) {
        if self.node.name.as_ref() == chain {
            self.await_pending().await;
        }
    }

    /// Notes that the caller of this entry got its answer: see [`OutboxCleaner::answered`].
    pub(crate) fn answered(&self, owner: OutboxOwner, entry: Uuid) {
        self.cleaner.answered(owner, entry);
    }

    /// Returns true if the caller of this entry got its answer and the mark is about to be removed.
    pub(crate) fn was_answered(&self, entry: Uuid) -> bool {
        self.cleaner.was_answered(entry)
    }

    /// Records all events that were accepted, and removes their entries from the outboxes.
    pub(crate) async fn flush(&self) {
        self.await_pending().await;
        self.cleaner.flush().await;
    }

    /// Records the latest time that any operation used.
    pub(crate) fn observe_time(&self, now: Timestamp) {
        self.node.observed_time.fetch_max(now.millis(), SeqCst);
    }

    /// Records the latest time that is durable.
    pub(crate) fn persist_time(&self, now: Timestamp) {
        self.node.persisted_time.fetch_max(now.millis(), SeqCst);
    }

    /// Latest time that is durable.
    pub(crate) fn newest_time(&self) -> Timestamp {
        Timestamp::from_millis(self.node.persisted_time.load(SeqCst))
    }

    /// Writes a heartbeat and the head of the chain. Fails with [`MongoError::NodeNameTaken`] if
    /// another process holds the name.
    pub(crate) async fn heartbeat(&self) -> Result<(), MongoError> {
        self.node.heartbeat(&self.connection, false).await
    }

    /// Starts the task that writes heartbeats, until the connection is closed.
    pub(crate) fn start_heartbeats(&self) {
        let (connection, node) = (self.connection.clone(), self.node.clone());
        tokio::spawn(async move {
            while !connection.is_closed() {
                match node.heartbeat(&connection, false).await {
                    Err(MongoError::NodeNameTaken) => {
                        tracing::error!(
                            node = %node.name,
                            "another process uses this node's name, stopping"
                        );
                        connection.close_name_taken();
                    }
                    Err(fault) if !connection.is_closed() => {
                        tracing::debug!(%fault, "heartbeat failed")
                    }
                    Ok(()) | Err(_) => {}
                }
                pause(HEARTBEAT_INTERVAL).await;
            }
        });
    }

    /// Accepts no more events, waits for those in flight and writes the last head. The head is a
    /// closed one if all events are durable.
    pub(crate) async fn close(&self) -> Result<(), MongoError> {
        if self.chain.close().await {
            self.node.set_chain_closed();
        }
        self.cleaner.flush().await;
        self.node.heartbeat(&self.connection, true).await
    }
}

/// Tip of this node's chain: not before the stored head, and verified record by record after it.
async fn resume_chain(
    connection: &Connection,
    node: &Node,
    key: &ChainKey,
    before: Option<&Document>,
) -> Result<ChainTip, OpenError> {
    let name = &node.name;
    let noted = before.map(decode_head).transpose()?.flatten();
    let start = match &noted {
        Some(head) if !key.check(head) => {
            return Err(OpenError::MasterKey(format!("the head of the audit chain {name}")));
        }
        Some(head) => ChainTip { sequence: head.sequence, hash: head.hash, ..ChainTip::GENESIS },
        None => ChainTip::GENESIS,
    };
    let noted = start.sequence;
    let last = last_record(connection, name)
        .await?
        .as_ref()
        .map(decoded)
        .transpose()?
        .map_or(0, |record| record.sequence);
    if last < noted {
        return Err(OpenError::Corrupt(format!(
            "the audit chain {name} ends at record {last}, expected {noted} or later"
        )));
    }
    let reset = before.map(reset_at).transpose()?.unwrap_or(0);
    let tip = verify_tip(connection, key, name, start, reset).await?;
    if tip.sequence > 0 {
        node.set_chain_tip(&tip);
    }
    Ok(tip)
}
