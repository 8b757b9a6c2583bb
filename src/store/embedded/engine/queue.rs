//! The way to the store's threads: bounded, and closed once.

use std::sync::{Mutex, PoisonError};

use tokio::sync::mpsc;

use crate::store::{Result, StoreError};

/// The sending end. Closing it lets what was sent before arrive.
pub(crate) struct Queue<T>(Mutex<Option<mpsc::Sender<T>>>);

impl<T> Queue<T> {
    pub(crate) fn new(bound: usize) -> (Self, mpsc::Receiver<T>) {
        let (sender, receiver) = mpsc::channel(bound);
        (Self(Mutex::new(Some(sender))), receiver)
    }

    /// Waits for room.
    pub(crate) async fn send(&self, item: T) -> Result<()> {
        self.sender()?.send(item).await.map_err(|_| closed())
    }

    /// Sends if there is room: for a nudge, which is not needed when the receiver is busy.
    pub(crate) fn nudge(&self, item: T) -> Result<()> {
        let _ = self.sender()?.try_send(item);
        Ok(())
    }

    pub(crate) fn is_open(&self) -> Result<()> {
        self.sender().map(drop)
    }

    pub(crate) fn close(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn sender(&self) -> Result<mpsc::Sender<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or_else(closed)
    }
}

/// What every verb answers once the store is closed.
pub(crate) fn closed() -> StoreError {
    StoreError::Unavailable("the store is closed".into())
}
