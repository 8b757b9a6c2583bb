//! Bounded queues to the store's threads.

use std::sync::{Mutex, PoisonError};

use tokio::sync::mpsc;

use crate::store::{Result, StoreError};

/// Sending end of a queue. After it is closed, items sent before still arrive.
pub(crate) struct Queue<T>(Mutex<Option<mpsc::Sender<T>>>);

impl<T> Queue<T> {
    pub(crate) fn new(bound: usize) -> (Self, mpsc::Receiver<T>) {
        let (sender, receiver) = mpsc::channel(bound);
        (Self(Mutex::new(Some(sender))), receiver)
    }

    /// Sends an item; waits while the queue is full.
    pub(crate) async fn send(&self, item: T) -> Result<()> {
        self.sender()?.send(item).await.map_err(|_| closed())
    }

    /// Sends an item if there is room: for a wake-up, which a busy receiver does not need.
    pub(crate) fn nudge(&self, item: T) -> Result<()> {
        let _ = self.sender()?.try_send(item);
        Ok(())
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        self.sender().map(drop)
    }

    pub(crate) fn close(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn sender(&self) -> Result<mpsc::Sender<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or_else(closed)
    }
}

/// Error of every verb after the store was closed.
pub(crate) fn closed() -> StoreError {
    StoreError::Unavailable("the store is closed".into())
}
