//! Schema of the database, and connections to it.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags, config::DbConfig};

use super::error::OpenError;

use crate::store::embedded::files::open::{Identity, open_private};

/// Newest format that this version supports. A newer one is refused, an older one is migrated.
pub(super) const FORMAT: i64 = 2;

/// SQLite application id of the file: "jetn".
const APPLICATION: i64 = 0x6a65_746e;

/// Migration to each format from the one before it, to the first from an empty file.
const STEPS: [&str; 2] = [TABLES, CHAINS];

/// Format 1. One table for each type of record, so that none can be read as another. Ids are keys,
/// hashes of secrets never are. Ids ascend with time, so inserts go to the end of their tree. `sum`
/// is the checksum of a row, against silent decay of its page.
///
/// `families.sweep_at` is the earliest time at which the family may be deleted, as of the last
/// sweep that read the row: a rotation moves the true time on and leaves the index alone.
const TABLES: &str = "
    CREATE TABLE head (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        node TEXT NOT NULL, sequence INTEGER NOT NULL, hash BLOB NOT NULL, seal BLOB NOT NULL,
        newest INTEGER NOT NULL, tally BLOB NOT NULL, importing INTEGER NOT NULL, sum BLOB NOT NULL
    ) STRICT;
    CREATE TABLE clients (
        id TEXT PRIMARY KEY, tenant TEXT NOT NULL, revision INTEGER NOT NULL, body TEXT NOT NULL, sum BLOB NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX clients_of_tenant ON clients (tenant);
    CREATE TABLE deleted_clients (id TEXT PRIMARY KEY, tenant TEXT NOT NULL, sum BLOB NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE audiences (
        id TEXT PRIMARY KEY, tenant TEXT NOT NULL, revision INTEGER NOT NULL, body TEXT NOT NULL, sum BLOB NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX audiences_of_tenant ON audiences (tenant);
    CREATE TABLE secret_uses (
        client TEXT NOT NULL, secret TEXT NOT NULL, last_used_at INTEGER NOT NULL, uses INTEGER NOT NULL, sum BLOB NOT NULL,
        PRIMARY KEY (client, secret)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE families (
        id BLOB PRIMARY KEY, client TEXT NOT NULL, salt BLOB NOT NULL, generation INTEGER NOT NULL, rotated_at INTEGER NOT NULL,
        answers TEXT NOT NULL, ended_at INTEGER, expires_at INTEGER NOT NULL, sweep_at INTEGER NOT NULL, body TEXT NOT NULL, sum BLOB NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX families_of_client ON families (client);
    CREATE INDEX families_to_sweep ON families (sweep_at);
    CREATE TABLE revocations (
        kind INTEGER NOT NULL, id BLOB NOT NULL, until INTEGER NOT NULL, PRIMARY KEY (kind, id)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX revocations_to_sweep ON revocations (until);
    CREATE TABLE epochs (
        kind INTEGER NOT NULL, id TEXT NOT NULL, value INTEGER NOT NULL, PRIMARY KEY (kind, id)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE keyset (
        id INTEGER PRIMARY KEY CHECK (id = 1), revision INTEGER NOT NULL, body TEXT NOT NULL, sum BLOB NOT NULL
    ) STRICT;
    CREATE TABLE counters (
        until INTEGER NOT NULL, id TEXT NOT NULL, value INTEGER NOT NULL, PRIMARY KEY (until, id)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE audit (
        sequence INTEGER PRIMARY KEY, node TEXT NOT NULL, hash BLOB NOT NULL, event TEXT NOT NULL
    ) STRICT;
";

/// Format 2: chains of other nodes, and indexes over the records of all chains by time. The time is
/// a generated column over the event, whose text begins with it (`{"at":1790000000123,`), so that
/// the two cannot differ. A text that begins otherwise is no event; it sorts last and is found
/// there. The migration rewrites no existing row.
const CHAINS: &str = "
    ALTER TABLE audit ADD COLUMN at INTEGER GENERATED ALWAYS AS
        (CAST(substr(event, 7, 20) AS INTEGER)) VIRTUAL;
    CREATE INDEX audit_by_time ON audit (at);
    CREATE TABLE other_records (
        chain TEXT NOT NULL, sequence INTEGER NOT NULL, node TEXT NOT NULL, hash BLOB NOT NULL, event TEXT NOT NULL,
        at INTEGER GENERATED ALWAYS AS
            (CAST(substr(event, 7, 20) AS INTEGER)) VIRTUAL,
        PRIMARY KEY (chain, sequence)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX other_records_by_time ON other_records (at, chain, sequence);
    CREATE TABLE other_heads (
        chain TEXT PRIMARY KEY, node TEXT NOT NULL, sequence INTEGER NOT NULL, hash BLOB NOT NULL, seal BLOB NOT NULL,
        open INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
";

/// Empty tables for a read-only connection to a database of format 1, which lacks them.
const NO_CHAINS: &str = "
    CREATE TEMP TABLE other_records (chain TEXT, sequence INTEGER, node TEXT, hash BLOB, event TEXT, at INTEGER);
    CREATE TEMP TABLE other_heads (chain TEXT, node TEXT, sequence INTEGER, hash BLOB, seal BLOB, open INTEGER);
";

/// Returns the path of the database in a data directory.
pub(crate) fn file(dir: &Path) -> PathBuf {
    dir.join("jeton.db")
}

/// Opens a connection that writes, and returns the identity of its file; migrates the tables to
/// this version's format. No part of `dir` may be a link.
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
    let format = format(&connection)?;
    connection.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 4000;
         PRAGMA journal_size_limit = 67108864; PRAGMA cache_size = -16384;",
    )?;
    configure(&connection)?;
    let steps: String =
        STEPS.into_iter().skip(usize::try_from(format).unwrap_or(STEPS.len())).collect();
    if !steps.is_empty() {
        // One transaction: a process that stops in the middle leaves the old format.
        connection.execute_batch(&format!(
            "BEGIN IMMEDIATE; {steps} PRAGMA application_id = {APPLICATION}; PRAGMA user_version = \
             {FORMAT}; COMMIT;"
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
    match format(&connection)? {
        0 => return Err(OpenError::Corrupt("the database is empty".into())),
        1 => connection.execute_batch(NO_CHAINS)?,
        _ => {}
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

/// Returns the format of the database; 0 if it is empty.
fn format(connection: &Connection) -> Result<i64, OpenError> {
    let number = |sql| connection.query_row(sql, [], |row| row.get::<_, i64>(0));
    let tables = number("SELECT count(*) FROM sqlite_schema")?;
    let (application, format) = (number("PRAGMA application_id")?, number("PRAGMA user_version")?);
    match (tables, application, format) {
        (0, 0, 0) => Ok(0),
        (_, APPLICATION, found) if found > FORMAT => Err(OpenError::Newer { found, known: FORMAT }),
        (1.., APPLICATION, 1..=FORMAT) => Ok(format),
        _ => Err(OpenError::Corrupt("the database is not a jeton database".into())),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{
        crypto::chain::ChainKey,
        model::{Action, Stamp, Timestamp},
        store::{
            AuditStore, Store,
            embedded::Embedded,
            transfer::{ExportRecord, ExportSource},
        },
    };

    fn open(dir: &Path) -> Embedded {
        Embedded::open(dir, "node", ChainKey::new([1; 32])).unwrap()
    }

    /// Removes everything that format 2 added.
    fn downgrade(dir: &Path) {
        let connection = Connection::open(file(dir)).unwrap();
        let sql = "DROP TABLE other_heads; DROP TABLE other_records; DROP INDEX audit_by_time;
                   ALTER TABLE audit DROP COLUMN at; PRAGMA user_version = 1; PRAGMA wal_checkpoint(TRUNCATE);";
        connection.execute_batch(sql).unwrap();
        let tables = |connection: &Connection| -> Vec<(String, String)> {
            let sql = "SELECT name, sql FROM sqlite_schema WHERE sql NOT NULL ORDER BY name";
            let mut statement = connection.prepare(sql).unwrap();
            statement
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
                .unwrap()
                .map(Result::unwrap)
                .collect()
        };
        let first = Connection::open_in_memory().unwrap();
        first.execute_batch(TABLES).unwrap();
        assert_eq!(tables(&connection), tables(&first), "as format 1 was");
    }

    /// Closed store of format 1 whose records are not in the order of their times, and its content.
    async fn old(records: i64) -> (tempfile::TempDir, Vec<ExportRecord>) {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        for n in 0..records {
            let stamp = Stamp::internal(Timestamp::from_millis(n * 7 % 50));
            store.append_soon(stamp.done(Action::TokenIssued, n.to_string())).await.unwrap();
        }
        store.ready().await.unwrap();
        let items = store.dump_all().await;
        store.close().await.unwrap();
        downgrade(dir.path());
        (dir, items)
    }

    trait All: ExportSource {
        async fn dump_all(&self) -> Vec<ExportRecord> {
            let mut items: Vec<ExportRecord> = Vec::new();
            loop {
                let page = self.export_page(items.last(), 1_000).await.unwrap();
                if page.is_empty() {
                    return items;
                }
                items.extend(page);
            }
        }
    }

    impl<D: ExportSource> All for D {}

    fn found(dir: &Path) -> i64 {
        Connection::open(file(dir))
            .unwrap()
            .query_row("PRAGMA user_version", [], |row| row.get(0))
            .unwrap()
    }

    /// E10: an older format is migrated on open with its whole content, and can be exported before
    /// that.
    #[tokio::test]
    async fn format_1_is_brought_forward() {
        let (dir, expected) = old(300).await;
        let view = Embedded::read_only(dir.path(), Some(ChainKey::new([1; 32]))).unwrap();
        assert_eq!(view.dump_all().await, expected);
        assert_eq!(found(dir.path()), 1, "who only reads leaves it as it is");
        let store = open(dir.path());
        assert_eq!(found(dir.path()), FORMAT);
        assert_eq!(store.dump_all().await, expected);
        assert!(store.check().await.unwrap().is_intact());
        let listed =
            store.events(&crate::model::event::Filter::default(), None, 1_000).await.unwrap();
        assert_eq!(listed.len(), 300);
        assert!(listed.is_sorted_by(|newer, older| newer.place() > older.place()));
        store
            .append(Stamp::internal(Timestamp::from_millis(99)).done(Action::TokenIssued, ""))
            .await
            .unwrap();
        store.close().await.unwrap();
        assert!(open(dir.path()).check().await.unwrap().is_intact());
    }

    /// E10: a migration killed at any point leaves the old or the new format with its whole
    /// content, depending on how much of the WAL had reached the disk.
    #[tokio::test]
    async fn a_migration_that_is_killed_leaves_the_old_or_the_new_format() {
        let (dir, expected) = old(3_000).await;
        // No checkpoint runs while it is open, so the WAL holds the whole migration.
        let migrated = writer(&dir.path().canonicalize().unwrap()).unwrap();
        let (database, wal) = (
            fs::read(file(dir.path())).unwrap(),
            fs::read(dir.path().join("jeton.db-wal")).unwrap(),
        );
        drop(migrated);
        let (mut formats, frame) = (Vec::new(), 4_096 + 24);
        assert!(wal.len() > 10 * frame, "{}", wal.len());
        let ends = (0..=wal.len() / frame)
            .flat_map(|frames| [32 + frames * frame, 32 + frames * frame + 2_000]);
        for end in ends.filter(|end| *end <= wal.len()).chain([0, wal.len()]) {
            let killed = || {
                let copy = tempfile::tempdir().unwrap();
                fs::copy(dir.path().join("anchor"), copy.path().join("anchor")).unwrap();
                fs::write(file(copy.path()), &database).unwrap();
                fs::write(copy.path().join("jeton.db-wal"), wal.get(..end).unwrap()).unwrap();
                Embedded::adopt(copy.path(), ChainKey::new([1; 32])).unwrap();
                copy
            };
            formats.push((end, found(killed().path())));
            let copy = killed();
            let store = open(copy.path());
            assert_eq!(store.dump_all().await, expected, "{end}");
            assert!(store.check().await.unwrap().is_intact(), "{end}");
        }
        let new: Vec<usize> =
            formats.iter().filter(|(_, format)| *format == FORMAT).map(|(end, _)| *end).collect();
        assert!(formats.iter().all(|(_, format)| [1, FORMAT].contains(format)));
        assert!(
            !new.is_empty() && new.iter().all(|end| *end + frame > wal.len()),
            "only what is whole counts: {new:?}"
        );
    }
}
