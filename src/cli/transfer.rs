//! `export` and `import`: everything a store keeps, a line of JSON a record. An export reads a data directory or a
//! database while servers go on writing to it, or while none runs; an import fills an empty one that no server has open. Signing keys and secrets are
//! in an export as they are at rest: sealed, or as digests; without the master key it opens nothing.

pub(super) mod ends;
mod rollback;

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, BufWriter, IsTerminal, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process,
    time::Duration,
};

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use self::{ends::Target, rollback::Restoring};
use super::{failure::Failure, output::Output, serve::Settings, values};
use crate::{
    config::{Config, check},
    crypto::{chain::ChainKey, master, records::RecordKey, seal::Sealer},
    model::{ClientId, keyset::KeyPolicy},
    standing::SLACK,
    store::{
        StoreError,
        transfer::{Dump, Item, Load},
    },
};

/// Records written to the store together.
const BATCH: usize = 500;

/// Bytes of one line: a client with all it may have is far below.
const LONGEST_LINE: u64 = 4 * 1024 * 1024;

/// `jeton export`
#[derive(Args, Debug)]
pub(super) struct Export {
    /// Write to this file, which must not be there yet; to stdout without
    file: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

/// `jeton import`
#[derive(Args, Debug)]
pub(super) struct Import {
    /// Read this file, - for stdin
    file: PathBuf,
    /// Let every token of the export stand again, also those that were revoked since it was made. Without, all tokens end: the
    /// signing keys are replaced and every refresh family is ended
    #[arg(long)]
    accept_rollback: bool,
    #[command(flatten)]
    settings: Settings,
}

impl Export {
    pub(super) async fn run(&self, output: Output, environment: &BTreeMap<String, String>) -> Result<(), Failure> {
        let (config, _) = Config::load(&self.settings.sources(environment))?;
        let store = ends::source(&config).await?;
        let store = store.as_ref();
        let progress = progress(output, None);
        let Some(file) = &self.file else {
            let records = dump(store, &mut BufWriter::new(io::stdout().lock()), Path::new("stdout"), &progress).await?;
            progress.finish_and_clear();
            output.talk(&format!("exported {records} records"));
            return Ok(());
        };
        if file.exists() {
            return Err(Failure::Other(format!("{} is there already", file.display())));
        }
        // Under another name until it is whole and on disk.
        let draft = file.with_added_extension(format!("{}.part", process::id()));
        let made = self.write(store, &draft, &progress).await;
        progress.finish_and_clear();
        let records = made.and_then(|records| fs::hard_link(&draft, file).map(|()| records).map_err(Failure::writing(file)));
        let _ = fs::remove_file(&draft);
        report(output, "exported", file, records?, &[])
    }

    async fn write(&self, store: &dyn Dump, draft: &Path, progress: &ProgressBar) -> Result<u64, Failure> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(draft).map_err(Failure::writing(draft))?;
        let mut writer = BufWriter::new(file);
        let records = dump(store, &mut writer, draft, progress).await?;
        writer.get_ref().sync_all().map_err(Failure::writing(draft))?;
        Ok(records)
    }
}

/// Writes every record, a line each; how many.
async fn dump(store: &dyn Dump, to: &mut impl Write, name: &Path, progress: &ProgressBar) -> Result<u64, Failure> {
    let (mut last, mut records) = (None, 0);
    loop {
        let items = store.dump(last.as_ref(), BATCH).await.map_err(|error| failed("cannot read the store", &error))?;
        for item in &items {
            let line = serde_json::to_string(item).map_err(|error| Failure::Other(error.to_string()))?;
            writeln!(to, "{line}").map_err(Failure::writing(name))?;
        }
        records += items.len() as u64;
        progress.set_position(records);
        last = items.into_iter().next_back();
        match &last {
            Some(Item::End { .. }) => break,
            Some(_) => {}
            None => return Err(Failure::Other("the store ended before its end".to_owned())),
        }
    }
    to.flush().map_err(Failure::writing(name))?;
    Ok(records)
}

impl Import {
    pub(super) async fn run(&self, output: Output, environment: &BTreeMap<String, String>) -> Result<(), Failure> {
        let (config, origins) = Config::load(&self.settings.sources(environment))?;
        check(&config, true).map_err(|error| origins.blame(error))?;
        let path = config.master_key_path();
        let key = master::load_or_make(&path, false).map_err(|error| {
            Failure::setting("master_key_file", format!("{error}: an import needs the key that the export was made under"))
        })?;
        let sealer = Sealer::new(key);
        let records = RecordKey::new(sealer.derive("client record"));
        let chain = ChainKey::new(sealer.derive("audit head"));
        let target = Target::open(&config, chain).await?;
        let restoring = Restoring::new(policy(&config), config.keys.algorithm, &config.node, sealer, !self.accept_rollback);
        let mut begun = false;
        let loaded = self.load(target.load(), restoring, &records, output, &mut begun).await;
        target.close().await?;
        // What was refused before anything was written may be a store that others serve from.
        let remains = |_: &Failure| {
            if begun {
                output.talk(&target.remains(&config))
            }
        };
        let (records, standing_again, forged) = loaded.inspect_err(remains)?;
        let mut advice = vec!["client secrets that were retired, and clients that were disabled, since the export stand again"];
        if self.accept_rollback {
            advice.push("tokens that were revoked since the export stand again");
        } else if standing_again {
            advice.push("all tokens have ended: clients ask for new ones");
        }
        // They come along as they are: the service refuses them there too, and a backup with one is a backup all the same.
        let forged =
            forged.iter().map(|id| format!("the record of client {id} was not written by this service and is refused"));
        let forged: Vec<String> = forged.collect();
        advice.extend(forged.iter().map(String::as_str));
        report(output, "imported", &self.file, records, &advice)
    }

