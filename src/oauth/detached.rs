//! Work that runs to its end although its caller may leave: the later steps of a change that must
//! not stay half made.

use std::{future::Future, time::Duration};

use tokio::time::timeout;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

/// Counts the work that outlives its callers, so that a server which stops waits for it.
#[derive(Debug, Default)]
pub struct Detached {
    running: TaskTracker,
    stopping: CancellationToken,
}

impl Detached {
    /// Runs work to its end. A deadline or a hang-up of the caller drops the answer alone.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> T {
        let task = self.running.spawn(work.in_current_span());
        match task.await.map_err(tokio::task::JoinError::try_into_panic) {
            Ok(done) => done,
            Err(Ok(panic)) => std::panic::resume_unwind(panic),
            // The runtime is going down, and the caller with it.
            Err(Err(_)) => std::future::pending().await,
        }
    }

    /// Waits for this long; false as soon as the server stops, when nothing is worth repeating.
    pub async fn pause(&self, pause: Duration) -> bool {
        timeout(pause, self.stopping.cancelled()).await.is_err()
    }

    /// Ends pauses and waits for the work in progress. Returns false if some is still running after
    /// `limit`.
    pub async fn finish(&self, limit: Duration) -> bool {
        self.stopping.cancel();
        self.running.close();
        timeout(limit, self.running.wait()).await.is_ok()
    }
}
