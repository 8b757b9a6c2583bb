//! Documents of `audiences`: one for each audience, owned or released.

use mongodb::bson::{Document, doc};

use crate::{
    model::AudienceRecord,
    store::mongo::driver::{
        codec::{Fields, count, encode},
        error::MongoError,
    },
};

/// Fields of a record, except its `_id`.
pub(crate) fn encoded(record: &AudienceRecord) -> Result<Document, MongoError> {
    Ok(doc! {
        "released": false,
        "tenant": record.tenant.as_str(),
        "revision": count(record.revision),
        "record": encode("audience", record)?,
    })
}

/// Decodes a record. A document that is neither released nor owned is not one: no write of this
/// service would match it.
pub(crate) fn decoded(document: &Document) -> Result<AudienceRecord, MongoError> {
    if document.get_bool("released").ok() != Some(false) {
        return Err(MongoError::malformed("audience", "malformed released"));
    }
    let record: AudienceRecord = Fields::of("audience", document).part("record")?;
    if document.get_str("_id").ok() != Some(record.audience.as_str()) {
        return Err(MongoError::malformed("audience", "the record is of another audience"));
    }
    Ok(record)
}
