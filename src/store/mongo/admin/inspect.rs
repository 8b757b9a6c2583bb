//! A look at a database before or beside those who serve from it. Changes nothing that anybody
//! reads: one document is written to see how long the majority takes, and taken away again, unless
//! the database fails meanwhile.

use std::{collections::BTreeMap, future::Future, time::Duration};

use futures_util::TryStreamExt as _;
use mongodb::bson::{Document, doc};
use tokio::time::{Instant, sleep};

use super::topology::{self, Member};
use crate::{
    model::{Keyset, Timestamp},
    store::mongo::{
        WIRE_VERSION,
        collections::keys,
        driver::{
            codec::{Fields, as_uuid},
            connection::{self, Connection},
            error::{MongoError, OpenError, describe},
            schema::{self, META, NODES, SIGNING_KEYS},
        },
    },
};

pub use crate::store::mongo::driver::schema::Defect;

/// Writes whose times are compared.
const TIMED_WRITES: usize = 9;
/// How long a node's document is looked at: two heartbeats and more.
const OBSERVATION: Duration = Duration::from_millis(1_250);

/// What was found.
#[derive(Debug)]
pub struct Inspection {
    /// The database's name.
    pub database: String,
    /// The servers that the address names, and those that these name.
    pub members: Vec<Member>,
    /// Whether the address leads to the routers of a sharded cluster.
    pub sharded: bool,
    /// The replica set's settings, where it is one; the error says why they cannot be read.
    pub settings: Option<Result<ReplicaSettings, String>>,
    /// The schema's version; `None` before the first node was there.
    pub schema: Option<i64>,
    /// The newest version that is known here.
    pub schema_known: i64,
    /// Whether an import began and did not end.
    pub importing: bool,
    /// Indexes that are not as they should be.
    pub defects: Vec<Defect>,
    /// How far the server's clock is ahead of this machine's, in milliseconds, and how uncertain
    /// that is.
    pub ahead_ms: (i64, u64),
    /// The node of the name that was asked for, if it ever was there.
    pub node: Option<NodeSeen>,
    /// Nodes of other names that run.
    pub others: Vec<String>,
    /// The signing keys, once there are any.
    pub keyset: Option<Keyset>,
    /// How long a write takes that the majority keeps, the median of nine; the error says why it
    /// fails.
    pub write: Result<Duration, OpenError>,
}

/// What a replica set does by itself, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaSettings {
    /// How long a primary may be silent before another one is elected.
    pub election_timeout: Duration,
    /// Between two heartbeats of its members.
    pub heartbeat_interval: Duration,
    /// How long one may be without an answer before the other member counts as gone.
    pub heartbeat_timeout: Duration,
    /// Whether a majority has a write only when it is in its journals.
    pub majority_journals: bool,
    /// Members that vote and hold data.
    pub keeping: usize,
    /// Members that vote and hold nothing.
    pub arbiters: usize,
}

/// A node, as the database has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeSeen {
    /// How old its last heartbeat is, by the server's clock; `None` if there was none yet.
    pub heartbeat_ms: Option<i64>,
    /// Whether it beat while it was looked at: a process runs under the name.
    pub alive: bool,
    /// Whether it changed hands while it was looked at: processes take the name from each other.
    pub disputed: bool,
}

/// Looks at the database that `uri` names, as the node `name`. `now` reads this machine's clock.
///
/// # Errors
///
/// Why it could not be opened; never the address itself.
pub async fn inspect(
    uri: &str,
    name: &str,
    deadline: Duration,
    now: impl Fn() -> Timestamp + Send + Sync,
) -> Result<Inspection, OpenError> {
    match run_inspection(uri, name, deadline, now).await {
        Err(error) => Err(topology::diagnose_connect_error(uri, error).await),
        found => found,
    }
}

