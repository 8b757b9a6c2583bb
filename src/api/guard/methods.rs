//! Methods of the descriptors, and the number of calls of each. Labels are taken from here only, so
//! a client cannot create series.

use std::{
    collections::HashMap,
    fmt,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet, prometheus_text},
    metrics::MetricType,
    registry::Registry,
};
use prost::Message;
use prost_types::FileDescriptorSet;
use tonic::Code;

/// Upper bounds of the histogram.
const BOUNDS_MICROS: [u64; 12] =
    [100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 100_000, 500_000, 1_000_000, 5_000_000];

/// Names of the codes, by number, as Prometheus users of gRPC know them.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// Method and its counts. Plain atomics: a histogram of the `metrics` crate keeps every sample
/// until it is scraped, one of `prometheus_client` takes a lock.
pub struct Method {
    path: Box<str>,
    service: Box<str>,
    name: Box<str>,
    is_stream: bool,
    codes: [AtomicU64; CODES.len()],
    buckets: [AtomicU64; BOUNDS_MICROS.len() + 1],
    micros: AtomicU64,
}

impl Method {
    fn new(service: &str, name: &str, is_stream: bool) -> Self {
        Self {
            path: format!("/{service}/{name}").into(),
            service: service.into(),
            name: name.into(),
            is_stream,
            codes: Default::default(),
            buckets: Default::default(),
            micros: AtomicU64::new(0),
        }
    }

    /// Returns the path of its requests, `/package.Service/Method`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Returns true if its response is an endless stream.
    pub(super) const fn is_stream(&self) -> bool {
        self.is_stream
    }

    /// Counts a call that ended.
    pub(super) fn handled(&self, code: Code, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket =
            BOUNDS_MICROS.iter().position(|bound| micros <= *bound).unwrap_or(BOUNDS_MICROS.len());
        if let (Some(code), Some(bucket)) =
            (self.codes.get(code as usize), self.buckets.get(bucket))
        {
            code.fetch_add(1, Relaxed);
            bucket.fetch_add(1, Relaxed);
            self.micros.fetch_add(micros, Relaxed);
        }
    }

    /// Returns the number of calls that ended with `code`.
    pub fn count(&self, code: Code) -> u64 {
        self.codes.get(code as usize).map_or(0, |count| count.load(Relaxed))
    }
}

/// Methods of a server.
pub struct Methods {
    by_path: HashMap<Box<str>, Method>,
    /// Counts of every gRPC path that is no method.
    pub(super) unknown: Method,
}

impl Methods {
    /// Creates the methods of encoded descriptor sets, such as [`crate::proto::DESCRIPTORS`]. They
    /// live as long as the process, as its counts do, so that a call need not share ownership of
    /// them.
    ///
    /// # Errors
    /// A set that cannot be decoded.
    pub fn leaked(descriptor_sets: &[&[u8]]) -> Result<&'static Self, prost::DecodeError> {
        let mut by_path = HashMap::new();
        for set in descriptor_sets {
            for file in FileDescriptorSet::decode(*set)?.file {
                for service in &file.service {
                    let service_name = format!("{}.{}", file.package(), service.name());
                    let methods = service.method.iter().map(|method| {
                        Method::new(&service_name, method.name(), method.server_streaming())
                    });
                    by_path.extend(methods.map(|method| (method.path.clone(), method)));
                }
            }
        }
        Ok(Box::leak(Box::new(Self { by_path, unknown: Method::new("unknown", "unknown", false) })))
    }

    /// Returns the method of exactly this path.
    pub fn find(&self, path: &str) -> Option<&Method> {
        self.by_path.get(path)
    }

    /// Renders `grpc_server_handled_total` and `grpc_server_handling_seconds` of methods that were
    /// called, in the text format of Prometheus.
    pub fn render(&'static self) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Counts(self)));
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = prometheus_text::encode(&mut text, &registry);
        text
    }
}

/// Counts of all methods, as they are when they are collected.
struct Counts(&'static Methods);

impl fmt::Debug for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Counts")
    }
}

