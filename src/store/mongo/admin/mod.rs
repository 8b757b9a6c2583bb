//! Operator tools: export, import, and the inspection of a deployment.

mod chains;
pub(super) mod export;
pub(super) mod import;
pub(super) mod inspect;
pub(super) mod shape;
pub(super) mod topology;
