//! Gauge that is absent until it is measured.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder},
    metrics::{MetricType, TypedMetric},
};

/// Gauge that is absent until it is measured: a zero would look like a measurement, and raise or
/// silence an alert.
#[derive(Clone, Debug)]
pub struct Reading(Arc<AtomicU64>);

impl Reading {
    /// Sets the value.
    pub fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Relaxed);
    }

    fn value(&self) -> f64 {
        f64::from_bits(self.0.load(Relaxed))
    }
}

impl Default for Reading {
    fn default() -> Self {
        Self(Arc::new(AtomicU64::new(f64::NAN.to_bits())))
    }
}

impl TypedMetric for Reading {
    const TYPE: MetricType = MetricType::Gauge;
}

impl EncodeMetric for Reading {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_gauge(&self.value())
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }

    fn is_empty(&self) -> bool {
        self.value().is_nan()
    }
}
