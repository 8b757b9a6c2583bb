//! `export` and `import`: everything a store keeps, a line of JSON a record. An export reads a data
//! directory or a database while servers go on writing to it, or while none runs; an import fills
//! an empty one that no server has open. Signing keys and secrets are in an export as they are at
//! rest: sealed, or as digests; without the master key it opens nothing. An export ends in a MAC
//! under the master key, and an import checks everything before it writes anything.

mod archive;
mod file;
#[cfg(any(test, fuzzing))]
pub(super) mod fuzzing;
pub(super) mod stores;

use std::{
    collections::BTreeMap,
    env,
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, IsTerminal, Seek, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process,
    sync::Arc,
    time::Duration,
};

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use uuid::Uuid;

pub(super) use self::archive::VerifyArchive;
use self::{
    file::{Lines, Source},
    stores::ImportStore,
};
use super::{args, error::Failure, output::Output, render, settings::Settings};
use crate::{
    admin::restore_policy::{RestoreFilter, VerifiedExport},
    config::{Config, check},
    crypto::{
        chain::ChainKey,
        master::{self, MasterKeyError},
        seal::Sealer,
    },
    model::keyset::KeyPolicy,
    standing::SLACK,
    store::{
        StoreError,
        transfer::{ExportRecord, ExportSource, ImportTarget, Verification},
    },
};

/// Records written to the store together.
const BATCH: usize = 500;

/// `jeton export`
#[derive(Args, Debug)]
pub(super) struct Export {
    /// New file to write [default: stdout, after a temporary copy in $TMPDIR]
    file: Option<PathBuf>,
    /// Export without the master key. The file is not protected against changes, and an import
    /// requires --accept-unsigned
    #[arg(long)]
    unsigned: bool,
    #[command(flatten)]
    settings: Settings,
}

/// `jeton import`
#[derive(Args, Debug)]
pub(super) struct Import {
    /// Export file, - for stdin
    file: PathBuf,
    /// Keep all tokens of the export valid, including those revoked since it was made. Without it
    /// all tokens are revoked: the signing keys are replaced and every refresh family is revoked
    #[arg(long)]
    accept_rollback: bool,
    /// Import an export made with --unsigned. A process with write access to the file may have
    /// added refresh families, removed revocations and changed the audit trail
    #[arg(long)]
    accept_unsigned: bool,
    #[command(flatten)]
    settings: Settings,
}

impl Export {
    pub(super) async fn run(
        &self,
        output: Output,
        environment: &BTreeMap<String, String>,
    ) -> Result<(), Failure> {
        let (config, _) = Config::load(&self.settings.sources(environment))?;
        config.store.supported()?;
        let sealer = match self.unsigned {
            true => None,
            false => {
                let why = "required to sign the export; --unsigned exports without a signature";
                Some(sealer(&config, why)?)
            }
        };
        let keys = sealer.map(|sealer| TransferKeys { chain: chain_key(&sealer), sealer });
        let source = stores::source(&config, keys.as_ref().map(|keys| keys.chain.clone())).await?;
        let store = source.as_ref();
        let progress = progress(output, None);
        let Some(file) = &self.file else {
            let name = env::temp_dir();
            let spool = BufWriter::new(spool(&name).map_err(Failure::writing(&name))?);
            let (records, spool) = dump(store, keys.as_ref(), spool, &name, &progress).await?;
            progress.finish_and_clear();
            // The view of the store ends before the first byte: a reader of stdout that stalls would
            // make the WAL of a running server grow.
            drop(source);
            let mut spool =
                spool.into_inner().map_err(|error| Failure::writing(&name)(error.into_error()))?;
            spool.rewind().map_err(Failure::reading(&name))?;
            io::copy(&mut spool, &mut io::stdout().lock())
                .map_err(Failure::io("cannot write to stdout"))?;
            output.talk(&format!("exported {}", render::count(records, "record")));
            return Ok(());
        };
        if file.exists() {
            return Err(Failure::Other(format!("{} already exists", file.display())));
        }
        // Under another name until it is whole and on disk.
        let draft = file.with_added_extension(format!("{}.part", process::id()));
        let made = write(store, keys.as_ref(), &draft, &progress).await;
        progress.finish_and_clear();
        let records = made.and_then(|records| {
            fs::hard_link(&draft, file).map(|()| records).map_err(Failure::writing(file))
        });
        let _ = fs::remove_file(&draft);
        report(output, "exported", file, records?, &[])
    }
}

