//! Verification that the database holds every acknowledged write. SQLite's own checks find torn and
//! missing pages; these find a lost end, a missing revocation and a changed value.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension};

use super::checksum::SetChecksum;
use crate::{
    crypto::chain::{ChainKey, Flaw, Head, Problem, START, Walk},
    model::Timestamp,
    store::{
        Result,
        embedded::{
            Embedded,
            audit::{chains, cuts, index, keyed, names, places, rows::StoredRecord},
            engine::{
                batch::{HeadRow, from_sql},
                error::{OpenError, SqliteError},
            },
            files::head_file::LastAckedHead,
            tables::{audiences, clients, families, keys, revocations},
        },
        transfer::Chains,
    },
};

const LOST: &str = "a revocation, an epoch or an imported audit chain was lost";

/// Number of records at the end of the chain that are verified at every start.
const TAIL_RECORDS: u64 = 1_000;

/// Result of a full check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Number of verified audit records.
    pub records: u64,
    /// Damage of the database's structure, its rows and its acknowledged content. Empty: none.
    pub damage: Vec<String>,
    /// First broken place of an audit chain, and the chain's name.
    pub flaw: Option<(Arc<str>, Flaw)>,
}

impl Checked {
    /// Returns true if no damage was found.
    pub fn is_intact(&self) -> bool {
        self.damage.is_empty() && self.flaw.is_none()
    }
}

/// Loads the writer's state, and refuses a database that does not continue from the last
/// acknowledged write. If a rollback is accepted, a copy or an older state is not refused; the
/// returned text is the reason it had to be accepted.
pub(crate) fn verify_on_open(
    connection: &Connection,
    acked: Option<&LastAckedHead>,
    node: &str,
    key: &ChainKey,
    accept_rollback: bool,
) -> Result<(HeadRow, Option<String>), OpenError> {
    let state = state(connection, node)?;
    check_import(&state)?;
    let head = own_head(connection, &state)?;
    check_key(head.as_ref(), acked, key)?;
    if head.as_ref().is_some_and(|head| !key.check(head)) {
        return Err(OpenError::Corrupt("the seal of the audit trail is invalid".into()));
    }
    for (chain, mark) in cuts::marks(connection)? {
        if !key.check_cut(&chain, &mark) {
            let problem = format!("the mark of the cut of the audit chain {chain} is invalid");
            return Err(OpenError::Corrupt(problem));
        }
    }
    let rollback = rollback(connection, &state, acked)?;
    if let Some(problem) = rollback.as_ref().filter(|_| !accept_rollback) {
        return Err(OpenError::Rollback(problem.clone()));
    }
    if head.is_none() {
        check_beginning(connection, node)?;
    }
    let from = state.sequence.saturating_sub(TAIL_RECORDS);
    let from = from.max(cuts::cut_at(connection, &state.chain)?);
    let hash = hash_of(connection, &state.chain, from)?.ok_or_else(|| removed(from))?;
    // The tail shows nothing of the name: the first record does.
    chains::walk(connection, &state.chain, 0, 1, |first| {
        let is_renamed = first.sequence == 1 && *first.node != *state.chain;
        let flaw = Flaw { sequence: 1, problem: Problem::Altered };
        if is_renamed { Err(Stop::Flaw(flaw)) } else { Ok(()) }
    })?;
    walk(connection, &state.chain, from, hash, |_| ())?.finish(key, head.as_ref())?;
    if set_checksum(connection)? != state.set_checksum {
        return Err(OpenError::Corrupt(LOST.into()));
    }
    if chains::imported_heads(connection)?.iter().any(|(_, head)| !key.check(head)) {
        return Err(OpenError::MasterKey(
            "an imported audit chain was sealed under another master key",
        ));
    }
    Ok((state, rollback))
}

/// Refuses a database that an import has not filled completely.
pub(crate) fn check_import(state: &HeadRow) -> Result<(), OpenError> {
    if state.import.is_none() {
        return Ok(());
    }
    Err(OpenError::Corrupt(
        "an import was interrupted: empty the directory and import again".into(),
    ))
}

