//! `verify-archive`: verifies archives of the audit trail, without a store or a server.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
};

use clap::Args;
use serde_json::json;

use super::{chain_key, sealer};
use crate::{
    cli::{error::Failure, output::Output, settings::Settings},
    config::Config,
    crypto::chain::ChainKey,
    store::transfer::{ArchiveCheck, ArchivedPart},
};

/// `jeton verify-archive`
#[derive(Args, Debug)]
pub(in crate::cli) struct VerifyArchive {
    /// Files of the directory audit.archive; the parts of a chain must follow each other
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Verify without the master key: links and hashes, but not the seals
    #[arg(long)]
    without_key: bool,
    #[command(flatten)]
    settings: Settings,
}

impl VerifyArchive {
    pub(in crate::cli) fn run(
        &self,
        output: Output,
        environment: &BTreeMap<String, String>,
    ) -> Result<(), Failure> {
        let (config, _) = Config::load(&self.settings.sources(environment))?;
        let key = match self.without_key {
            true => None,
            false => {
                let why = "required to verify the seals; --without-key verifies the rest";
                Some(chain_key(&sealer(&config, why)?))
            }
        };
        let chains = verify(&self.files, key.as_ref())?;
        if output.json {
            let chain = |part: &ArchivedPart| {
                json!({
                    "chain": &*part.chain,
                    "first_sequence": part.before.0.saturating_add(1),
                    "last_sequence": part.last.0,
                })
            };
            let chains = chains.iter().map(chain).collect::<Vec<_>>();
            return output.document(&json!({ "chains": chains }));
        }
        for ArchivedPart { chain, before, last } in &chains {
            let first = before.0.saturating_add(1);
            let line = format!("{chain}  records {first} to {} are intact", last.0);
            output.line(&crate::telemetry::escape(&line))?;
        }
        Ok(())
    }
}

/// Verifies files, and that those of one chain follow each other; returns what they hold of each
/// chain.
fn verify(files: &[PathBuf], key: Option<&ChainKey>) -> Result<Vec<ArchivedPart>, Failure> {
    let mut parts =
        files.iter().map(|file| verify_file(file, key)).collect::<Result<Vec<_>, _>>()?;
    parts.sort_unstable_by(|one, other| {
        (&one.chain, one.before.0).cmp(&(&other.chain, other.before.0))
    });
    // A pass that was interrupted leaves a part that the next one wrote again, with more records.
    parts.dedup_by(|next, kept| {
        let is_again = next.chain == kept.chain && next.before == kept.before;
        if is_again && next.last.0 > kept.last.0 {
            kept.last = next.last;
        }
        is_again
    });
    let mut chains: Vec<ArchivedPart> = Vec::new();
    for part in parts {
        match chains.last_mut() {
            Some(last) if last.chain == part.chain && last.last == part.before => {
                last.last = part.last;
            }
            Some(last) if last.chain == part.chain => {
                return Err(Failure::Other(format!(
                    "chain {}: no part continues record {}, the next one begins after {}",
                    part.chain, last.last.0, part.before.0
                )));
            }
            Some(_) | None => chains.push(part),
        }
    }
    Ok(chains)
}

fn verify_file(file: &Path, key: Option<&ChainKey>) -> Result<ArchivedPart, Failure> {
    let problem = |problem: &str| Failure::Other(format!("{}: {problem}", file.display()));
    let mut check = ArchiveCheck::default();
    let lines = BufReader::new(File::open(file).map_err(Failure::reading(file))?).lines();
    for (line, text) in lines.enumerate() {
        let text = text.map_err(Failure::reading(file))?;
        let line = line.saturating_add(1);
        check.take(&text, key).map_err(|found| problem(&format!("line {line}: {found}")))?;
    }
    check.finish().ok_or_else(|| problem("is incomplete: its last line is missing"))
}

#[cfg(test)]
mod tests {
    use std::{fs, sync::Arc};

    use super::*;
    use crate::{
        crypto::chain::{ChainPlace, START, link},
        model::{Action, Record, Stamp, Timestamp},
        store::transfer::ArchiveWriter,
    };

    /// Writes an archive of the next records of the chain `a`; returns the last one.
    fn write(file: &Path, key: &ChainKey, before: (u64, [u8; 32]), count: u64) -> (u64, [u8; 32]) {
        let chain: Arc<str> = "a".into();
        let (mut writer, mut text) = ArchiveWriter::new(&chain, before).unwrap();
        let (mut sequence, mut hash) = before;
        for _ in 0..count {
            sequence += 1;
            let event = Stamp::internal(Timestamp::EPOCH).done(Action::TokenIssued, "x");
            hash = link(&hash, sequence, "a", &serde_json::to_vec(&event).unwrap());
            let (chain, node) = (chain.clone(), chain.clone());
            text += &writer.record(&Record { chain, sequence, node, event, hash }).unwrap();
        }
        let place = ChainPlace { sequence, hash, at: Timestamp::EPOCH };
        text += &writer.finish(key, &place).unwrap();
        fs::write(file, text).unwrap();
        (sequence, hash)
    }

    #[test]
    fn parts_of_a_chain_follow_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let files: Vec<PathBuf> = (0..3).map(|n| dir.path().join(n.to_string())).collect();
        let key = ChainKey::new([7; 32]);
        let mut last = (0, START);
        for file in &files {
            last = write(file, &key, last, 4);
        }
        // Written again with more records by the pass after one that was interrupted.
        let again = dir.path().join("again");
        let longer = write(&again, &key, last, 6);
        let shorter = dir.path().join("shorter");
        write(&shorter, &key, last, 2);
        let all = [&files[..], &[again, shorter]].concat();
        assert_eq!(verify(&all, Some(&key)).unwrap()[0].last, longer);
        let reversed: Vec<PathBuf> = files.iter().rev().cloned().collect();
        let chains = verify(&reversed, Some(&key)).unwrap();
        assert_eq!((chains.len(), chains[0].before.0, chains[0].last), (1, 0, last));
        verify(&files, None).unwrap();
        let other = verify(&files, Some(&ChainKey::new([8; 32]))).unwrap_err().to_string();
        assert!(other.contains("seal"), "{other}");
        let gap = verify(&[files[0].clone(), files[2].clone()], Some(&key)).unwrap_err();
        assert!(gap.to_string().contains("no part continues record 4"), "{gap}");
        let text = fs::read_to_string(&files[0]).unwrap();
        let (whole, _) = text.trim_end().rsplit_once('\n').unwrap();
        fs::write(&files[0], whole).unwrap();
        let half = verify(&files, Some(&key)).unwrap_err().to_string();
        assert!(half.contains("is incomplete"), "{half}");
    }
}