impl Collector for Counts {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut methods: Vec<_> = self.0.by_path.values().chain([&self.0.unknown]).collect();
        methods.sort_unstable_by_key(|method| &method.path);
        let mut handled = encoder.encode_descriptor(
            "grpc_server_handled",
            "Number of calls that ended, by method and gRPC code",
            None,
            MetricType::Counter,
        )?;
        for method in &methods {
            for (code, count) in CODES.iter().zip(&method.codes) {
                let count = count.load(Relaxed);
                if count > 0 {
                    let [service, name] = method.labels();
                    let labels = [service, name, ("grpc_code", *code)];
                    let mut series = handled.encode_family(&labels)?;
                    series.encode_counter::<NoLabelSet, u64, u64>(&count, None)?;
                }
            }
        }
        let mut handling = encoder.encode_descriptor(
            "grpc_server_handling_seconds",
            "Time from the request's headers to the end of the response",
            None,
            MetricType::Histogram,
        )?;
        for method in methods {
            let bounds = BOUNDS_MICROS.map(|micros| Duration::from_micros(micros).as_secs_f64());
            let counts = method.buckets.iter().map(|bucket| bucket.load(Relaxed));
            // The last bucket has no bound.
            let buckets: Vec<_> = bounds.into_iter().chain([f64::MAX]).zip(counts).collect();
            let total: u64 = buckets.iter().map(|(_, count)| count).sum();
            if total > 0 {
                let seconds = Duration::from_micros(method.micros.load(Relaxed)).as_secs_f64();
                let labels = method.labels();
                let mut series = handling.encode_family(&labels)?;
                series.encode_histogram::<NoLabelSet>(seconds, total, &buckets, None)?;
            }
        }
        Ok(())
    }
}

impl Method {
    fn labels(&self) -> [(&str, &str); 2] {
        [("grpc_service", &self.service), ("grpc_method", &self.name)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_come_from_the_contract_and_nowhere_else() {
        let methods =
            Methods::leaked(&[crate::proto::DESCRIPTORS, tonic_health::pb::FILE_DESCRIPTOR_SET])
                .unwrap();
        assert!(methods.find("/jeton.token.v1.TokenService/Introspect").is_some());
        assert!(!methods.find("/grpc.health.v1.Health/Check").unwrap().is_stream());
        assert!(methods.find("/grpc.health.v1.Health/Watch").unwrap().is_stream());
        for other in [
            "jeton.token.v1.TokenService/Introspect",
            "/jeton.token.v1.TokenService/introspect",
            "/",
            "",
        ] {
            assert!(methods.find(other).is_none(), "{other}");
        }
    }

    #[test]
    fn a_histogram_adds_up() {
        let methods = Methods::leaked(&[crate::proto::DESCRIPTORS]).unwrap();
        let method = methods.find("/jeton.token.v1.TokenService/Token").unwrap();
        for micros in [50, 100, 101, 9_999_999] {
            method.handled(Code::Ok, Duration::from_micros(micros));
        }
        method.handled(Code::Unavailable, Duration::ZERO);
        let text = methods.render();
        let labels = "grpc_service=\"jeton.token.v1.TokenService\",grpc_method=\"Token\"";
        for expected in [
            format!("grpc_server_handled_total{{{labels},grpc_code=\"OK\"}} 4"),
            format!("grpc_server_handled_total{{{labels},grpc_code=\"Unavailable\"}} 1"),
            format!("grpc_server_handling_seconds_bucket{{{labels},le=\"0.0001\"}} 3"),
            format!("grpc_server_handling_seconds_bucket{{{labels},le=\"0.00025\"}} 4"),
            format!("grpc_server_handling_seconds_bucket{{{labels},le=\"+Inf\"}} 5"),
            format!("grpc_server_handling_seconds_count{{{labels}}} 5"),
        ] {
            assert!(text.lines().any(|line| line == expected), "{expected}\nin\n{text}");
        }
        assert!(!text.contains("BatchIntrospect"), "methods never called are not written");
    }
}