    /// Loads every line; how many records there were, whether there were keys to replace, and which clients are not authentic.
    async fn load(
        &self,
        store: &dyn Load,
        mut restoring: Restoring,
        records: &RecordKey,
        output: Output,
        begun: &mut bool,
    ) -> Result<(u64, bool, Vec<ClientId>), Failure> {
        let mut forged = Vec::new();
        let mut reader = self.reader()?;
        let progress = progress(output, self.length());
        let (mut batch, mut number, mut bytes) = (Vec::with_capacity(BATCH), 0_u64, 0_u64);
        while let Some(line) = next_line(&mut reader, number + 1)? {
            number += 1;
            bytes += line.len() as u64 + 1;
            let item = serde_json::from_str(&line).map_err(|error| not_a_record(number, &error))?;
            if let Item::Client(client) = &item
                && !records.is_authentic(client)
            {
                forged.push(client.id.clone());
            }
            let restored = restoring.restore(item, values::now());
            batch.extend(restored.map_err(|problem| Failure::Other(format!("line {number}: {problem}")))?);
            // The first by itself: a store that is not empty refuses it.
            if batch.len() >= BATCH || !*begun {
                take_in(store, std::mem::take(&mut batch), number).await?;
                *begun = true;
                progress.set_position(if progress.length().is_some() { bytes } else { number });
            }
        }
        if !restoring.is_whole() {
            return Err(Failure::Other(format!("the export is cut off after line {number}")));
        }
        take_in(store, batch, number).await?;
        progress.finish_and_clear();
        Ok((number, restoring.has_replaced_keys(), forged))
    }

    fn reader(&self) -> Result<Box<dyn BufRead>, Failure> {
        if self.file == Path::new("-") {
            return Ok(Box::new(BufReader::new(io::stdin())));
        }
        Ok(Box::new(BufReader::new(File::open(&self.file).map_err(Failure::reading(&self.file))?)))
    }

    fn length(&self) -> Option<u64> {
        fs::metadata(&self.file).ok().map(|metadata| metadata.len())
    }
}

async fn take_in(store: &dyn Load, items: Vec<Item>, line: u64) -> Result<(), Failure> {
    if items.is_empty() {
        return Ok(());
    }
    store.load(items).await.map_err(|error| failed(&format!("refused at or before line {line}"), &error))
}

/// The next line without its break; `None` at the end.
fn next_line(reader: &mut dyn BufRead, number: u64) -> Result<Option<String>, Failure> {
    let mut line = Vec::new();
    let read = reader.take(LONGEST_LINE).read_until(b'\n', &mut line);
    if read.map_err(Failure::io(format!("cannot read line {number}")))? == 0 {
        return Ok(None);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    } else if line.len() as u64 == LONGEST_LINE {
        return Err(Failure::Other(format!("line {number} is longer than {LONGEST_LINE} bytes")));
    }
    String::from_utf8(line).map(Some).map_err(|_| Failure::Other(format!("line {number} is no UTF-8")))
}

/// The place and kind of what is wrong, not the text of it.
fn not_a_record(number: u64, error: &serde_json::Error) -> Failure {
    Failure::Other(format!("line {number} is no record of an export: {:?} at column {}", error.classify(), error.column()))
}

fn policy(config: &Config) -> KeyPolicy {
    KeyPolicy {
        rotate_every: Duration::from_secs(config.keys.rotate_every_seconds),
        publish_ahead: Duration::from_secs(config.keys.publish_ahead_seconds),
        verify_after: config.token.access_lifetime_max() + SLACK,
    }
}

fn failed(what: &str, error: &StoreError) -> Failure {
    let source = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
    Failure::Other(format!("{what}: {error}{source}"))
}

fn report(output: Output, verb: &str, file: &Path, records: u64, advice: &[&str]) -> Result<(), Failure> {
    if output.json {
        return output.document(&json!({ "records": records, "file": file, "notes": advice }));
    }
    output.line(&format!("{verb} {records} records"))?;
    advice.iter().for_each(|note| output.talk(&format!("note: {note}")));
    Ok(())
}

/// On stderr, where that is a terminal and people look; of bytes where their number is known, else of records.
fn progress(output: Output, bytes: Option<u64>) -> ProgressBar {
    if output.json || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match bytes {
        Some(bytes) => (ProgressBar::new(bytes), "{bar:40} {bytes}/{total_bytes} {eta}"),
        None => (ProgressBar::new_spinner(), "{spinner} {human_pos} records {elapsed}"),
    };
    bar.set_draw_target(ProgressDrawTarget::stderr());
    // The templates are constants; one that does not parse would only look plainer.
    bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}