/// Refuses another key than that of the store. The file `anchor` has a MAC under the same key: if
/// that is right, the key is too.
pub(crate) fn check_key(
    head: Option<&Head>,
    acked: Option<&LastAckedHead>,
    key: &ChainKey,
) -> Result<(), OpenError> {
    if acked.is_some() || head.is_none_or(|head| key.check(head)) {
        return Ok(());
    }
    Err(OpenError::MasterKey(
        "its audit trail was sealed under another master key, or its seal is damaged",
    ))
}

/// Returns the checksum over all rows of which none may be lost.
fn set_checksum(connection: &Connection) -> Result<SetChecksum, SqliteError> {
    let mut set_checksum = revocations::set_checksum(connection)?;
    chains::add_to(&mut set_checksum, connection)?;
    Ok(set_checksum)
}

/// Returns the reason that the database may be older than the last acknowledged write; `None` if it
/// is current.
fn rollback(
    connection: &Connection,
    state: &HeadRow,
    acked: Option<&LastAckedHead>,
) -> Result<Option<String>, OpenError> {
    let Some(acked) = acked else {
        // Before the first record there is nothing that a rollback could undo.
        let missing =
            "the file anchor is missing or unreadable, so the database may be an older copy";
        return Ok((state.sequence > 0).then(|| missing.to_owned()));
    };
    // A record that was cut was there.
    let is_cut = acked.sequence < cuts::cut_at(connection, &state.chain)?;
    if !is_cut && hash_of(connection, &state.chain, acked.sequence)? != Some(acked.hash) {
        return Ok(Some(format!(
            "audit record {} was acknowledged and is missing, the last record is {}: the database \
             was truncated or replaced by an older copy",
            acked.sequence, state.sequence
        )));
    }
    let problem = match (acked.is_of_database, acked.is_in_place) {
        (true, true) => None,
        (false, _) => Some("the database is a copy: it is not the file that was written last"),
        (true, false) => {
            Some("the file anchor is a copy: the directory was overwritten with a copy")
        }
    };
    Ok(problem.filter(|_| state.sequence > 0).map(str::to_owned))
}

/// Reads the writer's state from disk.
pub(crate) fn state(connection: &Connection, node: &str) -> Result<HeadRow, OpenError> {
    let row = connection.query_row("SELECT * FROM head WHERE id = 1", [], |row| {
        let set_checksum: Vec<u8> = row.get("tally")?;
        let state = HeadRow {
            chain: row.get("chain")?,
            node: row.get("node")?,
            sequence: from_sql(row.get("sequence")?),
            hash: row.get("hash")?,
            newest_time: Timestamp::from_millis(row.get("newest")?),
            set_checksum: SetChecksum::default(),
            import: row.get::<_, bool>("importing")?.then(Chains::default),
        };
        Ok((state, set_checksum, row.get::<_, Vec<u8>>("sum")?))
    });
    let fresh = || HeadRow {
        chain: node.into(),
        node: node.into(),
        sequence: 0,
        hash: START,
        newest_time: Timestamp::EPOCH,
        set_checksum: SetChecksum::default(),
        import: None,
    };
    let Some((state, set_checksum, kept)) = row.optional()? else { return Ok(fresh()) };
    let set_checksum = SetChecksum::from_bytes(&set_checksum).ok_or_else(|| {
        OpenError::Corrupt("the head's checksum of revocations is unreadable".into())
    })?;
    let mut state = HeadRow { set_checksum, ..state };
    if state.sum() != kept.as_slice() {
        return Err(OpenError::Corrupt("the head does not match its checksum".into()));
    }
    if state.sequence == 0 {
        // The node that writes the first record names the chain.
        state.chain = node.into();
    }
    Ok(state)
}

/// Returns the sealed head of the own chain; `None` before its first record.
fn own_head(connection: &Connection, state: &HeadRow) -> Result<Option<Head>, SqliteError> {
    if state.sequence == 0 { Ok(None) } else { chains::head(connection, &state.chain) }
}

