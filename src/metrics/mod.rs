//! Metrics of this process: counters, gauges and histograms, as `docs/metrics.md` lists them. They
//! are global, so that each room can count where something happens. Labels are closed sets: a
//! caller cannot create series.

mod histogram;
mod reading;

use std::sync::{
    LazyLock,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, info::Info},
    registry::Registry,
};

pub use self::{histogram::DurationHistogram, reading::Reading};

/// Prefix of every name.
const PREFIX: &str = "jeton";

/// Metrics of this process.
pub static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::default);

/// Metrics of a process. The fields are named after the metrics; `registry` says what they mean.
#[expect(missing_docs, reason = "each metric has its HELP")]
pub struct Metrics {
    pub accept_errors: Counter,
    pub authentication_failed: Counter,
    pub connections_cut: ByReason,
    pub connections_ended: ByReason,
    pub connections_open: Gauge,
    pub connections_refused: ByReason,
    pub forwarded_malformed: Counter,
    pub introspections_inactive: ByReason,
    pub keyset_refused: Counter,
    pub limiter_full: Counter,
    pub log_lines_dropped: Counter,
    pub outbox_entries_refused: Counter,
    pub panics: Counter,
    pub records_not_authentic: Counter,
    pub tls_reload_errors: Counter,
    pub readings: Readings,
    argon2_blocks: Counter,
    store_calls: Family<StoreCall, DurationHistogram>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            accept_errors: Counter::default(),
            authentication_failed: Counter::default(),
            connections_cut: ByReason::new(&["control_frames", "streams", "unread"]),
            connections_ended: ByReason::new(&["age", "idle", "memory", "room"]),
            connections_open: Gauge::default(),
            connections_refused: ByReason::new(&[
                "network", "peer", "proxy", "socket", "total", "worker",
            ]),
            forwarded_malformed: Counter::default(),
            introspections_inactive: ByReason::new(&[
                "expired",
                "invalid",
                "not_served",
                "revoked",
            ]),
            keyset_refused: Counter::default(),
            limiter_full: Counter::default(),
            log_lines_dropped: Counter::default(),
            outbox_entries_refused: Counter::default(),
            panics: Counter::default(),
            records_not_authentic: Counter::default(),
            tls_reload_errors: Counter::default(),
            readings: Readings::default(),
            argon2_blocks: Counter::default(),
            store_calls: Family::default(),
        }
    }
}

impl Metrics {
    /// Sets the number of argon2id blocks computed since the start.
    pub fn set_argon2_blocks(&self, blocks: u64) {
        let counter: &AtomicU64 = self.argon2_blocks.inner();
        counter.fetch_max(blocks, Relaxed);
    }

    /// Returns the durations of a verb of the store.
    pub fn store_calls(&self, verb: &'static str, outcome: &'static str) -> DurationHistogram {
        self.store_calls.get_or_create_owned(&StoreCall { verb, outcome })
    }

