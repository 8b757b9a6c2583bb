//! The open file limit, which bounds connections however many are configured.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::Options;

/// Descriptors kept for everything else: the store and its connections, TLS files, metrics, the
/// runtimes; at most half of all.
const RESERVE: u64 = 256;
/// Part of the connections left that one peer may have.
const PEER: usize = 10;

/// Raises the limit as far as this process may. Returns it; `None` if there is none.
pub fn raise_limit() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    // Where it cannot be raised, what there is has to do.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    getrlimit(Resource::Nofile).current
}

/// The limit that [`raise_limit`] would come to in this process.
pub fn highest_limit() -> Option<u64> {
    getrlimit(Resource::Nofile).maximum
}

/// Connections that are possible within a limit on open files.
pub fn connections_within(limit: u64) -> usize {
    usize::try_from(limit - RESERVE.min(limit / 2)).unwrap_or(usize::MAX).max(1)
}

impl Options {
    /// Cut to what the limit on open files leaves; of less than was configured, a peer has a tenth.
    #[must_use]
    pub fn within(self, limit: Option<u64>) -> Self {
        let room = limit.map_or(usize::MAX, connections_within);
        if room >= self.connections {
            return self;
        }
        let connections_per_peer = self.connections_per_peer.min((room / PEER).max(1));
        tracing::warn!(
            connections = room,
            connections_per_peer,
            configured = self.connections,
            open_files = limit,
            "open file limit is too low for limits.connections; raise it (LimitNOFILE, ulimit -n)"
        );
        Self { connections: room, connections_per_peer, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    /// L10: what is configured holds where there are descriptors for it, and is cut where there are
    /// not.
    #[test]
    fn connections_are_cut_to_the_descriptors_that_there_are() {
        let limits = crate::config::Limits {
            connections: 20_000,
            connections_per_peer: 2_000,
            ..Config::default().limits
        };
        let cut = |limit| {
            let options = Options::new(&limits, None).within(limit);
            (options.connections, options.connections_per_peer)
        };
        assert_eq!(cut(None), (20_000, 2_000));
        assert_eq!(cut(Some(65_536)), (20_000, 2_000));
        assert_eq!(cut(Some(20_256)), (20_000, 2_000));
        assert_eq!(cut(Some(20_255)), (19_999, 1_999));
        assert_eq!(cut(Some(1_024)), (768, 76));
        assert_eq!(cut(Some(64)), (32, 3));
        assert_eq!(cut(Some(0)), (1, 1));
    }
}
