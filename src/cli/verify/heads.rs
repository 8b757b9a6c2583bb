//! Heads of chains that were saved: in arguments, and in the output of an earlier run.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::Value;

use super::report::NOT_COMPLETE;
use crate::{
    cli::{error::Failure, render},
    proto::admin::{ChainState, KnownHead},
};

const FORMAT: &str = "must be CHAIN:SEQUENCE:HASH, as `jeton audit verify` prints it";

/// Parses `CHAIN:SEQUENCE:HASH`; a chain's name may contain colons.
pub(super) fn parse(text: &str) -> Result<KnownHead, String> {
    let head = parsed(text).ok_or_else(|| FORMAT.to_owned())?;
    if head.sequence > 0 { Ok(head) } else { Err(FORMAT.to_owned()) }
}

/// Parses a head; that of a chain without records has the sequence 0.
fn parsed(text: &str) -> Option<KnownHead> {
    let mut parts = text.rsplitn(3, ':');
    let (hash, sequence, chain) = (parts.next()?, parts.next()?, parts.next()?);
    let is_hash = !hash.is_empty() && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    let sequence = sequence.parse().ok().filter(|sequence| *sequence >= 0)?;
    let head = KnownHead { chain: chain.to_owned(), sequence, hash: hash.to_owned() };
    (is_hash && !chain.is_empty()).then_some(head)
}

/// Reads the newest head of each chain from the output of an earlier run. The head of a chain that
/// was broken says nothing of the records before it and does not count.
pub(super) fn read(path: &Path) -> Result<Vec<KnownHead>, Failure> {
    let text = fs::read_to_string(path).map_err(Failure::reading(path))?;
    let heads = if text.trim_start().starts_with('{') { document(&text) } else { lines(&text) };
    let heads =
        heads.map_err(|problem| Failure::Other(format!("{}: {problem}", path.display())))?;
    let mut newest = BTreeMap::<String, KnownHead>::new();
    for head in heads.into_iter().filter(|head| head.sequence > 0) {
        let older = newest.get(&head.chain).is_none_or(|other| other.sequence < head.sequence);
        if older {
            newest.insert(head.chain.clone(), head);
        }
    }
    Ok(newest.into_values().collect())
}

/// Heads in the lines of an output for people.
fn lines(text: &str) -> Result<Vec<KnownHead>, String> {
    let broken = render::state(ChainState::Broken);
    let summaries = [ChainState::Intact, ChainState::EndNotSure, ChainState::Broken]
        .map(render::state)
        .map(|state| format!("{state}: "));
    let is_summary = |line: &str| {
        summaries.iter().any(|state| line.starts_with(state))
            || line.strip_prefix(NOT_COMPLETE).is_some_and(|rest| rest.starts_with(": "))
    };
    let mut heads = Vec::new();
    for (number, line) in (1_usize..).zip(text.lines()) {
        let line = line.trim_end();
        let (head, state) = line.split_once("  ").unwrap_or((line, ""));
        match parsed(head) {
            Some(_) if state.starts_with(broken) => {}
            Some(head) => heads.push(head),
            None if head.is_empty() || is_summary(line) => {}
            None => return Err(format!("line {number}: {FORMAT}")),
        }
    }
    Ok(heads)
}

/// Heads in an output for programs.
fn document(text: &str) -> Result<Vec<KnownHead>, String> {
    let document: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let head = |value: &Value, sequence: &str, hash: &str| {
        let text = |key: &str| value.get(key).and_then(Value::as_str);
        let sequence = value.get(sequence).and_then(Value::as_i64)?;
        let (chain, hash) = (text("chain")?.to_owned(), text(hash)?.to_owned());
        Some(KnownHead { chain, sequence, hash })
    };
    let missing = || "has no results of `jeton audit verify --json`".to_owned();
    let chains = document.get("chains").and_then(Value::as_array).ok_or_else(missing)?;
    let is_broken = |chain: &&Value| {
        chain.get("state").and_then(Value::as_str) == Some(render::state(ChainState::Broken))
    };
    let reached = document.get("reached").filter(|reached| reached.is_object());
    chains
        .iter()
        .filter(|chain| !is_broken(chain))
        .map(|chain| head(chain, "head_sequence", "head_hash"))
        .chain(reached.map(|reached| head(reached, "sequence", "hash")))
        .collect::<Option<_>>()
        .ok_or_else(missing)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_head_is_read_as_it_is_printed() {
        let read =
            |text| parse(text).map(|KnownHead { chain, sequence, hash }| (chain, sequence, hash));
        assert_eq!(read("node-1:12:00ffAA"), Ok(("node-1".to_owned(), 12, "00ffAA".to_owned())));
        assert_eq!(read("a:1:b:12:00"), Ok(("a:1:b".to_owned(), 12, "00".to_owned())));
        for bad in ["12:00", ":12:00", "n:x:00", "n:0:00", "n:-1:00", "n:12:", "n:12:zz", "", "::"]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    fn read_text(text: &str) -> Result<Vec<(String, i64)>, Failure> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        let heads = read(file.path())?.into_iter();
        Ok(heads.map(|head| (head.chain, head.sequence)).collect())
    }

    /// The head of a broken chain is no place to begin from: all of it would pass as verified.
    #[test]
    fn heads_of_broken_chains_do_not_count() {
        let text = "a:7:aa  intact, 7 records\nb:5:bb  end not sure, 5 records; the node\n\
                    c:9:cc  broken at record 3: removed; 2 records before it\n\
                    a:6:dd\nempty:0:00  intact, 0 records\n\
                    d:4:ee  not complete, 4 records\nbroken: 3 chains, 18 records\n\n";
        let expected = [("a".to_owned(), 7), ("b".to_owned(), 5), ("d".to_owned(), 4)];
        assert_eq!(read_text(text).unwrap(), expected);
        let chain = |name: &str, sequence: i64, state: &str| json!({ "chain": name, "head_sequence": sequence, "head_hash": "aa", "state": state });
        let document = json!({
            "chains": [chain("a", 7, "intact"), chain("b", 5, "end not sure"), chain("c", 9, "broken")],
            "reached": { "chain": "d", "sequence": 4, "hash": "ee" },
        });
        assert_eq!(read_text(&document.to_string()).unwrap(), expected);
        for bad in ["a:7", "a:7:aa\nnonsense", "{}", "{", "{\"chains\":[{}]}"] {
            assert!(read_text(bad).is_err(), "{bad}");
        }
        assert!(read_text("").unwrap().is_empty());
    }
}
