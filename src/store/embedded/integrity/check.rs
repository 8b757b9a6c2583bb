//! Whether what is on disk is what was acknowledged. SQLite's own checks see a page that is torn or
//! missing; these see an end that was lost, a revocation that is not there, and a value that
//! changed.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension};

use super::checksum::Tally;
use crate::{
    crypto::chain::{ChainKey, Flaw, Problem, START, Walk},
    model::Timestamp,
    store::{
        Result,
        embedded::{
            Embedded,
            audit::{imported_chains, own_chain, rows::Raw},
            engine::{
                batch::{State, from_sql},
                error::{Fault, OpenError},
            },
            files::head_file::Note,
            tables::{audiences, clients, families, keys, revocations},
        },
        transfer::Chains,
    },
};

const LOST: &str = "a revocation, an epoch or an imported audit chain was lost";

/// How many records at the end of the chain are walked at every start.
const TAIL: u64 = 1_000;

/// What a whole check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Audit records walked over.
    pub records: u64,
    /// What is wrong with the database's structure, its rows and what was acknowledged; empty when
    /// nothing is.
    pub damage: Vec<String>,
    /// The first place where an audit chain is broken, and which.
    pub flaw: Option<(Arc<str>, Flaw)>,
}

impl Checked {
    /// Whether nothing is wrong.
    pub fn sound(&self) -> bool {
        self.damage.is_empty() && self.flaw.is_none()
    }
}

/// Reads what the writer must know, and refuses what does not carry on from what was acknowledged.
/// Where a rollback is accepted, a copy or an older state is not refused; the text says why it had
/// to be accepted.
pub(crate) fn opening(
    connection: &Connection,
    note: Option<&Note>,
    node: &str,
    key: &ChainKey,
    accept_rollback: bool,
) -> Result<(State, Option<String>), OpenError> {
    let state = state(connection, node)?;
    if state.import.is_some() {
        return Err(OpenError::Corrupt(
            "an import was interrupted: empty the directory and import again".into(),
        ));
    }
    let head = own_chain::head(connection)?;
    if head.as_ref().is_some_and(|head| !key.check(head)) {
        return Err(OpenError::Corrupt(
            "the audit trail was sealed under another master key, or its seal is damaged".into(),
        ));
    }
    let rollback = rollback(connection, &state, note)?;
    if let Some(problem) = rollback.as_ref().filter(|_| !accept_rollback) {
        return Err(OpenError::Rollback(problem.clone()));
    }
    let from = state.sequence.saturating_sub(TAIL);
    let walk = walk(connection, from, hash_of(connection, from)?.ok_or_else(|| removed(from))?)?;
    walk.finish(key, head.as_ref())?;
    if tally(connection)? != state.tally {
        return Err(OpenError::Corrupt(LOST.into()));
    }
    if imported_chains::heads(connection)?.iter().any(|(_, head)| !key.check(head)) {
        return Err(OpenError::Corrupt(
            "an imported audit chain was sealed under another master key".into(),
        ));
    }
    if state.sequence == 0 && imported_chains::head(connection, node)?.is_some() {
        let taken = format!(
            "the node name {node} is taken by the audit chain of another node: set another `node`"
        );
        return Err(OpenError::Corrupt(taken));
    }
    Ok((state, rollback))
}

/// Over everything of which none may be lost.
fn tally(connection: &Connection) -> Result<Tally, Fault> {
    let mut tally = revocations::tally(connection)?;
    imported_chains::add_to(&mut tally, connection)?;
    Ok(tally)
}

/// Why this may be an older state than was acknowledged; `None` where it is the newest.
fn rollback(
    connection: &Connection,
    state: &State,
    note: Option<&Note>,
) -> Result<Option<String>, OpenError> {
    let Some(note) = note else {
        // Before the first record there is nothing that could be brought back.
        let missing =
            "the file anchor is missing or unreadable, so the database may be an older copy";
        return Ok((state.sequence > 0).then(|| missing.to_owned()));
    };
    if hash_of(connection, note.sequence)? != Some(note.hash) {
        return Ok(Some(format!(
            "audit record {} was acknowledged and is missing, the last record is {}: the database \
             was truncated or replaced by an older copy",
            note.sequence, state.sequence
        )));
    }
    let problem = match (note.is_of_database, note.is_in_place) {
        (true, true) => None,
        (false, _) => Some("the database is a copy: it is not the file that was written last"),
        (true, false) => {
            Some("the file anchor is a copy: the directory was overwritten with a copy")
        }
    };
    Ok(problem.filter(|_| state.sequence > 0).map(str::to_owned))
}

/// The writer's state as it is on disk.
pub(crate) fn state(connection: &Connection, node: &str) -> Result<State, OpenError> {
    let sql = "SELECT node, sequence, hash, newest, tally, importing, sum FROM head WHERE id = 1";
    let row = connection.query_row(sql, [], |row| {
        let tally: Vec<u8> = row.get(4)?;
        let state = State {
            node: row.get(0)?,
            sequence: from_sql(row.get(1)?),
            hash: row.get(2)?,
            newest: Timestamp::from_millis(row.get(3)?),
            tally: Tally::default(),
            import: row.get::<_, bool>(5)?.then(Chains::default),
        };
        Ok((state, tally, row.get::<_, Vec<u8>>(6)?))
    });
    let fresh = || State {
        node: node.into(),
        sequence: 0,
        hash: START,
        newest: Timestamp::EPOCH,
        tally: Tally::default(),
        import: None,
    };
    let Some((state, tally, kept)) = row.optional()? else { return Ok(fresh()) };
    let tally = Tally::from_bytes(&tally).ok_or_else(|| {
        OpenError::Corrupt("the head's checksum of revocations is unreadable".into())
    })?;
    let state = State { tally, ..state };
    if state.sum() != kept.as_slice() {
        return Err(OpenError::Corrupt("the head does not match its checksum".into()));
    }
    Ok(state)
}

