//! The audit trail: outboxes in changed documents, and one chain of records for each node.

mod chain_writer;
mod log;
pub(super) mod node_lease;
pub(super) mod outbox;
mod outbox_cleaner;
pub(super) mod query;
pub(super) mod records;
pub(super) mod recovery;
mod remote_tail;
pub(super) mod retention;
pub(super) mod size;
mod stored;
mod time_reset;
mod windows;

pub use self::stored::StoredChains;
pub(super) use self::{log::AuditLog, stored::is_sure};
