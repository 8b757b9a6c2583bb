//! Operator tools: export and import, and the audit chains of a store that no process serves.

pub(super) mod export;
pub(super) mod import;
pub(super) mod stored;
