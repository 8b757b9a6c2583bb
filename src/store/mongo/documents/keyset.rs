//! Document of `signing_keys`: the keyset.

use mongodb::bson::Document;

use crate::{
    model::Keyset,
    store::mongo::driver::{codec::Fields, error::MongoError},
};

/// `_id` of the keyset.
pub(crate) const KEYSET: &str = "keyset";

/// Counts and logs a document that is no authentic keyset.
pub(crate) fn log_refused(fault: &MongoError) {
    crate::metrics::METRICS.keyset_refused.inc();
    tracing::error!(%fault, "rejected the keyset of the store, still using the last authentic one");
}

pub(crate) fn decoded(document: &Document) -> Result<Keyset, MongoError> {
    Fields::of("keyset", document).part("keyset")
}
