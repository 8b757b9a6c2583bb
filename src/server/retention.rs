//! Cuts of the audit trail by age or size.
//!
//! | step | durable | after a crash behind it |
//! |--|--|--|
//! | archive, under a name of its own | no | written again |
//! | archive, renamed | yes | written again; a longer part has another name |
//! | mark and event ([`cut`](crate::store::RetentionStore::cut)) | yes | the rows below the mark are removed |
//! | removal, in small steps | yes | the rest is removed |

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use uuid::Uuid;

use crate::{
    config::Keep,
    crypto::chain::{ChainKey, ChainPlace, START},
    model::{Action, Stamp, Timestamp, digits::hex},
    store::{
        Store, StoreError, Surplus, Write,
        embedded::{OpenError, check_directory},
        transfer::ArchiveWriter,
    },
};

/// Most records in one archive.
const PART_MAX: u64 = 100_000;

/// Records that are read at once.
const PAGE: usize = 1_000;

/// Part of `audit.keep` that a gap in the trail counts at most, as a divisor. In a gap no node ran, or
/// the clock was wrong on one side of it: a clock that is far ahead must not make young records due.
const GAP_PART: u32 = 10;

/// Records that are removed in one write: others wait for it.
const REMOVED_AT_ONCE: usize = 200;

/// Error of a pass.
#[derive(Debug, thiserror::Error)]
pub enum RetentionError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An archive cannot be written.
    #[error("cannot write the archive {}", path.display())]
    Archive {
        /// Path of the file or directory.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The directory of the archive is open to other users.
    #[error("audit.archive: {0}")]
    Exposed(OpenError),
    /// A chain is not as it was written: it is not cut.
    #[error("audit chain {chain} is not cut: {problem}; run `jeton audit verify`")]
    Chain {
        /// Name of the chain.
        chain: Arc<str>,
        /// Problem.
        problem: String,
    },
}

/// Bound of the audit trail, and the place of its archive.
#[derive(Clone, Debug)]
pub struct Retention {
    /// Part that is kept.
    pub keep: Keep,
    /// Directory of the archive; `None` if records are cut without one.
    pub archive: Option<PathBuf>,
}

impl Retention {
    /// Archives and cuts what is due at `now`, in all chains; returns the number of records. A
    /// chain that cannot be cut does not keep the others from it.
    ///
    /// # Errors
    ///
    /// The first one; the next pass tries again.
    pub async fn pass(
        &self,
        store: &dyn Store,
        key: &ChainKey,
        now: Timestamp,
    ) -> Result<u64, RetentionError> {
        if self.keep == Keep::Forever || !store.hold_retention().await? {
            return Ok(0);
        }
        // Left by a process that ended.
        remove_all(store, now).await?;
        let due = match self.keep {
            Keep::Forever => None,
            Keep::Age(age) => {
                let until = aged(store, now, age).await?;
                until.map(|until| Surplus { until, records: u64::MAX })
            }
            Keep::Size(bytes) => store.surplus(bytes).await?,
        };
        let (mut records, mut first_error) = (0_u64, None);
        if let Some(due) = due {
            for chain in store.chains().await? {
                let left = due.records.saturating_sub(records);
                let due = Surplus { records: left, ..due };
                match self.chain(store, key, &chain, due, now).await {
                    Ok(cut) => records = records.saturating_add(cut),
                    Err(error) => first_error = first_error.or(Some(error)),
                }
            }
        }
        while store.shrink().await? {}
        first_error.map_or(Ok(records), Err)
    }

    /// Cuts one chain, part by part.
    async fn chain(
        &self,
        store: &dyn Store,
        key: &ChainKey,
        chain: &Arc<str>,
        due: Surplus,
        now: Timestamp,
    ) -> Result<u64, RetentionError> {
        let wrong = |problem: String| RetentionError::Chain { chain: chain.clone(), problem };
        let mut records = 0_u64;
        loop {
            let limit = PART_MAX.min(due.records.saturating_sub(records));
            if limit == 0 {
                return Ok(records);
            }
            let mark = store.cut_mark(chain).await?;
            if mark.is_some_and(|mark| !key.check_cut(chain, &mark)) {
                return Err(wrong("the mark of the last cut is invalid".to_owned()));
            }
            let before = mark.map_or((0, START), |mark| (mark.place.sequence, mark.place.hash));
            let place = store.sealed_place(chain, before.0, due.until, limit).await?;
            // Another node may have begun meanwhile.
            let Some(place) = place.filter(|place| place.sequence > before.0) else {
                return Ok(records);
            };
            if !store.hold_retention().await? {
                return Ok(records);
            }
            let file = self.archive(store, key, chain, before, &place).await?;
            let count = place.sequence.saturating_sub(before.0);
            let target = format!("{chain}:{}:{}", place.sequence, hex(&place.hash));
            let archived = file.map_or_else(
                || "without an archive".to_owned(),
                |file| format!("archived as {file}"),
            );
            let event = Stamp::internal(now).done(Action::TrailCut, target).because(format!(
                "{count} records from {}, {archived}",
                before.0.saturating_add(1)
            ));
            let mark = key.mark_cut(chain, place);
            if store.cut(chain, before.0, &mark, event).await? == Write::Stale {
                return Ok(records);
            }
            tracing::info!(%chain, records = count, last = place.sequence, "cut the audit trail");
            records = records.saturating_add(count);
            remove_all(store, now).await?;
        }
    }

