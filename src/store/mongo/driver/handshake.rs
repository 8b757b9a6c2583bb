//! First exchange with a server: its version, its kind and its clock.

use mongodb::bson::doc;

use super::{
    codec::Fields,
    connection::{BACKGROUND_TIMEOUT, Connection},
    error::{MongoError, OpenError},
};
use crate::model::Timestamp;

/// Oldest server with all features that are needed: MongoDB 4.4.
pub(crate) const WIRE_VERSION: i32 = 9;
/// Oldest server with snapshot reads: MongoDB 5.0.
const SNAPSHOT_WIRE_VERSION: i32 = 13;

/// Description of the server at the address.
pub(crate) struct ServerInfo {
    /// Router of a sharded cluster.
    pub(crate) sharded: bool,
    /// True if it supports snapshot reads.
    pub(crate) shows_snapshots: bool,
    /// Time by its clock.
    pub(crate) time: Timestamp,
}

/// Sends `hello`; refuses a server that is too old.
pub(crate) async fn handshake(connection: &Connection) -> Result<ServerInfo, OpenError> {
    let database = connection.database().clone();
    let hello = connection
        .within(BACKGROUND_TIMEOUT.min(connection.deadline().saturating_mul(5)), async move {
            Ok(database.run_command(doc! { "hello": 1 }).await?)
        });
    let hello = hello.await?;
    let found = hello.get_i32("maxWireVersion").unwrap_or_default();
    if found < WIRE_VERSION {
        return Err(OpenError::TooOld { found, needed: WIRE_VERSION });
    }
    let sharded = hello.get_str("msg").is_ok_and(|msg| msg == "isdbgrid");
    let is_standalone = !sharded && hello.get_str("setName").is_err();
    connection.set_standalone(is_standalone);
    let time = Fields::of("hello", &hello).time("localTime")?;
    Ok(ServerInfo {
        sharded,
        time,
        shows_snapshots: !is_standalone && found >= SNAPSHOT_WIRE_VERSION,
    })
}

/// Time by the clock of the server; `None` if it does not report one.
pub(crate) async fn server_time(connection: &Connection) -> Result<Option<Timestamp>, MongoError> {
    let database = connection.database().clone();
    let hello = connection
        .call(async move { Ok(database.run_command(doc! { "hello": 1 }).await?) })
        .await?;
    Fields::of("hello", &hello).find_time("localTime")
}
