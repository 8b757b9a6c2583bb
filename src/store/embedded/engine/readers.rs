//! Reader threads, each with its own connection: a reader sees every acknowledged commit and never
//! waits for the writer.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
};

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

use super::{
    error::{OpenError, SqliteError},
    queue::closed,
    schema,
};
use crate::store::{Result, embedded::Embedded};

/// Queued read.
pub(crate) type Read = Box<dyn FnOnce(&Connection) + Send>;

/// Number of reader threads.
const READER_THREADS: usize = 2;

/// Starts the threads; they end when the queue is closed and empty.
pub(crate) fn start(
    dir: &Path,
    queue: mpsc::Receiver<Read>,
) -> Result<Vec<JoinHandle<()>>, OpenError> {
    let queue = Arc::new(Mutex::new(queue));
    let connections =
        (0..READER_THREADS).map(|_| schema::reader(dir)).collect::<Result<Vec<_>, _>>()?;
    let start = |connection: Connection| {
        let queue = queue.clone();
        let read = move || serve(&connection, &queue);
        std::thread::Builder::new()
            .name("store-reader".into())
            .spawn(read)
            .map_err(OpenError::io(dir))
    };
    connections.into_iter().map(start).collect()
}

fn serve(connection: &Connection, queue: &Mutex<mpsc::Receiver<Read>>) {
    loop {
        // The waiting thread holds the lock of the queue; it is released before the read runs.
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
        match next {
            Some(read) => read(connection),
            None => return,
        }
    }
}

impl Embedded {
    /// Runs `work` on a reader thread.
    pub(in crate::store::embedded) async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, SqliteError> + Send + 'static,
    ) -> Result<T> {
        if self.shared.has_failed() {
            return Err(SqliteError::Failed.into());
        }
        let (reply, answer) = oneshot::channel();
        let read = move |connection: &Connection| {
            if !reply.is_closed() {
                // The receiver may be gone; that is fine.
                let _ = reply.send(work(connection).map_err(Into::into));
            }
        };
        self.readers.send(Box::new(read)).await?;
        answer.await.map_err(|_| closed())?
    }

    /// Runs a read over many rows, one such read at a time, so that short reads always have a
    /// thread. The permit moves into the read: if its caller is dropped, the next one still waits
    /// until these rows are read.
    pub(in crate::store::embedded) async fn scan<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, SqliteError> + Send + 'static,
    ) -> Result<T> {
        let turn = self.scans.clone().acquire_owned().await.map_err(|_| closed())?;
        self.read(move |connection| {
            let result = work(connection);
            drop(turn);
            result
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, mpsc},
        time::Duration,
    };

    use crate::{
        crypto::chain::ChainKey,
        store::{ClientStore, embedded::Embedded},
    };

    /// Long reads whose callers were dropped do not block short ones.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn callers_that_leave_do_not_take_the_threads_along() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Embedded::open(dir.path(), "node", ChainKey::new([1; 32])).unwrap());
        let mut held = Vec::new();
        for _ in 0..4 {
            let (begin, begun) = mpsc::channel();
            let (go_on, wait) = mpsc::channel::<()>();
            let scan = {
                let store = store.clone();
                tokio::spawn(async move {
                    let work = move |_: &rusqlite::Connection| {
                        begin.send(()).unwrap();
                        // Until the test drops the other end.
                        let _ = wait.recv();
                        Ok(())
                    };
                    store.scan(work).await
                })
            };
            // The first read begins; the others must not while it is running.
            let bound = Duration::from_millis(if held.is_empty() { 10_000 } else { 100 });
            let begun = tokio::task::spawn_blocking(move || begun.recv_timeout(bound).is_ok())
                .await
                .unwrap();
            assert_eq!(begun, held.is_empty());
            scan.abort();
            held.push(go_on);
        }
        let short =
            tokio::time::timeout(Duration::from_secs(10), store.client(&"a".parse().unwrap()))
                .await;
        assert_eq!(short.unwrap().unwrap(), None);
        drop(held);
        store.scan(|_| Ok(())).await.unwrap();
    }
}
