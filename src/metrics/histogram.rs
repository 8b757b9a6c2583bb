//! Histogram of durations.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::{MetricType, TypedMetric},
};

/// Upper bounds of the buckets.
const BOUNDS_MICROS: [u64; 12] =
    [100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 100_000, 500_000, 1_000_000, 5_000_000];

/// Histogram of durations, by plain atomics: one of `prometheus_client` takes a lock for every
/// sample. Its buckets are the same everywhere, so that histograms of nodes add up.
#[derive(Clone, Debug, Default)]
pub struct DurationHistogram(Arc<Buckets>);

#[derive(Debug, Default)]
struct Buckets {
    counts: [AtomicU64; BOUNDS_MICROS.len() + 1],
    micros: AtomicU64,
}

impl DurationHistogram {
    /// Adds a sample.
    pub fn record(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket =
            BOUNDS_MICROS.iter().position(|bound| micros <= *bound).unwrap_or(BOUNDS_MICROS.len());
        if let Some(count) = self.0.counts.get(bucket) {
            count.fetch_add(1, Relaxed);
            self.0.micros.fetch_add(micros, Relaxed);
        }
    }

    /// Returns true if there is no sample.
    pub fn is_empty(&self) -> bool {
        self.0.counts.iter().all(|count| count.load(Relaxed) == 0)
    }
}

impl TypedMetric for DurationHistogram {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for DurationHistogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let bounds = BOUNDS_MICROS.map(|micros| Duration::from_micros(micros).as_secs_f64());
        let counts = self.0.counts.iter().map(|count| count.load(Relaxed));
        // The last bucket has no bound.
        let buckets: Vec<_> = bounds.into_iter().chain([f64::MAX]).zip(counts).collect();
        let total = buckets.iter().map(|(_, count)| count).sum();
        let seconds = Duration::from_micros(self.0.micros.load(Relaxed)).as_secs_f64();
        encoder.encode_histogram::<NoLabelSet>(seconds, total, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}