#[expect(clippy::disallowed_methods, reason = "heartbeats of other processes are waited for")]
async fn run_inspection(
    uri: &str,
    name: &str,
    deadline: Duration,
    now: impl Fn() -> Timestamp + Send + Sync,
) -> Result<Inspection, OpenError> {
    let (connection, options) =
        (Connection::new(uri, deadline).await?, connection::parse_options(uri).await?);
    let members = topology::members(&options).await;
    if let Some(error) = topology::find_fatal_problem(&members, options.repl_set_name.as_deref()) {
        return Err(error);
    }
    // Twice: the first one makes the connection.
    hello(&connection).await?;
    let (asked, before) = (Instant::now(), now());
    let hello = hello(&connection).await?;
    let took = u64::try_from(asked.elapsed().as_millis()).unwrap_or(u64::MAX);
    let there = hello
        .get_datetime("localTime")
        .map_or_else(|_| before.millis(), |time| time.timestamp_millis());
    let ahead_ms = there
        .saturating_sub(before.millis())
        .saturating_sub(i64::try_from(took / 2).unwrap_or(i64::MAX));
    let found = hello.get_i32("maxWireVersion").unwrap_or_default();
    if found < WIRE_VERSION {
        return Err(OpenError::TooOld { found, needed: WIRE_VERSION });
    }
    let sharded = hello.get_str("msg").is_ok_and(|msg| msg == "isdbgrid");
    let settings =
        if hello.get_str("setName").is_ok() { Some(settings(&connection).await) } else { None };
    let schema = schema::version(&connection).await?;
    let (before, began) = (nodes(&connection).await?, Instant::now());
    let write = round_trip(&connection).await;
    sleep(OBSERVATION.saturating_sub(began.elapsed())).await;
    let after = nodes(&connection).await?;
    let at = there.saturating_add(i64::try_from(asked.elapsed().as_millis()).unwrap_or(i64::MAX));
    let seen = |node: &str| after.get(node).map(|after| compare(before.get(node), after, at));
    Ok(Inspection {
        database: connection.database().name().to_owned(),
        members,
        sharded,
        settings,
        schema,
        schema_known: schema::VERSION,
        importing: schema::is_importing(&connection).await?,
        defects: if schema.is_some() { schema::defects(&connection).await? } else { Vec::new() },
        ahead_ms: (ahead_ms, took / 2),
        node: seen(name),
        others: after
            .keys()
            .filter(|node| *node != name && seen(node).is_some_and(|seen| seen.alive))
            .cloned()
            .collect(),
        keyset: keyset(&connection).await?,
        write,
    })
}

async fn hello(connection: &Connection) -> Result<Document, MongoError> {
    let database = connection.database().clone();
    run(connection, async move { database.run_command(doc! { "hello": 1 }).await }).await
}

/// Carries an operation out.
async fn run<T: Send + 'static>(
    connection: &Connection,
    operation: impl Future<Output = mongodb::error::Result<T>> + Send + 'static,
) -> Result<T, MongoError> {
    connection.call(async move { Ok(operation.await?) }).await
}

/// What the replica set is configured to do. A user that may only read and write may not ask.
async fn settings(connection: &Connection) -> Result<ReplicaSettings, String> {
    let admin = connection.client().database("admin");
    let answer = connection
        .call(async move { Ok(admin.run_command(doc! { "replSetGetConfig": 1 }).await?) })
        .await;
    let answer = match answer {
        Ok(answer) => answer,
        Err(MongoError::Driver(error)) => return Err(describe(&error)),
        Err(fault) => return Err(fault.to_string()),
    };
    read_settings(&answer).ok_or_else(|| "an answer that is none".to_owned())
}

fn read_settings(answer: &Document) -> Option<ReplicaSettings> {
    let config = answer.get_document("config").ok()?;
    let set = config.get_document("settings").ok()?;
    let number = |of: &Document, field: &str| {
        let value = of.get(field)?;
        value
            .as_i64()
            .or_else(|| value.as_i32().map(i64::from))
            .or_else(|| value.as_f64().map(|value| value.round() as i64))
    };
    let millis = |field| Some(Duration::from_millis(u64::try_from(number(set, field)?).ok()?));
    let members =
        config.get_array("members").ok()?.iter().filter_map(|member| member.as_document());
    let voters: Vec<&Document> =
        members.filter(|member| number(member, "votes") != Some(0)).collect();
    let arbiters =
        voters.iter().filter(|member| member.get_bool("arbiterOnly").unwrap_or(false)).count();
    Some(ReplicaSettings {
        election_timeout: millis("electionTimeoutMillis")?,
        heartbeat_interval: millis("heartbeatIntervalMillis")?,
        heartbeat_timeout: Duration::from_secs(
            u64::try_from(number(set, "heartbeatTimeoutSecs")?).ok()?,
        ),
        majority_journals: config.get_bool("writeConcernMajorityJournalDefault").unwrap_or(true),
        keeping: voters.len().saturating_sub(arbiters),
        arbiters,
    })
}

