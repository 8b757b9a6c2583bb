//! Schema of the database, and connections to it.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags, config::DbConfig};

use super::error::OpenError;

use crate::store::embedded::files::open::{Identity, open_private};

/// Format of the tables. Any other one is refused.
pub(super) const FORMAT: i64 = 1;

/// SQLite application id of the file: "jetn".
const APPLICATION: i64 = 0x6a65_746e;

/// Tables, one for each type of record, so that none can be read as another. Ids are keys, hashes
/// of secrets never are. Ids ascend with time, so inserts go to the end of their tree. `sum` is
/// the checksum of a row, against silent decay of its page.
///
/// `families.sweep_at` is the earliest time at which the family may be deleted, as of the last
/// sweep that read the row: a rotation moves the true time on and leaves the index alone.
///
/// `audit.at` is a generated column over the event, whose text begins with the time
/// (`{"at":1790000000123,`), so that the two cannot differ. A text that begins otherwise is no
/// event; it sorts last and is found there.
///
/// `audit.place` is the id of the chain in `audit_chains`, and below it 40 bits of the sequence: a
/// name in each row, and in each index, made a write of a token 5 to 8 % slower. `audit.node` is
/// NULL where the chain has the node's name. `audit.kind` and `audit_keys`: see `audit::index`.
const TABLES: &str = "
    CREATE TABLE head (
        id INTEGER PRIMARY KEY CHECK (id = 1), chain TEXT NOT NULL, node TEXT NOT NULL,
        sequence INTEGER NOT NULL, hash BLOB NOT NULL, seal BLOB NOT NULL, newest INTEGER NOT NULL,
        tally BLOB NOT NULL, importing INTEGER NOT NULL, sum BLOB NOT NULL
    ) STRICT;
    CREATE TABLE clients (
        id TEXT PRIMARY KEY, tenant TEXT NOT NULL, revision INTEGER NOT NULL, body TEXT NOT NULL,
        sum BLOB NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX clients_of_tenant ON clients (tenant);
    CREATE TABLE deleted_clients (
        id TEXT PRIMARY KEY, tenant TEXT NOT NULL, sum BLOB NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE audiences (
        id TEXT PRIMARY KEY, tenant TEXT NOT NULL, revision INTEGER NOT NULL, body TEXT NOT NULL,
        sum BLOB NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX audiences_of_tenant ON audiences (tenant);
    CREATE TABLE secret_uses (
        client TEXT NOT NULL, secret TEXT NOT NULL, last_used_at INTEGER NOT NULL,
        uses INTEGER NOT NULL, sum BLOB NOT NULL,
        PRIMARY KEY (client, secret)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE families (
        id BLOB PRIMARY KEY, client TEXT NOT NULL, salt BLOB NOT NULL, generation INTEGER NOT NULL,
        rotated_at INTEGER NOT NULL, answers TEXT NOT NULL, ended_at INTEGER,
        expires_at INTEGER NOT NULL, sweep_at INTEGER NOT NULL, body TEXT NOT NULL,
        sum BLOB NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX families_of_client ON families (client);
    CREATE INDEX families_to_sweep ON families (sweep_at);
    CREATE TABLE revocations (
        kind INTEGER NOT NULL, id BLOB NOT NULL, until INTEGER NOT NULL,
        PRIMARY KEY (kind, id)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX revocations_to_sweep ON revocations (until);
    CREATE TABLE epochs (
        kind INTEGER NOT NULL, id TEXT NOT NULL, value INTEGER NOT NULL,
        PRIMARY KEY (kind, id)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE keyset (
        id INTEGER PRIMARY KEY CHECK (id = 1), revision INTEGER NOT NULL, body TEXT NOT NULL,
        sum BLOB NOT NULL
    ) STRICT;
    CREATE TABLE counters (
        until INTEGER NOT NULL, id TEXT NOT NULL, value INTEGER NOT NULL,
        PRIMARY KEY (until, id)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE audit_chains (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;
    CREATE TABLE audit_nodes (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;
    CREATE TABLE audit (
        place INTEGER PRIMARY KEY, kind INTEGER NOT NULL, node INTEGER, hash BLOB NOT NULL,
        event TEXT NOT NULL,
        chain INTEGER GENERATED ALWAYS AS (place >> 40) VIRTUAL,
        sequence INTEGER GENERATED ALWAYS AS (place & 1099511627775) VIRTUAL,
        at INTEGER GENERATED ALWAYS AS (CAST(substr(event, 7, 20) AS INTEGER)) VIRTUAL
    ) STRICT;
    CREATE INDEX audit_by_kind ON audit (kind, at);
    CREATE TABLE audit_keys (
        key INTEGER NOT NULL, kind INTEGER NOT NULL, at INTEGER NOT NULL, place INTEGER NOT NULL,
        PRIMARY KEY (key, kind, at, place)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE audit_keyed (
        id INTEGER PRIMARY KEY CHECK (id = 1), place INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE audit_seals (
        place INTEGER PRIMARY KEY, at INTEGER NOT NULL, hash BLOB NOT NULL, seal BLOB NOT NULL
    ) STRICT;
    CREATE TABLE audit_cuts (
        chain TEXT PRIMARY KEY, sequence INTEGER NOT NULL, hash BLOB NOT NULL, at INTEGER NOT NULL,
        seal BLOB NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE imported_heads (
        chain TEXT PRIMARY KEY, node TEXT NOT NULL, sequence INTEGER NOT NULL, hash BLOB NOT NULL,
        seal BLOB NOT NULL, open INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE VIEW heads AS
        SELECT chain, node, sequence, hash, seal, 1 AS open FROM head WHERE sequence > 0
        UNION ALL SELECT chain, node, sequence, hash, seal, open FROM imported_heads;
";

/// Returns the path of the database in a data directory.
pub(crate) fn file(dir: &Path) -> PathBuf {
    dir.join("jeton.db")
}

/// Opens a connection that writes, and returns the identity of its file; creates the tables in an
/// empty one. No part of `dir` may be a link.
pub(crate) fn writer(dir: &Path) -> Result<(Connection, Identity), OpenError> {
    let path = file(dir);
    // Created here so that only its owner can read it, and the files that SQLite creates beside it
    // with the same mode. Closed before SQLite opens it: closing any descriptor of the file later
    // would drop SQLite's locks on it.
    let made = open_private(&path)?.metadata().map_err(OpenError::io(&path))?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let connection = Connection::open_with_flags(&path, flags)?;
    // Before anything is written: a foreign or newer file is left unchanged.
    let is_empty = is_empty(&connection)?;
    if is_empty {
        // Before the first page: the file can be made smaller in small steps.
        connection.execute_batch("PRAGMA auto_vacuum = INCREMENTAL;")?;
    }
    connection.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 4000;
         PRAGMA journal_size_limit = 67108864; PRAGMA cache_size = -16384;",
    )?;
    configure(&connection)?;
    if is_empty {
        // One transaction: a process that stops in the middle leaves an empty file.
        connection.execute_batch(&format!(
            "BEGIN IMMEDIATE; {TABLES} PRAGMA application_id = {APPLICATION};
             PRAGMA user_version = {FORMAT}; COMMIT;"
        ))?;
    }
    Ok((connection, Identity::of(&made)))
}

/// Opens a read-only connection to an existing database. No part of `dir` may be a link.
pub(crate) fn reader(dir: &Path) -> Result<Connection, OpenError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let connection = Connection::open_with_flags(file(dir), flags)?;
    configure(&connection)?;
    if is_empty(&connection)? {
        return Err(OpenError::Corrupt("the database is empty".into()));
    }
    connection.execute_batch("PRAGMA query_only = ON; PRAGMA cache_size = -8192;")?;
    Ok(connection)
}

fn configure(connection: &Connection) -> Result<(), OpenError> {
    connection.execute_batch(
        "PRAGMA busy_timeout = 5000; PRAGMA temp_store = MEMORY; PRAGMA cell_size_check = ON;",
    )?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(())
}

/// Returns true if the database has no tables yet; refuses one that is not of this format.
fn is_empty(connection: &Connection) -> Result<bool, OpenError> {
    let number = |sql| connection.query_row(sql, [], |row| row.get::<_, i64>(0));
    let tables = number("SELECT count(*) FROM sqlite_schema")?;
    let (application, format) = (number("PRAGMA application_id")?, number("PRAGMA user_version")?);
    match (tables, application, format) {
        (0, 0, 0) => Ok(true),
        (_, APPLICATION, found) if found > FORMAT => Err(OpenError::Newer { found, known: FORMAT }),
        (1.., APPLICATION, FORMAT) => Ok(false),
        _ => Err(OpenError::Corrupt("the database is not a jeton database".into())),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{crypto::chain::ChainKey, store::embedded::Embedded};

    /// A first start that is killed at any point leaves an empty or a whole database, depending on
    /// how much of the WAL had reached the disk; the next start goes on from either.
    #[tokio::test]
    async fn a_first_start_that_is_killed_leaves_nothing_or_all_tables() {
        let dir = tempfile::tempdir().unwrap();
        // No checkpoint runs while it is open, so the WAL holds all tables.
        let created = writer(&dir.path().canonicalize().unwrap()).unwrap();
        let (database, wal) = (
            fs::read(file(dir.path())).unwrap(),
            fs::read(dir.path().join("jeton.db-wal")).unwrap(),
        );
        drop(created);
        let frame = 4_096 + 24;
        assert!(wal.len() > 10 * frame, "{}", wal.len());
        let frames = (0..wal.len() / frame).map(|frames| 32 + frames * frame);
        let ends = frames.flat_map(|end| [end, end + 2_000]).chain([0, wal.len()]);
        for end in ends.filter(|end| *end <= wal.len()) {
            let copy = tempfile::tempdir().unwrap();
            fs::write(file(copy.path()), &database).unwrap();
            fs::write(copy.path().join("jeton.db-wal"), wal.get(..end).unwrap()).unwrap();
            let whole = !is_empty(&Connection::open(file(copy.path())).unwrap()).unwrap();
            assert_eq!(whole, end == wal.len(), "{end}");
            let store = Embedded::open(copy.path(), "node", ChainKey::new([1; 32])).unwrap();
            assert!(store.check().await.unwrap().is_intact(), "{end}");
        }
    }
}