    /// Verifies a part of a chain, and writes it; returns the name of the file.
    async fn archive(
        &self,
        store: &dyn Store,
        key: &ChainKey,
        chain: &Arc<str>,
        before: (u64, [u8; 32]),
        place: &ChainPlace,
    ) -> Result<Option<String>, RetentionError> {
        let wrong = |problem: String| RetentionError::Chain { chain: chain.clone(), problem };
        let (mut writer, first) = ArchiveWriter::new(chain, before).map_err(wrong)?;
        let name = file_name(chain, before.0.saturating_add(1), place.sequence);
        let mut file = match self.archive.clone() {
            Some(directory) => {
                // It may have gone, or have another mode, since the start. It is not created again:
                // its mount may be late.
                check(directory.clone(), false).await?;
                Some(Draft::begin(directory, name.clone()).await?)
            }
            None => None,
        };
        let mut text = first;
        while writer.sequence() < place.sequence {
            let left = usize::try_from(place.sequence.saturating_sub(writer.sequence()));
            let limit = left.unwrap_or(PAGE).min(PAGE);
            let page = store.chain(chain, writer.sequence(), limit).await?;
            if page.is_empty() {
                return Err(wrong(format!("audit record {} is missing", writer.sequence() + 1)));
            }
            for record in &page {
                text += &writer.record(record).map_err(wrong)?;
            }
            if let Some(draft) = file {
                file = Some(draft.write(std::mem::take(&mut text)).await?);
            }
            text.clear();
        }
        let last = writer.finish(key, place).map_err(wrong)?;
        let Some(draft) = file else { return Ok(None) };
        draft.write(last).await?.finish().await?;
        Ok(Some(name))
    }
}

/// Returns the time of the newest records that are older than `age`; `None` if the trail is not as
/// long. The age of a record is the time that the trail covers since: a gap longer than a part of
/// `age` counts as that part, see [`GAP_PART`].
async fn aged(
    store: &dyn Store,
    now: Timestamp,
    age: Duration,
) -> Result<Option<Timestamp>, StoreError> {
    let (gap, mut at, mut left) = (age / GAP_PART, now, age);
    loop {
        let Some(before) = store.recorded_before(at, at - gap).await? else { return Ok(None) };
        let covered = at.since(before).min(gap);
        if left <= covered {
            return Ok(Some(at - left));
        }
        (at, left) = (before, left.saturating_sub(covered));
    }
}

async fn remove_all(store: &dyn Store, now: Timestamp) -> Result<(), StoreError> {
    while store.remove_cut(now, REMOVED_AT_ONCE).await? > 0 {}
    Ok(())
}

/// Returns the name of an archive: chain, first and last record.
fn file_name(chain: &str, first: u64, last: u64) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let chain: String = chain
        .bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02x}") })
        .collect();
    format!("audit.{chain}.{first:012}-{last:012}.jsonl")
}

/// Archive that is not complete yet, under a name that no other node and no earlier pass has.
/// Removed when it is dropped before it is complete.
struct Draft {
    path: PathBuf,
    complete: PathBuf,
    file: File,
}

impl Draft {
    async fn begin(directory: PathBuf, name: String) -> Result<Self, RetentionError> {
        let complete = directory.join(&name);
        let path = directory.join(format!("{name}.{}.new", Uuid::now_v7()));
        let open = {
            let (path, complete) = (path.clone(), complete.clone());
            move || create(&path).map(|file| Self { path, complete, file })
        };
        run(path, open).await
    }

    async fn write(mut self, text: String) -> Result<Self, RetentionError> {
        let path = self.complete.clone();
        run(path, move || self.file.write_all(text.as_bytes()).map(|()| self)).await
    }