fn hash_of(connection: &Connection, sequence: u64) -> Result<Option<[u8; 32]>, OpenError> {
    if sequence == 0 {
        return Ok(Some(START));
    }
    let mut found = None;
    own_chain::walk(connection, sequence.saturating_sub(1), 1, |raw| {
        found = (raw.sequence == sequence).then_some(raw.hash);
        Ok::<_, Fault>(())
    })?;
    Ok(found)
}

const fn removed(sequence: u64) -> Flaw {
    Flaw { sequence, problem: Problem::Removed }
}

/// Why a walk over stored records stops.
enum Stop {
    Fault(Fault),
    Flaw(Flaw),
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<Stop> for OpenError {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Fault(fault) => fault.into(),
            Stop::Flaw(flaw) => flaw.into(),
        }
    }
}

/// Walks to the end of the own chain over the bytes as they are stored.
fn walk(connection: &Connection, after: u64, hash: [u8; 32]) -> Result<Walk, Stop> {
    let mut walk = Walk::after(after, hash);
    own_chain::walk(connection, after, usize::MAX, |raw| {
        walk.step(raw.sequence, &raw.node, raw.body.as_bytes(), &raw.hash).map_err(Stop::Flaw)
    })?;
    Ok(walk)
}

/// Everything that can be checked, from one moment's view of the database.
pub(crate) fn whole(connection: &Connection, key: &ChainKey) -> Result<Checked, Fault> {
    let mut checked = Checked { damage: structure(connection)?, ..Checked::default() };
    for chain in own_chain::names(connection)? {
        match whole_chain(connection, &chain, key) {
            Ok(records) => checked.records = checked.records.saturating_add(records),
            Err(Stop::Flaw(flaw)) => checked.flaw = checked.flaw.or(Some((chain, flaw))),
            Err(Stop::Fault(fault)) => checked.damage.push(fault.to_string()),
        }
    }
    match state(connection, "") {
        Ok(state) if tally(connection)? == state.tally => {}
        Ok(_) => checked.damage.push(LOST.into()),
        Err(error) => checked.damage.push(error.to_string()),
    }
    checked.damage.extend(rows(connection)?);
    Ok(checked)
}

/// Walks one chain from its beginning to its sealed end; how many records it has.
fn whole_chain(connection: &Connection, chain: &str, key: &ChainKey) -> Result<u64, Stop> {
    let own = own_chain::name(connection)?.as_deref() == Some(chain);
    let head = own_chain::head_of(connection, chain)?;
    let walk = if own {
        walk(connection, 0, START)?
    } else {
        let mut walk = Walk::from_start();
        let mut step = |raw: Raw| {
            if raw.sequence == 1 && *raw.node != *chain {
                return Err(Stop::Flaw(Flaw { sequence: 1, problem: Problem::Altered }));
            }
            walk.step(raw.sequence, &raw.node, raw.body.as_bytes(), &raw.hash).map_err(Stop::Flaw)
        };
        imported_chains::walk(connection, chain, 0, usize::MAX, &mut step)?;
        walk
    };
    walk.finish(key, head.as_ref()).map_err(Stop::Flaw)?;
    Ok(walk.sequence())
}

/// SQLite's view of its pages and indexes.
fn structure(connection: &Connection) -> Result<Vec<String>, Fault> {
    let mut statement = connection.prepare("PRAGMA integrity_check(20)")?;
    let lines: Vec<String> =
        statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    Ok(lines.into_iter().filter(|line| line != "ok").collect())
}

/// Every row that carries its own sum.
fn rows(connection: &Connection) -> Result<Vec<String>, Fault> {
    const PAGE: usize = 1_000;
    let mut damage = Vec::new();
    let mut note = |outcome: Result<(), Fault>| match outcome {
        Err(Fault::Row(problem)) => {
            damage.push(problem);
            Ok(())
        }
        other => other,
    };
    let clients = || -> Result<(), Fault> {
        let mut after = None;
        loop {
            let page = clients::page(connection, after.as_ref(), PAGE)?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.id.clone());
        }
    };
    let audiences = || -> Result<(), Fault> {
        let mut after = None;
        loop {
            let page = audiences::page(connection, after.as_ref(), PAGE)?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.audience.clone());
        }
    };
    let families = || -> Result<(), Fault> {
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
    /// Checks everything: SQLite's structure, each row against its sum, the revocations against
    /// their tally and the whole audit chain against its seal. Takes as long as reading the
    /// database does; writes go on meanwhile.
    pub async fn check(&self) -> Result<Checked> {
        let key = Arc::new(self.key.clone());
        self.scan(move |connection| {
            // One view throughout, so that what is written meanwhile does not look like damage.
            let transaction = connection.unchecked_transaction()?;
            whole(&transaction, &key)
        })
        .await
    }
}
