//! Work that runs to its end although its caller may leave: the later steps of a change that must
//! not stay half made.

use std::{future::Future, time::Duration};

use tokio::{runtime::Handle, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

/// Counts the work that outlives its callers, so that a server which stops waits for it.
#[derive(Debug)]
pub struct Detached {
    runtime: Handle,
    running: TaskTracker,
    stopping: CancellationToken,
}

impl Detached {
    /// Runs work on a runtime that outlives those of its callers.
    pub fn on(runtime: Handle) -> Self {
        Self { runtime, running: TaskTracker::new(), stopping: CancellationToken::new() }
    }

    /// Runs work to its end. A deadline or a hang-up of the caller drops the answer alone.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> T {
        let task = self.running.spawn_on(work.in_current_span(), &self.runtime);
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Semaphore;

    use super::*;

    /// Calls are answered on runtimes that end before the server does: what they began goes on.
    #[tokio::test]
    async fn work_outlives_the_runtime_of_its_caller() {
        let detached = Arc::new(Detached::on(Handle::current()));
        let gates: [Arc<Semaphore>; 3] = std::array::from_fn(|_| Arc::new(Semaphore::new(0)));
        let [begun, open, done] = gates.clone();
        let work = async move {
            begun.add_permits(1);
            open.acquire().await.unwrap().forget();
            done.add_permits(1);
        };
        let (caller, begun) = (detached.clone(), gates[0].clone());
        let left = tokio::task::spawn_blocking(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                tokio::select! {
                    () = caller.run(work) => panic!("it waits for the test"),
                    permit = begun.acquire() => permit.unwrap().forget(),
                }
            });
        });
        left.await.unwrap();
        gates[1].add_permits(1);
        assert!(detached.finish(Duration::from_secs(60)).await);
        assert_eq!(gates[2].available_permits(), 1);
    }
}