    /// Makes the archive durable under its name. A file of that name must be the same: another node
    /// or a pass that was interrupted wrote it.
    async fn finish(self) -> Result<(), RetentionError> {
        let path = self.complete.clone();
        let finish = move || {
            self.file.sync_all()?;
            match File::open(&self.complete) {
                Ok(existing) if !is_same(&existing, &File::open(&self.path)?)? => {
                    return Err(io::Error::new(
                        io::ErrorKind::AlreadyExists,
                        "a file of that name has other records: move it away",
                    ));
                }
                // Replaced by the same bytes, which are known to be on the disk.
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            fs::rename(&self.path, &self.complete)?;
            let directory = self.complete.parent().unwrap_or_else(|| Path::new("/"));
            File::open(directory)?.sync_all()
        };
        run(path, finish).await
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // It is gone if it was completed.
        let _ = fs::remove_file(&self.path);
    }
}

/// Creates a file for its owner alone; never through a link.
fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Returns true if two files have the same bytes.
fn is_same(one: &File, other: &File) -> io::Result<bool> {
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let (mut one, mut other) = (BufReader::new(one), BufReader::new(other));
    loop {
        let (left, right) = (one.fill_buf()?, other.fill_buf()?);
        let length = left.len().min(right.len());
        if left.get(..length) != right.get(..length) {
            return Ok(false);
        }
        if length == 0 {
            return Ok(left.len() == right.len());
        }
        one.consume(length);
        other.consume(length);
    }
}

/// Runs work on a file system, which may hang.
async fn run<T: Send + 'static>(
    path: PathBuf,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, RetentionError> {
    let done = tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(error.into()));
    done.map_err(|source| RetentionError::Archive { path, source })
}

/// Creates the directory of the archive for its owner alone, if it is missing, and checks that no
/// other user can write to it and that files can be created in it.
///
/// # Errors
///
/// [`RetentionError::Exposed`], or the directory cannot be created or written.
pub async fn prepare(directory: PathBuf) -> Result<(), RetentionError> {
    check(directory, true).await
}

async fn check(directory: PathBuf, is_created: bool) -> Result<(), RetentionError> {
    let checking = directory.clone();
    let checked = tokio::task::spawn_blocking(move || check_now(&checking, is_created)).await;
    checked.unwrap_or_else(|error| {
        Err(RetentionError::Archive { path: directory, source: error.into() })
    })
}

fn check_now(directory: &Path, is_created: bool) -> Result<(), RetentionError> {
    use std::os::unix::fs::DirBuilderExt as _;
    let failed = |source| RetentionError::Archive { path: directory.to_owned(), source };
    if is_created {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
    }
    check_directory(directory).map_err(|error| {
        if let OpenError::Io { source, .. } = error {
            return failed(source);
        }
        RetentionError::Exposed(error)
    })?;
    let probe = directory.join(format!("audit.{}.new", Uuid::now_v7()));
    create(&probe).and_then(|_| fs::remove_file(&probe)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An archive that is there already is kept: the same is accepted, anything else refused.
    #[tokio::test]
    async fn an_archive_is_never_replaced_by_another() {
        let directory = tempfile::tempdir().unwrap();
        let archive = async |text: &str| {
            let draft = Draft::begin(directory.path().to_owned(), "audit.a".to_owned()).await?;
            draft.write(text.to_owned()).await?.finish().await
        };
        archive("one").await.unwrap();
        archive("one").await.unwrap();
        for other in ["two", "longer", ""] {
            assert!(archive(other).await.is_err(), "{other}");
        }
        let names: Vec<_> = fs::read_dir(directory.path())
            .unwrap()
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(names, ["audit.a"], "no draft is left");
        assert_eq!(fs::read_to_string(directory.path().join("audit.a")).unwrap(), "one");
    }

    /// DECISIONS 15: the directory and its files are their owner's alone.
    #[tokio::test]
    async fn an_archive_is_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("a/archive");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        prepare(directory.clone()).await.unwrap();
        assert_eq!(mode(&directory), 0o700);
        let draft = Draft::begin(directory.clone(), "audit.a".to_owned()).await.unwrap();
        draft.finish().await.unwrap();
        assert_eq!(mode(&directory.join("audit.a")), 0o600);
        for (mode, is_refused) in [(0o755, false), (0o777, true), (0o702, true), (0o700, false)] {
            fs::set_permissions(&directory, fs::Permissions::from_mode(mode)).unwrap();
            let prepared = prepare(directory.clone()).await;
            assert_eq!(prepared.is_err(), is_refused, "{mode:o} {prepared:?}");
            assert_eq!(matches!(prepared, Err(RetentionError::Exposed(_))), is_refused, "{mode:o}");
        }
        let names = fs::read_dir(&directory).unwrap().count();
        assert_eq!(names, 1, "no probe is left");
        let missing = prepare(directory.join("audit.a/below-a-file")).await;
        assert!(matches!(missing, Err(RetentionError::Archive { .. })), "{missing:?}");
    }

    #[test]
    fn a_name_of_a_chain_leads_to_no_other_directory() {
        assert_eq!(file_name("node-1", 1, 5_000), "audit.node-1.000000000001-000000005000.jsonl");
        assert_eq!(file_name("../é", 7, 8), "audit...%2f%c3%a9.000000000007-000000000008.jsonl");
    }
}
