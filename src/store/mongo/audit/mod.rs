//! The audit trail: outboxes in changed documents, and one chain of records for each node.

pub(super) mod chain_writer;
pub(super) mod node_lease;
pub(super) mod outbox;
pub(super) mod outbox_cleaner;
pub(super) mod query;
pub(super) mod records;
pub(super) mod recovery;
pub(super) mod remote_tail;
