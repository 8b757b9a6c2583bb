//! Limit on open files, which bounds connections whatever the configuration.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::Options;

/// Descriptors reserved for everything else: the store and its connections, TLS files, metrics, the
/// runtimes; at most half of all.
const RESERVED_DESCRIPTORS: u64 = 256;
/// Part of the remaining connections that one peer may have.
const PEER_PART: usize = 10;

/// Raises the limit as far as this process may. Returns it; `None` if there is none.
pub fn raise_limit() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    // If it cannot be raised, the current limit applies.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    getrlimit(Resource::Nofile).current
}

/// Returns the limit that [`raise_limit`] would reach in this process.
pub fn highest_limit() -> Option<u64> {
    getrlimit(Resource::Nofile).maximum
}

/// Returns the number of connections that are possible within a limit on open files.
pub fn connections_within(limit: u64) -> usize {
    usize::try_from(limit - RESERVED_DESCRIPTORS.min(limit / 2)).unwrap_or(usize::MAX).max(1)
}

impl Options {
    /// Cuts the limits on connections to the limit on open files; if fewer are left than
    /// configured, a peer has a tenth.
    #[must_use]
    pub fn within(self, limit: Option<u64>) -> Self {
        let room = limit.map_or(usize::MAX, connections_within);
        if room >= self.connections {
            return self;
        }
        let connections_per_peer = self.connections_per_peer.min((room / PEER_PART).max(1));
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

    /// L10: the configured limits apply if there are descriptors for them, and are cut if not.
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
