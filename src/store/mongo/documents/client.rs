//! Documents of `clients`: the client as it was written, the use counts of its secrets, its epoch.

use std::collections::HashMap;

use mongodb::bson::{Bson, Document};

use crate::{
    model::{Client, ClientId, EpochOf, SecretId},
    store::{
        SecretUse,
        mongo::driver::{
            codec::{Fields, encode},
            error::MongoError,
        },
    },
};

/// Field of a client's epoch.
pub(crate) const EPOCH: &str = "epoch";

/// Encodes a client without the use counts of its secrets, which are stored beside it.
pub(crate) fn without_use_counts(client: &Client) -> Result<Bson, MongoError> {
    encode("client", &client.without_secret_uses())
}

/// Decodes a client with the use counts of its secrets.
pub(crate) fn decoded(document: &Document) -> Result<Client, MongoError> {
    let mut client = decode_without_use_counts(document)?;
    let uses = uses(document)?;
    let mut by_secret: HashMap<&SecretId, &SecretUse> =
        uses.iter().map(|used| (&used.secret, used)).collect();
    for secret in client.secrets_mut() {
        if let Some(used) = by_secret.remove(&secret.id) {
            (secret.last_used_at, secret.use_count) = (Some(used.at), used.count);
        }
    }
    Ok(client)
}

/// Epoch of a client in a document or a change event; `None` if the `_id` is no valid client id. A
/// value that is not a number reads as the highest one: it revokes what it covers and nothing else.
pub(crate) fn epoch(id: &Bson, fields: &Fields<'_>) -> Option<(EpochOf, u64)> {
    let id = id.as_str()?.parse().ok()?;
    Some((EpochOf::Client(id), fields.count(EPOCH).unwrap_or(i64::MAX.unsigned_abs())))
}

/// Decodes a client without the use counts of its secrets.
pub(crate) fn decode_without_use_counts(document: &Document) -> Result<Client, MongoError> {
    let fields = Fields::of("client", document);
    fields.part("client").map_err(|fault| {
        // The id is no secret; without it, one broken document among thousands is hard to find.
        let id = document.get("_id").map_or_else(String::new, ToString::to_string);
        MongoError::malformed("client", format!("{id}: {fault}"))
    })
}

/// Use counts of a client's secrets.
pub(crate) fn uses(document: &Document) -> Result<Vec<SecretUse>, MongoError> {
    let client: ClientId = Fields::of("client", document).parse("_id")?;
    let Some(Bson::Array(uses)) = document.get("uses") else { return Ok(Vec::new()) };
    let read = |used: &Bson| {
        let fields = used
            .as_document()
            .ok_or_else(|| MongoError::malformed("client", "malformed use counts"))?;
        let fields = Fields::of("client", fields);
        Ok(SecretUse {
            client: client.clone(),
            secret: fields.parse("secret")?,
            at: fields.time("last_used_at")?,
            count: fields.count("count")?,
        })
    };
    uses.iter().map(read).collect()
}