/// Checks a store that has no own chain yet: no imported chain may have this node's name, and
/// records without a head mean that the row `head` was lost.
fn check_beginning(connection: &Connection, node: &str) -> Result<(), OpenError> {
    if chains::head(connection, node)?.is_some() {
        return Err(OpenError::NodeName(node.to_owned()));
    }
    for chain in chains::names(connection)? {
        if chains::head(connection, &chain)?.is_none() {
            return Err(Flaw { sequence: 1, problem: Problem::Unsealed }.into());
        }
    }
    Ok(())
}

fn hash_of(
    connection: &Connection,
    chain: &str,
    sequence: u64,
) -> Result<Option<[u8; 32]>, OpenError> {
    if sequence == 0 {
        return Ok(Some(START));
    }
    if let Some(mark) = cuts::mark(connection, chain)?
        && mark.place.sequence == sequence
    {
        return Ok(Some(mark.place.hash));
    }
    let mut found = None;
    chains::walk(connection, chain, sequence.saturating_sub(1), 1, |stored| {
        found = (stored.sequence == sequence).then_some(stored.hash);
        Ok::<_, SqliteError>(())
    })?;
    Ok(found)
}

const fn removed(sequence: u64) -> Flaw {
    Flaw { sequence, problem: Problem::Removed }
}

/// Reason that a walk over stored records stopped.
enum Stop {
    Error(SqliteError),
    Flaw(Flaw),
}

impl From<SqliteError> for Stop {
    fn from(fault: SqliteError) -> Self {
        Self::Error(fault)
    }
}

impl From<Stop> for OpenError {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Error(fault) => fault.into(),
            Stop::Flaw(flaw) => flaw.into(),
        }
    }
}

/// Verifies a chain to its end over the stored bytes. Its first record must be of the node that it
/// is named after.
fn walk(
    connection: &Connection,
    chain: &str,
    after: u64,
    hash: [u8; 32],
    mut visit: impl FnMut(&StoredRecord),
) -> Result<Walk, Stop> {
    let mut walk = Walk::after(after, hash);
    chains::walk(connection, chain, after, usize::MAX, |stored| {
        if stored.sequence == 1 && *stored.node != *chain {
            return Err(Stop::Flaw(Flaw { sequence: 1, problem: Problem::Altered }));
        }
        walk.step(stored.sequence, &stored.node, stored.body.as_bytes(), &stored.hash)
            .map_err(Stop::Flaw)?;
        if !stored.has_its_kind() {
            let flaw = Flaw { sequence: stored.sequence, problem: Problem::Altered };
            return Err(Stop::Flaw(flaw));
        }
        visit(&stored);
        Ok(())
    })?;
    Ok(walk)
}

/// Checks everything that can be checked, in one view of the database.
pub(crate) fn whole(connection: &Connection, key: &ChainKey) -> Result<Checked, SqliteError> {
    let mut checked = Checked { damage: structure(connection)?, ..Checked::default() };
    let (keyed, mut marks) = (keyed::keyed(connection)?, 0);
    for chain in chains::names(connection)? {
        match whole_chain(connection, &chain, key, keyed, &mut marks) {
            Ok(records) => checked.records = checked.records.saturating_add(records),
            Err(Stop::Flaw(flaw)) => checked.flaw = checked.flaw.or(Some((chain, flaw))),
            Err(Stop::Error(fault)) => checked.damage.push(fault.to_string()),
        }
    }
    match state(connection, "") {
        Ok(state) if set_checksum(connection)? == state.set_checksum => {}
        Ok(_) => checked.damage.push(LOST.into()),
        Err(error) => checked.damage.push(error.to_string()),
    }
    checked.damage.extend(rows(connection)?);
    // A record that is altered has other keys.
    if checked.is_intact() && keyed::marks(connection)? != marks {
        checked.damage.push("the index of the audit records does not match them".into());
    }
    let sql = "SELECT count(*) FROM audit
               WHERE sequence < 1 OR chain NOT IN (SELECT id FROM audit_chains)";
    let misplaced: u64 = connection.query_row(sql, [], |row| Ok(from_sql(row.get(0)?)))?;
    if misplaced > 0 {
        checked.damage.push(format!("rows that belong to no audit chain: {misplaced}"));
    }
    Ok(checked)
}

