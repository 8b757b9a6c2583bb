//! State of the deployment as its primary reports it, which any user may read.

use mongodb::bson::{Document, doc};

use crate::store::{
    StoreShape,
    mongo::driver::{connection::Connection, error::MongoError, schema},
};

/// Reads the state of the deployment, and compares its indexes with those needed.
pub(crate) async fn read(connection: &Connection) -> Result<StoreShape, MongoError> {
    let database = connection.database().clone();
    let hello = async move { Ok(database.run_command(doc! { "hello": 1 }).await?) };
    let shape = of_hello(&connection.call(hello).await?);
    let defects = schema::defects(connection).await?.len();
    Ok(StoreShape {
        schema: schema::version(connection).await?,
        index_defects: u64::try_from(defects).unwrap_or(u64::MAX),
        ..shape
    })
}

fn of_hello(hello: &Document) -> StoreShape {
    let count = |field: &str| hello.get_array(field).map_or(0, Vec::len);
    let members =
        count("hosts").saturating_add(count("passives")).saturating_add(count("arbiters"));
    let lag = || {
        let writes = hello.get_document("lastWrite").ok()?;
        let last = writes.get_datetime("lastWriteDate").ok()?;
        let majority = writes.get_datetime("majorityWriteDate").ok()?;
        let apart = last.timestamp_millis().saturating_sub(majority.timestamp_millis());
        Some(u64::try_from(apart).unwrap_or(0))
    };
    let term = || {
        let id = hello.get_object_id("electionId").ok()?.bytes();
        let (_, term) = id.split_last_chunk::<8>()?;
        Some(u64::from_be_bytes(*term))
    };
    StoreShape {
        members: (members > 0).then(|| u64::try_from(members).unwrap_or(u64::MAX)),
        lag_ms: lag(),
        election_term: term(),
        schema: None,
        index_defects: 0,
    }
}

#[cfg(test)]
mod tests {
    use mongodb::bson::{DateTime, oid::ObjectId};

    use super::*;

    #[test]
    fn the_primary_reports_members_term_and_lag() {
        let id = ObjectId::from_bytes([0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 1, 2]);
        let at = DateTime::from_millis;
        let hello = doc! {
            "hosts": ["a:1", "b:1"], "arbiters": ["c:1"], "electionId": id,
            "lastWrite": { "lastWriteDate": at(5_000), "majorityWriteDate": at(3_000) },
        };
        let shape = of_hello(&hello);
        assert_eq!(
            (shape.members, shape.lag_ms, shape.election_term),
            (Some(3), Some(2_000), Some(258))
        );
        assert_eq!(of_hello(&doc! {}), StoreShape::default());
    }
}
