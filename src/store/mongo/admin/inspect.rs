//! Inspection of a database, with or without nodes that serve from it. Changes nothing that a node
//! reads: one document is written to measure the time of a majority write, and deleted again unless
//! the database fails meanwhile.

use std::{collections::BTreeMap, future::Future, time::Duration};

use futures_util::TryStreamExt as _;
use mongodb::bson::{Document, doc};
use tokio::time::{Instant, sleep};

use super::topology::{self, Member};
use crate::{
    model::{Keyset, Timestamp},
    store::{
        TrailSize,
        mongo::{
            audit::size,
            documents::keyset,
            driver::{
                codec::{Fields, as_uuid},
                connection::{self, Connection},
                error::{MongoError, OpenError, describe},
                handshake::WIRE_VERSION,
                schema::{self, META, NODES, SIGNING_KEYS},
            },
        },
    },
};

pub use crate::store::mongo::driver::schema::Defect;

/// Number of writes that are timed.
const TIMED_WRITES: usize = 9;
/// Time between the two reads of a node's document: more than two heartbeats.
const OBSERVATION: Duration = Duration::from_millis(1_250);

/// Result of an inspection.
#[derive(Debug)]
pub struct Inspection {
    /// Name of the database.
    pub database: String,
    /// Servers that the address names, and members that these servers report.
    pub members: Vec<Member>,
    /// True if the address leads to routers of a sharded cluster.
    pub sharded: bool,
    /// Settings of the replica set, if it is one; the error says why they cannot be read.
    pub settings: Option<Result<ReplicaSettings, String>>,
    /// Version of the schema; `None` before the first node registered.
    pub schema: Option<i64>,
    /// Newest schema version that this build supports.
    pub schema_known: i64,
    /// True if an import has begun and not finished.
    pub importing: bool,
    /// Indexes that differ from those needed.
    pub defects: Vec<Defect>,
    /// Milliseconds by which the server's clock is ahead of this machine's, and their uncertainty.
    pub ahead_ms: (i64, u64),
    /// State of the node of the given name; `None` if it never registered.
    pub node: Option<NodeSeen>,
    /// Names of other nodes that run.
    pub other_nodes: Vec<String>,
    /// Latest time that any node used.
    pub newest: Timestamp,
    /// Keyset, if there is one.
    pub keyset: Option<Keyset>,
    /// Size of the audit trail; `None` before the first node registered.
    pub trail: Option<TrailSize>,
    /// Median time of nine majority writes; the error says why they fail.
    pub write: Result<Duration, OpenError>,
}

/// Timeouts and members of a replica set, from its configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaSettings {
    /// Silence of a primary after which another one is elected.
    pub election_timeout: Duration,
    /// Interval between heartbeats of its members.
    pub heartbeat_interval: Duration,
    /// Time without an answer after which a member counts as unreachable.
    pub heartbeat_timeout: Duration,
    /// True if a majority write is acknowledged only once it is in the journals.
    pub majority_journals: bool,
    /// Number of members that vote and hold data.
    pub keeping: usize,
    /// Number of members that vote and hold no data.
    pub arbiters: usize,
}

/// State of a node, as its document shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeSeen {
    /// Age of the last heartbeat, by the server's clock; `None` if there was none yet.
    pub heartbeat_ms: Option<i64>,
    /// True if a heartbeat was written between the two reads: a process runs under the name.
    pub alive: bool,
    /// True if the session changed between the two reads: processes take the name from each other.
    pub disputed: bool,
}

/// Inspects the database that `uri` names, as the node `name`. `now` reads this machine's clock.
///
/// # Errors
///
/// The reason why the database cannot be opened; never the address itself.
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
    // Twice: the first call also opens the connection.
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
        other_nodes: after
            .keys()
            .filter(|node| *node != name && seen(node).is_some_and(|seen| seen.alive))
            .cloned()
            .collect(),
        newest: after
            .values()
            .filter_map(|node| Fields::of("node", node).find_time("newest").ok().flatten())
            .max()
            .unwrap_or_default(),
        keyset: keyset(&connection).await?,
        trail: if schema.is_some() {
            Some(size::of_trail(&connection, Timestamp::from_millis(at)).await?)
        } else {
            None
        },
        write,
    })
}

async fn hello(connection: &Connection) -> Result<Document, MongoError> {
    let database = connection.database().clone();
    run(connection, async move { database.run_command(doc! { "hello": 1 }).await }).await
}

/// Runs an operation on the connection.
async fn run<T: Send + 'static>(
    connection: &Connection,
    operation: impl Future<Output = mongodb::error::Result<T>> + Send + 'static,
) -> Result<T, MongoError> {
    connection.call(async move { Ok(operation.await?) }).await
}

/// Reads the configuration of the replica set. A user with the role readWrite alone may not.
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
    read_settings(&answer).ok_or_else(|| "malformed reply".to_owned())
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

/// Documents of all nodes that ever registered, by name.
async fn nodes(connection: &Connection) -> Result<BTreeMap<String, Document>, MongoError> {
    let nodes = connection.collection(NODES);
    let wanted = doc! { "session": 1, "beat": 1, "seen_at": 1, "newest": 1 };
    let read = async move {
        Ok(nodes.find(doc! {}).projection(wanted).await?.try_collect::<Vec<Document>>().await?)
    };
    let found = connection.call(read).await?;
    found
        .into_iter()
        .map(|node| Ok((Fields::of("node", &node).text("_id")?.to_owned(), node)))
        .collect()
}

/// Compares two reads of a node's document, the second one at the server's time `at`.
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
        run(connection, async move { found.find_one(doc! { "_id": keyset::KEYSET }).await })
            .await?;
    found.as_ref().map(keyset::decoded).transpose()
}

/// Median time of a few writes in a row.
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
    fn arbiters_are_not_counted_as_data_members() {
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
