//! Disk space that is reserved for revocations: a full disk must not keep a stolen token alive.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::Instant;

use super::open::open_private;

use crate::store::embedded::engine::error::OpenError;

/// Size of the reserve: enough for some thousand revocations with their records.
const SIZE_BYTES: u64 = 1 << 20;

/// Size of one write that takes space.
const CHUNK_BYTES: usize = 1 << 14;

/// Interval between attempts to take missing space.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// File that takes up disk space and can be released.
pub(crate) struct DiskReserve {
    path: PathBuf,
    size: u64,
    tried_at: Option<Instant>,
}

impl DiskReserve {
    /// Takes the space, or as much of it as there is.
    pub(crate) fn open(dir: &Path) -> Self {
        let path = dir.join("reserve");
        let size = fs::symlink_metadata(&path).map_or(0, |file| file.len());
        let mut reserve = Self { path, size, tried_at: None };
        reserve.top_up();
        reserve
    }

    /// Releases the space; returns false if there was none.
    pub(crate) fn release(&mut self) -> bool {
        tracing::warn!(bytes = self.size, "disk is full, revocations use the reserved space");
        std::mem::take(&mut self.size) > 0 && fs::remove_file(&self.path).is_ok()
    }

    /// Takes missing space, once in an interval, if as much again stays free: space that an
    /// operator has freed is first of all for writes.
    pub(crate) fn restore(&mut self) {
        if self.size < SIZE_BYTES && self.tried_at.is_none_or(|at| at.elapsed() >= RETRY_INTERVAL) {
            let before = self.size;
            self.size = self.grow(2 * SIZE_BYTES);
            let kept = if self.size < 2 * SIZE_BYTES { before } else { SIZE_BYTES };
            self.size = self.shrink(kept);
        }
    }

    /// Takes missing space, or as much of it as there is.
    pub(crate) fn top_up(&mut self) {
        self.size = self.grow(SIZE_BYTES);
    }

    fn grow(&mut self, wanted: u64) -> u64 {
        self.tried_at = Some(Instant::now());
        let Ok(file) = open_private(&self.path) else { return 0 };
        // Not zeroes: some file systems store those without taking space.
        let chunk = [0xa5; CHUNK_BYTES];
        let mut size = self.size;
        while size < wanted && file.write_all_at(&chunk, size).is_ok() {
            size = size.saturating_add(CHUNK_BYTES as u64);
        }
        // Some file systems report a lack of space only now.
        if file.sync_data().is_ok() { size } else { self.size }
    }

    fn shrink(&self, size: u64) -> u64 {
        let cut = open_private(&self.path)
            .and_then(|file| file.set_len(size).map_err(OpenError::io(&self.path)));
        if cut.is_ok() { size } else { self.size }
    }
}
