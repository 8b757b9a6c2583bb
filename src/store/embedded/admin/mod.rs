//! Operator tools: export and import.

pub(super) mod export;
pub(super) mod import;