    /// Returns a registry of these metrics.
    pub fn registry(&self) -> Registry {
        let mut registry = Registry::with_prefix(PREFIX);
        let counters = [
            (
                "accept_errors",
                "Failures to accept a connection: no descriptors or no memory",
                &self.accept_errors,
            ),
            ("argon2_blocks", "Blocks of 1 KiB computed by argon2id", &self.argon2_blocks),
            (
                "authentication_failed",
                "Calls with an unknown client, a wrong secret, or a secret that was not compared",
                &self.authentication_failed,
            ),
            (
                "forwarded_malformed",
                "Requests of a trusted proxy whose header names no address",
                &self.forwarded_malformed,
            ),
            (
                "keyset_refused",
                "Keysets of the store that are not authentic or older than the one in use",
                &self.keyset_refused,
            ),
            ("limiter_full", "Calls that found a table of a rate limiter full", &self.limiter_full),
            (
                "log_lines_dropped",
                "Lines of the log that were dropped because nothing read them",
                &self.log_lines_dropped,
            ),
            (
                "outbox_entries_refused",
                "Audit records in MongoDB documents that no node wrote",
                &self.outbox_entries_refused,
            ),
            ("panics", "Handlers that panicked: defects of jeton", &self.panics),
            (
                "records_not_authentic",
                "Readings of a client or audience record that the service did not write",
                &self.records_not_authentic,
            ),
            (
                "tls_reload_errors",
                "New certificate files that cannot be used; the old ones stay in use",
                &self.tls_reload_errors,
            ),
        ];
        for (name, help, counter) in counters {
            registry.register(name, help, counter.clone());
        }
        let by_reason = [
            (
                "connections_cut",
                "Connections closed because the client broke a bound",
                &self.connections_cut,
            ),
            (
                "connections_ended",
                "Connections that were sent GOAWAY; their calls finish",
                &self.connections_ended,
            ),
            (
                "connections_refused",
                "Connections closed at once, mostly because a limit was reached",
                &self.connections_refused,
            ),
            (
                "introspections_inactive",
                "Access tokens that Introspect reported as not active, by the reason, which the \
                 caller does not get",
                &self.introspections_inactive,
            ),
        ];
        for (name, help, counters) in by_reason {
            registry.register(name, help, counters.0.clone());
        }
        registry.register(
            "build",
            "Version of the program",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        registry.register("connections_open", "Open connections", self.connections_open.clone());
        registry.register(
            "store_call_seconds",
            "Duration of a verb of the store",
            self.store_calls.clone(),
        );
        for (name, help, reading) in self.readings.list() {
            registry.register(name, help, reading.clone());
        }
        registry
    }
}

/// Gauges that are measured now and then. What `jeton doctor` measures has one.
#[expect(missing_docs, reason = "each metric has its HELP")]
#[derive(Default)]
pub struct Readings {
    pub audit_records: Reading,
    pub audit_records_per_day: Reading,
    pub audit_size: Reading,
    pub certificate_expiry: Reading,
    pub clock: Reading,
    pub clock_ahead: Reading,
    pub clock_offset: Reading,
    pub connections_limit: Reading,
    pub data_directory_private: Reading,
    pub open_files: Reading,
    pub open_files_limit: Reading,
    pub published_keys: Reading,
    pub ready: Reading,
    pub standing_age: Reading,
    pub start: Reading,
    pub store_election_term: Reading,
    pub store_free: Reading,
    pub store_index_defects: Reading,
    pub store_lag: Reading,
    pub store_members: Reading,
    pub store_schema: Reading,
    pub store_size: Reading,
}

impl Readings {
    fn list(&self) -> [(&'static str, &'static str, &Reading); 22] {
        [
            ("audit_records", "Records of the audit trail", &self.audit_records),
            (
                "audit_records_per_day",
                "Records that the audit trail gets in a day at the present rate",
                &self.audit_records_per_day,
            ),
            (
                "audit_size_bytes",
                "Size of the audit trail with its indexes, estimated by the size of a record",
                &self.audit_size,
            ),
            (
                "certificate_expiry_timestamp_seconds",
                "Unix time at which the certificate of the port expires; absent without TLS",
                &self.certificate_expiry,
            ),
            (
                "clock_ahead_seconds",
                "Time by which the clock of the service is ahead of the machine's; negative while a \
                 step of the machine's clock is not followed",
                &self.clock_ahead,
            ),
            (
                "clock_timestamp_seconds",
                "Unix time by the clock of the service, which never goes back",
                &self.clock,
            ),
            (
                "clock_offset_seconds",
                "Time by which the clock of a shared store is ahead; absent with an embedded store",
                &self.clock_offset,
            ),
            (
                "connections_limit",
                "Connections at once that the settings and the open file limit allow",
                &self.connections_limit,
            ),
            (
                "data_directory_private",
                "1 if only its owner may access the data directory, 0 if others may too",
                &self.data_directory_private,
            ),
            ("open_files", "Open file descriptors", &self.open_files),
            ("open_files_limit", "Limit on open file descriptors", &self.open_files_limit),
            (
                "published_keys",
                "Keys in the JWKS: the signing key, its successor and predecessors",
                &self.published_keys,
            ),
            ("ready", "1 if gRPC health reports SERVING, otherwise 0", &self.ready),
            (
                "standing_age_seconds",
                "Age of the revocation data of this node; absent with an embedded store",
                &self.standing_age,
            ),
            ("start_timestamp_seconds", "Unix time of the start", &self.start),
            (
                "store_election_term",
                "Number of MongoDB's election: each one raises it; absent with an embedded store",
                &self.store_election_term,
            ),
            (
                "store_index_defects",
                "Indexes in MongoDB that differ from those needed; absent with an embedded store",
                &self.store_index_defects,
            ),
            (
                "store_lag_seconds",
                "Time by which a majority is behind MongoDB's last write; absent with an embedded \
                 store",
                &self.store_lag,
            ),
            (
                "store_members",
                "Members of MongoDB's replica set; absent with an embedded store",
                &self.store_members,
            ),
            (
                "store_schema_version",
                "Version of the schema in MongoDB; absent with an embedded store",
                &self.store_schema,
            ),
            (
                "store_free_bytes",
                "Free space on the disk of the data directory; absent with a shared store",
                &self.store_free,
            ),
            (
                "store_size_bytes",
                "Size of the files in the data directory; absent with a shared store",
                &self.store_size,
            ),
        ]
    }
}

/// Counters by a reason out of a closed set.
pub struct ByReason(Family<Reason, Counter>);

impl ByReason {
    /// Creates the counters of these reasons, each at zero: a rate needs a first value.
    fn new(reasons: &[&'static str]) -> Self {
        let family = Family::default();
        for reason in reasons {
            let _: Counter = family.get_or_create_owned(&Reason { reason });
        }
        Self(family)
    }

    /// Counts one more.
    pub fn count(&self, reason: &'static str) {
        self.0.get_or_create(&Reason { reason }).inc();
    }
}

#[derive(Clone, Debug, EncodeLabelSet, Hash, PartialEq, Eq)]
struct Reason {
    reason: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Hash, PartialEq, Eq)]
struct StoreCall {
    verb: &'static str,
    outcome: &'static str,
}

#[cfg(test)]
impl Metrics {
    /// Gives every metric a series.
    pub(crate) fn touch(&self) {
        let _ = self.store_calls("ready", "ok");
        for (_, _, reading) in self.readings.list() {
            reading.set(1.0);
        }
    }
}
