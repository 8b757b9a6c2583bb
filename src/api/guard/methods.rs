//! Methods of the descriptors, and the number of calls of each. Labels are taken from here only, so
//! a client cannot create series.

use std::{
    collections::HashMap,
    fmt::Write,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use prost::Message;
use prost_types::FileDescriptorSet;
use tonic::Code;

/// Upper bounds of the histogram, in microseconds, and their text in seconds.
const BOUNDS: [(u64, &str); 12] = [
    (100, "0.0001"),
    (250, "0.00025"),
    (500, "0.0005"),
    (1_000, "0.001"),
    (2_500, "0.0025"),
    (5_000, "0.005"),
    (10_000, "0.01"),
    (25_000, "0.025"),
    (100_000, "0.1"),
    (500_000, "0.5"),
    (1_000_000, "1"),
    (5_000_000, "5"),
];

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
/// until it is scraped.
pub struct Method {
    path: Box<str>,
    service: Box<str>,
    name: Box<str>,
    is_stream: bool,
    codes: [AtomicU64; CODES.len()],
    buckets: [AtomicU64; BOUNDS.len() + 1],
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
        let bucket = BOUNDS.iter().position(|(bound, _)| micros <= *bound).unwrap_or(BOUNDS.len());
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
    pub fn render(&self) -> String {
        let mut methods: Vec<_> = self.by_path.values().chain([&self.unknown]).collect();
        methods.sort_unstable_by_key(|method| &method.path);
        let mut text = String::from("# TYPE grpc_server_handled_total counter\n");
        for method in &methods {
            for (code, count) in CODES.iter().zip(&method.codes) {
                let count = count.load(Relaxed);
                if count > 0 {
                    let labels = method.labels();
                    line(
                        &mut text,
                        format_args!(
                            "grpc_server_handled_total{{{labels},grpc_code=\"{code}\"}} {count}"
                        ),
                    );
                }
            }
        }
        text.push_str("# TYPE grpc_server_handling_seconds histogram\n");
        for method in methods {
            method.render_histogram(&mut text);
        }
        text
    }
}

impl Method {
    fn labels(&self) -> String {
        format!("grpc_service=\"{}\",grpc_method=\"{}\"", self.service, self.name)
    }

    fn render_histogram(&self, text: &mut String) {
        let counts: Vec<_> = self.buckets.iter().map(|bucket| bucket.load(Relaxed)).collect();
        let total: u64 = counts.iter().sum();
        if total == 0 {
            return;
        }
        let labels = self.labels();
        let bounds = BOUNDS.iter().map(|(_, bound)| *bound).chain(["+Inf"]);
        let mut so_far = 0;
        for (bound, count) in bounds.zip(counts) {
            so_far += count;
            line(
                text,
                format_args!(
                    "grpc_server_handling_seconds_bucket{{{labels},le=\"{bound}\"}} {so_far}"
                ),
            );
        }
        let seconds = Duration::from_micros(self.micros.load(Relaxed)).as_secs_f64();
        line(text, format_args!("grpc_server_handling_seconds_sum{{{labels}}} {seconds}"));
        line(text, format_args!("grpc_server_handling_seconds_count{{{labels}}} {total}"));
    }
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{arguments}");
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