/// Creates a file without a name for an export on its way to stdout.
fn spool(dir: &Path) -> io::Result<File> {
    let path = dir.join(format!("jeton-export-{}", Uuid::new_v4()));
    let file =
        OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

/// The master key and what is derived from it for a transfer.
struct TransferKeys {
    sealer: Sealer,
    chain: ChainKey,
}

async fn write(
    store: &dyn ExportSource,
    keys: Option<&TransferKeys>,
    draft: &Path,
    progress: &ProgressBar,
) -> Result<u64, Failure> {
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(draft)
        .map_err(Failure::writing(draft))?;
    let (records, writer) = dump(store, keys, BufWriter::new(file), draft, progress).await?;
    writer.get_ref().sync_all().map_err(Failure::writing(draft))?;
    Ok(records)
}

/// Writes every record, a line each, and the trailer; how many records, and what was written to. A
/// store whose export no import would take is not exported.
async fn dump<W: Write>(
    store: &dyn ExportSource,
    keys: Option<&TransferKeys>,
    to: W,
    name: &Path,
    progress: &ProgressBar,
) -> Result<(u64, W), Failure> {
    let mut lines = Lines::new(to, keys.map(|keys| &keys.sealer));
    let mut verification = keys.map_or_else(Verification::without_key, |keys| {
        Verification::new(&keys.sealer, &keys.chain)
    });
    let (mut last, mut records) = (None, 0);
    loop {
        let items = store
            .export_page(last.as_ref(), BATCH)
            .await
            .map_err(|error| failed("cannot read the store", &error))?;
        for item in &items {
            verification
                .take(item)
                .map_err(|problem| Failure::Other(format!("cannot export the store: {problem}")))?;
            lines.item(item).map_err(Failure::writing(name))?;
        }
        records += items.len() as u64;
        progress.set_position(records);
        last = items.into_iter().next_back();
        match &last {
            Some(ExportRecord::End { .. }) => break,
            Some(_) => {}
            None => return Err(Failure::Other("the store returned no end record".to_owned())),
        }
    }
    Ok((records, lines.finish().map_err(Failure::writing(name))?))
}

impl Import {
    pub(super) async fn run(
        &self,
        output: Output,
        environment: &BTreeMap<String, String>,
    ) -> Result<(), Failure> {
        let (config, origins) = Config::load(&self.settings.sources(environment))?;
        check(&config, true).map_err(|error| origins.blame(error))?;
        let sealer = Arc::new(sealer(&config, "an import requires the master key of the export")?);
        let chain = chain_key(&sealer);
        let mut source = Source::open(&self.file)?;
        // Before the store is opened: what does not check leaves no trace.
        let (checked, forged) = source.check(&sealer, &chain)?;
        if !checked.signed && !self.accept_unsigned {
            return Err(Failure::Other(
                "the export is unsigned and may have been altered: export again with the master \
                 key, or import it with --accept-unsigned"
                    .to_owned(),
            ));
        }
        let target = ImportStore::open(&config, chain.clone()).await?;
        let end_all = !self.accept_rollback;
        let (policy, algorithm) = (policy(&config), config.keys.algorithm);
        let filter = RestoreFilter::new(
            policy,
            algorithm,
            &config.node,
            sealer.clone(),
            chain,
            checked,
            end_all,
        );
        let mut begun = false;
        let loaded =
            load(&mut source, &sealer, checked, target.load(), filter, output, &mut begun).await;
        target.close().await?;
        // What was refused before anything was written may be a store that others serve from.
        let remains = |_: &Failure| {
            if begun {
                output.talk(&target.remains(&config))
            }
        };
        let (records, replaced_keys) = loaded.inspect_err(remains)?;
        let mut advice =
            vec!["client secrets retired and clients disabled since the export are active again"];
        if self.accept_rollback {
            advice.push("tokens revoked since the export are valid again");
        } else if replaced_keys {
            advice.push("all tokens are revoked; clients must request new ones");
        }
        if !checked.signed {
            advice.push("the export is unsigned and may have been altered");
        }
        // They come along as they are: the service refuses them there too, and a backup with one is
        // a backup all the same.
        let forged = forged.iter().map(|record| {
            format!(
                "the record of {record} was not written by this service; it is imported and ignored"
            )
        });
        let forged: Vec<String> = forged.collect();
        advice.extend(forged.iter().map(String::as_str));
        report(output, "imported", &self.file, records, &advice)
    }
}

/// Loads every record of an export that was checked; how many there were, and whether there were
/// keys to replace. The store does not open before the last record, which is taken in only if the
/// file is still the one that was checked.
async fn load(
    source: &mut Source,
    sealer: &Sealer,
    checked: VerifiedExport,
    store: &dyn ImportTarget,
    mut filter: RestoreFilter,
    output: Output,
    begun: &mut bool,
) -> Result<(u64, bool), Failure> {
    let progress = progress(output, source.length());
    let mut pass = source.pass(sealer)?;
    let (mut batch, mut records) = (Vec::with_capacity(BATCH), 0_u64);
    while let Some(item) = pass.read()? {
        // Judged before what waits is taken in: the last record opens the store, and nothing may
        // follow it.
        let items = filter.restore(item, args::now()).map_err(|problem| pass.refuse(&problem))?;
        // The first by itself: a store that is not empty refuses it.
        if batch.len() >= BATCH || !(*begun || batch.is_empty()) {
            take_in(store, std::mem::take(&mut batch), pass.number).await?;
            *begun = true;
            progress.set_position(pass.bytes);
        }
        records += 1;
        batch.extend(items);
    }
    let number = pass.number;
    if pass.finish()?.0 != checked.sha256 {
        return Err(Failure::Other("the export changed during the import".to_owned()));
    }
    take_in(store, batch, number).await?;
    progress.finish_and_clear();
    Ok((records, filter.has_replaced_keys()))
}

/// Reads the configured master key; `why` it is needed is part of an error.
fn sealer(config: &Config, why: &str) -> Result<Sealer, Failure> {
    let refused = |error: MasterKeyError| {
        let problem = if let MasterKeyError::Missing(file) = error {
            // Its own advice, a new key, does not help here.
            format!("no master key at {}", file.display())
        } else {
            error.to_string()
        };
        Failure::setting("master_key_file", format!("{problem}: {why}"))
    };
    let path = config.master_key_path();
    let key = if path == config.data_dir.join("master.key") {
        master::load_or_make_beside_data(&path, false)
    } else {
        master::load_or_make(&path, false)
    };
    key.map(Sealer::new).map_err(refused)
}

/// Opens the audit chains of the configured store to read them, with their key.
pub(super) async fn trail(config: &Config) -> Result<(ChainKey, stores::StoredTrail), Failure> {
    let key = chain_key(&sealer(config, "required to verify the seals of audit chains")?);
    let trail = stores::trail(config, key.clone()).await?;
    Ok((key, trail))
}

fn chain_key(sealer: &Sealer) -> ChainKey {
    ChainKey::new(sealer.derive("audit head"))
}

async fn take_in(
    store: &dyn ImportTarget,
    items: Vec<ExportRecord>,
    line: u64,
) -> Result<(), Failure> {
    if items.is_empty() {
        return Ok(());
    }
    store
        .load(items)
        .await
        .map_err(|error| failed(&format!("refused at or before line {line}"), &error))
}

fn policy(config: &Config) -> KeyPolicy {
    KeyPolicy {
        rotate_every: Duration::from_secs(config.keys.rotate_every_seconds),
        publish_ahead: Duration::from_secs(config.keys.publish_ahead_seconds),
        verify_after: config.token.access_lifetime_max() + SLACK,
    }
}

fn failed(what: &str, error: &StoreError) -> Failure {
    // The import itself reports its problem as a corrupt record, which says nothing to the user.
    let problem = match error {
        StoreError::Corrupt(problem) => problem.to_string(),
        StoreError::Unavailable(_) | StoreError::Full(_) => stores::with_source(error),
    };
    let problem = problem.strip_prefix("import: ").unwrap_or(&problem);
    Failure::Other(format!("{what}: {problem}"))
}

fn report(
    output: Output,
    verb: &str,
    file: &Path,
    records: u64,
    advice: &[&str],
) -> Result<(), Failure> {
    if output.json {
        return output.document(&json!({ "records": records, "file": file, "notes": advice }));
    }
    output.line(&format!("{verb} {}", render::count(records, "record")))?;
    advice.iter().for_each(|note| output.talk(&format!("note: {note}")));
    Ok(())
}

/// Creates a progress bar, if stderr is a terminal: of bytes if their number is known, else of
/// records.
fn progress(output: Output, bytes: Option<u64>) -> ProgressBar {
    if output.json || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match bytes {
        Some(bytes) => (ProgressBar::new(bytes), "{bar:40} {bytes}/{total_bytes} {eta}"),
        None => (ProgressBar::new_spinner(), "{spinner} {human_pos} records {elapsed}"),
    };
    bar.set_draw_target(ProgressDrawTarget::stderr());
    // The templates are constants; one that does not parse is replaced by the default.
    bar.set_style(
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    bar
}