/// The nodes that ever were there, by their names.
async fn nodes(connection: &Connection) -> Result<BTreeMap<String, Document>, MongoError> {
    let nodes = connection.collection(NODES);
    let wanted = doc! { "session": 1, "beat": 1, "seen_at": 1 };
    let read = async move {
        Ok(nodes.find(doc! {}).projection(wanted).await?.try_collect::<Vec<Document>>().await?)
    };
    let found = connection.call(read).await?;
    found
        .into_iter()
        .map(|node| Ok((Fields::of("node", &node).text("_id")?.to_owned(), node)))
        .collect()
}

/// What two looks at a node's document say, the second one at the time `at` of the server.
fn compare(before: Option<&Document>, after: &Document, at: i64) -> NodeSeen {
    let session = |document: &Document| document.get("session").and_then(as_uuid);
    let heartbeat_ms =
        after.get_datetime("seen_at").ok().map(|seen| at.saturating_sub(seen.timestamp_millis()));
    NodeSeen {
        heartbeat_ms,
        alive: before.is_none_or(|before| before.get("beat") != after.get("beat")),
        disputed: before.is_some_and(|before| session(before) != session(after)),
    }
}

async fn keyset(connection: &Connection) -> Result<Option<Keyset>, MongoError> {
    let found = connection.collection(SIGNING_KEYS);
    let found =
        run(connection, async move { found.find_one(doc! { "_id": keys::KEYSET }).await }).await?;
    found.as_ref().map(keys::decoded).transpose()
}

/// The median of some writes, one after the other.
async fn round_trip(connection: &Connection) -> Result<Duration, OpenError> {
    let mut took = Vec::with_capacity(TIMED_WRITES);
    for _ in 0..TIMED_WRITES {
        let (meta, began) = (connection.collection(META), Instant::now());
        let update = doc! { "$inc": { "looks": 1_i64 } };
        run(connection, async move {
            meta.update_one(doc! { "_id": "doctor" }, update).upsert(true).await
        })
        .await?;
        took.push(began.elapsed());
    }
    let meta = connection.collection(META);
    run(connection, async move { meta.delete_one(doc! { "_id": "doctor" }).await }).await?;
    took.sort_unstable();
    Ok(took.get(took.len() / 2).copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use mongodb::bson::{Bson, DateTime};
    use uuid::Uuid;

    use super::*;
    use crate::store::mongo::driver::codec::uuid;

    #[test]
    fn a_name_that_changes_hands_is_disputed() {
        let document = |session, beat: i64, at| {
            doc! { "session": uuid(Uuid::from_u128(session)), "beat": beat, "seen_at": DateTime::from_millis(at) }
        };
        let first = document(1, 7, 1_000);
        assert!(compare(Some(&first), &document(2, 1, 2_000), 2_100).disputed);
        let runs = compare(Some(&first), &document(1, 9, 2_000), 2_100);
        assert_eq!(runs, NodeSeen { heartbeat_ms: Some(100), alive: true, disputed: false });
        let ended = compare(Some(&first), &first, 2_100);
        assert_eq!(ended, NodeSeen { heartbeat_ms: Some(1_100), alive: false, disputed: false });
        let begins = compare(None, &doc! { "session": uuid(Uuid::from_u128(1)), "beat": 0_i64 }, 0);
        assert_eq!(begins, NodeSeen { heartbeat_ms: None, alive: true, disputed: false });
    }

    #[test]
    fn members_that_vote_and_hold_nothing_are_told_apart() {
        let member =
            |votes: i32, arbiter: bool| Bson::from(doc! { "votes": votes, "arbiterOnly": arbiter });
        let answer = doc! { "config": {
            "members": [member(1, false), member(1, false), member(1, true), member(0, false)],
            "writeConcernMajorityJournalDefault": false,
            "settings": { "electionTimeoutMillis": 10_000, "heartbeatIntervalMillis": 2_000.0, "heartbeatTimeoutSecs": 10 },
        } };
        let expected = ReplicaSettings {
            election_timeout: Duration::from_secs(10),
            heartbeat_interval: Duration::from_secs(2),
            heartbeat_timeout: Duration::from_secs(10),
            majority_journals: false,
            keeping: 2,
            arbiters: 1,
        };
        assert_eq!(read_settings(&answer), Some(expected));
        assert_eq!(read_settings(&doc! {}), None);
    }
}
