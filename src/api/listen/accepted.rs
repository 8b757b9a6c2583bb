//! Connection between the thread that accepts it and the one that serves it.

use std::{
    net::{IpAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use super::connection_limits::ConnectionPermit;
use crate::metrics::METRICS;

/// Connection on its way to a worker, and the permits it holds.
pub(super) struct Accepted {
    pub(super) stream: TcpStream,
    pub(super) address: IpAddr,
    pub(super) permit: ConnectionPermit,
    pub(super) load: Load,
    /// Number that differs from those of its neighbours.
    pub(super) number: u32,
}

/// One connection in a worker's load.
pub(super) struct Load(Arc<AtomicUsize>);

impl Load {
    /// Counts one more.
    pub(super) fn on(load: &Arc<AtomicUsize>) -> Self {
        load.fetch_add(1, Relaxed);
        METRICS.connections_open.inc();
        Self(Arc::clone(load))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
        METRICS.connections_open.dec();
    }
}