/// Verifies one chain from its first record to its sealed head; returns its number of records, and
/// adds the marks of their keys, as far as keys are written. Rows that a cut left count with their
/// keys alone.
fn whole_chain(
    connection: &Connection,
    chain: &str,
    key: &ChainKey,
    keyed: i64,
    marks: &mut u64,
) -> Result<u64, Stop> {
    let head = chains::head(connection, chain)?;
    let id = names::id_of(connection, chain)?.unwrap_or_default();
    let is_own = chains::own(connection)?.as_deref() == Some(chain);
    let mark = cuts::mark(connection, chain)?;
    if let Some(mark) = mark.filter(|mark| !key.check_cut(chain, mark)) {
        let flaw = Flaw { sequence: mark.place.sequence, problem: Problem::ForgedCut };
        return Err(Stop::Flaw(flaw));
    }
    let (after, hash) = mark.map_or((0, START), |mark| (mark.place.sequence, mark.place.hash));
    cuts::leftovers(connection, chain, after, i64::MAX, |_, rows| {
        *marks = rows.iter().fold(*marks, |sum, row| sum.wrapping_add(row.mark()));
        Ok(())
    })?;
    let walk = walk(connection, chain, after, hash, |stored| {
        let place = places::place_of(id, stored.sequence);
        if (!is_own || place <= keyed)
            && let Ok(event) = serde_json::from_str(&stored.body)
        {
            let rows = index::rows_of(&event, place);
            *marks = rows.iter().fold(*marks, |sum, row| sum.wrapping_add(row.mark()));
        }
    })?;
    walk.finish(key, head.as_ref()).map_err(Stop::Flaw)?;
    Ok(walk.sequence().saturating_sub(after))
}

/// Runs SQLite's check of pages and indexes.
fn structure(connection: &Connection) -> Result<Vec<String>, SqliteError> {
    let mut statement = connection.prepare("PRAGMA integrity_check(20)")?;
    let lines: Vec<String> =
        statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    Ok(lines.into_iter().filter(|line| line != "ok").collect())
}

/// Verifies every row that has a checksum of its own.
fn rows(connection: &Connection) -> Result<Vec<String>, SqliteError> {
    const PAGE: usize = 1_000;
    let mut damage = Vec::new();
    let mut note = |outcome: Result<(), SqliteError>| match outcome {
        Err(SqliteError::Malformed(problem)) => {
            damage.push(problem);
            Ok(())
        }
        other => other,
    };
    let clients = || -> Result<(), SqliteError> {
        let mut after = None;
        loop {
            let page = clients::page(connection, after.as_ref(), PAGE)?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.id.clone());
        }
    };
    let audiences = || -> Result<(), SqliteError> {
        let mut after = None;
        loop {
            let page = audiences::page(connection, after.as_ref(), PAGE)?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.audience.clone());
        }
    };
    let families = || -> Result<(), SqliteError> {
        let mut after = None;
        loop {
            let page = families::page(connection, after, 1_000)?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.id);
        }
    };
    note(clients())?;
    note(audiences())?;
    note(families())?;
    note(keys::find(connection).map(drop))?;
    Ok(damage)
}

impl Embedded {
    /// Checks everything: SQLite's structure, each row's checksum, the set checksum of the
    /// revocations and all audit chains. Takes as long as reading the database; writes go on
    /// meanwhile.
    pub async fn check(&self) -> Result<Checked> {
        let key = Arc::new(self.key.clone());
        self.scan(move |connection| {
            // One view throughout, so that concurrent writes do not look like damage.
            let transaction = connection.unchecked_transaction()?;
            whole(&transaction, &key)
        })
        .await
    }
}
