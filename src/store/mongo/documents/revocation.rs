//! Documents of `revocations` and `epochs`.

use mongodb::bson::Document;
use uuid::Uuid;

use super::client;
use crate::{
    model::{EpochOf, FamilyId, Jti, Revoked, revocation::Revocation},
    store::mongo::driver::{
        codec::Fields,
        error::MongoError,
        schema::{CLIENTS, EPOCHS},
    },
};

/// `_id` of a revocation. Contains its kind, so that a token and a family with the same id do not
/// collide (N04).
pub(crate) fn document_id(revoked: Revoked) -> String {
    match revoked {
        Revoked::Token(Jti(id)) => format!("token:{id}"),
        Revoked::Family(FamilyId(id)) => format!("family:{id}"),
    }
}

pub(crate) fn revoked_of(key: &str) -> Result<Revoked, MongoError> {
    let wrong = || MongoError::malformed("revocation", "malformed _id");
    let (kind, id) = key.split_once(':').ok_or_else(wrong)?;
    let id = Uuid::parse_str(id).map_err(|_| wrong())?;
    match kind {
        "token" => Ok(Revoked::Token(Jti(id))),
        "family" => Ok(Revoked::Family(FamilyId(id))),
        _ => Err(wrong()),
    }
}

/// Location of an epoch: collection, `_id` and field.
pub(crate) fn epoch_location(of: &EpochOf) -> (&'static str, String, &'static str) {
    match of {
        EpochOf::Tenant(tenant) => (EPOCHS, format!("tenant:{tenant}"), "value"),
        EpochOf::Client(client) => (CLIENTS, client.as_str().to_owned(), client::EPOCH),
        EpochOf::Subject(subject) => (EPOCHS, format!("subject:{subject}"), "value"),
    }
}

/// Parses the `_id` of a document of `epochs`.
pub(crate) fn epoch_of(key: &str) -> Result<EpochOf, MongoError> {
    let wrong = || MongoError::malformed("epoch", "malformed _id");
    match key.split_once(':').ok_or_else(wrong)? {
        ("tenant", id) => id.parse().map(EpochOf::Tenant).map_err(|_| wrong()),
        ("subject", id) => id.parse().map(EpochOf::Subject).map_err(|_| wrong()),
        _ => Err(wrong()),
    }
}

pub(crate) fn revocation_of(document: &Document) -> Result<Revocation, MongoError> {
    let fields = Fields::of("revocation", document);
    Ok(Revocation { revoked: revoked_of(fields.text("_id")?)?, until: fields.time("until")? })
}
