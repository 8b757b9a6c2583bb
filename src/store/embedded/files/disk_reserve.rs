//! Room on the disk that is kept for ending tokens: a full disk must not keep a stolen token alive.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::Instant;

use super::open::private;

use crate::store::embedded::engine::error::OpenError;

/// Enough for some thousand revocations with their records.
const SIZE: u64 = 1 << 20;

/// How much of it is taken at once.
const CHUNK: usize = 1 << 14;

/// How often room for it is looked for.
const RETRY: Duration = Duration::from_secs(1);

/// A file that takes up room and can be given up.
pub(crate) struct Reserve {
    path: PathBuf,
    size: u64,
    tried_at: Option<Instant>,
}

impl Reserve {
    /// Takes the room, or as much of it as there is.
    pub(crate) fn of(dir: &Path) -> Self {
        let path = dir.join("reserve");
        let size = fs::symlink_metadata(&path).map_or(0, |file| file.len());
        let mut reserve = Self { path, size, tried_at: None };
        reserve.top_up();
        reserve
    }

    /// Gives the room up; false if there was none.
    pub(crate) fn release(&mut self) -> bool {
        tracing::warn!(bytes = self.size, "disk is full, revocations use the reserved space");
        std::mem::take(&mut self.size) > 0 && fs::remove_file(&self.path).is_ok()
    }

    /// Takes what is missing, now and then, if it leaves as much again to others: when an operator
    /// has made room, it is first of all for writing.
    pub(crate) fn restore(&mut self) {
        if self.size < SIZE && self.tried_at.is_none_or(|at| at.elapsed() >= RETRY) {
            let before = self.size;
            self.size = self.grow(2 * SIZE);
            let kept = if self.size < 2 * SIZE { before } else { SIZE };
            self.size = self.shrink(kept);
        }
    }

    /// Takes what is missing, or as much of it as there is.
    pub(crate) fn top_up(&mut self) {
        self.size = self.grow(SIZE);
    }

    fn grow(&mut self, wanted: u64) -> u64 {
        self.tried_at = Some(Instant::now());
        let Ok(file) = private(&self.path) else { return 0 };
        // Not zeroes: some file systems keep those without taking room.
        let chunk = [0xa5; CHUNK];
        let mut size = self.size;
        while size < wanted && file.write_all_at(&chunk, size).is_ok() {
            size = size.saturating_add(CHUNK as u64);
        }
        // A file system may find out only now that there is no room.
        if file.sync_data().is_ok() { size } else { self.size }
    }

    fn shrink(&self, size: u64) -> u64 {
        let cut = private(&self.path)
            .and_then(|file| file.set_len(size).map_err(OpenError::io(&self.path)));
        if cut.is_ok() { size } else { self.size }
    }
}
