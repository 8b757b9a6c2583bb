//! Conversion between the model and BSON. Times are BSON dates and ids BSON UUIDs, so that an
//! operator's shell displays them as such.

use mongodb::bson::{
    Binary, Bson, DateTime, Document, RawArray, RawBson, RawDocument, Utf8Lossy,
    deserialize_from_bson, serialize_to_bson, spec::BinarySubtype,
};
use serde::{Serialize, de::DeserializeOwned};
use uuid::Uuid;

use super::error::MongoError;
use crate::model::Timestamp;

pub(crate) fn date(at: Timestamp) -> Bson {
    Bson::DateTime(DateTime::from_millis(at.millis()))
}

pub(crate) fn uuid(id: Uuid) -> Bson {
    Bson::Binary(Binary { subtype: BinarySubtype::Uuid, bytes: id.as_bytes().to_vec() })
}

pub(crate) fn bytes(bytes: &[u8]) -> Bson {
    Bson::Binary(Binary { subtype: BinarySubtype::Generic, bytes: bytes.to_vec() })
}

/// Encodes a count or revision. MongoDB has no unsigned integers; these values stay far below the
/// bound.
pub(crate) fn count(count: u64) -> Bson {
    Bson::Int64(i64::try_from(count).unwrap_or(i64::MAX))
}

/// Revision that a write of this one must find; `None` if there can be none.
pub(crate) fn before(revision: u64) -> Option<u64> {
    i64::try_from(revision).ok()?;
    revision.checked_sub(1)
}

pub(crate) fn encode<T: Serialize>(what: &'static str, value: &T) -> Result<Bson, MongoError> {
    serialize_to_bson(value).map_err(|error| MongoError::malformed(what, error))
}

/// Decodes a document with whatever content: invalid UTF-8 becomes U+FFFD, an unreadable field is
/// left out, and an unreadable element of an array is null. An `_id` that is not UTF-8 is left out
/// too: no query would find the document by the replacement text.
pub(crate) fn lenient(raw: &RawDocument) -> Document {
    let mut document = lossy(raw).unwrap_or_else(|| {
        let fields = raw.iter_elements().map_while(Result::ok);
        let readable = fields.filter_map(|element| {
            let value = element.value_utf8_lossy().ok()?;
            let value = if let RawBson::Document(inner) = &value {
                lossy(inner)?.into()
            } else if let RawBson::Array(list) = &value {
                elements(list)
                    .map(|element| element.unwrap_or(Bson::Null))
                    .collect::<Vec<_>>()
                    .into()
            } else {
                value.try_into().ok()?
            };
            Some((element.key().as_str().to_owned(), value))
        });
        readable.collect()
    });
    match raw.get("_id").ok().flatten().map(Bson::try_from) {
        Some(Ok(_)) => {}
        Some(Err(_)) | None => drop(document.remove("_id")),
    }
    document
}

/// Elements of an array, each read by itself; `None` for an unreadable one.
pub(crate) fn elements(list: &RawArray) -> impl Iterator<Item = Option<Bson>> {
    list.iter_elements().map_while(Result::ok).map(|element| {
        let value = element.value_utf8_lossy().ok()?;
        if let RawBson::Document(inner) = &value {
            lossy(inner).map(Bson::Document)
        } else {
            value.try_into().ok()
        }
    })
}

fn lossy(raw: &RawDocument) -> Option<Document> {
    Utf8Lossy::<Document>::try_from(raw).ok().map(|Utf8Lossy(document)| document)
}

/// Document of this kind, read field by field.
pub(crate) struct Fields<'a> {
    what: &'static str,
    document: &'a Document,
}

impl<'a> Fields<'a> {
    pub(crate) const fn of(what: &'static str, document: &'a Document) -> Self {
        Self { what, document }
    }

    pub(crate) fn get(&self, key: &str) -> Result<&'a Bson, MongoError> {
        self.find(key).ok_or_else(|| self.wrong(key))
    }

    /// Field's value; `None` if it is missing or null.
    pub(crate) fn find(&self, key: &str) -> Option<&'a Bson> {
        self.document.get(key).filter(|value| !matches!(value, Bson::Null))
    }

    pub(crate) fn text(&self, key: &str) -> Result<&'a str, MongoError> {
        self.get(key)?.as_str().ok_or_else(|| self.wrong(key))
    }

    pub(crate) fn time(&self, key: &str) -> Result<Timestamp, MongoError> {
        self.find_time(key)?.ok_or_else(|| self.wrong(key))
    }

    pub(crate) fn find_time(&self, key: &str) -> Result<Option<Timestamp>, MongoError> {
        let Some(value) = self.find(key) else { return Ok(None) };
        let date = value.as_datetime().ok_or_else(|| self.wrong(key))?;
        Ok(Some(Timestamp::from_millis(date.timestamp_millis())))
    }

    pub(crate) fn count(&self, key: &str) -> Result<u64, MongoError> {
        let value = self.get(key)?;
        let number = value
            .as_i64()
            .or_else(|| value.as_i32().map(i64::from))
            .ok_or_else(|| self.wrong(key))?;
        u64::try_from(number).map_err(|_| self.wrong(key))
    }

    pub(crate) fn uuid(&self, key: &str) -> Result<Uuid, MongoError> {
        as_uuid(self.get(key)?).ok_or_else(|| self.wrong(key))
    }

    pub(crate) fn uuids(&self, key: &str) -> Result<Vec<Uuid>, MongoError> {
        let all = self.get(key)?.as_array().ok_or_else(|| self.wrong(key))?;
        all.iter().map(|id| as_uuid(id).ok_or_else(|| self.wrong(key))).collect()
    }

    pub(crate) fn hash(&self, key: &str) -> Result<[u8; 32], MongoError> {
        let binary =
            if let Bson::Binary(binary) = self.get(key)? { Some(&binary.bytes) } else { None };
        binary.and_then(|bytes| bytes.as_slice().try_into().ok()).ok_or_else(|| self.wrong(key))
    }

    pub(crate) fn part<T: DeserializeOwned>(&self, key: &str) -> Result<T, MongoError> {
        deserialize_from_bson(self.get(key)?.clone())
            .map_err(|error| MongoError::malformed(self.what, format!("{key}: {error}")))
    }

    pub(crate) fn parse<T: std::str::FromStr>(&self, key: &str) -> Result<T, MongoError> {
        self.text(key)?.parse().map_err(|_| self.wrong(key))
    }

    fn wrong(&self, key: &str) -> MongoError {
        MongoError::malformed(self.what, format!("{key} is missing or malformed"))
    }
}

pub(crate) fn as_uuid(value: &Bson) -> Option<Uuid> {
    let Bson::Binary(Binary { subtype: BinarySubtype::Uuid, bytes }) = value else { return None };
    Uuid::from_slice(bytes).ok()
}
